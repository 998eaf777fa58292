"""What a folder of data holds: links, cycles, hidden and derived folders, what cannot be read."""

import errno
import os
import re
from pathlib import Path

import pytest

from keras_bnrnn.data.errors import CorpusError, UtteranceError
from keras_bnrnn.data.speech import folders
from keras_bnrnn.data.speech.folders import find_files, only_one
from keras_bnrnn.data.speech.kaldi import KaldiSource
from keras_bnrnn.data.speech.sources.folders import LibriSpeechSource, TextGridSource, names_of


@pytest.fixture
def root(tmp_path):
    for name in ("data/b/2", "data/a/1", "data/.backup/3", "data/a/split4/4", "elsewhere/5"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "data" / "a" / ".hidden").touch()
    return tmp_path / "data"


def names(root, derived=None):
    files, unread = find_files(root, derived)
    return [path.relative_to(root).as_posix() for path in files], unread


def test_hidden_and_derived_folders_are_no_data(root):
    assert names(root) == (["a/1", "a/split4/4", "b/2"], {})
    assert names(root, re.compile(r"split\d+")) == (["a/1", "b/2"], {})
    assert names(root / ".backup") == (["3"], {})


def test_links_are_followed_and_cycles_are_not(root):
    (root / "c").symlink_to("../elsewhere", target_is_directory=True)
    (root.parent / "elsewhere" / "above").symlink_to("..", target_is_directory=True)
    (root / "d").symlink_to("b/2")
    (root / "a" / "up").symlink_to("..", target_is_directory=True)
    (root / "a" / "self").symlink_to(root / "a", target_is_directory=True)
    assert names(root) == (["a/1", "a/split4/4", "b/2", "c/5", "d"], {})


def test_what_cannot_be_read_is_told(root, monkeypatch):
    (root / "gone").symlink_to("../nowhere")
    (root / "loop").symlink_to("loop")
    scandir = os.scandir

    def refuse(folder):
        if folder == root / "b":
            raise PermissionError(errno.EACCES, "Permission denied")
        return scandir(folder)

    monkeypatch.setattr(folders.os, "scandir", refuse)
    found, unread = names(root)
    assert found == ["a/1", "a/split4/4"]
    assert "leads nowhere" in unread[root / "gone"] and "leads nowhere" in unread[root / "loop"]
    assert unread[root / "b"] == f"{root / 'b'}: cannot be read (Permission denied)"
    with pytest.raises(CorpusError, match="Permission denied"):
        find_files(root / "b")
    # Where nothing is found, that may be the reason.
    for source in (LibriSpeechSource, TextGridSource, KaldiSource):
        with pytest.raises(CorpusError, match=r"no .* file in it|no feats\.scp") as raised:
            source(input_dir=str(root)).utterances()
        assert unread[root / "b"] in str(raised.value)
    # A folder of a source that cannot be read is a line in failures.tsv.
    (root / "a" / "1").rename(root / "a" / "x.trans.txt")
    (root / "a" / "x.TextGrid").touch()
    for source in (LibriSpeechSource, TextGridSource):
        reasons = [failure.reason for failure in source(input_dir=str(root)).utterances()[1]]
        assert unread[root / "b"] in reasons


def test_two_files_that_could_be_meant(root):
    assert only_one([]) is None and only_one([root]) == root
    with pytest.raises(UtteranceError, match="either of a and b could be meant"):
        only_one(["a", "b"])
    (root / "a" / "x.trans.txt").write_text("x words\nx.y others\n")
    for name in ("x.flac", "x.wav", "x.y.wav"):
        (root / "a" / name).touch()
    listed, failures = LibriSpeechSource(input_dir=str(root), splits="train=1").utterances()
    assert [utterance.id for utterance in listed] == ["x.y"]
    assert [failure.id for failure in failures] == ["x"]
    assert "x.flac and " in failures[0].reason
    (root / "a" / "x.TextGrid").touch()
    (root / "a" / "x.flac").unlink()
    [utterance], _ = TextGridSource(input_dir=str(root), splits="train=1").utterances()
    assert utterance.location[0] == str(root / "a" / "x.wav")
    (root / "a" / "x.ogg").touch()
    listed, failures = TextGridSource(input_dir=str(root)).utterances()
    assert not listed and "x.ogg and " in failures[0].reason


def test_names_that_repeat_become_paths():
    places = [Path(name) for name in ("train/a/1", "train/b/1", "train/b/2", "dev/c/2")]
    assert names_of(places, "layout") == ["train/a/1", "train/b/1", "2", "2"]
    assert names_of(places, "train=0.5,dev=0.5") == [str(place) for place in places]
