"""The model that writes text: a convolution, recurrent layers, and a score per character."""

import keras

from keras_bnrnn.ctc import NEVER
from keras_bnrnn.data.masks import FillPadding, sequence_mask
from keras_bnrnn.fit.precision import scaled
from keras_bnrnn.losses import UtteranceMeanCTC
from keras_bnrnn.metrics import CharacterErrorRate, UtteranceCTC, WordErrorRate
from recipes.speech_model import recurrent_layers

MOST_REDUCED = 8


def build_ctc_model(dimension, num_classes, *, reduction, units, **stack):
    """Builds a model for connectionist temporal classification.

    The front end convolves each `reduction` frames to one; an utterance's last ones are completed
    by zeros, as if it were alone.

    Args:
        dimension: features per frame.
        num_classes: characters, and the blank before them.
        reduction: how many frames become one.
        units: filters of the front end, and units of each recurrent layer and direction.
        **stack: of `recurrent_layers`.

    Returns:
        A `keras.Model` from `{"features": [batch, time, dimension], "lengths": [batch]}` to logits
        `[batch, ceil(time / reduction), num_classes]` (float32), sure of the blank in the padding.
    """
    features = keras.Input((None, dimension), name="features")
    lengths = keras.Input((), dtype="int32", name="lengths")
    values = FillPadding()(features, sequence_mask(features, lengths))
    values = keras.layers.ZeroPadding1D((0, reduction - 1))(values)
    values = keras.layers.Conv1D(
        units, reduction, strides=reduction, activation="relu", name="front_end"
    )(values)
    mask = sequence_mask(values, reduced(lengths, reduction))
    values = recurrent_layers(values, mask, units=units, **stack)
    logits = keras.layers.Dense(num_classes, dtype="float32", name="logits")(values)
    blank = [0.0] + [NEVER] * (num_classes - 1)
    logits = FillPadding(blank, dtype="float32", name="blank_padding")(logits, mask)
    return keras.Model({"features": features, "lengths": lengths}, logits, name="ctc_model")


def reduced(frames, reduction):
    """How many frames there are behind the front end."""
    return (frames + reduction - 1) // reduction


def compile_ctc_model(model, learning_rate, alphabet, **options):
    """Compiles with Adam on the loss per utterance, and the metrics `cer`, `wer` and `ctc_loss`.

    Args:
        model: from features to logits.
        learning_rate: of Adam, with gradients clipped to a norm of 5.
        alphabet: the characters of the classes from 1.
        **options: more arguments of `model.compile`.
    """
    model.compile(
        scaled(keras.optimizers.Adam(learning_rate, global_clipnorm=5.0)),
        UtteranceMeanCTC(),
        weighted_metrics=ctc_metrics(alphabet),
        **options,
    )


def ctc_metrics(alphabet):
    """Fresh metrics over utterances: error rates of characters and words, and the loss."""
    return [CharacterErrorRate(alphabet), WordErrorRate(alphabet), UtteranceCTC()]
