"""A run's folder: what is refused, what is written, and who may work in it."""

import errno
import json
import subprocess
import sys

import numpy as np
import pytest

from keras_bnrnn import files
from keras_bnrnn.fit import FitError, RunFolder, read_history, read_results, run_folder

CONFIG = {"model": "baseline", "units": 5}
COLUMNS = {"train": "loss", "valid": "val_loss"}


def new_run(path, task=None, **changes):
    return RunFolder(path, {**CONFIG, **changes}, COLUMNS, "valid", task=task)


def test_another_configuration_is_refused(tmp_path):
    new_run(tmp_path)
    with pytest.raises(FitError, match=r"another configuration \(units=5 there and 6 here\)") as e:
        new_run(tmp_path, units=6)
    assert e.value.argument == "output_dir"
    new_run(tmp_path)


def test_another_task_is_refused(tmp_path):
    new_run(tmp_path, task="speech")
    assert json.loads((tmp_path / "config.json").read_text())["task"] == "speech"
    new_run(tmp_path, task="speech")
    with pytest.raises(FitError, match="task 'speech' there and 'language' here"):
        new_run(tmp_path, task="language")


def test_a_folder_from_before_tasks_is_accepted(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"format_version": 2, "config": CONFIG}))
    assert new_run(tmp_path, task="speech").completed_epochs == 0


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format_version": 2, "config": 3}'])
def test_a_damaged_configuration_is_said(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(FitError, match=r"config\.json is damaged .* put a copy of it back"):
        new_run(tmp_path)
    assert (tmp_path / "config.json").read_text() == text


def test_a_configuration_is_written_anew_where_a_checkpoint_is_of_it(tmp_path, capsys):
    run, path = new_run(tmp_path), tmp_path / "config.json"
    part = tmp_path / "checkpoints" / "epoch-0001" / "worker-0.npz"
    part.parent.mkdir(parents=True)
    document = {"epochs": 1, "identity": run.checkpoints.identity}
    np.savez(part, progress=np.array(json.dumps(document)))
    before = path.read_text()
    for spoil in (lambda: path.write_text(before[:20]), path.unlink):
        spoil()
        with pytest.raises(FitError):
            new_run(tmp_path, units=6)
        new_run(tmp_path)
        assert path.read_text() == before
        assert "config.json is written anew, by a checkpoint" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["", "{}", "[]", "3", '{"best": {}}', "null"])
def test_damaged_results_are_said(tmp_path, text):
    (tmp_path / "results.json").write_text(text)
    with pytest.raises(FitError, match=r"results\.json (cannot be read|is no results of a run)"):
        read_results(tmp_path)


def test_without_locks_the_last_one_has_the_folder(tmp_path, monkeypatch):
    def no_locks(*arguments):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(files.fcntl, "lockf", no_locks)
    first, second = new_run(tmp_path), new_run(tmp_path)
    second.keep_file("a", "of the second")
    with pytest.raises(
        FitError, match=r"without locks, and another process has begun .*process \d+"
    ):
        first.keep_file("a", "of the first")
    assert (tmp_path / "a").read_text() == "of the second"


def test_foreign_files_are_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(FitError, match=r"holds thesis\.tex but no config.json"):
        new_run(tmp_path)
    with pytest.raises(FitError, match="is a file"):
        new_run(tmp_path / "thesis.tex")


def test_paths_are_of_this_machine(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for make in (new_run, read_results, read_history):
        with pytest.raises(FitError, match="gs://bucket/run is a URL") as error:
            make("gs://bucket/run")
        assert error.value.argument == "output_dir"
    assert not any(tmp_path.iterdir())
    assert new_run("~/run").path == tmp_path / "run"


def test_what_a_kill_left_of_the_first_write_is_not_foreign(tmp_path):
    (tmp_path / "config.partial.json").write_text('{"conf')
    new_run(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["config"] == CONFIG


def test_columns_and_criterion_are_checked(tmp_path):
    with pytest.raises(ValueError, match="criterion='other' is not one of"):
        RunFolder(tmp_path, CONFIG, COLUMNS, "other")


def test_readers_name_what_is_missing(tmp_path):
    with pytest.raises(FitError, match=r"no results\.json"):
        read_results(tmp_path)
    with pytest.raises(FitError, match=r"no history\.csv"):
        read_history(tmp_path)


HOLD_LOCK = """
import fcntl, sys, time
lock = open(sys.argv[1], "a")
fcntl.lockf(lock, fcntl.LOCK_EX)
print("held", flush=True)
time.sleep(60)
"""


def test_an_emptied_folder_is_a_new_one(tmp_path):
    new_run(tmp_path)
    (tmp_path / "config.json").unlink()
    assert [path.name for path in tmp_path.iterdir()] == [".lock-of-worker-0"]
    new_run(tmp_path, units=6)
    with pytest.raises(FitError, match="units=6 there and 5 here"):
        new_run(tmp_path)


def test_two_processes_are_not_at_work_in_one_folder(tmp_path, monkeypatch, capsys):
    new_run(tmp_path)
    [lock] = tmp_path.glob(".lock*")
    with subprocess.Popen(
        [sys.executable, "-c", HOLD_LOCK, str(lock)], stdout=subprocess.PIPE
    ) as other:
        other.stdout.readline()
        monkeypatch.setattr(run_folder, "SECONDS_TO_WAIT", 0.3)
        with pytest.raises(FitError, match=f"another process is at work in .*{tmp_path}; stop"):
            new_run(tmp_path)
        assert capsys.readouterr().out.count("waiting for it") == 1
        monkeypatch.setattr(run_folder, "SECONDS_TO_WAIT", 30.0)
        monkeypatch.setattr(run_folder.time, "sleep", lambda seconds: other.kill())
        new_run(tmp_path)
