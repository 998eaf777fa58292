"""The signatures of any model: `serve`, and `step` where it reads forwards."""

import itertools
import re

import keras
import tensorflow as tf

from keras_bnrnn.keras_internals import flattened_layers
from keras_bnrnn.serving.runtimes import stepping, whole
from keras_bnrnn.serving.stack import Endpoint, carried_stack, checked_states

AUTOMATIC_INPUT = re.compile(r"(keras_tensor|input_layer)(_\d+)?")


def model_endpoints(model: keras.Model) -> dict[str, Endpoint]:
    """The endpoints of a functional model: what it computes, under the names that it has for it.

    Args:
        model: without normalisation.

    Returns:
        `{name: Endpoint}`.
    """
    inputs, outputs = input_names(model), output_names(model)
    specs = [
        tf.TensorSpec(one.shape, one.dtype, name)
        for name, one in zip(inputs, model.inputs, strict=True)
    ]
    flat = keras.Model(model.inputs, model.outputs)
    tables = lookup_tables(model)
    meanings = {
        name: described(one)
        for name, one in zip([*inputs, *outputs], [*model.inputs, *model.outputs], strict=True)
    }

    def serve(*values):
        results = keras.tree.flatten(flat(list(values), training=False))
        return dict(zip(outputs, results, strict=True))

    endpoints = {
        "serve": Endpoint(
            serve, specs, "What the model computes.", meanings, whole(model), resources=tables
        )
    }
    stack = carried_stack(model)
    if stack is not None:

        def answers(results, states):
            return {**dict(zip(outputs, results, strict=True)), **stack.named(states)}

        def step(*values):
            values, states = values[: len(specs)], values[len(specs) :]

            def checked():
                return answers(*stack(values, checked_states(states, tf.shape(values[0])[0])))

            return stack.quickly(values, states, answers, checked)

        pieces = [
            tf.TensorSpec([None, None, *spec.shape[2:]][: spec.shape.rank], spec.dtype, spec.name)
            for spec in specs
        ]
        endpoints["step"] = Endpoint(
            step,
            [*pieces, *stack.state_specs],
            "The same for the next frames of sequences that come in pieces of any size.",
            {**meanings, **stack.meanings()},
            stepping(model),
            tables,
        )
    return endpoints


def input_names(model: keras.Model) -> list[str]:
    """The names of the inputs, `inputs` for one that only Keras has named."""
    names = (one.name for one in model.inputs)
    return _distinct("inputs" if AUTOMATIC_INPUT.fullmatch(name) else name for name in names)


def output_names(model: keras.Model) -> list[str]:
    """The names of the outputs, as in Keras those of their layers if the model gives no others."""
    if isinstance(model.output, dict):
        return keras.tree.flatten({name: name for name in model.output})
    return _distinct(model.output_names)


def _distinct(names):
    found = []
    for name in names:
        numbered = (f"{name}_{count}" for count in itertools.count(1))
        free = (one for one in itertools.chain([name], numbered) if one not in found)
        found.append(next(free))
    return found


def described(tensor):
    """The dtype and shape of a Keras tensor, in words."""
    free = iter(["batch", "time"])
    sizes = [next(free, "any") if size is None else str(size) for size in tensor.shape]
    return f"{tensor.dtype} [{', '.join(sizes)}]"


def lookup_tables(model):
    """The tables within a model's layers, of vocabularies and the like."""
    kind = tf.saved_model.experimental.TrackableResource
    return [
        value
        for layer in flattened_layers(model)
        for value in vars(layer).values()
        if isinstance(value, kind)
    ]
