"""LSTM layers that TensorFlow runs as one operation, for SavedModels.

Where batches and layers are small, a loop over time costs more in dispatched operations than in
arithmetic. TensorFlow's kernel `BlockLSTM` runs all frames at once. It knows no masks, so live
frames go to the front. Its product is slow where weights are many: such layers keep Keras's loop.
`BlockLSTMV2`, with Keras's order of gates, has that operation's gradient, which is wrong for it.
"""

import keras
import numpy as np
import tensorflow as tf

from keras_bnrnn.folding import remade
from keras_bnrnn.keras_internals import flattened_layers

MOST_WEIGHTS = 2**20
# Of Keras's LSTM, those that the kernel computes.
ACTIVATIONS = {"activation": "tanh", "recurrent_activation": "sigmoid"}


@keras.saving.register_keras_serializable(package="keras_bnrnn")
class FusedLSTM(keras.layers.LSTM):
    """A `keras.layers.LSTM` for inference: one operation, once it is packed."""

    packed = None

    def pack(self):
        """Takes the weights as they are for constants, unless they are too many.

        They stand in a function that all signatures call, and so once in a SavedModel.
        """
        cell, units = self.cell, self.units
        kernel = np.concatenate([cell.kernel, cell.recurrent_kernel])
        bias = np.asarray(cell.bias) if cell.use_bias else np.zeros(4 * units, "float32")
        no_peephole = np.zeros(units, "float32")
        if kernel.size > MOST_WEIGHTS:
            return
        # From input, forget, candidate, output to the operation's order of gates.
        order = np.arange(4 * units).reshape([4, units])[[0, 2, 1, 3]].ravel()
        kernel, bias = kernel[:, order], bias[order]

        def over_time(sequences, h, c):
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

        state = tf.TensorSpec([None, units])
        frames = tf.TensorSpec([None, None, cell.kernel.shape[0]])
        self.packed = tf.function(over_time, [frames, state, state], autograph=False)

    def returning_states(self):
        """A packed layer that returns all outputs and its states."""
        options = {"return_sequences": True, "return_state": True}
        copy = type(self).from_config({**self.get_config(), **options})
        copy.packed, copy.built = self.packed, True
        return copy

    def inner_loop(self, sequences, initial_state, mask, training=False):
        if self.packed is None:
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
            h, c = self.packed(sequences, *initial_state)
            return _batch_first(h), h[-1], c[-1]

        def masked():
            order = tf.argsort(tf.cast(mask, tf.int32), direction="DESCENDING", stable=True)
            live_first = tf.gather(sequences, order, batch_dims=1)
            h, c = self.packed(live_first, *initial_state)
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
            return outputs, *states

        if mask is None:
            outputs, *states = unmasked()
        else:
            outputs, *states = tf.cond(tf.reduce_all(mask), unmasked, masked)
        return outputs[:, -1], outputs, states


def fused(model: keras.Model) -> keras.Model:
    """A copy of a functional model whose LSTMs are fused where they can be."""
    copy = remade(model, _naming_fused(model.get_config()))
    for layer in flattened_layers(copy):
        if isinstance(layer, FusedLSTM):
            layer.pack()
    return copy


def _naming_fused(config):
    if isinstance(config, (list, tuple)):
        return type(config)(map(_naming_fused, config))
    if not isinstance(config, dict):
        return config
    config = {key: _naming_fused(value) for key, value in config.items()}
    plain = config.get("class_name") == "LSTM" and config["module"] == "keras.layers"
    if plain and ACTIVATIONS.items() <= config["config"].items():
        config["registered_name"] = "keras_bnrnn>FusedLSTM"
    return config


def _batch_first(values):
    """`[time, batch, …]` as `[batch, time, …]`, and the other way round."""
    return tf.transpose(values, [1, 0, 2])
