"""The task of train_ptb.py: the next word of a text."""

import dataclasses
import functools
import hashlib
import json

import keras

from command_line import CommandError, define_path, read_json
from keras_bnrnn.data.text import MAX_WORDS, SPLITS, load_text, token_windows
from keras_bnrnn.fit.distribution import Worker
from keras_bnrnn.serving.language import language_endpoints
from recipes import measures
from recipes.language_model import (
    RECIPES,
    Recipe,
    ResetStates,
    build_language_model,
    language_metrics,
)
from recipes.training import Task, check_config, training_section

# Fields of a recipe, and the flags that change them.
RECIPE_FLAGS = {
    "batch_size": "streams",
    **{name: name for name in ("timesteps", "dropout", "learning_rate")},
    **{name: name for name in ("constant_epochs", "decay")},
}
TEXT_FLAGS = {split: f"{split}_file" for split in SPLITS}
VOCABULARY_FILE = "vocabulary.json"
DESCRIPTION_FILE = "language_model.json"  # among the assets of an exported model


class LanguageTask(Task):
    """Word-level language modelling of Penn Treebank, or of another text."""

    name = "language"
    script = "train_ptb.py"
    measures = measures.LANGUAGE
    exported = True
    setting_forms = {
        "recipe": {field.name: (int, float) for field in dataclasses.fields(Recipe)},
        "steps_per_epoch": (int, type(None)),
    }
    data = "text"
    setting_names = (
        *("model", "size", "recipe", "steps_per_epoch", "normalization", "normalize_recurrent"),
        *("gamma", "momentum", "mixed_precision", "synchronized", "seed"),
    )
    optional_setting_names = (*Task.optional_setting_names, "max_words")

    @classmethod
    def settings_of(cls, options):
        """The settings among a script's flags, which change the size's recipe."""
        given = {name: getattr(options, flag) for name, flag in RECIPE_FLAGS.items()}
        given = {name: value for name, value in given.items() if value is not None}
        if given.get("dropout", 0.0) >= 1.0:
            raise CommandError(f"--dropout={options.dropout} must be below 1")
        if given.get("decay", 1.0) < 1.0:
            raise CommandError(
                f"--decay={options.decay} must be at least 1: the rate is divided by it"
            )
        recipe = dataclasses.asdict(dataclasses.replace(RECIPES[options.size], **given))
        settings = cls._named(options, recipe=recipe)
        if settings["max_words"] == MAX_WORDS:
            del settings["max_words"]
        return settings

    @staticmethod
    def data_of(options):
        return text_of(options)

    def read_data(self, data_dir):
        self.corpus = read_text(data_dir, self.settings.max_words or MAX_WORDS)
        self.recipe = Recipe(**self.settings.recipe)
        self.batch_size, self.default_epochs = self.recipe.batch_size, self.recipe.epochs
        self.windows = {name: self._windows(name) for name in SPLITS}
        steps, windows = self.settings.steps_per_epoch, len(self.windows["train"])
        if steps is not None:
            if steps > windows:
                raise CommandError(
                    f"--steps_per_epoch={steps} is more than the text's {windows} windows"
                )
            self.windows["train"] = self.windows["train"].take(steps)

    def _windows(self, split):
        try:
            return token_windows(
                getattr(self.corpus, split),
                self.batch_size,
                self.recipe.timesteps,
                start=self.corpus.eos_id,
                keep_remainder=split != "train",
            )
        except ValueError:
            raise CommandError(
                f"{split} text of {self.corpus.source}: Too little text, "
                f"{len(getattr(self.corpus, split)):,} tokens for {self.batch_size} streams of "
                f"windows of {self.recipe.timesteps} steps; give a longer one, or fewer --streams "
                "or --timesteps"
            ) from None

    def describe_data(self):
        corpus = self.corpus
        digest = hashlib.sha256("\n".join(corpus.vocabulary).encode("utf-8"))
        for name in SPLITS:
            digest.update(getattr(corpus, name))
        return {
            "vocabulary": len(corpus.vocabulary),
            **{f"{name}_tokens": len(getattr(corpus, name)) for name in SPLITS},
            "sha256": digest.hexdigest()[:16],
        }

    def check_devices(self, strategy):
        replicas, streams = strategy.num_replicas_in_sync, self.batch_size
        if streams % replicas:
            fitting = [str(count) for count in range(1, streams + 1) if streams % count == 0]
            raise CommandError(
                f"{streams} streams do not divide over {replicas} devices; make "
                f"{' or '.join(fitting)} visible (CUDA_VISIBLE_DEVICES for GPUs), choose other "
                "--streams, or use --strategy=none"
            )

    def batches(self, split, worker=Worker(), epoch=None):  # noqa: B008  immutable
        """The windows of a worker's streams, in the order of the text."""
        windows = self.windows[split]
        if worker.count == 1:
            return windows
        rows = self.batch_size // worker.count
        return windows.map(
            lambda *window: tuple(one[worker.index * rows :][:rows] for one in window)
        )

    def describe_batch(self, worker, epoch, step):
        """Which tokens it has."""
        first = step * self.recipe.timesteps
        last = first + self.recipe.timesteps - 1
        return f"tokens {first} to {last} of the {self.batch_size} streams"

    def build_model(self, replicas, **options):
        settings = self.settings
        return build_language_model(
            self.recipe,
            len(self.corpus.vocabulary),
            normalized=settings.model == "batch_norm",
            normalization=settings.normalization,
            normalize_recurrent=settings.normalize_recurrent,
            renorm=settings.renorm,
            gamma=settings.gamma,
            momentum=settings.momentum,
            synchronized=settings.synchronized and replicas > 1,
            replicas=replicas,
            **options,
        )

    def metrics(self):
        return language_metrics()

    def callbacks(self):
        return [
            ResetStates(),
            keras.callbacks.LearningRateScheduler(self.recipe.learning_rate_of),
        ]

    def files(self):
        # What a user of the exported model needs to turn text into tokens and back.
        words = {"tokenization": self.corpus.tokenization, "words": list(self.corpus.vocabulary)}
        return {VOCABULARY_FILE: lambda: json.dumps(words, indent=1) + "\n"}

    @staticmethod
    def served(run_dir, results):
        form = {"words": [str], "tokenization": str}
        description = read_json(run_dir / VOCABULARY_FILE, form)
        words, tokenization = description["words"], description["tokenization"]
        check_config(run_dir, results["config"], {"text": {"train_tokens": int, "vocabulary": int}})
        text = results["config"]["text"]
        if len(words) != text["vocabulary"]:
            raise CommandError(
                f"{run_dir / VOCABULARY_FILE} has {len(words):,} words, the run's text had "
                f"{text['vocabulary']:,}; put a copy of it back"
            )
        data = (
            f"Trained on {text['train_tokens']:,} tokens of text with {text['vocabulary']:,} "
            f"words; strings are cut into words as {tokenization}. "
            f"`assets/{DESCRIPTION_FILE}` has the words."
        )
        return {
            "endpoints": functools.partial(
                language_endpoints, vocabulary=words, tokenization=tokenization
            ),
            "title": "Language model",
            "training": training_section(data, results),
            "assets": {DESCRIPTION_FILE: description},
        }

    def plan(self):
        corpus, recipe, steps = self.corpus, self.recipe, len(self.windows["train"])
        counts = ", ".join(f"{len(getattr(corpus, name)):,} {name}" for name in SPLITS)
        yield f"Text: {corpus.source}; {counts} tokens, {len(corpus.vocabulary):,} words."
        unknown = {name: corpus.unknown_share(name) for name in SPLITS}
        if any(unknown.values()):
            shares = ", ".join(f"{share:.1%} of {name}" for name, share in unknown.items())
            yield (
                f"The training text has {corpus.distinct_words:,} different words (--max_words); "
                f"<unk> are {shares}."
            )
        used = steps * recipe.batch_size * recipe.timesteps
        yield (
            f"An epoch: {steps:,} windows of {recipe.batch_size} streams x {recipe.timesteps} "
            f"steps = {used:,} training tokens, the other {len(corpus.train) - used:,} are left "
            "out; validation and test use every token."
        )
        if self.settings.model == "batch_norm" and self.settings.normalization == "sequence":
            yield (
                "Warning: sequence-wise statistics see each window's later words, so `train` is no "
                "language model's perplexity; `valid` and `test`, with population statistics, are."
            )
        if self._normalizes_recurrent():
            yield (
                "The model cannot be exported: a normalised recurrent term is no part of a plain "
                "layer."
            )

    def model_title(self):
        return f"{self.settings.model}, {self.settings.size}"

    def next_commands(self, folder):
        if self._normalizes_recurrent():
            return []
        return [f"python training/export.py --run_dir={folder} --output_dir={folder}/exported"]

    def _normalizes_recurrent(self):
        return self.settings.model == "batch_norm" and self.settings.normalize_recurrent


def define_text_files(flag_values):
    """Defines the flags that name the files of a text."""
    for split, flag in TEXT_FLAGS.items():
        help_text = f"The {split} text, with the other two in place of --data_dir."
        define_path(flag, None, help_text, flag_values)


def text_of(options):
    """The text that the flags name, as `load_text` takes it."""
    files = {split: getattr(options, flag) for split, flag in TEXT_FLAGS.items()}
    missing = [TEXT_FLAGS[split] for split, file in files.items() if not file]
    if len(missing) == len(files):
        return options.data_dir
    if missing:
        raise CommandError(f"--{missing[0]} is missing: a text needs all three files")
    if options.data_dir:
        raise CommandError("--data_dir and --train_file both name a text; leave one of them away")
    return files


def read_text(data_dir, max_words=MAX_WORDS):
    """`load_text`, with what the caller can put right as a `CommandError`."""
    try:
        return load_text(data_dir, max_words=max_words)
    except ValueError as error:
        where = "" if isinstance(data_dir, dict) else f"--data_dir={data_dir}: "
        raise CommandError(f"{where}{error}") from None
