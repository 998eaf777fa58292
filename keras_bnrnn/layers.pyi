# Written by tests/stubs.py from the signatures and docstrings at run time.

from typing import Any, Literal

import keras

from keras_bnrnn.cells import _Activation, _Constraint, _Initializer, _Regularizer

class BatchNormRNN(keras.layers.RNN):
    def __getattr__(self, name: str) -> Any: ...

class BatchNormSimpleRNN(BatchNormRNN):
    """Simple recurrent layer with batch normalisation of the inputs' path.

        h_t = tanh(BN(x_t W) + h_{t-1} U + bias)

    where BN(a) = gamma * (a - mean) / sqrt(variance + epsilon).
    Laurent et al., "Batch normalized recurrent neural networks", 2016, section 3.

    A drop-in for `keras.layers.SimpleRNN`: same arguments, defaults, weights (gamma and the
    population statistics follow them) and results but for the normalisation. Training takes mean
    and variance of the mini-batch's live frames; masked frames never count, whatever they hold. At
    inference, or frozen, the layer uses the population's, as Keras's `BatchNormalization` does.

    Args:
        units: Size of the states and the output.
        activation, dropout, return_sequences, …: Every other argument of
            `keras.layers.SimpleRNN`, with its meaning and default.
        normalization: Over which frames mean and variance are taken in training: `"sequence"`, all
            live frames of the mini-batch together; `"frame"`, each time step by itself, so that no
            frame learns of later ones; `None`, no normalisation of the inputs' path.
        synchronized: Whether moments are taken over all replicas of a `tf.distribute` strategy.
        normalize_recurrent: Whether `h U` is normalised too, step by step, with a gamma of its own.
        max_timesteps: `None` for one pair of population statistics, or N for a pair for each of the
            first N time steps, of whatever is normalised step by step (Cooijmans et al. 2016). A
            later step is normalised with the last pair and updates none.
        renorm: Whether training normalises with the population's statistics, as inference does, and
            only the gradient is taken through the mini-batch's moments (batch renormalisation,
            Ioffe 2017). These statistics are plain averages until `momentum` is reached.
        renorm_clipping: `None`, or bounds of renormalisation's corrections, which draw it towards
            plain normalisation: a dictionary with any of `"rmin"`, `"rmax"`, `"dmax"`, as in
            `keras.layers.BatchNormalization` (whose second set of statistics there is not here).
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
    the population statistics and leaves them alone. The time steps of `max_timesteps` are counted
    from 0 at each call, and with `go_backwards` from each row's last live frame.

    Raises:
        ValueError: If arguments cannot work together; the message says why.

    Example:

    >>> import keras, keras_bnrnn
    >>> layer = keras_bnrnn.BatchNormSimpleRNN(4, return_sequences=True)
    >>> layer(keras.ops.ones((2, 5, 3)), training=True).shape
    TensorShape([2, 5, 4])
    """

    def __init__(
        self,
        units: int,
        activation: _Activation = "tanh",
        use_bias: bool = True,
        kernel_initializer: _Initializer = "glorot_uniform",
        recurrent_initializer: _Initializer = "orthogonal",
        bias_initializer: _Initializer = "zeros",
        kernel_regularizer: _Regularizer = None,
        recurrent_regularizer: _Regularizer = None,
        bias_regularizer: _Regularizer = None,
        activity_regularizer: _Regularizer = None,
        kernel_constraint: _Constraint = None,
        recurrent_constraint: _Constraint = None,
        bias_constraint: _Constraint = None,
        dropout: float = 0.0,
        recurrent_dropout: float = 0.0,
        return_sequences: bool = False,
        return_state: bool = False,
        go_backwards: bool = False,
        stateful: bool = False,
        unroll: bool = False,
        seed: int | keras.random.SeedGenerator | None = None,
        *,
        normalization: Literal["sequence", "frame"] | None = "sequence",
        normalize_recurrent: bool = False,
        max_timesteps: int | None = None,
        renorm: bool = False,
        renorm_clipping: dict[str, float] | None = None,
        synchronized: bool = False,
        momentum: float = 0.99,
        epsilon: float = 1e-05,
        gamma_initializer: _Initializer = "ones",
        gamma_regularizer: _Regularizer = None,
        gamma_constraint: _Constraint = None,
        moving_mean_initializer: _Initializer = "zeros",
        moving_variance_initializer: _Initializer = "ones",
        **kwargs: Any,
    ) -> None: ...

class BatchNormLSTM(BatchNormRNN):
    """Long short-term memory with batch normalisation of the inputs' path.

        z_t = BN(x_t W) + h_{t-1} U + bias,   then Keras's LSTM equations on z_t

    where BN(a) = gamma * (a - mean) / sqrt(variance + epsilon).
    Laurent et al., "Batch normalized recurrent neural networks", 2016, section 3.

    A drop-in for `keras.layers.LSTM`: same arguments, defaults, weights (gamma and the
    population statistics follow them) and results but for the normalisation. Training takes mean
    and variance of the mini-batch's live frames; masked frames never count, whatever they hold. At
    inference, or frozen, the layer uses the population's, as Keras's `BatchNormalization` does.

    Args:
        units: Size of the states and the output.
        activation, dropout, return_sequences, …: Every other argument of
            `keras.layers.LSTM`, with its meaning and default.
        normalization: Over which frames mean and variance are taken in training: `"sequence"`, all
            live frames of the mini-batch together; `"frame"`, each time step by itself, so that no
            frame learns of later ones; `None`, no normalisation of the inputs' path.
        synchronized: Whether moments are taken over all replicas of a `tf.distribute` strategy.
        normalize_recurrent: Whether `h U` is normalised too, step by step, with a gamma of its own.
        normalize_cell_state: Whether the cell state is normalised on its way to the output,
            `h_t = o_t * tanh(BN(c_t))`, step by step, with a gamma and a beta of its own.
        max_timesteps: `None` for one pair of population statistics, or N for a pair for each of the
            first N time steps, of whatever is normalised step by step (Cooijmans et al. 2016). A
            later step is normalised with the last pair and updates none.
        renorm: Whether training normalises with the population's statistics, as inference does, and
            only the gradient is taken through the mini-batch's moments (batch renormalisation,
            Ioffe 2017). These statistics are plain averages until `momentum` is reached.
        renorm_clipping: `None`, or bounds of renormalisation's corrections, which draw it towards
            plain normalisation: a dictionary with any of `"rmin"`, `"rmax"`, `"dmax"`, as in
            `keras.layers.BatchNormalization` (whose second set of statistics there is not here).
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
    the population statistics and leaves them alone. The time steps of `max_timesteps` are counted
    from 0 at each call, and with `go_backwards` from each row's last live frame.

    Raises:
        ValueError: If arguments cannot work together; the message says why.

    Example:

    >>> import keras, keras_bnrnn
    >>> layer = keras_bnrnn.BatchNormLSTM(4, return_sequences=True)
    >>> layer(keras.ops.ones((2, 5, 3)), training=True).shape
    TensorShape([2, 5, 4])
    """

    def __init__(
        self,
        units: int,
        activation: _Activation = "tanh",
        recurrent_activation: _Activation = "sigmoid",
        use_bias: bool = True,
        kernel_initializer: _Initializer = "glorot_uniform",
        recurrent_initializer: _Initializer = "orthogonal",
        bias_initializer: _Initializer = "zeros",
        unit_forget_bias: bool = True,
        kernel_regularizer: _Regularizer = None,
        recurrent_regularizer: _Regularizer = None,
        bias_regularizer: _Regularizer = None,
        activity_regularizer: _Regularizer = None,
        kernel_constraint: _Constraint = None,
        recurrent_constraint: _Constraint = None,
        bias_constraint: _Constraint = None,
        dropout: float = 0.0,
        recurrent_dropout: float = 0.0,
        seed: int | keras.random.SeedGenerator | None = None,
        return_sequences: bool = False,
        return_state: bool = False,
        go_backwards: bool = False,
        stateful: bool = False,
        unroll: bool = False,
        use_cudnn: Literal["auto"] | bool = "auto",
        *,
        normalization: Literal["sequence", "frame"] | None = "sequence",
        normalize_recurrent: bool = False,
        normalize_cell_state: bool = False,
        max_timesteps: int | None = None,
        renorm: bool = False,
        renorm_clipping: dict[str, float] | None = None,
        synchronized: bool = False,
        momentum: float = 0.99,
        epsilon: float = 1e-05,
        gamma_initializer: _Initializer = "ones",
        gamma_regularizer: _Regularizer = None,
        gamma_constraint: _Constraint = None,
        moving_mean_initializer: _Initializer = "zeros",
        moving_variance_initializer: _Initializer = "ones",
        **kwargs: Any,
    ) -> None: ...

class BatchNormGRU(BatchNormRNN):
    """Gated recurrent unit with batch normalisation of the inputs' path.

        z_t = BN(x_t W) + input bias,   then Keras's GRU equations with z_t for x_t W

    where BN(a) = gamma * (a - mean) / sqrt(variance + epsilon).
    Laurent et al., "Batch normalized recurrent neural networks", 2016, section 3.

    A drop-in for `keras.layers.GRU`: same arguments, defaults, weights (gamma and the
    population statistics follow them) and results but for the normalisation. Training takes mean
    and variance of the mini-batch's live frames; masked frames never count, whatever they hold. At
    inference, or frozen, the layer uses the population's, as Keras's `BatchNormalization` does.

    Args:
        units: Size of the states and the output.
        activation, dropout, return_sequences, …: Every other argument of
            `keras.layers.GRU`, with its meaning and default.
        normalization: Over which frames mean and variance are taken in training: `"sequence"`, all
            live frames of the mini-batch together; `"frame"`, each time step by itself, so that no
            frame learns of later ones; `None`, no normalisation of the inputs' path.
        synchronized: Whether moments are taken over all replicas of a `tf.distribute` strategy.
        normalize_recurrent: Whether `h U` is normalised too, step by step, with a gamma of its own.
        max_timesteps: `None` for one pair of population statistics, or N for a pair for each of the
            first N time steps, of whatever is normalised step by step (Cooijmans et al. 2016). A
            later step is normalised with the last pair and updates none.
        renorm: Whether training normalises with the population's statistics, as inference does, and
            only the gradient is taken through the mini-batch's moments (batch renormalisation,
            Ioffe 2017). These statistics are plain averages until `momentum` is reached.
        renorm_clipping: `None`, or bounds of renormalisation's corrections, which draw it towards
            plain normalisation: a dictionary with any of `"rmin"`, `"rmax"`, `"dmax"`, as in
            `keras.layers.BatchNormalization` (whose second set of statistics there is not here).
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
    the population statistics and leaves them alone. The time steps of `max_timesteps` are counted
    from 0 at each call, and with `go_backwards` from each row's last live frame.

    Raises:
        ValueError: If arguments cannot work together; the message says why.

    Example:

    >>> import keras, keras_bnrnn
    >>> layer = keras_bnrnn.BatchNormGRU(4, return_sequences=True)
    >>> layer(keras.ops.ones((2, 5, 3)), training=True).shape
    TensorShape([2, 5, 4])
    """

    def __init__(
        self,
        units: int,
        activation: _Activation = "tanh",
        recurrent_activation: _Activation = "sigmoid",
        use_bias: bool = True,
        kernel_initializer: _Initializer = "glorot_uniform",
        recurrent_initializer: _Initializer = "orthogonal",
        bias_initializer: _Initializer = "zeros",
        kernel_regularizer: _Regularizer = None,
        recurrent_regularizer: _Regularizer = None,
        bias_regularizer: _Regularizer = None,
        activity_regularizer: _Regularizer = None,
        kernel_constraint: _Constraint = None,
        recurrent_constraint: _Constraint = None,
        bias_constraint: _Constraint = None,
        dropout: float = 0.0,
        recurrent_dropout: float = 0.0,
        seed: int | keras.random.SeedGenerator | None = None,
        return_sequences: bool = False,
        return_state: bool = False,
        go_backwards: bool = False,
        stateful: bool = False,
        unroll: bool = False,
        reset_after: bool = True,
        use_cudnn: Literal["auto"] | bool = "auto",
        *,
        normalization: Literal["sequence", "frame"] | None = "sequence",
        normalize_recurrent: bool = False,
        max_timesteps: int | None = None,
        renorm: bool = False,
        renorm_clipping: dict[str, float] | None = None,
        synchronized: bool = False,
        momentum: float = 0.99,
        epsilon: float = 1e-05,
        gamma_initializer: _Initializer = "ones",
        gamma_regularizer: _Regularizer = None,
        gamma_constraint: _Constraint = None,
        moving_mean_initializer: _Initializer = "zeros",
        moving_variance_initializer: _Initializer = "ones",
        **kwargs: Any,
    ) -> None: ...

def __getattr__(name: str) -> Any: ...
