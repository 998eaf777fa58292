"""Batch-normalised recurrent layers: project all frames, normalise them, then recur.

The projection of the inputs depends on no hidden state, so it and its normalisation stand outside
the time loop: one matrix product for all frames, and a loop that does the recurrent term only.
"""

import warnings

import keras
import tensorflow as tf

from keras_bnrnn import docstrings
from keras_bnrnn.cells import (
    BatchNormGRUCell,
    BatchNormLSTMCell,
    BatchNormSimpleRNNCell,
    StandaloneCell,
    joined_signature,
    named_parameters,
)
from keras_bnrnn.keras_internals import autocast_scope
from keras_bnrnn.normalization import as_tensor
from keras_bnrnn.recurrence import cudnn
from keras_bnrnn.recurrence.routes import Call, run, swap_time_and_batch

# What a layer in keras.layers takes beside the arguments of its cell.
_LAYER_ARGUMENTS = {*named_parameters(keras.layers.RNN), "activity_regularizer", "use_cudnn"}

# Statistics of fewer rows are mostly noise; with two, every normalised value is -1 or 1.
ENOUGH_ROWS = 8


def _rolled(x, shift):
    """`[batch, time, …]`, each row's frames so many places later, the last ones in front."""
    time = tf.shape(x)[1]
    frames = tf.math.floormod(tf.range(time) - shift[:, tf.newaxis], time)
    rolled = tf.gather(x, frames, axis=1, batch_dims=1)
    rolled.set_shape(x.shape)
    return rolled


def _frame_mask(mask):
    """A mask `[batch, time]`, or with a last axis of 1 as Keras takes it too, as Boolean."""
    mask = tf.cast(mask, tf.bool)
    if len(mask.shape) == 2:
        return mask
    if len(mask.shape) != 3 or mask.shape[2] not in (1, None):
        raise ValueError(
            f"mask must have the shape [batch, time] or [batch, time, 1]. Received: {mask.shape}"
        )
    return tf.squeeze(mask, 2)


class BatchNormRNN(keras.layers.RNN):
    """What the batch-normalised layers share.

    A subclass names its `cell_class`, and takes the arguments of its namesake in `keras.layers`
    with their meanings and defaults, then those of the normalisation, by keyword.
    """

    cell_class = None
    cell_name = None

    def __init_subclass__(cls, namesake=None, **kwargs):
        super().__init_subclass__(**kwargs)
        if namesake is None:
            return  # A user's subclass, which inherits the rest.
        cls.plain_class = namesake
        own = cls.cell_class.normalization_parameters()
        own["normalization"] = own["normalization"].replace(default="sequence")
        cls.__signature__ = joined_signature(namesake, own)
        docstrings.complete(cls, docstrings.LAYER, namesake, cls.cell_class.has_cell_state)
        cls._cell_arguments = [
            name for name in [*named_parameters(namesake), *own] if name not in _LAYER_ARGUMENTS
        ]
        for name in cls._cell_arguments:
            setattr(cls, name, property(lambda self, name=name: getattr(self.cell, name)))

    def __init__(self, *args, **kwargs):
        bound = self.__signature__.bind(*args, **kwargs)
        bound.apply_defaults()
        arguments = {**bound.arguments.pop("kwargs"), **bound.arguments}
        cell_arguments = {
            name: arguments.pop(name)
            for name in [*self._cell_arguments, "implementation"]
            if name in arguments
        }
        cell = self.cell_class(
            in_layer=True,
            dtype=arguments.get("dtype"),
            trainable=arguments.get("trainable", True),
            name=self.cell_name,
            **cell_arguments,
        )
        if type(cell).call is not StandaloneCell.call:
            raise ValueError(
                f"{type(self).__name__} projects all frames at once and takes its cell's steps on "
                f"them, so the `call` that {type(cell).__name__} overrides would never run. "
                "Override `step` or `project_inputs` instead."
            )
        # A SimpleRNN has no such argument; then it is left for Keras to refuse.
        takes_use_cudnn = "use_cudnn" in self.__signature__.parameters
        use_cudnn = arguments.pop("use_cudnn") if takes_use_cudnn else False
        super().__init__(cell, **arguments)
        # Keras releases after 3.15 switch this off for RNN, and masks would stop here.
        self.supports_masking = True
        self.input_spec = keras.layers.InputSpec(ndim=3)
        self._warned_of_few_rows = False
        if takes_use_cudnn:
            if use_cudnn not in ("auto", True, False):
                raise ValueError(
                    f"use_cudnn must be one of 'auto', True, False. Received: {use_cudnn!r}"
                )
            self.use_cudnn = use_cudnn
            if use_cudnn in ("auto", True) and cudnn.available(cell, self.unroll):
                self.supports_jit = False  # As in Keras: XLA does not have the kernel.

    def _warn_of_few_rows(self, rows, training):
        """Warns, once, where each frame is normalised over too few rows, as far as is known."""
        if rows and self.synchronized:
            rows *= tf.distribute.get_strategy().num_replicas_in_sync
        if (
            rows
            and rows < ENOUGH_ROWS
            and not self.renorm
            and not self._warned_of_few_rows
            and self.cell.takes_frame_moments(training)
        ):
            self._warned_of_few_rows = True
            warnings.warn(
                f"Each time step is normalised over the {rows} rows of a batch. Statistics of "
                f"fewer than {ENOUGH_ROWS} rows are mostly noise. Use larger batches or "
                'renorm=True; for the inputs alone, normalization="sequence" helps too.',
                stacklevel=2,
            )

    def inner_loop(self, sequences, initial_state, mask, training=False):
        self._warn_of_few_rows(sequences.shape[0], training)
        # Wrappers such as TimeDistributed come here under a scope of their own, and a policy that
        # is set on a layer leaves its cell's, as in Keras. Keras casts what comes out.
        with autocast_scope(self.cell.compute_dtype):
            x = tf.cast(sequences, self.cell.compute_dtype)
            mask = None if mask is None else _frame_mask(tf.nest.flatten(mask)[0])
            passed = None
            if self.go_backwards:
                x = tf.reverse(x, [1])
                mask = None if mask is None else tf.reverse(mask, [1])
                if mask is not None and self.max_timesteps is not None:
                    # Step 0 is the first frame that a row really reads.
                    passed = tf.argmax(tf.cast(mask, tf.int32), 1, tf.int32)
                    x, mask = _rolled(x, -passed), _rolled(mask, -passed)
            x = swap_time_and_batch(x)
            states = [as_tensor(state) for state in keras.tree.flatten(initial_state)]
            if mask is not None:
                mask = swap_time_and_batch(mask)
                # Padding may hold anything, also what no weight of zero would cancel.
                x = tf.where(mask[..., tf.newaxis], x, tf.zeros_like(x))
            call = Call(
                training=training,
                all_outputs=self.return_sequences or passed is not None,
                zero_output_for_mask=self.zero_output_for_mask,
                unroll=self.unroll,
                go_backwards=self.go_backwards and passed is None,
                use_cudnn=getattr(self, "use_cudnn", False),
            )
            result = run(self.cell, self.cell.drop_inputs(x, training), states, mask, call)
            last_output = outputs = result.last_output
            if call.all_outputs:
                outputs = swap_time_and_batch(result.outputs)
            if passed is not None:
                outputs = _rolled(outputs, passed)
                read = tf.range(tf.shape(outputs)[1]) >= passed[:, tf.newaxis]
                outputs = tf.where(read[..., tf.newaxis], outputs, tf.zeros_like(outputs))
                last_output = outputs[:, -1]
        return last_output, outputs, result.states

    def get_config(self):
        config = super().get_config()
        del config["cell"]
        cell_config = self.cell.get_config()
        kept = [*self._cell_arguments, "frozen_normalizers"]
        own = {name: cell_config[name] for name in kept if name in cell_config}
        own["activity_regularizer"] = keras.regularizers.serialize(self.activity_regularizer)
        if hasattr(self, "use_cudnn"):
            own["use_cudnn"] = self.use_cudnn
        return {**config, **own}

    @classmethod
    def from_config(cls, config):
        config = dict(config)
        frozen = config.pop("frozen_normalizers", [])
        layer = cls(**config)
        layer.cell.frozen_normalizers = frozen
        return layer


@keras.saving.register_keras_serializable(package="keras_bnrnn")
class BatchNormSimpleRNN(BatchNormRNN, namesake=keras.layers.SimpleRNN):
    """Simple recurrent layer with batch normalisation of the inputs' path.

        h_t = tanh(BN(x_t W) + h_{t-1} U + bias)

    where BN(a) = gamma * (a - mean) / sqrt(variance + epsilon).
    """

    cell_class = BatchNormSimpleRNNCell
    cell_name = "simple_rnn_cell"


@keras.saving.register_keras_serializable(package="keras_bnrnn")
class BatchNormLSTM(BatchNormRNN, namesake=keras.layers.LSTM):
    """Long short-term memory with batch normalisation of the inputs' path.

        z_t = BN(x_t W) + h_{t-1} U + bias,   then Keras's LSTM equations on z_t

    where BN(a) = gamma * (a - mean) / sqrt(variance + epsilon).
    """

    cell_class = BatchNormLSTMCell
    cell_name = "lstm_cell"


@keras.saving.register_keras_serializable(package="keras_bnrnn")
class BatchNormGRU(BatchNormRNN, namesake=keras.layers.GRU):
    """Gated recurrent unit with batch normalisation of the inputs' path.

        z_t = BN(x_t W) + input bias,   then Keras's GRU equations with z_t for x_t W

    where BN(a) = gamma * (a - mean) / sqrt(variance + epsilon).
    """

    cell_class = BatchNormGRUCell
    cell_name = "gru_cell"
