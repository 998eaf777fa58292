"""The inspection script: text and pictures of a corpus, an utterance and a model."""

import json
import shutil

import pytest

import inspect_speech
from command_line import CommandError
from keras_bnrnn.data.errors import CorpusError

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


def test_what_cannot_be_shown(show, trained_speech, trained_language, tmp_path):
    with pytest.raises(CorpusError, match="no utterance 'nobody'"):
        show("--utterance=nobody")
    with pytest.raises(CommandError, match="needs --utterance"):
        show("--run_dir=x")
    with pytest.raises(CommandError, match=r"is a run of train_ptb\.py"):
        show("--utterance=dev-00", f"--run_dir={trained_language}/run")
    run = shutil.copytree(trained_speech / "run", tmp_path / "run")
    (run / "best.keras").unlink()
    with pytest.raises(CommandError, match=r"no best\.keras"):
        show("--utterance=dev-00", f"--run_dir={run}")
    document = json.loads((run / "corpus.json").read_text())
    document["states"][0]["name"] = "other"
    (run / "corpus.json").write_text(json.dumps(document))
    with pytest.raises(CommandError, match="with other states"):
        show("--utterance=dev-00", f"--run_dir={run}")
