"""Files that are whole or not there, and locks of folders."""

import errno
from pathlib import Path

import pytest

from keras_bnrnn import files


def test_a_file_is_whole_or_not_there(tmp_path):
    path = tmp_path / "a.txt"
    files.write_aside(path, b"old")
    with pytest.raises(KeyError), files.written_aside(path) as partial:
        assert partial.name == "a.partial.txt"
        partial.write_bytes(b"ne")
        raise KeyError
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_names_the_file(tmp_path):
    with (
        pytest.raises(OSError, match=r"No space left on device: .*a\.txt"),
        files.written_aside(tmp_path / "a.txt"),
    ):
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_process_is_not_locked_out_by_itself(tmp_path):
    with files.lock_folder(tmp_path, seconds=0.1), files.lock_folder(tmp_path, seconds=0.1):
        pass


def test_a_folder_that_cannot_be_written_is_not_locked(tmp_path):
    (tmp_path / files.LOCK_FILE).mkdir()  # Cannot be opened for writing, by root neither.
    with files.lock_folder(tmp_path, seconds=0.1):
        pass


def test_paths_are_of_this_machine(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert files.local_path("~/run") == tmp_path / "run"
    for path in ("a/b", "/a", "a:b/c", "C:/x"):
        assert files.local_path(path) == Path(path)
    for url in ("gs://bucket/run", "s3://a", "file:///tmp/a", "hdfs:/a", Path("gs://bucket/run")):
        with pytest.raises(ValueError, match="is a URL; name a folder of this machine"):
            files.local_path(url)
    with pytest.raises(ValueError, match="the home of nobody"):
        files.local_path("~nobody-of-this-name/run")


def test_the_first_number_that_is_free(tmp_path):
    assert files.unused(tmp_path / "a").name == "a-1"
    (tmp_path / "a-1").mkdir()
    assert files.unused(tmp_path / "a").name == "a-2"
