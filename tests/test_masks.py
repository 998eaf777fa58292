"""Masked frames never count: not in outputs, gradients or population statistics.

Whatever the padding holds, however long it is, and on Keras versions that stopped handing the
mask from layer to layer.
"""

import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf

import conformance
import keras_bnrnn
import reference
from conformance import BATCH, CASES, FEATURES, MAIN_CASES, TIME, UNITS, assert_all_close

# 1e200 overflows when squared. Plain Keras lets what is not finite through to the gradients, so
# that is asked of the normalised layers only.
JUNK = np.array([50.0, 1e200, np.nan, -np.inf])


def _run(case, layer, weights, x, mask, training):
    """Outputs, states, gradients and statistics in one flat dict."""
    conformance.set_weights(layer, weights)
    outputs, states, gradients = conformance.call_and_differentiate(
        layer, x, mask, training=training
    )
    found = {"outputs": outputs, **gradients, **conformance.statistics(case, layer)}
    return found | {f"final_{i}": s for i, s in enumerate(states)}


def _assert_same(actual, expected, atol=1e-12, but=()):
    assert set(actual) == set(expected)
    for name in set(expected) - set(but):
        np.testing.assert_allclose(actual[name], expected[name], rtol=0, atol=atol, err_msg=name)


@pytest.mark.by_route
@pytest.mark.parametrize("training", [False, True], ids=["inference", "training"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_what_the_padding_holds_moves_nothing(case, training):
    rng = np.random.default_rng(0)
    weights = case.weights(rng)
    layer = case.built(weights)
    x = rng.normal(size=(BATCH, TIME, FEATURES))
    turn = CASES.index(case) + training
    mask = conformance.masks()[["right", "holey", "left"][turn % 3]]
    junk = np.resize(JUNK if case.normalized else JUNK[:2], x.shape)
    expected = _run(case, layer, weights, np.where(mask[..., None], x, 0.0), mask, training)
    found = _run(case, layer, weights, np.where(mask[..., None], x, junk), mask, training)
    _assert_same(found, expected)
    assert not found["x"][~mask].any(), "a masked frame has no gradient"


@pytest.mark.by_route
@pytest.mark.parametrize("training", [False, True], ids=["inference", "training"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_how_long_the_padding_is_moves_nothing(case, training):
    rng = np.random.default_rng(1)
    weights = case.weights(rng)
    layer = case.built(weights)
    x = rng.normal(size=(BATCH, TIME, FEATURES))
    mask = conformance.masks()["right"]
    backwards = case.kwargs.get("go_backwards", False)
    longer_x = np.pad(x, [(0, 0), (0, 3), (0, 0)], constant_values=50.0)
    longer_mask = np.pad(mask, [(0, 0), (0, 3)])
    short = reference.layer(case.options, weights, x, mask, training=training)
    outputs, *states = layer(longer_x, mask=longer_mask, training=training)
    # Under go_backwards the padding is in front, in the order of the loop.
    live_part = outputs[:, 3:] if backwards else outputs[:, :TIME]
    conformance.assert_as_expected(case, layer, (live_part, *states), short, 1e-12)


@pytest.mark.by_route
@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_mask_with_a_last_axis(case):
    """`[batch, time, 1]`, as Keras's own layers take it."""
    rng = np.random.default_rng(9)
    weights = case.weights(rng)
    layer = case.built(weights)
    x = rng.normal(size=(BATCH, TIME, FEATURES))
    mask = conformance.masks()["right"]
    expected = _run(case, layer, weights, x, mask, True)
    _assert_same(_run(case, layer, weights, x, mask[..., None], True), expected)
    with pytest.raises(ValueError, match="mask must have the shape"):
        layer(x, mask=np.ones((BATCH, TIME, FEATURES), bool))


@pytest.mark.by_route
@pytest.mark.parametrize("case", CASES, ids=str)
def test_wholly_masked_rows_move_nothing(case):
    rng = np.random.default_rng(2)
    weights = case.weights(rng)
    layer = case.built(weights)
    x = rng.normal(size=(BATCH, TIME, FEATURES))
    expected = _run(case, layer, weights, x, np.ones((BATCH, TIME), bool), True)
    conformance.set_weights(layer, weights)
    wider_x = np.concatenate([x, np.full((2, TIME, FEATURES), 50.0)])
    mask = np.repeat([True] * BATCH + [False] * 2, TIME).reshape(BATCH + 2, TIME)
    outputs, *states = layer(wider_x, mask=mask, training=True)
    np.testing.assert_allclose(outputs[:BATCH], expected["outputs"], rtol=0, atol=1e-12)
    assert not np.asarray(outputs[BATCH:]).any()
    assert not np.asarray(states[0][BATCH:]).any()
    conformance.assert_statistics(case, layer, expected, 1e-12)


@pytest.mark.by_route
@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_batch_without_any_live_frame(case):
    rng = np.random.default_rng(3)
    weights = case.weights(rng)
    layer = case.built(weights)
    x = rng.normal(size=(BATCH, TIME, FEATURES))
    found = _run(case, layer, weights, x, np.zeros((BATCH, TIME), bool), True)
    for name, value in found.items():
        if name in case.options.statistics():
            np.testing.assert_array_equal(value, weights[name], err_msg=name)
        else:
            np.testing.assert_array_equal(value, np.zeros_like(value), err_msg=name)


@pytest.mark.by_route
@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_mask_without_masked_frames_is_no_mask(case):
    rng = np.random.default_rng(4)
    weights = case.weights(rng)
    layer = case.built(weights)
    x = rng.normal(size=(BATCH, TIME, FEATURES))
    expected = _run(case, layer, weights, x, None, True)
    _assert_same(_run(case, layer, weights, x, np.ones((BATCH, TIME), bool), True), expected)


@pytest.fixture
def newer_keras(monkeypatch):
    """Keras's wrappers as the version after 3.15.1 has them: they swallow the mask."""
    for wrapper in (keras.layers.RNN, keras.layers.Bidirectional, keras.layers.TimeDistributed):

        def __init__(self, *args, _original=wrapper.__init__, **kwargs):
            _original(self, *args, **kwargs)
            self.supports_masking = False

        monkeypatch.setattr(wrapper, "__init__", __init__)


def _stack(case):
    arguments = {"return_state": False, "dtype": "float32"}
    return keras.Sequential(
        [
            keras.Input((None, FEATURES)),
            keras.layers.Masking(0.0),
            case.layer(**arguments, name="first"),
            keras_bnrnn.Bidirectional(case.layer(**arguments), name="both"),
            case.layer(**arguments, return_sequences=False, name="last"),
        ]
    )


STACKED = [
    case
    for case in MAIN_CASES
    # Not with per-step statistics: the backward half counts its steps from the padding's end.
    if case.mode in ("none", "sequence", "frame_recurrent", "sequence_recurrent_cell")
]


def test_newer_keras_is_simulated(newer_keras):
    model = keras.Sequential(
        [
            keras.Input((None, FEATURES)),
            keras.layers.Masking(0.0),
            keras.layers.LSTM(UNITS, return_sequences=True),
        ]
    )
    with pytest.warns(UserWarning, match="mask"):
        output = model(np.ones((2, TIME, FEATURES), "float32"))
    assert keras.src.backend.get_keras_mask(output) is None


@pytest.mark.by_route
@pytest.mark.parametrize("training", [False, True], ids=["inference", "training"])
@pytest.mark.parametrize("case", STACKED, ids=str)
def test_the_mask_travels_through_a_stack(case, training, newer_keras):
    """Longer padding moves neither the outputs nor any statistic of a stack."""
    keras.utils.set_random_seed(0)
    model = _stack(case)
    rng = np.random.default_rng(5)
    x = rng.normal(size=(BATCH, TIME, FEATURES)).astype("float32")
    x[0, 3:], x[1, 2:] = 0.0, 0.0
    weights = [w + rng.uniform(0, 0.3, w.shape) for w in model.get_weights()]
    found = []
    for padding in (0, 4):
        model.set_weights(weights)
        padded = np.pad(x, [(0, 0), (0, padding), (0, 0)])
        output = model(padded, training=training)
        found.append([np.asarray(output), *model.get_weights()])
    assert_all_close(*found, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("wrapped", [False, True], ids=["layer", "bidirectional"])
@pytest.mark.parametrize("case", STACKED, ids=str)
def test_outputs_carry_the_mask(case, wrapped, newer_keras):
    layer = case.layer(return_state=False, dtype="float32")
    if wrapped:
        layer = keras_bnrnn.Bidirectional(layer)
    masked = keras.layers.Masking(0.0)(np.ones((2, TIME, FEATURES), "float32"))
    mask = keras.src.backend.get_keras_mask(layer(masked))
    assert mask is not None
    np.testing.assert_array_equal(mask, np.ones((2, TIME), bool))


# Wrapped `keras.layers` stand beside the layers that compute the same.
ALONE = [(case, False) for case in MAIN_CASES]
ALONE += [(case, True) for case in MAIN_CASES if not case.normalized]


@pytest.mark.by_route
@pytest.mark.parametrize(("case", "plain"), ALONE, ids=lambda v: {True: "keras"}.get(v, str(v)))
def test_backward_half_equals_each_sequence_alone(case, plain, newer_keras):
    """At inference, each row of a padded batch is what it is alone, at its own length."""
    keras.utils.set_random_seed(1)
    layer_class = case.namesake_class if plain else case.layer_class
    kwargs = case.namesake_kwargs if plain else case.kwargs
    layer = layer_class(UNITS, return_sequences=True, dtype="float64", **kwargs)
    both = keras_bnrnn.Bidirectional(layer, dtype="float64")
    both.build((None, None, FEATURES))
    rng = np.random.default_rng(6)
    both.set_weights([w + rng.uniform(0, 0.3, w.shape) for w in both.get_weights()])
    x = rng.normal(size=(3, TIME, FEATURES))
    lengths = [TIME, 3, 1]
    mask = np.arange(TIME) < np.array(lengths)[:, None]
    together = np.asarray(both(np.where(mask[..., None], x, 50.0), mask=mask))
    for row, length in enumerate(lengths):
        alone = np.asarray(both(x[row : row + 1, :length]))
        np.testing.assert_allclose(together[row, :length], alone[0], rtol=0, atol=1e-12)


@pytest.mark.filterwarnings("ignore:Layer 'time_distributed:UserWarning")
@pytest.mark.parametrize("case", MAIN_CASES, ids=str)
def test_time_distributed_hands_the_mask_down(case, newer_keras):
    """[batch, words, characters, features] with a mask of characters: each word as if alone."""
    inner = case.layer(return_sequences=False, return_state=False, dtype="float64")
    wrapper = keras.layers.TimeDistributed(inner, dtype="float64")
    rng = np.random.default_rng(7)
    weights = case.weights(rng)
    x = rng.normal(size=(2, 3, TIME, FEATURES))
    mask = np.arange(TIME) < np.array([[TIME, 2, 1], [3, 0, 4]])[..., None]
    wrapper.build(x.shape)
    conformance.set_weights(wrapper, weights)
    found = wrapper(np.where(mask[..., None], x, 50.0), mask=mask)
    for word in range(3):
        expected = reference.layer(case.options, weights, x[:, word], mask[:, word])
        np.testing.assert_allclose(found[:, word], expected.last_output, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "known", "training"),
    conformance.parameters(
        itertools.product(sorted(conformance.ROUTES), ["input", "state"], [False, True]),
        [
            ("gru-frame", "input", True),
        ],
    ),
)
def test_a_batch_that_is_known_to_be_one_row(name, known, training):
    """Static shapes of one row and of unknown rows meet in the loop, and broadcast."""
    case = conformance.find(name)
    rng = np.random.default_rng(0)
    x, mask = rng.normal(size=(1, 5, FEATURES)), np.array([[True, True, False, True, False]])
    layer = case.built(case.weights(rng))
    states = [rng.normal(size=(1, UNITS)) for _ in keras.tree.flatten(layer.cell.state_size)]
    x_rows, state_rows = (1, None) if known == "input" else (None, 1)

    @tf.function(
        input_signature=[
            tf.TensorSpec([x_rows, None, FEATURES], tf.float64),
            tf.TensorSpec([x_rows, None], tf.bool),
            *(tf.TensorSpec([state_rows, UNITS], tf.float64) for _ in states),
        ]
    )
    def run(x, mask, *states):
        with tf.GradientTape() as tape:
            tape.watch(x)
            masked, *_ = layer(x, mask=mask, initial_state=list(states), training=training)
            bare, *_ = layer(x, initial_state=list(states), training=training)
        return masked, bare, tape.gradient([masked, bare], x)

    results = run(x, mask, *states)
    expected = layer(x, mask=mask, initial_state=states, training=training)[0]
    np.testing.assert_allclose(results[0], expected, atol=1e-12)
    assert results[1].shape == results[2].shape[:2] + (UNITS,) and np.isfinite(results[2]).all()
