"""Precisions, shapes and ways of running: the numbers stay those of the float64 model."""

import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf

import conformance
import reference
from conformance import (
    BATCH,
    CASES,
    FEATURES,
    MAIN_CASES,
    SLOW_CASES,
    TIME,
    UNITS,
    assert_all_close,
)

# Absolute tolerances for outputs in (-1, 1) and statistics of order one. A normalisation over few
# rows amplifies the rounding of x W, hence no tighter for the half precisions.
PRECISIONS = {
    "float64": ("float64", 1e-10),
    "float32": ("float32", 2e-5),
    "mixed_float16": ("float16", 2e-2),
    "mixed_bfloat16": ("bfloat16", 2e-1),
}


# Each case in one precision, the next case in the next; an LSTM in all.
IN_TURN = [
    *zip(MAIN_CASES, itertools.cycle(PRECISIONS)),
    *((case, policy) for case in SLOW_CASES if case.kind == "lstm" for policy in PRECISIONS),
]


@pytest.mark.by_route
@pytest.mark.parametrize(
    ("case", "policy"),
    conformance.parameters(itertools.product(MAIN_CASES, PRECISIONS), IN_TURN),
    ids=str,
)
def test_precision(case, policy):
    compute_dtype, tolerance = PRECISIONS[policy]
    variable_dtype = "float64" if policy == "float64" else "float32"
    rng = np.random.default_rng(0)
    weights = case.weights(rng)
    mask = conformance.masks(16)["right"]
    x = rng.normal(size=(16, TIME, FEATURES))
    layer = case.built(weights, dtype=policy)
    for training in (False, True):
        conformance.set_weights(layer, weights)
        outputs, states, gradients = conformance.call_and_differentiate(
            layer, x, mask, training=training
        )
        expected = reference.layer(case.options, weights, x, mask, training=training)
        assert outputs.dtype.name == compute_dtype
        assert all(state.dtype.name == compute_dtype for state in states)
        np.testing.assert_allclose(outputs.astype(float), expected.outputs, rtol=0, atol=tolerance)
        for name, gradient in gradients.items():
            assert np.all(np.isfinite(gradient.astype(float))), name
        conformance.assert_statistics(case, layer, expected.statistics, tolerance)
    for weight in layer.weights:
        assert keras.backend.standardize_dtype(weight.dtype) == variable_dtype


@pytest.mark.by_route
@pytest.mark.parametrize("case", MAIN_CASES, ids=str)
def test_a_policy_set_on_a_built_layer(case):
    """It says in what dtype the layer answers; the cell computes as it was made, as in Keras."""
    x = np.random.default_rng(2).normal(size=(BATCH, TIME, FEATURES)).astype("float32")
    layer = case.layer(dtype="float32")
    for training in (False, True):
        layer.dtype_policy = "float32"
        layer.build(x.shape)
        conformance.set_weights(layer, case.weights(np.random.default_rng(3)))
        expected = layer(x, training=training)
        conformance.set_weights(layer, case.weights(np.random.default_rng(3)))
        layer.dtype_policy = "mixed_bfloat16"
        for found, value in zip(layer(x, training=training), expected, strict=True):
            assert found.dtype == tf.bfloat16
            np.testing.assert_allclose(tf.cast(found, "float32"), value, rtol=0, atol=0.1)
    dropping = case.layer(dtype="float32", dropout=0.5)
    dropping.dtype_policy = "mixed_bfloat16"
    assert dropping(x, training=True)[0].dtype == tf.bfloat16


HALF = {"mixed_float16": 1e-2, "mixed_bfloat16": 5e-2}


@pytest.mark.by_route
@pytest.mark.parametrize(
    ("case", "policy"),
    conformance.parameters(
        itertools.product(CASES, HALF),
        [
            (conformance.find("lstm-sequence"), "mixed_bfloat16"),
            (conformance.find("gru-frame"), "mixed_float16"),
            (conformance.find("simple_rnn-none"), "mixed_bfloat16"),
            (conformance.find("gru_reset_before-frame_recurrent_steps"), "mixed_float16"),
        ],
    ),
    ids=str,
)
def test_gradients_in_half_precision(case, policy):
    """Of 64 x 300 frames: a sum in half precision would stop growing at one per cent of them."""
    if case.kwargs.get("unroll"):
        pytest.skip("300 steps written out")
    rng = np.random.default_rng(1)
    weights = case.weights(rng)
    weights["recurrent_kernel"] *= 0.3  # so that rounding errors die away from step to step
    if "recurrent_gamma" in weights:
        weights["recurrent_gamma"] *= 0.1
    x = rng.normal(size=(64, 300, FEATURES)).astype("float16")

    def gradients(dtype):
        layer = case.layer(dtype=dtype, return_state=False)
        layer.build(x.shape)
        conformance.set_weights(layer, weights)
        names = [weight.name for weight in layer.trainable_weights]

        @tf.function(autograph=False)
        def gradients():
            with tf.GradientTape() as tape:
                outputs = layer(x.astype(layer.compute_dtype), training=True)
                loss = 100.0 * tf.reduce_mean(tf.cast(outputs, "float64"))
            return tape.gradient(loss, [weight.value for weight in layer.trainable_weights])

        return dict(zip(names, gradients(), strict=True))

    exact = gradients("float64")
    for name, gradient in gradients(policy).items():
        scale = np.abs(exact[name]).max()
        error = np.abs(np.asarray(gradient, "float64") - exact[name]).max()
        assert error < HALF[policy] * scale, f"{name}: {error / scale}"


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
@pytest.mark.parametrize("normalization", ["sequence", "frame"])
def test_moments_of_half_precision_are_taken_in_single(normalization, policy):
    """With 30000 equal frames a half-precision sum would stop growing or overflow."""
    layer = conformance.find("simple_rnn-sequence").layer(
        normalization=normalization, dtype=policy, momentum=0.0
    )
    x = np.tile(np.array([[[1.0, 2.0, 3.0]]]), (3000, 10, 1))
    layer.build(x.shape)
    kernel = np.eye(FEATURES, UNITS)
    layer.set_weights([kernel, *layer.get_weights()[1:]])
    layer(x, training=True)
    *_, mean, variance = layer.get_weights()
    np.testing.assert_allclose(mean, [1.0, 2.0], rtol=1e-3)
    np.testing.assert_allclose(variance, [0.0, 0.0], atol=1e-3)


@pytest.mark.by_route
@pytest.mark.parametrize("case", MAIN_CASES, ids=str)
def test_dynamic_batch_and_time(case):
    """One trace serves every batch size and length, T of 1 included."""
    rng = np.random.default_rng(1)
    weights = case.weights(rng)
    layer = case.layer()
    layer.build((None, None, FEATURES))
    traces = []

    @tf.function(
        input_signature=[
            tf.TensorSpec([None, None, FEATURES], "float64"),
            tf.TensorSpec([None, None], "bool"),
        ]
    )
    def train(x, mask):
        traces.append(1)
        return layer(x, mask=mask, training=True)

    for batch, time in [(BATCH, TIME), (2, 1), (3, 7)]:
        conformance.set_weights(layer, weights)
        x = rng.normal(size=(batch, time, FEATURES))
        mask = rng.random((batch, time)) < 0.8
        found = train(x, mask)
        expected = reference.layer(case.options, weights, x, mask, training=True)
        conformance.assert_as_expected(case, layer, found, expected)
    assert len(traces) == 1


@pytest.mark.parametrize(
    ("name", "masked", "training"),
    conformance.parameters(
        itertools.product(sorted(conformance.ROUTES), [False, True], [False, True]),
        [
            ("simple_rnn-none", True, False),
            ("lstm-sequence", False, True),
            ("gru-frame", True, True),
            ("lstm-frame_recurrent_cell_steps", True, True),
        ],
    ),
)
def test_static_shapes_survive_the_loop(name, masked, training):
    """A layer above may ask for the time: an unrolled one, or Flatten before Dense."""
    case = conformance.find(name)
    layer = case.layer()
    layer.build((None, None, FEATURES))
    shapes = []

    @tf.function
    def call(x):
        mask = tf.reduce_any(x != 0, axis=-1) if masked else None
        shapes.append([tuple(y.shape) for y in layer(x, mask=mask, training=training)])

    for batch, time in [(None, TIME), (BATCH, None)]:
        call.get_concrete_function(tf.TensorSpec((batch, time, FEATURES), "float64"))
        states = [(batch, UNITS)] * case.state_count
        assert shapes.pop() == [(batch, time, UNITS), *states]


@pytest.mark.parametrize(
    ("case", "jit"),
    conformance.parameters(
        itertools.product(SLOW_CASES, [False, True]),
        [(case, False) for case in SLOW_CASES if case.kind == "lstm"],
    ),
    ids=str,
)
def test_compiled_equals_eager(case, jit):
    rng = np.random.default_rng(2)
    weights = case.weights(rng)
    x = rng.normal(size=(BATCH, TIME, FEATURES))
    layer = case.layer(**(case.for_xla if jit else {}))
    layer.build(x.shape)
    names = [weight.name for weight in layer.trainable_weights]

    @tf.function(jit_compile=jit)
    def train(x, mask):
        with tf.GradientTape() as tape:
            tape.watch(x)
            outputs, *states = layer(x, mask=mask, training=True)
            outputs = tf.ensure_shape(outputs, (BATCH, TIME, UNITS))
            loss = conformance.projection(outputs, states, library=tf)
        return outputs, tape.gradient(loss, [x, *(w.value for w in layer.trainable_weights)])

    # No mask but one without holes: masked or not, the trace is the same.
    for mask_name in ("right", "holey"):
        mask = conformance.masks()[mask_name]
        conformance.set_weights(layer, weights)
        outputs, gradients = train(tf.constant(x), tf.constant(mask))
        found = conformance.statistics(case, layer)
        conformance.set_weights(layer, weights)
        expected_outputs, _, expected = conformance.call_and_differentiate(
            layer, x, mask, training=True
        )
        np.testing.assert_allclose(outputs, expected_outputs, rtol=0, atol=1e-10)
        for name, gradient in zip(["x", *names], gradients, strict=True):
            np.testing.assert_allclose(gradient, expected[name], rtol=0, atol=1e-9, err_msg=name)
        for name, value in conformance.statistics(case, layer).items():
            np.testing.assert_allclose(found[name], value, rtol=0, atol=1e-10, err_msg=name)


FITTED = ["lstm-sequence", "lstm-frame_recurrent_cell_steps", "simple_rnn-sequence", "gru-frame"]


@pytest.mark.slow
@pytest.mark.parametrize("name", conformance.parameters(zip(FITTED), [*zip(FITTED[:2])]))
def test_fit_is_the_same_however_it_runs(name):
    """`run_eagerly=True`, a graph, and `jit_compile=True` end with the same weights."""
    case = conformance.find(name)
    rng = np.random.default_rng(3)
    x = rng.normal(size=(BATCH, TIME, FEATURES)).astype("float32")
    x[1, 3:] = 0.0
    y = rng.normal(size=(BATCH, TIME, UNITS)).astype("float32")
    after = {}
    for how in ({"run_eagerly": True}, {"jit_compile": False}, {"jit_compile": True}):
        model = conformance.model_of("sequential", case)
        model.compile(keras.optimizers.SGD(0.1), "mse", **how)
        compiles = how.get("jit_compile", False) and all(one.supports_jit for one in model.layers)
        assert model.jit_compile is compiles or "run_eagerly" in how
        for _ in range(2):
            model.train_on_batch(x, y)
        after[str(how)] = model.get_weights()
    eager, *others = after.values()
    for other in others:
        assert_all_close(eager, other, rtol=1e-4, atol=1e-5)


def _check(case, x, mask=None, training=True):
    """Outputs, gradients and statistics of x are finite and those of the NumPy model."""
    weights = case.weights(np.random.default_rng(4))
    layer = case.built(weights)
    outputs, states, gradients = conformance.call_and_differentiate(
        layer, x, mask, training=training
    )
    expected = reference.layer(case.options, weights, x, mask, training=training)
    conformance.assert_as_expected(case, layer, (outputs, *states), expected, 1e-9)
    for name, gradient in gradients.items():
        assert np.all(np.isfinite(gradient)), name


@pytest.mark.by_route
@pytest.mark.parametrize("case", CASES, ids=str)
def test_batch_of_one(case):
    _check(case, np.random.default_rng(5).normal(size=(1, TIME, FEATURES)))


@pytest.mark.by_route
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_one_frame(case, batch):
    _check(case, np.random.default_rng(6).normal(size=(batch, 1, FEATURES)))


@pytest.mark.by_route
@pytest.mark.parametrize("value", [0.0, 3.0])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_zero_variance(case, value):
    _check(case, np.full((BATCH, TIME, FEATURES), value))


def _offset_inputs(rng, batch=16):
    """Float32 inputs of mean 1e3 and deviation 0.1."""
    return rng.normal(1e3, 0.1, size=(batch, 12, FEATURES)).astype("float32")


@pytest.mark.parametrize("masked", [False, True], ids=["no_mask", "padded"])
@pytest.mark.parametrize("normalization", ["sequence", "frame"])
def test_a_large_mean_does_not_cancel(normalization, masked):
    """Seen through a layer that does nothing else: h_t = BN(x_t W)."""
    rng = np.random.default_rng(7)
    x = _offset_inputs(rng)
    mask = np.arange(12) < rng.integers(4, 13, 16)[:, None] if masked else np.ones((16, 12), bool)
    x = np.where(mask[..., None], x, np.float32(0))
    layer = conformance.find("simple_rnn-sequence").layer_class(
        UNITS,
        activation="linear",
        normalization=normalization,
        recurrent_initializer="zeros",
        return_sequences=True,
        momentum=0.0,
    )
    layer.build(x.shape)
    kernel = rng.normal(size=(FEATURES, UNITS)).astype("float32")
    layer.set_weights([kernel, *layer.get_weights()[1:]])
    found = np.asarray(layer(x, mask=mask if masked else None, training=True))
    a = x.astype(float) @ kernel
    for unit in range(UNITS):
        groups = [mask] if normalization == "sequence" else []
        if normalization == "frame":
            groups = [mask & (np.arange(12) == t) for t in range(12)]
        for group in groups:
            rows = a[..., unit][group]
            expected = (rows - rows.mean()) / np.sqrt(rows.var() + 1e-5)
            np.testing.assert_allclose(found[..., unit][group], expected, rtol=0, atol=1e-2)
    *_, mean, variance = layer.get_weights()
    np.testing.assert_allclose(mean, a[mask].mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(variance, a[mask].var(axis=0), rtol=1e-2)


@pytest.mark.parametrize(
    "case", [c for c in MAIN_CASES if c.mode in ("sequence", "frame", "frame_steps")], ids=str
)
def test_a_large_mean_in_every_layer(case):
    rng = np.random.default_rng(8)
    weights = case.weights(rng)
    x = _offset_inputs(rng)
    layer = case.built(weights, dtype="float32")
    outputs, *_ = layer(x, training=True)
    weights = {name: value.astype("float32").astype(float) for name, value in weights.items()}
    expected = reference.layer(case.options, weights, x.astype(float), training=True)
    np.testing.assert_allclose(outputs, expected.outputs, rtol=0, atol=1e-2)


@pytest.mark.by_route
@pytest.mark.parametrize("case", SLOW_CASES, ids=str)
def test_gradients_with_a_large_mean(case):
    """The gradient of W must not see the mean either: it is orthogonal to it in exact numbers."""
    rng = np.random.default_rng(9)
    weights = case.weights(rng)
    x = _offset_inputs(rng)
    found = {}
    for dtype in ("float32", "float64"):
        single = {name: value.astype("float32") for name, value in weights.items()}
        layer = case.built(single, dtype=dtype)
        _, _, found[dtype] = conformance.call_and_differentiate(layer, x, training=True)
    for name in ("kernel", "gamma", "recurrent_kernel"):
        scale = np.abs(found["float64"][name]).max()
        np.testing.assert_allclose(
            found["float32"][name], found["float64"][name], rtol=0, atol=2e-2 * scale
        )


@pytest.mark.parametrize("case", [c for c in MAIN_CASES if c.kwargs["normalization"]], ids=str)
def test_features_that_move_together(case):
    """Level to spread 10000 : 1, and kernels that see it, or the differences of features alone."""
    rng = np.random.default_rng(10)
    level, spread = rng.normal(size=(16, 12, 1)), rng.normal(size=(16, 12, FEATURES))
    x = (1e4 * (1 + level) + spread).astype("float32")
    weights = {name: value.astype("float32") for name, value in case.weights(rng).items()}
    weights["kernel"][:, ::2] -= weights["kernel"][:, ::2].mean(0)
    found = []
    for dtype in ("float32", "float64"):
        layer = case.built(weights, dtype=dtype)
        outputs, states, gradients = conformance.call_and_differentiate(layer, x, training=True)
        found.append({"outputs": outputs, **gradients, **conformance.statistics(case, layer)})
        found[-1] |= {f"state {k}": state for k, state in enumerate(states)}
    single, double = found
    for name, expected in double.items():
        if name != "moving_mean":  # x W itself, as exact as the product is in single precision
            atol = 1e-3 * max(1.0, np.abs(expected).max())
            np.testing.assert_allclose(single[name], expected, rtol=1e-3, atol=atol, err_msg=name)


@pytest.mark.parametrize(
    ("case", "sequences"),
    conformance.parameters(
        itertools.product(CASES, [True, False]),
        [  # XLA takes many seconds for each
            (conformance.find("simple_rnn-sequence"), True),
            (conformance.find("simple_rnn-sequence"), False),
        ],
    ),
    ids=str,
)
def test_xla_infers(case, sequences):
    weights = case.weights(np.random.default_rng(2))
    layer = case.built(weights, return_sequences=sequences, **case.for_xla)
    x = np.random.default_rng(3).normal(size=(BATCH, TIME, FEATURES))
    mask = conformance.masks()["right"]
    infer = tf.function(lambda x, mask: layer(x, mask=mask, training=False), jit_compile=True)
    assert_all_close(infer(x, mask), layer(x, mask=mask), atol=1e-10)


def test_a_lonely_row_meets_the_statistics_as_they_were():
    """In a graph too, where reading and assigning them could be in any order."""
    case = conformance.find("simple_rnn-frame")
    weights = case.weights(np.random.default_rng(2))
    layer = case.built(weights, momentum=0.5)
    x = np.random.default_rng(3).normal(size=(BATCH, TIME, FEATURES))
    mask = np.zeros((BATCH, TIME), bool)
    mask[0] = mask[1, ::2] = True
    train = tf.function(lambda: layer(x, mask=mask, training=True)[0])
    expected = layer(x, mask=mask, training=True)[0]
    for _ in range(200):
        conformance.set_weights(layer, weights)
        np.testing.assert_allclose(train(), expected, rtol=0, atol=1e-10)
