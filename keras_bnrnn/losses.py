"""A loss whose mean over frames is that of the whole batch, however many devices share it."""

import keras
import tensorflow as tf
from keras import ops

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
        sample_weight: `[batch, time]`, mask or weights; `None` counts every frame as 1.

    Example:

    >>> loss = FrameMeanCrossEntropy()
    >>> p = [[[0.5, 0.5], [0.25, 0.75]]]
    >>> round(float(loss([[0, 0]], p, [[1.0, 0.0]])), 4)
    0.6931
    """

    def __init__(self, from_logits=False, name="frame_mean_cross_entropy", dtype=None):
        super().__init__(name=name, reduction="sum", dtype=dtype)
        self.from_logits = from_logits

    def __call__(self, y_true, y_pred, sample_weight=None):
        mask = getattr(y_pred, "_keras_mask", None)
        values = keras.losses.sparse_categorical_crossentropy(
            ops.convert_to_tensor(y_true),
            ops.cast(y_pred, self.dtype),
            from_logits=self.from_logits,
        )
        weights = ops.ones_like(values)
        for factor in (sample_weight, mask):
            if factor is not None:
                weights = weights * ops.cast(factor, self.dtype)
        # `where` and not a product: a masked frame may hold anything, infinity included.
        values = ops.where(weights > 0, values, ops.zeros_like(values))
        count = over_replicas(ops.sum(weights), True)
        return ops.sum(values * weights) / tf.maximum(count, keras.config.epsilon())

    def get_config(self):
        return {"name": self.name, "from_logits": self.from_logits}
