"""A run's folder: what is refused, what is written, and what survives being killed or damaged."""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import keras
import numpy as np
import pytest

from command_line import CommandError
from keras_bnrnn.fit import run_folder
from keras_bnrnn.fit.run_folder import SPEECH_COLUMNS, RunFolder, read_history, read_results

CONFIG = {"model": "baseline", "units": 5}
EPOCHS = 4


class Killed(Exception):
    """Stands for SIGKILL where a test wants to choose the very instruction."""


def new_run(path, **changes):
    return RunFolder(path, {**CONFIG, **changes}, SPEECH_COLUMNS, "dev_fce")


class EndEpoch(keras.callbacks.Callback):
    """Ends each epoch in a run's folder."""

    def __init__(self, run):
        super().__init__()
        self.run = run

    def on_epoch_end(self, epoch, logs=None):
        self.run.end_epoch(self.model, epoch, logs, 1.0)


def train(path, epochs=EPOCHS, callbacks=()):
    """Trains a model with every kind of state: dropout in and between layers, Adam's moments."""
    keras.utils.set_random_seed(3)
    model = keras.Sequential(
        [
            keras.Input((None, 4)),
            keras.layers.Dropout(0.5),
            keras.layers.Bidirectional(keras.layers.LSTM(5, return_sequences=True, dropout=0.3)),
            keras.layers.Dense(3),
        ]
    )
    metrics = [
        keras.metrics.MeanAbsoluteError(name="fce"),
        keras.metrics.MeanSquaredError(name="fer"),
    ]
    model.compile(keras.optimizers.Adam(0.01), "mse", metrics=metrics)
    x = np.random.default_rng(0).normal(size=(16, 6, 4)).astype("float32")
    y = x[..., :3]
    run = new_run(path)
    run.restore(model)
    model.fit(
        x,
        y,
        batch_size=8,
        shuffle=False,
        validation_data=(x, y),
        epochs=epochs,
        initial_epoch=run.completed_epochs,
        callbacks=[*callbacks, EndEpoch(run)],
        verbose=0,
    )
    run.finish(model)
    return model


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "undisturbed"
    return path, train(path)


def assert_same(path, model, undisturbed):
    expected_path, expected_model = undisturbed
    rows, expected_rows = read_history(path), read_history(expected_path)
    assert [list(row) for row in rows] == [list(row) for row in expected_rows]
    for row, expected in zip(rows, expected_rows, strict=True):
        assert row == pytest.approx(expected, rel=1e-6)
    for weight, expected in zip(model.get_weights(), expected_model.get_weights(), strict=True):
        np.testing.assert_allclose(weight, expected, rtol=1e-5, atol=1e-6)
    results = read_results(path)
    assert results["best"] == pytest.approx(read_results(expected_path)["best"], rel=1e-6)
    assert results["finished"]


def test_results_have_the_agreed_keys(undisturbed):
    path, model = undisturbed
    rows, results = read_history(path), read_results(path)
    assert list(rows[0]) == [
        "epoch", "train_fce", "train_fer", "dev_fce", "dev_fer", "learning_rate",
    ]  # fmt: skip
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4]
    assert results["model"] == "baseline" and results["config"] == CONFIG
    best = min(rows, key=lambda row: row["dev_fce"])
    assert {key: results["best"][key] for key in best} == pytest.approx(best)
    assert results["parameters"] == model.count_params()
    assert len(results["seconds_per_epoch"]) == EPOCHS


def test_the_final_model_is_the_one_trained(undisturbed):
    path, model = undisturbed
    loaded = keras.saving.load_model(path / "final.keras", compile=False)
    x = np.ones((2, 3, 4), "float32")
    np.testing.assert_allclose(loaded.predict(x, verbose=0), model.predict(x, verbose=0), 1e-6)


@pytest.mark.parametrize("epoch", range(EPOCHS))
def test_killed_between_epochs_and_resumed(tmp_path, undisturbed, epoch):
    class Kill(keras.callbacks.Callback):
        def on_epoch_begin(self, current, logs=None):
            if current == epoch:
                raise Killed

    with pytest.raises(Killed):
        train(tmp_path / "run", callbacks=[Kill()])
    assert_same(tmp_path / "run", train(tmp_path / "run"), undisturbed)


FIRST_EPOCH_WRITES = 12


@pytest.mark.parametrize("write", range(0, 2 * FIRST_EPOCH_WRITES, 5))
def test_killed_at_any_file_operation_and_resumed(tmp_path, undisturbed, monkeypatch, write):
    """Dies at the n-th flush or rename of the run, that operation not being done any more."""
    from keras_bnrnn import files
    from keras_bnrnn.fit import checkpoints

    counter = [0]

    def dying(function):
        def call(*arguments):
            if counter[0] == write:
                raise Killed
            counter[0] += 1
            return function(*arguments)

        return call

    with monkeypatch.context() as patch:
        patch.setattr(files, "flush", dying(files.flush))
        patch.setattr(checkpoints, "flush", files.flush)
        patch.setattr(files.os, "replace", dying(files.os.replace))
        with pytest.raises(Killed):
            train(tmp_path / "run")
    assert_same(tmp_path / "run", train(tmp_path / "run"), undisturbed)


@pytest.mark.parametrize("damage", ["truncate", "flip", "remove"])
def test_a_damaged_checkpoint_is_reported_and_the_previous_used(
    tmp_path, undisturbed, capsys, damage
):
    path = tmp_path / "run"
    train(path, epochs=2)
    victim = path / "checkpoints" / "epoch-0002" / "worker-0.npz"
    content = bytearray(victim.read_bytes())
    if damage == "truncate":
        victim.write_bytes(content[: len(content) // 2])
    elif damage == "flip":
        content[len(content) // 2] ^= 0x10
        victim.write_bytes(content)
    else:
        victim.unlink()
    model = train(path)
    messages = capsys.readouterr()
    assert "skipping damaged" in messages.err and "epoch-0002" in messages.err
    assert "after epoch 1" in messages.out
    assert_same(path, model, undisturbed)


def test_all_checkpoints_damaged_is_said_and_starts_again(tmp_path, undisturbed, capsys):
    path = tmp_path / "run"
    train(path, epochs=3)
    for weights in path.glob("checkpoints/*/worker-0.npz"):
        weights.write_bytes(b"")
    model = train(path)
    assert "no whole checkpoint is left; starting again" in capsys.readouterr().err
    assert_same(path, model, undisturbed)


def test_disk_use_is_bounded(undisturbed):
    path, _ = undisturbed
    assert sorted(entry.name for entry in path.glob("checkpoints/*")) == [
        "epoch-0003",
        "epoch-0004",
    ]


def test_a_finished_run_repeated_changes_nothing(tmp_path, undisturbed):
    path = tmp_path / "run"
    shutil.copytree(undisturbed[0], path)
    assert_same(path, train(path), undisturbed)


def test_another_configuration_is_refused(undisturbed):
    with pytest.raises(CommandError, match=r"another configuration \(units=5 there and 6 here\)"):
        new_run(undisturbed[0], units=6)


def test_foreign_files_are_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(CommandError, match=r"holds thesis\.tex but no config.json"):
        new_run(tmp_path)
    with pytest.raises(CommandError, match="is a file"):
        new_run(tmp_path / "thesis.tex")


def test_what_a_kill_left_of_the_first_write_is_not_foreign(tmp_path):
    (tmp_path / "config.partial.json").write_text('{"conf')
    new_run(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["config"] == CONFIG


def test_a_loss_that_is_not_finite_ends_the_run_and_keeps_the_checkpoint(tmp_path):
    class Spoil(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 2:
                self.model.set_weights([np.full_like(w, np.nan) for w in self.model.get_weights()])

    path = tmp_path / "run"
    with pytest.raises(CommandError, match="not finite in epoch 3"):
        train(path, callbacks=[Spoil()])
    assert len(read_history(path)) == 2
    assert np.isfinite(train(path).get_weights()[0]).all()


def test_readers_name_what_is_missing(tmp_path):
    with pytest.raises(CommandError, match=r"no results\.json"):
        read_results(tmp_path)
    with pytest.raises(CommandError, match=r"no history\.csv"):
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
    with pytest.raises(CommandError, match="units=6 there and 5 here"):
        new_run(tmp_path)


def test_two_processes_are_not_at_work_in_one_folder(tmp_path, monkeypatch, capsys):
    new_run(tmp_path)
    [lock] = tmp_path.glob(".lock*")
    with subprocess.Popen(
        [sys.executable, "-c", HOLD_LOCK, str(lock)], stdout=subprocess.PIPE
    ) as other:
        other.stdout.readline()
        monkeypatch.setattr(run_folder, "SECONDS_TO_WAIT", 0.3)
        with pytest.raises(CommandError, match=f"another process is at work in .*{tmp_path}; stop"):
            new_run(tmp_path)
        assert capsys.readouterr().out.count("waiting for it") == 1
        monkeypatch.setattr(run_folder, "SECONDS_TO_WAIT", 30.0)
        monkeypatch.setattr(run_folder.time, "sleep", lambda seconds: other.kill())
        new_run(tmp_path)


CHILD = """
import time
from absl import flags
import command_line
def main(argv):
    print("running", flush=True)
    time.sleep(60)
command_line.run(main, flags.FlagValues())
"""
PARENT = """
import subprocess, sys
import command_line
child = subprocess.Popen(
    [sys.executable, "-c", sys.argv[1]], env=command_line.child_environment(), stderr=sys.stdout
)
child.wait()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child")
def test_a_script_stops_with_what_had_started_it():
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, CHILD],
        cwd=Path(run_folder.__file__).parent,
        stdout=subprocess.PIPE,
        text=True,
    ) as parent:
        assert parent.stdout.readline() == "running\n"
        parent.kill()
        began = time.monotonic()
        # The child inherited the pipe, so this lasts until it ends.
        assert "stopped: SIGTERM" in parent.stdout.read()
        assert time.monotonic() - began < 30.0
