"""What the runs of an experiment have found: read from their folders, and computed over seeds."""

import statistics
from typing import NamedTuple

from keras_bnrnn.fit.tables import read_history
from paper.experiments import EXPERIMENTS
from recipes.tasks import read_epochs

ADDED = {"arguments": [str], "hardware": str, "evaluation": dict}  # By reproduce.py.


class FinishedRun(NamedTuple):
    """What a run's folder says."""

    rows: list
    results: dict


class Model:
    """A configuration's finished runs, one per seed."""

    def __init__(self, label, arguments, runs, measures):
        self.label, self.arguments, self.runs, self.measures = label, arguments, runs, measures

    def best(self, column):
        """A column in the epoch of the best validation criterion, for each seed."""
        return [run.results["best"][column] for run in self.runs if column in run.results["best"]]

    @property
    def validation(self):
        """The best validation criterion of each seed."""
        return self.best(self.measures[0].validation)

    @property
    def training(self):
        """The lowest training criterion of each seed."""
        column = self.measures[0].training
        return [min(row[column] for row in run.rows) for run in self.runs]

    @property
    def lowest_epoch(self):
        """The epoch in which the training criterion's mean over the seeds is lowest."""
        means = self.mean_curve(self.measures[0].training)
        return means.index(min(means)) + 1

    def mean_curve(self, column):
        """A column's mean over the seeds, by epoch."""
        curves = [[row[column] for row in run.rows] for run in self.runs]
        return [statistics.mean(values) for values in zip(*curves, strict=True)]

    def passed(self, limit):
        """The epoch in which each seed's training criterion falls below a limit; `None`: never."""
        column = self.measures[0].training
        return [
            next((row["epoch"] for row in run.rows if row[column] < limit), None)
            for run in self.runs
        ]

    @property
    def seconds(self):
        """`{hardware: the time of each seed's fastest epoch}`."""
        found = {}
        for run in self.runs:
            seconds = min(run.results["seconds_per_epoch"])
            found.setdefault(run.results["hardware"], []).append(seconds)
        return found

    def evaluations(self, *keys):
        """What evaluate.py found under these keys, for each seed that has it."""
        found = []
        for run in self.runs:
            value = run.results["evaluation"]
            for key in keys:
                value = value.get(key, {}) if isinstance(value, dict) else {}
            if value != {}:
                found.append(value)
        return found


class Results:
    """The finished runs of an experiment.

    Attributes:
        models: a `Model` per label, of what was chosen on validation.
        candidates: `{label: [Model]}` of all that could be chosen.
        missing: the label of each run that is not there, there in part, or there with other flags.
        unfinished: `{label and folder: rows of history.csv}` of those that are there in part.
        data: the checksums of what the runs were trained on.
    """

    def __init__(self, name, folder, quick=False):
        self.experiment = EXPERIMENTS[name]
        self.missing, self.unfinished, self.candidates = [], {}, {}
        self.data = set()
        self.measures = self.experiment.task.measures
        for key, configuration in self.experiment.configurations.items():
            runs = []
            for seed in range(configuration.seeds):
                path = folder / name / f"{key}-{seed}"
                if not (path / "results.json").is_file():
                    self.missing.append(configuration.label)
                    if (path / "history.csv").is_file():
                        rows = read_history(path)
                        self.unfinished[f"{configuration.label}, {path.name}"] = rows
                    continue
                _, results, rows = read_epochs(path, ADDED)
                wanted = self.experiment.arguments_of(configuration, seed, quick)
                if results["arguments"] != list(wanted):
                    self.missing.append(configuration.label)
                    continue
                runs.append(FinishedRun(rows, results))
                described = results["config"].get(self.experiment.task.data)
                self.data.add(described["sha256"] if described else None)
            if runs:
                model = Model(configuration.label, configuration.arguments, runs, self.measures)
                self.candidates.setdefault(configuration.label, []).append(model)
        # Of what is there so far; `finished` says whether that is all.
        self.models = [
            min(candidates, key=lambda model: statistics.mean(model.validation))
            for candidates in self.candidates.values()
        ]

    @property
    def hardware(self):
        """What the models' times are of."""
        return sorted(set().union(*(model.seconds for model in self.models)))

    def finished(self, label):
        """Whether all runs of a label are there."""
        return label not in self.missing

    def model(self, label):
        """The `Model` of a label once all its runs are there, else `None`."""
        found = [model for model in self.models if model.label == label]
        return found[0] if found and self.finished(label) else None

    @property
    def baseline(self):
        return self.model(next(iter(self.experiment.configurations.values())).label)

    @property
    def progress(self):
        """How much of the experiment there is."""
        total = sum(one.seeds for one in self.experiment.configurations.values())
        return f"{total - len(self.missing)} of {total} runs are finished"


def spread(values, show):
    """`mean (least to greatest)`."""
    if not values:
        return "-"
    mean = show(statistics.mean(values))
    if len(values) == 1:
        return mean
    return f"{mean} ({show(min(values))} to {show(max(values))})"


def epochs(values):
    """Epochs in which something happened, one per seed."""
    return ", ".join("never" if value is None else str(value) for value in values)
