"""Compares training runs: a table, a picture of their curves, and who passed whom when.

    python training/compare.py runs/plain runs/bn
    python training/compare.py --output_dir=comparison runs/*

Works on folders of one training script: train_speech.py (fce and fer), train_ptb.py (perplexity) or
train_pixels.py (loss and error). The picture has a panel per measure, dashed for training and solid
for validation, as in the paper's figures. It is written to compare.png in --output_dir.
"""

import command_line  # isort: skip  First, for Ctrl-C while the others are imported.
from dataclasses import dataclass
from pathlib import Path

from absl import flags

from command_line import CommandError
from keras_bnrnn.fit.errors import FitError
from paper.curves import COLORS, MODEL_COLORS, Curve, draw_curves
from recipes.tasks import read_epochs

PICTURE_FILE = "compare.png"

FLAGS = flags.FlagValues()
command_line.define_path(
    "output_dir", ".", "Folder for the picture; made if it does not exist.", FLAGS
)


@dataclass(frozen=True)
class Run:
    """A run's folder, read."""

    path: Path
    label: str
    model: str
    task: type
    rows: list
    results: dict

    def criterion(self, measures):
        """The training criterion after each epoch."""
        return [row[measures[0].training] for row in self.rows]


def main(argv):
    if len(argv) < 2:
        raise CommandError("no run is named; give the --output_dir of one or more training runs")
    runs = read_runs([command_line.path_argument(path) for path in argv[1:]])
    measures = common_measures(runs)
    print(table(runs, measures))
    print()
    for sentence in verdicts(runs, measures):
        print(sentence)
    picture = Path(FLAGS.output_dir) / PICTURE_FILE
    picture.parent.mkdir(parents=True, exist_ok=True)
    draw(runs, measures, picture)
    print(f"The curves: {picture}")


def read_runs(paths):
    """The runs in these folders, each with a label of its own.

    Two runs of different models are called by their models, as far as that tells them apart; any
    others by their folders.
    """
    contents = [read_epochs(path, {"model": str}) for path in paths]
    models = [results["model"] for _, results, _ in contents]
    by_model = len(set(models)) == len(models)
    labels = models if by_model else [str(Path(path)) for path in paths]
    if len(set(labels)) < len(labels):
        raise CommandError(f"the same folder is named twice: {' '.join(map(str, paths))}")
    return [
        Run(Path(path), label, results["model"], task, rows, results)
        for path, label, (task, results, rows) in zip(paths, labels, contents, strict=True)
    ]


def common_measures(runs):
    """The measures of the task that all runs are of."""
    if len({run.task for run in runs}) > 1:
        raise CommandError(
            "the runs cannot be compared: "
            + ", ".join(f"{run.path} is of {run.task.script}" for run in runs)
        )
    return runs[0].task.measures


def table(runs, measures):
    """The best epoch of each run, as text."""
    tests = [m for m in measures if any(m.test in run.results["best"] for run in runs)]
    header = ["run", "epochs", "best epoch"]
    header += [name for m in measures for name in (m.training, m.validation)]
    header += [m.test for m in tests]
    header += ["s/epoch"]
    lines = [header]
    for run in runs:
        best = run.results["best"]
        line = [run.label, str(len(run.rows)), str(best["epoch"])]
        line += [m.text(best[name]) for m in measures for name in (m.training, m.validation)]
        line += [m.text(best.get(m.test)) for m in tests]
        # The first epoch also traces the graph.
        seconds = sorted(run.results["seconds_per_epoch"][1:] or run.results["seconds_per_epoch"])
        line += [f"{seconds[len(seconds) // 2]:.1f}"]
        lines.append(line)
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def verdicts(runs, measures):
    """For each batch-normalised run, when it passed the best of the baselines."""
    baselines = [run for run in runs if run.model == "baseline"]
    normalised = [run for run in runs if run.model == "batch_norm"]
    if not baselines or not normalised:
        return ["No verdict: it takes a baseline run and a batch-normalised one."]
    baseline = min(baselines, key=lambda run: min(run.criterion(measures)))
    return [verdict(run, baseline, measures) for run in normalised]


def verdict(normalised, baseline, measures):
    """One sentence: the epoch at which `normalised` passed the baseline's best training criterion.

    Args:
        normalised, baseline: the `Run`s.
        measures: of both; the first one's training column is the criterion.
    """
    measure = measures[0]
    losses = baseline.criterion(measures)
    best = min(losses)
    best_epoch = losses.index(best) + 1
    target = (
        f"the best {measure.training} of {baseline.label} "
        f"({measure.text(best)} after epoch {best_epoch})"
    )
    for row in normalised.rows:
        value = row[measure.training]
        if value < best:
            return (
                f"{normalised.label} passed {target} at epoch {row['epoch']}, "
                f"with {measure.text(value)}."
            )
    reached = min(normalised.criterion(measures))
    epochs = len(normalised.rows)
    return (
        f"{normalised.label} did not pass {target}: it reached {measure.text(reached)} in "
        f"{epochs} epoch{'s' if epochs > 1 else ''}."
    )


def draw(runs, measures, path):
    """Writes the picture of `main`."""
    draw_curves(
        [
            Curve(run.label, color, [run.rows])
            for run, color in zip(runs, choose_colors(runs), strict=True)
        ],
        measures,
        path,
    )


def choose_colors(runs):
    """A colour per run: the models' own where there is one run of each, else any."""
    if len({run.model for run in runs}) == len(runs):
        return [MODEL_COLORS[run.model] for run in runs]
    return [COLORS[index % len(COLORS)] for index in range(len(runs))]


if __name__ == "__main__":
    command_line.run(main, FLAGS, __doc__, expected_errors=(FitError,), positional=True)
