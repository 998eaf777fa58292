"""What the folder of a run can meet: events for kills.py, with a tiny model in this process.

Each event is a function of a `Run` and a random generator. It does something to the run, at work or
not, checks what comes of it, and leaves the folder so that the same call can go on.
"""

import contextlib
import errno
import io
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from unittest import mock

import keras
import numpy as np
import tensorflow as tf

from keras_bnrnn import BatchNormGRU, files
from keras_bnrnn.fit import (
    FitError,
    Stopped,
    best_model,
    checkpoints,
    fit,
    read_history,
    read_results,
    run_folder,
)

EPOCHS, STEPS, ROWS = 8, 4, 4
MOST_BATCHES = 9  # Between two events.
SMALLEST, LARGEST = 1_000, 30_000  # Sizes of files: of a configuration, of a model.


class Killed(BaseException):
    """Stands for SIGKILL."""


class After(keras.callbacks.Callback):
    """Does something after so many batches of training and evaluation."""

    def __init__(self, batches, action):
        super().__init__()
        self.left, self.action = batches, action

    def on_train_batch_end(self, batch, logs=None):
        self.left -= 1
        if self.left == 0:
            self.action()

    def on_test_batch_end(self, batch, logs=None):
        self.on_train_batch_end(batch)


class WeightsOfEpochs(keras.callbacks.Callback):
    """Keeps the weights after each epoch."""

    def __init__(self):
        super().__init__()
        self.found = {}

    def on_epoch_end(self, epoch, logs=None):
        self.found[epoch + 1] = self.model.get_weights()


def build_model(units=3):
    keras.utils.set_random_seed(1)
    model = keras.Sequential(
        [
            keras.Input((3, 2)),
            BatchNormGRU(units, momentum=0.9, name="gru"),
            keras.layers.Dropout(0.5),
            keras.layers.Dense(1),
        ]
    )
    model.compile(keras.optimizers.Adam(0.01), "mse", metrics=["mae"], run_eagerly=True)
    return model


def batches(epoch=0, count=STEPS):
    rng = np.random.default_rng(epoch)
    x = rng.normal(size=(count * ROWS, 3, 2)).astype("float32")
    return tf.data.Dataset.from_tensor_slices((x, x.sum(1)[:, :1])).batch(ROWS, True)


class Run:
    """A run and what it must come to.

    Args:
        folder: of the run.
        rows, weights: after each epoch of an undisturbed one.
    """

    def __init__(self, folder, rows, weights):
        self.folder, self.rows, self.weights = Path(folder), rows, weights
        self.least = 0

    def train(self, *callbacks, build=None, epochs=EPOCHS, seed=1, **options):
        options = {"checkpoint_steps": 2, "verbose": 0, "config": {"seed": seed}, **options}
        return fit(
            build or build_model,
            batches,
            lambda: batches(99, 2),
            epochs,
            self.folder,
            callbacks=callbacks,
            **options,
        )

    @property
    def finished(self):
        with contextlib.suppress(FitError):
            return read_results(self.folder)["finished"] and len(self.read()) == EPOCHS
        return False

    def finish(self):
        self.train()

    def read(self):
        return read_history(self.folder) if (self.folder / "history.csv").exists() else []

    def check(self):
        """Nothing is lost, nothing is mixed."""
        rows = self.read()
        for row, expected in zip(rows, self.rows, strict=False):
            assert row == expected, f"history.csv has {row} where {expected} is due"
        assert len(rows) >= self.least, f"{self.least - len(rows)} epochs are lost"
        self.least = len(rows)
        if not rows:
            return
        results = read_results(self.folder)
        best = results["best"]["epoch"]
        model = keras.saving.load_model(best_model(self.folder, results), compile=False)
        for found, expected in zip(model.get_weights(), self.weights[best], strict=True):
            np.testing.assert_array_equal(found, expected, "best.keras is of another epoch")

    def check_end(self):
        """The run is finished, with the weights of an undisturbed one."""
        assert self.finished, "not finished"
        last = keras.saving.load_model(self.folder / "final.keras", compile=False)
        for found, expected in zip(last.get_weights(), self.weights[EPOCHS], strict=True):
            np.testing.assert_array_equal(found, expected)

    def parts(self):
        """The files of checkpoints, the oldest first."""
        found = checkpoints.ours(self.folder / checkpoints.FOLDER)
        return [one / "worker-0.npz" for one in found if (one / "worker-0.npz").exists()]

    def content(self):
        """`{name: bytes}` of all files."""
        found = [path for path in sorted(self.folder.rglob("*")) if path.is_file()]
        return {str(path): path.read_bytes() for path in found if ".lock" not in path.name}

    @contextlib.contextmanager
    def unchanged(self):
        """Expects that no file of the run is changed."""
        before = self.content()
        yield
        after = self.content()
        changed = [name for name in {**before, **after} if before.get(name) != after.get(name)]
        assert not changed, f"changed: {changed}"

    @contextlib.contextmanager
    def refused(self, text, kind=FitError):
        """Expects an error, and nothing changed."""
        with self.unchanged():
            try:
                yield
            except kind as error:
                assert text in str(error), str(error)
            else:
                raise AssertionError(f"not refused: {text}")


def kill():
    raise Killed


def killed(run, rng):
    with contextlib.suppress(Killed):
        run.train(After(rng.randint(1, MOST_BATCHES), kill))


def killed_while_writing(run, rng):
    left = rng.randint(0, 12)

    def dying(function):
        def call(*arguments):
            nonlocal left
            left -= 1
            if left < 0:
                raise Killed
            return function(*arguments)

        return call

    with (
        mock.patch.object(os, "replace", dying(os.replace)),
        mock.patch.object(files, "flush", dying(files.flush)),
        contextlib.suppress(Killed),
    ):
        run.train()


def signalled(run, rng):
    number = rng.choice([signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
    with contextlib.suppress(Stopped):
        run.train(After(rng.randint(1, MOST_BATCHES), lambda: os.kill(os.getpid(), number)))


def ctrl_c_twice(run, rng):
    def interrupt():
        os.kill(os.getpid(), signal.SIGINT)

    count = rng.randint(1, MOST_BATCHES)
    with contextlib.suppress(KeyboardInterrupt, Stopped):
        run.train(After(count, interrupt), After(count, interrupt))


def full_disk(run, rng):
    """A limit of files' sizes stands for it."""
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (rng.randint(SMALLEST, LARGEST), unlimited[1]))
    try:
        run.train(After(3 * MOST_BATCHES, kill))
    except OSError as error:
        assert str(run.folder) in str(error), str(error)
    except Killed:
        pass
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)


def read_only(run, rng):
    def refuse(*arguments):
        raise OSError(errno.EROFS, "Read-only file system", str(run.folder))

    with mock.patch.object(os, "replace", refuse), run.refused("Read-only", OSError):
        run.train()


def newest_damaged(run, rng):
    for part in run.parts()[-1:]:
        content = bytearray(part.read_bytes())
        if rng.random() < 0.5:
            del content[rng.randrange(len(content)) :]
        else:
            content[rng.randrange(len(content))] ^= 0x10
        part.write_bytes(content)
    killed(run, rng)


def all_damaged(run, rng):
    before = {part: part.read_bytes() for part in run.parts()}
    for part in before:
        part.write_bytes(b"PK")
    if not run.read():
        return
    with run.refused("no whole checkpoint"):
        run.train()
    if rng.random() < 0.5:
        for part, content in before.items():
            part.write_bytes(content)
        return
    with contextlib.suppress(Killed):
        run.train(After(rng.randint(1, MOST_BATCHES), kill), restart=True)
    run.least = 0
    kept = max(run.folder.glob("damaged-*"), key=lambda path: int(path.name.partition("-")[2]))
    assert (kept / "history.csv").exists() and (kept / "best.keras").exists()


def unreadable(run, rng):
    """As a share that is away; a folder of the file's name stands for it."""
    for part in run.parts()[-1:]:
        aside = part.rename(part.with_suffix(".aside"))
        part.mkdir()
        with run.refused("Is a directory", OSError):
            run.train()
        part.rmdir()
        aside.rename(part)


def configuration_damaged(run, rng):
    path = run.folder / "config.json"
    before = path.read_bytes() if path.exists() else None
    if before is None:
        return
    missing = rng.random() < 0.3 and run.parts()
    if missing:
        path.unlink()
    else:
        path.write_bytes(before[: rng.randrange(len(before) - 3)])
    if not run.parts():
        with run.refused("is damaged"):
            run.train()
        path.write_bytes(before)
    else:
        killed(run, rng)
        assert json.loads(path.read_bytes()) == json.loads(before)


def other_flags(run, rng):
    if (run.folder / "config.json").exists():
        with run.refused("another configuration"):
            run.train(seed=2)


def other_runs_checkpoint(run, rng):
    for part in run.parts()[-1:]:
        epochs, steps = checkpoints.order(part.parent)
        copy = part.parent.with_name(checkpoints.name_of(epochs + 1, steps))
        with np.load(part) as arrays:
            found = dict(arrays)
        document = json.loads(str(found["progress"]))
        document["identity"]["run"] = "of another"
        found["progress"] = np.array(json.dumps(document))
        buffer = io.BytesIO()
        np.savez(buffer, **found)
        copy.mkdir(exist_ok=True)
        (copy / part.name).write_bytes(buffer.getvalue())
        with run.refused("is of another run"):
            run.train()
        shutil.rmtree(copy)


def moved_away(run, rng):
    elsewhere = run.folder.with_name("elsewhere")
    with contextlib.suppress(FitError):
        run.train(After(rng.randint(1, MOST_BATCHES), lambda: run.folder.rename(elsewhere)))
    if elsewhere.exists():
        assert not run.folder.exists(), "the folder was made again"
        elsewhere.rename(run.folder)


def replaced(run, rng):
    """By the folder of another run, while at work."""
    elsewhere, other = run.folder.with_name("elsewhere"), run.folder.with_name("other")
    Run(other, run.rows, run.weights).train(epochs=1, seed=2)
    before = {}

    def replace():
        run.folder.rename(elsewhere)
        other.rename(run.folder)
        before.update(run.content())

    with contextlib.suppress(FitError):
        run.train(After(rng.randint(1, MOST_BATCHES), replace))
    if before:
        assert run.content() == before, "two runs are mixed"
        shutil.rmtree(run.folder)
        elsewhere.rename(run.folder)
    else:
        shutil.rmtree(other)


def foreign_names(run, rng):
    folder = run.folder / checkpoints.FOLDER
    names = ("epoch-0002.bak", "epoch-0002-backup", "EPOCH-0003", "epoch-00001")
    if folder.exists():
        for name in names:
            (folder / name).mkdir(exist_ok=True)
        killed(run, rng)
        assert all((folder / name).is_dir() for name in names), "a foreign folder was removed"


def partial_files(run, rng):
    """What a SIGKILL leaves of files that were being written."""
    if run.folder.exists():
        for name in ("history.partial.csv", "best.partial.keras", "best-of-epoch-0099.keras"):
            (run.folder / name).write_bytes(b"part")
    killed(run, rng)


def clocks_apart(run, rng):
    """Files from a machine whose clock is a year before or behind."""
    now = time.time() + rng.choice([-1, 1]) * 365 * 86400
    for path in run.folder.rglob("*"):
        os.utime(path, (now + rng.random(), now + rng.random()))
    killed(run, rng)


def no_locks(run, rng):
    """On a file system without them whoever comes last has the folder."""

    def second():
        with contextlib.suppress(Killed):
            run.train(After(2, kill))

    with mock.patch.object(files.fcntl, "lockf", side_effect=OSError(errno.ENOLCK, "No locks")):
        try:
            run.train(After(rng.randint(1, MOST_BATCHES), second))
        except FitError as error:
            assert "another process has begun" in str(error), str(error)


def epochs_raised(run, rng):
    """A run that ended goes on when it is asked for more."""
    if len(run.read()) + 1 < EPOCHS:
        run.train(epochs=len(run.read()) + 1)


def with_tensorboard(run, rng):
    with contextlib.suppress(Killed):
        run.train(After(rng.randint(1, MOST_BATCHES), kill), tensorboard=True)
    steps = [
        (value.tag, event.step)
        for path in (run.folder / "tensorboard").glob("events*")
        for record in tf.data.TFRecordDataset(str(path))
        for event in [tf.compat.v1.Event.FromString(record.numpy())]
        for value in event.summary.value
    ]
    assert len(set(steps)) == len(steps), "a point is there twice"


def removed(run, rng):
    """While at work; the run is lost, and nothing makes it look like one."""
    with contextlib.suppress(FitError):
        run.train(After(rng.randint(1, MOST_BATCHES), lambda: shutil.rmtree(run.folder)))
    if not run.folder.exists():
        run.least = 0


def checkpoints_removed(run, rng):
    if run.read():
        folder, aside = run.folder / checkpoints.FOLDER, run.folder.with_name("checkpoints-aside")
        folder.rename(aside)
        with run.refused("no whole checkpoint"):
            run.train()
        aside.rename(folder)


def other_model(run, rng):
    for _ in run.parts()[-1:]:
        with run.refused("does not fit the model"):
            run.train(build=lambda: build_model(units=4))


def best_model_damaged(run, rng):
    """Who uses it is told; training makes it anew where an epoch is better."""
    path = run.folder / "best.keras"
    if not path.exists():
        return
    before = path.read_bytes()
    if rng.random() < 0.5:
        path.unlink()
    else:
        path.write_bytes(before[: rng.randrange(len(before) - 20)])  # Not of its comment alone.
    with run.refused("best.keras"):
        best_model(run.folder, read_results(run.folder))
    path.write_bytes(before)


def second_process(run, rng):
    """It waits for the first, then ends."""
    run.folder.mkdir(exist_ok=True)
    code = "import fcntl, sys; f = open(sys.argv[1], 'a'); fcntl.lockf(f, fcntl.LOCK_EX); "
    code += "print(flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", code, str(run.folder / ".lock-of-worker-0")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        with (
            mock.patch.object(run_folder, "SECONDS_TO_WAIT", 0.3),
            run.refused("another process is at work"),
        ):
            run.train()
        other.stdin.close()


def path_is_a_url(run, rng):
    url = rng.choice(["gs", "s3", "file", "hdfs"]) + "://bucket/run"
    with run.refused("is a URL"):
        fit(build_model, batches, batches(99, 2), EPOCHS, url)


EVENTS = (
    *(killed, killed_while_writing, signalled, ctrl_c_twice, full_disk, read_only),
    *(newest_damaged, all_damaged, unreadable, configuration_damaged, other_flags),
    *(other_runs_checkpoint, moved_away, replaced, foreign_names, partial_files, clocks_apart),
    *(no_locks, epochs_raised, with_tensorboard, removed, checkpoints_removed, other_model),
    *(best_model_damaged, second_process, path_is_a_url),
)


def undisturbed(folder):
    """A run that meets nothing: its rows, and its weights after each epoch."""
    tf.config.experimental.enable_op_determinism()
    for number in (signal.SIGTERM, signal.SIGHUP):  # A shell's background has some ignored.
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    kept, run = WeightsOfEpochs(), Run(folder, None, None)
    run.train(kept)
    return run.read(), kept.found
