"""Models for other runtimes, ONNX and LiteRT, through Keras's own `export(format=…)`.

An ONNX model takes any batch and length. In a LiteRT model a loop over time would become TensorList
operations, which the ai-edge-litert wheel refuses ("Select TensorFlow op(s) … FlexTensorListReserve
… failed to prepare"), so its loops are unrolled: one frame and the states where the model reads
forwards, and a fixed number of frames where it does not.
"""

import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path

import keras
import tensorflow as tf

from keras_bnrnn.serving.errors import ServingError
from keras_bnrnn.serving.stack import CarriedStack, Endpoint, Runtime

# What each format's export imports, and the extra that installs it.
FORMATS = {"onnx": "tf2onnx", "litert": "ai_edge_litert"}
SUFFIXES = {"onnx": ".onnx", "litert": ".tflite"}
FILES = {"serve": "whole", "step": "step"}


def whole(model: keras.Model, meaning: str = "the model's inputs to its outputs") -> Runtime:
    """`serve` for other runtimes: a functional model, its inputs in a list."""
    flat = keras.Model(model.inputs, model.outputs)
    return Runtime(lambda frames: flat if frames is None else unrolled(flat, frames), meaning)


def stepping(
    model: keras.Model,
    head: Callable = lambda outputs: outputs,
    given: str = "the next frames",
    results: str = "outputs",
) -> Runtime:
    """`step` for other runtimes: a functional model that reads forwards, its states outside.

    Args:
        model: its frames all count.
        head: what is done to each output.
        given, results: what the model takes and returns, in words.
    """

    def build(frames):
        stack = CarriedStack(model, "none", frames)
        count = len(stack.state_specs)
        outputs, states = stack.model.outputs[:-count], stack.model.outputs[-count:]
        return keras.Model(stack.model.inputs, [*map(head, outputs), *states])

    return Runtime(
        build, f"{given} and states to {results} and new states, in the order of the inputs"
    )


def check_formats(formats: Sequence[str]) -> None:
    """Raises a `ServingError` for unknown formats, `ModuleNotFoundError` for a missing extra."""
    unknown = sorted(set(formats) - set(FORMATS))
    if unknown:
        raise ServingError(f"{','.join(unknown)} is not of {', '.join(FORMATS)}", "formats")
    for kind in formats:
        if importlib.util.find_spec(FORMATS[kind]) is None:
            raise ModuleNotFoundError(
                f"the format {kind} needs the package {FORMATS[kind]}: install "
                f'keras-bnrnn[{kind}] (pip install "keras-bnrnn[{kind}]")'
            )


def runtime_models(
    endpoints: dict[str, Endpoint], formats: Sequence[str], num_frames: int
) -> dict[str, tuple[keras.Model, str]]:
    """The Keras models to export.

    Args:
        endpoints: of the model.
        formats: of `FORMATS`.
        num_frames: length of the sequences that a whole LiteRT model takes.

    Returns:
        `{file name: (model, what it takes and returns)}`.
    """
    runtimes = {
        file: endpoints[name].runtime
        for name, file in FILES.items()
        if name in endpoints and endpoints[name].runtime
    }
    models = {}
    if "onnx" in formats:
        for file, runtime in runtimes.items():
            models[f"{file}.onnx"] = runtime.build(None), runtime.meaning
    if "step" in runtimes and "litert" in formats:
        models["step.tflite"] = (
            runtimes["step"].build(1),
            "the same for one frame or token of one stream; call it by names, through the "
            "signature, whose outputs are output_0, output_1, … in that order: the order in which "
            "the interpreter lists tensors means nothing",
        )
    elif "litert" in formats:
        models["whole.tflite"] = (
            runtimes["whole"].build(num_frames),
            "the same for one utterance of a fixed length",
        )
    return models


def unrolled(model, num_frames):
    """A copy of a model for one sequence of a fixed number of frames, without a loop.

    A shorter one is filled up with what the model masks.
    """

    def clone(layer):
        config = layer.get_config()
        if isinstance(layer, keras.layers.Bidirectional):
            for direction in ("layer", "backward_layer"):
                if direction in config:
                    config[direction]["config"]["unroll"] = True
        elif isinstance(layer, keras.layers.RNN):
            config["unroll"] = True
        copy = type(layer).from_config(config)
        if isinstance(copy, keras.layers.Bidirectional):
            # Unrolled, Keras blanks the padded frames of the backward direction by the mask of the
            # forward one. Nobody reads these frames: the layers after it are masked as well.
            copy.forward_layer.zero_output_for_mask = False
            copy.backward_layer.zero_output_for_mask = False
        return copy

    inputs = [
        keras.Input(
            batch_shape=(1, *(num_frames if size is None else size for size in one.shape[1:])),
            dtype=one.dtype,
            name=one.name,
        )
        for one in model.inputs
    ]
    copy = keras.models.clone_model(model, input_tensors=inputs, clone_function=clone)
    copy.set_weights(model.get_weights())
    return copy


def export_runtime(model: keras.Model, path: Path) -> None:
    """Writes a Keras model as ONNX (`.onnx`) or LiteRT (`.tflite`)."""
    kind = next(kind for kind, suffix in SUFFIXES.items() if path.suffix == suffix)
    signature = [tf.TensorSpec(one.shape, one.dtype, one.name) for one in model.inputs]
    if len(signature) > 1:
        signature = [signature]
    model.export(str(path), format=kind, input_signature=signature, verbose=False)
