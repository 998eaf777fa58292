"""Cross-entropy and CTC against Keras's, and what they make of extreme logits and wrong labels."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_bnrnn.ctc import NEVER
from keras_bnrnn.losses import (
    FrameMeanCrossEntropy,
    UtteranceMeanCTC,
    cross_entropy_per_frame,
    ctc_per_utterance,
)
from keras_bnrnn.metrics import FrameCrossEntropy, FrameErrorRate

CLASSES = 7


@pytest.fixture
def batch():
    rng = np.random.default_rng(0)
    return rng.integers(CLASSES, size=(3, 5)), rng.normal(size=(3, 5, CLASSES)) * 4.0


@pytest.mark.parametrize("shape", [(3, 5), (15,), (3, 5, 1)])
@pytest.mark.parametrize("dtype", ["int32", "int64", "float32"])
def test_values_and_gradients_are_those_of_keras(batch, shape, dtype):
    labels, logits = batch
    labels = labels.reshape(shape).astype(dtype)
    logits = tf.constant(logits.reshape(*((15,) if len(shape) == 1 else (3, 5)), CLASSES))
    upstream = tf.random.stateless_normal(logits.shape[:-1], [0, 1], dtype=tf.float64)
    found = []
    for function in (keras.losses.sparse_categorical_crossentropy, cross_entropy_per_frame):
        with tf.GradientTape() as tape:
            tape.watch(logits)
            values = function(labels, logits, from_logits=True)
        found.append((values, tape.gradient(values, logits, upstream)))
    for expected, got in zip(*found, strict=True):
        assert got.shape == expected.shape and got.dtype == tf.float64
        np.testing.assert_allclose(got, expected, rtol=1e-12, atol=1e-14)


def test_probabilities_are_taken_as_keras_takes_them(batch):
    labels, logits = batch
    probabilities = tf.nn.softmax(logits)
    np.testing.assert_array_equal(
        cross_entropy_per_frame(labels, probabilities, from_logits=False),
        keras.losses.sparse_categorical_crossentropy(labels, probabilities),
    )


def test_extreme_logits():
    logits = tf.constant([[3e38, -3e38], [-1e4, 1e4], [-np.inf, 0.0]], tf.float32)
    with tf.GradientTape() as tape:
        tape.watch(logits)
        values = cross_entropy_per_frame([0, 1, 1], logits, from_logits=True)
    np.testing.assert_array_equal(values, [0.0, 0.0, 0.0])
    np.testing.assert_array_equal(tape.gradient(values, logits), np.zeros([3, 2]))
    values = cross_entropy_per_frame([0, 1], [[np.nan, 0.0], [np.inf, 0.0]], from_logits=True)
    assert not np.isfinite(values).any()


@pytest.mark.parametrize("label", [-1, CLASSES])
def test_a_class_that_does_not_exist_is_no_finite_loss(batch, label):
    labels, logits = batch
    labels[1, 2] = label
    loss = FrameMeanCrossEntropy(from_logits=True)
    with pytest.raises(tf.errors.InvalidArgumentError):
        loss(labels, logits)
    # XLA, like GPUs, reads something else instead.
    compiled = tf.function(lambda: loss(labels, logits), jit_compile=True)
    assert np.isnan(compiled())


@pytest.mark.parametrize("shape", [(3, 3), (3, 3, 1), (3,), (3, 1)])
@pytest.mark.parametrize(
    "measure",
    [
        FrameMeanCrossEntropy(from_logits=True),
        FrameCrossEntropy(from_logits=True),
        FrameErrorRate(),
    ],
    ids=lambda one: one.name,
)
def test_weights_and_labels_with_other_axes(measure, shape):
    """As many frames as sequences, where a wrong broadcast would go unnoticed."""
    rng = np.random.default_rng(1)
    labels, logits = rng.integers(CLASSES, size=(3, 3)), rng.normal(size=(3, 3, CLASSES))
    weights = rng.uniform(size=shape)
    whole = np.broadcast_to(weights.reshape(3, -1), (3, 3))
    found = []
    for y_true, w in ((labels, whole), (labels, weights), (labels[..., None], weights)):
        if isinstance(measure, keras.metrics.Metric):
            measure.reset_state()
        found.append(float(measure(y_true, logits, sample_weight=w)))
    assert found[1] == pytest.approx(found[0]) and found[2] == pytest.approx(found[0])


NEVER_BUT_BLANK = [0.0] + [NEVER] * (CLASSES - 1)


def padded_logits(lengths, time, seed=0):
    logits = np.random.default_rng(seed).normal(size=(len(lengths), time, CLASSES)) * 2.0
    for row, length in enumerate(lengths):
        logits[row, length:] = NEVER_BUT_BLANK
    return logits.astype("float32")


def test_ctc_is_that_of_keras_for_each_utterance_alone():
    lengths = [9, 5, 7]
    labels = np.array([[1, 1, 3, 0], [4, 0, 0, 0], [2, 5, 6, 2]])
    logits = padded_logits(lengths, 9)
    expected = [
        float(keras.losses.CTC()(y[np.newaxis, y > 0], x[np.newaxis, :length]))
        for y, x, length in zip(labels, logits, lengths, strict=True)
    ]
    values, weights = ctc_per_utterance(labels, logits)
    np.testing.assert_allclose(values, expected, rtol=1e-5)
    np.testing.assert_array_equal(weights, 1.0)
    assert float(UtteranceMeanCTC()(labels, logits)) == pytest.approx(np.mean(expected), rel=1e-5)
    weighted = UtteranceMeanCTC()(labels, logits, [1.0, 0.0, 1.0])
    assert float(weighted) == pytest.approx((expected[0] + expected[2]) / 2, rel=1e-5)


def test_what_the_model_cannot_write_has_neither_loss_nor_gradient():
    labels = np.array([[1, 2, 3], [1, 1, 0], [1, CLASSES, 0], [2, 3, 0]])
    logits = tf.constant(padded_logits([2, 2, 4, 4], 4))
    with tf.GradientTape() as tape:
        tape.watch(logits)
        loss = UtteranceMeanCTC()(labels, logits)
    gradient = tape.gradient(loss, logits).numpy()
    values, weights = ctc_per_utterance(labels, logits)
    np.testing.assert_array_equal(weights, [0, 0, 0, 1])
    assert float(loss) == pytest.approx(float(values[3]))
    assert not gradient[:3].any() and np.abs(gradient[3]).max() > 0.01
    nothing = UtteranceMeanCTC()(labels[:1], logits[:1])
    assert float(nothing) == 0.0
