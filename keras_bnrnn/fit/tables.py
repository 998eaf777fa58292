"""What a run's folder says, for whoever uses it: its tables, and its best model."""

import csv
import json
import os
import zipfile
import zlib
from pathlib import Path

from keras_bnrnn.files import NUMBER, local_path, misfit
from keras_bnrnn.fit.errors import FitError
from keras_bnrnn.gap import is_gap

BEST_MODEL_FILE = "best.keras"
CONFIG_FILE = "config.json"
HISTORY_FILE = "history.csv"
RESULTS_FILE = "results.json"
WAITING_BEST = "best-of-epoch-{}.keras"
# What `results.json` says, where it does.
RESULTS = {
    "config": dict,
    "model": (str, type(None)),
    "task": str,
    "criterion": str,
    "best": {"epoch": int},
    "final": {"epoch": int},
    "finished": bool,
    "parameters": int,
    "seconds_per_epoch": [NUMBER],
    "versions": dict,
}


def path_of_run(path: str | os.PathLike) -> Path:
    """A run's folder, `~` expanded; a `FitError` where it is on no file system of this machine."""
    try:
        return local_path(path)
    except ValueError as error:
        raise FitError(str(error), "output_dir") from None


def read_results(path: str | os.PathLike) -> dict:
    """Returns a run's `results.json`; a `FitError` says what is wrong with it.

    Example:

    >>> from keras_bnrnn import fit
    >>> fit.read_results("runs/mine")["best"]["epoch"]  # doctest: +SKIP
    3
    """
    results = path_of_run(path) / RESULTS_FILE
    if not results.is_file():
        raise FitError(f"{path} has no results.json: it is no run's folder, or no epoch has ended")
    try:
        found = json.loads(results.read_text())
    except ValueError as error:
        raise FitError(f"{results} cannot be read: {error}") from None
    known = RESULTS if isinstance(found, dict) else ()
    wrong = misfit(found, {key: RESULTS[key] for key in known if key in found or key == "config"})
    if wrong:
        raise FitError(f"{results} is no results of a run: it {wrong}; put a copy of it back")
    if not _is_of(found["config"], results.with_name(CONFIG_FILE)):
        raise FitError(f"{results} is of another run than {CONFIG_FILE}; put a copy of it back")
    return found


def _is_of(config, path):
    """Whether a configuration is that of a `config.json`, which may be missing or damaged."""
    try:
        return json.loads(path.read_text())["config"] == config
    except (OSError, ValueError, KeyError, TypeError):
        return True


def best_model(path: str | os.PathLike, results: dict) -> Path:
    """Returns the file of a run's best model, which is of the epoch of its results.

    Args:
        path: the run's folder.
        results: what `read_results` has found there.

    Raises:
        FitError: it is missing or damaged, or of another epoch.

    Example:

    >>> import keras
    >>> from keras_bnrnn import fit
    >>> results = fit.read_results("runs/mine")  # doctest: +SKIP
    >>> model = keras.saving.load_model(fit.best_model("runs/mine", results))  # doctest: +SKIP
    """
    folder = path_of_run(path)
    try:
        epoch = results["best"]["epoch"]
    except (KeyError, TypeError):
        raise FitError(f"{folder / RESULTS_FILE} says nothing of a best epoch") from None
    model = folder / waiting_best(epoch)
    if not model.exists():
        model = folder / BEST_MODEL_FILE
    try:
        with zipfile.ZipFile(model) as archive:
            damaged, comment = archive.testzip(), archive.comment
    except FileNotFoundError:
        raise FitError(f"{folder} has no {BEST_MODEL_FILE}") from None
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise FitError(f"{model} is damaged: {error}") from None
    if damaged:
        raise FitError(f"{model} is damaged: {damaged} is not what was written")
    if comment not in (b"", comment_of(epoch)):  # Of older versions it is empty.
        raise FitError(
            f"{model} is of {comment.decode(errors='replace')}, but {RESULTS_FILE} of epoch "
            f"{epoch}: try again if the run is at work, else both are to be copied again"
        )
    return model


def waiting_best(epoch):
    """The name of a new best model until `results.json` knows of it."""
    return WAITING_BEST.format(f"{epoch:04d}")


def comment_of(epoch):
    """What a model's file (a zip archive) has as its comment."""
    return f"epoch {epoch}".encode()


def read_history(path: str | os.PathLike) -> list[dict[str, float]]:
    """Returns a run's `history.csv`, a dictionary of numbers for each of one or more epochs.

    A `FitError` says what is wrong with it.

    Example:

    >>> from keras_bnrnn import fit
    >>> [row["val_loss"] for row in fit.read_history("runs/mine")]  # doctest: +SKIP
    [0.42, 0.31, 0.28]
    """
    history = path_of_run(path) / HISTORY_FILE
    if not history.is_file():
        raise FitError(f"{path} has no history.csv: it is no run's folder, or no epoch has ended")
    try:
        with history.open(newline="") as file:
            lines = list(csv.DictReader(file))
        rows = [
            {name: float(value) for name, value in line.items() if value or not is_gap(name)}
            for line in lines
        ]
        for row in rows:
            row["epoch"] = int(row["epoch"])
    except (KeyError, TypeError, ValueError, OverflowError, csv.Error) as error:
        raise FitError(f"{history} cannot be read: {error!r}") from None
    if not rows:
        raise FitError(f"{history} has no epoch")
    epochs = [row["epoch"] for row in rows]
    if epochs != list(range(1, len(rows) + 1)):
        raise FitError(f"{history} has not one row for each epoch; put a copy of it back")
    return rows
