"""Properties of every layer over random shapes, masks and options.

How many examples is said in `conftest.py`.
"""

import hypothesis
import hypothesis.strategies as st
import numpy as np

import conformance
import keras_bnrnn
import reference

NAMESAKES = {"simple_rnn": "SimpleRNN", "lstm": "LSTM", "gru": "GRU"}


@st.composite
def layers(draw):
    """Options and the layer's constructor arguments, over everything that can be combined."""
    kind = draw(st.sampled_from(sorted(NAMESAKES)))
    kwargs = {
        "normalization": draw(st.sampled_from(["sequence", "frame", None])),
        "normalize_recurrent": draw(st.booleans()),
        "use_bias": draw(st.booleans()),
        "go_backwards": draw(st.booleans()),
        "zero_output_for_mask": draw(st.booleans()),
        "activation": draw(st.sampled_from(["tanh", "relu", "linear"])),
        "momentum": draw(st.sampled_from([0.0, 0.5, 0.99])),
        "epsilon": draw(st.sampled_from([1e-5, 1e-2])),
    }
    if kind == "gru":
        kwargs["reset_after"] = draw(st.booleans())
    if kind == "lstm":
        kwargs["normalize_cell_state"] = draw(st.booleans())
    loop = kwargs["normalize_recurrent"] or kwargs.get("normalize_cell_state")
    if kwargs["normalization"] == "frame" or loop:
        kwargs["max_timesteps"] = draw(st.sampled_from([None, 1, 2, 4]))
    if kwargs["normalization"] or loop:
        kwargs["renorm"] = draw(st.booleans())
        if kwargs["renorm"]:
            kwargs["renorm_clipping"] = draw(st.sampled_from([None, conformance.CLIPPING]))
    return kind, kwargs


@st.composite
def problems(draw):
    """A layer with weights, and a batch with or without a mask and initial states."""
    kind, kwargs = draw(layers())
    options = reference.Options.of(kind, **kwargs)
    batch, time = draw(st.integers(1, 5)), draw(st.integers(1, 6))
    features, units = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    weights = reference.random_weights(options, features, units, rng)
    x = rng.normal(rng.normal(), draw(st.sampled_from([0.1, 1.0, 3.0])), (batch, time, features))
    mask = None
    if draw(st.booleans()):
        share = draw(st.sampled_from([0.0, 0.3, 0.8, 1.0]))
        mask = rng.random((batch, time)) < share
    states = None
    if draw(st.booleans()):
        states = [rng.uniform(-1, 1, (batch, units)) for _ in range(options.state_count)]
    layer_class = getattr(keras_bnrnn, f"BatchNorm{NAMESAKES[kind]}")
    layer = layer_class(units, return_sequences=True, return_state=True, dtype="float64", **kwargs)
    layer.build(x.shape)
    conformance.set_weights(layer, weights)
    return options, layer, weights, x, mask, states, draw(st.booleans())


def _call(layer, weights, x, mask, states, training):
    """Outputs, final states and the weights after the call, from these weights."""
    conformance.set_weights(layer, weights)
    outputs, *final = layer(x, mask=mask, initial_state=states, training=training)
    after = dict(zip(weights, layer.get_weights(), strict=True))
    return np.asarray(outputs), [np.asarray(s) for s in final], after


def _close(actual, expected, tolerance=1e-8):
    """Relative to the size of what is expected: linear activations may grow."""
    scale = max(1.0, np.abs(expected).max(initial=0.0))
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * scale)


@hypothesis.given(problems())
def test_equals_the_numpy_model(problem):
    options, layer, weights, x, mask, states, training = problem
    outputs, final, after = _call(layer, weights, x, mask, states, training)
    expected = reference.layer(options, weights, x, mask, states, training)
    _close(outputs, expected.outputs)
    for found, state in zip(final, expected.states, strict=True):
        _close(found, state)
    for name, value in (weights | expected.statistics).items():
        _close(after[name], value)


@hypothesis.given(problems(), st.sampled_from([-7.0, 0.5, 100.0]))
def test_a_shift_of_the_inputs_moves_only_the_mean(problem, shift):
    """Batch normalisation takes it out again, so a training call answers the same."""
    options, layer, weights, x, mask, states, _ = problem
    hypothesis.assume(options.normalization is not None and not options.renorm)
    live = np.ones(x.shape[:2], bool) if mask is None else mask
    rows = live.sum(axis=0) if options.normalization == "frame" else live.sum(keepdims=True)
    hypothesis.assume(np.all((rows >= 2) | (rows == 0)))
    outputs, final, after = _call(layer, weights, x, mask, states, True)
    moved, moved_final, moved_after = _call(layer, weights, x + shift, mask, states, True)
    _close(moved, outputs, 1e-6)
    for found, state in zip(moved_final, final, strict=True):
        _close(found, state, 1e-6)
    for name, value in after.items():
        if name != "moving_mean":
            _close(moved_after[name], value, 1e-6)


@hypothesis.given(problems())
def test_frame_wise_training_is_causal(problem):
    """Later frames do not leak into earlier outputs; only "sequence" looks ahead."""
    options, layer, weights, x, mask, states, training = problem
    hypothesis.assume(options.normalization != "sequence" or not training)
    # Backwards, rows meet that read their first frames at different times.
    hypothesis.assume(not (options.go_backwards and options.max_timesteps and mask is not None))
    hypothesis.assume(x.shape[1] >= 2)
    cut = x.shape[1] // 2
    outputs, *_ = _call(layer, weights, x, mask, states, training)
    early = slice(-cut, None) if options.go_backwards else slice(0, cut)
    part, *_ = _call(
        layer, weights, x[:, early], None if mask is None else mask[:, early], states, training
    )
    _close(part, outputs[:, :cut])
