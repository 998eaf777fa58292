"""Metrics over frames and words: cross-entropy, frame error rate and perplexity.

`keras.metrics.Mean` first averages over the time axis of each batch, padding included, and so
counts a frame of a short batch more than a frame of a long one. These metrics count every live
frame (or word) of the epoch once, whatever batch it was in.
"""

import keras
from keras import ops

from keras_bnrnn.losses import cross_entropy_per_frame, live_frames


class _LiveFrameMean(keras.metrics.Metric):
    """The mean of a value per frame over all live frames since the last reset."""

    def __init__(self, name, dtype=None):
        super().__init__(name=name, dtype=dtype)
        self.total = self.add_variable(shape=(), initializer="zeros", name="total")
        self.count = self.add_variable(shape=(), initializer="zeros", name="count")

    def values_per_frame(self, y_true, y_pred):
        """The values whose mean it is, `[batch, time]`; each metric has its own."""
        raise NotImplementedError

    def update_state(self, y_true, y_pred, sample_weight=None):
        """Adds the frames of a batch.

        Args:
            y_true: integers `[batch, time]` (any leading axes will do): the classes.
            y_pred: `[batch, time, classes]`: scores of the classes. Frames that its Keras mask
                leaves out are not counted.
            sample_weight: `[batch, time]`, the mask (or weights) of the frames; `[batch]` weighs
                all frames of a sequence alike; `None` counts all.
        """
        values = ops.cast(self.values_per_frame(y_true, y_pred), self.dtype)
        values, weights = live_frames(values, y_pred, sample_weight)
        self.total.assign_add(ops.sum(values * weights))
        self.count.assign_add(ops.sum(weights))

    def result(self):
        return ops.divide_no_nan(self.total, self.count)


class _CrossEntropy(_LiveFrameMean):
    def __init__(self, from_logits, name, dtype):
        super().__init__(name=name, dtype=dtype)
        self.from_logits = from_logits
        self._direction = "down"

    def values_per_frame(self, y_true, y_pred):
        return cross_entropy_per_frame(y_true, ops.cast(y_pred, self.dtype), self.from_logits)

    def get_config(self):
        return {**super().get_config(), "from_logits": self.from_logits}


@keras.saving.register_keras_serializable(package="keras_bnrnn")
class FrameCrossEntropy(_CrossEntropy):
    """Frame-wise cross-entropy in nats.

        fce = - sum_t m_t log p_t(y_t) / sum_t m_t

    over the live frames t of all utterances, the criterion of the paper's section 5.1.

    Args:
        from_logits: whether predictions are logits instead of probabilities.
        name: name of the metric.
        dtype: data type of the sums.

    Example:

    >>> import numpy as np
    >>> from keras_bnrnn.metrics import FrameCrossEntropy
    >>> metric = FrameCrossEntropy()
    >>> labels = np.array([[0, 1, 0]])
    >>> posteriors = np.array([[[0.5, 0.5], [0.75, 0.25], [0.0, 1.0]]], "float32")
    >>> metric.update_state(labels, posteriors, sample_weight=np.array([[True, True, False]]))
    >>> print(f"{float(metric.result()):.4f}")  # (ln 2 + ln 4) / 2
    1.0397
    """

    def __init__(
        self,
        from_logits: bool = False,
        name: str = "fce",
        dtype: str | keras.DTypePolicy | None = None,
    ) -> None:
        super().__init__(from_logits, name, dtype)


@keras.saving.register_keras_serializable(package="keras_bnrnn")
class Perplexity(_CrossEntropy):
    """Perplexity per word: the exponential of the mean cross-entropy in nats.

        perplexity = exp(- sum_t m_t log p_t(y_t) / sum_t m_t)

    Args:
        from_logits: whether predictions are logits instead of probabilities.
        name: name of the metric.
        dtype: data type of the sums.

    Example:

    >>> import numpy as np
    >>> from keras_bnrnn.metrics import Perplexity
    >>> metric = Perplexity(from_logits=True)
    >>> metric.update_state(np.array([[3, 1]]), np.zeros([1, 2, 50], "float32"))
    >>> print(f"{float(metric.result()):.3f}")  # fifty words, all equally likely
    50.000
    """

    def __init__(
        self,
        from_logits: bool = False,
        name: str = "perplexity",
        dtype: str | keras.DTypePolicy | None = None,
    ) -> None:
        super().__init__(from_logits, name, dtype)

    def result(self):
        return ops.exp(super().result())


@keras.saving.register_keras_serializable(package="keras_bnrnn")
class FrameErrorRate(_LiveFrameMean):
    """Frame error rate: the share of live frames whose best-scored class is not the label.

        fer = sum_t m_t [argmax_k p_t(k) != y_t] / sum_t m_t

    Args:
        name: name of the metric.
        dtype: data type of the sums.

    Example:

    >>> import numpy as np
    >>> from keras_bnrnn.metrics import FrameErrorRate
    >>> metric = FrameErrorRate()
    >>> labels = np.array([[0, 1, 0, 1]])
    >>> scores = np.array([[[2.0, 1.0], [0.0, 1.0], [0.0, 1.0], [5.0, 0.0]]], "float32")
    >>> metric.update_state(labels, scores, sample_weight=np.array([[1, 1, 1, 0]]))
    >>> print(f"{float(metric.result()):.3f}")  # one of three live frames
    0.333
    """

    def __init__(self, name: str = "fer", dtype: str | keras.DTypePolicy | None = None) -> None:
        super().__init__(name=name, dtype=dtype)
        self._direction = "down"

    def values_per_frame(self, y_true, y_pred):
        best = ops.argmax(y_pred, axis=-1)
        y_true = ops.convert_to_tensor(y_true)
        if len(y_true.shape) == len(best.shape) + 1:
            y_true = ops.squeeze(y_true, axis=-1)
        return ops.not_equal(ops.cast(y_true, best.dtype), best)
