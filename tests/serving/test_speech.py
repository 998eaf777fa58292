"""The signatures of acoustic models: their numbers, and what strangers send them."""

import os
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_bnrnn.data.speech.corpus import load_corpus
from keras_bnrnn.data.speech.features import LogMelFilterBank
from keras_bnrnn.data.speech.pipelines import speech_dataset
from keras_bnrnn.serving.speech import speech_endpoints
from untrained import noise, speech_model, wav


def without_lengths():
    """A model that knows padding by its zeros, as those of former versions."""
    read = keras.layers.LSTM(4, return_sequences=True)
    layers = [keras.Input((None, 123)), keras.layers.Masking(), keras.layers.Bidirectional(read)]
    model = keras.Sequential([*layers, keras.layers.Dense(5)])
    return keras.Model(model.inputs[0], model.outputs[0])


@pytest.mark.parametrize("kind", ["forward", "bidirectional", "without lengths"])
def test_equals_the_model(speech, tiny_corpus, kind):
    corpus = load_corpus(tiny_corpus)
    inputs, _, mask = next(iter(speech_dataset(corpus, "dev", 9)))
    features, lengths = inputs["features"], inputs["lengths"]
    assert len(set(lengths.numpy())) > 1
    model, endpoints = speech.model, speech.signatures
    if kind != "forward":
        model = speech_model() if kind == "bidirectional" else without_lengths()
        endpoints = {name: one.function for name, one in speech_endpoints(model, corpus).items()}
        assert list(endpoints) == ["serve", "features", "serve_waveform", "serve_audio"]
    given = features if kind == "without lengths" else inputs
    expected = tf.nn.log_softmax(model(given)).numpy()
    # Whatever stands past the end must not count.
    junk = tf.where(mask[..., tf.newaxis], features, 50.0)
    actual = endpoints["serve"](features=junk, lengths=lengths)["log_posteriors"].numpy()
    np.testing.assert_allclose(actual[mask], expected[mask], atol=1e-5)
    np.testing.assert_allclose(np.exp(actual[mask]).sum(-1), 1.0, atol=1e-5)


def test_samples_are_scored_as_their_features(speech, tiny_corpus):
    corpus = load_corpus(tiny_corpus)
    front_end = LogMelFilterBank(sample_rate=8000, snip_edges=False)
    waveform = np.stack([noise(4000), noise(4000, 1), noise(4000, 2)])
    counts = [4000, 2500, 3999]
    serve = speech.signatures["serve_waveform"]
    outputs = serve(waveform=tf.constant(waveform), lengths=tf.constant(counts))
    assert outputs["frames"].numpy().tolist() == [front_end.num_frames(n) for n in counts]
    for row, (frames, samples) in enumerate(zip(outputs["frames"], counts, strict=True)):
        alone = front_end(waveform[row : row + 1, :samples])
        alone = (alone - corpus.mean) / np.sqrt(corpus.variance)
        alone = {"features": alone, "lengths": frames[tf.newaxis]}
        # The filter bank's logarithms enlarge the rounding of other batch shapes.
        expected = tf.nn.log_softmax(speech.model(alone))[0]
        np.testing.assert_allclose(outputs["log_posteriors"][row, :frames], expected, atol=1e-4)


def test_states_of_other_streams_are_refused(speech):
    given = {"features": tf.ones([2, 5, 123]), "lengths": tf.constant([5, 5])}
    with pytest.raises(tf.errors.InvalidArgumentError, match="another number of rows"):
        speech.signatures["step"](**given, **speech.zero_states(1))


@pytest.mark.parametrize("chunk", [1, 2, 7, 1000])
def test_any_chunking_equals_the_whole(speech, tiny_corpus, chunk):
    inputs, _, mask = next(iter(speech_dataset(load_corpus(tiny_corpus), "dev", 9)))
    features, lengths = inputs["features"], inputs["lengths"]
    assert len(set(lengths.numpy())) > 1
    whole = speech.signatures["serve"](features=features, lengths=lengths)["log_posteriors"].numpy()
    states = speech.zero_states(len(features))
    assert len(states) == 4
    parts = []
    for start in range(0, features.shape[1], chunk):
        part = features[:, start : start + chunk]
        left = tf.clip_by_value(lengths - start, 0, part.shape[1])
        outputs = dict(speech.signatures["step"](features=part, lengths=left, **states))
        parts.append(outputs.pop("log_posteriors").numpy())
        assert outputs.keys() == states.keys()
        states = outputs
    np.testing.assert_allclose(np.concatenate(parts, 1)[mask], whole[mask], atol=1e-5)


def test_wav_bytes_equal_samples(speech, tmp_path):
    rows = [noise(4000), noise(2500, 1), noise(100, 2)]
    audio = [wav(row, tmp_path) for row in rows]
    stereo = np.stack([noise(3000, 3), noise(3000, 4)], axis=1)
    audio.append(wav(stereo, tmp_path))
    rows.append(stereo.mean(axis=1))
    seen = speech.signatures["serve_audio"](audio=tf.constant(audio))
    waveform = np.zeros((4, 4000), np.float32)
    for row, samples in enumerate(rows):
        waveform[row, : len(samples)] = samples
    expected = speech.signatures["serve_waveform"](
        waveform=tf.constant(waveform), lengths=tf.constant([len(row) for row in rows])
    )
    np.testing.assert_array_equal(seen["frames"], expected["frames"])
    np.testing.assert_allclose(seen["times"], expected["times"])
    np.testing.assert_allclose(np.diff(seen["times"]), 0.01, rtol=1e-4)
    for row, count in enumerate(seen["frames"].numpy()):
        np.testing.assert_allclose(
            seen["log_posteriors"][row, :count], expected["log_posteriors"][row, :count], atol=1e-4
        )


def test_audio_of_another_rate_is_refused(speech, tmp_path):
    audio = wav(noise(4000), tmp_path, rate=16000)
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"has 16000 samples a second.*8000"):
        speech.signatures["serve_audio"](audio=tf.constant([audio]))
    with pytest.raises(tf.errors.InvalidArgumentError, match="RIFF"):
        speech.signatures["serve_audio"](audio=tf.constant([b"no audio"]))


def test_a_header_that_hides_the_samples_is_refused(speech, tmp_path):
    contents = bytearray(wav(np.zeros(4000, np.float32), tmp_path))
    contents[40:44] = bytes(4)
    with pytest.raises(tf.errors.InvalidArgumentError, match="says that no samples follow"):
        speech.signatures["serve_audio"](audio=tf.constant([bytes(contents)]))
    empty = wav(noise(0), tmp_path)
    assert speech.signatures["serve_audio"](audio=tf.constant([empty]))["frames"].numpy() == 0


def test_nothing_silence_and_clipping(speech):
    serve = speech.signatures["serve_waveform"]
    empty = serve(waveform=tf.zeros([0, 4000]), lengths=tf.zeros([0], tf.int32))
    assert empty["log_posteriors"].shape[0] == 0
    loud = np.clip(noise(4000) * 100, -1, 1)
    rows = tf.constant(np.stack([np.zeros(4000, np.float32), loud, loud]))
    outputs = serve(waveform=rows, lengths=tf.constant([4000, 4000, 0]))
    assert np.isfinite(outputs["log_posteriors"]).all()
    assert outputs["frames"].numpy()[2] == 0
    alone = serve(waveform=rows[1:2], lengths=tf.constant([4000]))
    np.testing.assert_allclose(outputs["log_posteriors"][1], alone["log_posteriors"][0], atol=1e-4)
    none = speech.signatures["serve_audio"](audio=tf.constant([], tf.string))
    assert none["log_posteriors"].shape[0] == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lengths": [5]}, r"one number for each row.* \[2\] \[1\]"),
        ({"lengths": [5, 6]}, r"between 0 and what each row holds.*5.*5 6"),
        ({"lengths": [-1, 5]}, r"between 0 and what each row holds.*-1 5"),
        ({"features": np.full((2, 5, 123), np.nan)}, "features holds values that are not finite"),
    ],
)
@pytest.mark.parametrize("name", ["serve", "step"])
def test_what_does_not_fit_is_said(speech, name, changes, message):
    states = speech.zero_states(2) if name == "step" else {}
    given = {"features": np.ones((2, 5, 123)), "lengths": [5, 3], **changes}
    features, lengths = tf.constant(given["features"], tf.float32), tf.constant(given["lengths"])
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        speech.signatures[name](features=features, lengths=lengths, **states)


def test_samples_that_are_none(speech):
    """What stands past the end may be anything; what counts may not."""
    rows = np.stack([noise(4000), noise(4000)])
    lengths = tf.constant([4000, 2500])
    serve = speech.signatures["serve_waveform"]
    expected = serve(waveform=tf.constant(rows), lengths=lengths)["log_posteriors"]
    rows[1, 2500:] = np.nan
    found = serve(waveform=tf.constant(rows), lengths=lengths)["log_posteriors"]
    np.testing.assert_allclose(found[0], expected[0], atol=1e-5)
    np.testing.assert_allclose(found[1, :30], expected[1, :30], atol=1e-5)
    for wrong in (rows, rows[:1] * 32768.0):
        with pytest.raises(tf.errors.InvalidArgumentError, match="divide by 32768"):
            serve(waveform=tf.constant(wrong), lengths=tf.fill([len(wrong)], 4000))
    with pytest.raises(tf.errors.InvalidArgumentError, match="lengths must lie between"):
        serve(waveform=tf.constant(rows), lengths=tf.constant([4000, 4001]))


def test_a_live_frame_of_zeros_is_no_padding(speech):
    features = np.random.default_rng(0).normal(size=(1, 9, 123)).astype(np.float32)
    features[:, 4:6] = 0.0
    given = {"features": tf.constant(features), "lengths": tf.constant([9])}
    stepped = speech.signatures["step"](**given, **speech.zero_states(1))["log_posteriors"]
    np.testing.assert_allclose(
        speech.signatures["serve"](**given)["log_posteriors"], stepped, atol=1e-5
    )


@pytest.mark.slow
def test_ten_minutes_through_step(speech):
    """In chunks, as somebody would who has no memory for the whole; it does not grow."""

    def memory():
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 2**20

    step = speech.signatures["step"]
    features = np.random.default_rng(0).normal(size=(1, 60_000, 123)).astype(np.float32)
    states, parts = speech.zero_states(1), []
    for start in range(0, 60_000, 1000):
        part = tf.constant(features[:, start : start + 1000])
        outputs = dict(step(features=part, lengths=tf.constant([1000]), **states))
        parts.append(outputs.pop("log_posteriors"))
        states = outputs
        if start == 5000:
            before = memory()
    assert memory() < before + 50
    whole = speech.signatures["serve"](
        features=tf.constant(features), lengths=tf.constant([60_000])
    )
    np.testing.assert_allclose(tf.concat(parts, 1), whole["log_posteriors"], atol=1e-5)


def test_features_are_what_serve_takes(speech):
    rows = tf.constant(np.stack([noise(4000), noise(4000, 1)]))
    given = {"waveform": rows, "lengths": tf.constant([4000, 2500])}
    heard = speech.signatures["features"](**given)
    scores = speech.signatures["serve"](features=heard["features"], lengths=heard["frames"])
    expected = speech.signatures["serve_waveform"](**given)
    for row, count in enumerate(expected["frames"].numpy()):
        np.testing.assert_allclose(
            scores["log_posteriors"][row, :count],
            expected["log_posteriors"][row, :count],
            atol=1e-5,
        )
