"""Cross-entropy per frame, and its mean over the frames of all devices."""

import math

import keras
import tensorflow as tf
from keras import ops

from keras_bnrnn.keras_internals import mask_of
from keras_bnrnn.moments import over_replicas


@keras.saving.register_keras_serializable(package="keras_bnrnn")
class FrameMeanCrossEntropy(keras.losses.Loss):
    """Cross-entropy of integer classes, averaged over the live frames of the global batch.

        loss = sum_{b,t} w_{bt} (-log p_{bt}(y_{bt})) / sum_{b,t} w_{bt}

    Both sums are over the replicas of the current `tf.distribute` strategy: each returns its part
    of the loss, and their sum, with which Keras trains, is the loss. Keras's own reductions take
    each replica's mean, in which the frames of a replica with short utterances count more.

    Args:
        from_logits: whether predictions are logits or probabilities.
        name: of the loss.

    Call arguments:
        y_true: integers `[batch, time]` (any leading axes will do).
        y_pred: `[batch, time, classes]`. Frames that its Keras mask leaves out do not count.
        sample_weight: `[batch, time]`, mask or weights; `[batch]` weighs all frames of a sequence
            alike; `None` counts every frame as 1.

    Example:

    >>> loss = FrameMeanCrossEntropy()
    >>> p = [[[0.5, 0.5], [0.25, 0.75]]]
    >>> round(float(loss([[0, 0]], p, [[1.0, 0.0]])), 4)
    0.6931
    """

    def __init__(
        self,
        from_logits: bool = False,
        name: str = "frame_mean_cross_entropy",
        dtype: str | keras.DTypePolicy | None = None,
    ) -> None:
        super().__init__(name=name, reduction="sum", dtype=dtype)
        self.from_logits = from_logits

    def __call__(self, y_true, y_pred, sample_weight=None):
        values = cross_entropy_per_frame(y_true, ops.cast(y_pred, self.dtype), self.from_logits)
        values, weights = live_frames(values, y_pred, sample_weight)
        count = over_replicas(ops.sum(weights), True)
        return ops.sum(values * weights) / tf.maximum(count, keras.config.epsilon())

    def get_config(self):
        return {"name": self.name, "from_logits": self.from_logits}


def live_frames(values, y_pred, sample_weight):
    """The values of live frames, zero elsewhere, and the weights of all frames.

    Args:
        values: `[batch, time]` (any axes will do), floating.
        y_pred: the predictions; frames that its Keras mask leaves out weigh nothing.
        sample_weight: of the shape of `values`, or with a last axis of one more, or with as many of
            the last axes fewer as its weights have in common; or `None`.
    """
    weights = ops.ones_like(values)
    for factor in (sample_weight, mask_of(y_pred)):
        if factor is None:
            continue
        factor = ops.cast(factor, values.dtype)
        if len(factor.shape) == len(values.shape) + 1:
            factor = ops.squeeze(factor, axis=-1)
        while 0 < len(factor.shape) < len(values.shape):
            factor = ops.expand_dims(factor, axis=-1)
        weights = weights * factor
    # `where` and not a product: a masked frame may hold anything, infinity included.
    return ops.where(weights > 0, values, ops.zeros_like(values)), weights


def cross_entropy_per_frame(y_true, y_pred, from_logits):
    """`-log p(y)` of every frame.

    Of logits it is computed from sums that loss and metrics have in common, so that TensorFlow
    takes them once a step; its own operation (`SparseSoftmaxCrossEntropyWithLogits`, behind Keras's
    function) takes twice as long on CPUs, and is run again for each metric.

    Args:
        y_true: integers `[...]` or `[..., 1]`, the classes; NaN is the answer for one that does
            not exist, where TensorFlow's gather does not refuse it (on GPUs).
        y_pred: `[..., classes]`.
        from_logits: whether `y_pred` is logits or probabilities.

    Returns:
        `[...]`, of `y_pred`'s type.
    """
    y_true = ops.convert_to_tensor(y_true)
    if not from_logits:
        return keras.losses.sparse_categorical_crossentropy(y_true, y_pred)
    y_pred = ops.convert_to_tensor(y_pred)
    if y_true.shape.rank == y_pred.shape.rank:
        y_true = tf.squeeze(y_true, axis=-1)
    y_true = tf.cast(y_true, tf.int32)
    scores = tf.gather(y_pred, y_true, axis=-1, batch_dims=y_true.shape.rank)
    exists = (y_true >= 0) & (y_true < tf.shape(y_pred)[-1])
    return tf.reduce_logsumexp(y_pred, axis=-1) - tf.where(exists, scores, math.nan)
