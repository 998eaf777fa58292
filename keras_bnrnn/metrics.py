"""Metrics over frames, words and texts: cross-entropies, perplexity and error rates.

`keras.metrics.Mean` first averages over the time axis of each batch, padding included, and so
counts a frame of a short batch more than a frame of a long one. These metrics count every live
frame (or word) of the epoch once, whatever batch it was in.
"""

from collections.abc import Sequence

import keras
import tensorflow as tf
from keras import ops

from keras_bnrnn.ctc import greedy_labels, texts
from keras_bnrnn.losses import cross_entropy_per_frame, ctc_per_utterance, live_frames


class _Ratio(keras.metrics.Metric):
    """A total in relation to a count, both since the last reset."""

    def __init__(self, name, dtype=None):
        super().__init__(name=name, dtype=dtype)
        self._direction = "down"
        self.total = self.add_variable(shape=(), initializer="zeros", name="total")
        self.count = self.add_variable(shape=(), initializer="zeros", name="count")

    def add(self, total, count):
        self.total.assign_add(ops.cast(total, self.dtype))
        self.count.assign_add(ops.cast(count, self.dtype))

    def result(self):
        return ops.divide_no_nan(self.total, self.count)


class _LiveFrameMean(_Ratio):
    """The mean of a value per frame over all live frames since the last reset."""

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
        self.add(ops.sum(values * weights), ops.sum(weights))


class _CrossEntropy(_LiveFrameMean):
    def __init__(self, from_logits, name, dtype):
        super().__init__(name=name, dtype=dtype)
        self.from_logits = from_logits

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

    def values_per_frame(self, y_true, y_pred):
        best = ops.argmax(y_pred, axis=-1)
        y_true = ops.convert_to_tensor(y_true)
        if len(y_true.shape) == len(best.shape) + 1:
            y_true = ops.squeeze(y_true, axis=-1)
        return ops.not_equal(ops.cast(y_true, best.dtype), best)


@keras.saving.register_keras_serializable(package="keras_bnrnn")
class UtteranceCTC(_Ratio):
    """The mean over utterances of the loss `keras_bnrnn.losses.UtteranceMeanCTC`, in nats.

    Args:
        name: name of the metric.
        dtype: data type of the sums.
    """

    def __init__(
        self, name: str = "ctc_loss", dtype: str | keras.DTypePolicy | None = None
    ) -> None:
        super().__init__(name, dtype)

    def update_state(self, y_true, y_pred, sample_weight=None):
        """Adds the utterances of a batch: arguments as for the loss."""
        values, weights = ctc_per_utterance(y_true, y_pred, sample_weight)
        self.add(ops.sum(values * weights), ops.sum(weights))


class _ErrorRate(_Ratio):
    """Edits that make the texts heard of those said, in relation to the length of these."""

    def __init__(self, alphabet, name, dtype):
        super().__init__(name, dtype)
        self.alphabet = list(alphabet)

    def units(self, text):
        """What is counted of texts, `[batch]`: a ragged `[batch, units]`."""
        raise NotImplementedError

    def update_state(self, y_true, y_pred, sample_weight=None):
        """Adds the utterances of a batch: arguments as for `keras_bnrnn.losses.UtteranceMeanCTC`.

        Every utterance counts, also those with unknown characters, which are errors.
        """
        said = self.units(texts(ops.convert_to_tensor(y_true), self.alphabet))
        heard = self.units(texts(greedy_labels(ops.convert_to_tensor(y_pred)), self.alphabet))
        edits = tf.edit_distance(heard.to_sparse(), said.to_sparse(), normalize=False)
        lengths = tf.cast(said.row_lengths(), tf.float32)
        weights = tf.ones_like(lengths)
        if sample_weight is not None:
            weights = tf.reshape(tf.cast(sample_weight, tf.float32), [-1])
        self.add(tf.reduce_sum(edits * weights), tf.reduce_sum(lengths * weights))

    def get_config(self):
        return {**super().get_config(), "alphabet": self.alphabet}


@keras.saving.register_keras_serializable(package="keras_bnrnn")
class CharacterErrorRate(_ErrorRate):
    """Character error rate of the best class of each frame, spaces between words included.

        cer = (substitutions + deletions + insertions) / characters

    Over all utterances together, as the package jiwer defines it.

    Args:
        alphabet: the characters of the classes from 1.
        name: name of the metric.
        dtype: data type of the sums.

    Example:

    >>> import keras
    >>> metric = CharacterErrorRate(["a", "b"])
    >>> metric.update_state([[1, 2]], keras.ops.one_hot([[1, 0, 1]], 3))  # heard: aa
    >>> float(metric.result())
    0.5
    """

    def __init__(
        self,
        alphabet: Sequence[str],
        name: str = "cer",
        dtype: str | keras.DTypePolicy | None = None,
    ) -> None:
        super().__init__(alphabet, name, dtype)

    def units(self, text):
        return tf.strings.unicode_split(text, "UTF-8")


@keras.saving.register_keras_serializable(package="keras_bnrnn")
class WordErrorRate(_ErrorRate):
    """Word error rate of the best class of each frame.

        wer = (substitutions + deletions + insertions) / words

    Over all utterances together, as the package jiwer defines it.

    Args:
        alphabet: the characters of the classes from 1.
        name: name of the metric.
        dtype: data type of the sums.

    Example:

    >>> import keras
    >>> metric = WordErrorRate(["a", " "])
    >>> metric.update_state([[1, 2, 1]], keras.ops.one_hot([[1, 0, 0]], 3))  # heard: a
    >>> float(metric.result())
    0.5
    """

    def __init__(
        self,
        alphabet: Sequence[str],
        name: str = "wer",
        dtype: str | keras.DTypePolicy | None = None,
    ) -> None:
        super().__init__(alphabet, name, dtype)

    def units(self, text):
        return tf.strings.split(text)
