"""Folded models for other runtimes, ONNX and LiteRT, through Keras's own `export(format=…)`.

An ONNX model takes any batch and length. In a LiteRT model a loop over time would become TensorList
operations, which the ai-edge-litert wheel refuses ("Select TensorFlow op(s) … FlexTensorListReserve
… failed to prepare"), so its loops are unrolled: one frame and the states where the model reads
forwards, and a fixed number of frames where it does not.
"""

import importlib.util

import keras
import tensorflow as tf

from keras_bnrnn.serving.endpoints import CarriedStack, plain_stack

# What each format's export imports, and the extra that installs it.
FORMATS = {"onnx": "tf2onnx", "litert": "ai_edge_litert"}
SUFFIXES = {"onnx": ".onnx", "litert": ".tflite"}
MEANINGS = {
    "whole.onnx": "features [batch, time, dimension] and lengths [batch] to logits",
    "whole.tflite": "the same for one utterance of a fixed length",
    "step.onnx": "frames or tokens [batch, time] and states to log-probabilities and new states, "
    "in the order of the inputs",
    "step.tflite": "the same for one frame or token of one stream; call it by names, through the "
    "signature, whose outputs are output_0, output_1, … in that order: the order in which the "
    "interpreter lists tensors means nothing",
}


def runtime_models(model, formats, num_frames):
    """The Keras models to export.

    Args:
        model: folded; from features `[batch, time, dimension]` or tokens `[batch, time]` to logits.
        formats: of `FORMATS`.
        num_frames: length of the whole utterances that a LiteRT model takes.

    Returns:
        `{file name: keras.Model}`; `MEANINGS` says what they take and return.

    Raises:
        ModuleNotFoundError: names the extra to install.
    """
    for kind in formats:
        if importlib.util.find_spec(FORMATS[kind]) is None:
            raise ModuleNotFoundError(
                f"--formats={kind} needs the package {FORMATS[kind]}: install "
                f'keras-bnrnn[{kind}] (pip install "keras-bnrnn[{kind}]")'
            )
    stack = plain_stack(model)
    models = {}
    if "onnx" in formats:
        if not any(getattr(layer, "stateful", False) for layer in model.layers):
            models["whole.onnx"] = keras.Model(model.inputs, model.outputs)
        if stack is not None:
            models["step.onnx"] = stepping_model(model, stack, None)
    if "litert" in formats:
        if stack is None:
            models["whole.tflite"] = unrolled(model, num_frames)
        else:
            models["step.tflite"] = stepping_model(model, stack, 1)
    return models


def stepping_model(model, layers, num_frames):
    """`[frames, *states]` to `[scores, *new states]`; unrolled for a given number of frames.

    Scores are natural logarithms of probabilities. The batch is 1 where the length is given.
    """
    stack = CarriedStack(layers, unroll=num_frames is not None)
    batch = None if num_frames is None else 1
    given = model.inputs[0]
    frames = keras.Input(
        batch_shape=(batch, num_frames, *given.shape[2:]), dtype=given.dtype, name=input_name(model)
    )
    states = [
        keras.Input(batch_shape=(batch, spec.shape[1]), name=spec.name)
        for spec in stack.state_specs
    ]
    logits, new_states = stack(frames, states)
    return keras.Model([frames, *states], [keras.ops.log_softmax(logits), *new_states])


def input_name(model):
    """What the models' input is called, as in the SavedModel's signatures."""
    return "features" if len(model.inputs[0].shape) == 3 else "tokens"


def unrolled(model, num_frames):
    """A copy of a folded model for one utterance of a fixed number of frames, without a loop.

    A shorter utterance is filled up with what the model's mask leaves out.
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
    flat = keras.Model(model.inputs, model.outputs)
    copy = keras.models.clone_model(flat, input_tensors=inputs, clone_function=clone)
    copy.set_weights(flat.get_weights())
    return copy


def export_runtime(model, path):
    """Writes a Keras model as ONNX (`.onnx`) or LiteRT (`.tflite`)."""
    kind = next(kind for kind, suffix in SUFFIXES.items() if path.suffix == suffix)
    signature = [tf.TensorSpec(one.shape, one.dtype, one.name) for one in model.inputs]
    if len(signature) > 1:
        signature = [signature]
    model.export(str(path), format=kind, input_signature=signature, verbose=False)
