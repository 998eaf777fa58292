"""Models for other runtimes: onnxruntime and ai-edge-litert give the Keras model's numbers."""

import keras
import numpy as np
import pytest

from keras_bnrnn import (
    BatchNormGRU,
    BatchNormGRUCell,
    BatchNormLSTM,
    BatchNormLSTMCell,
    BatchNormSimpleRNN,
    Bidirectional,
    fold_batch_norm,
    serving,
)
from keras_bnrnn.data.speech.corpus import load_corpus
from keras_bnrnn.serving import runtimes
from keras_bnrnn.serving.language import language_endpoints
from keras_bnrnn.serving.litert import CHUNK, TURN
from keras_bnrnn.serving.saved_model import for_serving
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

    def make(kind, formats):
        if kind == "language":
            pytest.importorskip("tensorflow_text", reason="the extra 'text' is not installed")
            endpoints = language_endpoints(models[kind], WORDS, "running_text")
        else:
            endpoints = speech_endpoints(models[kind], load_corpus(tiny_corpus))
        found = runtimes.runtime_models(endpoints, formats)
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


def litert(model, path, quantize=None):
    """The signature of a `.tflite` file that is made of a model."""
    interpreter = pytest.importorskip(
        "ai_edge_litert.interpreter", reason="the extra 'litert' is not installed"
    )
    runtimes.export_runtime(model, path, quantize)
    return interpreter.Interpreter(str(path)).get_signature_runner()


@pytest.mark.slow
def test_onnxruntime_of_what_cannot_be_folded(tmp_path):
    """Statistics of each step, at the steps of a sequence that comes whole."""
    onnxruntime = pytest.importorskip("onnxruntime", reason="the extra 'onnx' is not installed")
    pytest.importorskip("tf2onnx", reason="the extra 'onnx' is not installed")
    keras.utils.set_random_seed(0)
    inputs = keras.Input((None, 3), name="values")
    x = BatchNormGRU(4, return_sequences=True, normalization="frame", max_timesteps=5)(inputs)
    x = BatchNormLSTM(4, return_sequences=True, normalize_recurrent=True)(x)
    model = keras.Model(inputs, keras.layers.Dense(2)(x))
    model.compile("sgd", "mse")
    values = np.random.default_rng(0).normal(2.0, 3.0, size=(8, 20, 3)).astype("float32")
    model.fit(values, np.zeros((8, 20, 2)), epochs=2, verbose=0)
    serving.export(model, tmp_path / "exported", formats=["onnx"])
    session = onnxruntime.InferenceSession(tmp_path / "exported/whole.onnx")
    for given in (values, values[:1, :3]):
        [found] = session.run(None, {"values": given})
        np.testing.assert_allclose(found, model(given), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["forward", "language"])
def test_litert_in_chunks_of_any_length(models, runtime_models, kind, tmp_path):
    model = runtime_models(kind, ["litert"])["step.tflite"]
    run = litert(model, tmp_path / "step.tflite")
    frames = values(model.inputs[:1], [74], seed=1)[0]
    states = {one.name: np.zeros(one.shape, "float32") for one in model.inputs[1:]}
    scores = []
    for chunk in np.split(frames, [1, 2, 5, 70], axis=1):
        outputs = run(**{model.inputs[0].name: chunk}, **states)
        scores.append(outputs["output_0"])
        states = {name: outputs[f"output_{k}"] for k, name in enumerate(states, 1)}
    scores = np.concatenate(scores, axis=1)
    whole = runtimes.stepping(models[kind], keras.ops.log_softmax).build(False)
    zeros = [np.zeros(one.shape, "float32") for one in model.inputs[1:]]
    expected = np.asarray(whole([frames, *zeros])[0])
    if kind == "forward":
        lengths = np.array([frames.shape[1]], "int32")
        unbroken = keras.ops.log_softmax(models[kind]({"features": frames, "lengths": lengths}))
        np.testing.assert_allclose(expected, unbroken, atol=1e-5)
    np.testing.assert_allclose(scores, expected, atol=1e-5)


def with_states():
    inputs = keras.Input((None, 3))
    _, *states = BatchNormLSTM(4, return_state=True)(inputs)
    outputs = BatchNormLSTM(4, return_sequences=True)(inputs, initial_state=states)
    return keras.Model(inputs, [*states, outputs])


def stacked(*layers):
    return keras.Sequential([keras.Input((None, 3)), *layers])


def called_twice():
    inputs = keras.Input((None, 3))
    layer = keras.layers.LSTM(3, return_sequences=True)
    part = stacked(BatchNormGRU(3, return_sequences=True))
    return keras.Model(inputs, part(part(layer(layer(inputs)))))


WHOLE_MODELS = {
    "last": lambda: stacked(keras.layers.Masking(), BatchNormGRU(4)),
    "bidirectional": lambda: stacked(
        Bidirectional(BatchNormSimpleRNN(4, return_sequences=True)),
        keras.layers.Bidirectional(keras.layers.GRU(3, reset_after=False), merge_mode="mul"),
    ),
    "steps": lambda: stacked(
        BatchNormLSTM(
            4,
            return_sequences=True,
            go_backwards=True,
            normalization="frame",
            max_timesteps=6,
            normalize_recurrent=True,
            normalize_cell_state=True,
        )
    ),
    "cells": lambda: stacked(
        keras.layers.RNN([keras.layers.LSTMCell(3), BatchNormGRUCell(4)], return_sequences=True)
    ),
    "counting cell": lambda: stacked(keras.layers.RNN(BatchNormLSTMCell(3, max_timesteps=4))),
    "states": with_states,
    "nested": lambda: stacked(stacked(BatchNormLSTM(4)), keras.layers.Dense(2)),
    "twice": called_twice,
}


@pytest.mark.parametrize(
    "kind",
    [
        kind if kind in ("bidirectional", "steps") else pytest.param(kind, marks=pytest.mark.slow)
        for kind in WHOLE_MODELS
    ],
)
def test_litert_of_any_length(kind, tmp_path):
    model = WHOLE_MODELS[kind]()
    rng = np.random.default_rng(0)
    model.set_weights([0.5 * np.abs(rng.normal(size=w.shape)) for w in model.get_weights()])
    served, _ = for_serving(model)
    one_row = runtimes.whole(served).build(True)
    run = litert(one_row, tmp_path / "whole.tflite")
    chunk = CHUNK * TURN
    for frames in (1, TURN, TURN + 1, chunk - 1, chunk, CHUNK * chunk, CHUNK * chunk + TURN + 1):
        x = rng.normal(size=(1, frames, 3)).astype("float32")
        outputs = run(**{one_row.inputs[0].name: x})
        for index, expected in enumerate(keras.tree.flatten(model(x))):
            np.testing.assert_allclose(outputs[f"output_{index}"], expected, atol=2e-6)


def test_litert_cannot_run_the_loop_within_a_wrapper():
    model = keras.Sequential(
        [keras.Input((2, 5, 3)), keras.layers.TimeDistributed(keras.layers.LSTM(2))]
    )
    with pytest.raises(serving.ServingError, match="the loop within 'time_distributed"):
        runtimes.whole(keras.Model(model.inputs, model.outputs)).build(True)


@pytest.mark.slow
def test_litert_of_an_acoustic_model(models, runtime_models, tmp_path):
    model = models["bidirectional"]
    run = litert(runtime_models("bidirectional", ["litert"])["whole.tflite"], tmp_path / "a.tflite")
    for frames in (12, 100):
        features = np.random.default_rng(frames).normal(size=(1, frames, 123)).astype("float32")
        lengths = np.array([frames], "int32")
        expected = model({"features": features, "lengths": lengths})
        np.testing.assert_allclose(run(features=features)["output_0"], expected, atol=1e-5)


@pytest.mark.parametrize(
    ("quantize", "size", "error"), [("dynamic", 0.45, 0.03), ("float16", 0.65, 2e-3)]
)
@pytest.mark.parametrize("kind", ["tflite", pytest.param("onnx", marks=pytest.mark.slow)])
def test_quantized(kind, quantize, size, error, tmp_path):
    lstm = keras.layers.LSTM(128, return_sequences=True)
    model = keras.Model(inputs := keras.Input((None, 40), name="x"), lstm(inputs))
    path = tmp_path / f"whole.{kind}"
    one_row = runtimes.whole(model).build(kind == "tflite")
    x = np.random.default_rng(0).normal(size=(1, 50, 40)).astype("float32")
    if kind == "tflite":
        actual = litert(one_row, path, quantize)(x=x)["output_0"]
    else:
        onnxruntime = pytest.importorskip("onnxruntime", reason="the extra 'onnx' is not installed")
        runtimes.export_runtime(one_row, path, quantize)
        [actual] = onnxruntime.InferenceSession(path).run(None, {"x": x})
    difference = np.abs(actual - model(x)).max()
    assert 1e-6 < difference < error
    assert path.stat().st_size < size * 4 * model.count_params()


def test_litert_is_hardly_larger_than_its_weights(tmp_path):
    lstm = keras.layers.LSTM(64, return_sequences=True)
    model = keras.Model(inputs := keras.Input((None, 60), name="x"), lstm(inputs))
    litert(runtimes.whole(model).build(True), tmp_path / "whole.tflite")
    size = (tmp_path / "whole.tflite").stat().st_size
    assert size < 1.2 * 4 * model.count_params()
    assert size - 4 * model.count_params() < 22_000


def test_litert_refuses_a_loop_over_time(tmp_path):
    """The limit that `serving/litert.py` works around. Should this fail, it need not any more."""
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
    serving.export(model, tmp_path / "exported", formats=["onnx", "litert"])
    card = (tmp_path / "exported/MODEL_CARD.md").read_text()
    for file in ("whole.onnx", "whole.tflite"):
        assert (tmp_path / "exported" / file).stat().st_size
        assert f"| {file} |" in card
    assert "`values` [1, None, 3]" in card


def test_missing_extras(monkeypatch):
    monkeypatch.setattr(runtimes.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"keras-bnrnn\[onnx\]"):
        runtimes.check_formats(["onnx"])


def test_unknown_quantization():
    with pytest.raises(serving.ServingError, match="'int4' is not of dynamic, float16"):
        runtimes.check_formats(["onnx"], "int4")
    with pytest.raises(serving.ServingError, match="name formats"):
        runtimes.check_formats([], "dynamic")
