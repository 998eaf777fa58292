"""A model wired anew, its masks and recurrent states coming from outside.

What an endpoint computes is plain TensorFlow around such a model. It takes and returns named
tensors, and nothing in it needs keras_bnrnn, so whoever loads the SavedModel needs TensorFlow alone
(and tensorflow_text, where strings are tokenised).
"""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from keras_bnrnn.data.masks import FillPadding
from keras_bnrnn.keras_internals import flattened_layers
from keras_bnrnn.layers import BatchNormRNN
from keras_bnrnn.serving.errors import ServingError
from keras_bnrnn.serving.fused import FusedLSTM, aside, is_small
from keras_bnrnn.serving.litert import OneSequence, one_sequence, projecting

# What has no say where the mask comes from outside.
MASKING = (keras.layers.Masking, FillPadding)
# What gives each frame a value of its own at inference, if it has no axis or the last one.
PER_FRAME = tuple(
    getattr(keras.layers, name)
    for name in (
        *("Activation", "ActivityRegularization", "Add", "AlphaDropout", "Average"),
        *("BatchNormalization", "Concatenate", "Dense", "Dropout", "ELU", "GaussianDropout"),
        *("GaussianNoise", "Identity", "LayerNormalization", "LeakyReLU", "Masking", "Maximum"),
        *("Minimum", "Multiply", "ReLU", "Rescaling", "Softmax", "SpatialDropout1D", "Subtract"),
    )
)


class Runtime(NamedTuple):
    """An endpoint's model for runtimes other than TensorFlow.

    Attributes:
        build: from whether it is for one row, all of whose frames count, in the loops of
            `litert.py`, to a `keras.Model` for any length.
        meaning: what the model takes and returns, for MODEL_CARD.md.
    """

    build: Callable
    meaning: str


class Endpoint(NamedTuple):
    """A signature to be.

    Attributes:
        function: from tensors in the order of `inputs` to a dictionary of tensors.
        inputs: `tf.TensorSpec`s with names.
        purpose: a sentence for MODEL_CARD.md.
        meanings: what each input and output is, by name.
        runtime: how other runtimes get it, if they do.
        resources: lookup tables that `function` reads.
    """

    function: Callable
    inputs: list
    purpose: str
    meanings: dict
    runtime: Runtime | None = None
    resources: Sequence = ()


class CarriedStack:
    """A model whose recurrent layers start from given states and return theirs.

    Args:
        model: functional; it shares its weights.
        mask: `"own"`, the model masks frames as it is built to; `"given"`, a mask comes with the
            inputs in place of that and of their lengths; `"none"`, all frames count.
        one_row: whether it is for batches of one row, in the loops of `litert.py`.
        blocks: whether the model may join blocks of frames to one, each for itself; a given mask is
            then that of the blocks.
        small: whether it is for small inputs alone.

    Attributes:
        model: from `[*inputs, mask if given, *states]` to `[*outputs, *new states]`.
        quick: from `[*inputs, *states]` to the same, for small inputs all of whose frames count;
            `None` if it would be no quicker.
        state_specs: names and shapes of the states.

    Raises:
        ServingError: the model does not read forwards, frame by frame.
    """

    def __init__(
        self,
        model: keras.Model,
        mask: str = "own",
        one_row: bool = False,
        blocks: bool = False,
        small: bool = False,
    ):
        batch = 1 if one_row else None
        inputs = [
            keras.Input(
                batch_shape=(batch, None, *one.shape[2:])[: len(one.shape)],
                dtype=one.dtype,
                name=one.name,
            )
            for one in model.inputs
        ]
        given = [keras.Input(batch_shape=(batch, None), dtype="bool", name="mask")]
        given = given if mask == "given" else []
        before = {
            layer: [
                keras.Input(batch_shape=(batch, size), name=f"{layer.name}_{suffix}")
                for suffix, size in _state_sizes(layer)
            ]
            for layer in model.layers
            if isinstance(layer, keras.layers.RNN)
        }
        frames_alone = _Frames(blocks)
        states, after = keras.tree.flatten(list(before.values())), {}

        def call(layer, *args, **kwargs):
            if mask != "own" and isinstance(layer, MASKING):
                return args[0]
            if layer not in before:
                return frames_alone.call(layer, args, kwargs)
            _check_reads_forwards(layer, args, kwargs)
            if layer in after:
                raise ServingError(f"{layer.name!r} is called twice")
            if one_row:
                kwargs.pop("mask", None)
            elif mask != "own":
                kwargs["mask"] = given[0] if given else None
            kwargs["initial_state"] = keras.tree.pack_sequence_as(
                layer.cell.state_size, before[layer]
            )
            kept = projecting(layer) if one_row else layer
            carrying = _returning_states(kept, args[0].shape, small)
            if one_row:
                carrying = OneSequence(carrying)
            values, *after[layer] = carrying(*args, **kwargs)
            return values

        outputs = _call_again(model, inputs, [*given, *states], call)
        if not states or any(len(one.shape) < 3 for one in outputs):
            raise ServingError(f"{model.name!r} has no output for each frame that it reads")
        new_states = keras.tree.flatten([after[layer] for layer in before])
        if mask != "own":
            inputs = _without_lengths(inputs)
        self.model = keras.Model([*inputs, *given, *states], [*outputs, *new_states])
        self.state_specs = [
            tf.TensorSpec([None, one.shape[1]], tf.float32, one.name) for one in states
        ]
        self.quick = None
        if not small and any(isinstance(one, FusedLSTM) and one.over_time for one in before):
            quick_mask = "own" if mask == "own" else "none"
            self.quick = CarriedStack(model, quick_mask, blocks=blocks, small=True).model

    def __call__(self, inputs, states, mask=None):
        """Runs the model.

        Args:
            inputs: a list, `[batch, time, …]` or `[batch]`; there may be no frame.
            states: in the order of `state_specs`, `[batch, units]`.
            mask: `[batch, time]`, if it is to be given.

        Returns:
            The list of outputs, `[batch, time, …]`, and that of the new states.
        """
        time = tf.shape(_of_frames(inputs))[1]
        given = [
            one if one.shape.rank < 2 else at_least_one_frame(one)
            for one in (*inputs, *([] if mask is None else [mask]))
        ]
        outputs, after = self.split(self.model([*given, *states], training=False))
        if mask is None:  # Where one is given it leaves out the frame that there was not.
            after = [tf.where(time > 0, new, old) for new, old in zip(after, states, strict=True)]
        return [one[:, :time] for one in outputs], after

    def quickly(self, inputs, states, answers, otherwise, lengths=None, condition=True):
        """What `otherwise` returns, in fewer operations where the inputs are small.

        Of a call of one frame these take most of the time.

        Args:
            inputs, states: as they came, unchecked.
            answers: from a list of outputs and one of new states to what is returned.
            otherwise: a function without arguments, for all other calls.
            lengths: `[batch]`; if given, all frames have to count for the quick way.
            condition: without which it is not taken.
        """
        if self.quick is None:
            return otherwise()
        frames = _of_frames(inputs)
        batch, time = tf.unstack(tf.shape(frames)[:2])
        of_rows = [*inputs, *states]
        if lengths is not None:
            of_rows.append(lengths)
            condition &= tf.reduce_all(lengths == time)
        same_rows = tf.reduce_all(_row_counts(of_rows) == batch)
        return tf.cond(
            same_rows & is_small(frames) & (time > 0) & condition,
            lambda: answers(*self.split(self.quick([*inputs, *states], training=False))),
            lambda: aside(otherwise),
        )

    def split(self, results):
        """The outputs and the new states among what `model` or `quick` returns."""
        count = len(self.state_specs)
        return results[:-count], results[-count:]

    def named(self, states):
        """The states as a dictionary, under the names of the inputs they are for."""
        return {spec.name: state for spec, state in zip(self.state_specs, states, strict=True)}

    def zeros(self, batch):
        """The states that sequences begin with."""
        return [tf.zeros([batch, spec.shape[1]]) for spec in self.state_specs]

    def meanings(self):
        return {
            spec.name: f"float32 [batch, {spec.shape[1]}], a state: zeros to begin with, then what "
            "the last call returned"
            for spec in self.state_specs
        }


def carried_stack(model: keras.Model, **options) -> CarriedStack | None:
    """A `CarriedStack` of the model, or `None` if it does not read forwards frame by frame."""
    try:
        return CarriedStack(model, **options)
    except ServingError:
        return None


def with_mask(model: keras.Model) -> keras.Model:
    """The model with a mask, `[batch, time]`, as its last input, for its own masks and lengths."""
    inputs = _inputs_like(model.inputs)
    mask = keras.Input((None,), dtype="bool", name="mask")

    def call(layer, *args, **kwargs):
        if isinstance(layer, MASKING):
            return args[0]
        if isinstance(layer, (keras.layers.RNN, keras.layers.Bidirectional)):
            kwargs["mask"] = mask
        return layer(*args, **kwargs)

    outputs = _call_again(model, inputs, [mask], call)
    inputs = _without_lengths(inputs)
    return keras.Model([*inputs, mask], keras.tree.pack_sequence_as(model.output, outputs))


def of_one_row(model: keras.Model) -> keras.Model:
    """The model for one row, all of whose frames count, in the loops of `litert.py`.

    Raises:
        ServingError: a layer of another kind has a recurrent one within.
    """

    @functools.cache  # What is called twice stays one.
    def made(layer):
        if isinstance(layer, (keras.layers.RNN, keras.layers.Bidirectional)):
            return one_sequence(layer)
        if isinstance(layer, keras.Model):
            return _wired_anew(layer, call, batch=1)
        if isinstance(layer, keras.layers.Layer) and any(
            isinstance(one, keras.layers.RNN) for one in flattened_layers(layer)
        ):
            raise ServingError(f"LiteRT cannot run the loop within {layer.name!r}", "formats")
        return layer

    def call(layer, *args, **kwargs):
        if isinstance(layer, MASKING):
            return args[0]
        if isinstance(layer, (keras.layers.RNN, keras.layers.Bidirectional)):
            kwargs.pop("mask", None)
        return made(layer)(*args, **kwargs)

    whole = _wired_anew(model, call, batch=1)
    return keras.Model(_without_lengths(whole.inputs), whole.outputs)


def with_named_inputs(model: keras.Model, names: Sequence[str]) -> keras.Model:
    """The model with other names for its inputs, which take batches of any size."""
    return _wired_anew(model, lambda layer, *args, **kwargs: layer(*args, **kwargs), names)


def _wired_anew(model, call, names=None, batch=None):
    """The model, its layers called by `call`, on inputs of those names and that batch size."""
    inputs = _inputs_like(model.inputs, names, batch)
    outputs = _call_again(model, inputs, [], call)
    return keras.Model(
        keras.tree.pack_sequence_as(model.input, inputs),
        keras.tree.pack_sequence_as(model.output, outputs),
        name=model.name,
    )


def _inputs_like(tensors, names=None, batch=None):
    return [
        keras.Input(one.shape[1:], batch, dtype=one.dtype, name=name)
        for one, name in zip(tensors, names or [one.name for one in tensors], strict=True)
    ]


def _without_lengths(inputs):
    return [one for one in inputs if len(one.shape) > 1]


def _call_again(model, inputs, more, call):
    """The outputs of a functional model's own layers, called by `call`, on new inputs and more."""
    flat = keras.Model([*model.inputs, *more], model.outputs, name=model.name)
    return keras.models.clone_model(
        flat,
        input_tensors=[*inputs, *more],
        clone_function=lambda layer: layer,
        call_function=call,
    ).outputs


def _row_counts(tensors):
    return tf.stack([tf.shape(one)[0] for one in tensors])


def _of_frames(inputs):
    """The first input that has frames, and no lengths."""
    return next(one for one in inputs if one.shape.rank > 1)


def _state_sizes(layer):
    """Pairs of a name, h and c where there are no more, and a size."""
    sizes = keras.tree.flatten(layer.cell.state_size)
    return list(zip("hc" if len(sizes) <= 2 else range(len(sizes)), sizes, strict=False))


class _Frames:
    """Calls what gives each frame a value of its own; anything else is a `ServingError`."""

    def __init__(self, blocks):
        self.masks, self.blocks = [], blocks

    def call(self, layer, args, kwargs):
        outputs = layer(*args, **kwargs)
        if isinstance(layer, keras.layers.Layer):
            known = _is_per_frame(layer, args) and not any(
                one is mask for one in keras.tree.flatten(args) for mask in self.masks
            )
            known = known or (self.blocks and _is_per_block(layer))
        else:  # Of bare operations those that make masks, which are made of integers.
            made = keras.tree.flatten(outputs)
            known = not any("float" in one.dtype for one in made)
            self.masks.extend(made)
        if not known:
            raise ServingError(f"{layer.name!r} may join values of several frames")
        return outputs


def _is_per_frame(layer, args):
    rank = len(keras.tree.flatten(args)[0].shape)
    return isinstance(layer, keras.layers.Embedding) or (
        isinstance(layer, PER_FRAME)
        and rank >= 3
        and set(np.ravel(getattr(layer, "axis", -1))) <= {-1, rank - 1}
    )


def _is_per_block(layer):
    """Whether a layer makes one frame of each block of frames, or completes the last block."""
    if isinstance(layer, keras.layers.ZeroPadding1D):
        return layer.padding[0] == 0
    return (
        isinstance(layer, keras.layers.Conv1D)
        and layer.kernel_size == layer.strides
        and layer.padding == "valid"
    )


def _check_reads_forwards(layer, args, kwargs):
    reasons = {
        "reads backwards": layer.go_backwards,
        "returns its last output only": not layer.return_sequences,
        "returns its states": layer.return_state,
        "starts from given states": len(args) > 1 or kwargs.get("initial_state") is not None,
        "reads no [batch, time, features]": len(args[0].shape) != 3,
        "counts time steps": getattr(layer, "max_timesteps", None) is not None,
    }
    for reason, holds in reasons.items():
        if holds:
            raise ServingError(f"{layer.name!r} {reason}")


def _returning_states(layer, shape, small):
    """A recurrent layer with the weights of `layer` that returns its states too."""
    options = {"return_sequences": True, "return_state": True, "unroll": False}
    if isinstance(layer, FusedLSTM) and layer.over_time:
        return layer.returning_states(small)
    if not isinstance(layer, BatchNormRNN):
        # A name that Keras gave might be that of a state, as `rnn_1` is of `rnn`.
        return keras.layers.RNN(layer.cell, name=f"{layer.name}_carrying", **options)
    copy = type(layer).from_config({**layer.get_config(), **options, "stateful": False})
    copy.build(shape)
    copy.set_weights(layer.get_weights())
    return copy


def at_least_one_frame(values):
    """`[batch, time, …]` with a frame of zeros if there is none, with which Keras's layers fail."""
    missing = tf.cast(tf.shape(values)[1] < 1, tf.int32)
    return tf.pad(values, [[0, 0], [0, missing]] + [[0, 0]] * (len(values.shape) - 2))


def checked(value, *demands):
    """`value`, a tensor or a list, once all `(condition, message, *what was received)` are met."""
    asserts = [tf.debugging.Assert(condition, list(data)) for condition, *data in demands]
    with tf.control_dependencies(asserts):
        return tf.nest.map_structure(tf.identity, value)


def checked_lengths(lengths, values):
    """The lengths, if `values`, `[batch, time, …]`, can have them."""
    batch, time = tf.shape(values)[0], tf.shape(values)[1]
    return checked(
        lengths,
        (
            tf.reduce_all(tf.shape(lengths) == [batch]),
            "lengths needs one number for each row. Rows, and shape received:",
            batch,
            tf.shape(lengths),
        ),
        (
            tf.reduce_all((lengths >= 0) & (lengths <= time)),
            "lengths must lie between 0 and what each row holds. Held, and received:",
            time,
            lengths,
        ),
    )


def checked_features(features, mask):
    """The features `[batch, time, dimension]`, zeros where `mask` is not set."""
    live = tf.cast(mask, tf.float32)[:, :, tf.newaxis]
    features = tf.math.multiply_no_nan(features, live)  # A fourth of the time of `tf.where`.
    finite = tf.reduce_all(tf.math.is_finite(features))
    return checked(features, (finite, "features holds values that are not finite"))


def checked_states(states, batch):
    """The states, if they are of as many rows as the input."""
    sizes = _row_counts(states)
    message = "the states are of another number of rows than the input. Rows, and received:"
    return checked(states, (tf.reduce_all(sizes == batch), message, batch, sizes))
