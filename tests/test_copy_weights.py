"""`copy_weights` between a layer and its `keras.layers` namesake keeps what inference answers."""

import keras
import numpy as np
import pytest

import conformance
import keras_bnrnn
import reference
from conformance import BATCH, CASES, FEATURES, MAIN_CASES, TIME, UNITS, assert_all_close

# What folding must be able to express, whatever else it can.
FOLDED = [case for case in CASES if case.foldable]


def _namesake(case, **overrides):
    kwargs = {**case.namesake_kwargs, "return_sequences": True, "dtype": "float64", **overrides}
    layer = case.namesake_class(UNITS, **kwargs)
    layer.build((BATCH, TIME, FEATURES))
    return layer


def _ours(case, rng, **overrides):
    layer = case.layer(return_state=False, **overrides)
    layer.build((BATCH, TIME, FEATURES))
    if "use_bias" not in overrides:
        conformance.set_weights(layer, case.weights(rng))
    return layer


def _randomize(layer, rng):
    layer.set_weights([rng.normal(0, 0.6, w.shape) for w in layer.get_weights()])


@pytest.mark.parametrize("case", FOLDED, ids=str)
def test_out_of_a_normalised_layer(case):
    rng = np.random.default_rng(0)
    source = _ours(case, rng)
    before = source.get_weights()
    target = _namesake(case, use_bias=True)
    _randomize(target, rng)
    keras_bnrnn.copy_weights(source, target)
    x = rng.normal(size=(BATCH, TIME, FEATURES))
    mask = conformance.masks()["holey"]
    np.testing.assert_allclose(target(x, mask=mask), source(x, mask=mask), rtol=0, atol=1e-12)
    assert_all_close(source.get_weights(), before)


@pytest.mark.parametrize("case", [c for c in FOLDED if c.kwargs.get("use_bias", True)], ids=str)
def test_into_a_normalised_layer(case):
    """Into one that has trained, so its statistics are far from 0 and 1."""
    rng = np.random.default_rng(1)
    source = _namesake(case)
    _randomize(source, rng)
    before = source.get_weights()
    target = _ours(case, rng)
    statistics = conformance.statistics(case, target)
    keras_bnrnn.copy_weights(source, target)
    x = rng.normal(size=(BATCH, TIME, FEATURES))
    np.testing.assert_allclose(target(x), source(x), rtol=0, atol=1e-12)
    for name, value in conformance.statistics(case, target).items():
        expected = reference.SETTLED if name.endswith("updates") else statistics[name]
        np.testing.assert_array_equal(value, expected, err_msg=name)
    assert_all_close(source.get_weights(), before)
    back = _namesake(case)
    keras_bnrnn.copy_weights(target, back)
    np.testing.assert_allclose(back(x), source(x), rtol=0, atol=1e-12)


@pytest.mark.parametrize("into", [False, True], ids=["out_of", "into"])
@pytest.mark.parametrize("case", [c for c in MAIN_CASES if c not in FOLDED], ids=str)
def test_outputs_are_preserved_or_the_copy_refused(case, into):
    """Recurrent and cell-state normalisation, statistics per step: exact, or an error."""
    rng = np.random.default_rng(2)
    plain, ours = _namesake(case), _ours(case, rng)
    _randomize(plain, rng)
    source, target = (plain, ours) if into else (ours, plain)
    before = target.get_weights()
    try:
        keras_bnrnn.copy_weights(source, target)
    except ValueError:
        assert_all_close(target.get_weights(), before)
    else:
        x = rng.normal(size=(BATCH, TIME, FEATURES))
        np.testing.assert_allclose(target(x), source(x), rtol=0, atol=1e-12)


def test_continuing_a_pretrained_layer_in_three_steps():
    """Copy, recalibrate, copy again: true statistics and the pretrained outputs."""
    case = conformance.find("lstm-sequence")
    rng = np.random.default_rng(3)
    source = _namesake(case)
    _randomize(source, rng)
    target = case.layer(return_state=False)
    model = keras.Sequential([keras.Input((TIME, FEATURES), dtype="float64"), target])
    x = rng.normal(3.0, 2.0, size=(BATCH, TIME, FEATURES))
    keras_bnrnn.copy_weights(source, target)
    keras_bnrnn.recalibrate(model, [x])
    keras_bnrnn.copy_weights(source, target)
    np.testing.assert_allclose(model(x), source(x), rtol=0, atol=1e-10)
    np.testing.assert_allclose(model(x, training=True), source(x), rtol=0, atol=1e-10)


@pytest.mark.parametrize("kind", conformance.KINDS)
def test_cells_and_bidirectional(kind):
    case = conformance.find(f"{kind}-frame")
    rng = np.random.default_rng(4)
    plain = keras_bnrnn.Bidirectional(_namesake(case), dtype="float64")
    ours = keras_bnrnn.Bidirectional(case.layer(return_state=False), dtype="float64")
    x = rng.normal(size=(BATCH, TIME, FEATURES))
    for layer in (plain, ours):
        layer.build(x.shape)
        layer.set_weights([w + rng.uniform(0.1, 0.4, w.shape) for w in layer.get_weights()])
    keras_bnrnn.copy_weights(ours, plain)
    np.testing.assert_allclose(plain(x), ours(x), rtol=0, atol=1e-12)
    _randomize(plain, rng)
    keras_bnrnn.copy_weights(plain, ours)
    np.testing.assert_allclose(ours(x), plain(x), rtol=0, atol=1e-12)

    plain_cell, cell = _namesake(case).cell, _ours(case, rng).cell
    keras_bnrnn.copy_weights(cell, plain_cell)
    states = [np.ones((BATCH, UNITS))] * case.state_count
    expected, _ = cell(x[:, 0], states)
    np.testing.assert_allclose(plain_cell(x[:, 0], states)[0], expected, rtol=0, atol=1e-12)


def test_what_cannot_be_copied_is_refused():
    rng = np.random.default_rng(5)
    case = conformance.find("lstm-sequence")
    ours = _ours(case, rng)
    unbuilt = keras.layers.LSTM(UNITS, dtype="float64")
    wide = keras.layers.LSTM(UNITS + 1, dtype="float64")
    wide.build((None, None, FEATURES))
    gru = keras.layers.GRU(UNITS, dtype="float64")
    gru.build((None, None, FEATURES))
    dense = keras.layers.Dense(UNITS)
    dense.build((None, FEATURES))
    no_bias = _namesake(case, use_bias=False)  # the shift of the normalisation needs a bias
    for target in (unbuilt, wide, gru, dense, no_bias):
        before = target.get_weights()
        with pytest.raises(ValueError):
            keras_bnrnn.copy_weights(ours, target)
        assert_all_close(target.get_weights(), before)
    with_bias = _namesake(case)
    _randomize(with_bias, rng)
    target = _ours(conformance.find("lstm-sequence-no_bias"), rng)
    before = target.get_weights()
    with pytest.raises(ValueError, match="bias"):
        keras_bnrnn.copy_weights(with_bias, target)
    assert_all_close(target.get_weights(), before)


@pytest.mark.parametrize("name", ["activation", "recurrent_activation"])
def test_other_activations_are_refused(name):
    case = conformance.find("lstm-sequence")
    ours = _ours(case, np.random.default_rng(6))
    other = _namesake(case, **{name: "relu"})
    for pair in ((ours, other), (other, ours)):
        with pytest.raises(ValueError, match=rf"differ in {name} \(.*relu"):
            keras_bnrnn.copy_weights(*pair)
    for same in ("relu", keras.layers.ReLU(), lambda x: keras.ops.maximum(x, 0.0)):
        relu = _ours(case, np.random.default_rng(6), **{name: same})
        keras_bnrnn.copy_weights(relu, other)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
@pytest.mark.parametrize("kind", conformance.KINDS)
def test_outputs_are_exact_whatever_the_weights_are_kept_in(kind, dtype):
    """Both ways, with statistics that half precision would lose the bias in."""
    rng = np.random.default_rng(7)
    x = rng.normal(size=(BATCH, TIME, FEATURES))
    half = {"dtype": dtype, "recurrent_initializer": "glorot_uniform"}

    def ours_of(mode, **overrides):
        layer = conformance.find(f"{kind}-{mode}").layer(return_state=False, **overrides)
        layer.build(x.shape)
        for weight in layer.weights:
            if weight.name.endswith("moving_mean"):
                weight.assign(np.linspace(-3.14, 29.9, weight.shape[0]))
        return layer

    def widened(layer, exact):
        exact.set_weights([w.astype("float64") for w in layer.get_weights()])
        return exact(x)

    case = conformance.find(f"{kind}-sequence")
    for use_bias in (True, False):
        source = _namesake(case, use_bias=use_bias, **half)
        expected = widened(source, _namesake(case, use_bias=use_bias))
        for mode in ("sequence_recurrent", "sequence_renorm"):
            target = ours_of(mode)
            keras_bnrnn.copy_weights(source, target)
            np.testing.assert_allclose(target(x), expected, rtol=0, atol=1e-12)
        source = ours_of("sequence", use_bias=use_bias, **half)
        expected = widened(source, ours_of("sequence", use_bias=use_bias))
        target = _namesake(case)
        keras_bnrnn.copy_weights(source, target)
        np.testing.assert_allclose(target(x), expected, rtol=0, atol=1e-5)
