"""Layers of SavedModels, made for calls of few rows or frames.

There most of the time goes into the dispatch of operations, and little into arithmetic. So weights
are constants, and LSTMs run all frames as one operation, TensorFlow's `BlockLSTM`. It knows no
masks, so live frames go to the front. It keeps one core busy at best, and is slow where weights are
many: more rows take a loop, and large layers Keras's. `BlockLSTMV2`, with Keras's order of gates,
has that operation's gradient, which is wrong for it.
"""

import functools

import keras
import numpy as np
import tensorflow as tf

from keras_bnrnn.folding import remade
from keras_bnrnn.keras_internals import flattened_layers
from keras_bnrnn.recurrence.differentiated import FRAMES_PER_TURN
from keras_bnrnn.recurrence.lstm import LSTMEquations

MOST_WEIGHTS = 2**20
MANY_ROWS = MANY_FRAMES = 16
# Of Keras's LSTM, those that the kernel computes.
ACTIVATIONS = {"activation": "tanh", "recurrent_activation": "sigmoid"}


@keras.saving.register_keras_serializable(package="keras_bnrnn")
class FusedDense(keras.layers.Dense):
    """A `keras.layers.Dense` for inference."""

    constants = None

    def pack(self):
        self.constants = constants([self.kernel, self.bias] if self.use_bias else [self.kernel])

    def call(self, inputs, training=None):
        if self.constants is None:
            return super().call(inputs, training)
        kernel, *bias = self.constants()
        product = keras.ops.matmul(inputs, kernel)
        return self.activation(product + bias[0] if bias else product)


@keras.saving.register_keras_serializable(package="keras_bnrnn")
class FusedLSTM(keras.layers.LSTM):
    """A `keras.layers.LSTM` for inference.

    Attributes:
        over_time: from `[batch, time, features]` and the states to h and c of all frames, time
            first, once it is packed.
    """

    constants = over_time = None

    def pack(self):
        """Takes the weights as they are for constants, gates in the operation's order."""
        cell = self.cell
        kernel = np.concatenate([cell.kernel, cell.recurrent_kernel])
        bias = np.asarray(cell.bias) if cell.use_bias else np.zeros(4 * self.units, "float32")
        self.constants = constants(map(_swapped, (kernel, bias)))
        if self.constants is not None:
            state = tf.TensorSpec([None, self.units])
            given = [tf.TensorSpec([None, None, cell.kernel.shape[0]]), state, state]
            self.over_time = tf.function(self._over_time, given, autograph=False)

    def returning_states(self, small):
        """The packed layer, returning all outputs and its states; for small inputs alone or all."""
        options = {"return_sequences": True, "return_state": True, "unroll": False}
        copy = type(self).from_config({**self.get_config(), **options})
        copy.constants, copy.built = self.constants, True
        copy.over_time = self._as_one if small else self.over_time
        return copy

    def inner_loop(self, sequences, initial_state, mask, training=False):
        if self.over_time is None:
            return super().inner_loop(sequences, initial_state, mask, training)
        # Whole numbers, and masks of numbers or of a third axis, are as good as in Keras's loop.
        sequences = tf.cast(sequences, tf.float32)
        if mask is not None:
            mask = tf.cast(mask, tf.bool)
            mask = tf.squeeze(mask, 2) if len(mask.shape) == 3 else mask
        if self.go_backwards:
            sequences = tf.reverse(sequences, [1])
            mask = None if mask is None else tf.reverse(mask, [1])

        def unmasked():
            h, c = self.over_time(sequences, *initial_state)
            return h[-1], _batch_first(h), [h[-1], c[-1]]

        def masked():
            order = tf.argsort(tf.cast(mask, tf.int32), direction="DESCENDING", stable=True)
            live_first = tf.gather(sequences, order, batch_dims=1)
            h, c = self.over_time(live_first, *initial_state)
            counts = tf.cumsum(tf.cast(mask, tf.int32), axis=1)
            # As in Keras a frame that is masked repeats the output before, zeros at first.
            outputs = tf.pad(_batch_first(h), [[0, 0], [1, 0], [0, 0]])
            outputs = tf.gather(outputs, counts, batch_dims=1)
            if self.zero_output_for_mask:
                outputs = tf.where(mask[..., tf.newaxis], outputs, 0.0)
            last = tf.stack([counts[:, -1], tf.range(tf.shape(counts)[0])], axis=1)
            states = [
                tf.gather_nd(tf.concat([before[tf.newaxis], after], axis=0), last)
                for before, after in zip(initial_state, (h, c), strict=True)
            ]
            return outputs[:, -1], outputs, states

        return unmasked() if mask is None else tf.cond(tf.reduce_all(mask), unmasked, masked)

    def _over_time(self, *arguments):
        large = functools.partial(aside, self._in_loop, *arguments)
        return tf.cond(is_small(arguments[0]), lambda: self._as_one(*arguments), large)

    def _as_one(self, sequences, h, c):
        kernel, bias = self.constants()
        no_peephole = tf.zeros([self.units])
        found = tf.raw_ops.BlockLSTM(
            seq_len_max=tf.shape(sequences, tf.int64)[1],
            x=_batch_first(sequences),
            cs_prev=c,
            h_prev=h,
            w=kernel,
            wci=no_peephole,
            wcf=no_peephole,
            wco=no_peephole,
            b=bias,
            forget_bias=0.0,
            cell_clip=0.0,
            use_peephole=False,
        )
        return found.h, found.cs

    def _in_loop(self, sequences, h, c):
        kernel, bias = map(_swapped, self.constants())
        features = kernel.shape[0] - self.units
        z = tf.matmul(_batch_first(sequences), kernel[:features]) + bias
        equations = LSTMEquations([kernel[features:]])
        timesteps = tf.shape(z)[0]
        turns = (timesteps + FRAMES_PER_TURN - 1) // FRAMES_PER_TURN
        history = tf.TensorArray(tf.float32, turns * FRAMES_PER_TURN, element_shape=h.shape)

        def turn(time, states, histories):
            # The last frame again where there are fewer: a loop for them would cost file and load.
            for _ in range(FRAMES_PER_TURN):
                z_t = tf.gather(z, tf.minimum(time, timesteps - 1))
                states, _ = equations.forward(z_t, states)
                pairs = zip(histories, states, strict=True)
                histories = [one.write(time, state) for one, state in pairs]
                time += 1
            return time, states, histories

        *_, histories = tf.while_loop(
            lambda time, *_: time < timesteps, turn, (0, [h, c], [history, history])
        )
        return tuple(one.stack()[:timesteps] for one in histories)


def fused(model: keras.Model) -> keras.Model:
    """A copy of a functional model whose dense layers and LSTMs are fused where they can be."""
    copy = remade(model, _naming_fused(model.get_config()))
    for layer in flattened_layers(copy):
        if isinstance(layer, (FusedDense, FusedLSTM)):
            layer.pack()
    return copy


def is_small(inputs):
    """Whether `[batch, time, …]` is best run as one operation."""
    return (tf.shape(inputs)[0] < MANY_ROWS) | (tf.shape(inputs)[1] < MANY_FRAMES)


def constants(weights):
    """A function that has the weights as they are as constants; `None` where they are too many.

    All signatures call it, and so a SavedModel has them once.
    """
    values = [np.asarray(weight) for weight in weights]
    if sum(value.size for value in values) > MOST_WEIGHTS:
        return None
    return tf.function(lambda: [tf.constant(value) for value in values], [], autograph=False)


def aside(function, *arguments):
    """What a function returns, as a call in the graph.

    For the branch of a `tf.cond` that is taken less: TensorFlow visits each operation of the other
    branch too.
    """
    return tf.function(function, autograph=False, experimental_attributes={"_noinline": True})(
        *arguments
    )


def _naming_fused(config):
    if isinstance(config, (list, tuple)):
        return type(config)(map(_naming_fused, config))
    if not isinstance(config, dict):
        return config
    config = {key: _naming_fused(value) for key, value in config.items()}
    kind = config["class_name"] if config.get("module") == "keras.layers" else None
    if kind == "Dense" or (kind == "LSTM" and ACTIVATIONS.items() <= config["config"].items()):
        config["registered_name"] = f"keras_bnrnn>Fused{kind}"
    return config


def _swapped(weights):
    """The weights in the other order of gates, of Keras and of the operation."""
    i, f, g, o = tf.split(weights, 4, -1)
    return tf.concat([i, g, f, o], -1)


def _batch_first(values):
    """`[time, batch, …]` as `[batch, time, …]`, and the other way round."""
    return tf.transpose(values, [1, 0, 2])
