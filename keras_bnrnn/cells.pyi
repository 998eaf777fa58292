# Written by tests/stubs.py from the signatures and docstrings at run time.

from collections.abc import Callable
from typing import Any, Literal, TypeAlias

import keras

_Activation: TypeAlias = str | dict[str, Any] | Callable[..., Any] | None
_Initializer: TypeAlias = (
    str | dict[str, Any] | keras.initializers.Initializer | Callable[..., Any] | None
)
_Regularizer: TypeAlias = (
    str | dict[str, Any] | keras.regularizers.Regularizer | Callable[..., Any] | None
)
_Constraint: TypeAlias = (
    str | dict[str, Any] | keras.constraints.Constraint | Callable[..., Any] | None
)

class BatchNormCell:
    def __getattr__(self, name: str) -> Any: ...

class StandaloneCell(BatchNormCell):
    def __getattr__(self, name: str) -> Any: ...

class BatchNormSimpleRNNCell(StandaloneCell, keras.layers.SimpleRNNCell):
    """One step of a simple RNN whose inputs' path is batch-normalised.

        h_t = tanh(BN(x_t W) + h_{t-1} U + bias)

    where BN(a) = gamma * (a - mean) / sqrt(variance + epsilon).
    Laurent et al., "Batch normalized recurrent neural networks", 2016, section 3.

    Args:
        units: Size of the states and the output.
        activation, use_bias, kernel_initializer, …: Every other argument of
            `keras.layers.SimpleRNNCell`, with its meaning and default.
        normalization: `"frame"` for the moments of each call's rows, or `None` for no
            normalisation of the inputs' path. `"sequence"` needs the layer, which sees all frames.
        synchronized: Must be `False`; replicas cannot exchange moments within a time loop.
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
        inputs: `[batch, features]`.
        states: List of h, `[batch, units]`; with `max_timesteps` followed by a step
            counter `[batch, 1]`.
        training: Whether to normalise with the batch's moments and update the population's.

    Returns:
        The output `[batch, units]` and the new states.

    In a bare `keras.layers.RNN` a cell does not see the mask, so every row of every call counts,
    padding too; statistics are updated once per call of the cell; and Keras calls it once more than
    there are frames (on the first frame it reads, discarding the value, unless `unroll=True`;
    `StackedRNNCells` adds another), which counts as well. Prefer the layer.

    Raises:
        ValueError: If arguments cannot work together; the message says why.

    Example:

    >>> import keras, keras_bnrnn
    >>> layer = keras.layers.RNN(keras_bnrnn.BatchNormSimpleRNNCell(4))
    >>> layer(keras.ops.ones((2, 5, 3))).shape
    TensorShape([2, 4])
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
        kernel_constraint: _Constraint = None,
        recurrent_constraint: _Constraint = None,
        bias_constraint: _Constraint = None,
        dropout: float = 0.0,
        recurrent_dropout: float = 0.0,
        seed: int | keras.random.SeedGenerator | None = None,
        *,
        normalization: Literal["frame"] | None = "frame",
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

class BatchNormLSTMCell(StandaloneCell, keras.layers.LSTMCell):
    """One step of an LSTM whose inputs' path is batch-normalised.

        z_t = BN(x_t W) + h_{t-1} U + bias,   then the equations of `keras.layers.LSTM` on z_t

    where BN(a) = gamma * (a - mean) / sqrt(variance + epsilon).
    Laurent et al., "Batch normalized recurrent neural networks", 2016, section 3.

    Args:
        units: Size of the states and the output.
        activation, use_bias, kernel_initializer, …: Every other argument of
            `keras.layers.LSTMCell`, with its meaning and default.
        normalization: `"frame"` for the moments of each call's rows, or `None` for no
            normalisation of the inputs' path. `"sequence"` needs the layer, which sees all frames.
        synchronized: Must be `False`; replicas cannot exchange moments within a time loop.
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
        inputs: `[batch, features]`.
        states: List of h and c, `[batch, units]` each; with `max_timesteps` followed by a step
            counter `[batch, 1]`.
        training: Whether to normalise with the batch's moments and update the population's.

    Returns:
        The output `[batch, units]` and the new states.

    In a bare `keras.layers.RNN` a cell does not see the mask, so every row of every call counts,
    padding too; statistics are updated once per call of the cell; and Keras calls it once more than
    there are frames (on the first frame it reads, discarding the value, unless `unroll=True`;
    `StackedRNNCells` adds another), which counts as well. Prefer the layer.

    Raises:
        ValueError: If arguments cannot work together; the message says why.

    Example:

    >>> import keras, keras_bnrnn
    >>> layer = keras.layers.RNN(keras_bnrnn.BatchNormLSTMCell(4))
    >>> layer(keras.ops.ones((2, 5, 3))).shape
    TensorShape([2, 4])
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
        kernel_constraint: _Constraint = None,
        recurrent_constraint: _Constraint = None,
        bias_constraint: _Constraint = None,
        dropout: float = 0.0,
        recurrent_dropout: float = 0.0,
        seed: int | keras.random.SeedGenerator | None = None,
        *,
        normalization: Literal["frame"] | None = "frame",
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

class BatchNormGRUCell(StandaloneCell, keras.layers.GRUCell):
    """One step of a GRU whose inputs' path is batch-normalised.

        z_t = BN(x_t W) + input bias,   then the equations of `keras.layers.GRU` with z_t for x_t W

    where BN(a) = gamma * (a - mean) / sqrt(variance + epsilon). With
    `normalize_recurrent` and `reset_after=True` h U is normalised before the recurrent bias; with
    `reset_after=False` h U for both gates, and (r * h) U for the candidate.
    Laurent et al., "Batch normalized recurrent neural networks", 2016, section 3.

    Args:
        units: Size of the states and the output.
        activation, use_bias, kernel_initializer, …: Every other argument of
            `keras.layers.GRUCell`, with its meaning and default.
        normalization: `"frame"` for the moments of each call's rows, or `None` for no
            normalisation of the inputs' path. `"sequence"` needs the layer, which sees all frames.
        synchronized: Must be `False`; replicas cannot exchange moments within a time loop.
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
        inputs: `[batch, features]`.
        states: List of h, `[batch, units]`; with `max_timesteps` followed by a step
            counter `[batch, 1]`.
        training: Whether to normalise with the batch's moments and update the population's.

    Returns:
        The output `[batch, units]` and the new states.

    In a bare `keras.layers.RNN` a cell does not see the mask, so every row of every call counts,
    padding too; statistics are updated once per call of the cell; and Keras calls it once more than
    there are frames (on the first frame it reads, discarding the value, unless `unroll=True`;
    `StackedRNNCells` adds another), which counts as well. Prefer the layer.

    Raises:
        ValueError: If arguments cannot work together; the message says why.

    Example:

    >>> import keras, keras_bnrnn
    >>> layer = keras.layers.RNN(keras_bnrnn.BatchNormGRUCell(4))
    >>> layer(keras.ops.ones((2, 5, 3))).shape
    TensorShape([2, 4])
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
        kernel_constraint: _Constraint = None,
        recurrent_constraint: _Constraint = None,
        bias_constraint: _Constraint = None,
        dropout: float = 0.0,
        recurrent_dropout: float = 0.0,
        reset_after: bool = True,
        seed: int | keras.random.SeedGenerator | None = None,
        *,
        normalization: Literal["frame"] | None = "frame",
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
