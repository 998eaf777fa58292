"""TextGrids in both of Praat's forms, and audio labelled by them."""

from pathlib import Path

import numpy as np
import pytest

from keras_bnrnn.data.errors import CorpusError, UtteranceError
from keras_bnrnn.data.speech.corpus import load_corpus, read_utterances
from keras_bnrnn.data.speech.preparation import prepare_corpus
from keras_bnrnn.data.speech.sources import TextGridSource
from keras_bnrnn.data.speech.textgrid import Interval, frame_labels, read_textgrid

soundfile = pytest.importorskip("soundfile", reason="the extra 'speech' is not installed")

LONG = '''File type = "ooTextFile"
Object class = "TextGrid"

xmin = 0
xmax = 0.5
tiers? <exists>
size = 3
item []:
    item [1]:
        class = "IntervalTier"
        name = "words"
        xmin = 0
        xmax = 0.5
        intervals: size = 1
        intervals [1]:
            xmin = 0
            xmax = 0.5
            text = "a ""b"""
    item [2]:
        class = "TextTier"
        name = "clicks"
        xmin = 0
        xmax = 0.5
        points: size = 1
        points [1]:
            number = 0.1
            mark = "x"
    item [3]:
        class = "IntervalTier"
        name = "phones"
        xmin = 0
        xmax = 0.5
        intervals: size = 3
        intervals [1]:
            xmin = 0
            xmax = 0.1
            text = ""
        intervals [2]:
            xmin = 0.1
            xmax = 0.30
            text = "AH0"
        intervals [3]:
            xmin = 0.30
            xmax = 0.5
            text = "ə"
'''
SHORT = (
    'File type = "ooTextFile"\nObject class = "TextGrid"\n\n0\n0.5\n<exists>\n1\n"IntervalTier"\n'
    '"phones"\n0\n0.5\n3\n0\n0.1\n""\n0.1\n0.30\n"AH0"\n0.30\n0.5\n"ə"\n'
)
INTERVALS = [Interval(0, 0.1, ""), Interval(0.1, 0.3, "AH0"), Interval(0.3, 0.5, "ə")]


@pytest.mark.parametrize("text", [LONG, SHORT])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_both_forms_in_every_encoding(tmp_path, text, encoding):
    path = tmp_path / "a.TextGrid"
    path.write_text(text, encoding=encoding)
    assert read_textgrid(path, "Phones") == INTERVALS


def test_other_tiers(tmp_path):
    path = tmp_path / "a.TextGrid"
    path.write_text(LONG, encoding="utf-8")
    assert read_textgrid(path, "words") == [Interval(0, 0.5, 'a "b"')]
    with pytest.raises(UtteranceError, match="no interval tier 'clicks'; it has words, phones"):
        read_textgrid(path, "clicks")


@pytest.mark.parametrize("contents", ["", "hello", LONG[: len(LONG) * 2 // 3], SHORT[:-8]])
def test_files_that_are_not_whole(tmp_path, contents):
    path = tmp_path / "a.TextGrid"
    path.write_text(contents, encoding="utf-8")
    with pytest.raises(UtteranceError, match=r"a\.TextGrid"):
        read_textgrid(path, "phones")


def test_gaps_are_refused(tmp_path):
    path = tmp_path / "a.TextGrid"
    path.write_text(SHORT.replace("0.1\n0.30", "0.2\n0.30"), encoding="utf-8")
    with pytest.raises(UtteranceError, match=r"do not join at 0\.1"):
        read_textgrid(path, "phones")


def test_a_frame_has_the_label_at_its_centre():
    labels = frame_labels(INTERVALS, 8000)
    assert len(labels) == (8000 - 400) // 160 + 1
    # Frame t is centred on 10 t + 12.5 ms.
    assert labels[:9] == [""] * 9 and labels[9] == "AH0"
    assert labels[28] == "AH0" and labels[29] == "ə"


def write_speech(folder, name, seconds=0.5, text=SHORT):
    folder.mkdir(parents=True, exist_ok=True)
    samples = np.random.default_rng(len(name)).normal(0, 0.1, int(seconds * 22050))
    soundfile.write(folder / f"{name}.wav", samples, 22050)
    (folder / f"{name}.TextGrid").write_text(text, encoding="utf-8")


def test_corpus_from_textgrids(tmp_path):
    root = tmp_path / "mfa"
    write_speech(root / "train" / "anna", "one")
    write_speech(root / "train" / "anna", "three")
    write_speech(root / "dev" / "bert", "two")
    write_speech(root / "train" / "anna", "short", seconds=0.4)
    write_speech(root / "train" / "anna", "broken", text=SHORT[:60])
    (root / "dev" / "bert" / "lone.TextGrid").write_text(SHORT, encoding="utf-8")
    soundfile.write(root / "dev" / "unaligned.flac", np.zeros(8000), 16000)
    prepare_corpus(TextGridSource(input_dir=str(root)), tmp_path / "corpus")
    corpus = load_corpus(tmp_path / "corpus")
    assert [state["name"] for state in corpus.states] == ["AH0", "SIL", "ə"]
    train = list(read_utterances(corpus, "train"))
    assert sorted(u["id"] for u in train) == ["one", "three"]
    assert {u["speaker"] for u in train} == {"anna"}
    assert corpus.phones(train[0]["labels"]) == ["SIL", "AH0", "ə"]
    failures = (tmp_path / "corpus" / "failures.tsv").read_text(encoding="utf-8")
    for reason in ("short.TextGrid: ends at 0.500 s, the audio at 0.400 s", "not a whole"):
        assert reason in failures
    assert "lone\t" in failures and "no audio file" in failures
    assert "unaligned.flac: no TextGrid of the same name" in failures


def test_empty_folder_and_settings_of_no_use(tmp_path):
    with pytest.raises(CorpusError, match="TextGrid"):
        TextGridSource(input_dir=str(tmp_path)).utterances()
    with pytest.raises(CorpusError, match="no senones"):
        TextGridSource(input_dir=str(tmp_path), labels="senones")


def test_one_rule_for_all_gaps(tmp_path):
    """Also for the one before the first interval, whose label does not reach back to 0."""
    path = tmp_path / "a.TextGrid"
    path.write_text(SHORT.replace('3\n0\n0.1\n""\n', "2\n"), encoding="utf-8")
    with pytest.raises(UtteranceError, match=r"do not join at 0 s, where one from 0\.1"):
        read_textgrid(path, "phones")
    path.write_text(SHORT.replace("0\n0.1\n", "0.0005\n0.1\n", 1), encoding="utf-8")
    assert len(read_textgrid(path, "phones")) == 3


def test_tiers_by_what_follows_the_speaker(tmp_path):
    path = tmp_path / "a.TextGrid"
    path.write_text(LONG.replace('"phones"', '"s1 - phones"'), encoding="utf-8")
    assert read_textgrid(path, "phones") == INTERVALS
    path.write_text(
        LONG.replace('"phones"', '"s1 - phones"').replace('"words"', '"s2 - phones"'),
        encoding="utf-8",
    )
    with pytest.raises(UtteranceError, match=r"several tiers.*s2 - phones, s1 - phones; name one"):
        read_textgrid(path, "phones")
    assert read_textgrid(path, "s1 - phones") == INTERVALS


def test_labels_at_another_rate():
    labels = frame_labels(INTERVALS, 4000, 8000)
    assert labels == frame_labels(INTERVALS, 8000, 16000)


def test_textgrids_in_a_folder_of_their_own_at_8_kHz(tmp_path):
    for place in ("train/anna/one", "train/bert/one", "dev/carl/two"):
        write_speech(tmp_path / "audio" / Path(place).parent, Path(place).name)
        grid = tmp_path / "audio" / f"{place}.TextGrid"
        (tmp_path / "grids" / place).parent.mkdir(parents=True)
        grid.rename(tmp_path / "grids" / f"{place}.TextGrid")
    source = TextGridSource(
        input_dir=str(tmp_path / "audio"),
        alignment_dir=str(tmp_path / "grids"),
        sample_rate=8000,
    )
    corpus = prepare_corpus(source, tmp_path / "corpus")
    assert corpus.sample_rate == corpus.features["sample_rate"] == 8000
    assert corpus.document["failures"] == 0
    assert corpus.document["recordings"] == {"sample_rates": {"22050": 3}, "mixed": 0}
    train = list(read_utterances(corpus, "train"))
    assert sorted(u["id"] for u in train) == ["train/anna/one", "train/bert/one"]
    assert corpus.phones(train[0]["labels"]) == ["SIL", "AH0", "ə"]


def test_what_was_corrected_is_prepared_anew(tmp_path, capsys):
    for split in ("train", "dev"):
        write_speech(tmp_path / "mfa" / split / "anna", "one")
    source = TextGridSource(input_dir=str(tmp_path / "mfa"))
    prepare_corpus(source, tmp_path / "corpus")
    before = (tmp_path / "corpus" / "corpus.json").stat().st_mtime_ns
    prepare_corpus(source, tmp_path / "corpus")
    assert (tmp_path / "corpus" / "corpus.json").stat().st_mtime_ns == before
    grid = tmp_path / "mfa" / "train" / "anna" / "one.TextGrid"
    grid.write_text(SHORT.replace('"AH0"', '"AA1"'), encoding="utf-8")
    corpus = prepare_corpus(source, tmp_path / "corpus")
    assert "files have changed since it was prepared" in capsys.readouterr().out
    assert [state["name"] for state in corpus.states] == ["AA1", "AH0", "SIL", "ə"]
    assert corpus.phones(next(iter(read_utterances(corpus, "train")))["labels"])[1] == "AA1"
    assert not list((tmp_path / "corpus").glob("parts"))


def test_silence_with_phones_is_a_failure(tmp_path):
    for split in ("train", "dev"):
        write_speech(tmp_path / "mfa" / split / "anna", "one")
    write_speech(tmp_path / "mfa" / "train" / "anna", "nothing")
    soundfile.write(tmp_path / "mfa/train/anna/nothing.wav", np.zeros(8000), 16000)
    prepare_corpus(TextGridSource(input_dir=str(tmp_path / "mfa")), tmp_path / "corpus")
    failures = (tmp_path / "corpus" / "failures.tsv").read_text()
    assert "nothing.wav: the audio is silent" in failures and failures.count("\n") == 2


def test_output_folders_elsewhere_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_speech(tmp_path / "mfa" / "train" / "anna", "one")
    write_speech(tmp_path / "mfa" / "dev" / "anna", "one")
    for folder in ("gs://bucket/corpus", "memory://corpus"):
        with pytest.raises(CorpusError, match="is a URL"):
            prepare_corpus(TextGridSource(input_dir="mfa"), folder)
    assert [path.name for path in tmp_path.iterdir()] == ["mfa"]
