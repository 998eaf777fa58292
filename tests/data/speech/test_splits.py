"""Folders that are chosen by name, in every source that has folders."""

import pytest

from keras_bnrnn.data.errors import CorpusError
from keras_bnrnn.data.speech.sources import LibriSpeechSource, ManifestSource, TextGridSource
from keras_bnrnn.data.speech.splits import find_chosen_files, named_folders, split_of_folders

NAMED = "train=train-clean,train=more/other, dev=test-a"


def test_names_of_folders():
    chosen = {"train-clean": "train", "more/other": "train", "test-a": "dev"}
    assert named_folders(NAMED) == chosen
    # Shares, the layout, and what is neither.
    for other in ("train=0.9,dev=0.1", "layout", "train=a,dev=0.1", "train=a,dev=a", "train=a,b=c"):
        assert named_folders(other) == {}


def test_split_of_a_folder():
    assert split_of_folders(["a", "train-x", "b"]) == "train"
    assert split_of_folders(["more", "other", "b"], NAMED) == "train"
    assert split_of_folders(["test-a"], NAMED) == "dev"
    assert split_of_folders(["more", "train-clean"], NAMED) == ""


def test_only_the_named_folders_are_read(tmp_path):
    for folder in ("train-clean/1", "more/other/2", "test-a/3", "test-b/4"):
        (tmp_path / folder).mkdir(parents=True)
        name = folder[-1]
        for suffix in ("wav", "TextGrid"):
            (tmp_path / folder / f"{name}.{suffix}").touch()
        (tmp_path / folder / "x.trans.txt").write_text(f"{name} word\n")
    (tmp_path / "test-b" / "gone").symlink_to("nowhere")
    for source in (LibriSpeechSource, TextGridSource):
        listed, failures = source(input_dir=str(tmp_path), splits=NAMED).utterances()
        assert {u.id: u.split for u in listed} == {"1": "train", "2": "train", "3": "dev"}
        assert failures == []
    with pytest.raises(CorpusError, match=r"no folder test-c in .*; it has more, test-a, test-b"):
        find_chosen_files(tmp_path, "train=train-clean,dev=test-c")
    with pytest.raises(CorpusError, match="a manifest has no folders"):
        ManifestSource(manifest="x", splits=NAMED).utterances()
