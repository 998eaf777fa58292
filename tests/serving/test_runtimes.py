"""Models for other runtimes: onnxruntime and ai-edge-litert give the Keras model's numbers."""

import keras
import numpy as np
import pytest

from keras_bnrnn import BatchNormGRU, fold_batch_norm, serving
from keras_bnrnn.data.speech.corpus import load_corpus
from keras_bnrnn.serving import runtimes
from keras_bnrnn.serving.language import language_endpoints
from keras_bnrnn.serving.speech import speech_endpoints
from untrained import WORDS, language_model, speech_model


@pytest.fixture(scope="module")
def models():
    return {
        "bidirectional": fold_batch_norm(speech_model()),
        "forward": fold_batch_norm(speech_model(bidirectional=False)),
        "language": fold_batch_norm(language_model()),
    }


@pytest.fixture
def runtime_models(models, tiny_corpus):
    """The Keras models for other runtimes by file name."""

    def make(kind, formats, frames=20):
        if kind == "language":
            pytest.importorskip("tensorflow_text", reason="the extra 'text' is not installed")
            endpoints = language_endpoints(models[kind], WORDS, "running_text")
        else:
            endpoints = speech_endpoints(models[kind], load_corpus(tiny_corpus))
        found = runtimes.runtime_models(endpoints, formats, frames)
        return {file: model for file, (model, _) in found.items()}

    return make


def values(tensors, sizes, seed=0):
    """A random value for each Keras input, with `sizes` for its unknown dimensions."""
    rng = np.random.default_rng(seed)
    filled = []
    for tensor in tensors:
        free = iter(sizes)
        shape = [next(free) if size is None else size for size in tensor.shape]
        integer = "int" in tensor.dtype
        value = rng.integers(0, len(WORDS), shape) if integer else rng.normal(size=shape)
        filled.append(value.astype(tensor.dtype))
    return filled


@pytest.mark.parametrize(
    "kind",
    [
        *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("bidirectional", "forward")),
        "language",
    ],
)
def test_onnxruntime(runtime_models, kind, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime", reason="the extra 'onnx' is not installed")
    pytest.importorskip("tf2onnx", reason="the extra 'onnx' is not installed")
    exported = runtime_models(kind, ["onnx"])
    expected_files = {
        "bidirectional": {"whole.onnx"},
        "forward": {"whole.onnx", "step.onnx"},
        "language": {"step.onnx"},
    }
    assert set(exported) == expected_files[kind]
    for file, model in exported.items():
        runtimes.export_runtime(model, tmp_path / file)
        session = onnxruntime.InferenceSession(tmp_path / file)
        for sizes in ((3, 7), (1, 40)):
            given = values(model.inputs, sizes)
            if file.startswith("whole"):
                given[1] = np.array([sizes[1] // 2, *[sizes[1]] * (sizes[0] - 1)], "int32")
            feeds = {one.name: value for one, value in zip(model.inputs, given, strict=True)}
            assert set(feeds) == {one.name for one in session.get_inputs()}
            expected = keras.tree.flatten(model(given if len(given) > 1 else given[0]))
            for actual, wanted in zip(session.run(None, feeds), expected, strict=True):
                np.testing.assert_allclose(actual, wanted, atol=1e-4)


@pytest.mark.parametrize("kind", ["forward", "language"])
def test_litert_one_step_at_a_time(models, runtime_models, kind, tmp_path):
    interpreter = pytest.importorskip(
        "ai_edge_litert.interpreter", reason="the extra 'litert' is not installed"
    )
    [(file, model)] = runtime_models(kind, ["litert"]).items()
    assert file == "step.tflite"
    runtimes.export_runtime(model, tmp_path / file)
    run = interpreter.Interpreter(str(tmp_path / file)).get_signature_runner()
    frames = values(model.inputs[:1], (), seed=1)[0].repeat(6, axis=1)
    frames = values([keras.KerasTensor(frames.shape, frames.dtype)], ())[0]
    states = {one.name: np.zeros(one.shape, "float32") for one in model.inputs[1:]}
    scores = []
    for t in range(frames.shape[1]):
        outputs = run(**{model.inputs[0].name: frames[:, t : t + 1]}, **states)
        scores.append(outputs["output_0"])
        states = {name: outputs[f"output_{k}"] for k, name in enumerate(states, 1)}
    scores = np.concatenate(scores, axis=1)
    whole = runtimes.stepping(models[kind], keras.ops.log_softmax).build(None)
    zeros = [np.zeros(one.shape, "float32") for one in model.inputs[1:]]
    expected = np.asarray(whole([frames, *zeros])[0])
    if kind == "forward":
        lengths = np.array([frames.shape[1]], "int32")
        unbroken = keras.ops.log_softmax(models[kind]({"features": frames, "lengths": lengths}))
        np.testing.assert_allclose(expected, unbroken, atol=1e-5)
    np.testing.assert_allclose(scores, expected, atol=1e-4)


@pytest.mark.slow
def test_litert_of_a_fixed_length(models, runtime_models, tmp_path):
    interpreter = pytest.importorskip(
        "ai_edge_litert.interpreter", reason="the extra 'litert' is not installed"
    )
    model = models["bidirectional"]
    [(file, copy)] = runtime_models("bidirectional", ["litert"], 12).items()
    assert file == "whole.tflite"
    runtimes.export_runtime(copy, tmp_path / file)
    run = interpreter.Interpreter(str(tmp_path / file)).get_signature_runner()
    for live in (12, 7, 1):
        features = np.random.default_rng(live).normal(size=(1, 12, 123)).astype("float32")
        lengths = np.array([live], "int32")
        actual = run(features=features, lengths=lengths)["output_0"][:, :live]
        for given in (features, features[:, :live]):  # What is padded makes no difference.
            expected = model({"features": given, "lengths": lengths})[:, :live]
            np.testing.assert_allclose(actual, expected, atol=1e-4)


def test_litert_refuses_a_loop_over_time(tmp_path):
    """The limit that `runtimes` works around. Should this fail, it need not any more."""
    interpreter = pytest.importorskip(
        "ai_edge_litert.interpreter", reason="the extra 'litert' is not installed"
    )
    path = tmp_path / "loop.tflite"
    layers = [keras.Input((None, 3)), keras.layers.SimpleRNN(2)]
    keras.Sequential(layers).export(str(path), format="litert", verbose=False)
    with pytest.raises((RuntimeError, ValueError), match="Select TensorFlow op"):
        interpreter.Interpreter(str(path)).allocate_tensors()


def test_any_model_beside_its_saved_model(tmp_path):
    pytest.importorskip("tf2onnx", reason="the extra 'onnx' is not installed")
    pytest.importorskip("ai_edge_litert", reason="the extra 'litert' is not installed")
    model = keras.Sequential([keras.Input((None, 3), name="values"), BatchNormGRU(2)])
    serving.export(model, tmp_path / "exported", formats=["onnx", "litert"], litert_frames=4)
    card = (tmp_path / "exported/MODEL_CARD.md").read_text()
    for file in ("whole.onnx", "whole.tflite"):
        assert (tmp_path / "exported" / file).stat().st_size
        assert f"| {file} |" in card
    assert "`values` [1, 4, 3]" in card


def test_missing_extras(monkeypatch):
    monkeypatch.setattr(runtimes.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"keras-bnrnn\[onnx\]"):
        runtimes.check_formats(["onnx"])
