"""The route over cuDNN, proved on the CPU with Keras's own loop in the kernel's place.

The stand-in keeps cuDNN's manners: it refuses masks that are not right-padded, gives zeros in
masked frames, and leaves the gradients of masked inputs undefined. The layer over it must equal
the layer without it in all that can be seen. Where there is a GPU the kernel is held to the same.
"""

import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras.src import backend

import keras_bnrnn
from conformance import assert_all_close, covering_pairs, parameters
from keras_bnrnn.recurrence import cudnn

BATCH, TIME, FEATURES, UNITS = 5, 7, 3, 4
LAYERS = {
    "lstm": (keras_bnrnn.BatchNormLSTM, {}),
    "lstm_no_bias": (keras_bnrnn.BatchNormLSTM, {"use_bias": False}),
    "gru": (keras_bnrnn.BatchNormGRU, {}),
    "gru_no_bias": (keras_bnrnn.BatchNormGRU, {"use_bias": False}),
}
LENGTHS = np.array([7, 3, 1, 5, 7])
MASKS = {
    "none": None,
    "right": np.arange(TIME) < LENGTHS[:, None],
    "left": np.arange(TIME) >= TIME - LENGTHS[:, None],
    "empty_row": np.arange(TIME) < np.array([7, 0, 1, 5, 7])[:, None],
    "one_live_frame": np.arange(TIME * BATCH).reshape(BATCH, TIME) == 0,
}


has_gpu = bool(tf.config.list_physical_devices("GPU"))


@tf.custom_gradient
def undefined_gradient_where_masked(x, mask):
    return tf.identity(x), lambda dx: (tf.where(mask[..., tf.newaxis], dx, np.nan), None)


class StandIn:
    """In place of the kernel; counts how often it was traced."""

    def __init__(self, plain_class=keras.layers.LSTMCell, dtype="float32"):
        self.calls = 0
        self.plain = plain_class(UNITS, dtype=dtype)
        self.plain.build((None, FEATURES))

    def __call__(self, cell, x, states, mask, weights, go_backwards):
        self.calls += 1
        plain = self.plain
        plain.kernel, plain.recurrent_kernel, plain.bias = weights
        if mask is not None:
            lengths = tf.reduce_sum(tf.cast(mask, tf.int32), 1)
            right_padded = tf.reduce_all(mask == tf.sequence_mask(lengths, tf.shape(mask)[1]))
            with tf.control_dependencies(
                [tf.debugging.Assert(right_padded & tf.reduce_all(lengths > 0), ["bad mask"])]
            ):
                x = undefined_gradient_where_masked(x, mask)
        _, outputs, final = backend.rnn(
            lambda x_t, h: plain(x_t, list(h)),
            x,
            states,
            go_backwards=go_backwards,
            mask=mask,
            zero_output_for_mask=True,
        )
        return outputs, list(final)


def observe(layer, x, mask, states, training, in_graph):
    """Everything one sees of a call: results, gradients, statistics."""

    def call(x, *states):
        with tf.GradientTape() as tape:
            tape.watch([x, *states])
            results = layer(x, initial_state=list(states), mask=mask, training=training)
            loss = sum(
                tf.reduce_sum(tf.cast(index + 1, r.dtype) * r * r)
                for index, r in enumerate(results)
            )
        variables = [variable.value for variable in layer.trainable_variables]
        return results, tape.gradient(loss, [x, *states, *variables])

    results, gradients = (tf.function(call) if in_graph else call)(x, *states)
    return [*results, *gradients, *layer.get_weights()]


OPTIONS = ({}, {"go_backwards": True}, {"zero_output_for_mask": True})
NORMALIZATIONS = {
    "sequence": {"normalization": "sequence"},
    "frame": {"normalization": "frame"},
    "by_step": {"normalization": "frame", "max_timesteps": TIME - 2},
    "sequence_renorm": {"normalization": "sequence", "renorm": True},
    "frame_renorm": {"normalization": "frame", "renorm": True},
    "none": {"normalization": None},
}


every_case = pytest.mark.parametrize(
    ("name", "normalization", "training", "options", "mask_name"),
    covering_pairs([*LAYERS], [*NORMALIZATIONS], [True, False], OPTIONS, [*MASKS]),
)


@every_case
def test_equals_the_loop(monkeypatch, name, normalization, training, options, mask_name):
    compare(monkeypatch, name, normalization, training, options, mask_name, in_graph=False)


@pytest.mark.skipif(not has_gpu, reason="there is no GPU to run cuDNN on")
@pytest.mark.parametrize("in_graph", [False, True])
@every_case
def test_cudnn_equals_the_loop(name, normalization, training, options, mask_name, in_graph):
    compare(None, name, normalization, training, options, mask_name, in_graph)


@pytest.mark.parametrize(
    ("name", "mask_name"),
    parameters(
        itertools.product(["lstm", "gru"], MASKS),
        [("gru", "right")],
    ),
)
def test_equals_the_loop_in_a_graph(monkeypatch, name, mask_name):
    compare(monkeypatch, name, "sequence", True, {}, mask_name, in_graph=True)


def compare(monkeypatch, name, normalization, training, options, mask_name, in_graph):
    """A layer over cuDNN, or over the stand-in that `monkeypatch` puts there, against the loop."""
    cls, kwargs = LAYERS[name]
    random = np.random.default_rng(1)
    x = tf.constant(random.normal(size=(BATCH, TIME, FEATURES)) + 2.0)
    mask = None if MASKS[mask_name] is None else tf.constant(MASKS[mask_name])
    count = 2 if "lstm" in name else 1
    states = [tf.constant(random.normal(size=(BATCH, UNITS))) for _ in range(count)]
    seen = []
    stand_in = StandIn(cls.cell_class.plain_class, "float64")
    for use_cudnn in (False, "auto"):
        layer = cls(
            UNITS,
            return_sequences=True,
            return_state=True,
            use_cudnn=use_cudnn,
            dtype="float64",
            **NORMALIZATIONS[normalization],
            **kwargs,
            **options,
        )
        layer.build(x.shape)
        values = np.random.default_rng(2)
        layer.set_weights([values.uniform(0.2, 1.0, w.shape) for w in layer.get_weights()])
        if use_cudnn and monkeypatch is not None:
            monkeypatch.setattr(cudnn, "available", lambda cell, unroll: True)
            monkeypatch.setattr(cudnn, "kernel", stand_in)
        seen.append(observe(layer, x, mask, states, training, in_graph))
    if monkeypatch is not None and (in_graph or mask_name in ("none", "right")):
        assert stand_in.calls
    assert_all_close(*seen, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize(
    "kwargs",
    [
        {"recurrent_dropout": 0.3},
        {"normalize_recurrent": True},
        {"normalize_cell_state": True},
    ],
)
def test_what_the_kernel_cannot_do_takes_the_loop(monkeypatch, kwargs):
    monkeypatch.setattr(cudnn, "available", lambda cell, unroll: True)
    monkeypatch.setattr(cudnn, "kernel", None)
    layer = keras_bnrnn.BatchNormLSTM(UNITS, **kwargs)
    layer(np.ones((BATCH, TIME, FEATURES), "float32"), training=True)
    layer = keras_bnrnn.BatchNormLSTM(UNITS, use_cudnn=True, **kwargs)
    with pytest.raises(ValueError, match="cuDNN cannot run this layer"):
        layer(np.ones((BATCH, TIME, FEATURES), "float32"), training=True)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_what_folds_gives_the_kernel_the_inputs_themselves(monkeypatch, normalization, training):
    widths = []

    def note(cell, x, states, *further):
        widths.append(x.shape[-1])
        return tf.zeros([BATCH, TIME, UNITS]), states

    monkeypatch.setattr(cudnn, "available", lambda cell, unroll: True)
    monkeypatch.setattr(cudnn, "kernel", note)
    layer = keras_bnrnn.BatchNormLSTM(UNITS, **NORMALIZATIONS[normalization])
    layer(np.ones((BATCH, TIME, FEATURES), "float32"), training=training)
    mode = normalization.removesuffix("_renorm")
    folds = mode in ("sequence", "none") or (mode == "frame" and not training)
    assert widths == [FEATURES if folds else 4 * UNITS]


@pytest.mark.parametrize("implementation", [1, 2])
@pytest.mark.parametrize("normalization", ["sequence", "frame"])
def test_dropout_of_the_inputs_equals_the_loop(monkeypatch, normalization, implementation):
    x = np.random.default_rng(0).normal(size=(BATCH, TIME, FEATURES)).astype("float32")
    found, stand_in = [], StandIn()
    for use_cudnn in (False, "auto"):
        layer = keras_bnrnn.BatchNormLSTM(
            UNITS,
            normalization=normalization,
            dropout=0.5,
            seed=3,
            implementation=implementation,
            use_cudnn=use_cudnn,
            kernel_initializer=keras.initializers.GlorotUniform(seed=1),
            recurrent_initializer=keras.initializers.Orthogonal(seed=2),
        )
        found.append((layer(x, training=True), *layer.weights))
        monkeypatch.setattr(cudnn, "available", lambda cell, unroll: True)
        monkeypatch.setattr(cudnn, "kernel", stand_in)
    assert stand_in.calls
    assert_all_close(*found, atol=1e-6)


def test_without_a_gpu_cudnn_is_an_error_when_demanded():
    layer = keras_bnrnn.BatchNormLSTM(UNITS, use_cudnn=True)
    if has_gpu:
        pytest.skip("there is a GPU")
    with pytest.raises(ValueError, match="needs a GPU"):
        layer(np.ones((BATCH, TIME, FEATURES), "float32"))


def test_supports_jit_follows_cudnn(monkeypatch):
    assert keras_bnrnn.BatchNormLSTM(UNITS).supports_jit != has_gpu
    monkeypatch.setattr(cudnn, "available", lambda cell, unroll: True)
    assert not keras_bnrnn.BatchNormLSTM(UNITS).supports_jit
    assert keras_bnrnn.BatchNormLSTM(UNITS, use_cudnn=False).supports_jit


@pytest.mark.parametrize(
    ("name", "mask"),
    parameters(
        itertools.product(LAYERS, ["none", "right", "left"]),
        [("lstm", "right"), ("gru", "none"), ("gru_no_bias", "left")],
    ),
)
def test_a_device_without_the_kernel_takes_the_loop(monkeypatch, name, mask):
    """As in Keras: a GPU is there, but the call is on another device."""
    layer_class, kwargs = LAYERS[name]
    x = np.random.default_rng(0).normal(size=(BATCH, TIME, FEATURES)).astype("float32")
    found = []
    for use_cudnn in (False, "auto"):
        keras.utils.set_random_seed(0)
        layer = layer_class(UNITS, use_cudnn=use_cudnn, return_sequences=True, **kwargs)
        found.append((layer(x, mask=MASKS[mask], training=True), *layer.weights))
        monkeypatch.setattr(cudnn, "available", lambda cell, unroll: True)
        monkeypatch.setattr(cudnn, "kernel", _not_here)
    assert_all_close(*found, atol=1e-6)
    layer.use_cudnn = True
    if mask != "left":
        with pytest.raises(ValueError, match="cuDNN cannot run this layer"):
            layer(x, mask=MASKS[mask], training=True)


def _not_here(*arguments):
    raise NotImplementedError
