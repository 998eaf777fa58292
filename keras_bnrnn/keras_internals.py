"""The private parts of Keras that this package cannot do without, and nothing else of the kind.

Checked with Keras 3.10.0 and 3.15.1, TensorFlow 2.16.2 and 2.21.0. When a later release changes one
of them `tests/test_keras_internals.py` fails, and this module is the place to mend.
"""

import contextlib
from collections.abc import Callable

import keras


def flattened_layers(
    layer: keras.layers.Layer, include_self: bool = True, recursive: bool = True
) -> list[keras.layers.Layer]:
    """The layers in a layer or model, each once; `keras.Model.layers` shows the outermost only.

    Args:
        layer: A layer or model.
        include_self: Whether it comes first itself.
        recursive: Whether to look into the layers found.
    """
    return list(layer._flatten_layers(include_self=include_self, recursive=recursive))


def autocast_scope(dtype: str) -> contextlib.AbstractContextManager:
    """The scope in which a layer of this compute dtype reads its variables.

    `Layer.__call__` opens it; a wrapper that calls `layer.call` leaves its own open.
    """
    from keras.src.backend import AutocastScope

    return AutocastScope(dtype)


def mask_of(tensor):
    """The mask that Keras carries along with a layer's output, or `None`."""
    return getattr(tensor, "_keras_mask", None)


def cudnn_functions() -> tuple[Callable, Callable, Callable] | None:
    """Whether cuDNN runs some arguments here, its LSTM, its GRU: Keras's functions that say and do.

    `None` where this release of Keras has them elsewhere.
    """
    try:
        from keras.src.backend import cudnn_ok, gru, lstm
    except ImportError:
        return None
    return cudnn_ok, lstm, gru
