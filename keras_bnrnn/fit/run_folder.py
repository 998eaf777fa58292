"""The folder of a training run: configuration, checkpoints, history, results and models.

    config.json             what was asked for; a run of another configuration is refused here.
                            Also the run's own number, which its checkpoints have too
    history.csv             a row per finished epoch
    results.json            model, config, the best epoch's row, the last one's
    best.keras              the model after the epoch with the best criterion
    final.keras             the model after the last epoch
    checkpoints/            the newest two; see `checkpoints`
    tensorboard/            what the `TensorBoard` callback writes
    best-of-epoch-0007.keras    a new best model, until history and results know of it
    damaged-1/              models and tables of a run whose checkpoints were all damaged

A run can be killed at any moment and continues with the same command: a checkpoint has everything
in it that must agree, and `history.csv` and `results.json` are only printed from it. A new best
model waits beside `best.keras` until `results.json` names its epoch, so that `best_model` always
finds a model and figures of one epoch. Of several workers the first writes; the others read.
"""

import contextlib
import csv
import hashlib
import io
import itertools
import json
import math
import os
import platform
import socket
import sys
import tempfile
import time
import uuid
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_bnrnn.files import (
    PARTIAL,
    SECONDS_TO_WAIT,
    every_ten_seconds,
    lock_folder,
    unused,
    write_aside,
    written_aside,
)
from keras_bnrnn.fit.checkpoints import Checkpoints, newest_identity
from keras_bnrnn.fit.distribution import Worker, refusals_shared, worker_of
from keras_bnrnn.fit.errors import FitError
from keras_bnrnn.fit.tables import (
    BEST_MODEL_FILE,
    CONFIG_FILE,
    HISTORY_FILE,
    RESULTS_FILE,
    WAITING_BEST,
    comment_of,
    path_of_run,
    read_history,
    read_results,
    waiting_best,
)
from keras_bnrnn.gap import is_gap

FORMAT_VERSION = 2
FINAL_MODEL_FILE = "final.keras"
TENSORBOARD = "tensorboard"
DAMAGED = "damaged"
LOCK = ".lock-of-worker-"
# The history comes last: while it is there, the others are still to be set aside.
OF_FORMER_RUNS = (BEST_MODEL_FILE, FINAL_MODEL_FILE, RESULTS_FILE, TENSORBOARD, HISTORY_FILE)


class _Unreadable(FitError):
    """A configuration that is not what was written."""


class RunFolder:
    """A run's folder, new or to be continued.

    Args:
        path: the folder; made if it does not exist.
        config: dictionary of everything that decides the run's numbers (JSON values). A folder made
            with other values is refused.
        columns: `{column of history.csv: key of Keras's epoch logs}`; `None` for all of the logs.
            Those of `keras_bnrnn.StatisticsGap` are recorded either way.
        criterion: the column whose smallest value makes an epoch the best one.
        worker: which of several `Worker`s this process is.
        task: what kind of run it is; a folder of another kind is refused.
        restart: start again where a run has no whole checkpoint left. Otherwise it is refused.

    Attributes:
        rows: a dictionary for each finished epoch, `"epoch"` (from 1), the columns and
            `"learning_rate"`.
        seconds: that each of them took.
        completed_steps: of the epoch after them.

    Raises:
        FitError: the folder holds a run of another configuration, or foreign files, or another
            process stays at work in it.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        config: dict,
        columns: dict[str, str] | None = None,
        criterion: str = "val_loss",
        worker: Worker = Worker(),  # noqa: B008  immutable
        task: str | None = None,
        restart: bool = False,
    ):
        if columns is not None and criterion not in columns:
            raise ValueError(f"criterion={criterion!r} is not one of columns={sorted(columns)}")
        self.path = path_of_run(path)
        self.config = json.loads(json.dumps(config))
        self.columns = columns
        self.criterion = criterion
        self.worker = worker
        self.task = task
        self.restart = restart
        self.rows = []
        self.seconds = []
        self.completed_steps = 0
        self._lost_best = []
        self._metrics = {}
        self._seconds_of_epoch = 0.0
        content = json.dumps(self.config, sort_keys=True).encode()
        self._digest = hashlib.sha256(content).hexdigest()[:16]
        if worker.is_chief:
            self._claim()
        else:
            self._join()
        self._claimed = (self.path / CONFIG_FILE).read_bytes()
        self.checkpoints = Checkpoints(
            self.path,
            worker,
            {"run": json.loads(self._claimed).get("run"), "configuration": self._digest},
        )

    @property
    def completed_epochs(self) -> int:
        """Number of finished epochs: `initial_epoch` for `model.fit`."""
        return len(self.rows)

    @property
    def best_row(self) -> dict | None:
        """The row of the best epoch, the earliest of equals; `None` before the first epoch."""
        rows = [*self.rows, *self._lost_best]
        return min(rows, key=lambda row: row[self.criterion], default=None)

    @property
    def best_model_path(self) -> Path:
        return self.path / BEST_MODEL_FILE

    @property
    def final_model_path(self) -> Path:
        return self.path / FINAL_MODEL_FILE

    def restore(self, model: keras.Model) -> int:
        """Puts the newest whole checkpoint into the compiled, built `model` and its optimizer.

        Damaged checkpoints are reported on stderr and renamed. Where none is left, the run is
        refused, or with `restart` starts again, after its models and tables were moved aside.
        `best.keras` stays until an epoch is better, though the checkpoints know nothing of it.

        Returns:
            The number of finished epochs, 0 for a fresh run. `completed_steps` is the number of
            steps that were made of the next one.

        Raises:
            FitError: a checkpoint is of another run or model, or none of a run's is whole.
            OSError: a checkpoint cannot be read.
        """
        self._check_still_ours()
        with model.distribute_strategy.scope():
            model.optimizer.build(model.trainable_variables)
        with refusals_shared(model.distribute_strategy):
            found = self.checkpoints.restore(model)
            if found is not None:
                _, self.completed_steps, progress, self._metrics = found
                self.rows, self.seconds = progress["rows"], progress["seconds"]
                self._seconds_of_epoch = progress["seconds_of_epoch"]
                self._lost_best = progress.get("lost_best", [])
            elif not self.restart:
                self._refuse_to_start_again()
            repeated = self._remember_what_was_lost()
        if found is not None:
            steps = f" and {self.completed_steps} steps" if self.completed_steps else ""
            print(f"Continuing {self.path} after epoch {self.completed_epochs}{steps}.", flush=True)
        if self.worker.is_chief:
            if found is None:
                self._set_aside()  # Before the checkpoints, which tell a second attempt to do it.
            self.checkpoints.set_damaged_aside()
            if not repeated:
                self._write_tables()
            self._take_new_best()
        return self.completed_epochs

    def keep_file(self, name: str, content: str) -> None:
        """Puts a text file beside the results, for whoever uses the run without its data."""
        if self.worker.is_chief:
            self._check_still_ours()
            write_aside(self.path / name, content.encode())

    def take_metrics(self) -> dict[str, Any]:
        """What the metrics had summed up in `completed_steps`, for `checkpoints.add_metrics`."""
        metrics, self._metrics = self._metrics, {}
        return metrics

    def save_steps(self, model: keras.Model, steps: int, seconds: float) -> None:
        """Writes a checkpoint within an epoch.

        Args:
            model: the model.
            steps: made of this epoch.
            seconds: it has taken so far in this process.
        """
        self._check_still_ours()
        self.checkpoints.save(
            model, self.completed_epochs, steps, self._progress(self._seconds_of_epoch + seconds)
        )

    def end_epoch(
        self, model: keras.Model, epoch: int, logs: dict[str, float], seconds: float
    ) -> None:
        """Adds an epoch's row, writes its checkpoint, and the model if it is the best so far.

        Args:
            model: the model.
            epoch: counted from 0.
            logs: Keras's, of training and validation.
            seconds: it has taken in this process.
        """
        self._check_still_ours()
        self._record(model, epoch, logs)
        self.seconds.append(round(self._seconds_of_epoch + seconds, 3))
        self.completed_steps, self._seconds_of_epoch = 0, 0.0
        if self.best_row is self.rows[-1]:
            self._lost_best = []
            self._write_model(self.path / waiting_best(epoch + 1), model, epoch + 1)
            self._check_still_ours()
        self.checkpoints.save(model, self.completed_epochs, 0, self._progress(0.0))
        self._write_tables()
        if self.worker.is_chief:
            self._take_new_best()

    def finish(self, model: keras.Model, **best: float) -> None:
        """Writes `final.keras` and the complete `results.json`.

        Args:
            model: the model after the last epoch.
            **best: more values for the best epoch, such as `test_perplexity`.
        """
        self._check_still_ours()
        self._write_model(self.final_model_path, model, self.completed_epochs)
        self._write_results(finished=True, parameters=model.count_params(), best=best)

    def _claim(self):
        config_path = self.path / CONFIG_FILE
        if self.path.exists() and not self.path.is_dir():
            raise FitError(f"{self.path} is a file; name a folder", "output_dir")
        # Before waiting for anybody.
        if not self._known(config_path) and not self._has_a_checkpoint_of_mine():
            names = sorted(entry.name for entry in self._entries())
            foreign = [name for name in names if PARTIAL not in name and LOCK not in name]
            if foreign:
                raise FitError(
                    f"{self.path} holds {foreign[0]} but no config.json, so it is not a run's "
                    "folder; name a new or empty folder",
                    "output_dir",
                )
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock_out_others()
        if not self._known(config_path):
            run = newest_identity(self.path).get("run")
            if run:
                print(f"warning: {config_path} is written anew, by a checkpoint", file=sys.stderr)
            content = {
                "format_version": FORMAT_VERSION,
                "config": self.config,
                "run": run or uuid.uuid4().hex,
                **self._task_entry(),
            }
            write_aside(config_path, _json(content).encode())

    def _known(self, config_path):
        """Whether `config.json` says that the folder is this run's.

        `False` where it is missing, or damaged while a checkpoint says so: then it is written anew.
        """
        if not config_path.exists():
            return False
        try:
            self._compare(config_path)
        except _Unreadable:
            if not self._has_a_checkpoint_of_mine():
                raise
            return False
        return True

    def _has_a_checkpoint_of_mine(self):
        return newest_identity(self.path).get("configuration") == self._digest

    def _join(self):
        """Waits for the first worker's `config.json`."""
        config_path = self.path / CONFIG_FILE
        deadline = time.monotonic() + SECONDS_TO_WAIT
        say = every_ten_seconds()
        while not config_path.exists():
            if time.monotonic() > deadline:
                raise FitError(
                    f"worker 0 has written no {config_path} in {SECONDS_TO_WAIT} s; all workers "
                    "must share the folder",
                    "output_dir",
                )
            say(f"Waiting for worker 0 to write {config_path}.")
            time.sleep(0.1)
        self._compare(config_path)
        self._lock_out_others()

    def _lock_out_others(self):
        try:
            name = f"{LOCK}{self.worker.index}"
            self._lock = lock_folder(self.path, name, SECONDS_TO_WAIT)
        except TimeoutError as error:
            raise FitError(f"{error}, or name another folder", "output_dir") from None
        self._owner = None
        if isinstance(self._lock, contextlib.nullcontext):
            # Whoever comes last has the folder, and those before notice.
            self._owner = f"process {os.getpid()} on {socket.gethostname()}, {uuid.uuid4().hex}"
            self._owner_path.write_text(self._owner)

    @property
    def _owner_path(self):
        return self.path / f"{LOCK}{self.worker.index}.owner"

    def _compare(self, config_path):
        try:
            content = json.loads(config_path.read_text())
            version, found = content["format_version"], dict(content["config"])
        except (ValueError, KeyError, TypeError) as error:
            raise _Unreadable(
                f"{config_path} is damaged ({error}), and no checkpoint is of this command's "
                "configuration; put a copy of it back, or name another folder",
                "output_dir",
            ) from None
        if version != FORMAT_VERSION:
            raise FitError(
                f"{config_path} has format_version {version}, not {FORMAT_VERSION}; name another "
                "folder",
                "output_dir",
            )
        differences = [
            f"{key}={found.get(key)!r} there and {self.config.get(key)!r} here"
            for key in sorted({*found, *self.config})
            if found.get(key) != self.config.get(key)
        ]
        task = content.get("task", self.task)  # Runs of former versions do not say.
        if task != self.task:
            differences.insert(0, f"task {task!r} there and {self.task!r} here")
        if differences:
            raise FitError(
                f"{self.path} holds a run of another configuration ({'; '.join(differences)}); "
                "name another folder, or repeat that run's command",
                "output_dir",
            )

    def _check_still_ours(self):
        """Raises a `FitError` where the folder that was claimed is gone or is another one's."""
        try:
            found = (self.path / CONFIG_FILE).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            found = None
        if found != self._claimed:
            what = "is gone" if found is None else "is another run's now"
            raise FitError(
                f"{self.path} {what}: it was moved, removed or replaced while this run was at work "
                "in it. Nothing more is written; move it back, and start again",
                "output_dir",
            )
        if self._owner is not None:
            owner = self._owner_path.read_text() if self._owner_path.exists() else self._owner
            if owner != self._owner:
                raise FitError(
                    f"{self.path} is on a file system without locks, and another process has begun "
                    f"to work in it ({owner}). This one writes nothing more",
                    "output_dir",
                )

    def _take_new_best(self):
        """Makes the waiting model of the best epoch `best.keras`; removes what kills have left."""
        best = waiting_best(self.best_row["epoch"]) if self.rows else None
        for waiting in self.path.glob(WAITING_BEST.format("*")):
            if waiting.name == best:
                os.replace(waiting, self.best_model_path)
            else:
                waiting.unlink()

    def _remember_what_was_lost(self):
        """Keeps in mind a best epoch that the checkpoint does not know, since its model is there.

        Returns:
            Whether the tables have epochs that are to be made again, so that they stay for now.
        """
        if not (self.path / HISTORY_FILE).exists():
            return False
        try:
            lost = len(read_history(self.path)) > self.completed_epochs
            best = read_results(self.path)["best"]
        except (FitError, KeyError):
            return False
        if lost and self.rows and best["epoch"] > self.completed_epochs:
            self._lost_best = [{key: best[key] for key in self.rows[0] if key in best}]
        return lost

    def _left_of_a_run(self):
        names = [name for name in OF_FORMER_RUNS if (self.path / name).exists()]
        return [] if names == [TENSORBOARD] else names  # Of a kill before the first checkpoint.

    def _refuse_to_start_again(self):
        names = self._left_of_a_run()
        if names:
            raise FitError(
                f"{self.path} has {', '.join(names)} of a run, but no whole checkpoint to go on "
                "from. Nothing was changed: put copies of its checkpoints back, or ask for a "
                f"restart, which moves these to {unused(self.path / DAMAGED)} first",
                "restart",
            )

    def _set_aside(self):
        """Moves what a run without a whole checkpoint has left to where nothing overwrites it."""
        names = self._left_of_a_run()
        if not names:
            return
        kept = unused(self.path / DAMAGED)
        kept.mkdir()
        for name in names:
            os.replace(self.path / name, kept / name)
        print(
            "warning: no whole checkpoint is left; starting again. The former models and tables "
            f"are kept in {kept}",
            file=sys.stderr,
        )

    def _task_entry(self):
        return {} if self.task is None else {"task": self.task}

    def _entries(self):
        return list(self.path.iterdir()) if self.path.exists() else []

    def _record(self, model, epoch, logs):
        if epoch != self.completed_epochs:
            raise ValueError(
                f"epoch {epoch + 1} ended where epoch {self.completed_epochs + 1} was due; "
                "call model.fit with initial_epoch=run.completed_epochs"
            )
        row = {"epoch": epoch + 1}
        gaps = {name: float(logs[name]) for name in sorted(logs) if is_gap(name)}
        all_logs = {name: name for name in sorted(logs) if name not in gaps}
        for column, key in (self.columns or all_logs).items():
            if key not in logs:
                raise ValueError(f"the epoch's logs lack {key!r}; they have {sorted(logs)}")
            row[column] = float(logs[key])
        if self.criterion not in row:
            raise FitError(f"{self.criterion!r} is not one of {sorted(row)}", "criterion")
        row["learning_rate"] = float(np.asarray(model.optimizer.learning_rate))
        bad = [column for column, value in row.items() if not math.isfinite(value)]
        if bad:
            raise FitError(
                f"{', '.join(bad)} is not finite in epoch {epoch + 1}; the checkpoint before it is "
                "kept. Try a lower learning rate in another folder"
            )
        # They decide nothing, so a run may go on with whatever they are.
        self.rows.append(row | gaps)

    def _progress(self, seconds_of_epoch):
        return {
            "rows": self.rows,
            "seconds": self.seconds,
            "seconds_of_epoch": seconds_of_epoch,
            "lost_best": self._lost_best,
        }

    def _write_model(self, path, model, epoch):
        # Statistics that differ between replicas are read as their mean, which takes all workers.
        with tempfile.TemporaryDirectory() as elsewhere:
            target = path if self.worker.is_chief else Path(elsewhere) / path.name
            with written_aside(target) as partial:
                model.save(partial)
                with zipfile.ZipFile(partial, "a") as archive:
                    archive.comment = comment_of(epoch)

    def _write_tables(self):
        if self.rows:
            history = io.StringIO(newline="")
            # Epochs from before there was a column leave it empty.
            writer = csv.DictWriter(history, list(dict.fromkeys(itertools.chain(*self.rows))))
            writer.writeheader()
            writer.writerows(self.rows)
            self.keep_file(HISTORY_FILE, history.getvalue())
            self._write_results(finished=False)

    def _write_results(self, finished, parameters=None, best=None):
        results = {
            "model": self.config.get("model"),
            "config": self.config,
            **self._task_entry(),
            "criterion": self.criterion,
            "best": {**self.best_row, **(best or {})},
            "final": self.rows[-1],
            "finished": finished,
            "seconds_per_epoch": self.seconds,
            "versions": {
                "python": platform.python_version(),
                "tensorflow": tf.__version__,
                "keras": keras.__version__,
                "numpy": np.__version__,
            },
        }
        if parameters is not None:
            results["parameters"] = parameters
        self.keep_file(RESULTS_FILE, _json(results))


def claim_in_turn(strategy: tf.distribute.Strategy, make: Callable[[], RunFolder]) -> RunFolder:
    """What `make` returns, called by the first worker before the others; a refusal ends all."""
    run = None
    for turn in (True, False):
        with refusals_shared(strategy):
            if worker_of(strategy).is_chief == turn:
                run = make()
    return run


def _json(value):
    return json.dumps(value, indent=2, sort_keys=True) + "\n"
