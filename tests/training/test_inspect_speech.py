"""The inspection script: text and pictures of a corpus, an utterance and a model."""

import json
import shutil

import numpy as np
import pytest
import tensorflow as tf

import inspect_speech
from command_line import CommandError
from keras_bnrnn.data.errors import CorpusError
from keras_bnrnn.data.speech.corpus import file_checksum, make_example, verify_corpus
from keras_bnrnn.fit.errors import FitError
from recipes.speech_task import SpeechTask

PNG = b"\x89PNG"


@pytest.fixture
def show(call_script, tiny_corpus, capsys):
    """Runs the script on the tiny corpus; returns what it printed."""

    def run(*arguments):
        assert call_script(inspect_speech, f"--data_dir={tiny_corpus}", *arguments) == 0
        return capsys.readouterr().out

    return run


def test_corpus(show, tmp_path):
    picture = tmp_path / "pictures" / "corpus.png"
    printed = show(f"--picture={picture}")
    for part in ("train", "dev", "commonest states", "0 utterances failed"):
        assert part in printed
    assert picture.read_bytes().startswith(PNG)


def test_utterance_and_posteriors(show, trained_speech, tmp_path):
    picture = tmp_path / "utterance.png"
    arguments = ["--utterance=dev-00", f"--picture={picture}"]
    assert "phones:" in show(*arguments)
    smaller = picture.stat().st_size
    assert "frame error rate" in show(*arguments, f"--run_dir={trained_speech}/run")
    assert picture.read_bytes().startswith(PNG) and picture.stat().st_size > smaller


def test_utterances_without_labels(call_script, tiny_corpus, tmp_path, capsys):
    """A test set that is to be decoded: neither shown nor scored as if it had labels."""
    corpus = shutil.copytree(tiny_corpus, tmp_path / "corpus")
    shard = corpus / "test.tfrecord"
    with tf.io.TFRecordWriter(str(shard)) as writer:
        writer.write(make_example("test-0", "", "", np.zeros((4, 123)), [-1] * 4))
    document = json.loads((corpus / "corpus.json").read_text())
    entry = {"file": shard.name, "utterances": 1, "frames": 4, "bytes": shard.stat().st_size}
    document["splits"]["test"] = {
        **{"utterances": 1, "frames": 4, "lengths": {"4": 1}, "state_frames": [0] * 5},
        **{"unlabelled": 1, "shards": [{**entry, "sha256": file_checksum(str(shard))}]},
    }
    (corpus / "corpus.json").write_text(json.dumps(document))
    assert verify_corpus(corpus) == []
    flags = [f"--data_dir={corpus}", "--utterance=test-0"]
    assert call_script(inspect_speech, *flags) == 0
    printed = capsys.readouterr().out
    assert "0.04 s, without labels" in printed and "phones:" not in printed
    with pytest.raises(CommandError, match="this utterance has none"):
        call_script(inspect_speech, *flags, f"--picture={tmp_path}/x.png")
    call_script(inspect_speech, flags[0], f"--picture={tmp_path}/corpus.png")
    settings = dict.fromkeys(SpeechTask.setting_names) | {"batch_size": 2, "renorm": None}
    task = SpeechTask(settings, corpus)
    assert not task.has_test()
    del document["splits"]["test"]["unlabelled"]
    (corpus / "corpus.json").write_text(json.dumps(document))
    assert "labels -1 to -1" in verify_corpus(corpus)[0]
    assert SpeechTask(settings, corpus).has_test()


def test_what_cannot_be_shown(show, trained_speech, trained_language, tmp_path):
    with pytest.raises(CorpusError, match="no utterance 'nobody'"):
        show("--utterance=nobody")
    with pytest.raises(CommandError, match="needs --utterance"):
        show("--run_dir=x")
    with pytest.raises(CommandError, match=r"is a run of train_ptb\.py"):
        show("--utterance=dev-00", f"--run_dir={trained_language}/run")
    run = shutil.copytree(trained_speech / "run", tmp_path / "run")
    (run / "best.keras").unlink()
    with pytest.raises(FitError, match=r"no best\.keras"):
        show("--utterance=dev-00", f"--run_dir={run}")
    document = json.loads((run / "corpus.json").read_text())
    document["states"][0]["name"] = "other"
    (run / "corpus.json").write_text(json.dumps(document))
    with pytest.raises(CommandError, match="with other states"):
        show("--utterance=dev-00", f"--run_dir={run}")


def test_text(call_script, tiny_characters, capsys):
    call_script(inspect_speech, f"--data_dir={tiny_characters}")
    first, *shares = capsys.readouterr().out.partition("commonest ")[2].splitlines()
    assert first == "characters in train (0 never occur there):"
    shares = {line.rsplit(maxsplit=1)[0].strip(): float(line.split()[-1][:-1]) for line in shares}
    assert "' '" in shares and sum(shares.values()) == pytest.approx(100.0, abs=0.1)
    call_script(inspect_speech, f"--data_dir={tiny_characters}", "--utterance=dev-00")
    lines = dict(line.split(":", 1) for line in capsys.readouterr().out.splitlines() if ":" in line)
    assert lines["text"].strip() == lines["transcript"].strip()
    with pytest.raises(CommandError, match="has text"):
        arguments = ["--utterance=dev-00", "--picture=x.png"]
        call_script(inspect_speech, f"--data_dir={tiny_characters}", *arguments)
