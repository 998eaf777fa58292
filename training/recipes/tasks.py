"""The tasks by name, and the one that a run's folder is of."""

from pathlib import Path

from command_line import CommandError
from keras_bnrnn.files import NUMBER, misfit
from keras_bnrnn.fit.tables import HISTORY_FILE, RESULTS_FILE, read_history, read_results
from recipes.ctc_task import CtcTask
from recipes.language_task import LanguageTask
from recipes.measures import columns
from recipes.pixel_task import PixelTask
from recipes.speech_task import SpeechTask

EVALUATION_FILE = "evaluation.json"  # evaluate.py writes it into a run's folder.
TASKS = {task.name: task for task in (SpeechTask, CtcTask, LanguageTask, PixelTask)}
# A key that the configuration of each has; the folders of old runs do not say what they are of.
MARKS = {"corpus": SpeechTask, "text": LanguageTask, "permuted": PixelTask}


def task_of(results):
    """The class of `Task` that a run is of, from its `results.json`."""
    name = results.get("task")
    found = TASKS.get(name) or next(
        (task for mark, task in MARKS.items() if name is None and mark in results["config"]), None
    )
    if found is None:
        raise CommandError(f"a run of no known task (task={name!r})")
    return found


def read_run(folder, form=None):
    """The class of `Task` that a run's folder is of, and its `results.json`.

    Args:
        folder: of the run.
        form: what is needed of the results (see `misfit`).

    Raises:
        CommandError, FitError: say what is wrong with the file.
    """
    results, path = read_results(folder), Path(folder) / RESULTS_FILE
    try:
        kind = task_of(results)
    except CommandError as error:
        raise CommandError(f"{path} is of {error}") from None
    if form:
        check_results(path, results, form)
    return kind, results


def check_results(path, results, form):
    """Raises a `CommandError` where results, which are of this file, are not of a form."""
    wrong = misfit(results, form)
    if not wrong and "best" in form:
        numbers = [*results["best"], *([results["criterion"]] if "criterion" in form else [])]
        wrong = misfit(results, {"best": dict.fromkeys(numbers, NUMBER)})
    if wrong:
        raise CommandError(f"{path} {wrong}; put a copy of it back")


def read_epochs(folder, form):
    """The same, and the rows of `history.csv`; both have the measures of the task.

    Raises:
        CommandError, FitError: say what is wrong with the files.
    """
    kind, results = read_run(folder, {"best": dict, "seconds_per_epoch": list, **form})
    rows, best = read_history(folder), results["best"]
    needed = dict.fromkeys(columns(kind.measures), NUMBER)
    for name, found in ((RESULTS_FILE, [best]), (HISTORY_FILE, rows)):
        wrong = next(filter(None, (misfit(one, needed) for one in found)), None)
        if wrong:
            raise CommandError(f"{Path(folder) / name} is of no run of {kind.script}: it {wrong}")
    if not 1 <= best["epoch"] <= len(rows) or not results["seconds_per_epoch"]:
        raise CommandError(
            f"{folder}: results of epoch {best['epoch']} and a history of {len(rows)} epoch(s) are "
            "not of one run; put copies of both back"
        )
    return kind, results, rows
