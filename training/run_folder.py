"""The folder of a training run: configuration, checkpoints, history, results and models.

    config.json             what was asked for; a run of another configuration is refused here
    history.csv             a row per finished epoch
    results.json            model, config, the best epoch's row, the last one's
    best.keras              the model after the epoch with the best criterion
    final.keras             the model after the last epoch
    checkpoints/epoch-0007/ weights, optimizer and history after epoch 7 (the newest two are kept)

A run can be killed at any moment and continues with the same command. A checkpoint is one folder
with everything in it that must agree, written aside and put in place by one rename; `history.csv`
and `results.json` are only printed from it. `keras.callbacks.BackupAndRestore` overwrites weights
and epoch number one after the other, so a kill between the two would repeat or skip an epoch, and
it knows nothing of a history file.
"""

import csv
import hashlib
import json
import math
import os
import platform
import shutil
import sys
import time
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from command_line import CommandError

FORMAT_VERSION = 1
KEPT_CHECKPOINTS = 2
PARTIAL = ".partial"
BEST_MODEL_FILE = "best.keras"
FINAL_MODEL_FILE = "final.keras"
VOCABULARY_FILE = "vocabulary.json"
PHONE_COUNTS_FILE = "phone_counts.json"

SPEECH_COLUMNS = {
    "train_fce": "fce",
    "train_fer": "fer",
    "dev_fce": "val_fce",
    "dev_fer": "val_fer",
}
LANGUAGE_COLUMNS = {"train_perplexity": "perplexity", "valid_perplexity": "val_perplexity"}


class RunFolder:
    """A run's folder, new or to be continued.

    Args:
        path: the folder; made if it does not exist.
        config: dictionary of everything that decides the run's numbers (JSON values). It must hold
            `"model"`. A folder made with other values is refused.
        columns: `{column of history.csv: key of Keras's epoch logs}`, e.g. `SPEECH_COLUMNS`.
        criterion: the column whose smallest value makes an epoch the best one.

    Raises:
        CommandError: the folder holds a run of another configuration, or foreign files.
    """

    def __init__(self, path, config, columns, criterion):
        if criterion not in columns:
            raise ValueError(f"criterion={criterion!r} is not one of columns={sorted(columns)}")
        self.path = Path(path)
        self.config = json.loads(json.dumps(config))
        self.columns = dict(columns)
        self.criterion = criterion
        self.rows = []
        self.seconds = []
        self._claim()

    @property
    def completed_epochs(self):
        """Number of finished epochs: `initial_epoch` for `model.fit`."""
        return len(self.rows)

    @property
    def best_row(self):
        """The row of the best epoch, the earliest of equals; `None` before the first epoch."""
        return min(self.rows, key=lambda row: row[self.criterion], default=None)

    @property
    def best_model_path(self):
        return self.path / BEST_MODEL_FILE

    @property
    def final_model_path(self):
        return self.path / FINAL_MODEL_FILE

    def restore(self, model):
        """Puts the newest whole checkpoint into the compiled, built `model` and its optimizer.

        Damaged checkpoints are reported on stderr and passed over.

        Returns:
            The number of finished epochs, 0 for a fresh run.
        """
        with model.distribute_strategy.scope():
            model.optimizer.build(model.trainable_variables)
        newest_first = sorted(self._checkpoints(), reverse=True)
        for checkpoint in newest_first:
            try:
                progress = _read_checkpoint(checkpoint)
            except (OSError, ValueError, KeyError, TypeError) as error:
                reason = " ".join(str(error).split())
                print(f"warning: skipping damaged {checkpoint}: {reason}", file=sys.stderr)
                continue
            model.load_weights(checkpoint / "state.weights.h5")
            for variable, value in zip(
                _random_states(model), progress["random_states"], strict=True
            ):
                variable.assign(np.array(value, variable.dtype))
            self.rows, self.seconds = progress["rows"], progress["seconds"]
            break
        else:
            if newest_first:
                print("warning: no whole checkpoint is left; starting again", file=sys.stderr)
        self._write_tables()
        if self.rows:
            print(f"Continuing {self.path} after epoch {self.completed_epochs}.", flush=True)
        return self.completed_epochs

    def keep_file(self, name, content):
        """Puts a text file beside the results, for whoever uses the run without its data."""
        _write_aside(self.path / name, lambda path: path.write_text(content))

    def callback(self):
        """A Keras callback that adds each epoch's row and checkpoint; give it to `model.fit`."""
        return _EpochRecorder(self)

    def finish(self, model, **best):
        """Writes `final.keras` and the complete `results.json`.

        Args:
            model: the model after the last epoch.
            **best: more values for the best epoch, such as `test_perplexity`.
        """
        _write_aside(self.final_model_path, model.save)
        self._write_results(finished=True, parameters=model.count_params(), best=best)

    def _claim(self):
        config_path = self.path / "config.json"
        if self.path.exists() and not self.path.is_dir():
            raise CommandError(f"--output_dir={self.path} is a file; name a folder")
        if config_path.exists():
            self._compare(config_path)
            return
        present = [entry.name for entry in self._entries() if PARTIAL not in entry.name]
        if present:
            raise CommandError(
                f"--output_dir={self.path} holds {sorted(present)[0]} but no config.json, so it is "
                "not a run's folder; name a new or empty folder"
            )
        self.path.mkdir(parents=True, exist_ok=True)
        content = {"format_version": FORMAT_VERSION, "config": self.config}
        _write_aside(config_path, lambda path: path.write_text(_json(content)))

    def _compare(self, config_path):
        try:
            content = json.loads(config_path.read_text())
            version, found = content["format_version"], content["config"]
        except (ValueError, KeyError, TypeError) as error:
            raise CommandError(
                f"{config_path} cannot be read: {error}; remove the folder"
            ) from None
        if version != FORMAT_VERSION:
            raise CommandError(
                f"{config_path} has format_version {version}, not {FORMAT_VERSION}; "
                "name another --output_dir"
            )
        differences = [
            f"{key}={found.get(key)!r} there and {self.config.get(key)!r} here"
            for key in sorted({*found, *self.config})
            if found.get(key) != self.config.get(key)
        ]
        if differences:
            raise CommandError(
                f"--output_dir={self.path} holds a run of another configuration "
                f"({'; '.join(differences)}); name another folder, or repeat that run's command"
            )

    def _entries(self):
        return list(self.path.iterdir()) if self.path.exists() else []

    def _checkpoints(self):
        folder = self.path / "checkpoints"
        return [entry for entry in folder.glob("epoch-*") if entry.suffix != PARTIAL]

    def _record(self, model, epoch, logs):
        if epoch != self.completed_epochs:
            raise ValueError(
                f"epoch {epoch + 1} ended where epoch {self.completed_epochs + 1} was due; "
                "call model.fit with initial_epoch=run.completed_epochs"
            )
        row = {"epoch": epoch + 1}
        for column, key in self.columns.items():
            if key not in logs:
                raise ValueError(f"the epoch's logs lack {key!r}; they have {sorted(logs)}")
            row[column] = float(logs[key])
        row["learning_rate"] = float(np.asarray(model.optimizer.learning_rate))
        bad = [column for column, value in row.items() if not math.isfinite(value)]
        if bad:
            raise CommandError(
                f"{', '.join(bad)} is not finite in epoch {epoch + 1}; the checkpoint before it is "
                "kept. Try a lower learning rate in another --output_dir"
            )
        self.rows.append(row)

    def _save_epoch(self, model, seconds):
        self.seconds.append(round(seconds, 3))
        if self.best_row is self.rows[-1]:
            _write_aside(self.best_model_path, model.save)
        folder = self.path / "checkpoints"
        folder.mkdir(exist_ok=True)
        checkpoint = folder / f"epoch-{self.completed_epochs:04d}"
        random_states = [np.asarray(variable).tolist() for variable in _random_states(model)]
        progress = {"rows": self.rows, "seconds": self.seconds, "random_states": random_states}
        _write_checkpoint(checkpoint, model, progress)
        kept = range(self.completed_epochs + 1 - KEPT_CHECKPOINTS, self.completed_epochs + 1)
        for other in self._checkpoints():
            if int(other.name.removeprefix("epoch-")) not in kept:
                shutil.rmtree(other)
        self._write_tables()
        _share_statistics(model)

    def _write_tables(self):
        if self.rows:
            _write_aside(self.path / "history.csv", self._write_history)
            self._write_results(finished=False)

    def _write_history(self, path):
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, ["epoch", *self.columns, "learning_rate"])
            writer.writeheader()
            writer.writerows(self.rows)

    def _write_results(self, finished, parameters=None, best=None):
        results = {
            "model": self.config["model"],
            "config": self.config,
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
        _write_aside(self.path / "results.json", lambda path: path.write_text(_json(results)))


class _EpochRecorder(keras.callbacks.Callback):
    def __init__(self, run):
        super().__init__()
        self._run = run
        self._began = None

    def on_epoch_begin(self, epoch, logs=None):
        self._began = time.monotonic()

    def on_epoch_end(self, epoch, logs=None):
        self._run._record(self.model, epoch, logs or {})
        self._run._save_epoch(self.model, time.monotonic() - self._began)


def read_results(path):
    """Returns a run's `results.json`; a `CommandError` says what is wrong with it."""
    results = Path(path) / "results.json"
    if not results.is_file():
        raise CommandError(
            f"{path} has no results.json: it is no run's folder, or no epoch has ended"
        )
    try:
        return json.loads(results.read_text())
    except ValueError as error:
        raise CommandError(f"{results} cannot be read: {error}") from None


def read_history(path):
    """Returns the rows of a run's `history.csv` as dictionaries of numbers."""
    history = Path(path) / "history.csv"
    if not history.is_file():
        raise CommandError(
            f"{path} has no history.csv: it is no run's folder, or no epoch has ended"
        )
    with history.open(newline="") as file:
        rows = [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]
    for row in rows:
        row["epoch"] = int(row["epoch"])
    return rows


def _share_statistics(model):
    """Gives all replicas the mean of their statistics, which is what the checkpoint holds.

    Layers that are not synchronised average their own replica's batches. A run that goes on from a
    checkpoint cannot know these any more, and must not differ from one that was not stopped.
    """
    for variable in model.non_trainable_variables:
        if variable.aggregation == "mean":
            variable.assign(np.asarray(variable))


def _random_states(model):
    """Dropout's random states: part of `model.variables`, but of no `.weights.h5` file."""
    saved = {id(variable) for variable in model.weights}
    return [variable for variable in model.variables if id(variable) not in saved]


def _write_checkpoint(folder, model, progress):
    partial = folder.with_name(folder.name + PARTIAL)
    for leftover in (partial, folder):
        if leftover.exists():
            shutil.rmtree(leftover)
    partial.mkdir()
    weights = partial / "state.weights.h5"
    model.save_weights(weights)
    content = {
        "progress": progress,
        "progress_sha256": _digest(_json(progress).encode()),
        "weights_sha256": _digest(weights.read_bytes()),
    }
    (partial / "progress.json").write_text(_json(content))
    for file in partial.iterdir():
        _flush(file)
    os.rename(partial, folder)
    _flush(folder.parent)


def _read_checkpoint(folder):
    content = json.loads((folder / "progress.json").read_text())
    if _digest(_json(content["progress"]).encode()) != content["progress_sha256"]:
        raise ValueError("progress.json does not match its checksum")
    if _digest((folder / "state.weights.h5").read_bytes()) != content["weights_sha256"]:
        raise ValueError("state.weights.h5 does not match its checksum")
    return content["progress"]


def _write_aside(path, write):
    # The suffix stays last: Keras chooses the format by it.
    partial = path.with_name(f"{path.stem}{PARTIAL}{path.suffix}")
    write(partial)
    _flush(partial)
    os.replace(partial, path)


def _flush(path):
    """Asks the system to put `path` on disk, so that a rename never outruns its content."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _digest(content):
    return hashlib.sha256(content).hexdigest()


def _json(value):
    return json.dumps(value, indent=2, sort_keys=True) + "\n"
