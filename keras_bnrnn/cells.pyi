# Written by tests/stubs.py from the signatures at run time.

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
