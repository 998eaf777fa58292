"""The tasks by name, and the one that a run's folder is of."""

from command_line import CommandError
from recipes.language_task import LanguageTask
from recipes.pixel_task import PixelTask
from recipes.speech_task import SpeechTask

EVALUATION_FILE = "evaluation.json"  # evaluate.py writes it into a run's folder.
TASKS = {task.name: task for task in (SpeechTask, LanguageTask, PixelTask)}
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
