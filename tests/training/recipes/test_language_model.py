"""The language models: the recipes' numbers, the loss, the carried states."""

import dataclasses
import math

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_bnrnn.data.text import token_windows
from recipes.language_model import (
    RECIPES,
    ResetStates,
    build_language_model,
    reset_states,
)

WORDS = 13
TINY = dataclasses.replace(RECIPES["small"], units=6, timesteps=5, batch_size=4, clip_norm=1e6)


def tiny_model(normalized, recipe=TINY, **arguments):
    keras.utils.set_random_seed(7)
    return build_language_model(recipe, WORDS, normalized, **arguments)


def tiny_tokens(count, seed=1):
    return np.random.default_rng(seed).integers(0, WORDS, count)


def summed_loss(model, inputs, targets):
    """-sum over the window of log p, averaged over the streams: Zaremba et al.'s loss."""
    logits = model(inputs, training=True)
    log_p = tf.gather(tf.nn.log_softmax(logits), targets, batch_dims=2)
    return tf.reduce_mean(tf.reduce_sum(-log_p, axis=1))


def test_recipes_are_those_of_the_paper():
    small, medium, large = (RECIPES[size] for size in ("small", "medium", "large"))
    assert dataclasses.astuple(small) == (200, 20, 0.0, 0.1, 5.0, 4, 2.0, 13, 20, 1.0)
    assert dataclasses.astuple(medium) == (650, 35, 0.5, 0.05, 5.0, 6, 1.2, 39, 20, 1.0)
    assert dataclasses.astuple(large) == (1500, 35, 0.65, 0.04, 10.0, 14, 1.15, 55, 20, 1.0)


def test_learning_rate_falls_after_the_constant_epochs():
    rates = [RECIPES["small"].learning_rate_of(epoch) for epoch in range(7)]
    assert rates == [1, 1, 1, 1, 0.5, 0.25, 0.125]
    medium = RECIPES["medium"]
    assert medium.learning_rate_of(5) == 1
    assert medium.learning_rate_of(6) == pytest.approx(1 / 1.2)
    assert RECIPES["large"].learning_rate_of(54) == pytest.approx(1.15**-41)


@pytest.mark.parametrize("normalized", [False, True])
def test_a_step_follows_the_gradient_of_the_summed_loss(normalized):
    inputs, targets = tiny_tokens(20).reshape(4, 5), tiny_tokens(20, 2).reshape(4, 5)
    model = tiny_model(normalized)
    with tf.GradientTape() as tape:
        loss = summed_loss(model, inputs, targets)
    gradients = tape.gradient(loss, [variable.value for variable in model.trainable_variables])
    expected = [
        variable.numpy() - tf.convert_to_tensor(gradient)
        for variable, gradient in zip(model.trainable_variables, gradients, strict=True)
    ]
    model = tiny_model(normalized)
    logs = model.train_on_batch(inputs, targets, np.ones((4, 5)), return_dict=True)
    assert logs["loss"] == pytest.approx(float(loss), rel=1e-5)
    assert logs["loss"] == pytest.approx(5 * np.log(logs["perplexity"]), rel=1e-5)
    for variable, value in zip(model.trainable_variables, expected, strict=True):
        np.testing.assert_allclose(variable.numpy(), value, atol=1e-6)


def test_the_clipping_bound_is_that_of_the_summed_loss():
    recipe = dataclasses.replace(TINY, clip_norm=1e-3)
    model = tiny_model(False, recipe)
    before = [variable.numpy() for variable in model.trainable_variables]
    # Each word once, so that no row of the embedding's gradient is given in two parts.
    inputs = np.arange(5)[None] + np.zeros((4, 1), int)
    model.train_on_batch(inputs, tiny_tokens(20).reshape(4, 5))
    change = [
        variable.numpy() - value
        for variable, value in zip(model.trainable_variables[1:], before[1:], strict=True)
    ]
    norm = math.sqrt(sum(np.sum(np.square(part)) for part in change))
    assert 0 < norm <= 1e-3 * (1 + 1e-5)


def test_all_weights_start_in_the_recipes_range_and_equal_for_both_models():
    recipe = dataclasses.replace(TINY, units=32)
    plain = [weight.numpy() for weight in tiny_model(False, recipe).trainable_variables]
    normalized = tiny_model(True, recipe).trainable_variables
    assert len(plain) == 1 + 2 * 3 + 2
    for value in plain:
        assert 0.05 < np.abs(value).max() <= 0.1
    assert len({value.ravel()[:5].tobytes() for value in plain}) == len(plain)
    shared = [weight.numpy() for weight in normalized if "gamma" not in weight.path]
    for value, other in zip(plain, shared, strict=True):
        np.testing.assert_array_equal(value, other)


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_dropout_stands_between_the_layers(dropout):
    model = tiny_model(True, dataclasses.replace(TINY, dropout=dropout))
    kinds = [type(layer).__name__ for layer in model.layers[1:]]
    between = ["Dropout"] if dropout else []
    recurrent = ["BatchNormLSTM", *between]
    assert kinds == ["Embedding", *between, *recurrent, *recurrent, "Dense"]


@pytest.mark.parametrize("normalized", [False, True])
def test_states_are_carried_from_window_to_window(normalized):
    tokens = tiny_tokens(4 * 15)
    whole = tiny_model(normalized, dataclasses.replace(TINY, timesteps=15))
    (all_inputs, _, _), *_ = token_windows(tokens, 4, 15, start=0)
    expected = whole(all_inputs, training=False)
    model = tiny_model(normalized)
    windows = [inputs for inputs, _, _ in token_windows(tokens, 4, 5, start=0)]
    got = np.concatenate([model(inputs, training=False) for inputs in windows], axis=1)
    np.testing.assert_allclose(got, expected, atol=1e-5)
    reset_states(model)
    np.testing.assert_allclose(model(windows[0]), expected[:, :5], atol=1e-5)


def test_no_later_word_enters_an_earlier_prediction():
    model = tiny_model(True)
    inputs = tiny_tokens(20).reshape(4, 5)
    first = model(inputs, training=True)
    reset_states(model)
    changed = inputs.copy()
    changed[:, 3:] = (changed[:, 3:] + 1) % WORDS
    second = model(changed, training=True)
    np.testing.assert_array_equal(first[:, :3], second[:, :3])
    assert np.abs(first[:, 3:] - second[:, 3:]).max() > 1e-4


class RecordStates(keras.callbacks.Callback):
    def __init__(self):
        super().__init__()
        self.zero = {}

    def _record(self, name):
        layers = [layer for layer in self.model.layers if getattr(layer, "stateful", False)]
        self.zero[name] = all(not np.any(state) for layer in layers for state in layer.states)

    def on_epoch_begin(self, epoch, logs=None):
        self._record(f"epoch {epoch} begins")

    def on_train_batch_begin(self, batch, logs=None):
        self._record(f"batch {batch} begins")

    def on_test_begin(self, logs=None):
        self._record("test begins")

    def on_epoch_end(self, epoch, logs=None):
        self._record(f"epoch {epoch} ends")


def test_epochs_and_evaluations_start_at_zero_states():
    model = tiny_model(True)
    windows = token_windows(tiny_tokens(100), 4, 5, start=0)
    record = RecordStates()
    model.fit(
        windows,
        validation_data=windows,
        epochs=2,
        callbacks=[ResetStates(), record],
        verbose=0,
        shuffle=False,
    )
    assert record.zero == {
        "epoch 0 begins": True,
        "batch 0 begins": True,
        "batch 1 begins": False,
        "batch 2 begins": False,
        "batch 3 begins": False,
        "batch 4 begins": False,
        "test begins": True,
        "epoch 0 ends": True,
        "epoch 1 begins": True,
        "epoch 1 ends": True,
    }


@pytest.mark.parametrize("normalized", [False, True])
def test_perplexity_scores_every_token_of_an_uneven_text_once(normalized):
    tokens = tiny_tokens(67)
    model = tiny_model(normalized)
    windows = token_windows(tokens, 4, 5, start=0, keep_remainder=True)
    logs = model.evaluate(windows, callbacks=[ResetStates()], verbose=0, return_dict=True)
    # Stream by stream, without windows: 17 tokens in the first three, 16 in the last.
    surprise = []
    plain = tiny_model(normalized, dataclasses.replace(TINY, batch_size=1))
    for begin, end in ((0, 17), (17, 34), (34, 51), (51, 67)):
        reset_states(plain)
        inputs = np.concatenate([[0], tokens])[begin:end][None]
        log_p = tf.nn.log_softmax(plain(inputs, training=False)[0]).numpy()
        surprise.extend(-log_p[np.arange(end - begin), tokens[begin:end]])
    assert len(surprise) == 67
    assert logs["perplexity"] == pytest.approx(np.exp(np.mean(surprise)), rel=1e-5)
