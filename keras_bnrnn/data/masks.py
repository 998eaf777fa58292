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


@keras.saving.register_keras_serializable(package="keras_bnrnn")
class FillPadding(keras.layers.Layer):
    """Puts one value into every step that a mask leaves out.

    Args:
        value: a number, or `[features]` of them.

    Call arguments:
        values: `[batch, time, features]`.
        live: `[batch, time]`, bool.

    Example:

    >>> import numpy as np
    >>> FillPadding(7.0)(np.array([[[1.0], [2.0]]]), np.array([[True, False]])).numpy().tolist()
    [[[1.0], [7.0]]]
    """

    def __init__(self, value: float | list[float] = 0.0, **kwargs) -> None:
        super().__init__(**kwargs)
        self.value = value
        self.supports_masking = True

    def call(self, values, live):
        value = keras.ops.cast(keras.ops.convert_to_tensor(self.value), values.dtype)
        return keras.ops.where(keras.ops.expand_dims(live, -1), values, value)

    def compute_mask(self, values, previous_mask=None):
        return None  # All that it would leave out has a value now.

    def compute_output_shape(self, values_shape, live_shape=None):
        return values_shape

    def get_config(self):
        return {**super().get_config(), "value": self.value}
