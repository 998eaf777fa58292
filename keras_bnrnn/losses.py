"""Losses whose means are taken over all devices: cross-entropy of frames, CTC of utterances."""

import math

import keras
import tensorflow as tf
from keras import ops

from keras_bnrnn.ctc import live_frame_counts
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


@keras.saving.register_keras_serializable(package="keras_bnrnn")
class UtteranceMeanCTC(keras.losses.Loss):
    """Connectionist temporal classification, averaged over the utterances of the global batch.

        loss = sum_b w_b (-log p_b(y_b)) / sum_b w_b

    An utterance's value is that of `keras.losses.CTC`. Both sums are over the replicas of the
    current `tf.distribute` strategy, as in `FrameMeanCrossEntropy`. An utterance that the model
    cannot write, since it has too few frames or an unknown character, does not count.

    Args:
        name: of the loss.

    Call arguments:
        y_true: integers `[batch, characters]`: classes from 1, then zeros.
        y_pred: logits `[batch, time, classes]`, in the padding 0 for the blank and
            `keras_bnrnn.ctc.NEVER` for the others.
        sample_weight: `[batch]`; `None` counts every utterance as 1.

    Example:

    >>> loss = UtteranceMeanCTC()
    >>> float(loss([[1]], [[[0.0, 0.0]]]))  # ln 2
    0.6931471824645996
    """

    def __init__(
        self, name: str = "utterance_mean_ctc", dtype: str | keras.DTypePolicy | None = None
    ) -> None:
        super().__init__(name=name, reduction="sum", dtype=dtype)

    def __call__(self, y_true, y_pred, sample_weight=None):
        values, weights = ctc_per_utterance(y_true, y_pred, sample_weight)
        count = over_replicas(ops.sum(weights), True)
        return ops.sum(values * weights) / tf.maximum(count, keras.config.epsilon())

    def get_config(self):
        return {"name": self.name}


def ctc_per_utterance(y_true, y_pred, sample_weight=None):
    """`-log p(y)` of every utterance, and its weight, which is 0 where the model cannot write it.

    TensorFlow's operation on sparse labels takes an eighth of the time of the one on dense labels
    on CPUs, which is behind Keras's function.

    Args:
        y_true, y_pred, sample_weight: as for `UtteranceMeanCTC`.

    Returns:
        `[batch]` twice, float32.
    """
    y_true = tf.cast(ops.convert_to_tensor(y_true), tf.int32)
    y_pred = tf.cast(ops.convert_to_tensor(y_pred), tf.float32)
    batch, time, classes = tf.unstack(tf.shape(y_pred))
    repeated = (y_true[:, 1:] == y_true[:, :-1]) & (y_true[:, 1:] > 0)
    needed = tf.math.count_nonzero(y_true, axis=1, dtype=tf.int32)
    needed += tf.math.count_nonzero(repeated, axis=1, dtype=tf.int32)
    possible = (needed > 0) & (needed <= live_frame_counts(y_pred))
    possible &= tf.reduce_all(y_true < classes, axis=1)
    # The operation refuses what cannot be, and its gradient would not be finite.
    stand_in = tf.one_hot(0, tf.shape(y_true)[1], dtype=tf.int32)
    y_true = tf.where(possible[:, tf.newaxis], y_true, stand_in)
    values = tf.nn.ctc_loss(
        tf.sparse.from_dense(y_true),
        tf.where(possible[:, tf.newaxis, tf.newaxis], y_pred, 0.0),
        label_length=None,
        logit_length=tf.fill([batch], time),
        logits_time_major=False,
        blank_index=0,
    )
    weights = tf.cast(possible, tf.float32)
    if sample_weight is not None:
        weights *= tf.reshape(tf.cast(sample_weight, tf.float32), [-1])
    return values, weights


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
