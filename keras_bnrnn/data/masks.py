"""Masks from lengths, inside a model."""

import keras
import tensorflow as tf


def sequence_mask(
    values: keras.KerasTensor | tf.Tensor, lengths: keras.KerasTensor | tf.Tensor
) -> keras.KerasTensor | tf.Tensor:
    """Which steps of padded sequences count.

    It is made of `keras.ops` alone, so a functional model may hold it, for sequences of any length,
    and be saved, folded and exported.

    Args:
        values: `[batch, time, features]`, of which the shape alone counts.
        lengths: `[batch]`, integers: steps that count, from the first.

    Returns:
        `[batch, time]`, bool; for the `mask` of a recurrent layer's call.

    Example:

    >>> import keras
    >>> features = keras.Input((None, 123), name="features")
    >>> lengths = keras.Input((), dtype="int32", name="lengths")
    >>> mask = sequence_mask(features, lengths)
    >>> hidden = keras.layers.LSTM(250, return_sequences=True)(features, mask=mask)
    >>> model = keras.Model({"features": features, "lengths": lengths}, hidden)
    """
    number = keras.ops.cumsum(keras.ops.ones_like(values, dtype="int32")[:, :, 0], axis=1)
    return number <= keras.ops.expand_dims(lengths, 1)
