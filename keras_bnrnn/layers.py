"""Batch-normalised recurrent layers: project all frames, normalise them, then recur.

The projection of the inputs depends on no hidden state, so it and its normalisation stand outside
the time loop: one matrix product for all frames, and a loop that does the recurrent term only.
"""

import keras
import tensorflow as tf

from keras_bnrnn.cells import (
    BatchNormGRUCell,
    BatchNormLSTMCell,
    BatchNormSimpleRNNCell,
    Frame,
    joined_signature,
    named_parameters,
)
from keras_bnrnn.keras_internals import autocast_scope
from keras_bnrnn.normalization import as_tensor
from keras_bnrnn.projection import project
from keras_bnrnn.recurrence import cudnn
from keras_bnrnn.recurrence.loop import scan

# What a layer in keras.layers takes beside the arguments of its cell.
_LAYER_ARGUMENTS = {*named_parameters(keras.layers.RNN), "activity_regularizer", "use_cudnn"}


def swap_time_and_batch(x):
    """`[batch, time, …]` as `[time, batch, …]`, and the other way round."""
    return tf.transpose(x, [1, 0, *range(2, x.shape.rank)])


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
        normalization = cell_arguments.pop("normalization")
        synchronized = cell_arguments.pop("synchronized")
        cell = self.cell_class(
            # To the cell, a layer's whole sequence comes as frames that are normalised already.
            normalization="frame" if normalization == "sequence" else normalization,
            dtype=arguments.get("dtype"),
            trainable=arguments.get("trainable", True),
            name=self.cell_name,
            **cell_arguments,
        )
        cell.join_layer(normalization, synchronized)
        # A SimpleRNN has no such argument; then it is left for Keras to refuse.
        takes_use_cudnn = "use_cudnn" in self.__signature__.parameters
        use_cudnn = arguments.pop("use_cudnn") if takes_use_cudnn else False
        super().__init__(cell, **arguments)
        # Keras releases after 3.15 switch this off for RNN, and masks would stop here.
        self.supports_masking = True
        self.input_spec = keras.layers.InputSpec(ndim=3)
        if takes_use_cudnn:
            if use_cudnn not in ("auto", True, False):
                raise ValueError(
                    f"use_cudnn must be one of 'auto', True, False. Received: {use_cudnn!r}"
                )
            self.use_cudnn = use_cudnn
            if use_cudnn in ("auto", True) and cudnn.available(cell, self.unroll):
                self.supports_jit = False  # As in Keras: XLA does not have the kernel.

    def inner_loop(self, sequences, initial_state, mask, training=False):
        # Wrappers such as TimeDistributed come here under a scope of their own.
        with autocast_scope(self.compute_dtype):
            return self._inner_loop(sequences, initial_state, mask, training)

    def _inner_loop(self, sequences, initial_state, mask, training):
        cell = self.cell
        x = tf.cast(sequences, self.compute_dtype)
        states = [as_tensor(state) for state in keras.tree.flatten(initial_state)]
        if mask is not None:
            mask = tf.cast(tf.nest.flatten(mask)[0], tf.bool)
            # Padding may hold anything, also what no weight of zero would cancel.
            x = tf.where(mask[..., tf.newaxis], x, tf.zeros_like(x))
        if self._takes_cudnn():
            outputs, states = self._cudnn(x, states, mask, training)
            last_output = outputs[:, -1]
        else:
            mask = None if mask is None else self._in_loop_order(mask)
            x = cell.drop_inputs(self._in_loop_order(x), training)
            loop = self._recur if cell.has_equations and not self.unroll else self._scan
            last_output, outputs, states = loop(x, states, mask, training)
            if self.return_sequences:
                outputs = swap_time_and_batch(outputs)
        return last_output, outputs if self.return_sequences else last_output, states

    def _in_loop_order(self, x):
        """`[batch, time, …]` as `[time, batch, …]`, reversed where the layer goes backwards."""
        x = swap_time_and_batch(x)
        return tf.reverse(x, [0]) if self.go_backwards else x

    def _from_loop_order(self, x):
        return swap_time_and_batch(tf.reverse(x, [0]) if self.go_backwards else x)

    def _takes_cudnn(self):
        use_cudnn = getattr(self, "use_cudnn", False)
        takes = (
            use_cudnn in ("auto", True)
            and not self.cell.loop_normalizers
            and not self.cell.recurrent_dropout
            and cudnn.available(self.cell, self.unroll)
        )
        if use_cudnn is True and not takes:
            self._refuse_cudnn()
        return takes

    def _refuse_cudnn(self):
        raise ValueError(
            "use_cudnn=True, but cuDNN cannot run this layer: it needs a GPU, Keras's default "
            "activations, reset_after=True for a GRU, no unroll, no recurrent_dropout, and no "
            "normalisation within the loop (normalize_recurrent, normalize_cell_state). Pass "
            "use_cudnn='auto' to fall back to the loop."
        )

    def _cudnn(self, x, states, mask, training):
        """The cuDNN kernel, which knows of no normalisation.

        Where that is one affine function for all frames, it is folded into the weights; else the
        kernel's inputs are z, projected and normalised already, and the identity its weights.
        """
        cell = self.cell
        loop_mask = None if mask is None else self._in_loop_order(mask)
        inputs = cell.drop_inputs(self._in_loop_order(x), training)
        folds = cell.folds_into_kernel(training) and not isinstance(inputs, list)
        if folds:
            x, kernel, bias = cell.fold_inputs(self._from_loop_order(inputs), mask, training)
        else:
            z = cell.project_inputs(inputs, loop_mask, training)
            if mask is not None:  # The kernel leaves gradients of padded frames undefined.
                z = tf.where(loop_mask[..., tf.newaxis], z, tf.zeros_like(z))
            x, kernel = self._from_loop_order(z), tf.eye(z.shape[-1], dtype=z.dtype)
            bias = tf.zeros_like(kernel[0])
        weights = [kernel, as_tensor(cell.recurrent_kernel), cell.whole_bias(bias)]

        def generic():
            projected = project(self._in_loop_order(x), kernel, bias) if folds else z
            outputs, final = cell.recur_projected(projected, states, loop_mask)
            return swap_time_and_batch(outputs), final

        outputs, states = cudnn.run_or_else(
            cell,
            x,
            states,
            mask,
            weights,
            self.go_backwards,
            generic,
            refused=self._refuse_cudnn if self.use_cudnn is True else generic,
        )
        if mask is not None:
            outputs = swap_time_and_batch(self._shown(swap_time_and_batch(outputs), loop_mask))
        return outputs, states

    def _recur(self, x, states, mask, training):
        """The fast loop, for cells that are plain within it."""
        outputs, states = self.cell.recur(x, states, mask, training, self.return_sequences)
        last_output = states[0]
        if mask is not None:
            last_output = self._shown(last_output, mask, last_only=True)
            outputs = self._shown(outputs, mask) if self.return_sequences else None
        return last_output, outputs, states

    def _shown(self, outputs, mask, time_axis=0, last_only=False):
        """What Keras shows of h, which our loops repeat in masked frames.

        It repeats the output, which is zero before the first live frame whatever the initial state,
        or has zeros in all masked frames.
        """
        shown = mask
        if not self.zero_output_for_mask:
            shown = tf.cumsum(tf.cast(mask, tf.int32), axis=time_axis) > 0
        if last_only:
            shown = tf.gather(shown, tf.shape(mask)[time_axis] - 1, axis=time_axis)
        return tf.where(shown[..., tf.newaxis], outputs, tf.zeros_like(outputs))

    def _scan(self, x, states, mask, training):
        """The general loop."""
        cell = self.cell
        result = scan(
            lambda z_t, states, mask_t, time: cell.step(z_t, states, Frame(mask_t, time, training)),
            cell.project_inputs(x, mask, training),
            states,
            mask,
            measured_specs=cell.measured_specs(training),
            zero_output_for_mask=self.zero_output_for_mask,
            all_outputs=self.return_sequences,
            unroll=self.unroll,
        )
        cell.update_statistics(result.measured, after=result.last_output)
        return result.last_output, result.outputs, result.states

    def get_config(self):
        config = super().get_config()
        del config["cell"]
        cell_config = self.cell.get_config()
        own = {name: cell_config[name] for name in self._cell_arguments}
        own.update(normalization=self.normalization, synchronized=self.synchronized)
        own["activity_regularizer"] = keras.regularizers.serialize(self.activity_regularizer)
        if hasattr(self, "use_cudnn"):
            own["use_cudnn"] = self.use_cudnn
        return {**config, **own}

    @classmethod
    def from_config(cls, config):
        return cls(**config)


@keras.saving.register_keras_serializable(package="keras_bnrnn")
class BatchNormSimpleRNN(BatchNormRNN, namesake=keras.layers.SimpleRNN):
    """Simple recurrent layer with batch normalisation of the inputs' path.

        h_t = tanh(BN(x_t W) + h_{t-1} U + bias)
        BN(a) = gamma * (a - mean) / sqrt(variance + epsilon)

    A drop-in for `keras.layers.SimpleRNN`: same arguments, defaults, weights (gamma and the
    population statistics follow them) and results but for the normalisation. In training mean and
    variance are those of the mini-batch's live frames, and masked frames never count, whatever they
    hold; at inference, or frozen, the population's are used, as in Keras's `BatchNormalization`.
    Laurent et al., "Batch normalized recurrent neural networks", 2016, section 3.

    Args:
        units: Size of the states and the output.
        activation, dropout, seed, …: Every other argument of `keras.layers.SimpleRNN`, with its
            meaning and default.
        normalization: Over which frames mean and variance are taken in training: `"sequence"`, all
            live frames of the mini-batch together; `"frame"`, each time step by itself, so that no
            frame learns of later ones; `None`, no normalisation of the inputs' path.
        normalize_recurrent: Whether `h U` is normalised too, step by step, with its own gamma.
        max_timesteps: `None` for one pair of population statistics, or N for a pair for each of the
            first N time steps (Cooijmans et al. 2016; not with `"sequence"`). The index starts
            from 0 at each call. A later step is normalised with the last pair and updates none.
        synchronized: Whether moments are taken over all replicas of a `tf.distribute` strategy.
        momentum: Share of the old value that a moving average keeps; one update per call.
        epsilon: Added to the variance.
        gamma_initializer, gamma_regularizer, gamma_constraint: Of the scales.
        moving_mean_initializer, moving_variance_initializer: Of the population statistics.

    Call arguments:
        sequences: `[batch, time, features]`.
        initial_state: List of h, `[batch, units]` (optional).
        mask: Boolean `[batch, time]`, `True` for live frames (optional).
        training: Whether to normalise with the mini-batch's moments and apply dropout.

    Returns:
        `[batch, units]`, or `[batch, time, units]` with `return_sequences=True`; followed by the
        final states with `return_state=True`.

    A frame (`"frame"`) or a call (`"sequence"`) with fewer than two live rows is normalised with
    the population statistics and leaves them alone.

    Raises:
        ValueError: If arguments cannot work together; the message says why.

    Example:

    >>> import keras, keras_bnrnn
    >>> layer = keras_bnrnn.BatchNormSimpleRNN(4, return_sequences=True)
    >>> layer(keras.ops.ones((2, 5, 3)), training=True).shape
    TensorShape([2, 5, 4])
    """

    cell_class = BatchNormSimpleRNNCell
    cell_name = "simple_rnn_cell"


@keras.saving.register_keras_serializable(package="keras_bnrnn")
class BatchNormLSTM(BatchNormRNN, namesake=keras.layers.LSTM):
    """Long short-term memory with batch normalisation of the inputs' path.

        z_t = BN(x_t W) + h_{t-1} U + bias,   then Keras's LSTM equations on z_t
        BN(a) = gamma * (a - mean) / sqrt(variance + epsilon)

    A drop-in for `keras.layers.LSTM`: same arguments, defaults, weights (gamma and the population
    statistics follow them) and results but for the normalisation. In training mean and variance are
    those of the mini-batch's live frames, masked frames never count, whatever they hold; at
    inference, or frozen, the population's are used, as in Keras's `BatchNormalization`.
    Laurent et al., "Batch normalized recurrent neural networks", 2016, section 3.

    Args:
        units: Size of the states and the output.
        activation, dropout, use_cudnn, …: Every other argument of `keras.layers.LSTM`, with its
            meaning and default.
        normalization: Over which frames mean and variance are taken in training: `"sequence"`, all
            live frames of the mini-batch together; `"frame"`, each time step by itself, so that no
            frame learns of later ones; `None`, no normalisation of the inputs' path.
        normalize_recurrent: Whether `h U` is normalised too, step by step, with its own gamma.
        normalize_cell_state: Whether the cell state is normalised on its way to the output,
            `h_t = o_t * tanh(BN(c_t))`, step by step, with a gamma and a beta of its own.
        max_timesteps: `None` for one pair of population statistics, or N for a pair for each of the
            first N time steps (Cooijmans et al. 2016; not with `"sequence"`). The index starts
            from 0 at each call. A later step is normalised with the last pair and updates none.
        synchronized: Whether moments are taken over all replicas of a `tf.distribute` strategy.
        momentum: Share of the old value that a moving average keeps; one update per call.
        epsilon: Added to the variance.
        gamma_initializer, gamma_regularizer, gamma_constraint: Of the scales.
        moving_mean_initializer, moving_variance_initializer: Of the population statistics.

    Call arguments:
        sequences: `[batch, time, features]`.
        initial_state: List of h and c, `[batch, units]` each (optional).
        mask: Boolean `[batch, time]`, `True` for live frames (optional).
        training: Whether to normalise with the mini-batch's moments and apply dropout.

    Returns:
        `[batch, units]`, or `[batch, time, units]` with `return_sequences=True`; followed by the
        final states with `return_state=True`.

    A frame (`"frame"`) or a call (`"sequence"`) with fewer than two live rows is normalised with
    the population statistics and leaves them alone.

    Raises:
        ValueError: If arguments cannot work together; the message says why.

    Example:

    >>> import keras, keras_bnrnn
    >>> layer = keras_bnrnn.BatchNormLSTM(4, return_sequences=True)
    >>> layer(keras.ops.ones((2, 5, 3)), training=True).shape
    TensorShape([2, 5, 4])
    """

    cell_class = BatchNormLSTMCell
    cell_name = "lstm_cell"


@keras.saving.register_keras_serializable(package="keras_bnrnn")
class BatchNormGRU(BatchNormRNN, namesake=keras.layers.GRU):
    """Gated recurrent unit with batch normalisation of the inputs' path.

        z_t = BN(x_t W) + input bias,   then Keras's GRU equations with z_t for x_t W
        BN(a) = gamma * (a - mean) / sqrt(variance + epsilon)

    A drop-in for `keras.layers.GRU`: same arguments, defaults, weights (gamma and the population
    statistics follow them) and results but for the normalisation. In training mean and variance are
    those of the mini-batch's live frames, masked frames never count, whatever they hold; at
    inference, or frozen, the population's are used, as in Keras's `BatchNormalization`.
    Laurent et al., "Batch normalized recurrent neural networks", 2016, section 3.

    Args:
        units: Size of the states and the output.
        activation, dropout, use_cudnn, …: Every other argument of `keras.layers.GRU`, with its
            meaning and default.
        normalization: Over which frames mean and variance are taken in training: `"sequence"`, all
            live frames of the mini-batch together; `"frame"`, each time step by itself, so that no
            frame learns of later ones; `None`, no normalisation of the inputs' path.
        normalize_recurrent: Whether `h U` is normalised too, step by step, with its own gamma.
        max_timesteps: `None` for one pair of population statistics, or N for a pair for each of the
            first N time steps (Cooijmans et al. 2016; not with `"sequence"`). The index starts
            from 0 at each call. A later step is normalised with the last pair and updates none.
        synchronized: Whether moments are taken over all replicas of a `tf.distribute` strategy.
        momentum: Share of the old value that a moving average keeps; one update per call.
        epsilon: Added to the variance.
        gamma_initializer, gamma_regularizer, gamma_constraint: Of the scales.
        moving_mean_initializer, moving_variance_initializer: Of the population statistics.

    Call arguments:
        sequences: `[batch, time, features]`.
        initial_state: List of h, `[batch, units]` (optional).
        mask: Boolean `[batch, time]`, `True` for live frames (optional).
        training: Whether to normalise with the mini-batch's moments and apply dropout.

    Returns:
        `[batch, units]`, or `[batch, time, units]` with `return_sequences=True`; followed by the
        final states with `return_state=True`.

    A frame (`"frame"`) or a call (`"sequence"`) with fewer than two live rows is normalised with
    the population statistics and leaves them alone.

    Raises:
        ValueError: If arguments cannot work together; the message says why.

    Example:

    >>> import keras, keras_bnrnn
    >>> layer = keras_bnrnn.BatchNormGRU(4, return_sequences=True)
    >>> layer(keras.ops.ones((2, 5, 3)), training=True).shape
    TensorShape([2, 5, 4])
    """

    cell_class = BatchNormGRUCell
    cell_name = "gru_cell"
