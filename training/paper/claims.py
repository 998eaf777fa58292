"""The paper's claims, judged from the results of the experiments."""

import statistics
from typing import NamedTuple

from paper.experiment_results import epochs, spread

MARGIN = 0.02

RULES = """## The claims

- Claim 1 holds if every seed passes the LSTM's lowest training criterion (the mean over seeds) in
  an epoch before the LSTM's mean curve is lowest.
- Claim 2 holds if the normalised model is better in no measure of validation.
- Claim 3 holds if two things are true. Normalising the recurrent path too is better neither in the
  lowest training criterion nor in a measure of validation. Statistics of each step are better than
  the LSTM in all measures of validation.

A model is *better* in a measure if each of its seeds is better than each of the other's.
"""


def sentences(found):
    """One sentence for each claim of the paper, and a line for each part of it.

    Args:
        found: `{experiment's name: Results}`.
    """
    speech, language = found["digits-speech"], found["ptb-small"]
    pairs = [(speech, "sequence-wise", "in speech"), (language, "frame-wise", "in language")]
    spelt = [
        (found["digits-ctc"], "sequence-wise", "in spelt digits"),
        (found["german-ctc"], "sequence-wise", "in spelt German"),
    ]
    pixels = {name: found[name] for name in ("pixel-digits", "pixel-digits-permuted")}
    yield (
        "*Normalising the input path makes the training criterion fall faster*: "
        + verdict(*(faster(*pair) for pair in pairs))
    )
    yield (
        "*It does not improve generalisation on its own*: "
        + verdict(*(does_not_generalise(*pair) for pair in [*pairs, *spelt]))
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
    """What the `Part`s of a claim come to, and then the parts, listed where there are several."""
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
    lines = [f"{part.where}{told[part.holds]}: {part.words}." for part in parts]
    lines = [f"{line[0].upper()}{line[1:]}" for line in lines]
    start = " " if len(lines) == 1 else "\n   - "
    return f"**{summary}**.{''.join(start + line for line in lines)}"


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
