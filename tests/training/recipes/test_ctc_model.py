"""The model that writes text: padding has no say, and what the front end makes of lengths."""

import numpy as np
import pytest

from keras_bnrnn.ctc import live_frame_counts
from recipes.ctc_model import build_ctc_model, reduced

LENGTHS = np.array([13, 8, 5, 1])


def make(**options):
    arguments = {"reduction": 4, "layers": 2, "units": 5, "normalized": True, "bidirectional": True}
    model = build_ctc_model(7, 6, **arguments | options)
    rng = np.random.default_rng(0)
    model.set_weights([np.abs(rng.normal(size=w.shape)) * 0.5 for w in model.get_weights()])
    return model


@pytest.mark.parametrize("reduction", [1, 2, 4])
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_an_answer_does_not_depend_on_its_neighbours(reduction, cell):
    model = make(reduction=reduction, cell=cell)
    rng = np.random.default_rng(1)
    features = rng.normal(size=(4, 13, 7)).astype("float32")
    for row, length in enumerate(LENGTHS):
        features[row, length:] = 50.0
    together = model({"features": features, "lengths": LENGTHS}).numpy()
    assert together.shape == (4, reduced(13, reduction), 6)
    np.testing.assert_array_equal(live_frame_counts(together), reduced(LENGTHS, reduction))
    for row, length in enumerate(LENGTHS):
        inputs = {"features": features[row : row + 1, :length], "lengths": np.array([length])}
        alone = model(inputs).numpy()
        frames = reduced(length, reduction)
        np.testing.assert_allclose(together[row, :frames], alone[0], rtol=1e-5, atol=1e-5)
        assert (together[row, frames:].argmax(-1) == 0).all()


def test_in_training_padding_has_no_say_either():
    model = make()
    features = np.random.default_rng(1).normal(size=(4, 13, 7)).astype("float32")
    found = []
    for junk in (0.0, 50.0, np.nan):
        for row, length in enumerate(LENGTHS):
            features[row, length:] = junk
        found.append(model({"features": features, "lengths": LENGTHS}, training=True).numpy())
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[0], found[2])


def test_one_direction_hears_no_later_frames():
    model = make(bidirectional=False, normalized=False)
    features = np.random.default_rng(1).normal(size=(1, 12, 7)).astype("float32")
    changed = features.copy()
    changed[:, 8:] += 1.0
    first, second = (
        model({"features": one, "lengths": np.array([12])}).numpy() for one in (features, changed)
    )
    np.testing.assert_allclose(first[:, :2], second[:, :2], atol=1e-6)
    assert np.abs(first[:, 2:] - second[:, 2:]).max() > 1e-3
