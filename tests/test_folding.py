"""`fold_batch_norm`: the same function with plain `keras.layers` only."""

import keras
import numpy as np
import pytest

import conformance
import keras_bnrnn
import reference
from conformance import BATCH, CASES, CONTAINERS, FEATURES, MAIN_CASES, TIME, UNITS

FOLDABLE = [case for case in CASES if case.foldable]
UNFOLDABLE = [case for case in MAIN_CASES if not case.foldable]


def _inputs(seed=0):
    """Batches with padding of zeros, which `Masking` takes out."""
    x = np.random.default_rng(seed).normal(size=(BATCH, TIME, FEATURES)).astype("float32")
    x[1, 3:] = 0.0
    return x


def _holds_ours(model):
    return [
        layer.name
        for layer in model._flatten_layers()
        if type(layer).__module__.startswith("keras_bnrnn")
        and not isinstance(layer, keras_bnrnn.Bidirectional)
    ]


@pytest.mark.parametrize("case", FOLDABLE, ids=str)
def test_a_folded_layer_is_its_namesake(case):
    """In float64, with masks, states and `return_state`."""
    rng = np.random.default_rng(0)
    layer = case.layer()
    layer.build((None, None, FEATURES))
    weights = case.weights(rng)
    conformance.set_weights(layer, weights)
    folded = keras_bnrnn.fold_batch_norm(layer)
    assert type(folded) is case.namesake_class
    x = rng.normal(size=(BATCH, TIME, FEATURES))
    states = conformance.random_states(case, rng)
    for mask in conformance.masks().values():
        expected = reference.layer(case.options, weights, x, mask, states)
        outputs, *final = folded(x, mask=mask, initial_state=states)
        np.testing.assert_allclose(outputs, expected.outputs, rtol=0, atol=1e-11)
        for found, state in zip(final, expected.states, strict=True):
            np.testing.assert_allclose(found, state, rtol=0, atol=1e-11)
    for found, value in zip(layer.get_weights(), weights.values(), strict=True):
        np.testing.assert_array_equal(found, value, err_msg="the original is untouched")


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("kind", conformance.KINDS)
def test_models_of_every_kind(kind, container):
    mode = "frame" if container == "stacked_cells" else "sequence"
    model = conformance.model_of(container, conformance.find(f"{kind}-{mode}"))
    x = _inputs()
    before = model.get_weights()
    folded = keras_bnrnn.fold_batch_norm(model)
    assert folded is not model
    assert not _holds_ours(folded)
    np.testing.assert_allclose(folded(x), model(x), rtol=1e-5, atol=1e-5)
    for left, right in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(left, right)


@pytest.mark.parametrize("case", UNFOLDABLE, ids=str)
def test_what_cannot_be_folded_is_named_or_kept(case):
    model = conformance.model_of("sequential", case)
    name = model.layers[-1].name
    with pytest.raises(ValueError, match=name):
        keras_bnrnn.fold_batch_norm(model)
    kept = keras_bnrnn.fold_batch_norm(model, strict=False)
    assert type(kept.layers[-1]) is case.layer_class
    np.testing.assert_allclose(kept(_inputs()), model(_inputs()), rtol=0, atol=1e-6)


def test_one_error_names_all_and_strict_false_folds_the_rest():
    steps = conformance.find("lstm-frame_steps")
    inputs = keras.Input((None, FEATURES))
    options = {"dtype": "float32", "return_state": False}
    x = steps.layer(**options, name="first_that_stays")(inputs)
    x = conformance.find("gru-sequence").layer(**options, name="folds")(x)
    outputs = conformance.find("lstm-sequence_cell").layer(**options, name="last_that_stays")(x)
    model = keras.Model(inputs, outputs)
    with pytest.raises(ValueError) as error:
        keras_bnrnn.fold_batch_norm(model)
    assert "first_that_stays" in str(error.value) and "last_that_stays" in str(error.value)
    folded = keras_bnrnn.fold_batch_norm(model, strict=False)
    assert len(_holds_ours(folded)) >= 2
    assert type(folded.get_layer("folds")) is keras.layers.GRU
    np.testing.assert_allclose(folded(_inputs()), model(_inputs()), rtol=1e-5, atol=1e-5)


def test_nested_models_and_shared_layers():
    """A layer used twice stays one layer; a model inside a model is folded too."""
    shared = keras_bnrnn.BatchNormLSTM(UNITS, return_sequences=True)
    encoder = keras.Sequential([keras.Input((None, FEATURES)), shared], name="encoder")
    left, right = keras.Input((None, FEATURES)), keras.Input((None, FEATURES))
    both = keras.layers.Concatenate()([encoder(left), shared(right)])
    above = keras_bnrnn.Bidirectional(keras_bnrnn.BatchNormGRU(UNITS))(both)
    model = keras.Model([left, right], above)
    rng = np.random.default_rng(1)
    model.set_weights([w + rng.uniform(0.1, 0.4, w.shape) for w in model.get_weights()])
    folded = keras_bnrnn.fold_batch_norm(model)
    assert not _holds_ours(folded)
    # Three recurrent layers of three weights each: the shared one is there once.
    assert len(folded.weights) == 9
    x = [_inputs(2), _inputs(3)]
    np.testing.assert_allclose(folded(x), model(x), rtol=1e-5, atol=1e-5)


def test_a_plain_model_folds_to_an_equal_one():
    model = keras.Sequential(
        [
            keras.Input((None, FEATURES)),
            keras.layers.Masking(0.0),
            keras.layers.LSTM(UNITS, return_sequences=True),
            keras.layers.Dense(2),
        ]
    )
    folded = keras_bnrnn.fold_batch_norm(model)
    assert folded is not model
    np.testing.assert_allclose(folded(_inputs()), model(_inputs()), rtol=0, atol=1e-7)
    before = model.get_weights()
    folded.set_weights([w + 1.0 for w in folded.get_weights()])
    for left, right in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(left, right)


def test_a_folded_model_is_saved_without_this_package(tmp_path):
    model = conformance.model_of("sequential", conformance.find("lstm-sequence"))
    folded = keras_bnrnn.fold_batch_norm(model)
    folded.save(tmp_path / "folded.keras")
    with keras.saving.CustomObjectScope({}):
        loaded = keras.models.load_model(tmp_path / "folded.keras")
    assert "keras_bnrnn" not in str(loaded.get_config())
    np.testing.assert_array_equal(loaded(_inputs()), folded(_inputs()))


def test_an_unbuilt_model_is_refused():
    with pytest.raises(ValueError, match=r"(?i)build"):
        keras_bnrnn.fold_batch_norm(keras_bnrnn.BatchNormLSTM(UNITS))
