"""The signatures of exported models: their numbers, their names, and what strangers send them."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import soundfile
import tensorflow as tf

import export
import train_ptb
import train_speech
from keras_bnrnn.data.speech.corpus import load_corpus
from keras_bnrnn.data.speech.pipelines import speech_dataset

RATE = 8000
SMALL = ("--layers=2", "--units=6", "--batch_size=8", "--learning_rate=0.01", "--epochs=1")

CALL = """
import json
import numpy as np
import tensorflow as tf
{imports}
model = tf.saved_model.load(sys.argv[1])
given = np.load(sys.argv[2], allow_pickle=True)
results = {{}}
for name, signature in model.signatures.items():
    arguments = {{}}
    for key, spec in signature.structured_input_signature[1].items():
        value = given[key] if key in given else np.zeros([len(given["states_for"]), spec.shape[1]])
        arguments[key] = tf.constant(value.tolist(), spec.dtype)
    for key, value in signature(**arguments).items():
        results[name + "." + key] = value.numpy()
np.savez(sys.argv[3], **results)
"""


@pytest.fixture(scope="module")
def speech(tiny_corpus, tmp_path_factory, call_script_in_module):
    """A trained model that reads in one direction, and its SavedModel."""
    folder = tmp_path_factory.mktemp("speech")
    flags = [f"--data_dir={tiny_corpus}", f"--output_dir={folder}/run", "--nobidirectional", *SMALL]
    call_script_in_module(train_speech, *flags)
    call_script_in_module(export, f"--run_dir={folder}/run", f"--output_dir={folder}/exported")
    return folder


@pytest.fixture(scope="module")
def language(tmp_path_factory, call_script_in_module):
    pytest.importorskip("tensorflow_text", reason="the extra 'text' is not installed")
    folder = tmp_path_factory.mktemp("language")
    call_script_in_module(
        train_ptb, f"--output_dir={folder}/run", "--epochs=1", "--steps_per_epoch=3"
    )
    call_script_in_module(export, f"--run_dir={folder}/run", f"--output_dir={folder}/exported")
    return folder


@pytest.fixture(scope="module")
def signatures(speech):
    return tf.saved_model.load(str(speech / "exported")).signatures


@pytest.fixture(scope="module")
def language_signatures(language):
    return tf.saved_model.load(str(language / "exported")).signatures


def noise(samples, seed=0):
    values = np.random.default_rng(seed).integers(-9000, 9000, samples)
    return (values / 32768).astype(np.float32)


def wav(samples, tmp_path, rate=RATE):
    path = tmp_path / f"{len(samples)}.wav"
    soundfile.write(path, samples, rate, subtype="PCM_16")
    return path.read_bytes()


def zero_states(signature, batch):
    _, specs = signature.structured_input_signature
    return {
        name: tf.zeros([batch, spec.shape[1]])
        for name, spec in specs.items()
        if name.endswith(("_h", "_c"))
    }


@pytest.mark.parametrize("chunk", [1, 2, 7, 1000])
def test_any_chunking_equals_the_whole(signatures, tiny_corpus, chunk):
    inputs, _, mask = next(iter(speech_dataset(load_corpus(tiny_corpus), "dev", 9)))
    features, lengths = inputs["features"], inputs["lengths"]
    assert len(set(lengths.numpy())) > 1
    whole = signatures["serve"](features=features, lengths=lengths)["log_posteriors"].numpy()
    states = zero_states(signatures["step"], len(features))
    assert len(states) == 4
    parts = []
    for start in range(0, features.shape[1], chunk):
        part = features[:, start : start + chunk]
        left = tf.clip_by_value(lengths - start, 0, part.shape[1])
        outputs = dict(signatures["step"](features=part, lengths=left, **states))
        parts.append(outputs.pop("log_posteriors").numpy())
        assert outputs.keys() == states.keys()
        states = outputs
    np.testing.assert_allclose(np.concatenate(parts, 1)[mask], whole[mask], atol=1e-5)


def test_bidirectional_models_have_no_step(tiny_corpus, tmp_path, call_script):
    call_script(train_speech, f"--data_dir={tiny_corpus}", f"--output_dir={tmp_path}/run", *SMALL)
    call_script(export, f"--run_dir={tmp_path}/run", f"--output_dir={tmp_path}/exported")
    names = tf.saved_model.load(str(tmp_path / "exported")).signatures.keys()
    assert set(names) == {"serve", "features", "serve_waveform", "serve_audio"}


def test_wav_bytes_equal_samples(signatures, tmp_path):
    rows = [noise(4000), noise(2500, 1), noise(100, 2)]
    audio = [wav(row, tmp_path) for row in rows]
    stereo = np.stack([noise(3000, 3), noise(3000, 4)], axis=1)
    audio.append(wav(stereo, tmp_path))
    rows.append(stereo.mean(axis=1))
    seen = signatures["serve_audio"](audio=tf.constant(audio))
    waveform = np.zeros((4, 4000), np.float32)
    for row, samples in enumerate(rows):
        waveform[row, : len(samples)] = samples
    expected = signatures["serve_waveform"](
        waveform=tf.constant(waveform), lengths=tf.constant([len(row) for row in rows])
    )
    np.testing.assert_array_equal(seen["frames"], expected["frames"])
    np.testing.assert_allclose(seen["times"], expected["times"])
    np.testing.assert_allclose(np.diff(seen["times"]), 0.01, rtol=1e-4)
    for row, count in enumerate(seen["frames"].numpy()):
        np.testing.assert_allclose(
            seen["log_posteriors"][row, :count], expected["log_posteriors"][row, :count], atol=1e-4
        )


def test_audio_of_another_rate_is_refused(signatures, tmp_path):
    audio = wav(noise(4000), tmp_path, rate=16000)
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"has 16000 samples a second.*8000"):
        signatures["serve_audio"](audio=tf.constant([audio]))
    with pytest.raises(tf.errors.InvalidArgumentError, match="RIFF"):
        signatures["serve_audio"](audio=tf.constant([b"no audio"]))


def test_a_header_that_hides_the_samples_is_refused(signatures, tmp_path):
    contents = bytearray(wav(np.zeros(4000, np.float32), tmp_path))
    contents[40:44] = bytes(4)
    with pytest.raises(tf.errors.InvalidArgumentError, match="says that no samples follow"):
        signatures["serve_audio"](audio=tf.constant([bytes(contents)]))
    empty = wav(noise(0), tmp_path)
    assert signatures["serve_audio"](audio=tf.constant([empty]))["frames"].numpy() == 0


def test_nothing_silence_and_clipping(signatures):
    serve = signatures["serve_waveform"]
    empty = serve(waveform=tf.zeros([0, 4000]), lengths=tf.zeros([0], tf.int32))
    assert empty["log_posteriors"].shape[0] == 0
    loud = np.clip(noise(4000) * 100, -1, 1)
    rows = tf.constant(np.stack([np.zeros(4000, np.float32), loud, loud]))
    outputs = serve(waveform=rows, lengths=tf.constant([4000, 4000, 0]))
    assert np.isfinite(outputs["log_posteriors"]).all()
    assert outputs["frames"].numpy()[2] == 0
    alone = serve(waveform=rows[1:2], lengths=tf.constant([4000]))
    np.testing.assert_allclose(outputs["log_posteriors"][1], alone["log_posteriors"][0], atol=1e-4)
    none = signatures["serve_audio"](audio=tf.constant([], tf.string))
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
def test_what_does_not_fit_is_said(signatures, name, changes, message):
    states = zero_states(signatures["step"], 2) if name == "step" else {}
    given = {"features": np.ones((2, 5, 123)), "lengths": [5, 3], **changes}
    features, lengths = tf.constant(given["features"], tf.float32), tf.constant(given["lengths"])
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        signatures[name](features=features, lengths=lengths, **states)


def test_states_of_other_streams_are_refused(signatures, language_signatures):
    for step, given in (
        (signatures["step"], {"features": tf.ones([2, 5, 123]), "lengths": tf.constant([5, 5])}),
        (language_signatures["step"], {"tokens": tf.ones([2, 5], tf.int32)}),
    ):
        with pytest.raises(tf.errors.InvalidArgumentError, match="another number of rows"):
            step(**given, **zero_states(step, 1))


def test_samples_that_are_none(signatures):
    """What stands past the end may be anything; what counts may not."""
    rows = np.stack([noise(4000), noise(4000)])
    lengths = tf.constant([4000, 2500])
    serve = signatures["serve_waveform"]
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


def test_numbers_that_are_no_words(language_signatures):
    step = language_signatures["step"]
    for wrong in (-1, 10**6):
        with pytest.raises(tf.errors.InvalidArgumentError, match="tokens must lie between 0 and"):
            step(tokens=tf.constant([[1, wrong]]), **zero_states(step, 1))
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"k must be 1 or more"):
        language_signatures["next_token"](prefix=tf.constant(["the"]), k=tf.constant(0))


def test_language_model_scores_sentences(language, language_signatures):
    words = json.loads((language / "run" / "vocabulary.json").read_text())["words"]
    model = keras.saving.load_model(language / "run" / "best.keras", compile=False)
    sentences = ["The assert statement .", "an xyzzy", ""]
    outputs = language_signatures["score"](sentences=tf.constant(sentences))
    assert outputs["tokens"].numpy().tolist() == [5, 3, 1]
    tokens = [["the", "assert", "statement", "."], ["an", "<unk>"], []]
    end = words.index("<eos>")
    rows = np.full((20, 5), end)
    for row, sentence in enumerate(tokens):
        rows[row, 1 : 1 + len(sentence)] = [words.index(word) for word in sentence]
    for layer in model.layers:
        if getattr(layer, "stateful", False):
            layer.reset_state()
    scores = tf.nn.log_softmax(model(rows, training=False)).numpy()
    for row, sentence in enumerate(tokens):
        targets = [words.index(word) for word in sentence] + [end]
        expected = scores[row, np.arange(len(targets)), targets].sum()
        np.testing.assert_allclose(outputs["log_probability"][row], expected, rtol=1e-5)
        perplexity = np.exp(-expected / len(targets))
        np.testing.assert_allclose(outputs["perplexity"][row], perplexity, rtol=1e-4)
    best = language_signatures["next_token"](prefix=tf.constant(["an xyzzy", ""]), k=tf.constant(4))
    assert best["words"].shape == (2, 4)
    order = np.argsort(-scores[1, 2])[:4]
    assert [word.decode() for word in best["words"][0].numpy()] == [words[k] for k in order]
    np.testing.assert_allclose(best["probabilities"][0], np.exp(scores[1, 2, order]), rtol=1e-4)
    np.testing.assert_allclose(best["probabilities"][1, 0], np.exp(scores[2, 0].max()), rtol=1e-4)


def test_no_sentences(language_signatures):
    outputs = language_signatures["score"](sentences=tf.constant([], tf.string))
    assert outputs["perplexity"].shape == (0,)
    step = language_signatures["step"]
    states = {name: state + 0.5 for name, state in zero_states(step, 2).items()}
    outputs = step(tokens=tf.zeros([2, 0], tf.int32), **states)
    for name, state in states.items():
        np.testing.assert_array_equal(outputs[name], state)


@pytest.mark.parametrize("chunk", [1, 3])
def test_language_model_steps_equal_the_whole(language_signatures, chunk):
    tokens = np.random.default_rng(0).integers(0, 100, (2, 7)).astype(np.int32)
    step = language_signatures["step"]
    whole = step(tokens=tf.constant(tokens), **zero_states(step, 2))["log_probabilities"]
    states, parts = zero_states(step, 2), []
    for start in range(0, 7, chunk):
        outputs = dict(step(tokens=tf.constant(tokens[:, start : start + chunk]), **states))
        parts.append(outputs.pop("log_probabilities"))
        states = outputs
    np.testing.assert_allclose(tf.concat(parts, 1), whole, atol=1e-5)


@pytest.mark.parametrize("kind", ["speech", "language"])
def test_every_signature_in_a_process_without_keras(request, kind, tmp_path, run_without):
    folder = request.getfixturevalue(kind) / "exported"
    inputs = {
        "features": np.ones((2, 5, 123)),
        "lengths": np.array([5, 3]),
        "waveform": np.stack([noise(4000), noise(4000, 1)]),
        "audio": np.array([wav(noise(4000), tmp_path), wav(noise(3000), tmp_path)], object),
        "sentences": np.array(["the statement", "an error"], object),
        "prefix": np.array(["the", "an error"], object),
        "k": np.array(3),
        "tokens": np.ones((2, 4), np.int32),
        "states_for": np.zeros(2),
    }
    np.savez(tmp_path / "inputs.npz", **inputs)
    imports = "import tensorflow_text" if kind == "language" else ""
    done = run_without(
        ["keras_bnrnn"] if kind == "language" else ["keras_bnrnn", "keras"],
        CALL.format(imports=imports),
        folder,
        tmp_path / "inputs.npz",
        tmp_path / "outputs.npz",
    )
    assert done.returncode == 0, done.stderr
    outputs = np.load(tmp_path / "outputs.npz", allow_pickle=True)
    names = {name.partition(".")[0] for name in outputs}
    card = (folder / "MODEL_CARD.md").read_text()
    loaded = tf.saved_model.load(str(folder))
    assert names == set(loaded.signatures)
    for name in outputs:
        signature, _, output = name.partition(".")
        assert f"### `{signature}`" in card and f"| output | `{output}` |" in card
        if outputs[name].dtype != object:
            assert np.isfinite(outputs[name]).all()
    for signature in loaded.signatures.values():
        for name in signature.structured_input_signature[1]:
            assert f"| input | `{name}` |" in card


# saved_model_cli as its command runs it; where strings are cut, after the import that brings the
# tokenizer's operations (MODEL_CARD.md says so).
CLI = "from tensorflow.python.tools.saved_model_cli import main; main()"


def run_cli(folder, name, given, tmp_path, before=""):
    for one, value in given.items():
        np.save(tmp_path / f"{one}.npy", value)
    command = [sys.executable, "-c", before + CLI, "run", f"--dir={folder}", "--tag_set=serve"]
    command += [
        f"--signature_def={name}",
        "--inputs=" + ";".join(f"{one}={tmp_path / one}.npy" for one in given),
        f"--outdir={tmp_path}",
        "--overwrite",
    ]
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return lambda output: np.load(tmp_path / f"{output}.npy", allow_pickle=True)


# The others are among the commands of the model card.
@pytest.mark.parametrize("name", ["features", "serve_waveform", "step"])
def test_saved_model_cli_runs_it(speech, signatures, tmp_path, name):
    given = {
        "features": np.ones((1, 5, 123), np.float32),
        "waveform": noise(4000)[np.newaxis],
        "lengths": np.array([4000 if name in ("features", "serve_waveform") else 5], np.int32),
        **{state: value.numpy() for state, value in zero_states(signatures["step"], 1).items()},
    }
    inputs = signatures[name].structured_input_signature[1]
    output = run_cli(speech / "exported", name, {one: given[one] for one in inputs}, tmp_path)
    if name == "features":
        assert np.isfinite(output("features")).all()
    else:
        np.testing.assert_allclose(np.exp(output("log_posteriors")).sum(-1), 1.0, atol=1e-5)


@pytest.mark.parametrize("name", ["score", "step"])
def test_saved_model_cli_runs_a_language_model(language, language_signatures, tmp_path, name):
    given = {
        "sentences": np.array(["the statement", "an error"]),
        "tokens": np.ones((1, 2), np.int32),
        **{
            state: value.numpy()
            for state, value in zero_states(language_signatures["step"], 1).items()
        },
    }
    inputs = language_signatures[name].structured_input_signature[1]
    before = "import tensorflow_text; "
    output = run_cli(
        language / "exported", name, {one: given[one] for one in inputs}, tmp_path, before
    )
    if name == "score":
        expected = np.exp(-output("log_probability") / output("tokens"))
        np.testing.assert_allclose(output("perplexity"), expected, rtol=1e-5)
    else:
        np.testing.assert_allclose(np.exp(output("log_probabilities")).sum(-1), 1.0, atol=1e-5)


@pytest.mark.parametrize("kind", ["speech", "language"])
def test_the_commands_of_the_model_card(request, kind, tmp_path):
    """They run as they stand, and find `python` and `saved_model_cli` where these belong."""
    folder = tmp_path / "copy"
    shutil.copytree(request.getfixturevalue(kind) / "exported", folder)
    (folder / "speech.wav").write_bytes(wav(noise(4000), tmp_path))
    blocks = re.findall("```sh\n(.*?)```", (folder / "MODEL_CARD.md").read_text(), re.DOTALL)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-e", "-c", "\n".join(blocks)],
        cwd=folder,
        capture_output=True,
        text=True,
        env={**os.environ, "PATH": path, "TF_CPP_MIN_LOG_LEVEL": "3"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    outputs = re.findall("Result for output key (.*):", done.stdout)
    expected = {
        "speech": ["log_posteriors", "frames", "log_posteriors", "times"],
        "language": ["log_probability", "perplexity", "tokens", "probabilities", "words"],
    }
    assert outputs == expected[kind]


def test_a_live_frame_of_zeros_is_no_padding(signatures):
    features = np.random.default_rng(0).normal(size=(1, 9, 123)).astype(np.float32)
    features[:, 4:6] = 0.0
    given = {"features": tf.constant(features), "lengths": tf.constant([9])}
    stepped = signatures["step"](**given, **zero_states(signatures["step"], 1))["log_posteriors"]
    np.testing.assert_allclose(signatures["serve"](**given)["log_posteriors"], stepped, atol=1e-5)


def test_ten_minutes_through_step(signatures):
    """In chunks, as somebody would who has no memory for the whole; it does not grow."""

    def memory():
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 2**20

    step = signatures["step"]
    features = np.random.default_rng(0).normal(size=(1, 60_000, 123)).astype(np.float32)
    states, parts = zero_states(step, 1), []
    for start in range(0, 60_000, 1000):
        part = tf.constant(features[:, start : start + 1000])
        outputs = dict(step(features=part, lengths=tf.constant([1000]), **states))
        parts.append(outputs.pop("log_posteriors"))
        states = outputs
        if start == 5000:
            before = memory()
    assert memory() < before + 50
    whole = signatures["serve"](features=tf.constant(features), lengths=tf.constant([60_000]))
    np.testing.assert_allclose(tf.concat(parts, 1), whole["log_posteriors"], atol=1e-5)


def test_features_are_what_serve_takes(signatures):
    rows = tf.constant(np.stack([noise(4000), noise(4000, 1)]))
    given = {"waveform": rows, "lengths": tf.constant([4000, 2500])}
    heard = signatures["features"](**given)
    scores = signatures["serve"](features=heard["features"], lengths=heard["frames"])
    expected = signatures["serve_waveform"](**given)
    for row, count in enumerate(expected["frames"].numpy()):
        np.testing.assert_allclose(
            scores["log_posteriors"][row, :count],
            expected["log_posteriors"][row, :count],
            atol=1e-5,
        )
