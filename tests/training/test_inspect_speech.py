"""The inspection script: text and pictures of a corpus, an utterance and a model."""

import pytest

import command_line
import inspect_speech
from keras_bnrnn.data.errors import CorpusError
from keras_bnrnn.data.speech.corpus import load_corpus
from keras_bnrnn.data.speech.preparation import prepare_corpus
from keras_bnrnn.data.speech.sources import SyntheticSource
from recipes.speech_model import build_speech_model

for package in ("pocketsphinx", "espeakng_loader", "soxr", "matplotlib"):
    pytest.importorskip(package, reason="the extras 'speech' and 'train' are not installed")

PNG = b"\x89PNG"


def run(*arguments):
    inspect_speech.FLAGS.unparse_flags()
    argv = ["inspect_speech.py", *arguments]
    return inspect_speech.main([argv[0], *command_line.parse(inspect_speech.FLAGS, argv)])


@pytest.fixture(scope="module")
def corpus_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inspected") / "corpus"
    prepare_corpus(SyntheticSource(count=4), folder)
    return folder


def save_model(corpus_dir, folder, num_states=None):
    corpus = load_corpus(corpus_dir)
    folder.mkdir()
    model = build_speech_model(
        corpus.dimension, num_states or corpus.num_states, normalized=True, layers=1, units=4
    )
    model.save(folder / "best.keras")


def test_corpus(corpus_dir, tmp_path, capsys):
    picture = tmp_path / "pictures" / "corpus.png"
    assert run(f"--data_dir={corpus_dir}", f"--picture={picture}") == 0
    printed = capsys.readouterr().out
    for part in ("train", "dev", "commonest states", "0 utterances failed"):
        assert part in printed
    assert picture.read_bytes().startswith(PNG)


def test_utterance_and_posteriors(corpus_dir, tmp_path, capsys):
    save_model(corpus_dir, tmp_path / "run")
    picture = tmp_path / "utterance.png"
    arguments = [f"--data_dir={corpus_dir}", "--utterance=dev-00000", f"--picture={picture}"]
    assert run(*arguments) == 0
    assert "phones:" in capsys.readouterr().out
    smaller = picture.stat().st_size
    assert run(*arguments, f"--run_dir={tmp_path / 'run'}") == 0
    assert "frame error rate" in capsys.readouterr().out
    assert picture.read_bytes().startswith(PNG) and picture.stat().st_size > smaller


def test_what_cannot_be_shown(corpus_dir, tmp_path):
    with pytest.raises(CorpusError, match="no utterance 'nobody'"):
        run(f"--data_dir={corpus_dir}", "--utterance=nobody")
    with pytest.raises(command_line.CommandError, match="needs --utterance"):
        run(f"--data_dir={corpus_dir}", "--run_dir=x")
    arguments = [f"--data_dir={corpus_dir}", "--utterance=dev-00000"]
    with pytest.raises(command_line.CommandError, match=r"no best\.keras"):
        run(*arguments, f"--run_dir={tmp_path}")
    save_model(corpus_dir, tmp_path / "other", num_states=3)
    with pytest.raises(command_line.CommandError, match="3 states"):
        run(*arguments, f"--run_dir={tmp_path / 'other'}")
