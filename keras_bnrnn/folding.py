"""Folding normalisation into kernels and biases, and moving weights from and to plain layers.

With population statistics BN(x W) + bias is an affine function of x, so

    W' = W diag(gamma / sigma),   b' = bias - gamma mean / sigma

give a plain `keras.layers` layer the same outputs.
"""

import keras
import numpy as np
import tensorflow as tf

from keras_bnrnn.cells import BatchNormCell
from keras_bnrnn.layers import BatchNormRNN
from keras_bnrnn.normalization import as_tensor


def fold_batch_norm(model, strict=True):
    """The same function with plain `keras.layers` only, for serving.

    Args:
        model: A built `keras.Model` (Sequential, functional, nested, or subclassed with its layers
            as attributes) or a built layer.
        strict: Whether a layer that cannot be folded is an error; with `False` it is kept as it is.
            Statistics for each time step and normalisation of the recurrent term or the cell state
            cannot be folded.

    Returns:
        A new model of the same kind with weights of its own, in which every `BatchNormLSTM`,
        `BatchNormGRU` and `BatchNormSimpleRNN` is the `keras.layers` layer of that name (their
        cells likewise), and layers that were shared are shared. It is not compiled. `model` is
        left as it is.

    Raises:
        ValueError: If the model is not built, or under `strict` names all layers that cannot be
            folded.

    Example:

    >>> import keras, keras_bnrnn
    >>> model = keras.Sequential([keras.Input((None, 3)), keras_bnrnn.BatchNormLSTM(4)])
    >>> type(fold_batch_norm(model).layers[0])
    <class 'keras.src.layers.rnn.lstm.LSTM'>
    """
    if not model.built:
        raise ValueError(
            f"{model.name!r} has no weights yet, so there is nothing to fold. Build it or call it "
            "on a batch first."
        )
    reasons = _obstacles(model)
    if strict and reasons:
        raise ValueError(
            "These layers cannot be folded into plain Keras layers:\n"
            + "\n".join(f"  {name}: {reason}" for name, reason in reasons.items())
            + "\nUse strict=False to keep them as they are."
        )
    return _Folding().fold(model)


def copy_weights(source, target):
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
        ValueError: If the two are not a layer and its namesake, a shape differs, one is not built,
            or the normalisation of `source` cannot be folded.
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
    if normalized is source:
        reason = _obstacle(source)
        if reason:
            raise ValueError(f"{source.name!r} cannot be folded into a plain layer: {reason}.")
        kernel, recurrent_kernel, bias = _folded_weights(source)
        if not target.use_bias and bias.any():
            raise ValueError(
                f"{target.name!r} has use_bias=False, but folding the normalisation needs a "
                "bias. Make the target with use_bias=True."
            )
        target.set_weights([kernel, recurrent_kernel, bias][: len(target.weights)])
    else:
        _absorb(source, target)


def _folded_weights(cell):
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
    bias = (
        plain.bias.numpy()
        if plain.use_bias
        else np.zeros(normalized.bias.shape, "float32")
        if normalized.use_bias
        else None
    )
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
    mean, variance = (
        value.numpy().reshape(-1, value.shape[-1])[0]
        for value in (normalizer.moving_mean, normalizer.moving_variance)
    )
    normalizer.gamma.assign(np.sqrt(variance + normalizer.epsilon))
    return mean


def _obstacle(cell):
    """Why a cell cannot be folded, or `None`."""
    if cell.max_timesteps is not None:
        return f"it keeps statistics for each time step (max_timesteps={cell.max_timesteps})"
    names = []
    if cell.normalize_recurrent:
        names.append("normalize_recurrent=True")
    if cell.normalize_cell_state:
        names.append("normalize_cell_state=True")
    if names:
        return " and ".join(names) + " normalises inside the time loop"
    return None


def _obstacles(model):
    cells = {}
    for layer in model._flatten_layers(include_self=True, recursive=True):
        if isinstance(layer, BatchNormRNN):
            cells[id(layer.cell)] = (layer.name, layer.cell)
        elif isinstance(layer, BatchNormCell):
            cells.setdefault(id(layer), (layer.name, layer))
    reasons = {name: _obstacle(cell) for name, cell in cells.values()}
    return {name: reason for name, reason in reasons.items() if reason}


class _Folding:
    """One folding of one model: each layer is converted once, so what is shared stays shared."""

    def __init__(self):
        self.converted = {}

    def fold(self, layer):
        if id(layer) not in self.converted:
            self.converted[id(layer)] = self._convert(layer)
        return self.converted[id(layer)]

    def _convert(self, layer):
        if not isinstance(layer, keras.layers.Layer):
            return layer  # An operation of a functional model, which holds nothing.
        if isinstance(layer, BatchNormRNN) and not _obstacle(layer.cell):
            return self._plain_layer(layer)
        if isinstance(layer, BatchNormCell) and not _obstacle(layer):
            return self._plain_cell(layer)
        if not _holds_normalized(layer):
            return _copy(layer)
        if isinstance(layer, keras.Sequential) or hasattr(layer, "operations"):
            return keras.models.clone_model(layer, clone_function=self.fold)
        if isinstance(layer, (keras.layers.RNN, keras.layers.StackedRNNCells)) and not isinstance(
            layer, BatchNormRNN
        ):
            return self._rnn(layer)
        if isinstance(layer, keras.layers.Bidirectional):
            return self._bidirectional(layer)
        if isinstance(layer, keras.layers.Wrapper):
            config = {k: v for k, v in layer.get_config().items() if k != "layer"}
            return _build_like(type(layer)(self.fold(layer.layer), **config), layer)
        if isinstance(layer, (BatchNormRNN, BatchNormCell)):
            return _copy(layer)
        return self._subclassed(layer)

    def _plain_layer(self, layer):
        config = _plain_config(layer, layer.cell)
        plain = layer.plain_class(**config)
        batch = layer.states[0].shape[0] if layer.states is not None else None
        plain.build((batch, None, layer.cell.kernel.shape[0]))
        plain.set_weights(_folded_weights(layer.cell)[: len(plain.weights)])
        _copy_states(layer, plain)
        return plain

    def _plain_cell(self, cell):
        plain = cell.plain_class(**_plain_config(cell, cell))
        plain.build((None, cell.kernel.shape[0]))
        plain.set_weights(_folded_weights(cell)[: len(plain.weights)])
        return plain

    def _rnn(self, layer):
        config = layer.get_config()
        if isinstance(layer, keras.layers.StackedRNNCells):
            config["cells"] = [self.fold(cell) for cell in layer.cells]
        else:
            config["cell"] = self.fold(layer.cell)
        plain = _build_like(type(layer)(**config), layer)
        if isinstance(layer, keras.layers.RNN):
            _copy_states(layer, plain)
        return plain

    def _bidirectional(self, layer):
        config = layer.get_config()
        halves = self.fold(layer.forward_layer), self.fold(layer.backward_layer)
        config["layer"], config["backward_layer"] = halves
        # It makes its forward layer anew from the configuration.
        plain = _build_like(keras.layers.Bidirectional(**config), layer)
        for new, half in zip((plain.forward_layer, plain.backward_layer), halves, strict=True):
            new.set_weights(half.get_weights())
            _copy_states(half, new)
        return plain

    def _subclassed(self, layer):
        """A copy whose attributes are the folded ones; its constructor is not run again.

        What Keras itself keeps about a layer is made anew.
        """
        new = type(layer).__new__(type(layer))
        if isinstance(layer, keras.Model):
            kept_by_keras = keras.Model()
            kept_by_keras.compile("sgd", "mse")
            keras.Model.__init__(new, name=layer.name, dtype=layer.dtype_policy)
        else:
            kept_by_keras = keras.layers.Layer()
            keras.layers.Layer.__init__(new, name=layer.name, dtype=layer.dtype_policy)
        for name, value in vars(layer).items():
            if name not in vars(kept_by_keras):
                setattr(new, name, self._replace(value))
        new.trainable = layer.trainable
        new.built = layer.built
        return new

    def _replace(self, value):
        if isinstance(value, keras.layers.Layer):
            return self.fold(value)
        if isinstance(value, keras.Variable):
            return keras.Variable(
                value.numpy(), dtype=value.dtype, trainable=value.trainable, name=value.name
            )
        if isinstance(value, (list, tuple)) and any(
            isinstance(item, keras.layers.Layer) for item in keras.tree.flatten(value)
        ):
            return (
                type(value)(self._replace(item) for item in value)
                if type(value) in (list, tuple)
                else [self._replace(item) for item in value]
            )
        if isinstance(value, dict) and any(
            isinstance(item, keras.layers.Layer) for item in value.values()
        ):
            return {key: self._replace(item) for key, item in value.items()}
        return value


def _holds_normalized(layer):
    return any(
        isinstance(inner, BatchNormCell)
        for inner in layer._flatten_layers(include_self=True, recursive=True)
    )


def _plain_config(layer, cell):
    """The configuration of the namesake: our own less what is about normalisation."""
    config = layer.get_config()
    for name in cell.normalization_parameters():
        del config[name]
    if cell.normalizer is not None:
        config["use_bias"] = True
    return config


def _copy(layer):
    if isinstance(layer, keras.layers.Lambda):
        return layer  # It has no weights, and Keras does not take its function from a config.
    new = _build_like(type(layer).from_config(layer.get_config()), layer)
    if layer.weights:
        new.set_weights(layer.get_weights())
    if isinstance(layer, keras.layers.RNN):
        _copy_states(layer, new)
    return new


def _build_like(new, layer):
    if layer.built and not new.built:
        new.build_from_config(layer.get_build_config())
    return new


def _copy_states(layer, new):
    for old_state, new_state in zip(
        keras.tree.flatten(layer.states or ()), keras.tree.flatten(new.states or ()), strict=True
    ):
        new_state.assign(old_state)
