"""Stripes of features hidden in training, after SpecAugment (Park et al. 2019)."""

from dataclasses import dataclass

import tensorflow as tf

LARGEST_SHARE_OF_TIME = 0.2


@dataclass(frozen=True)
class SpecAugment:
    """Replaces random stretches of time and of frequency by the training set's mean.

    What is hidden depends on the seed, the epoch and the utterance's id alone. A channel is hidden
    together with its differences; the energy is never hidden by itself.

    Args:
        time_masks: stretches of time per utterance.
        time_width: most frames of one, and at most a fifth of the utterance.
        frequency_masks: stretches of channels per utterance.
        frequency_width: most channels of one.

    Example:

    >>> from keras_bnrnn.data import SpecAugment, speech_dataset
    >>> augment = SpecAugment(time_masks=1, time_width=20)
    >>> batches = speech_dataset("corpus", "train", 24, augment=augment)  # doctest: +SKIP
    """

    time_masks: int = 2
    time_width: int = 40
    frequency_masks: int = 2
    frequency_width: int = 8

    def __post_init__(self):
        for name in ("time_masks", "time_width", "frequency_masks", "frequency_width"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)} is negative")

    def hide(
        self, features: tf.Tensor, hidden_value: tf.Tensor, channels: tf.Tensor, seed: tf.Tensor
    ) -> tf.Tensor:
        """Hides stripes of one utterance.

        Args:
            features: `[time, D]`.
            hidden_value: `[D]`, what takes their place.
            channels: `[D]`, the number of each feature's channel from 0, -1 for the energy.
            seed: two integers.

        Returns:
            `[time, D]`.
        """
        time = tf.shape(features)[0]
        num_channels = tf.reduce_max(channels) + 1
        longest = tf.cast(tf.cast(time, tf.float32) * LARGEST_SHARE_OF_TIME, tf.int32)
        hidden = self._stripes(
            tf.range(time), time, tf.minimum(self.time_width, longest), self.time_masks, seed, 0
        )[:, tf.newaxis]
        hidden |= self._stripes(
            channels,
            num_channels,
            tf.minimum(self.frequency_width, num_channels),
            self.frequency_masks,
            seed,
            1,
        )[tf.newaxis]
        return tf.where(hidden, hidden_value, features)

    def _stripes(self, positions, size, widest, count, seed, kind):
        """Whether each position lies in one of `count` random stripes of `0…size - 1`."""
        hidden = tf.zeros_like(positions, tf.bool)
        for number in range(count):
            drawn = tf.random.stateless_uniform(
                [2], tf.random.experimental.stateless_fold_in(seed, 2 * number + kind)
            )
            width = tf.cast(drawn[0] * tf.cast(widest + 1, tf.float32), tf.int32)
            first = tf.cast(drawn[1] * tf.cast(size - width + 1, tf.float32), tf.int32)
            hidden |= (positions >= first) & (positions < first + width)
        return hidden


def channels_of(features, dimension):
    """The channel of each feature, -1 for the energy.

    Args:
        features: the features' entry in `corpus.json`.
        dimension: features per frame.

    Returns:
        A list of integers. What is not known to be energy, channels and their differences counts
        as one channel per feature.
    """
    if features.get("kind") != "LogMelFilterBank" and dimension != 123:
        return list(range(dimension))
    energy = [-1] if features.get("use_energy", True) else []
    block = energy + list(range(features.get("num_mel_bins", 40)))
    return block * (dimension // len(block))
