"""The experiments of results/README.md, as a table for `reproduce.py` and `report.py`."""

from typing import NamedTuple

from recipes.ctc_task import CtcTask
from recipes.language_task import LanguageTask
from recipes.pixel_task import PixelTask
from recipes.speech_task import SpeechTask

PLAIN = ("--model=baseline",)
NORMALIZED = ("--model=batch_norm",)
RENORMALIZED = (*NORMALIZED, "--renorm")
RECURRENT = (*NORMALIZED, "--normalize_recurrent")
SEQUENCE_WISE = ("--normalization=sequence",)
SMALL_GAMMA = ("--gamma=0.3",)
COOIJMANS = ("--per_step", "--gamma=0.1")
DECAY = ("--decay=1.667",)
QUICK_EPOCHS = 2

PIXEL_NOTE = (
    "8 × 8 images of digits (scikit-learn's), 64 steps of a pixel each: 1197 to train, 300 to "
    "validate, 300 to test. An image's pixels differ so much that frame-wise statistics shared by "
    "all steps do not fit them. So validation is best before the model has learnt much. Statistics "
    "of each step change validation alone: with gamma 1.0 both kinds of models train alike but for "
    "rounding, and one dashed line may hide the other."
)

SPEECH_NOTE = (
    "Connected digits put together from the recordings of the "
    "[Free Spoken Digit Dataset](https://github.com/Jakobovski/free-spoken-digit-dataset) "
    "(CC BY-SA 4.0): 360 utterances, 34 minutes, to train, and 100, 9 minutes, to validate. "
    "Training hears three of the four speakers of the dev recordings. There is no test split: rate "
    "and epoch are chosen on the figures shown."
)

TEXT_NOTE = (
    "The models learn to spell the words of digits-speech's utterances: 16 characters, no "
    "alignment and no dictionary. `cer` and `wer` are the error rates of characters and words, of "
    "the best character of each frame. `ctc_loss` is in nats per utterance. Rate and epoch are "
    "chosen on the figures shown."
)

GERMAN_NOTE = (
    "Sentences of a small grammar, spoken by eSpeak NG: 834 by seven voices to train, and 166 "
    "others by two other voices to validate. All of it comes with the package. `cer`, `wer` and "
    "`ctc_loss` are as for the digits."
)

FUTURE_NOTE = (
    "Sequence-wise statistics see the later words of a window. So train_perplexity, and validation "
    "with batch statistics, are then no language model's. Validation with the population's "
    "statistics is."
)


class Corpus(NamedTuple):
    """A corpus that prepare_speech.py makes.

    Attributes:
        data: the folder of `--data_dir` with its recordings, or `None`.
        arguments: of prepare_speech.py.
    """

    data: str | None
    arguments: tuple


CORPORA = {
    "digits-corpus": Corpus("spoken-digits", ("--source=librispeech",)),
    "digits-text": Corpus("spoken-digits", ("--source=librispeech", "--labels=characters")),
    "german-text": Corpus(
        None,
        ("--source=synthetic", "--language=de", "--labels=characters", "--utterances=1000"),
    ),
}


class Configuration(NamedTuple):
    """A line of flags.

    Attributes:
        label: what figures and tables call it. Of configurations with the same label the report
            chooses the best by its validation criterion, and shows what there was to choose from.
        arguments: of the training script.
        seeds: how many runs, with the seeds from 0.
    """

    label: str
    arguments: tuple
    seeds: int


class Experiment(NamedTuple):
    """Configurations that are compared with each other; the first label is the baseline.

    Attributes:
        title: of its section.
        task: of its runs, a class of `Task`.
        data: the folder of `--data_dir` that it needs, one of `CORPORA`, or `None`.
        epochs: of each run.
        arguments: of all runs.
        quick: more arguments under `--quick`.
        configurations: `{folder's name: Configuration}`.
        note: what a reader of its figures has to know.
    """

    title: str
    task: type
    data: str | None
    epochs: int
    arguments: tuple
    quick: tuple
    configurations: dict
    note: str = ""

    def arguments_of(self, configuration, seed, quick=False):
        """The flags of one run, besides those that say where its data and results are."""
        return (
            *self.arguments,
            *configuration.arguments,
            *(self.quick if quick else ()),
            f"--seed={seed}",
            f"--epochs={QUICK_EPOCHS if quick else self.epochs}",
        )


def both_models(trials, name, label, own=()):
    """A plain and a normalised model, each with every trial's flags; validation chooses among them.

    Args:
        trials: `{name: flags}`.
        name: of the normalised model, in folders' names.
        label: of the normalised model.
        own: flags that only the normalised model has.
    """
    return {
        f"{model}_{trial}": Configuration(text, (*kind, *flags, *more), 1)
        for trial, flags in trials.items()
        for model, text, kind, more in (
            ("baseline", "LSTM", PLAIN, ()),
            (name, label, NORMALIZED, own),
        )
    }


def at_rates(*rates):
    """Trials that differ in the learning rate."""
    return {f"rate_{rate}": (f"--learning_rate={rate}",) for rate in rates}


def speech_models(*rates):
    """Plain, normalised and renormalised models of speech, at each rate with three seeds."""
    return {
        f"{name}_{trial}": Configuration(label, (*kind, *flags), 3)
        for trial, flags in at_rates(*rates).items()
        for name, label, kind in (
            ("baseline", "LSTM", PLAIN),
            ("sequence", "sequence-wise", NORMALIZED),
            ("sequence_renorm", "sequence-wise, renormalised", RENORMALIZED),
        )
    }


PIXEL_CONFIGURATIONS = {
    "baseline": Configuration("LSTM", PLAIN, 5),
    "frame": Configuration("frame-wise", NORMALIZED, 5),
    "recurrent_shared": Configuration("recurrent, shared statistics", RECURRENT, 5),
    "frame_gamma_0.1": Configuration(
        "frame-wise, per step, gamma 0.1", (*NORMALIZED, *COOIJMANS), 5
    ),
    "recurrent_gamma_0.1": Configuration(
        "recurrent, per step, gamma 0.1", (*RECURRENT, *COOIJMANS), 5
    ),
    "cell_state_gamma_0.1": Configuration(
        "recurrent and cell state, per step, gamma 0.1",
        (*RECURRENT, *COOIJMANS, "--normalize_cell_state"),
        5,
    ),
    "recurrent_gamma_1.0": Configuration(
        "recurrent, per step, gamma 1.0", (*RECURRENT, "--per_step", "--gamma=1.0"), 5
    ),
    **{
        f"{name}_renorm_gamma_{gamma}": Configuration(
            f"{label}, renormalised, gamma {gamma}", (*kind, "--renorm", f"--gamma={gamma}"), 5
        )
        for name, label, kind in (
            ("frame", "frame-wise", NORMALIZED),
            (
                "cell_state",
                "recurrent and cell state, shared statistics",
                (*RECURRENT, "--normalize_cell_state"),
            ),
        )
        for gamma in ("0.1", "1.0")
    },
}

PIXELS = Experiment(
    title="Images read pixel by pixel, in rows",
    task=PixelTask,
    data=None,
    epochs=40,
    arguments=(),
    quick=("--units=8",),
    configurations=PIXEL_CONFIGURATIONS,
    note=PIXEL_NOTE,
)
EXPERIMENTS = {
    "pixel-digits": PIXELS,
    "pixel-digits-permuted": PIXELS._replace(
        title="Images read pixel by pixel, in a fixed random order", arguments=("--permuted",)
    ),
    "digits-speech": Experiment(
        title="Spoken digits, 2 × 128 units, bidirectional",
        task=SpeechTask,
        data="digits-corpus",
        epochs=10,
        arguments=("--layers=2", "--units=128"),
        quick=("--layers=1", "--units=8"),
        configurations=speech_models("0.001", "0.002", "0.004"),
        note=SPEECH_NOTE,
    ),
    "digits-ctc": Experiment(
        title="Spoken digits, spelt, 2 × 128 units, bidirectional, a quarter of the frames",
        task=CtcTask,
        data="digits-text",
        epochs=20,
        arguments=("--layers=2", "--units=128"),
        quick=("--layers=1", "--units=8"),
        configurations=speech_models("0.002", "0.004"),
        note=TEXT_NOTE,
    ),
    "german-ctc": Experiment(
        title="German sentences, spelt, 2 × 64 units, bidirectional, a quarter of the frames",
        task=CtcTask,
        data="german-text",
        epochs=12,
        arguments=("--layers=2", "--units=64"),
        quick=("--layers=1", "--units=8"),
        configurations=speech_models("0.004"),
        note=GERMAN_NOTE,
    ),
    "ptb-small": Experiment(
        title="Penn Treebank, 2 × 200 units, the recipe of Zaremba et al. 2014",
        task=LanguageTask,
        data="ptb",
        epochs=13,
        arguments=("--size=small",),
        quick=("--steps_per_epoch=20",),
        configurations={
            "baseline": Configuration("LSTM", PLAIN, 3),
            "frame": Configuration("frame-wise", NORMALIZED, 3),
            "sequence": Configuration(
                "sequence-wise (sees the future)", (*NORMALIZED, *SEQUENCE_WISE), 1
            ),
            "recurrent": Configuration("frame-wise and recurrent", RECURRENT, 1),
            "frame_renorm": Configuration("frame-wise, renormalised", RENORMALIZED, 3),
        },
        note=FUTURE_NOTE,
    ),
    "ptb-small-regularised": Experiment(
        title="Penn Treebank, 2 × 200 units, with dropout, the best of a search on validation",
        task=LanguageTask,
        data="ptb",
        epochs=13,
        # But for --renorm momentum changes the population statistics and nothing else.
        arguments=("--size=small", "--constant_epochs=6", "--momentum=0.99"),
        quick=("--steps_per_epoch=20",),
        configurations={
            **both_models(
                {
                    "dropout_0.25": ("--dropout=0.25", *DECAY),
                    "dropout_0.35": ("--dropout=0.35", *DECAY),
                    "late_decay": ("--dropout=0.25", "--constant_epochs=9", "--decay=2.5"),
                    "twice_the_rate": ("--dropout=0.25", *DECAY, "--learning_rate=2.0"),
                    "dropout_0.15": ("--dropout=0.15", *DECAY),
                },
                "normalised",
                "normalised",
                own=(*SMALL_GAMMA, *SEQUENCE_WISE),
            ),
            # What only normalised models have to choose from; as many trials more for the LSTM.
            "normalised_frame": Configuration(
                "normalised", (*NORMALIZED, "--dropout=0.25", *DECAY, *SMALL_GAMMA), 1
            ),
            "normalised_gamma_1.0": Configuration(
                "normalised",
                (*NORMALIZED, "--dropout=0.25", *DECAY, "--gamma=1.0", *SEQUENCE_WISE),
                1,
            ),
            **{
                f"renorm_dropout_{rate}": Configuration(
                    "normalised", (*RENORMALIZED, f"--dropout={rate}", *DECAY, "--gamma=1.0"), 1
                )
                for rate in ("0.3", "0.25")
            },
            "baseline_dropout_0.2": Configuration("LSTM", (*PLAIN, "--dropout=0.2", *DECAY), 1),
            "baseline_dropout_0.3": Configuration("LSTM", (*PLAIN, "--dropout=0.3", *DECAY), 1),
        },
        note=(
            "The figure shows the best of each model; their learning rates may decay at different "
            "epochs. Three things might hold the normalised model back. The schedule: see its lead "
            "over the LSTM of the same flags, while the rate is constant (6 epochs, or as many as "
            "the flags say) and as it decays. Dropout, which makes the variance of training "
            "greater than that of validation: see the recalibrated statistics at the end of this "
            "page, taken without it. Statistics of 20 rows a frame: see the candidate that has "
            "them. Each has one seed. Differences as small as those between the seeds of ptb-small "
            f"say nothing. {FUTURE_NOTE}"
        ),
    ),
    "digits-speech-large": Experiment(
        title="Spoken digits, the paper's 5 × 250 units, bidirectional",
        task=SpeechTask,
        data="digits-corpus",
        epochs=10,
        arguments=(),
        quick=("--layers=1", "--units=8"),
        configurations=both_models(at_rates("0.001", "0.002"), "sequence", "sequence-wise"),
        note=SPEECH_NOTE,
    ),
    "ptb-medium": Experiment(
        title="Penn Treebank, 2 × 650 units",
        task=LanguageTask,
        data="ptb",
        epochs=39,
        arguments=("--size=medium",),
        quick=("--steps_per_epoch=10",),
        configurations={
            "baseline": Configuration("LSTM", PLAIN, 1),
            "frame": Configuration("frame-wise", NORMALIZED, 1),
            "frame_renorm": Configuration("frame-wise, renormalised", RENORMALIZED, 1),
        },
    ),
}

# One trained model of each kind, in which kinds of population statistics are compared. They are
# runs of the experiments above: evaluate.py makes the comparison for every normalised one.
POPULATION = (
    "pixel-digits/frame-0",
    "pixel-digits/recurrent_shared-0",
    "pixel-digits/frame_gamma_0.1-0",
    "pixel-digits/recurrent_gamma_0.1-0",
    "pixel-digits/cell_state_gamma_0.1-0",
    "digits-speech/sequence_rate_0.002-0",
    "ptb-small/frame-0",
    "ptb-small/sequence-0",
    "ptb-small/recurrent-0",
)
