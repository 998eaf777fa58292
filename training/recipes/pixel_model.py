"""The classifier of images that are read pixel by pixel: an LSTM and a softmax."""

import keras

from keras_bnrnn import BatchNormLSTM
from keras_bnrnn.data import sequence_mask
from keras_bnrnn.fit.precision import scaled
from keras_bnrnn.losses import FrameMeanCrossEntropy

CLASSES, PIXELS = 10, 64
# What models of today do without: it masked images of zeros.
FORMER_CLASSES = {"keras_bnrnn>ImagesWithInk": keras.layers.Identity}


def build_pixel_model(layer, learning_rate, **options):
    """Builds and compiles the classifier.

    Args:
        layer: the recurrent layer.
        learning_rate: of Adam.
        **options: more arguments of `model.compile`.

    Returns:
        A `keras.Model` from `{"pixels": [batch, 64, 1], "lengths": [batch]}` to float32 logits
        `[batch, 10]`.
    """
    pixels = keras.Input((PIXELS, 1), name="pixels")
    lengths = keras.Input((), dtype="int32", name="lengths")
    hidden = layer(pixels, mask=sequence_mask(pixels, lengths))
    logits = keras.layers.Dense(CLASSES, dtype="float32", name="logits")(hidden)
    model = keras.Model({"pixels": pixels, "lengths": lengths}, logits, name="pixel_classifier")
    model.compile(
        scaled(keras.optimizers.Adam(learning_rate, global_clipnorm=1.0)),
        FrameMeanCrossEntropy(from_logits=True),
        weighted_metrics=pixel_metrics(),
        **options,
    )
    return model


def recurrent_layer(
    units,
    normalized,
    *,
    normalization="frame",
    normalize_recurrent=False,
    normalize_cell_state=False,
    per_step=False,
    renorm=False,
    gamma=1.0,
    momentum=0.9,
    synchronized=False,
):
    """The LSTM, plain or batch-normalised; all but the units are of the normalisation.

    Args:
        units: of the layer.
        normalized: whether it is a `BatchNormLSTM`.
        normalization, normalize_recurrent, normalize_cell_state, renorm, momentum, synchronized:
            its arguments.
        per_step: whether each of the 64 steps has population statistics of its own.
        gamma: initial value of every gamma.
    """
    if not normalized:
        return keras.layers.LSTM(units, name="lstm")
    return BatchNormLSTM(
        units,
        normalization=normalization,
        normalize_recurrent=normalize_recurrent,
        normalize_cell_state=normalize_cell_state,
        gamma_initializer=keras.initializers.Constant(gamma),
        max_timesteps=PIXELS if per_step else None,
        renorm=renorm,
        momentum=momentum,
        synchronized=synchronized,
        name="lstm",
    )


def pixel_metrics():
    """The mean over images of the cross-entropy, and the share given the wrong class."""
    return [
        keras.metrics.SparseCategoricalCrossentropy(from_logits=True, name="cross_entropy"),
        keras.metrics.MeanMetricWrapper(wrong_class, name="error"),
    ]


@keras.saving.register_keras_serializable(package="pixels")
def wrong_class(y_true, y_pred):
    """1 for each image whose likeliest class is another one."""
    chosen = keras.ops.argmax(y_pred, axis=-1)
    different = keras.ops.not_equal(keras.ops.cast(y_true, chosen.dtype), chosen)
    return keras.ops.cast(different, "float32")
