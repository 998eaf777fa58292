"""Batch-normalised recurrent layers: project all frames, normalise them, then recur.

The projection of the inputs depends on no hidden state, so it and its normalisation stand outside
the time loop: one matrix product for all frames, and a loop that does the recurrent term only.
"""

import inspect

import keras
import tensorflow as tf

from keras_bnrnn.cells import (
    BatchNormCell,
    BatchNormGRUCell,
    BatchNormLSTMCell,
    BatchNormSimpleRNNCell,
    Frame,
)
from keras_bnrnn.recurrence.loop import scan


def _named_parameters(function):
    return {
        name: parameter
        for name, parameter in inspect.signature(function).parameters.items()
        if name != "self"
        and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    }


# What a layer in keras.layers takes beside the arguments of its cell.
_LAYER_ARGUMENTS = {*_named_parameters(keras.layers.RNN), "activity_regularizer", "use_cudnn"}


class BatchNormRNN(keras.layers.RNN):
    """What the batch-normalised layers share.

    A subclass names its `cell_class`, and takes the arguments of its namesake in `keras.layers`
    with their meanings and defaults, then those of the normalisation, by keyword.
    """

    cell_class = None

    def __init_subclass__(cls, namesake, **kwargs):
        super().__init_subclass__(**kwargs)
        cls.plain_class = namesake
        normalization = _named_parameters(BatchNormCell)
        del normalization["units"]
        normalization["normalization"] = normalization["normalization"].replace(default="sequence")
        if not cls.cell_class.has_cell_state:
            del normalization["normalize_cell_state"]
        arguments = _named_parameters(namesake)
        cls._cell_arguments = [
            name for name in [*arguments, *normalization] if name not in _LAYER_ARGUMENTS
        ]
        rest = inspect.Parameter("kwargs", inspect.Parameter.VAR_KEYWORD)
        cls.__signature__ = inspect.Signature(
            [
                *arguments.values(),
                *(
                    parameter.replace(kind=parameter.KEYWORD_ONLY)
                    for parameter in normalization.values()
                ),
                rest,
            ]
        )
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
        normalization = cell_arguments.pop("normalization")
        synchronized = cell_arguments.pop("synchronized")
        cell = self.cell_class(
            # To the cell, a layer's whole sequence comes as frames that are normalised already.
            normalization="frame" if normalization == "sequence" else normalization,
            dtype=arguments.get("dtype"),
            trainable=arguments.get("trainable", True),
            **cell_arguments,
        )
        cell.join_layer(normalization, synchronized)
        use_cudnn = arguments.pop("use_cudnn", False)
        super().__init__(cell, **arguments)
        # Keras releases after 3.15 switch this off for RNN, and masks would stop here.
        self.supports_masking = True
        self.input_spec = keras.layers.InputSpec(ndim=3)
        if use_cudnn not in ("auto", True, False):
            raise ValueError(
                f"use_cudnn must be one of 'auto', True, False. Received: {use_cudnn!r}"
            )
        self.use_cudnn = use_cudnn

    def inner_loop(self, sequences, initial_state, mask, training=False):
        cell = self.cell
        x = tf.transpose(sequences, [1, 0, 2])
        if mask is not None:
            mask = tf.transpose(tf.cast(tf.nest.flatten(mask)[0], tf.bool))
        if self.go_backwards:
            x = tf.reverse(x, [0])
            mask = None if mask is None else tf.reverse(mask, [0])
        if mask is not None:
            # Padding may hold anything, also what no weight of zero would cancel.
            x = tf.where(mask[..., tf.newaxis], x, tf.zeros_like(x))
        z = cell.project_inputs(cell.drop_inputs(x, training), mask, training)

        result = scan(
            lambda z_t, states, mask_t, time: cell.step(z_t, states, Frame(mask_t, time, training)),
            z,
            keras.tree.flatten(initial_state),
            mask,
            measured_specs=cell.measured_specs(training),
            zero_output_for_mask=self.zero_output_for_mask,
            all_outputs=self.return_sequences,
            unroll=self.unroll,
        )
        cell.update_statistics(result.measured)
        outputs = result.last_output
        if self.return_sequences:
            outputs = tf.transpose(result.outputs, [1, 0, 2])
        return result.last_output, outputs, result.states

    def get_config(self):
        config = super().get_config()
        del config["cell"]
        cell_config = self.cell.get_config()
        own = {name: cell_config[name] for name in self._cell_arguments}
        own["activity_regularizer"] = keras.regularizers.serialize(self.activity_regularizer)
        return {**config, **own}

    @classmethod
    def from_config(cls, config):
        return cls(**config)


@keras.saving.register_keras_serializable(package="keras_bnrnn")
class BatchNormSimpleRNN(BatchNormRNN, namesake=keras.layers.SimpleRNN):
    cell_class = BatchNormSimpleRNNCell


@keras.saving.register_keras_serializable(package="keras_bnrnn")
class BatchNormLSTM(BatchNormRNN, namesake=keras.layers.LSTM):
    cell_class = BatchNormLSTMCell


@keras.saving.register_keras_serializable(package="keras_bnrnn")
class BatchNormGRU(BatchNormRNN, namesake=keras.layers.GRU):
    cell_class = BatchNormGRUCell
