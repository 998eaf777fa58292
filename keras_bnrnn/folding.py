"""Folding normalisation into kernels and biases, and moving weights from and to plain layers.

With population statistics BN(x W) + bias is an affine function of x, so

    W' = W diag(gamma / sigma),   b' = bias - gamma mean / sigma

give a plain `keras.layers` layer the same outputs.
"""

import contextlib
import itertools
import types

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
            Statistics for each time step, normalisation of the recurrent term or the cell state,
            and a subclass with a `call` of its own cannot be folded.

    Returns:
        A new model of the same kind with weights of its own, in which every `BatchNormLSTM`,
        `BatchNormGRU` and `BatchNormSimpleRNN` is the `keras.layers` layer of that name (their
        cells and `Bidirectional` likewise), and layers and weights that were shared are shared.
        On a GPU they keep Keras's manners: where cuDNN runs them masked frames show zeros, and
        masks other than of padding on the right are an error unless `use_cudnn=False`.
        It is not compiled. A subclassed model stays of its class, whose constructor is not run
        again; `export` it, since Keras runs that constructor to load a `.keras` file. `model` is
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
        ValueError: If the two are not a layer and its namesake, a shape or an activation differs,
            one is not built, or the normalisation of `source` cannot be folded.
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


def _compute_otherwise(function, other):
    """Whether two activations are known to differ, as Keras's own are by their names."""
    known = (
        getattr(keras.activations, getattr(one, "__name__", ""), None) is one
        for one in (function, other)
    )
    return all(known) and function is not other


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


# What of a class of our own a user's subclass may define and still be folded: it changes how the
# layer is made and not what it computes.
_HARMLESS = {"__init__", "get_config", "from_config", "get_build_config", "build_from_config"}


def _obstacle(layer):
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
    bases = list(itertools.takewhile(lambda base: not _is_ours(base), cls.__mro__))
    ours = cls.__mro__[len(bases)]
    return sorted(
        name
        for name in {name for base in bases for name in vars(base)} - _HARMLESS
        if callable(getattr(ours, name, None)) and getattr(cls, name) != getattr(ours, name)
    )


def _is_ours(cls):
    return cls.__module__.partition(".")[0] == __name__.partition(".")[0]


def _obstacles(model):
    found = {}
    for layer in model._flatten_layers(include_self=True, recursive=True):
        if isinstance(layer, BatchNormRNN):
            found[id(layer.cell)] = layer
        elif isinstance(layer, BatchNormCell):
            found.setdefault(id(layer), layer)
    reasons = {layer.name: _obstacle(layer) for layer in found.values()}
    return {name: reason for name, reason in reasons.items() if reason}


# What Keras keeps about a layer under these names belongs to the copy too; all else that a new
# layer or model has by itself, its trackers, nodes and compiled state, is the copy's own.
_CARRIED = {
    "_allow_non_tensor_positional_args",
    "_auto_config",
    "_build_shapes_dict",
    "_called",
    "_convert_input_args",
    "_input_spec",
    "_parent_path",
    "_path",
    "_saved_model_arg_spec",
    "_saved_model_inputs_spec",
    "_supports_masking",
    "activity_regularizer",
    "autocast",
    "supports_jit",
}


class _Folding:
    """One folding of one model: each object is converted once, so what is shared stays shared."""

    def __init__(self):
        # By id; the originals are kept beside their copies, so that no id is used again.
        self.converted = {}

    def fold(self, value):
        """The counterpart of a layer, or of anything that may hold layers or variables."""
        if id(value) in self.converted:
            return self.converted[id(value)][1]
        if isinstance(value, keras.layers.Layer):
            return self._layer(value)
        if isinstance(value, keras.Variable):
            return self._keep(value, _copy_variable(value))
        if isinstance(value, keras.random.SeedGenerator):
            new = self._keep(value, keras.random.SeedGenerator.from_config(value.get_config()))
            new.state.assign(value.state)
            return new
        if isinstance(value, types.MethodType) and isinstance(value.__self__, keras.layers.Layer):
            return types.MethodType(value.__func__, self.fold(value.__self__))
        if isinstance(value, dict):
            items = {key: self.fold(item) for key, item in value.items()}
            return items if _differ(items.values(), value.values()) else value
        if isinstance(value, (list, tuple, set)):
            items = [self.fold(item) for item in value]
            if not _differ(items, value):
                return value
            if hasattr(value, "_fields"):
                return value._make(items)
            kinds = (list, tuple, set)
            return next(kind for kind in kinds if isinstance(value, kind))(items)
        return value  # An operation of a functional model, a number, a table, …: holds nothing.

    def _keep(self, value, new):
        self.converted[id(value)] = value, new
        return new

    def _layer(self, layer):
        if isinstance(layer, BatchNormRNN):
            if not _obstacle(layer):
                return self._plain_layer(layer)
            self._copy(layer.cell)  # It stays as it is even where it could be folded by itself.
        if isinstance(layer, BatchNormCell) and not _obstacle(layer):
            return self._plain_cell(layer)
        if isinstance(layer, keras.layers.InputLayer):
            return self._keep(layer, type(layer).from_config(layer.get_config()))
        if isinstance(layer, keras.Sequential):
            layers = [
                self.fold(one) for one in layer._flatten_layers(include_self=False, recursive=False)
            ]
            return self._model(layer, layers)
        if isinstance(layer, keras.Model) and hasattr(layer, "operations"):
            # Keras's clone would be compiled as `layer` is, with whatever objects that takes.
            bare = keras.Model(layer.input, layer.output)
            clone = keras.models.clone_model(bare, clone_function=self.fold)
            return self._model(layer, clone.input, clone.output)
        return self._copy(layer)

    def _plain_layer(self, layer):
        plain = layer.plain_class(**_plain_config(layer))
        self._keep(layer, plain)
        batch = layer.states[0].shape[0] if layer.states is not None else None
        plain.build((batch, None, layer.cell.kernel.shape[0]))
        self._fold_weights(layer.cell, plain.cell)
        for new_state, state in zip(plain.states or (), layer.states or (), strict=True):
            new_state.assign(state)
        return plain

    def _plain_cell(self, cell):
        plain = self._keep(cell, cell.plain_class(**_plain_config(cell)))
        plain.build((None, cell.kernel.shape[0]))
        self._fold_weights(cell, plain)
        return plain

    def _fold_weights(self, cell, plain):
        plain.set_weights(_folded_weights(cell)[: len(plain.weights)])
        self._keep(cell.recurrent_kernel, plain.recurrent_kernel)

    def _model(self, model, *arguments):
        """A Sequential or functional model; of `model`'s own class if that calls it otherwise."""
        own = type(model)
        keras_class = next(one for one in own.__mro__ if _is_keras(one))
        named = {"name": model.name, "trainable": model.trainable}
        if own.call == keras_class.call:
            return self._keep(model, keras_class(*arguments, **named))
        new = self._keep(model, own.__new__(own))
        keras_class.__init__(new, *arguments, **named)
        self._copy_attributes(model, new, _kept_by_keras(new))
        return new

    def _copy(self, layer):
        """A copy with folded attributes; its constructor is not run again."""
        cls = type(layer)
        if _is_ours(cls) and issubclass(cls, keras.layers.Bidirectional):
            cls = keras.layers.Bidirectional
        new = self._keep(layer, cls.__new__(cls))
        base = keras.Model if isinstance(layer, keras.Model) else keras.layers.Layer
        arguments = {"dtype": layer.dtype_policy, "trainable": layer.trainable}
        base.__init__(new, name=layer.name, **arguments)
        self._copy_attributes(layer, new, _kept_by_keras(new) - _CARRIED)
        new.built = layer.built
        return new

    def _copy_attributes(self, layer, new, kept_by_keras):
        tracked = [*layer.variables, *layer._flatten_layers(include_self=False, recursive=False)]
        tracked = {id(one) for one in tracked}
        for name, value in vars(layer).items():
            if name in kept_by_keras or isinstance(value, keras.callbacks.Callback):
                continue
            if any(
                id(one) not in tracked
                for one in keras.tree.flatten(value)
                if isinstance(one, (keras.layers.Layer, keras.Variable))
            ):
                # Such as the states of a stateful layer, which are none of its weights.
                vars(new)[name] = self.fold(value)
            else:
                setattr(new, name, self.fold(value))


def _kept_by_keras(new):
    """The names of the attributes that Keras gives a layer, or a model and its compilation."""
    names = set(vars(new))
    if isinstance(new, keras.Model):
        compiled = keras.Model(name="compiled")
        compiled.compile("sgd", "mse")
        names |= set(vars(compiled))
    return names


def _is_keras(cls):
    return cls.__module__.partition(".")[0] == "keras"


def _differ(new, old):
    return any(one is not other for one, other in zip(new, old, strict=True))


def _copy_variable(variable):
    with contextlib.ExitStack() as scopes:
        for scope in variable.path.split("/")[:-1]:
            scopes.enter_context(keras.name_scope(scope))
        new = keras.Variable(
            variable.numpy(),
            dtype=variable.dtype,
            trainable=variable.trainable,
            autocast=variable._autocast,
            aggregation=variable.aggregation,
            synchronization=variable.synchronization,
            name=variable.name,
        )
    new.regularizer, new.constraint = variable.regularizer, variable.constraint
    return new


def _plain_config(layer):
    """The configuration of the namesake: our own less what is about normalisation."""
    cell = getattr(layer, "cell", layer)
    # A subclass from elsewhere may have a configuration of its own.
    config = next(base for base in type(layer).__mro__ if _is_ours(base)).get_config(layer)
    for name in cell.normalization_parameters():
        del config[name]
    config.pop("in_layer", None)
    if cell.normalizer is not None:
        config["use_bias"] = True
    return config
