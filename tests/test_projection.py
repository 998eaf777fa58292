"""Normalised projection: both hand-derived forms against the one that autodiff differentiates."""

import numpy as np
import pytest
import tensorflow as tf

from keras_bnrnn import projection
from keras_bnrnn.normalization import BatchNormalizer

TIME, BATCH, CHANNELS = 5, 4, 8
MASKS = {
    "none": None,
    "holey": np.random.default_rng(7).random((TIME, BATCH)) > 0.4,
    "few": np.arange(TIME * BATCH).reshape(TIME, BATCH) % 7 == 0,
    "one": np.arange(TIME * BATCH).reshape(TIME, BATCH) == 7,
}


def observe(project, normalizer, x, W, bias, gamma, mask, dz):
    with tf.GradientTape() as tape:
        tape.watch([x, W, bias])
        z, batch = project(x, W, bias, mask)
        if mask is not None:
            z = tf.where(mask[..., tf.newaxis], z, tf.zeros_like(z))
        loss = tf.reduce_sum(z * dz)
    gradients = tape.gradient(loss, [x, W, bias, gamma])
    return [z, *gradients, *batch]


@pytest.mark.parametrize("scatter_limit", [0, 1000], ids=["passes", "scatter"])
@pytest.mark.parametrize("mask_name", MASKS)
@pytest.mark.parametrize("whole_sequence", [True, False], ids=["sequence", "frame"])
@pytest.mark.parametrize("features", [3, 12])
def test_by_hand_equals_autodiff(monkeypatch, scatter_limit, mask_name, whole_sequence, features):
    monkeypatch.setattr(projection, "SCATTER_LIMIT", scatter_limit)
    normalizer = BatchNormalizer(
        max_timesteps=None,
        momentum=0.9,
        epsilon=1e-5,
        gamma_initializer="ones",
        gamma_regularizer=None,
        gamma_constraint=None,
        moving_mean_initializer="zeros",
        moving_variance_initializer="ones",
        dtype="float64",
    )
    normalizer.build(CHANNELS)
    random = np.random.default_rng(0)
    normalizer.set_weights([random.uniform(0.5, 1.5, w.shape) for w in normalizer.get_weights()])
    x = tf.constant(random.normal(size=(TIME, BATCH, features)) + 3.0)
    W = tf.constant(random.normal(size=(features, CHANNELS)))
    bias = tf.constant(random.normal(size=CHANNELS))
    dz = tf.constant(random.normal(size=(TIME, BATCH, CHANNELS)))
    mask = None if MASKS[mask_name] is None else tf.constant(MASKS[mask_name])
    seen = [
        observe(
            lambda x, W, bias, mask, way=way: way(x, W, bias, whole_sequence, mask, 0),
            normalizer,
            x,
            W,
            bias,
            normalizer.gamma.value,
            mask,
            dz,
        )
        for way in (normalizer._project_by_hand, normalizer._project_by_autodiff)
    ]
    for by_hand, by_autodiff in zip(*seen, strict=True):
        np.testing.assert_allclose(by_hand, by_autodiff, rtol=1e-9, atol=1e-9)
