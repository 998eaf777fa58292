"""Models for other runtimes: onnxruntime and ai-edge-litert give the Keras model's numbers."""

import dataclasses
import json

import keras
import numpy as np
import pytest

import export
import train_speech
from command_line import CommandError
from keras_bnrnn import fold_batch_norm
from keras_bnrnn.serving import runtimes
from recipes import language_model
from recipes.speech_model import build_speech_model

WORDS = 50


@pytest.fixture(scope="module")
def models():
    """Folded models whose statistics are not those of a new layer."""
    keras.utils.set_random_seed(0)
    small = dataclasses.replace(language_model.RECIPES["small"], units=24)
    speech = {"normalized": True, "layers": 2, "units": 16}
    made = {
        "bidirectional": build_speech_model(123, 30, **speech),
        "forward": build_speech_model(123, 30, bidirectional=False, **speech),
        "language": language_model.build_language_model(small, WORDS, normalized=True),
    }
    rng = np.random.default_rng(0)
    for model in made.values():
        for weight in model.non_trainable_weights:
            if "moving" in weight.path:
                weight.assign(rng.uniform(0.5, 2.0, weight.shape))
    return {name: fold_batch_norm(model) for name, model in made.items()}


def values(tensors, sizes, seed=0):
    """A random value for each Keras input, with `sizes` for its unknown dimensions."""
    rng = np.random.default_rng(seed)
    filled = []
    for tensor in tensors:
        free = iter(sizes)
        shape = [next(free) if size is None else size for size in tensor.shape]
        integer = "int" in tensor.dtype
        value = rng.integers(0, WORDS, shape) if integer else rng.normal(size=shape)
        filled.append(value.astype(tensor.dtype))
    return filled


@pytest.mark.parametrize("kind", ["bidirectional", "forward", "language"])
def test_onnxruntime(models, kind, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime", reason="the extra 'onnx' is not installed")
    pytest.importorskip("tf2onnx", reason="the extra 'onnx' is not installed")
    exported = runtimes.runtime_models(models[kind], ["onnx"], 20)
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
def test_litert_one_step_at_a_time(models, kind, tmp_path):
    interpreter = pytest.importorskip(
        "ai_edge_litert.interpreter", reason="the extra 'litert' is not installed"
    )
    [(file, model)] = runtimes.runtime_models(models[kind], ["litert"], 20).items()
    assert file == "step.tflite"
    runtimes.export_runtime(model, tmp_path / file)
    run = interpreter.Interpreter(str(tmp_path / file)).get_signature_runner()
    reference = runtimes.runtime_models(models[kind], ["onnx"], 20) if kind == "forward" else None
    frames = values(model.inputs[:1], (), seed=1)[0].repeat(6, axis=1)
    frames = values([keras.KerasTensor(frames.shape, frames.dtype)], ())[0]
    states = {one.name: np.zeros(one.shape, "float32") for one in model.inputs[1:]}
    scores = []
    for t in range(frames.shape[1]):
        outputs = run(**{model.inputs[0].name: frames[:, t : t + 1]}, **states)
        scores.append(outputs["output_0"])
        states = {name: outputs[f"output_{k}"] for k, name in enumerate(states, 1)}
    scores = np.concatenate(scores, axis=1)
    if reference is None:
        whole = runtimes.stepping_model(
            models[kind], runtimes.plain_stack(models[kind]), num_frames=None
        )
        zeros = [np.zeros(one.shape, "float32") for one in model.inputs[1:]]
        expected = np.asarray(whole([frames, *zeros])[0])
    else:
        logits = np.asarray(reference["whole.onnx"]([frames, np.array([frames.shape[1]])]))
        expected = np.asarray(keras.ops.log_softmax(logits))
    np.testing.assert_allclose(scores, expected, atol=1e-4)


def test_litert_of_a_fixed_length(models, tmp_path):
    interpreter = pytest.importorskip(
        "ai_edge_litert.interpreter", reason="the extra 'litert' is not installed"
    )
    model = models["bidirectional"]
    [(file, copy)] = runtimes.runtime_models(model, ["litert"], 12).items()
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


def test_litert_refuses_a_loop_over_time(models, tmp_path):
    """The limit that `runtimes` works around. Should this fail, it need not any more."""
    interpreter = pytest.importorskip(
        "ai_edge_litert.interpreter", reason="the extra 'litert' is not installed"
    )
    path = tmp_path / "loop.tflite"
    layers = [keras.Input((None, 3)), keras.layers.SimpleRNN(2)]
    keras.Sequential(layers).export(str(path), format="litert", verbose=False)
    with pytest.raises((RuntimeError, ValueError), match="Select TensorFlow op"):
        interpreter.Interpreter(str(path)).allocate_tensors()


def test_export_writes_them_beside_the_saved_model(tiny_corpus, tmp_path, call_script):
    pytest.importorskip("tf2onnx", reason="the extra 'onnx' is not installed")
    pytest.importorskip("ai_edge_litert", reason="the extra 'litert' is not installed")
    run = f"--output_dir={tmp_path}/run"
    call_script(
        train_speech, f"--data_dir={tiny_corpus}", run, "--layers=1", "--units=4", "--epochs=1"
    )
    call_script(
        export,
        f"--run_dir={tmp_path}/run",
        f"--output_dir={tmp_path}/exported",
        "--formats=onnx,litert",
        "--litert_frames=3",
    )
    card = (tmp_path / "exported" / "MODEL_CARD.md").read_text()
    for file in ("whole.onnx", "whole.tflite"):
        assert (tmp_path / "exported" / file).stat().st_size
        assert file in card
    assert "`features` [1, 3, 123]" in card
    description = json.loads((tmp_path / "exported/assets/speech_model.json").read_text())
    assert description["sample_rate"] == 8000


def test_unknown_formats_and_missing_extras(
    models, monkeypatch, tiny_corpus, tmp_path, call_script
):
    monkeypatch.setattr(runtimes.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"keras-bnrnn\[onnx\]"):
        runtimes.runtime_models(models["forward"], ["onnx"], 20)
    monkeypatch.undo()
    run = f"--output_dir={tmp_path}/run"
    call_script(
        train_speech, f"--data_dir={tiny_corpus}", run, "--layers=1", "--units=4", "--epochs=1"
    )
    with pytest.raises(CommandError, match="--formats=coreml is not of onnx, litert"):
        call_script(
            export,
            f"--run_dir={tmp_path}/run",
            f"--output_dir={tmp_path}/exported",
            "--formats=coreml",
        )
    assert not (tmp_path / "exported").exists()
