"""Which route a call takes; and the recurrent product in pieces, which changes no number."""

import itertools

import numpy as np
import pytest
import tensorflow as tf

from conformance import assert_all_close, parameters
from keras_bnrnn import BatchNormGRU, BatchNormLSTM, BatchNormSimpleRNN
from keras_bnrnn.recurrence import cudnn, differentiated, routes

UNITS = 5  # so that pieces of a kernel differ in size
LAYERS = {
    "lstm": (BatchNormLSTM, {}),
    "gru": (BatchNormGRU, {}),
    "gru_reset_before": (BatchNormGRU, {"reset_after": False}),
    "simple_rnn": (BatchNormSimpleRNN, {}),
}


@pytest.mark.skipif(
    bool(tf.config.list_physical_devices("GPU")), reason="with a GPU no kernel is divided"
)
@pytest.mark.parametrize(
    ("name", "timesteps", "training", "compiled"),
    # Fewer frames than a turn of any loop takes, and more.
    parameters(
        itertools.product(LAYERS, [3, 21], [False, True], [False, True]),
        [
            ("lstm", 21, True, False),
            ("gru", 3, False, False),
            ("gru_reset_before", 21, True, False),
        ],
    ),
)
def test_kernel_in_pieces_equals_whole_kernel(monkeypatch, name, timesteps, training, compiled):
    layer_class, arguments = LAYERS[name]
    random = np.random.default_rng(0)
    x = tf.constant(random.normal(size=(4, timesteps, 4)))
    mask = tf.constant(random.random((4, timesteps)) > 0.3)
    layer = layer_class(UNITS, return_sequences=True, dtype="float64", **arguments)
    layer.build(x.shape)

    def observe():
        @tf.function(jit_compile=compiled)
        def run():
            with tf.GradientTape() as tape:
                tape.watch(x)
                y = layer(x, mask=mask, training=training)
                loss = tf.reduce_sum(tf.sin(y))
            weights = [variable.value for variable in layer.trainable_variables]
            return [y, *tape.gradient(loss, [x, *weights])]

        return run()

    pieces = []
    monkeypatch.setattr(
        differentiated,
        "_pieces",
        lambda *a, f=differentiated._pieces: pieces.append(f(*a)) or pieces[-1],
    )
    monkeypatch.setattr(differentiated, "DIVIDED_SIZES", ())
    whole = observe()
    assert not pieces
    monkeypatch.setattr(differentiated, "DIVIDED_SIZES", range(1, 2**19))
    monkeypatch.setattr(differentiated, "PIECE", 2 * UNITS)
    assert_all_close(observe(), whole, rtol=1e-11, atol=1e-12)
    assert pieces and all(len(parts) > 1 for parts in pieces)


def test_lengths_that_some_loops_take_nothing_of():
    """In a graph that knows no batch size: each of the three loops may have no turn."""
    layer = BatchNormLSTM(UNITS, return_sequences=True, use_cudnn=False)
    x = tf.constant(np.random.default_rng(0).normal(size=(2, 21, 4)), tf.float32)
    layer.build(x.shape)
    run = tf.function(lambda x: layer(x), input_signature=[tf.TensorSpec([None, None, 4])])
    for timesteps in (1, 4, 16, 17, 20, 21):
        assert_all_close(run(x[:, :timesteps]), layer(x[:, :timesteps]))


def test_few_rows_meet_the_whole_kernel():
    kernel = tf.zeros([256, 1024])
    assert not differentiated.divides(kernel, rows=1)
    assert differentiated.divides(kernel, rows=24)
    assert differentiated.divides(kernel, rows=None)


@pytest.mark.parametrize(
    ("route", "training", "arguments"),
    [
        ("differentiated", True, {}),
        ("inference", False, {}),
        ("inference", False, {"normalization": None}),
        ("differentiated", True, {"trainable": False}),
        *(("general", training, {"activation": "relu"}) for training in (True, False)),
        *(("general", training, {"unroll": True}) for training in (True, False)),
        *(("general", training, {"normalize_recurrent": True}) for training in (True, False)),
        *(("over_cudnn", training, {"use_cudnn": "auto"}) for training in (True, False)),
        ("differentiated", True, {"use_cudnn": "auto", "recurrent_dropout": 0.5}),
        ("general", True, {"use_cudnn": "auto", "normalize_cell_state": True}),
    ],
)
def test_the_route_of_a_call(monkeypatch, route, training, arguments):
    taken = []
    for name in ("general", "differentiated", "inference", "over_cudnn"):

        def note(*call, name=name):
            taken.append(name)
            return routes.Result(None, call[2][0], call[2])

        monkeypatch.setattr(routes, name, note)
    monkeypatch.setattr(cudnn, "available", lambda cell, unroll: True)
    layer = BatchNormLSTM(UNITS, **{"use_cudnn": False, **arguments})
    layer(np.ones((2, 3, 4), "float32"), training=training)
    assert taken == [route]


def test_recalibration_takes_the_moments_of_a_call_at_inference(monkeypatch):
    layer = BatchNormLSTM(UNITS, use_cudnn=False)
    layer.build((None, None, 4))
    calls = []
    monkeypatch.setattr(
        routes,
        "differentiated",
        lambda *call: calls.append(call) or routes.Result(None, call[2][0], call[2]),
    )
    layer.cell.normalizer.collector = object()
    layer(np.ones((2, 3, 4), "float32"), training=False)
    assert calls
