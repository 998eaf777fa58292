"""Trains a word-level language model on Penn Treebank, batch-normalised or plain.

The models and schedules are those of Zaremba et al. 2014 (arXiv 1409.2329): two LSTM layers,
plain SGD, 20 parallel streams of text, states carried from window to window. The batch-normalised
model normalises each time step over the streams.

    python training/train_ptb.py --data_dir=DIR --model=baseline   --output_dir=runs/ptb_baseline
    python training/train_ptb.py --data_dir=DIR --model=batch_norm --output_dir=runs/ptb_batch_norm
    python training/compare.py runs/ptb_baseline runs/ptb_batch_norm

DIR holds ptb.train.txt, ptb.valid.txt and ptb.test.txt (one sentence a line). Without --data_dir
the text is the language reference that every Python carries: small, but enough to see it work.

The output folder gets history.csv (a row per epoch), results.json and the trained model. A run
that was stopped goes on when the same command is given again.

Perplexities are per word. `train` is the running figure of the epoch; `valid` and `test` score
every token of their text exactly once, `test` with the weights of the epoch of the best `valid`.
"""

import dataclasses
import hashlib
import json
from pathlib import Path

import keras
from absl import flags

import command_line
from command_line import CommandError
from keras_bnrnn.data.text import SPLITS, load_text, token_windows
from keras_bnrnn.fit.distribution import (
    make_strategy,
    rejoined_after_losing_a_worker,
    worker_of,
)
from keras_bnrnn.fit.loop import Splits, evaluate, prepare, train, watchers
from keras_bnrnn.fit.run_folder import VOCABULARY_FILE, RunFolder
from recipes import language_model

LANGUAGE_COLUMNS = {"train_perplexity": "perplexity", "valid_perplexity": "val_perplexity"}

FLAGS = flags.FlagValues()
command_line.define_run_flags(FLAGS)
command_line.define_normalization_flags(FLAGS)
flags.DEFINE_string(
    "data_dir",
    None,
    "Folder with ptb.train.txt, ptb.valid.txt and ptb.test.txt. Not given: embedded English text.",
    flag_values=FLAGS,
)
flags.DEFINE_enum(
    "size",
    "small",
    list(language_model.RECIPES),
    "small: 2 x 200 units, 20 steps, no dropout, 13 epochs; medium: 2 x 650, 35 steps, dropout "
    "0.5, 39 epochs; large: 2 x 1500, 35 steps, dropout 0.65, 55 epochs.",
    flag_values=FLAGS,
)
flags.DEFINE_integer(
    "epochs",
    None,
    "Epochs to train in all; not given: as many as the size's recipe has. A finished run goes on "
    "when the number is raised.",
    lower_bound=1,
    flag_values=FLAGS,
)
flags.DEFINE_integer(
    "steps_per_epoch",
    None,
    "End each epoch after this many windows, always the same first ones; to try things out. Not "
    "given: the whole training text.",
    lower_bound=1,
    flag_values=FLAGS,
)
for name, define, help_text in (
    ("dropout", flags.DEFINE_float, "Dropout rate on the non-recurrent connections"),
    ("learning_rate", flags.DEFINE_float, "Learning rate of the first epochs"),
    ("constant_epochs", flags.DEFINE_integer, "Epochs before the learning rate falls"),
    ("decay", flags.DEFINE_float, "What the learning rate is then divided by before each epoch"),
):
    define(name, None, f"{help_text}; not given: the recipe's.", lower_bound=0, flag_values=FLAGS)


def main(argv):
    with rejoined_after_losing_a_worker(FLAGS.output_dir):
        train_and_score(argv)


def train_and_score(argv):
    if len(argv) > 1:
        raise CommandError(f"unexpected argument {argv[1]!r}; every option is a --flag")
    strategy = make_strategy(FLAGS.strategy)
    command_line.set_up_tensorflow(FLAGS, strategy)
    worker = worker_of(strategy)
    output_dir = command_line.require_flag(FLAGS, "output_dir")
    recipe = read_recipe()
    epochs = FLAGS.epochs or recipe.epochs
    replicas = check_replicas(strategy.num_replicas_in_sync, recipe.batch_size)
    corpus = read_corpus(FLAGS.data_dir)
    windows = make_windows(corpus, recipe, FLAGS.steps_per_epoch)
    mine = {name: streams_of(worker, part, recipe.batch_size) for name, part in windows.items()}
    run = RunFolder(
        output_dir, describe_run(corpus, recipe), LANGUAGE_COLUMNS, "valid_perplexity", worker
    )
    run.keep_file(VOCABULARY_FILE, json.dumps(describe_vocabulary(corpus), indent=1) + "\n")

    def new_model():
        keras.utils.set_random_seed(FLAGS.seed)
        with strategy.scope():
            return language_model.build_language_model(
                recipe,
                len(corpus.vocabulary),
                normalized=FLAGS.model == "batch_norm",
                normalization=FLAGS.normalization,
                normalize_recurrent=FLAGS.normalize_recurrent,
                gamma=FLAGS.gamma,
                momentum=FLAGS.momentum,
                synchronized=FLAGS.synchronized and replicas > 1,
                replicas=replicas,
                jit_compile=FLAGS.jit_compile,
                steps_per_execution=FLAGS.steps_per_execution,
            )

    model = new_model()
    print_plan(corpus, recipe, model, windows["train"], replicas)
    splits = Splits(
        train=lambda epoch: mine["train"],
        valid=mine["valid"],
        rows=recipe.batch_size // worker.count,
        describe=lambda epoch, step: describe_window(recipe, step),
    )
    callbacks = [
        language_model.ResetStates(),
        keras.callbacks.LearningRateScheduler(recipe.learning_rate_of),
        *watchers(FLAGS.tensorboard, run, splits),
    ]
    train(
        model,
        strategy,
        run,
        splits,
        epochs,
        callbacks=callbacks,
        checkpoint_steps=FLAGS.checkpoint_steps,
        verbose=command_line.fit_verbosity(),
    )
    best_model = new_model()
    prepare(best_model, strategy, mine["test"], splits.rows)
    best_model.load_weights(run.best_model_path)
    reset = language_model.ResetStates()
    scores = evaluate(best_model, strategy, mine["test"], splits.rows, [reset])
    run.finish(model, test_perplexity=scores["perplexity"])
    print_results(run, scores["perplexity"])


def read_recipe():
    """The size's recipe, with what the flags change in it."""
    names = ("dropout", "learning_rate", "constant_epochs", "decay")
    given = {name: FLAGS[name].value for name in names if FLAGS[name].value is not None}
    if given.get("dropout", 0.0) >= 1.0:
        raise CommandError(f"--dropout={FLAGS.dropout} must be below 1")
    if given.get("decay", 1.0) < 1.0:
        raise CommandError(f"--decay={FLAGS.decay} must be at least 1: the rate is divided by it")
    return dataclasses.replace(language_model.RECIPES[FLAGS.size], **given)


def check_replicas(replicas, streams):
    """Returns the number of replicas; a `CommandError` if the streams cannot be dealt out."""
    if streams % replicas:
        fitting = [str(count) for count in range(1, streams + 1) if streams % count == 0]
        raise CommandError(
            f"the recipe's {streams} streams do not divide over {replicas} devices; make "
            f"{', '.join(fitting[:-1])} or {fitting[-1]} visible (CUDA_VISIBLE_DEVICES for GPUs), "
            "or use --strategy=none"
        )
    return replicas


def read_corpus(data_dir):
    """`load_text`, with what the caller can put right as a `CommandError`."""
    try:
        return load_text(data_dir)
    except ValueError as error:
        raise CommandError(f"--data_dir={data_dir}: {error}") from None


def make_windows(corpus, recipe, steps_per_epoch):
    """The datasets of all streams, by split."""
    datasets = {}
    for name in SPLITS:
        try:
            dataset = token_windows(
                getattr(corpus, name),
                recipe.batch_size,
                recipe.timesteps,
                start=corpus.eos_id,
                keep_remainder=name != "train",
            )
        except ValueError as error:
            raise CommandError(f"{name} text of {corpus.source}: {error}") from None
        datasets[name] = dataset
    windows = len(datasets["train"])
    if steps_per_epoch is not None:
        if steps_per_epoch > windows:
            raise CommandError(
                f"--steps_per_epoch={steps_per_epoch} is more than the text's {windows} windows"
            )
        datasets["train"] = datasets["train"].take(steps_per_epoch)
    return datasets


def streams_of(worker, windows, streams):
    """A worker's streams of each window."""
    if worker.count == 1:
        return windows
    rows = streams // worker.count
    return windows.map(lambda *window: tuple(one[worker.index * rows :][:rows] for one in window))


def describe_window(recipe, step):
    """Which tokens a training batch has."""
    first = step * recipe.timesteps
    return f"tokens {first} to {first + recipe.timesteps - 1} of the {recipe.batch_size} streams"


def describe_text(corpus):
    """What tells one text from another."""
    digest = hashlib.sha256("\n".join(corpus.vocabulary).encode("utf-8"))
    for name in SPLITS:
        digest.update(getattr(corpus, name).tobytes())
    return {
        "vocabulary": len(corpus.vocabulary),
        **{f"{name}_tokens": len(getattr(corpus, name)) for name in SPLITS},
        "sha256": digest.hexdigest()[:16],
    }


def describe_run(corpus, recipe):
    """Everything that decides the numbers of a run's epochs; how many epochs does not."""
    return {
        "model": FLAGS.model,
        "size": FLAGS.size,
        "recipe": dataclasses.asdict(recipe),
        "steps_per_epoch": FLAGS.steps_per_epoch,
        "normalization": FLAGS.normalization,
        "normalize_recurrent": FLAGS.normalize_recurrent,
        "gamma": FLAGS.gamma,
        "momentum": FLAGS.momentum,
        "mixed_precision": FLAGS.mixed_precision,
        "synchronized": FLAGS.synchronized,
        "seed": FLAGS.seed,
        "text": describe_text(corpus),
    }


def describe_vocabulary(corpus):
    """What a user of the exported model needs to turn text into tokens and back."""
    return {"tokenization": corpus.tokenization, "words": list(corpus.vocabulary)}


def print_plan(corpus, recipe, model, train, replicas):
    counts = ", ".join(f"{len(getattr(corpus, name)):,} {name}" for name in SPLITS)
    print(f"Text: {corpus.source}; {counts} tokens, {len(corpus.vocabulary):,} words.")
    steps = len(train)
    used = steps * recipe.batch_size * recipe.timesteps
    print(
        f"An epoch: {steps:,} windows of {recipe.batch_size} streams x {recipe.timesteps} steps = "
        f"{used:,} training tokens, the other {len(corpus.train) - used:,} are left out; "
        "validation and test use every token."
    )
    if FLAGS.model == "batch_norm" and FLAGS.normalization == "sequence":
        print(
            "Warning: sequence-wise statistics see each window's later words, so `train` is no "
            "language model's perplexity; `valid` and `test`, with population statistics, are."
        )
    print(
        f"Model: {FLAGS.model}, {FLAGS.size}, {model.count_params():,} weights, "
        f"on {replicas} device{'s' if replicas > 1 else ''}.",
        flush=True,
    )
    if normalizes_recurrent():
        print("It cannot be exported: a normalised recurrent term is no part of a plain layer.")


def print_results(run, test_perplexity):
    best = run.best_row
    print(
        f"Best epoch {best['epoch']} of {run.completed_epochs}: perplexity "
        f"{best['train_perplexity']:.1f} train, {best['valid_perplexity']:.1f} valid, "
        f"{test_perplexity:.1f} test."
    )
    print(f"Written: {run.path}/results.json, history.csv, best.keras, final.keras")
    other = "baseline" if FLAGS.model == "batch_norm" else "batch_norm"
    print(
        f"Next: the same command with --model={other} and another --output_dir, then\n"
        f"  python training/compare.py {run.path} OTHER_OUTPUT_DIR"
    )
    if not normalizes_recurrent():
        exported = Path(run.path) / "exported"
        print(f"  python training/export.py --run_dir={run.path} --output_dir={exported}")


def normalizes_recurrent():
    """Whether the model is one that `export.py` cannot fold into a plain one."""
    return FLAGS.model == "batch_norm" and FLAGS.normalize_recurrent


if __name__ == "__main__":
    command_line.run(main, FLAGS, __doc__)
