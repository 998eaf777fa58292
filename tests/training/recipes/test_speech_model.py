"""The acoustic model: lengths say what is padding, and files from before there were lengths."""

import keras
import numpy as np
import pytest

import keras_bnrnn
from keras_bnrnn.data import sequence_mask
from recipes.speech_model import build_speech_model, with_lengths

DIMENSION, STATES, LENGTHS = 3, 5, np.array([7, 3, 5, 1, 0], "int32")
MASK = np.arange(7) < LENGTHS[:, np.newaxis]


def former_model(bidirectional):
    """The same model as it was when frames of zeros were padding."""
    values = features = keras.Input((None, DIMENSION), name="features")
    values = keras.layers.Masking(0.0, name="padding")(values)
    for index in (1, 2):
        layer = keras_bnrnn.BatchNormLSTM(4, return_sequences=True, name=f"lstm_{index}")
        if bidirectional:
            layer = keras_bnrnn.Bidirectional(layer, name=f"bidirectional_{index}")
        values = layer(values)
    logits = keras.layers.Dense(STATES, dtype="float32", name="logits")(values)
    return keras.Model(features, logits, name="speech_model")


@pytest.mark.parametrize("bidirectional", [False, True])
def test_equals_the_model_that_masked_zeros(bidirectional, tmp_path):
    keras.utils.set_random_seed(0)
    former = former_model(bidirectional)
    model = build_speech_model(
        DIMENSION,
        STATES,
        normalized=True,
        layers=2,
        units=4,
        momentum=0.99,
        bidirectional=bidirectional,
    )
    shapes = [[(w.name, w.shape) for w in one.weights] for one in (former, model)]
    assert shapes[0] == shapes[1]
    former.save(tmp_path / "former.keras")
    model.load_weights(tmp_path / "former.keras")
    loaded = with_lengths(keras.models.load_model(tmp_path / "former.keras"))
    features = np.random.default_rng(0).normal(size=(5, 7, DIMENSION)).astype("float32")
    zeros = np.where(MASK[..., np.newaxis], features, 0.0).astype("float32")
    for training in (True, False):  # The former changes the statistics that the latter uses.
        expected = former(zeros, training=training).numpy()
        junk = np.where(MASK[..., np.newaxis], features, 50.0).astype("float32")
        for one, given in ((model, junk), (loaded, zeros)):
            outputs = one({"features": given, "lengths": LENGTHS}, training=training).numpy()
            np.testing.assert_array_equal(outputs[MASK], expected[MASK])
    for weight, same in zip(model.weights, former.weights, strict=True):
        np.testing.assert_array_equal(weight, same)


def test_live_frames_of_zeros_count():
    keras.utils.set_random_seed(0)
    model = build_speech_model(DIMENSION, STATES, normalized=False, layers=1, units=4)
    features = np.random.default_rng(0).normal(size=(1, 6, DIMENSION)).astype("float32")
    features[:, 2:4] = 0.0
    tiny = np.where(features == 0.0, 1e-30, features).astype("float32")
    outputs = [model({"features": x, "lengths": np.array([6])}).numpy() for x in (features, tiny)]
    np.testing.assert_array_equal(*outputs)


def test_mask_of_lengths():
    mask = sequence_mask(np.full((5, 7, DIMENSION), np.nan), LENGTHS)
    np.testing.assert_array_equal(mask, MASK)
