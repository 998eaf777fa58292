"""Weights from and to the plain layers of `keras.layers`.

With population statistics BN(x W) + bias is an affine function of x, so

    W' = W diag(gamma / sigma),   b' = bias - gamma mean / sigma

give a plain `keras.layers` layer the same outputs.
"""

import itertools

import keras
import numpy as np
import tensorflow as tf

from keras_bnrnn.cells import BatchNormCell
from keras_bnrnn.normalization import SETTLED, as_tensor


def copy_weights(source: keras.layers.Layer, target: keras.layers.Layer) -> None:
    """Copies weights between a layer and its `keras.layers` namesake, outputs preserved.

    From a normalised layer into a plain one the normalisation is folded into kernel and bias. From
    a plain layer into a normalised one, gamma and the bias are chosen so that at inference
    normalisation with the population statistics that `target` has changes nothing. A pretrained
    LSTM is continued best in three steps: copy, `recalibrate` on the training data (which makes
    the statistics real and the outputs wrong), and copy again (which makes the outputs right).

    Args:
        source: A built layer or cell, of this package or of `keras.layers`, or a `Bidirectional`
            of such.
        target: Its counterpart, built with the same input size and `units`.

    Raises:
        ValueError: If the two are not a layer and its namesake, a shape or an activation differs,
            one is not built, or the normalisation of `source` cannot be folded.

    Example:

    >>> import keras, keras_bnrnn
    >>> lstm, layer = keras.layers.LSTM(4), keras_bnrnn.BatchNormLSTM(4)
    >>> x = keras.random.normal((2, 5, 3))
    >>> expected, _ = lstm(x), layer(x)  # which builds both
    >>> keras_bnrnn.copy_weights(lstm, layer)
    >>> float(keras.ops.max(keras.ops.abs(layer(x) - expected))) < 1e-5
    True
    """
    if isinstance(source, keras.layers.Bidirectional) and isinstance(
        target, keras.layers.Bidirectional
    ):
        copy_weights(source.forward_layer, target.forward_layer)
        copy_weights(source.backward_layer, target.backward_layer)
        return
    for role, layer in (("source", source), ("target", target)):
        if not layer.built:
            raise ValueError(f"{role} {layer.name!r} is not built. Call it on a batch first.")
    source, target = (getattr(layer, "cell", layer) for layer in (source, target))
    normalized = target if isinstance(target, BatchNormCell) else source
    plain = source if normalized is target else target
    if not isinstance(normalized, BatchNormCell) or type(plain) is not normalized.plain_class:
        raise ValueError(
            "copy_weights copies between a layer of keras_bnrnn and its namesake in keras.layers. "
            f"Received: source={type(source).__name__}, target={type(target).__name__}"
        )
    if source.kernel.shape != target.kernel.shape or source.units != target.units:
        raise ValueError(
            f"source and target differ in size: kernels {tuple(source.kernel.shape)} and "
            f"{tuple(target.kernel.shape)}. Build both with the same inputs and units."
        )
    if getattr(source, "reset_after", None) != getattr(target, "reset_after", None):
        raise ValueError("source and target differ in reset_after, so their weights do not fit.")
    for name in ("activation", "recurrent_activation"):
        functions = [getattr(cell, name, None) for cell in (source, target)]
        if _compute_otherwise(*functions):
            shown = [getattr(function, "__name__", function) for function in functions]
            raise ValueError(
                f"source and target differ in {name} ({shown[0]} and {shown[1]}), so the same "
                "weights would not give the same outputs."
            )
    if normalized is source:
        reason = obstacle(source)
        if reason:
            raise ValueError(f"{source.name!r} cannot be folded into a plain layer: {reason}.")
        kernel, recurrent_kernel, bias = folded_weights(source)
        if not target.use_bias and bias.any():
            raise ValueError(
                f"{target.name!r} has use_bias=False, but folding the normalisation needs a "
                "bias. Make the target with use_bias=True."
            )
        target.set_weights([kernel, recurrent_kernel, bias][: len(target.weights)])
    else:
        _absorb(source, target)


def _compute_otherwise(function, other):
    """Whether two activations are known to differ, as Keras's own are by their names."""
    known = (
        getattr(keras.activations, getattr(one, "__name__", ""), None) is one
        for one in (function, other)
    )
    return all(known) and function is not other


def folded_weights(cell):
    """Kernel, recurrent kernel and bias (zeros if need be) of the equivalent plain cell."""
    kernel, bias = as_tensor(cell.kernel), cell.input_bias
    if cell.normalizer is not None:
        kernel, bias = cell.normalizer.fold(kernel, bias)
    elif bias is None:
        bias = tf.zeros(kernel.shape[1:], kernel.dtype)
    bias = cell.whole_bias(bias)
    return [kernel.numpy(), as_tensor(cell.recurrent_kernel).numpy(), bias.numpy()]


def _absorb(plain, normalized):
    """Gives a normalised cell a plain cell's weights, gamma and bias undoing its statistics."""
    if plain.use_bias and not normalized.use_bias:
        raise ValueError(
            f"{normalized.name!r} has use_bias=False and cannot hold the bias of {plain.name!r}. "
            "Make the target with use_bias=True."
        )
    # Summed in float64, whatever either of the two keeps its weights in.
    bias = None
    if normalized.use_bias:
        bias = _wide(plain.bias) if plain.use_bias else np.zeros(normalized.bias.shape)
    shifts = {
        normalizer: _undo(normalizer, shiftable=normalizer.beta is not None or bias is not None)
        for normalizer in (normalized.normalizer, *normalized.loop_normalizers)
        if normalizer is not None
    }
    rows = bias if bias is None or bias.ndim == 2 else bias[np.newaxis]
    for normalizer, shift in shifts.items():
        if normalizer.beta is not None:
            normalizer.beta.assign(shift)
        elif rows is not None:
            # A GRU has a bias of its own for the recurrent term.
            rows[-1 if normalizer is normalized.recurrent_normalizer else 0] += shift
    normalized.kernel.assign(plain.kernel)
    normalized.recurrent_kernel.assign(plain.recurrent_kernel)
    if bias is not None:
        normalized.bias.assign(bias)


def _undo(normalizer, shiftable):
    """Sets gamma to undo the population's deviation; returns the shift that undoes its mean."""
    if normalizer.max_timesteps is not None or not shiftable:
        # One gamma and one shift cannot undo many statistics, so they become the identity's.
        normalizer.moving_mean.assign(np.zeros(normalizer.moving_mean.shape))
        normalizer.moving_variance.assign(np.ones(normalizer.moving_variance.shape))
    if normalizer.updates is not None:
        # Else the first update would put others in their place.
        normalizer.updates.assign(np.full(normalizer.updates.shape, SETTLED))
    mean, variance = (
        _wide(value).reshape(-1, value.shape[-1])[0]
        for value in (normalizer.moving_mean, normalizer.moving_variance)
    )
    normalizer.gamma.assign(np.sqrt(variance + normalizer.epsilon))
    return mean


def _wide(variable):
    return variable.numpy().astype("float64")


# What of a class of our own a user's subclass may define and still be folded: it changes how the
# layer is made and not what it computes.
_HARMLESS = {"__init__", "get_config", "from_config", "get_build_config", "build_from_config"}


def obstacle(layer):
    """Why a layer or cell of ours cannot be folded, or `None`."""
    cell = getattr(layer, "cell", layer)
    if cell.max_timesteps is not None:
        return f"it keeps statistics for each time step (max_timesteps={cell.max_timesteps})"
    names = []
    if cell.normalize_recurrent:
        names.append("normalize_recurrent=True")
    if cell.normalize_cell_state:
        names.append("normalize_cell_state=True")
    if names:
        return " and ".join(names) + " normalises inside the time loop"
    for one in (layer, cell):
        changed = _changed_by_subclass(type(one))
        if changed:
            return f"its class {type(one).__name__} has code of its own ({', '.join(changed)})"
    return None


def _changed_by_subclass(cls):
    """The methods of ours that a subclass from elsewhere replaces."""
    bases = list(itertools.takewhile(lambda base: not is_ours(base), cls.__mro__))
    ours = cls.__mro__[len(bases)]
    return sorted(
        name
        for name in {name for base in bases for name in vars(base)} - _HARMLESS
        if callable(getattr(ours, name, None)) and getattr(cls, name) != getattr(ours, name)
    )


def is_ours(cls):
    return cls.__module__.partition(".")[0] == __name__.partition(".")[0]
