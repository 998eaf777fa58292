"""The signatures of models that write text."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import untrained
from keras_bnrnn.data.speech.corpus import load_corpus
from keras_bnrnn.data.speech.pipelines import speech_dataset
from keras_bnrnn.data.speech.transcripts import decoded
from keras_bnrnn.folding import fold_batch_norm
from keras_bnrnn.serving.runtimes import export_runtime, runtime_models
from keras_bnrnn.serving.speech import speech_endpoints
from untrained import noise, wav


@pytest.fixture
def batch(tiny_characters):
    inputs, *_ = next(iter(speech_dataset(load_corpus(tiny_characters), "dev", 9)))
    assert len(set(inputs["lengths"].numpy())) > 1
    return inputs


def best_texts(log_posteriors, alphabet):
    """Greedy search, written out."""
    found = []
    for row in log_posteriors.argmax(axis=-1):
        kept = [one for one, before in zip(row, [0, *row[:-1]], strict=True) if one != before]
        found.append(" ".join(decoded(kept, alphabet).split()))
    return found


def test_scores_and_texts_are_the_models(text, batch, tiny_characters):
    expected = tf.nn.log_softmax(text.model(batch)).numpy()
    mask = tf.sequence_mask(batch["lengths"])[..., tf.newaxis]
    junk = tf.where(mask, batch["features"], 50.0)
    served = text.signatures["serve"](features=junk, lengths=batch["lengths"])
    assert expected.shape[1] == -(-batch["features"].shape[1] // 4)
    np.testing.assert_allclose(served["log_posteriors"], expected, atol=1e-5)
    alphabet = load_corpus(tiny_characters).alphabet
    written = [one.decode() for one in served["text"].numpy()]
    assert written == best_texts(expected, alphabet)
    assert any(written)


def test_audio_is_written_as_its_samples(text, tmp_path):
    waveform = np.stack([noise(4000), noise(4000, 1)])
    counts = [4000, 2500]
    outputs = text.signatures["serve_waveform"](
        waveform=tf.constant(waveform), lengths=tf.constant(counts)
    )
    assert outputs["frames"].numpy().tolist() == [13, 8]  # Of 50 and 31.
    np.testing.assert_allclose(outputs["times"][0, :3], [0.02, 0.06, 0.1], atol=1e-6)
    files = [wav(row[:count], tmp_path) for row, count in zip(waveform, counts, strict=True)]
    heard = text.signatures["serve_audio"](audio=tf.constant(files))
    assert heard["text"].numpy().tolist() == outputs["text"].numpy().tolist()


@pytest.mark.parametrize("chunk", [4, 12, 1000])
def test_steps_equal_the_whole(text, batch, chunk):
    features, lengths = batch["features"], batch["lengths"]
    whole = text.signatures["serve"](features=features, lengths=lengths)["log_posteriors"]
    states, parts = text.zero_states(len(features)), []
    for start in range(0, features.shape[1], chunk):
        part = features[:, start : start + chunk]
        left = tf.clip_by_value(lengths - start, 0, part.shape[1])
        outputs = dict(text.signatures["step"](features=part, lengths=left, **states))
        parts.append(outputs.pop("log_posteriors"))
        states = outputs
    np.testing.assert_allclose(np.concatenate(parts, axis=1), whole, atol=1e-5)


def test_a_model_that_reads_both_ways_has_no_steps(tiny_characters):
    corpus = load_corpus(tiny_characters)
    model = fold_batch_norm(untrained.ctc_model())
    assert "step" not in speech_endpoints(model, corpus, 4)


@pytest.mark.parametrize("bidirectional", [True, False])
def test_models_for_other_runtimes_compute_the_same(tiny_characters, batch, bidirectional):
    """In Keras; what the runtimes make of it stands below."""
    corpus = load_corpus(tiny_characters)
    model = fold_batch_norm(untrained.ctc_model(bidirectional=bidirectional))
    made = runtime_models(speech_endpoints(model, corpus, 4), ["onnx", "litert"])
    expected = model(batch).numpy()
    whole = made["whole.onnx"][0]
    np.testing.assert_allclose(whole([batch["features"], batch["lengths"]]), expected, atol=1e-5)
    count = int(batch["lengths"][0])
    alone = made["whole.tflite"][0](batch["features"][:1, :count])
    alone = alone[0] if isinstance(alone, list) else alone
    np.testing.assert_allclose(alone, expected[:1, : -(-count // 4)], atol=1e-5)
    assert ("step.onnx" in made) is not bidirectional
    if not bidirectional:
        states = [keras.ops.zeros([1, 6])] * 4
        [scores, *_] = made["step.tflite"][0]([batch["features"][:1, :count], *states])
        expected = tf.nn.log_softmax(expected[:1, : -(-count // 4)])
        np.testing.assert_allclose(scores, expected, atol=1e-5)


@pytest.mark.parametrize("quantize", [None, pytest.param("dynamic", marks=pytest.mark.slow)])
def test_litert_writes_in_blocks_of_any_number(tiny_characters, tmp_path, quantize):
    interpreter = pytest.importorskip(
        "ai_edge_litert.interpreter", reason="the extra 'litert' is not installed"
    )
    model = fold_batch_norm(untrained.ctc_model(bidirectional=False))
    made = runtime_models(speech_endpoints(model, load_corpus(tiny_characters), 4), ["litert"])
    run = {}
    for file, (one_row, _) in made.items():
        export_runtime(one_row, tmp_path / file, quantize)
        run[file] = interpreter.Interpreter(str(tmp_path / file)).get_signature_runner()
    for frames in (1, 4, 70, 1030):
        x = np.random.default_rng(frames).normal(size=(1, frames, 123)).astype("float32")
        expected = model({"features": x, "lengths": np.array([frames])})
        found = run["whole.tflite"](features=x)["output_0"]
        np.testing.assert_allclose(found, expected, atol=0.05 if quantize else 1e-5)
    states = {one.name: np.zeros(one.shape, "float32") for one in one_row.inputs[1:]}
    parts = []
    for part in np.split(x, [4, 12, 1000], axis=1):
        outputs = run["step.tflite"](features=part, **states)
        parts.append(outputs["output_0"])
        states = {name: outputs[f"output_{k}"] for k, name in enumerate(states, 1)}
    found = np.concatenate(parts, axis=1)
    np.testing.assert_allclose(found, tf.nn.log_softmax(expected), atol=0.05 if quantize else 1e-5)


@pytest.mark.slow
def test_onnxruntime_writes(tiny_characters, batch, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime", reason="the extra 'onnx' is not installed")
    pytest.importorskip("tf2onnx", reason="the extra 'onnx' is not installed")
    model = fold_batch_norm(untrained.ctc_model(bidirectional=True))
    made = runtime_models(speech_endpoints(model, load_corpus(tiny_characters), 4), ["onnx"])
    export_runtime(made["whole.onnx"][0], tmp_path / "whole.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "whole.onnx")
    given = {name: np.asarray(value) for name, value in batch.items()}
    np.testing.assert_allclose(session.run(None, given)[0], model(batch), atol=1e-5)
