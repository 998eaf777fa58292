"""TextGrids in both of Praat's forms, and audio labelled by them."""

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
