"""Writing a model as a SavedModel with named signatures, a card, and files for other runtimes."""

import json
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import keras
import tensorflow as tf

from keras_bnrnn.files import local_path
from keras_bnrnn.folding import FoldingError, fold_batch_norm, remade
from keras_bnrnn.keras_internals import flattened_layers
from keras_bnrnn.serving.endpoints import input_names, model_endpoints
from keras_bnrnn.serving.errors import ServingError
from keras_bnrnn.serving.fused import fused
from keras_bnrnn.serving.model_card import model_card
from keras_bnrnn.serving.runtimes import check_formats, export_runtime, runtime_models
from keras_bnrnn.serving.stack import Endpoint, with_named_inputs

MODEL_CARD_FILE = "MODEL_CARD.md"
HALF = ("float16", "bfloat16")


def export(
    model: keras.Model,
    folder: str | Path,
    *,
    endpoints: Callable[[keras.Model], dict[str, Endpoint]] = model_endpoints,
    title: str | None = None,
    training: str | None = None,
    configuration: dict | None = None,
    assets: dict[str, dict] | None = None,
    formats: Sequence[str] = (),
    quantize: str | None = None,
) -> list[str]:
    """Writes a model for serving: loading it needs neither keras_bnrnn nor Keras.

    Normalisation is folded into kernels and biases where it can be; MODEL_CARD.md says where it
    could not, and what each input and output is. The signatures are `serve`, and `step` if the
    model reads forwards and has an output for each frame: the next frames and the states to outputs
    and new states. The first is `serving_default` too, where TensorFlow Serving looks. An input has
    the name of its `keras.Input` (`inputs` if it was given none), an output that of its layer, or
    its key in a dictionary. Batches may be of any size, computation is in float32, and states of
    `stateful` layers start from zero.

    Args:
        model: a built Sequential or functional model.
        folder: of the SavedModel; must be new or empty.
        endpoints: from the model as it is served to `{name: Endpoint}`, for other signatures.
        title: of the card, the model's name by default.
        training: Markdown for the card on what the model was trained on and how good it is.
        configuration: JSON values for the card.
        assets: `{file name: JSON values}`, written into the folder `assets` with the names of the
            `signatures`.
        formats: `"onnx"` and `"litert"`: files for these runtimes, beside the SavedModel's.
        quantize: weights of these files, None for float32: `"dynamic"` for 8 bits, `"float16"`.
            Small and less exact; the SavedModel stays as it is.

    Returns:
        The names of the signatures.

    Raises:
        ServingError: the model cannot be exported, or the folder is in use.
        ModuleNotFoundError: a format's package is missing; the message names the extra to install.

    Example:

    >>> import keras, keras_bnrnn, tempfile
    >>> from keras_bnrnn import serving
    >>> layer = keras_bnrnn.BatchNormLSTM(4, return_sequences=True)
    >>> model = keras.Sequential([keras.Input((None, 3)), layer])
    >>> serving.export(model, tempfile.mkdtemp())
    ['serve', 'step']
    """
    try:
        folder = local_path(folder)
    except ValueError as error:
        raise ServingError(str(error), "folder") from None
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ServingError(f"{folder} exists already; name a new or empty folder", "folder")
    check_formats(formats, quantize)
    served, unfolded = for_serving(model)
    made = endpoints(_without_cudnn(fused(served)))
    runtimes = runtime_models(endpoints(served), formats) if formats else {}

    def make_card(outputs):
        return model_card(
            title or model.name,
            training,
            configuration,
            unfolded,
            made,
            outputs,
            runtimes,
            quantize,
        )

    write_saved_model(folder, made, assets or {}, runtimes, make_card, quantize)
    return list(made)


def for_serving(model: keras.Model) -> tuple[keras.Model, dict[str, str]]:
    """A functional model that computes the same for batches of any size, on any device.

    It computes in float32 and without cuDNN: half precision pays on the devices that training ran
    on, not on those that serve; and cuDNN's operations, which Keras writes into the graph where it
    sees a GPU, run nowhere else. Its layers keep no states between calls.

    Returns:
        The model, with weights of its own, and why each layer that could not be folded could not.
    """
    _check_model(model)
    try:
        folded, unfolded = fold_batch_norm(model), {}
    except FoldingError as error:
        folded, unfolded = fold_batch_norm(model, strict=False), error.reasons
    if isinstance(folded, keras.Sequential):
        folded = keras.Model(folded.inputs[0], folded.outputs[0], name=folded.name)
    copy = remade(folded, _for_any_device(folded.get_config()))
    return with_named_inputs(_without_cudnn(copy), input_names(copy)), unfolded


def _without_cudnn(model):
    """The model itself; a configuration has no place for this."""
    for layer in flattened_layers(model):
        if hasattr(layer, "use_cudnn"):
            layer.use_cudnn = False
    return model


def _check_model(model):
    if not isinstance(model, keras.Model):
        raise ServingError(f"only a keras.Model can be exported. Received: {model!r}", "model")
    if not getattr(model, "inputs", None):
        advice = (
            "give it a keras.Input, or call it on a batch first"
            if isinstance(model, keras.Sequential)
            else "make it with keras.Model(inputs, outputs): from a subclass with a `call` of its "
            "own, its inputs and outputs have no names"
        )
        raise ServingError(
            f"{model.name!r} is no built Sequential or functional model; {advice}", "model"
        )
    if not type(model).call.__module__.startswith("keras."):
        raise ServingError(
            f"{type(model).__name__} has a `call` of its own, which its graph of layers does not "
            "show; make it with keras.Model(inputs, outputs)",
            "model",
        )


def _for_any_device(config):
    if isinstance(config, dict):
        if config.get("class_name") == "DTypePolicy":
            return {**config, "config": {"name": "float32"}}
        return {
            key: False
            if key == "stateful"
            else "float32"
            if key == "dtype" and value in HALF
            else _for_any_device(value)
            for key, value in config.items()
        }
    if isinstance(config, (list, tuple)):
        return type(config)(_for_any_device(value) for value in config)
    return config


def write_saved_model(
    folder: Path,
    endpoints: dict,
    assets: dict,
    runtimes: dict,
    make_card: Callable[[dict], str],
    quantize: str | None = None,
) -> None:
    """Writes the SavedModel, aside first and renamed when it is whole.

    Args:
        folder: not there, or empty.
        endpoints: `{name: Endpoint}`.
        assets: `{file name: JSON values}`.
        runtimes: what `runtime_models` returns.
        make_card: from `{endpoint: names of its outputs}` to the text of MODEL_CARD.md.
        quantize: weights of the files for other runtimes.
    """
    signatures = {
        name: tf.function(
            endpoint.function, input_signature=endpoint.inputs, autograph=False
        ).get_concrete_function()
        for name, endpoint in endpoints.items()
    }
    outputs = {name: list(function.structured_outputs) for name, function in signatures.items()}
    module = tf.Module()
    # Variables alone: a layer would bring functions and configuration that nobody calls.
    used = (variable for function in signatures.values() for variable in function.variables)
    module.weights = list({id(variable): variable for variable in used}.values())
    module.tables = [table for endpoint in endpoints.values() for table in endpoint.resources]
    signatures["serving_default"] = signatures[next(iter(endpoints))]
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".exporting-") as aside:
        whole = Path(aside) / "model"
        # A served model is not trained any further, so the loops' gradients stay out of it.
        options = tf.saved_model.SaveOptions(experimental_custom_gradients=False)
        tf.saved_model.save(module, str(whole), signatures, options)
        (whole / "assets").mkdir(exist_ok=True)
        for file, document in assets.items():
            document = {**document, "signatures": list(endpoints)}
            (whole / "assets" / file).write_text(json.dumps(document, indent=1) + "\n")
        for file, (model, _) in runtimes.items():
            export_runtime(model, whole / file, quantize)
        (whole / MODEL_CARD_FILE).write_text(make_card(outputs), encoding="utf-8")
        if folder.exists():
            folder.rmdir()
        os.rename(whole, folder)
