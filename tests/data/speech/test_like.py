"""Corpora made like another: a test split alone, to score a model of the other on."""

import dataclasses
import json
import shutil

import numpy as np
import pytest

import evaluate
from command_line import CommandError
from keras_bnrnn.data.errors import CorpusError
from keras_bnrnn.data.speech.corpus import load_corpus, read_utterances, verify_corpus
from keras_bnrnn.data.speech.preparation import prepare_corpus
from keras_bnrnn.data.speech.sources import ManifestSource, TextGridSource
from keras_bnrnn.data.speech.sources.base import filter_bank_settings
from keras_bnrnn.data.speech.transcripts import decoded

soundfile = pytest.importorskip("soundfile", reason="the extra 'speech' is not installed")


@pytest.fixture
def manifest(tmp_path):
    """Three utterances of two speakers, and nothing on their splits."""
    rng = np.random.default_rng(0)
    lines = ["audio_path\ttranscript\tspeaker"]
    for name, said, speaker in (("x", "ea ö", "u"), ("y", "Aaß", "v"), ("z", "a e", "v")):
        soundfile.write(tmp_path / f"{name}.wav", 0.1 * rng.normal(size=8000), 8000)
        lines.append(f"{name}.wav\t{said}\t{speaker}")
    path = tmp_path / "list.tsv"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return ManifestSource(manifest=str(path), labels="characters", sample_rate=8000, splits="test")


@pytest.fixture
def like(tiny_characters):
    """As a prepared corpus says of its features: all that its source does."""
    corpus = load_corpus(tiny_characters)
    return dataclasses.replace(corpus, features=filter_bank_settings(8000))


def test_labels_and_normalisation_are_the_others(manifest, like, tmp_path):
    corpus = prepare_corpus(manifest, tmp_path / "corpus", like=like)
    assert list(corpus.splits) == ["test"] and corpus.states == like.states
    np.testing.assert_array_equal(corpus.mean, like.mean)
    assert corpus.document["like"]["sha256"] == like.checksum
    assert corpus.split("test")["unknown_characters"] == {"ß": 1}
    test = read_utterances(corpus, "test")
    texts = {one["id"]: decoded(one["labels"], corpus.alphabet) for one in test}
    assert texts == {"x": "ea ö", "y": "aa\ufffd", "z": "a e"}
    assert verify_corpus(corpus.path) == []


@pytest.mark.slow
def test_a_model_is_scored_on_it_by_speaker(
    manifest, like, tmp_path, trained_ctc, call_script, capsys
):
    run = shutil.copytree(trained_ctc / "run", tmp_path / "run")
    corpus = prepare_corpus(manifest, tmp_path / "other", like=like)
    call_script(evaluate, f"--run_dir={run}", f"--data_dir={corpus.path}")
    assert "evaluation-other.json" in capsys.readouterr().out
    found = json.loads((run / "evaluation-other.json").read_text())
    assert set(found["moving_averages"]) == {"cer", "wer", "ctc_loss"}
    assert set(found["speakers"]) == {"all", "speaker u", "speaker v"}
    assert found["speakers"]["all"] == pytest.approx(found["moving_averages"]["wer"])
    assert not (run / "evaluation.json").exists()
    unlike = dataclasses.replace(like, document={**like.document, "seed": 7})
    other = prepare_corpus(manifest, tmp_path / "unlike", like=unlike)
    with pytest.raises(CommandError, match="trained on another corpus"):
        call_script(evaluate, f"--run_dir={run}", f"--data_dir={other.path}")


def test_what_is_of_another_kind_is_refused(manifest, like, tiny_corpus, tmp_path):
    with pytest.raises(CorpusError, match="sample_rate=16000 instead of 8000"):
        prepare_corpus(dataclasses.replace(manifest, sample_rate=16000), tmp_path / "a", like=like)
    with pytest.raises(CorpusError, match="labels of frames and no text"):
        prepare_corpus(manifest, tmp_path / "b", like=load_corpus(tiny_corpus))


def test_states_that_the_other_lacks_are_counted_and_named(tiny_corpus, like, tmp_path):
    frames = load_corpus(tiny_corpus)
    frames = dataclasses.replace(
        frames,
        features=like.features,
        states=[{"name": name, "phone": name} for name in ("SIL", "AH")],
    )
    source = TextGridSource(input_dir="grids", sample_rate=8000, splits="test")
    folder = tmp_path / "grids"
    folder.mkdir()
    soundfile.write(folder / "a.wav", 0.1 * np.random.default_rng(0).normal(size=8000), 8000)
    intervals = [("", 0.0, 0.3), ("AH", 0.3, 0.6), ("ZH", 0.6, 1.0)]
    lines = [
        'File type = "ooTextFile"',
        'Object class = "TextGrid"',
        "",
        "0",
        "1.0",
        "<exists>",
        "1",
        '"IntervalTier"',
    ]
    lines += ['"phones"', "0", "1.0", "3"]
    lines += [str(one) for name, start, end in intervals for one in (start, end, f'"{name}"')]
    (folder / "a.TextGrid").write_text("\n".join(lines) + "\n")
    source = dataclasses.replace(source, input_dir=str(folder))
    corpus = prepare_corpus(source, tmp_path / "corpus", like=frames)
    [one] = read_utterances(corpus, "test")
    labels, first, counts = np.unique(one["labels"], return_index=True, return_counts=True)
    assert labels[np.argsort(first)].tolist() == [0, 1, -1] and counts.min() > 25
    assert corpus.split("test")["unknown_states"] == {"ZH": counts[0]}
    assert verify_corpus(corpus.path) == []
