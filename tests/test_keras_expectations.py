"""What Keras expects of its layers holds for these.

Keras ships its own tests with its wheel. Here they run on the layers of this package, without
normalisation in place of `keras.layers.SimpleRNN`, `LSTM` and `GRU`: golden values, statefulness,
initial states, masks, `go_backwards`, `unroll`, wrappers and stacked cells. Every layer in every
mode then passes Keras's `run_layer_test`, and every option equals its namesake's, gradients too.
"""

import functools
import importlib
import itertools
from unittest import mock

import keras
import numpy as np
import pytest
import tensorflow as tf

import conformance
import keras_bnrnn
from conformance import BATCH, FEATURES, KINDS, MAIN_CASES, TIME, UNITS, assert_all_close

test_case = pytest.importorskip("keras.src.testing", reason="Keras came without its tests")


def _without_normalization(name):
    layer_class = getattr(keras_bnrnn, f"BatchNorm{name}")
    make = functools.partial(layer_class, normalization=None)
    make.from_config = layer_class.from_config
    return make


class _Layers:
    """Stands for `keras.layers` in Keras's test modules."""

    SimpleRNN = _without_normalization("SimpleRNN")
    LSTM = _without_normalization("LSTM")
    GRU = _without_normalization("GRU")
    SimpleRNNCell = _without_normalization("SimpleRNNCell")
    LSTMCell = _without_normalization("LSTMCell")
    GRUCell = _without_normalization("GRUCell")
    Bidirectional = keras_bnrnn.Bidirectional

    def __getattr__(self, name):
        return getattr(keras.layers, name)


def _keras_tests(module_name, leave_out=(), exhaustive=()):
    """Keras's test class of that module, run on this package's layers."""
    try:
        module = importlib.import_module(f"keras.src.layers.rnn.{module_name}")
    except ImportError:
        pytest.skip("this Keras came without its tests", allow_module_level=True)
    (theirs,) = [
        value
        for value in vars(module).values()
        if isinstance(value, type)
        and issubclass(value, test_case.TestCase)
        and value.__module__ == module.__name__
    ]

    class Ours(theirs):
        def setUp(self):
            super().setUp()
            patch = mock.patch.object(module, "layers", _Layers())
            patch.start()
            self.addCleanup(patch.stop)

        def run_layer_test(self, *args, **kwargs):
            # These layers keep the mask on the Keras versions that expect False here, too.
            kwargs["supports_masking"] = True
            super().run_layer_test(*args, **kwargs)

    for name in dir(theirs):
        if any(part in name for part in leave_out):
            setattr(Ours, name, None)
    for name in exhaustive:
        pytest.mark.exhaustive(getattr(theirs, name))
    Ours.__name__ = Ours.__qualname__ = f"TestKeras{module_name.title().replace('_', '')}"
    return Ours


# What `test_basics` does, `TestRunLayer` does. For stacked cells it takes half a minute.
TestKerasSimpleRNN = _keras_tests("simple_rnn_test", exhaustive=["test_basics"])
TestKerasLSTM = _keras_tests("lstm_test", exhaustive=["test_basics"])
TestKerasGRU = _keras_tests("gru_test", exhaustive=["test_basics"])
# The fused kernels belong to Keras's layers and other backends.
TestKerasBidirectional = _keras_tests(
    "bidirectional_test", leave_out=("fused", "torch"), exhaustive=["test_basics"]
)
TestKerasStackedCells = _keras_tests("stacked_rnn_cells_test", exhaustive=["test_basics"])
TestKerasTimeDistributed = _keras_tests("time_distributed_test", exhaustive=["test_with_mask_zero"])


class TestRunLayer(test_case.TestCase):
    """`run_layer_test`: configs, build, symbolic and eager calls, fit, mixed precision."""

    def check(self, case, input_shape, expected_output_shape, extra, losses=0):
        shapes = case.options.weight_shapes(input_shape[-1], UNITS)
        non_trainable = len(case.options.statistics())
        self.run_layer_test(
            case.layer_class,
            init_kwargs={"units": UNITS, **case.kwargs, **extra},
            input_shape=input_shape,
            expected_output_shape=expected_output_shape,
            expected_num_trainable_weights=len(shapes) - non_trainable,
            expected_num_non_trainable_weights=non_trainable,
            expected_num_losses=losses,
            supports_masking=True,
        )


def _add_run_layer_tests():
    regularizers = {
        "bias_regularizer": "l1",
        "kernel_regularizer": "l2",
        "recurrent_regularizer": "l2",
    }
    for index, case in enumerate(MAIN_CASES):
        # Alternate, because each takes seconds.
        if index % 2:
            shape, extra, losses = (BATCH, UNITS), {"dropout": 0.5}, 0
        else:
            shape, extra = (BATCH, TIME, UNITS), {"return_sequences": True, **regularizers}
            losses = 3
        if case.kwargs["normalization"] is not None and not index % 2:
            extra["gamma_regularizer"] = "l2"
            losses += 1 + (case.options.normalize_recurrent + case.options.normalize_cell_state)

        def test(self, case=case, shape=shape, extra=extra, losses=losses):
            self.check(case, (BATCH, TIME, FEATURES), shape, extra, losses)

        if case.name not in ("simple_rnn-none", "lstm-sequence", "lstm-frame_recurrent_cell_steps"):
            pytest.mark.exhaustive(test)
        setattr(TestRunLayer, f"test_{case.name.replace('-', '_')}", test)


_add_run_layer_tests()


OPTIONS = {
    "defaults": {},
    "no_bias": {"use_bias": False},
    "relu": {"activation": "relu"},
    "linear": {"activation": None},
    "hard_sigmoid": {"recurrent_activation": "hard_sigmoid"},
    "go_backwards": {"go_backwards": True},
    "unroll": {"unroll": True},
    "unroll_backwards": {"unroll": True, "go_backwards": True},
    "zero_output_for_mask": {"zero_output_for_mask": True},
    "zero_output_unrolled": {"zero_output_for_mask": True, "unroll": True},
    "last_only": {"return_sequences": False},
    "last_zeroed": {"return_sequences": False, "zero_output_for_mask": True},
    "stateful": {"stateful": True},
    "regularized": {"kernel_regularizer": "l2", "activity_regularizer": "l1"},
}


def _pair(kind, options, dtype="float32", seed=None):
    """A namesake and a layer without normalisation, with the same weights."""
    name, kwargs = KINDS[kind]
    if name == "SimpleRNN" and "recurrent_activation" in options:
        pytest.skip("SimpleRNN has no gates")
    kwargs = {
        "return_sequences": True,
        "return_state": True,
        "dtype": dtype,
        "seed": seed,
        **kwargs,
        **options,
    }
    plain = getattr(keras.layers, name)(UNITS, **kwargs)
    ours = getattr(keras_bnrnn, f"BatchNorm{name}")(UNITS, normalization=None, **kwargs)
    shape = (BATCH, TIME, FEATURES)
    plain.build(shape)
    ours.build(shape)
    rng = np.random.default_rng(0)
    ours.set_weights([rng.normal(0, 0.6, w.shape) for w in plain.get_weights()])
    plain.set_weights(ours.get_weights())
    return plain, ours


# Each option with one kind, the next with the next; defaults and biases with each.
IN_TURN = [
    *zip(itertools.cycle(KINDS), OPTIONS, itertools.cycle([True, False, False])),
    *((kind, option, True) for kind in KINDS for option in ("defaults", "no_bias")),
    ("lstm", "hard_sigmoid", True),
]


@pytest.mark.parametrize(
    ("kind", "option", "training"),
    conformance.parameters(itertools.product(KINDS, OPTIONS, [False, True]), IN_TURN),
)
def test_equals_the_namesake(kind, option, training):
    options = dict(OPTIONS[option])
    if kind == "simple_rnn":
        options.pop("activity_regularizer", None)  # keras.layers.SimpleRNN forgets its own
    plain, ours = _pair(kind, options)
    rng = np.random.default_rng(1)
    x = rng.normal(size=(BATCH, TIME, FEATURES))
    states = [rng.normal(size=(BATCH, UNITS)) for _ in plain.state_size]
    for mask_name, initial_state in (("no_mask", states), ("holey", None)):
        mask = conformance.masks()[mask_name]
        expected = conformance.call_and_differentiate(plain, x, mask, initial_state, training)
        found = conformance.call_and_differentiate(ours, x, mask, initial_state, training)
        np.testing.assert_allclose(found[0], expected[0], rtol=1e-5, atol=1e-5)
        assert_all_close(found[1], expected[1], rtol=1e-5, atol=1e-5)
        assert list(found[2]) == list(expected[2])
        for name, gradient in expected[2].items():
            np.testing.assert_allclose(found[2][name], gradient, rtol=1e-5, atol=1e-5, err_msg=name)
        np.testing.assert_allclose(ours.losses, plain.losses, rtol=1e-5)


RATES = [{"dropout": 0.5}, {"recurrent_dropout": 0.5}, {"dropout": 0.5, "recurrent_dropout": 0.5}]


@pytest.mark.parametrize(
    ("kind", "rates"),
    conformance.parameters(
        itertools.product(KINDS, RATES),
        [("simple_rnn", RATES[0]), *((kind, RATES[1]) for kind in KINDS), ("lstm", RATES[2])],
    ),
)
def test_dropout_draws_what_the_namesake_draws(kind, rates):
    """The same seed, the same masks, call after call; none of them at inference."""
    plain, ours = _pair(kind, rates, seed=11)
    x = np.random.default_rng(2).normal(size=(BATCH, TIME, FEATURES)).astype("float32")
    outputs = []
    for training in (True, True, False):
        expected = plain(x, training=training)
        found = ours(x, training=training)
        assert_all_close(found, expected, rtol=1e-5, atol=1e-5)
        outputs.append(np.asarray(found[0]))
    assert np.abs(outputs[0] - outputs[1]).max() > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_at_inference_leaves_no_dropout_mask(kind):
    """A mask that a cell kept would be every later batch's."""
    layer = conformance.find(f"{kind}-sequence").layer(dropout=0.5, dtype="float32")
    x = np.ones((BATCH, TIME, FEATURES), "float32")
    layer(x)
    layer.cell(
        x[:1, 0], [np.zeros((1, UNITS), "float32") for _ in keras.tree.flatten(layer.state_size)]
    )
    first, second = (np.asarray(layer(x, training=True)[0]) for _ in range(2))
    assert np.abs(first - second).max() > 1e-3


@pytest.mark.by_route
@pytest.mark.parametrize("case", MAIN_CASES, ids=str)
def test_stateful_windows_equal_the_whole_sequence(case):
    """At inference, and in training too where nothing is normalised across windows."""
    if "max_timesteps" in case.kwargs:
        pytest.skip("the step index starts from 0 at each call")
    rng = np.random.default_rng(3)
    weights = case.weights(rng)
    x = rng.normal(size=(BATCH, 6, FEATURES))
    whole = case.built(weights)
    windows = case.layer(stateful=True)
    windows.build(x.shape)
    conformance.set_weights(windows, weights)
    modes = (False,) if case.kwargs["normalization"] == "sequence" else (False, True)
    for training in modes:
        windows.reset_state()
        expected, *states = whole(x, training=training)
        parts = [windows(x[:, t : t + 2], training=training) for t in (0, 2, 4)]
        found = np.concatenate([outputs for outputs, *_ in parts], axis=1)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)
        assert_all_close(parts[-1][1:], states, atol=1e-12)


@pytest.mark.by_route
@pytest.mark.parametrize("case", MAIN_CASES, ids=str)
def test_unrolled_equals_rolled(case):
    rng = np.random.default_rng(4)
    weights = case.weights(rng)
    x = rng.normal(size=(BATCH, TIME, FEATURES))
    found = []
    for unroll in (False, True):
        layer = case.built(weights, unroll=unroll)
        outputs, states, gradients = conformance.call_and_differentiate(
            layer, x, conformance.masks()["holey"], training=True
        )
        found.append([outputs, *states, *gradients.values(), *layer.get_weights()])
    assert_all_close(*found, atol=1e-11)


@pytest.mark.parametrize("kind", KINDS)
def test_symbolic_shapes(kind):
    name, kwargs = KINDS[kind]
    layer_class = getattr(keras_bnrnn, f"BatchNorm{name}")
    inputs = keras.Input((None, FEATURES))
    assert layer_class(UNITS, **kwargs)(inputs).shape == (None, UNITS)
    outputs, *states = layer_class(UNITS, return_sequences=True, return_state=True, **kwargs)(
        inputs
    )
    assert outputs.shape == (None, None, UNITS)
    assert [state.shape for state in states] == [(None, UNITS)] * (2 if name == "LSTM" else 1)


@pytest.mark.parametrize("outer, inner", [("float32", "mixed_bfloat16"), ("mixed_bfloat16", None)])
@pytest.mark.parametrize("kind", KINDS)
def test_time_distributed_of_another_precision(kind, outer, inner):
    """The wrapper calls the layer under its own precision's scope, or none."""
    layer = conformance.find(f"{kind}-sequence").layer(dtype=inner or "float32", return_state=False)
    wrapper = keras.layers.TimeDistributed(layer, dtype=outer)
    x = np.ones((2, 3, TIME, FEATURES), "float32")
    assert np.isfinite(np.asarray(wrapper(x, training=True), "float32")).all()


@pytest.mark.parametrize(
    ("kind", "mode"),
    conformance.parameters(
        itertools.product(KINDS, ["none", "frame", "sequence"]),
        [("gru", "sequence")],
    ),
)
def test_jacobian_of_an_eager_call(kind, mode):
    layer = conformance.find(f"{kind}-{mode}").layer(return_state=False, return_sequences=False)
    x = tf.constant(np.random.default_rng(3).normal(size=(BATCH, TIME, FEATURES)))
    found = []
    for vectorized in (True, False):
        with tf.GradientTape(persistent=True) as tape:
            tape.watch(x)
            y = layer(x, training=True)
        found.append(tape.jacobian(y, x, experimental_use_pfor=vectorized))
    np.testing.assert_allclose(*found, atol=1e-12)
