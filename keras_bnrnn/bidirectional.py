"""`Bidirectional` that keeps the mask on every Keras version."""

from typing import Any

import keras


@keras.saving.register_keras_serializable(package="keras_bnrnn")
class Bidirectional(keras.layers.Bidirectional):
    """`keras.layers.Bidirectional` whose output carries the mask on, whatever the Keras version.

    Releases of Keras after 3.15 drop the mask behind their own `Bidirectional`, so that a second
    recurrent layer would take padding for data. Arguments and results are those of
    `keras.layers.Bidirectional`.

    Example:

    >>> import keras, keras_bnrnn
    >>> inputs = keras.Input((None, 8))
    >>> masked = keras.layers.Masking()(inputs)
    >>> layer = keras_bnrnn.Bidirectional(keras_bnrnn.BatchNormLSTM(4, return_sequences=True))
    >>> layer(masked).shape
    (None, None, 8)
    """

    def __init__(
        self,
        layer: keras.layers.Layer,
        merge_mode: str | None = "concat",
        weights: list[Any] | None = None,
        backward_layer: keras.layers.Layer | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(layer, merge_mode, weights, backward_layer, **kwargs)
        self.supports_masking = True
