"""Corpora of characters: features and text of every source, and nothing aligned."""

import dataclasses

import numpy as np
import pytest

from keras_bnrnn.data.errors import CorpusError, UtteranceError
from keras_bnrnn.data.speech import parts
from keras_bnrnn.data.speech.corpus import load_corpus, read_utterances, verify_corpus
from keras_bnrnn.data.speech.pipelines import speech_dataset
from keras_bnrnn.data.speech.preparation import prepare_corpus
from keras_bnrnn.data.speech.sources import ManifestSource, SyntheticSource, TextGridSource, base
from keras_bnrnn.data.speech.transcripts import TextRules, decoded

soundfile = pytest.importorskip("soundfile", reason="the extra 'speech' is not installed")

SAID = {
    "a": ("train", "Größe — zählt!"),
    "b": ("train", "so, so"),
    "c": ("dev", "Straße nach Łódź"),
    "empty": ("train", " ?! [NOISE] "),
    "long": ("dev", "viel zu viele Wörter für so wenig Ton " * 3),
}


@pytest.fixture(autouse=True)
def nothing_is_aligned(monkeypatch):
    def aligner(lexicon):
        raise AssertionError("an aligner was made")

    monkeypatch.setattr(base, "_aligner", aligner)


@pytest.fixture
def manifest(tmp_path):
    lines = ["audio_path\ttranscript\tsplit"]
    rng = np.random.default_rng(0)
    for name, (split, said) in SAID.items():
        soundfile.write(tmp_path / f"{name}.wav", 0.1 * rng.normal(size=8000), 16000)
        lines.append(f"{name}.wav\t{said}\t{split}")
    path = tmp_path / "list.tsv"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return ManifestSource(manifest=str(path), labels="characters", sample_rate=16000)


def test_features_and_text_are_stored(manifest, tmp_path):
    corpus = prepare_corpus(manifest, tmp_path / "corpus")
    assert verify_corpus(corpus.path) == []
    assert "".join(corpus.alphabet) == " eghlorstzßäö"
    assert corpus.num_states == 14 and corpus.states[0] == {"name": "<blank>"}
    train = {one["id"]: one for one in read_utterances(corpus, "train")}
    assert set(train) == {"a", "b"} and train["a"]["transcript"] == SAID["a"][1]
    assert len(train["a"]["features"]) == 48
    assert decoded(train["a"]["labels"], corpus.alphabet) == "größe zählt"
    entry = corpus.split("train")
    assert entry["frames"] == 96 and entry["lengths"] == {"48": 2}
    assert sum(entry["state_frames"]) == len("größe zählt") + len("so so")
    [dev] = read_utterances(corpus, "dev")
    assert decoded(dev["labels"], corpus.alphabet) == "str�ße ���h ����"
    assert corpus.split("dev")["unknown_characters"] == {
        "a": 2,
        "c": 1,
        "d": 1,
        "n": 1,
        "ó": 1,
        "ł": 1,
        "ź": 1,
    }


def test_what_cannot_be_learnt_is_a_failure_with_its_reason(manifest, tmp_path):
    corpus = prepare_corpus(manifest, tmp_path / "corpus")
    rows = (tmp_path / "corpus" / "failures.tsv").read_text(encoding="utf-8").splitlines()[1:]
    reasons = dict(row.split("\t") for row in rows)
    assert "empty transcript" in reasons["empty"]
    assert "audio shorter than its text: 48 frames for" in reasons["long"]
    assert corpus.document["failures"] == 2


def test_silence_is_refused_where_nothing_is_aligned():
    source = SyntheticSource(labels="characters")
    with pytest.raises(UtteranceError, match="silent"):
        source.label(source.utterances()[0][0], np.zeros(16000, np.float32))


def test_rules_are_in_the_corpus_and_another_folder_is_needed_for_others(manifest, tmp_path):
    folder = tmp_path / "corpus"
    text = prepare_corpus(manifest, folder).document["text"]
    assert not text["keep_case"] and text["removed"]["!"] == 2 and text["removed"]["[NOISE]"] == 1
    with pytest.raises(CorpusError, match="another text"):
        prepare_corpus(manifest, folder, text_rules=TextRules(keep_case=True))
    kept = prepare_corpus(manifest, tmp_path / "kept", text_rules=TextRules(keep_case=True))
    assert "G" in kept.alphabet and kept.text_rules == TextRules(keep_case=True)


def test_parts_change_no_byte(manifest, tmp_path, monkeypatch):
    prepare_corpus(manifest, tmp_path / "one")
    monkeypatch.setattr(parts, "PART_UTTERANCES", 1)
    prepare_corpus(manifest, tmp_path / "two")
    for file in sorted((tmp_path / "one").iterdir()):
        assert file.read_bytes() == (tmp_path / "two" / file.name).read_bytes()


def test_batches(manifest, tmp_path):
    corpus = prepare_corpus(manifest, tmp_path / "corpus")
    inputs, labels, weights = next(iter(speech_dataset(corpus, "train", 2, shuffle=False)))
    assert inputs["features"].shape == (2, 48, 123)
    assert inputs["lengths"].numpy().tolist() == [48, 48]
    assert labels.shape == (2, 11) and weights.numpy().tolist() == [True, True]
    assert sorted(np.count_nonzero(labels, axis=1)) == [5, 11]
    assert len(list(speech_dataset(corpus, "train", 1, worker=(1, 2)))) == 1


def test_a_source_without_transcripts_is_refused(manifest, tmp_path):
    path = tmp_path / "none.tsv"
    path.write_text("audio_path\ttranscript\tsplit\na.wav\t\ttrain\nb.wav\tb\tdev\n")
    silent = dataclasses.replace(manifest, manifest=str(path))
    with pytest.raises(CorpusError, match="no transcripts"):
        prepare_corpus(silent, tmp_path / "corpus")


def test_german_is_spoken_and_needs_no_aligner(tmp_path):
    pytest.importorskip("espeakng_loader", reason="the extra 'speech' is not installed")
    source = SyntheticSource(count=6, labels="characters", language="de")
    corpus = prepare_corpus(source, tmp_path / "corpus")
    assert set("äöüß") & set(corpus.alphabet)
    with pytest.raises(CorpusError, match="English alone"):
        SyntheticSource(language="de")
    with pytest.raises(CorpusError, match="not one of en, de"):
        SyntheticSource(language="xx", labels="characters")


def test_words_of_textgrids(tmp_path):
    grid = """File type = "ooTextFile"
Object class = "TextGrid"

xmin = 0
xmax = 0.5
tiers? <exists>
size = 1
item []:
    item [1]:
        class = "IntervalTier"
        name = "words"
        xmin = 0
        xmax = 0.5
        intervals: size = 3
        intervals [1]:
            xmin = 0
            xmax = 0.2
            text = "good"
        intervals [2]:
            xmin = 0.2
            xmax = 0.3
            text = ""
        intervals [3]:
            xmin = 0.3
            xmax = 0.5
            text = "Morning"
"""
    for split in ("train", "dev"):
        folder = tmp_path / "grids" / split / "7"
        folder.mkdir(parents=True)
        (folder / "a.TextGrid").write_text(grid)
        soundfile.write(folder / "a.wav", 0.1 * np.random.default_rng(0).normal(size=8000), 16000)
    source = TextGridSource(input_dir=str(tmp_path / "grids"), labels="characters", tier="words")
    corpus = prepare_corpus(source, tmp_path / "corpus")
    [one] = read_utterances(load_corpus(corpus.path), "dev")
    assert decoded(one["labels"], corpus.alphabet) == "good morning"
