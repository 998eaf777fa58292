"""What the folder of a run can meet: events for kills.py, in one process, with a tiny model.

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


def build_model():
    keras.utils.set_random_seed(1)
    model = keras.Sequential(
        [
            keras.Input((3, 2)),
            BatchNormGRU(3, momentum=0.9, name="gru"),
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

    def train(self, *callbacks, epochs=EPOCHS, seed=1, **options):
        options = {"checkpoint_steps": 2, "verbose": 0, "config": {"seed": seed}, **options}
        return fit(
            build_model,
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

    def parts(self):
        """The files of checkpoints, the oldest first."""
        found = checkpoints.ours(self.folder / checkpoints.FOLDER)
        return [one / "worker-0.npz" for one in found if (one / "worker-0.npz").exists()]

    def content(self):
        """`{name: bytes}` of all files."""
        found = [path for path in sorted(self.folder.rglob("*")) if path.is_file()]
        return {str(path): path.read_bytes() for path in found if ".lock" not in path.name}

    @contextlib.contextmanager
    def refused(self, text, kind=FitError):
        """Expects an error, and nothing changed."""
        before = self.content()
        try:
            yield
        except kind as error:
            assert text in str(error), str(error)
        else:
            raise AssertionError(f"not refused: {text}")
        assert self.content() == before, "something was changed"


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


EVENTS = (
    *(killed, killed_while_writing, signalled, ctrl_c_twice, full_disk, read_only),
    *(newest_damaged, all_damaged, unreadable, configuration_damaged, other_flags),
    *(other_runs_checkpoint, moved_away, replaced, foreign_names, partial_files, clocks_apart),
    *(no_locks, epochs_raised, with_tensorboard),
)


@contextlib.contextmanager
def quiet():
    """Keeps back what is printed, but where something fails."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            yield
    except BaseException:
        print(said.getvalue())
        raise


def meet(folder, count, rng):
    """Lets runs meet so many events, and come to their ends.

    Args:
        folder: for the runs.
        count: of events, at least.
        rng: chooses them and their moments.

    Returns:
        How often each event came, by name.
    """
    tf.config.experimental.enable_op_determinism()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # A shell's background has it ignored.
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    kept = WeightsOfEpochs()
    undisturbed = Run(folder / "undisturbed", None, None)
    with quiet():
        undisturbed.train(kept)
    rows, found = undisturbed.read(), dict.fromkeys((one.__name__ for one in EVENTS), 0)
    order, number = [], 0
    while sum(found.values()) < count:
        number += 1
        run = Run(folder / f"run-{number}", rows, kept.found)
        while not run.finished and sum(found.values()) < count:
            order = order or rng.sample(EVENTS, len(EVENTS))
            event = order.pop()
            with quiet():
                event(run, rng)
                run.check()
            found[event.__name__] += 1
            progress = f"{len(run.read())} epochs"
            print(
                f"  {sum(found.values())}: run {number}, {event.__name__}; {progress}", flush=True
            )
        with quiet():
            run.train()
            run.check()
        assert run.finished and len(run.read()) == EPOCHS
        last = keras.saving.load_model(run.folder / "final.keras", compile=False)
        for weight, expected in zip(last.get_weights(), kept.found[EPOCHS], strict=True):
            np.testing.assert_array_equal(weight, expected)
        print(f"run {number}: history.csv and weights are the same to the bit", flush=True)
    return found
