"""write_likelihoods.py: Kaldi archives with the model's posteriors and the alignments' priors."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf

from command_line import CommandError
from keras_bnrnn.data.speech.corpus import load_corpus, read_utterances

kaldiio = pytest.importorskip("kaldiio", reason="the extra 'speech' is not installed")
import write_likelihoods  # noqa: E402


def call(call_script, trained_speech, corpus, output_dir, *flags):
    call_script(
        write_likelihoods,
        f"--model={trained_speech}/exported",
        f"--data_dir={corpus}",
        f"--output_dir={output_dir}",
        *flags,
    )


def test_archives_hold_posteriors_less_priors(trained_speech, tiny_corpus, tmp_path, call_script):
    call(call_script, trained_speech, tiny_corpus, tmp_path / "scores", "--batch_size=4")
    corpus = load_corpus(tiny_corpus)
    model = keras.saving.load_model(trained_speech / "run" / "best.keras", compile=False)
    counts = np.zeros(corpus.num_states)
    for utterance in read_utterances(corpus, "train"):
        counts += np.bincount(utterance["labels"], minlength=len(counts))
    for split in ("train", "dev"):
        matrices = kaldiio.load_scp(str(tmp_path / "scores" / f"{split}.scp"))
        expected = {one["id"]: one["features"] for one in read_utterances(corpus, split)}
        assert list(matrices) == sorted(expected)
        for name, features in list(expected.items())[:9]:
            features = (features - corpus.mean) / np.sqrt(corpus.variance)
            inputs = {"features": features[np.newaxis], "lengths": np.array([len(features)])}
            posteriors = tf.nn.log_softmax(model(inputs, training=False))[0]
            likelihoods = posteriors - np.log(counts / counts.sum())
            np.testing.assert_allclose(matrices[name], likelihoods, atol=1e-4)
            assert matrices[name].dtype == np.float32
        archive = dict(kaldiio.load_ark(str(tmp_path / "scores" / f"{split}.ark")))
        assert archive.keys() == expected.keys()


def test_ids_with_spaces(trained_speech, tiny_corpus, tmp_path, call_script, capsys, monkeypatch):
    def renamed(corpus, split):
        for number, utterance in enumerate(read_utterances(corpus, split)):
            yield {**utterance, "id": names.get(number, utterance["id"])}

    monkeypatch.setattr(write_likelihoods, "read_utterances", renamed)
    names = {0: "take 1"}
    call(call_script, trained_speech, tiny_corpus, tmp_path / "scores", "--splits=dev")
    assert "dev: 1 ids held white space, written as _: take_1" in capsys.readouterr().out
    assert "take_1" in kaldiio.load_scp(str(tmp_path / "scores" / "dev.scp"))
    names[1] = "take_1"
    with pytest.raises(CommandError, match="'take 1' and 'take_1' would both be take_1"):
        call(call_script, trained_speech, tiny_corpus, tmp_path / "others", "--splits=dev")


def test_continues_where_it_was_killed(
    trained_speech, tiny_corpus, tmp_path, call_script, capsys, monkeypatch
):
    scores = tmp_path / "scores"
    with monkeypatch.context() as elsewhere:
        elsewhere.chdir(tmp_path)
        call(call_script, trained_speech, tiny_corpus, "scores", "--splits=dev")
    assert not (scores / "train.scp").exists()
    written = (scores / "dev.ark").stat().st_mtime_ns
    # Killed while it wrote the other split.
    (scores / "train.partial.ark").write_bytes(b"train-00 \0B")
    call(call_script, trained_speech, tiny_corpus, scores)
    assert (scores / "dev.ark").stat().st_mtime_ns == written
    assert "dev.scp is there already" in capsys.readouterr().out
    assert len(kaldiio.load_scp(str(scores / "train.scp"))) == 26
    assert all(matrix.size for matrix in kaldiio.load_scp(str(scores / "dev.scp")).values())
    assert sorted(path.name for path in scores.iterdir()) == [
        "dev.ark",
        "dev.scp",
        "likelihoods.json",
        "train.ark",
        "train.scp",
    ]


def test_what_does_not_fit_is_refused(trained_speech, tiny_corpus, tmp_path, call_script):
    other = tmp_path / "corpus"
    other.mkdir()
    document = json.loads((tiny_corpus / "corpus.json").read_text())
    for path in tiny_corpus.iterdir():
        (other / path.name).write_bytes(path.read_bytes())
    (other / "corpus.json").write_text(json.dumps({**document, "states": document["states"][:4]}))
    with pytest.raises(CommandError, match="trained on another corpus"):
        call(call_script, trained_speech, other, tmp_path / "scores")
    with pytest.raises(CommandError, match="is no acoustic model"):
        call_script(
            write_likelihoods,
            f"--model={tmp_path}",
            f"--data_dir={tiny_corpus}",
            f"--output_dir={tmp_path}/scores",
        )
    with pytest.raises(CommandError, match="is not empty"):
        call(call_script, trained_speech, tiny_corpus, other)
    (other / "corpus.json").write_text(json.dumps({**document, "seed": 7}))
    call(call_script, trained_speech, tiny_corpus, tmp_path / "scores", "--splits=dev")
    with pytest.raises(CommandError, match="another model or corpus"):
        call(call_script, trained_speech, other, tmp_path / "scores")
