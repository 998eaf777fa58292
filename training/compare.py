"""Compares training runs: a table, a picture of their curves, and who passed whom when.

    python training/compare.py runs/plain runs/bn
    python training/compare.py --output_dir=comparison runs/*

Works on folders of one training script: train_speech.py (fce and fer), train_ptb.py (perplexity) or
train_pixels.py (loss and error). The picture has
a panel per measure, dashed for training and solid for validation, as in the paper's figures. It is
written to compare.png in --output_dir.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from absl import flags
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, PercentFormatter

import command_line
from command_line import CommandError
from keras_bnrnn.fit.run_folder import read_history, read_results

PICTURE_FILE = "compare.png"

FLAGS = flags.FlagValues()
flags.DEFINE_string(
    "output_dir", ".", "Folder for the picture; made if it does not exist.", flag_values=FLAGS
)


@dataclass(frozen=True)
class Measure:
    """A measure of an epoch: the columns of history.csv that hold it and how to show it."""

    title: str
    training: str
    validation: str
    test: str
    percent: bool = False
    logarithmic: bool = False

    def text(self, value):
        if value is None:
            return "-"
        if self.percent:
            return f"{value:.1%}"
        return f"{value:.3f}" if value < 10 else f"{value:.1f}"


# The first measure of a kind is its training criterion.
SPEECH = (
    Measure("Frame-wise cross-entropy (nats)", "train_fce", "dev_fce", "test_fce"),
    Measure("Frame error rate", "train_fer", "dev_fer", "test_fer", percent=True),
)
LANGUAGE = (
    Measure(
        "Perplexity", "train_perplexity", "valid_perplexity", "test_perplexity", logarithmic=True
    ),
)
PIXELS = (
    Measure("Cross-entropy (nats)", "train_loss", "valid_loss", "test_loss", logarithmic=True),
    Measure("Error rate", "train_error", "valid_error", "test_error", percent=True),
)
KINDS = (SPEECH, LANGUAGE, PIXELS)
MODEL_COLORS = {"baseline": "tab:blue", "batch_norm": "tab:red"}
MORE_COLORS = ("tab:green", "tab:orange", "tab:purple", "tab:brown", "tab:pink", "tab:olive")


@dataclass(frozen=True)
class Run:
    """A run's folder, read."""

    path: Path
    label: str
    model: str
    rows: list
    results: dict

    def criterion(self, measures):
        """The training criterion after each epoch."""
        return [row[measures[0].training] for row in self.rows]


def main(argv):
    if len(argv) < 2:
        raise CommandError("no run is named; give the --output_dir of one or more training runs")
    runs = read_runs(argv[1:])
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
    contents = [(Path(path), read_results(path), read_history(path)) for path in paths]
    models = [results["model"] for _, results, _ in contents]
    by_model = len(set(models)) == len(models)
    labels = models if by_model else [str(path) for path, _, _ in contents]
    if len(set(labels)) < len(labels):
        raise CommandError(f"the same folder is named twice: {' '.join(map(str, paths))}")
    return [
        Run(path, label, results["model"], rows, results)
        for label, (path, results, rows) in zip(labels, contents, strict=True)
    ]


def common_measures(runs):
    """The measures that all runs have, `SPEECH` or `LANGUAGE`."""
    for measures in KINDS:
        if all(measures[0].training in row for run in runs for row in run.rows):
            return measures
    raise CommandError(
        "the runs cannot be compared: "
        + "; ".join(f"{run.path} has {', '.join(run.rows[0])}" for run in runs)
    )


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


class Curve(NamedTuple):
    """What is drawn in one colour: the rows of history.csv of one run, or of several seeds."""

    label: str
    color: str
    histories: list


def draw_curves(curves, measures, path):
    """Writes a picture: a panel per measure, a colour per curve, dashed training curves.

    Of several histories the mean is drawn, in a band from the least to the greatest.
    """
    figure = Figure(figsize=(5.2 * len(measures) + 0.6, 4.2), dpi=140, layout="constrained")
    panels = figure.subplots(1, len(measures), squeeze=False)
    for panel, measure in zip(panels[0], measures, strict=True):
        for curve in curves:
            draw_curve(panel, curve, measure.training, "--")
            draw_curve(panel, curve, measure.validation, "-")
        panel.set_title(measure.title)
        panel.set_xlabel("epoch")
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        if measure.percent:
            panel.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        if measure.logarithmic:
            set_logarithmic(panel)
        panel.grid(alpha=0.25, which="both")
        panel.spines[["top", "right"]].set_visible(False)
    handles = [
        Line2D([], [], color=curve.color, linewidth=2, label=curve.label) for curve in curves
    ]
    handles += [
        Line2D([], [], color="0.3", linestyle="--", label="training"),
        Line2D([], [], color="0.3", linestyle="-", label="validation"),
    ]
    columns = 2 * len(measures)
    figure.legend(
        handles=handles, frameon=False, fontsize=9, loc="outside lower center", ncols=columns
    )
    figure.savefig(path)


def draw_curve(panel, curve, column, line):
    length = min(len(rows) for rows in curve.histories)
    values = np.array([[row[column] for row in rows[:length]] for rows in curve.histories])
    epochs = np.arange(1, length + 1)
    marker = "o" if length <= 25 else None
    style = {"color": curve.color, "marker": marker, "markersize": 3.5, "linewidth": 1.6}
    panel.plot(epochs, values.mean(axis=0), line, **style)
    if len(values) > 1:
        low, high = values.min(axis=0), values.max(axis=0)
        panel.fill_between(epochs, low, high, color=curve.color, alpha=0.15, linewidth=0)


def set_logarithmic(panel):
    """A logarithmic axis with plain numbers, for what falls by factors."""
    panel.set_yscale("log")
    low, high = panel.get_ylim()
    steps = (1, 1.2, 1.4, 1.6, 1.8, 2, 2.5, 3, 3.5, 4, 5, 6, 7, 8) if high < 20 * low else (1, 2, 5)
    ticks = [step * 10.0**power for power in range(-4, 5) for step in steps]
    panel.set_yticks([tick for tick in ticks if low <= tick <= high])
    panel.yaxis.set_major_formatter(lambda tick, _: f"{tick:g}")
    panel.minorticks_off()


def choose_colors(runs):
    """A colour per run: the models' own where there is one run of each, else any."""
    if len({run.model for run in runs}) == len(runs):
        return [MODEL_COLORS[run.model] for run in runs]
    palette = [*MODEL_COLORS.values(), *MORE_COLORS]
    return [palette[index % len(palette)] for index in range(len(runs))]


if __name__ == "__main__":
    command_line.run(main, FLAGS, __doc__)
