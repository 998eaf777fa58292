"""Writes results/README.md and its figures from the runs that `reproduce.py` has made.

    python training/report.py --results_dir=results

Every figure in the text is computed from the history.csv and results.json of the runs' folders.
"""

import itertools
import statistics
from pathlib import Path
from typing import NamedTuple

from absl import flags

import command_line
import compare
from checkpoints import write_aside
from command_line import CommandError
from experiments import EXPERIMENTS
from run_folder import read_history, read_results

REPORT_FILE = "README.md"
COLORS = ("tab:blue", "tab:red", *compare.MORE_COLORS)
MARGIN = 0.02
GROUPS = ("seen", "unseen")
STATISTICS = ("moving_averages", "recalibrated", "batch_statistics")

FLAGS = flags.FlagValues()
flags.DEFINE_string(
    "results_dir",
    str(Path(__file__).resolve().parent.parent / "results"),
    "Folder of the finished runs.",
    flag_values=FLAGS,
)

INTRODUCTION = """# The paper's claims, measured again

Laurent et al., [Batch normalized recurrent neural networks](https://arxiv.org/abs/1510.01378)
(2016), on data that is small enough to try: `make reproduce DATA=DIR` makes the runs that are not
here yet; with a `--results_dir` and a `--work_dir` of its own `training/reproduce.py` makes all.
This page and its figures are computed from the `history.csv` and `results.json` in the folders
beside it, by `training/report.py`; the runs are listed in `training/experiments.py`.

In the figures training is dashed and validation (`valid` or `dev`) solid; a line is the mean over
seeds, its band goes from the least to the greatest. In the tables it is the mean, and least and
greatest in brackets; epochs are listed seed by seed. `fce` is the frame-wise cross-entropy in nats,
`fer` the frame error rate. Training's figures are means over an epoch while the model learns, with
dropout and the statistics of each batch; validation follows the epoch. A model is that of the epoch
with the best validation criterion. Times are of each run's fastest epoch, as other work ran beside
some runs.
"""

RULES = """## The claims

A model is *better* in a measure where each of its seeds is better than each of the other's. Claim 1
holds where every seed passes the LSTM's lowest training criterion (the mean over seeds) in an epoch
before the LSTM's mean curve is lowest; claim 2 where the normalised model is better in no measure
of validation; claim 3 where normalising the recurrent path too is better neither in the lowest
training criterion nor in a measure of validation, and statistics of each step are better than the
LSTM in all measures of validation.
"""

POPULATION = """
## Population statistics

Validation of the normalised models above with three kinds of statistics: *moving averages* as
training left them, with which the epoch was chosen and the claims are judged; *recalibrated*,
computed again over the training data with dropout off (`keras_bnrnn.recalibrate`); and those of
each validation batch, which no served model has.
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


def main(argv):
    if len(argv) > 1:
        raise CommandError(f"unexpected argument {argv[1]!r}; every option is a --flag")
    write(Path(FLAGS.results_dir))
    print(f"Written: {FLAGS.results_dir}/{REPORT_FILE}")


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
                compare.Curve(label, color, runs)
                for (label, runs), color in zip(
                    curves.items(), itertools.cycle(COLORS), strict=False
                )
            ]
            compare.draw_curves(curves, results.measures, folder / f"{name}.png")
    write_aside(folder / REPORT_FILE, text(found).encode())


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
        column = self.measures[0].training
        curves = [[row[column] for row in run.rows] for run in self.runs]
        means = [statistics.mean(values) for values in zip(*curves, strict=True)]
        return means.index(min(means)) + 1

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
        unfinished: `{name: rows of history.csv}` of those that are there in part.
        data: the checksums of what the runs were trained on.
    """

    def __init__(self, name, folder, quick=False):
        self.experiment = EXPERIMENTS[name]
        self.missing, self.unfinished, self.candidates = [], {}, {}
        self.data = set()
        self.measures = None
        for key, configuration in self.experiment.configurations.items():
            runs = []
            for seed in range(configuration.seeds):
                path = folder / name / f"{key}-{seed}"
                if not (path / "results.json").is_file():
                    self.missing.append(configuration.label)
                    if (path / "history.csv").is_file():
                        self.unfinished[path.name] = read_history(path)
                        self.measures = measures_of(self.unfinished[path.name])
                    continue
                results = read_results(path)
                wanted = self.experiment.arguments_of(configuration, seed, quick)
                if results["arguments"] != list(wanted):
                    self.missing.append(configuration.label)
                    continue
                runs.append(FinishedRun(read_history(path), results))
                self.data.add(data_of(results["config"]))
            if runs:
                self.measures = measures_of(runs[0].rows)
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


def data_of(config):
    """The checksum of the data that a run was trained on; `None` where it carries its own."""
    return next((config[key]["sha256"] for key in ("text", "corpus") if key in config), None)


def measures_of(rows):
    """The measures that a history has; the first is the criterion."""
    return next(kind for kind in compare.KINDS if kind[0].training in rows[0])


def text(found):
    """The whole report."""
    parts = [INTRODUCTION, RULES]
    parts += [f"{number}. {sentence}" for number, sentence in enumerate(claims(found), 1)]
    for name, results in found.items():
        parts.append(f"\n## {name}: {results.experiment.title}\n")
        parts += section(name, results)
    return "\n".join([*parts, LARGE, POPULATION, *populations(found), ""])


def section(name, results):
    """The lines of an experiment."""
    lines = []
    if results.measures:
        lines.append(f"![Training and validation curves, by epoch]({name}.png)\n")
    if results.experiment.note:
        lines.append(f"{results.experiment.note}\n")
    if len(results.data) > 1:
        lines.append(f"These runs are of different data ({', '.join(sorted(results.data))}).\n")
    if results.models:
        lines += [*table(results), "", times(results), *choices(results)]
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
            lines.append(row([label, f"`{' '.join(without_model(model))}`", bold]))
    if not lines:
        return []
    return [row(["chosen from", "", f"best {criterion.validation}"]), row(["---"] * 3), *lines, ""]


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


def claims(found):
    """One sentence for each claim of the paper."""
    speech, language = found["digits-speech"], found["ptb-small"]
    pairs = [(speech, "sequence-wise", "in speech"), (language, "frame-wise", "in language")]
    pixels = {name: found[name] for name in ("pixel-digits", "pixel-digits-permuted")}
    yield (
        "*Normalising the input path makes the training criterion fall faster*: "
        + verdict(*(faster(*pair) for pair in pairs))
    )
    yield (
        "*It does not improve generalisation on its own*: "
        + verdict(*(does_not_generalise(*pair) for pair in pairs))
    )
    yield (
        "*Normalising the recurrent path does not help; with statistics of each step and gamma 0.1 "
        "(Cooijmans et al. 2016) it does, on long sequences*: "
        + verdict(
            *(
                recurrent_does_not_help(results, f"for shared statistics in {name}")
                for name, results in pixels.items()
            ),
            recurrent_does_not_help(
                language, "for shared statistics in language", "frame-wise and recurrent"
            ),
            *(
                per_step_helps(results, f"for statistics of each step in {name}", label)
                for name, results in pixels.items()
                for label in (
                    "recurrent, per step, gamma 0.1",
                    "recurrent and cell state, per step, gamma 0.1",
                )
            ),
        )
    )
    yield (
        "*Beyond the paper: with dropout, chosen on validation, the normalised model generalises "
        f"better by {MARGIN:.0%} or more*: " + verdict(generalises(found["ptb-small-regularised"]))
    )


class Part(NamedTuple):
    """What an experiment says of a claim.

    Attributes:
        where: which part of the claim, as in "in speech".
        holds: whether it holds there; `None`: not all of it has been run.
        words: the figures.
    """

    where: str
    holds: bool | None
    words: str


def verdict(*parts):
    """Joins the `Part`s of a claim to one sentence."""
    outcomes = [part.holds for part in parts]
    if None in outcomes:
        summary = "not decided"
    elif all(outcomes):
        summary = "holds"
    elif any(outcomes):
        summary = "holds in part"
    else:
        summary = "does not hold"
    told = {True: " it holds", False: " it does not hold", None: ""}
    words = "; ".join(f"{part.where}{told[part.holds]}: {part.words}" for part in parts)
    return f"**{summary}**. {words[0].upper()}{words[1:]}."


def faster(results, label, where):
    """Whether every seed passes the baseline's lowest training criterion before it is reached.

    Each model is compared with the baseline that differs in nothing else, the learning rate
    included.
    """
    if not (results.baseline and results.model(label)):
        return unfinished(results, where)
    holds, words = True, []
    for baseline in results.candidates[results.baseline.label]:
        own = without_model(baseline)
        [model] = [one for one in results.candidates[label] if without_model(one) == own]
        limit = statistics.mean(baseline.training)
        passed = model.passed(limit)
        holds &= all(one is not None and one < baseline.lowest_epoch for one in passed)
        flags = "".join(f", `{flag}`" for flag in own)
        words.append(f"{epochs(passed)} ({baseline.measures[0].text(limit)}{flags})")
    return Part(
        where,
        holds,
        f"the {label} model passes the lowest {baseline.measures[0].training} of the "
        f"LSTM's {len(baseline.runs[0].rows)} epochs at epoch {'; '.join(words)}",
    )


def without_model(model):
    """The flags that a configuration shares with its counterpart of the other model."""
    return [flag for flag in model.arguments if not flag.startswith("--model=")]


def does_not_generalise(results, label, where):
    """Whether the model is better than the baseline in no measure of validation."""
    model, baseline = results.model(label), results.baseline
    if not (model and baseline):
        return unfinished(results, where)
    better, words = against(model, baseline, "the LSTM")
    return Part(where, not any(better), f"the {label} model has {words}")


def recurrent_does_not_help(results, where, label="recurrent, shared statistics"):
    """Whether recurrent normalisation with shared statistics is better in no measure."""
    model, without = results.model(label), results.model("frame-wise")
    if not (model and without):
        return unfinished(results, where)
    learns, words_of_training = compared(
        model.measures[0].training, model.training, without.training, model.measures[0], "without"
    )
    better, words = against(model, without, "without")
    return Part(
        where,
        not (learns or any(better)),
        f"the model with recurrent normalisation has lowest {words_of_training}, {words}",
    )


def per_step_helps(results, where, label):
    """Whether statistics of each step and a small gamma beat the plain LSTM in every measure."""
    model, baseline = results.model(label), results.baseline
    if not (model and baseline):
        return unfinished(results, where)
    better, words = against(model, baseline, "the LSTM")
    return Part(where, all(better), f"the model ({label}) has {words}")


def generalises(results, where="in the search"):
    """Whether the best normalised model is better in validation by the margin."""
    model, baseline = results.model("normalised"), results.baseline
    if not (model and baseline):
        return unfinished(results, where)
    measure = model.measures[0]
    ours, plain = (statistics.mean(one.validation) for one in (model, baseline))
    our_test, plain_test = (statistics.mean(one.best(measure.test)) for one in (model, baseline))
    return Part(
        where,
        ours <= (1.0 - MARGIN) * plain,
        f"the best normalised model has {measure.validation} {ours:.1f}, the best LSTM "
        f"{plain:.1f}; {measure.test} {our_test:.1f} and {plain_test:.1f}",
    )


def against(model, other, name):
    """In which measures of validation a model is better, and the figures."""
    outcomes = [
        compared(
            measure.validation,
            *(one.best(measure.validation) for one in (model, other)),
            measure,
            name,
        )
        for measure in model.measures
    ]
    return [better for better, _ in outcomes], " and ".join(words for _, words in outcomes)


def compared(column, ours, others, measure, name):
    """Whether all seeds are better than all of the others', and the figures."""
    figures = f"{column} {spread(ours, measure.text)}, {name} {spread(others, measure.text)}"
    return max(ours) < min(others), figures


def unfinished(results, where):
    """The part of a claim for an experiment that has not come to its end."""
    return Part(where, None, results.progress)


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


def row(cells):
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    command_line.run(main, FLAGS, __doc__)
