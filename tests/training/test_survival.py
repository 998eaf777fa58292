"""Killed at a step, told to stop, gone to NaN: what a run leaves behind and how it goes on."""

import contextlib
import dataclasses
import itertools
import os
import shutil
import signal

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
from keras_bnrnn.fit.tables import read_history
from keras_bnrnn.gap import is_gap
from recipes import language_model
from script_fixtures import write_text

SPEECH = (
    "--layers=1",
    "--units=5",
    "--batch_size=4",
    "--learning_rate=0.01",
    "--epochs=2",
    "--checkpoint_steps=2",
    "--deterministic",
)
SCRIPTS = {"speech": train_speech, "language": train_ptb}
KINDS = tuple(SCRIPTS)
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
def flags_of(tiny_corpus, tiny_text, monkeypatch):
    """The flags of a tiny run: `flags_of("speech", folder, "--seed=1", …)`."""
    small = dataclasses.replace(
        language_model.RECIPES["small"], units=6, timesteps=4, batch_size=4, dropout=0.2
    )
    monkeypatch.setitem(language_model.RECIPES, "small", small)

    def flags(kind, folder, *more):
        if kind == "language":
            pytest.importorskip("tensorflow_text", reason="the `text` extra is not installed")
            return *LANGUAGE, f"--data_dir={tiny_text}", f"--output_dir={folder}", *more
        return *SPEECH, f"--data_dir={tiny_corpus}", f"--output_dir={folder}", *more

    return flags


@pytest.fixture
def train(flags_of, call_script):
    """Runs a script: `train("speech", folder, "--seed=1", …)`."""
    return lambda kind, *flags: call_script(SCRIPTS[kind], *flags_of(kind, *flags))


@pytest.fixture
def at(monkeypatch):
    """Lets something happen when so many steps of an epoch are made, or in its evaluation."""

    @contextlib.contextmanager
    def patched(epoch, step, action):
        ended = loop.Recorder.on_train_batch_end

        def after_step(recorder, batch, logs=None):
            ended(recorder, batch, logs)
            if (recorder.epoch, recorder.step) == (epoch, step):
                action()

        def in_evaluation(recorder, batch, logs=None):
            if (recorder.epoch, "evaluation") == (epoch, step):
                action()

        with monkeypatch.context() as patch:
            patch.setattr(loop.Recorder, "on_train_batch_end", after_step)
            patch.setattr(loop.Recorder, "on_test_batch_end", in_evaluation)
            yield

    return patched


def kill():
    raise Killed


def send_sigterm():
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "strategy"),
    parameters(
        itertools.product(KINDS, ["none", "mirrored"]),
        [("speech", "none"), ("language", "mirrored")],
    ),
)
def test_goes_on_from_the_last_saved_step(
    train, flags_of, run_command, at, tmp_path, capsys, kind, strategy
):
    """To the bit: data order, optimizer, dropout, metrics, and each replica's carried states.

    Killed within an epoch and in an evaluation, told to stop, killed again. Unsynchronised, so that
    the replicas' statistics differ and are kept apart as well.
    """
    flags = [f"--strategy={strategy}", "--nosynchronized"]
    train(kind, tmp_path / "whole", *flags)
    killed = [tmp_path / "killed", *flags]
    for epoch, step in ((0, 3), (0, "evaluation")):
        with at(epoch, step, kill), pytest.raises(Killed):
            train(kind, *killed)
    with at(1, 1, send_sigterm):
        code, _, errors = run_command(f"{SCRIPTS[kind].__name__}.py", *flags_of(kind, *killed))
    assert code == command_line.EXIT_STOPPED
    assert "stopped: SIGTERM in epoch 2, step 2" in errors
    assert "the same command goes on" in errors and "Traceback" not in errors
    with at(1, 4, kill), pytest.raises(Killed):
        train(kind, *killed)
    assert "after epoch 1 and 2 steps" in capsys.readouterr().out
    train(kind, *killed)
    assert "after epoch 1 and 4 steps" in capsys.readouterr().out
    assert kills.differences(tmp_path / "whole", tmp_path / "killed") == []
    checkpoints = sorted(path.name for path in (tmp_path / "killed" / "checkpoints").iterdir())
    assert len(checkpoints) == 2 and checkpoints[-1] == "epoch-0002"


def measures(folder):
    """The rows of a run without the statistics' gap, which in its first steps any noise moves."""
    return [
        {name: value for name, value in row.items() if not is_gap(name)}
        for row in read_history(folder)
    ]


@pytest.mark.slow
def test_a_run_goes_on_with_other_devices(train, at, tmp_path):
    """The result is that of one device to rounding, as the whole run would have been."""
    train("language", tmp_path / "whole", "--strategy=none")
    with at(1, 4, kill), pytest.raises(Killed):
        train("language", tmp_path / "moved", "--strategy=none")
    train("language", tmp_path / "moved", "--strategy=mirrored")
    rows = zip(measures(tmp_path / "whole"), measures(tmp_path / "moved"), strict=True)
    for row, other in rows:
        assert other == pytest.approx(row, rel=0.02)  # Dropout draws anew.


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
    rows = zip(measures(tmp_path.parent / f"{kind}-plain"), measures(tmp_path / "run"), strict=True)
    for row, other in rows:
        assert other == pytest.approx(row, rel=0.05, abs=0.05)


@pytest.mark.parametrize("kind", ["speech", "language"])
@pytest.mark.parametrize("flag", ["--jit_compile", "--steps_per_execution=2"])
def test_what_keras_cannot_do_together_is_refused(train, tmp_path, kind, flag):
    with pytest.raises(CommandError, match="cannot be combined with several devices"):
        train(kind, tmp_path / "run", "--strategy=mirrored", flag)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_one_of_two_workers_is_told_to_stop_and_the_other_killed(tiny_corpus, tmp_path):
    """Each time the other one waits, and the job ends as if nothing had happened."""
    flags = [*SPEECH, f"--data_dir={tiny_corpus}", "--epochs=4", "--nosynchronized"]
    flags += ["--tensorboard"]
    whole = kills.Job("train_speech", flags, tmp_path / "whole", 2)
    job = kills.Job("train_speech", flags, tmp_path / "disturbed", 2)
    job.wait_for_checkpoint("epoch-0000")
    job.processes[1].send_signal(signal.SIGTERM)
    assert job.processes[1].wait(timeout=300) == command_line.EXIT_STOPPED
    job.processes[1] = job.start(1)
    job.wait_for_checkpoint("epoch-0001-step-000002")
    job.kill_and_start_again(0)
    for one in (whole, job):
        kills.finish(one)
    assert kills.differences(tmp_path / "whole", tmp_path / "disturbed") == []
    log = (tmp_path / "disturbed.log").read_text()
    assert "stopped: SIGTERM in epoch" in log and log.count("Another worker is gone") >= 2
    assert "damaged" not in log
    assert list((tmp_path / "disturbed" / "tensorboard").iterdir())


@pytest.mark.slow
def test_sigkill_at_a_random_moment(tmp_path):
    """In a process of its own, and of a model of the size that is used."""
    pytest.importorskip("tensorflow_text", reason="the `text` extra is not installed")
    text = tmp_path / "text"
    text.mkdir()
    write_text(text, 3000)
    flags = [*LANGUAGE, f"--data_dir={text}", "--epochs=3", "--steps_per_epoch=24"]
    done, found = kills.disturb("train_ptb", flags, tmp_path, 1, 1, kills.random.Random(1))
    assert (done, found) == (1, [])
