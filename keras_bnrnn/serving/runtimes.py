"""Models for other runtimes: ONNX for any batch and length, LiteRT for one row of any length."""

import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path

import keras
import tensorflow as tf

from keras_bnrnn.serving.errors import ServingError
from keras_bnrnn.serving.litert import QUANTIZATIONS, convert
from keras_bnrnn.serving.stack import CarriedStack, Endpoint, Runtime, of_one_row

# What each format's export imports, and the extra that installs it.
FORMATS = {"onnx": "tf2onnx", "litert": "ai_edge_litert"}
SUFFIXES = {"onnx": ".onnx", "litert": ".tflite"}
FILES = {"serve": "whole", "step": "step"}


def whole(model: keras.Model, meaning: str = "the model's inputs to its outputs") -> Runtime:
    """`serve` for other runtimes: a functional model, its inputs in a list."""
    flat = keras.Model(model.inputs, model.outputs)
    return Runtime(lambda one_row: of_one_row(flat) if one_row else flat, meaning)


def stepping(
    model: keras.Model,
    head: Callable = lambda outputs: outputs,
    given: str = "the next frames",
    results: str = "outputs",
    blocks: bool = False,
) -> Runtime:
    """`step` for other runtimes: a functional model that reads forwards, its states outside.

    Args:
        model: its frames all count.
        head: what is done to each output.
        given, results: what the model takes and returns, in words.
        blocks: as for `CarriedStack`.
    """

    def build(one_row):
        stack = CarriedStack(model, "none", one_row, blocks)
        outputs, states = stack.split(stack.model.outputs)
        return keras.Model(stack.model.inputs, [*map(head, outputs), *states])

    return Runtime(
        build, f"{given} and states to {results} and new states, in the order of the inputs"
    )


def check_formats(formats: Sequence[str], quantize: str | None = None) -> None:
    """Raises a `ServingError` for what cannot be, `ModuleNotFoundError` for a missing extra."""
    if quantize is not None and quantize not in QUANTIZATIONS:
        raise ServingError(f"{quantize!r} is not of {', '.join(QUANTIZATIONS)}", "quantize")
    if quantize is not None and not formats:
        raise ServingError(f"{quantize} is for files of other runtimes; name formats", "quantize")
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
    endpoints: dict[str, Endpoint], formats: Sequence[str]
) -> dict[str, tuple[keras.Model, str]]:
    """The Keras models to export.

    Args:
        endpoints: of the model.
        formats: of `FORMATS`.

    Returns:
        `{file name: (model, what it takes and returns)}`.
    """
    runtimes = {
        file: endpoints[name].runtime
        for name, file in FILES.items()
        if name in endpoints and endpoints[name].runtime
    }
    return {
        f"{file}{SUFFIXES[kind]}": (
            runtime.build(one_row=kind == "litert"),
            runtime.meaning + ("; of one row" if kind == "litert" else ""),
        )
        for kind in FORMATS
        if kind in formats
        for file, runtime in runtimes.items()
    }


def export_runtime(model: keras.Model, path: Path, quantize: str | None = None) -> None:
    """Writes a Keras model as ONNX (`.onnx`) or LiteRT (`.tflite`)."""
    if path.suffix == SUFFIXES["litert"]:
        convert(model, path, quantize)
        return
    signature = [tf.TensorSpec(one.shape, one.dtype, one.name) for one in model.inputs]
    if len(signature) > 1:
        signature = [signature]
    model.export(str(path), format="onnx", input_signature=signature, verbose=False)
    if quantize == "dynamic":
        from onnxruntime.quantization import quantize_dynamic

        # Products of 8 bits overflow on processors without VNNI; 7 bits do not.
        quantize_dynamic(path, path, reduce_range=True)
    elif quantize == "float16":
        import onnx
        from onnxruntime.transformers.float16 import convert_float_to_float16

        onnx.save(convert_float_to_float16(onnx.load(path), keep_io_types=True), path)
