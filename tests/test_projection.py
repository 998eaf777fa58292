"""Normalised projection: each hand-derived form against the formula, differentiated by TensorFlow."""

import numpy as np
import pytest
import tensorflow as tf

from keras_bnrnn import projection
from keras_bnrnn.moments import OVER_FRAME, OVER_SEQUENCE, Moments

TIME, BATCH, FEATURES, CHANNELS = 5, 4, 3, 8
EPSILON = 1e-5
MASKS = {
    "none": np.ones((TIME, BATCH), bool),
    "holey": np.random.default_rng(7).random((TIME, BATCH)) > 0.4,
    "few": np.arange(TIME * BATCH).reshape(TIME, BATCH) % 7 == 0,
    "one": np.arange(TIME * BATCH).reshape(TIME, BATCH) == 7,
    "empty": np.zeros((TIME, BATCH), bool),
}


def by_autodiff(x, W, bias, gamma, population, mask, axes):
    """The formula, one statistic after the other."""
    blocks = tf.split(W, len(x), axis=-1)
    a = tf.concat([part @ block for part, block in zip(x, blocks, strict=True)], -1)
    z, batch = tf.zeros_like(a), []
    frames = range(TIME) if axes == OVER_FRAME else [...]
    for number, frame in enumerate(frames):
        group = np.zeros_like(mask)
        group[frame] = mask[frame]
        live = np.argwhere(group)
        rows = tf.gather_nd(a, live)
        mean, variance = tf.nn.moments(rows, 0) if len(live) else (tf.zeros_like(gamma),) * 2
        batch.append((mean, variance, [len(live)]))
        if len(live) < 2:
            mean, variance = population[:, number]
        y = gamma * (rows - mean) / tf.sqrt(variance + EPSILON) + bias
        z = tf.tensor_scatter_nd_update(z, live, y)
    batch = [np.stack(values) for values in zip(*batch, strict=True)]
    return z, batch if axes == OVER_FRAME else [value[0] for value in batch]


def by_hand(x, W, bias, gamma, population, mask, axes, fold=False):
    live = None if mask.all() else tf.constant(mask)
    x = [tf.where(mask[..., None], part, np.inf) for part in x]
    population = Moments(*(population if axes == OVER_FRAME else population[:, 0]), None)
    arguments = (x if len(x) > 1 else x[0], W, bias, gamma, population, live)
    if fold:
        *folded, batch = projection.folded_projection(*arguments, epsilon=EPSILON)
        z = projection.product(*folded)
    else:
        z, batch = projection.normalized_projection(*arguments, axes=axes, epsilon=EPSILON)
    return tf.where(mask[..., None], z, tf.zeros_like(z)), batch


def folded(*arguments):
    return by_hand(*arguments, fold=True)


def observe(project, x, W, bias, gamma, population, mask, axes, dz):
    """Outputs, gradients and moments."""
    with tf.GradientTape() as tape:
        tape.watch([x, W, bias, gamma])
        z, batch = project(x, W, bias, gamma, population, mask, axes)
        loss = tf.reduce_sum(z * dz)
    return [z, *tf.nest.flatten(tape.gradient(loss, [x, W, bias, gamma])), *batch]


@pytest.mark.parametrize("mask_name", MASKS)
@pytest.mark.parametrize(
    ("way", "scatter_limit", "axes", "parts"),
    [
        pytest.param(by_hand, 0, OVER_SEQUENCE, 1, id="sequence"),
        pytest.param(by_hand, 0, OVER_FRAME, 1, id="frame"),
        pytest.param(by_hand, 0, OVER_SEQUENCE, 4, id="sequence-by_gate"),
        pytest.param(by_hand, 0, OVER_FRAME, 4, id="frame-by_gate"),
        pytest.param(by_hand, 1000, OVER_SEQUENCE, 1, id="scatter"),
        pytest.param(by_hand, 1000, OVER_SEQUENCE, 4, id="scatter-by_gate"),
        pytest.param(folded, 0, OVER_SEQUENCE, 1, id="folded"),
    ],
)
def test_by_hand_equals_autodiff(monkeypatch, way, scatter_limit, axes, parts, mask_name):
    monkeypatch.setattr(projection, "SCATTER_LIMIT", scatter_limit)
    random, mask = np.random.default_rng(0), MASKS[mask_name]
    x = list(tf.constant(random.normal(3.0, size=(parts, TIME, BATCH, FEATURES))))
    W = tf.constant(random.normal(size=(FEATURES, CHANNELS)))
    bias, gamma = tf.constant(random.normal(size=(2, CHANNELS)))
    population = tf.constant(random.uniform(0.5, 1.5, size=(2, TIME, CHANNELS)))
    dz = tf.constant(random.normal(size=(TIME, BATCH, CHANNELS)))
    arguments = (x, W, bias, gamma, population, mask, axes, dz)
    found, expected = observe(way, *arguments), observe(by_autodiff, *arguments)
    for value, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(value, other, rtol=1e-9, atol=1e-9)
