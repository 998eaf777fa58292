"""The word-level language models of Zaremba et al. 2014, plain or batch-normalised.

"Recurrent neural network regularization" (arXiv 1409.2329), section 4.1, gives the three recipes.
The model is an embedding, two stateful LSTM layers and a linear layer to one logit per word, with
dropout (of the recipes that have any) on the connections between them and never inside the
recurrence. The batch-normalised model differs in the recurrent layers alone.
"""

import dataclasses

import keras

import keras_bnrnn
from keras_bnrnn.fit.precision import scaled
from keras_bnrnn.losses import FrameMeanCrossEntropy
from keras_bnrnn.metrics import Perplexity


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Sizes and schedule of one of the paper's models.

    Attributes:
        units: features of the embedding and of each of the two LSTM layers.
        timesteps: steps of a window, through which gradients flow.
        dropout: rate on the non-recurrent connections.
        init_scale: every weight starts uniform in plus or minus this.
        clip_norm: bound of the gradient's global norm.
        constant_epochs: epochs at the initial learning rate; after them it is divided by
            `decay` before each epoch.
        epochs: length of the training.
        batch_size: parallel streams.
        learning_rate: of the first epochs, of plain SGD.
    """

    units: int
    timesteps: int
    dropout: float
    init_scale: float
    clip_norm: float
    constant_epochs: int
    decay: float
    epochs: int
    batch_size: int = 20
    learning_rate: float = 1.0

    def learning_rate_of(self, epoch):
        """The learning rate of an epoch, counted from 0."""
        decays = max(epoch + 1 - self.constant_epochs, 0)
        return self.learning_rate / self.decay**decays


RECIPES = {
    "small": Recipe(
        units=200,
        timesteps=20,
        dropout=0.0,
        init_scale=0.1,
        clip_norm=5.0,
        constant_epochs=4,
        decay=2.0,
        epochs=13,
    ),
    "medium": Recipe(
        units=650,
        timesteps=35,
        dropout=0.5,
        init_scale=0.05,
        clip_norm=5.0,
        constant_epochs=6,
        decay=1.2,
        epochs=39,
    ),
    "large": Recipe(
        units=1500,
        timesteps=35,
        dropout=0.65,
        init_scale=0.04,
        clip_norm=10.0,
        constant_epochs=14,
        decay=1.15,
        epochs=55,
    ),
}


def build_language_model(
    recipe,
    vocabulary_size,
    normalized,
    *,
    normalization="frame",
    normalize_recurrent=False,
    renorm=False,
    gamma=1.0,
    momentum=0.9,
    synchronized=False,
    replicas=1,
    **options,
):
    """Builds and compiles a language model; call it in the scope of the strategy.

    Args:
        recipe: a `Recipe`.
        vocabulary_size: number of words.
        normalized: whether the recurrent layers are `BatchNormLSTM` or `keras.layers.LSTM`, for
            which the next six arguments are unused.
        normalization: `"frame"`, each time step by itself, so that no later word enters the
            prediction of an earlier one; or `"sequence"`, over the whole window, where it does.
        normalize_recurrent: whether the recurrent term is normalised too.
        renorm: whether training normalises with what inference does (batch renormalisation).
        gamma: initial value of every gamma.
        momentum: of the population statistics.
        synchronized: whether moments are taken over all replicas.
        replicas: over how many the strategy divides the batch.
        **options: more arguments of `model.compile`.

    Returns:
        A compiled `keras.Model` from tokens `[batch, time]` to logits `[batch, time, words]`, which
        carries its states from call to call. The batch is a replica's: `batch_size / replicas`.
    """

    def uniform():
        # One object per weight: the same object gives the same values each time it is asked.
        return keras.initializers.RandomUniform(-recipe.init_scale, recipe.init_scale)

    def recurrent_layer(index):
        arguments = {
            "return_sequences": True,
            "stateful": True,
            "kernel_initializer": uniform(),
            "recurrent_initializer": uniform(),
            "bias_initializer": uniform(),
            "unit_forget_bias": False,
            "name": f"lstm_{index}",
        }
        if normalized:
            return keras_bnrnn.BatchNormLSTM(
                recipe.units,
                **arguments,
                normalization=normalization,
                normalize_recurrent=normalize_recurrent,
                renorm=renorm,
                gamma_initializer=keras.initializers.Constant(gamma),
                momentum=momentum,
                synchronized=synchronized,
            )
        return keras.layers.LSTM(recipe.units, **arguments)

    def dropout(values):
        return keras.layers.Dropout(recipe.dropout)(values) if recipe.dropout else values

    tokens = keras.Input(batch_shape=(recipe.batch_size // replicas, None), dtype="int32")
    values = keras.layers.Embedding(
        vocabulary_size, recipe.units, embeddings_initializer=uniform(), name="embedding"
    )(tokens)
    for index in (1, 2):
        values = recurrent_layer(index)(dropout(values))
    logits = keras.layers.Dense(
        vocabulary_size,
        kernel_initializer=uniform(),
        bias_initializer=uniform(),
        dtype="float32",
        name="logits",
    )(dropout(values))
    model = keras.Model(tokens, logits, name="language_model")

    model.compile(
        optimizer=scaled(
            keras.optimizers.SGD(recipe.learning_rate, global_clipnorm=recipe.clip_norm)
        ),
        # The paper's loss is -sum(log p) over the steps of the window, averaged over the streams
        # alone. Ours is the mean over streams and steps, so `timesteps` times ours is the paper's:
        # gradients have the paper's size when they meet the clipping bound and the learning rate.
        loss=FrameMeanCrossEntropy(from_logits=True),
        loss_weights=[float(recipe.timesteps)],
        weighted_metrics=language_metrics(),
        **options,
    )
    return model


def language_metrics():
    """Fresh metrics: the perplexity per word."""
    return [Perplexity(from_logits=True)]


class ResetStates(keras.callbacks.Callback):
    """Starts every epoch and every evaluation at zero states, and leaves none of them behind."""

    def on_epoch_begin(self, epoch, logs=None):
        reset_states(self.model)

    def on_test_begin(self, logs=None):
        reset_states(self.model)

    def on_test_end(self, logs=None):
        reset_states(self.model)


def reset_states(model):
    """Sets the carried states of every stateful layer to zero."""
    for layer in model.layers:
        if getattr(layer, "stateful", False):
            layer.reset_state()
