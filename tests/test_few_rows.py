"""A layer that trains on too few rows a time step says so, once."""

import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_bnrnn
from keras_bnrnn import BatchNormLSTM

FEATURES = 3


def sequences(rows):
    return np.random.default_rng(0).normal(size=(rows, 5, FEATURES)).astype("float32")


def warnings_of(function):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        function()
    return [str(one.message) for one in caught if "mostly noise" in str(one.message)]


def test_it_warns_once_and_says_what_to_do():
    layer = BatchNormLSTM(2, normalization="frame")
    [message] = warnings_of(lambda: [layer(sequences(7), training=True) for _ in range(2)])
    assert "7 rows" in message and "renorm=True" in message and '"sequence"' in message


@pytest.mark.parametrize(
    "rows,training,arguments",
    [
        (8, True, {"normalization": "frame"}),
        (2, False, {"normalization": "frame"}),
        (2, True, {"normalization": "frame", "renorm": True}),
        (2, True, {"normalization": "frame", "trainable": False}),
        (2, True, {"normalization": "sequence"}),
        (2, True, {"normalization": None}),
    ],
)
def test_it_does_not_warn(rows, training, arguments):
    layer = BatchNormLSTM(2, **arguments)
    assert warnings_of(lambda: layer(sequences(rows), training=training)) == []


@pytest.mark.parametrize("what", ["normalize_recurrent", "normalize_cell_state"])
def test_what_the_loop_normalises_counts(what):
    layer = BatchNormLSTM(2, **{what: True})
    assert len(warnings_of(lambda: layer(sequences(4), training=True))) == 1


def test_replicas_that_share_their_statistics_count_together(strategy):
    with strategy.scope():
        layers = [BatchNormLSTM(2, normalization="frame", synchronized=s) for s in (True, False)]
        for layer in layers:
            layer.build((None, None, FEATURES))
    together, alone = (
        warnings_of(lambda layer=layer: strategy.run(lambda: layer(sequences(4), training=True)))
        for layer in layers
    )
    assert together == [] and len(alone) == 1


def test_fit_warns():
    model = keras.Sequential(
        [
            keras.Input((None, FEATURES)),
            keras_bnrnn.Bidirectional(BatchNormLSTM(2, normalization="frame")),
        ]
    )
    model.compile("sgd", "mse")
    x, y = sequences(8), np.zeros((8, 4), "float32")
    messages = warnings_of(lambda: model.fit(x, y, batch_size=4, epochs=2, verbose=0))
    assert messages and set(messages) == {messages[0]} and "4 rows" in messages[0]


@pytest.mark.parametrize(
    "arguments,expected",
    [({"normalization": "frame"}, 1), ({"normalization": "frame", "trainable": False}, 0), ({}, 0)],
)
def test_the_gap_tells_where_fit_does_not_know_the_batch_size(arguments, expected):
    model = keras.Sequential([keras.Input((None, FEATURES)), BatchNormLSTM(2, **arguments)])
    model.compile("sgd", "mse")
    batches = tf.data.Dataset.from_tensor_slices((sequences(9), np.zeros((9, 2), "float32")))
    batches = batches.batch(4)
    assert batches.element_spec[0].shape[0] is None
    assert warnings_of(lambda: model.fit(batches, verbose=0)) == []
    gap = keras_bnrnn.StatisticsGap(batches)
    messages = warnings_of(lambda: model.fit(batches, epochs=2, callbacks=[gap], verbose=0))
    assert len(messages) == expected and all("4 rows" in message for message in messages)


def test_a_summary_counts_what_is_trained_and_what_is_averaged():
    layer = BatchNormLSTM(2, name="lstm")
    model = keras.Sequential([keras.Input((None, FEATURES)), layer, keras.layers.Dense(1)])
    lines = []
    model.summary(print_fn=lambda line, **kwargs: lines.append(line), line_length=100)
    text = "\n".join(lines)
    weights, gamma, averages = FEATURES * 8 + 2 * 8 + 8, 8, 2 * 8
    assert "lstm (BatchNormLSTM)" in text and "(None, 2)" in text
    assert f"Total params: {weights + gamma + averages + 3} " in text
    assert f"Non-trainable params: {averages} " in text
    assert "batch_normalizer" not in text  # A part of the layer, not one beside it.
