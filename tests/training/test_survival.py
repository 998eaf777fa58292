"""Killed at a step, told to stop, gone to NaN: what a run leaves behind and how it goes on."""

import dataclasses
import itertools
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import tensorflow as tf

import command_line
import kills
import train_ptb
import train_speech
from command_line import CommandError
from conformance import parameters
from keras_bnrnn.fit import loop
from keras_bnrnn.fit.errors import FitError
from keras_bnrnn.fit.run_folder import read_history
from recipes import language_model

SPEECH = (
    "--layers=1",
    "--units=5",
    "--batch_size=4",
    "--learning_rate=0.01",
    "--epochs=2",
    "--checkpoint_steps=2",
    "--deterministic",
)
KINDS = ("speech", "language")
# Each of the flags with one kind of model.
SPEEDS = [
    ("language", "--mixed_precision=bfloat16"),
    ("speech", "--mixed_precision=float16"),
    ("speech", "--jit_compile"),
    ("language", "--steps_per_execution=3"),
    ("speech", "--mixed_precision=bfloat16 --strategy=mirrored"),
    ("language", "--mixed_precision=float16 --jit_compile"),
]
LANGUAGE = ("--epochs=2", "--steps_per_epoch=6", "--checkpoint_steps=2", "--deterministic")


class Killed(Exception):
    """Stands for SIGKILL where a test wants to choose the very step."""


@pytest.fixture
def train(tiny_corpus, call_script, monkeypatch):
    """Runs a script: `train("speech", folder, "--seed=1", …)`."""
    small = dataclasses.replace(
        language_model.RECIPES["small"], units=6, timesteps=4, batch_size=4, dropout=0.2
    )
    monkeypatch.setitem(language_model.RECIPES, "small", small)

    def run(kind, folder, *more):
        if kind == "speech":
            data = f"--data_dir={tiny_corpus}"
            call_script(train_speech, *SPEECH, data, f"--output_dir={folder}", *more)
        else:
            pytest.importorskip("tensorflow_text", reason="the `text` extra is not installed")
            call_script(train_ptb, *LANGUAGE, f"--output_dir={folder}", *more)

    return run


def killed_at(monkeypatch, epoch, step):
    """A context in which training dies when so many steps of an epoch are made."""
    ended = loop.Recorder.on_train_batch_end

    def die(recorder, batch, logs=None):
        ended(recorder, batch, logs)
        if (recorder.epoch, recorder.step) == (epoch, step):
            raise Killed

    def die_in_evaluation(recorder, batch, logs=None):
        if (recorder.epoch, "evaluation") == (epoch, step):
            raise Killed

    context = monkeypatch.context()
    patch = context.__enter__()
    patch.setattr(loop.Recorder, "on_train_batch_end", die)
    patch.setattr(loop.Recorder, "on_test_batch_end", die_in_evaluation)
    return context


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "strategy"),
    parameters(
        itertools.product(KINDS, ["none", "mirrored"]),
        [("speech", "none"), ("language", "mirrored")],
    ),
)
def test_goes_on_from_the_last_saved_step(train, tmp_path, monkeypatch, capsys, kind, strategy):
    """To the bit: data order, optimizer, dropout, metrics, and each replica's carried states.

    Unsynchronised, so that the replicas' statistics differ and are kept apart as well.
    """
    flags = [f"--strategy={strategy}", "--nosynchronized"]
    train(kind, tmp_path / "whole", *flags)
    for epoch, step in ((0, 3), (0, 5), (0, "evaluation"), (1, 1), (1, 4)):
        context = killed_at(monkeypatch, epoch, step)
        with pytest.raises(Killed):
            train(kind, tmp_path / "killed", *flags)
        context.__exit__(None, None, None)
    capsys.readouterr()
    train(kind, tmp_path / "killed", *flags)
    assert "after epoch 1 and 4 steps" in capsys.readouterr().out
    assert kills.differences(tmp_path / "whole", tmp_path / "killed") == []
    assert sorted(path.name for path in (tmp_path / "killed" / "checkpoints").iterdir())[-1] == (
        "epoch-0002"
    )
    assert len(list((tmp_path / "killed" / "checkpoints").iterdir())) == 2


@pytest.mark.slow
def test_a_run_goes_on_with_other_devices(train, tmp_path, monkeypatch):
    """The result is that of one device to rounding, as the whole run would have been."""
    train("language", tmp_path / "whole", "--strategy=none")
    context = killed_at(monkeypatch, 1, 4)
    with pytest.raises(Killed):
        train("language", tmp_path / "moved", "--strategy=none")
    context.__exit__(None, None, None)
    train("language", tmp_path / "moved", "--strategy=mirrored")
    rows = zip(read_history(tmp_path / "whole"), read_history(tmp_path / "moved"), strict=True)
    for row, other in rows:
        assert other == pytest.approx(row, rel=0.02)  # Dropout draws anew.


@pytest.mark.slow
def test_sigterm_saves_and_exits(tiny_corpus, tmp_path):
    script = str(train_speech.__file__)
    flags = [f"--data_dir={tiny_corpus}", *SPEECH, "--epochs=40"]
    command = [sys.executable, script, *flags, f"--output_dir={tmp_path}/stopped"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("stopped/checkpoints/*")) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == command_line.EXIT_STOPPED, errors
    assert "stopped: SIGTERM in epoch" in errors and "the same command goes on" in errors
    assert "Traceback" not in errors
    done = output.count("Epoch ")
    flags[-1] = f"--epochs={done + 1}"
    for name in ("stopped", "whole"):
        folder = f"--output_dir={tmp_path}/{name}"
        done = subprocess.run(
            [sys.executable, script, *flags, folder], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
    assert "Continuing" in (done.stdout if name == "stopped" else "Continuing")
    assert kills.differences(tmp_path / "stopped", tmp_path / "whole") == []


@pytest.mark.slow
def test_a_loss_that_is_not_finite_names_step_and_utterances(train, tiny_corpus, tmp_path):
    spoilt = tmp_path / "corpus"
    shutil.copytree(tiny_corpus, spoilt)
    # The one utterance in which a feature is infinite; its checksum is checked by --verify alone.
    path = spoilt / "train-00001-of-00002.tfrecord"
    records = [record.numpy() for record in tf.data.TFRecordDataset(str(path))]
    example = tf.train.Example.FromString(records[3])
    name = example.features.feature["id"].bytes_list.value[0].decode()
    example.features.feature["features"].float_list.value[5] = np.inf
    records[3] = example.SerializeToString()
    with tf.io.TFRecordWriter(str(path)) as writer:
        for record in records:
            writer.write(record)
    assert path.stat().st_size == (tiny_corpus / path.name).stat().st_size
    with pytest.raises(FitError) as error:
        train("speech", tmp_path / "run", f"--data_dir={spoilt}")
    message = str(error.value)
    assert "the loss is not finite in epoch 1, step" in message
    assert name in message and "lower learning rate" in message
    step = int(message.split("step ")[1].split()[0])
    kept = sorted(path.name for path in (tmp_path / "run" / "checkpoints").glob("*"))
    assert kept == [f"epoch-0000-step-{saved:06d}" for saved in (2, 4, 6) if saved < step][-2:]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "flags"), parameters(itertools.product(KINDS, [flags for _, flags in SPEEDS]), SPEEDS)
)
def test_precision_and_speed_flags(train, tmp_path, monkeypatch, kind, flags):
    """The same run within the noise of the arithmetic; dropout would draw other numbers."""
    still = dataclasses.replace(language_model.RECIPES["small"], dropout=0.0)
    monkeypatch.setitem(language_model.RECIPES, "small", still)
    plain = ["--nodeterministic", "--model=batch_norm"]
    if not (tmp_path.parent / f"{kind}-plain").exists():
        train(kind, tmp_path.parent / f"{kind}-plain", *plain)
    train(kind, tmp_path / "run", *plain, *flags.split())
    rows = zip(
        read_history(tmp_path.parent / f"{kind}-plain"), read_history(tmp_path / "run"), strict=True
    )
    for row, other in rows:
        assert other == pytest.approx(row, rel=0.05, abs=0.05)


@pytest.mark.parametrize("kind", ["speech", "language"])
@pytest.mark.parametrize("flag", ["--jit_compile", "--steps_per_execution=2"])
def test_what_keras_cannot_do_together_is_refused(train, tmp_path, kind, flag):
    with pytest.raises(CommandError, match="cannot be combined with several devices"):
        train(kind, tmp_path / "run", "--strategy=mirrored", flag)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_sigterm_to_one_of_two_workers(tiny_corpus, tmp_path):
    """Both save, the other one waits, and the job ends as if nothing had happened."""
    flags = [f"--data_dir={tiny_corpus}", *SPEECH, "--epochs=3", "--checkpoint_steps=0"]
    flags += ["--nosynchronized", "--tensorboard"]
    whole = kills.Job("train_speech", flags, tmp_path / "whole", 2)
    job = kills.Job("train_speech", flags, tmp_path / "stopped", 2)
    while not job.newest_checkpoint():
        assert job.running()
        time.sleep(0.01)
    job.processes[1].send_signal(signal.SIGTERM)
    assert job.processes[1].wait(timeout=300) == command_line.EXIT_STOPPED
    job.processes[1] = job.start(1)
    for one in (whole, job):
        while one.running():
            time.sleep(0.1)
    assert kills.differences(tmp_path / "whole", tmp_path / "stopped") == []
    log = (tmp_path / "stopped.log").read_text()
    assert "stopped: SIGTERM in epoch" in log and "Another worker is gone" in log
    assert "damaged" not in log
    assert list((tmp_path / "stopped" / "tensorboard").iterdir())


@pytest.mark.slow
@pytest.mark.parametrize(("script", "workers"), [("train_ptb", 1), ("train_speech", 2)])
def test_sigkill_at_random_moments(tmp_path, script, workers):
    """In processes of their own; of two workers one is killed and the other comes back alone."""
    pytest.importorskip("tensorflow_text", reason="the `text` extra is not installed")
    done, found = kills.disturb(script, tmp_path, 3 // workers, workers, kills.random.Random(1))
    assert done == 3 // workers
    assert found == []
