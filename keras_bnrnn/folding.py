"""Folding: models made anew with plain `keras.layers` in the place of the normalised ones."""

import contextlib
import functools
import inspect
import tempfile

import keras
import tensorflow as tf

from keras_bnrnn.bidirectional import Bidirectional
from keras_bnrnn.cells import BatchNormCell, named_parameters
from keras_bnrnn.keras_internals import flattened_layers, replace_parts
from keras_bnrnn.layers import BatchNormRNN
from keras_bnrnn.plain_weights import folded_weights, is_ours, obstacle
from keras_bnrnn.references import reached_from


class FoldingError(ValueError):
    """Layers cannot be folded into plain ones.

    Attributes:
        reasons: why, by the layer's name.
    """

    def __init__(self, reasons: dict[str, str]) -> None:
        self.reasons = reasons
        super().__init__(
            "These layers cannot be folded into plain Keras layers:\n"
            + "\n".join(f"  {name}: {reason}" for name, reason in reasons.items())
            + "\nUse strict=False to keep them as they are."
        )


def fold_batch_norm(model: keras.layers.Layer, strict: bool = True) -> keras.layers.Layer:
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
        It is not compiled. Whatever else `model` holds is made anew from its configuration, as
        when a `.keras` file is loaded. `model` is left as it is.

    Raises:
        ValueError: If the model is not built, if a class in it lacks the `get_config` that remakes
            it, or a function in it the copy would share layers with `model`; or under `strict`
            names all layers that cannot be folded, and has them with their `reasons`.

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
        raise FoldingError(reasons)
    copy = _Folding(model).fold(model)
    _check_independence(copy)
    return copy


def remade(model: keras.Model, config: dict) -> keras.Model:
    """A functional model from a changed configuration of another, in that one's state.

    Args:
        model: functional, built.
        config: its configuration, in which layers may be others with the same weights.
    """
    layers = flattened_layers(model)
    with keras.saving.custom_object_scope(_custom_objects(layers)):
        copy = type(model).from_config(config)
    copy.set_weights(model.get_weights())
    for layer, new in zip(layers, flattened_layers(copy), strict=True):
        if hasattr(layer, "finalize_state"):  # It has learnt from data, not weights alone.
            _copy_state(layer, new)
    return copy


def _custom_objects(layers):
    """Where Keras looks for what configurations have the name of, registered or not."""
    named = [type(layer) for layer in layers]
    named += [
        value for layer in layers for value in vars(layer).values() if inspect.isfunction(value)
    ]
    return {one.__name__: one for one in named if not _is_keras(one)}


def _obstacles(model):
    layers = flattened_layers(model)
    ours = [layer for layer in layers if isinstance(layer, (BatchNormRNN, BatchNormCell))]
    cells = [layer.cell for layer in ours if isinstance(layer, BatchNormRNN)]
    reasons = {layer.name: obstacle(layer) for layer in ours if layer not in cells}
    return {name: reason for name, reason in reasons.items() if reason}


# What a copy has of its own; all else in it comes from the configuration.
_PARTS = (keras.layers.Layer, keras.Variable, keras.random.SeedGenerator)


class _Folding:
    """One folding of one model: each object has one copy, so what is shared stays shared.

    A layer is made anew from its configuration, as when a `.keras` file is loaded; its parts, which
    that makes too, become the copies of the original's or are replaced where they fold or are
    shared. Only then is it built, for functions to be traced as they are, and given its state.
    """

    def __init__(self, model):
        self.custom_objects = _custom_objects(flattened_layers(model))
        # By id; the originals are kept beside their copies, so that no id is used again.
        self.copies = {}
        self.unfinished = []

    def fold(self, layer):
        """The copy of a layer or model, in its state."""
        begun = len(self.unfinished)
        new = self._make(layer)
        while len(self.unfinished) > begun:
            self._finish(*self.unfinished.pop(begun))
        return new

    def _make(self, layer):
        """The copy of a layer or model, which is still to be built where its holder builds it."""
        if id(layer) in self.copies:
            return self.copies[id(layer)][1]
        if not isinstance(layer, keras.layers.Layer):
            return layer  # An operation of a functional model, which holds nothing.
        with _naming(layer):
            if _is_graph(layer):
                return self._make_graph(layer)
            new = keras.saving.deserialize_keras_object(
                {"class_name": "new", "registered_name": "new", "config": _config(layer)},
                custom_objects={**self.custom_objects, "new": _class_of_copy(layer)},
                safe_mode=False,  # Code in it is from this process.
            )
            return self._begin(layer, new)

    def _make_graph(self, model):
        """A Sequential or functional model; of `model`'s own class if that calls it otherwise."""
        cls = type(model)
        keras_class = next(base for base in cls.__mro__ if _is_keras(base))
        if cls.call == keras_class.call:
            cls = keras_class
        elif cls.__init__ != keras_class.__init__:
            raise ValueError("it has a `call` and a constructor of its own; leave one to Keras")
        if isinstance(model, keras.Sequential):
            arguments = [
                [
                    self.fold(layer)
                    for layer in flattened_layers(model, include_self=False, recursive=False)
                ]
            ]
        else:
            # Keras's clone would be compiled as `model` is, with whatever objects that takes.
            bare = keras.Model(model.input, model.output)
            clone = keras.models.clone_model(bare, clone_function=self.fold)
            arguments = [clone.input, clone.output]
        new = cls(*arguments, name=model.name, trainable=model.trainable)
        _build_like(model, new)
        return self._keep(model, new)

    def _begin(self, layer, new):
        """Makes a new layer the copy of another, and its parts the copies of the other's."""
        self.unfinished.append((layer, self._keep(layer, new)))
        new.name = layer.name
        if new.trainable != layer.trainable:
            new.trainable = layer.trainable
        if hasattr(layer, "use_cudnn"):
            new.use_cudnn = layer.use_cudnn  # Keras leaves it out of the configuration,
        if isinstance(layer, keras.layers.Lambda):
            new.function = layer.function  # and does not find what a lambda refers to.
        if isinstance(layer, BatchNormRNN) and id(layer.cell) not in self.copies:
            self._begin(layer.cell, new.cell)  # It stays as it is where its layer does.
        if type(new) is type(layer):
            self._match(layer, new)
        return new

    def _finish(self, layer, new):
        """Builds a copy and gives it the state of the original."""
        with _naming(layer):
            _build_like(layer, new)
            if isinstance(layer, BatchNormCell) and not isinstance(new, BatchNormCell):
                if layer.built:
                    new.set_weights(folded_weights(layer)[: len(new.weights)])
                    self._keep(layer.recurrent_kernel, new.recurrent_kernel)
                return
            self._match(layer, new)
            for part in flattened_layers(layer, include_self=False, recursive=False):
                if id(part) not in self.copies:
                    raise ValueError(f"none of its attributes holds the layer {part.name!r}")
            _copy_state(layer, new)

    def _match(self, layer, new):
        """Puts copies in the attributes that hold layers and variables, as far as they exist."""
        matched = {}
        for name, value in _parts(layer).items():
            found = vars(new).get(name)
            if new.built or _alike(value, found):  # Else left to `build`.
                matched[name] = found, tf.nest.map_structure(self._part, value, found)
        pairs = [tf.nest.flatten(both) for both in zip(*matched.values(), strict=True)]
        if any(old is not part for old, part in zip(*pairs, strict=True)):
            # All of them, since Keras lists weights in the order in which they were set.
            for name, (found, parts) in matched.items():
                replace_parts(new, name, parts, tf.nest.flatten(found))

    def _part(self, part, found):
        """The copy of a part of a layer; `found` is what the new layer has in its place."""
        if not isinstance(part, _PARTS):
            return found
        if id(part) in self.copies:
            return self.copies[id(part)][1]
        own = found is not part and type(found) is _class_of_copy(part)
        if isinstance(part, keras.layers.Layer):
            return self._begin(part, found) if own and not _is_graph(part) else self._make(part)
        if not own:
            raise ValueError(f"it makes {found!r} in the place of {part!r}")
        getattr(found, "state", found).assign(getattr(part, "state", part))
        return self._keep(part, found)

    def _keep(self, original, new):
        self.copies[id(original)] = original, new
        return new


class _NoCopyError(ValueError):
    """A layer or model that cannot be made anew."""


@contextlib.contextmanager
def _naming(layer):
    """Turns what goes wrong with the copy of a layer into an error that says what to do."""
    try:
        yield
    except _NoCopyError:
        raise
    except Exception as error:
        name = type(layer).__name__
        functions = dict.fromkeys(
            attribute
            for attribute, _ in reached_from(layer, leave=_kept_by_keras())
            if callable(vars(layer).get(attribute)) and attribute not in _parts(layer)
        )
        reason = " ".join(str(error).strip().partition("\n\n")[0].split()).rstrip(".")
        raise _NoCopyError(
            f"{layer.name!r} cannot be copied, since its class {name} does not remake it from a "
            f"configuration: {reason}. Give {name} what it needs to be saved as a `.keras` file: "
            "a constructor that makes all layers and takes **kwargs for Keras, and a `get_config` "
            "that returns the constructor's other arguments."
            + "".join(f" Its attribute {one!r} runs layers by itself." for one in functions)
        ) from error


@functools.cache
def _kept_by_keras():
    """The names of the attributes that Keras gives a model and its compilation."""
    model = keras.Model(name="compiled")
    model.compile("sgd", "mse")
    return frozenset(vars(model))


def _parts(layer):
    """The attributes that hold layers or variables, alone or in containers, by name."""
    return {
        name: value
        for name, value in vars(layer).items()
        if name not in _kept_by_keras()
        and any(isinstance(one, _PARTS) for one in tf.nest.flatten(value))
    }


def _alike(value, found):
    """Whether an attribute of a layer that is not built yet has all its parts."""
    kinds = [[isinstance(one, _PARTS) for one in tf.nest.flatten(each)] for each in (value, found)]
    return kinds[0] == kinds[1]


def _is_graph(layer):
    """Whether it is a Sequential or functional model."""
    return isinstance(layer, keras.Sequential) or (
        isinstance(layer, keras.Model) and hasattr(layer, "operations")
    )


def _folds(layer):
    return isinstance(layer, (BatchNormRNN, BatchNormCell)) and not obstacle(layer)


def _class_of_copy(part):
    if type(part) is Bidirectional:
        return keras.layers.Bidirectional
    return part.plain_class if _folds(part) else type(part)


def _config(layer):
    """The configuration from which a layer's copy is made."""
    cls = type(layer)
    config = _plain_config(layer) if _folds(layer) else layer.get_config()
    if _is_keras(cls) or is_ours(cls):
        # Activations, initializers, … themselves, be they registered or not.
        for name in config if not isinstance(layer, keras.layers.Lambda) else ():
            value = getattr(layer, name, None)
            if callable(value) and not isinstance(value, keras.layers.Layer):
                config[name] = value
    elif _is_keras(next(base for base in cls.__mro__ if "get_config" in vars(base))):
        # Keras makes it up, of Keras's arguments and a layer's; a model's own it does not know.
        parameters = inspect.signature(cls).parameters
        own = named_parameters(cls).keys() - {"name", "trainable", "dtype"}
        if isinstance(layer, keras.Model) and own:
            raise NotImplementedError("it has no `get_config`")
        if not any(one.kind is one.VAR_KEYWORD for one in parameters.values()):
            config = {name: config[name] for name in parameters if name in config}
    return config


def _plain_config(layer):
    """The configuration of the namesake: our own less what is about normalisation."""
    cell = getattr(layer, "cell", layer)
    # A subclass from elsewhere may have a configuration of its own.
    config = next(base for base in type(layer).__mro__ if is_ours(base)).get_config(layer)
    for name in cell.normalization_parameters():
        del config[name]
    for name in ("in_layer", "frozen_normalizers"):
        config.pop(name, None)
    if cell.normalizer is not None:
        config["use_bias"] = True
    return config


def _build_like(layer, new):
    if layer.built and not new.built:
        new.build_from_config(layer.get_build_config())
        new.built = True


def _copy_state(layer, new):
    """Carries over what a `.keras` file holds of a layer itself: variables, vocabularies."""
    state = {}
    layer.save_own_variables(state)
    new.load_own_variables(state)
    if hasattr(layer, "save_assets"):
        with tempfile.TemporaryDirectory() as folder:
            layer.save_assets(folder)
            new.load_assets(folder)


def _check_independence(copy):
    """Raises an error where a function in the copy runs layers that are not the copy's."""
    layers = flattened_layers(copy)
    held = [(layer, layer.variables, list(_parts(layer).values())) for layer in layers]
    own = set(map(id, tf.nest.flatten(held)))

    def is_own(part):
        of_it = part.variables if isinstance(part, keras.layers.Layer) and part.built else [part]
        return id(part) in own or all(id(one) in own for one in of_it)

    for layer in layers:
        for name, reached in reached_from(layer, leave=_kept_by_keras()):
            if not is_own(reached):
                kind = "layer" if isinstance(reached, keras.layers.Layer) else "variable"
                raise ValueError(
                    f"The attribute {name!r} of {layer.name!r} ({type(layer).__name__}) runs the "
                    f"{kind} {reached.name!r} by itself, so a copy would not have one of its own. "
                    f"Let functions find the {kind} as an attribute of `self`."
                )


def _is_keras(cls):
    return cls.__module__.partition(".")[0] == "keras"
