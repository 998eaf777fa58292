"""results/README.md and its figures, from the runs that `reproduce.py` has made.

Every figure in the text is computed from the history.csv and results.json of the runs' folders.
"""

import itertools
import statistics

from keras_bnrnn.files import write_aside
from paper import claims
from paper.curves import COLORS, Curve, draw_curves
from paper.experiment_results import Results, epochs, spread
from paper.experiments import EXPERIMENTS

REPORT_FILE = "README.md"
GROUPS = ("seen", "unseen")
STATISTICS = ("moving_averages", "recalibrated", "batch_statistics")

INTRODUCTION = """
## How it was measured

These experiments repeat Laurent et al., [Batch normalized recurrent neural
networks](https://arxiv.org/abs/1510.01378) (2016), on data that is small enough to try.
`training/paper/experiments.py` lists the runs, and `training/report.py` computes this page from the
`history.csv` and `results.json` in the folders beside it. `make reproduce DATA=DIR` makes the runs
that are missing here. `training/reproduce.py` makes all, given a new `--results_dir` and
`--work_dir`.

Figures show training dashed and validation (`valid` or `dev`) solid. A line is the mean over seeds;
its band reaches from the least to the greatest. Tables give the mean, and the least and greatest in
brackets. They list epochs seed by seed. `fce` is the frame-wise cross-entropy in nats, `fer` the
frame error rate.

Training figures are means over an epoch in which the model learns, with dropout and the statistics
of each batch. Validation follows the epoch. All other figures of a model are of its best epoch by
the validation criterion. Other work ran beside some runs, so times are of each run's fastest epoch.
"""

# What to choose; and the experiment, the measure of the best epoch and the models that show it.
ADVICE = (
    (
        'Whole sequences are at hand: `normalization="sequence"`, the default',
        ("digits-ctc", "dev_wer", ("sequence-wise", "LSTM")),
    ),
    (
        'An output must not know what follows: `"frame"` and dropout. It learns faster; without '
        "dropout it does not end better",
        ("ptb-small", "valid_perplexity", ("frame-wise", "frame-wise, renormalised", "LSTM")),
    ),
    (
        "Steps that differ, or few rows: add `renorm=True`",
        (
            "pixel-digits",
            "test_error",
            ("frame-wise", "frame-wise, renormalised, gamma 1.0", "LSTM"),
        ),
    ),
    (
        "The answer is in the last state: normalise the recurrent term and the cell state too, "
        "with `renorm=True`",
        (
            "pixel-digits",
            "test_error",
            ("recurrent and cell state, shared statistics, renormalised, gamma 1.0", "LSTM"),
        ),
    ),
)

POPULATION = """
## population: Normalised models with three kinds of statistics

Validation of the normalised models above, with three kinds of statistics:

- *moving averages*, as training left them. They chose the epoch, and the claims are judged by them.
- *recalibrated*: computed again over the training data, with dropout off
  (`keras_bnrnn.recalibrate`).
- *batch statistics*: those of each validation batch. No served model has them.
"""

LARGE = r"""
## Penn Treebank, 2 × 1500 units

Left to a GPU:

```sh
python training/train_ptb.py --size=large --data_dir=DIR/ptb \
    --model=baseline --output_dir=runs/large_baseline
python training/train_ptb.py --size=large --data_dir=DIR/ptb \
    --model=batch_norm --output_dir=runs/large_batch_norm
python training/compare.py runs/large_baseline runs/large_batch_norm
```
"""


def write(folder, quick=False):
    """Writes the report and its figures.

    Args:
        folder: holds `EXPERIMENT/CONFIGURATION-SEED/` with history.csv and results.json.
        quick: whether they are runs of `reproduce.py --quick`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    found = {name: Results(name, folder, quick) for name in EXPERIMENTS}
    for name, results in found.items():
        curves = {model.label: [run.rows for run in model.runs] for model in results.models}
        curves |= {run: [rows] for run, rows in results.unfinished.items()}
        if curves:
            curves = [
                Curve(label, color, runs)
                for (label, runs), color in zip(
                    curves.items(), itertools.cycle(COLORS), strict=False
                )
            ]
            draw_curves(curves, results.measures, folder / f"{name}.png")
    write_aside(folder / REPORT_FILE, text(found).encode())


def text(found):
    """The whole report."""
    parts = ["# What to choose, and the paper's claims, measured again\n", *advice(found)]
    parts += [INTRODUCTION, claims.RULES]
    parts += [f"{number}. {sentence}" for number, sentence in enumerate(claims.sentences(found), 1)]
    for name, results in found.items():
        parts.append(f"\n## {name}: {results.experiment.title}\n")
        parts += section(name, results)
    return "\n".join([*parts, LARGE, POPULATION, *populations(found), ""])


def advice(found):
    """What a reader should choose, a line each, with the figures and a figure that show it."""
    for choice, (name, key, labels) in ADVICE:
        results = found[name]
        show = next(one.text for one in results.measures if key.endswith(one.name))
        models = [model for label in labels if (model := results.model(label))]
        figures = "; ".join(f"{model.label} {spread(model.best(key), show)}" for model in models)
        yield f"- {choice}{f' ({name}, {key}: {figures})' if figures else ''}."
    yield "- You want a better score of a language model: regularise the plain LSTM first."
    yield "\n![Curves of images that are read pixel by pixel](pixel-digits.png)"


def section(name, results):
    """The lines of an experiment."""
    lines = []
    if results.models or results.unfinished:
        lines.append(f"![Training and validation curves, by epoch]({name}.png)\n")
    if results.experiment.note:
        lines.append(f"{results.experiment.note}\n")
    if len(results.data) > 1:
        lines.append(f"These runs are of different data ({', '.join(sorted(results.data))}).\n")
    if results.models:
        lines += [*table(results), "", times(results), *choices(results), *leads(results)]
    if results.unfinished:
        lines += by_epoch(results)
    if results.missing:
        lines.append(f"Not run to the end yet: {results.progress}.")
    return lines


def table(results):
    """A row per model."""
    measures, criterion = results.measures, results.measures[0]
    baseline = results.baseline
    limit = statistics.mean(baseline.training) if baseline else None
    tests = [one for one in measures if any(model.best(one.test) for model in results.models)]
    speakers = any(model.evaluations("speakers") for model in results.models)
    header = ["model", "seeds", f"lowest {criterion.training}", "epoch below the baseline's lowest"]
    header += [f"best {criterion.validation}", "its epoch"]
    header += [one.validation for one in measures[1:]]
    header += [f"{measures[1].validation}, {group} speakers" for group in GROUPS if speakers]
    header += [one.test for one in tests]
    header += ["s/epoch"]
    lines = [row(header), row(["---"] * len(header))]
    for model in results.models:
        so_far = "" if results.finished(model.label) else " (so far)"
        cells = [f"{model.label}{so_far}", str(len(model.runs))]
        cells.append(spread(model.training, criterion.text))
        is_baseline = baseline is not None and model.label == baseline.label
        cells.append("-" if limit is None or is_baseline else epochs(model.passed(limit)))
        cells += [spread(model.validation, criterion.text), epochs(model.best("epoch"))]
        cells += [spread(model.best(one.validation), one.text) for one in measures[1:]]
        if speakers:
            cells += [
                spread(model.evaluations("speakers", group), measures[1].text) for group in GROUPS
            ]
        cells += [spread(model.best(one.test), one.text) for one in tests]
        cells.append(
            "; ".join(
                spread(seconds, "{:.1f}".format) + mark(results.hardware, hardware)
                for hardware, seconds in sorted(model.seconds.items())
            )
        )
        lines.append(row(cells))
    return lines


def times(results):
    """What the times are of: machines are numbered where there are several."""
    hardware = "; ".join(f"{one}{mark(results.hardware, one)}" for one in results.hardware)
    return f"Times are of {hardware}.\n"


def mark(several, hardware):
    """The number of a machine among several."""
    return f" [{several.index(hardware) + 1}]" if len(several) > 1 else ""


def choices(results):
    """What each label's configurations gave, where there was a choice; the chosen one in bold."""
    criterion = results.measures[0]
    lines = []
    for label, candidates in results.candidates.items():
        for model in candidates if len(candidates) > 1 else ():
            validation = spread(model.validation, criterion.text)
            bold = f"**{validation}**" if model in results.models else validation
            lines.append(row([label, f"`{' '.join(claims.without_model(model))}`", bold]))
    if not lines:
        return []
    return [row(["chosen from", "", f"best {criterion.validation}"]), row(["---"] * 3), *lines, ""]


def leads(results):
    """How far each candidate's validation is ahead of its plain counterpart's, by epoch.

    The counterpart is the baseline that shares the most flags and has no other.
    """
    column = results.measures[0].validation
    first, *others = results.candidates.values()
    if len(first) == 1:
        return []
    header, lines = [], []
    for model in itertools.chain(*others):
        flags = claims.without_model(model)
        plain = [one for one in first if set(claims.without_model(one)) <= set(flags)]
        if plain:
            plain = max(plain, key=lambda one: len(one.arguments))
            curves = zip(model.mean_curve(column), plain.mean_curve(column), strict=True)
            cells = [f"{1.0 - ours / theirs:+.1%}" for ours, theirs in curves]
            header = [f"{column} below the LSTM's, epoch", *map(str, range(1, len(cells) + 1))]
            lines.append(row([f"`{' '.join(flags)}`", *cells]))
    return [row(header), row(["---"] * len(header)), *lines, ""] if lines else []


def populations(found):
    """Validation by kind of statistics, a row per experiment, model and measure."""
    header = ["", "validation with", *(name.replace("_", " ") for name in STATISTICS)]
    lines = [row(header), row(["---"] * len(header))]
    for name, results in found.items():
        for model in results.models:
            for measure in model.measures if model.evaluations("batch_statistics") else ():
                key = measure.validation.split("_", 1)[1]
                cells = [spread(model.evaluations(kind, key), measure.text) for kind in STATISTICS]
                lines.append(row([name, f"{model.label}, {measure.validation}", *cells]))
    return lines


def by_epoch(results):
    """Training and validation criterion of the runs that are there in part."""
    criterion = results.measures[0]
    header = [f"{criterion.training} / {criterion.validation}, epoch", *results.unfinished]
    lines = [row(header), row(["---"] * len(header))]
    for epoch in range(max(map(len, results.unfinished.values()))):
        cells = [str(epoch + 1)]
        for rows in results.unfinished.values():
            pair = [
                criterion.text(one[name])
                for one in rows[epoch : epoch + 1]
                for name in (criterion.training, criterion.validation)
            ]
            cells.append(" / ".join(pair))
        lines.append(row(cells))
    return [*lines, ""]


def row(cells):
    return f"| {' | '.join(cells)} |"
