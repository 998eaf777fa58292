"""The acoustic model: stacked (bidirectional) LSTMs that give each frame a score per state."""

import keras

import keras_bnrnn
from keras_bnrnn.data import sequence_mask
from keras_bnrnn.fit.precision import scaled
from keras_bnrnn.losses import FrameMeanCrossEntropy
from keras_bnrnn.metrics import FrameCrossEntropy, FrameErrorRate

CELLS = {
    "lstm": (keras.layers.LSTM, keras_bnrnn.BatchNormLSTM),
    "gru": (keras.layers.GRU, keras_bnrnn.BatchNormGRU),
}


def build_speech_model(
    dimension,
    num_states,
    *,
    normalized,
    layers,
    units,
    bidirectional=True,
    renorm=False,
    momentum=0.9,
    synchronized=False,
):
    """Builds the model of the paper's speech experiments, plain or batch-normalised.

    Args:
        dimension: features per frame.
        num_states: states of the triphones, the classes.
        normalized: whether the recurrent layers are `BatchNormLSTM` (normalised over all frames of
            the mini-batch) or `keras.layers.LSTM`; the models differ in nothing else.
        layers: recurrent layers.
        units: of each layer and direction.
        bidirectional: `False` for a model that hears no later frames.
        renorm: whether training normalises with what inference does (batch renormalisation); the
            plain model has no normalisation.
        momentum: of the population statistics; the plain model has none.
        synchronized: whether moments are taken over all replicas.

    Returns:
        A `keras.Model` from `{"features": [batch, time, dimension], "lengths": [batch]}` to logits
        `[batch, time, num_states]` (float32).
    """
    features = keras.Input((None, dimension), name="features")
    lengths = keras.Input((), dtype="int32", name="lengths")
    mask = sequence_mask(features, lengths)
    values = recurrent_layers(
        features,
        mask,
        normalized=normalized,
        layers=layers,
        units=units,
        bidirectional=bidirectional,
        renorm=renorm,
        momentum=momentum,
        synchronized=synchronized,
    )
    logits = keras.layers.Dense(num_states, dtype="float32", name="logits")(values)
    return keras.Model({"features": features, "lengths": lengths}, logits, name="speech_model")


def recurrent_layers(
    values, mask, *, normalized, layers, units, bidirectional=True, cell="lstm", **normalization
):
    """The stack of recurrent layers, plain or batch-normalised.

    Args:
        values: `[batch, time, features]`.
        mask: `[batch, time]`.
        normalized, layers, units, bidirectional: as for `build_speech_model`.
        cell: one of `CELLS`.
        **normalization: arguments of the normalised layers, of which the plain ones know nothing.

    Returns:
        `[batch, time, units]`, of both directions `2 * units`.
    """
    plain, batch_norm = CELLS[cell]
    for index in range(1, layers + 1):
        arguments = {"return_sequences": True, "name": f"{cell}_{index}"}
        if normalized:
            layer = batch_norm(units, **arguments, **normalization)
        else:
            layer = plain(units, **arguments)
        if bidirectional:
            layer = keras_bnrnn.Bidirectional(layer, name=f"bidirectional_{index}")
        values = layer(values, mask=mask)
    return values


def with_lengths(model):
    """A model with lengths: one from before they came in knows padding by its zeros."""
    if len(model.inputs) > 1:
        return model
    lengths = keras.Input((), dtype="int32", name="lengths")
    return keras.Model({model.input.name: model.input, "lengths": lengths}, model.output)


def compile_speech_model(model, learning_rate, **options):
    """Compiles with Adam on the cross-entropy per live frame, and the metrics `fce` and `fer`.

    Args:
        model: from features to logits.
        learning_rate: of Adam.
        **options: more arguments of `model.compile`.
    """
    model.compile(
        scaled(keras.optimizers.Adam(learning_rate)),
        FrameMeanCrossEntropy(from_logits=True),
        weighted_metrics=speech_metrics(),
        **options,
    )


def speech_metrics():
    """Fresh metrics over live frames: cross-entropy in nats, and the share of wrong states."""
    return [FrameCrossEntropy(from_logits=True), FrameErrorRate()]
