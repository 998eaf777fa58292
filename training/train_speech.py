"""Trains an acoustic model on a prepared speech corpus, batch-normalised or plain.

    python training/prepare_speech.py --source=synthetic --output_dir=corpus
    python training/train_speech.py --data_dir=corpus --output_dir=runs/plain --model=baseline
    python training/train_speech.py --data_dir=corpus --output_dir=runs/bn --model=batch_norm
    python training/compare.py runs/plain runs/bn

The model is a stack of bidirectional LSTMs and a softmax over the corpus's states; `batch_norm`
normalises each layer's input-to-hidden term over all frames of the mini-batch. The output folder
gets history.csv (a row per epoch), results.json, best.keras (the epoch with the lowest dev_fce)
and final.keras. A run that was stopped, however, goes on when the same command is given again.

fce is the frame-wise cross-entropy in nats, fer the share of frames given the wrong state. `train`
is the running figure of the epoch, while the weights still change; `dev` is of the epoch's end.
"""

import contextlib
import json
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from absl import flags

import command_line
from command_line import CommandError
from keras_bnrnn.data.errors import CorpusError
from keras_bnrnn.data.speech.augmentation import SpecAugment
from keras_bnrnn.data.speech.corpus import load_corpus
from keras_bnrnn.data.speech.pipelines import MAX_FRAMES, alignments, kept_lengths, speech_dataset
from keras_bnrnn.fit.distribution import (
    Worker,
    check_batch_size,
    make_strategy,
    rejoined_after_losing_a_worker,
    worker_of,
)
from keras_bnrnn.fit.loop import Splits, evaluate, train, watchers
from keras_bnrnn.fit.run_folder import PHONE_COUNTS_FILE, SPEECH_COLUMNS, RunFolder
from recipes.phone_model import phone_counts
from recipes.speech_model import build_speech_model, compile_speech_model

CRITERION = "dev_fce"

FLAGS = flags.FlagValues()
command_line.define_run_flags(FLAGS)
flags.DEFINE_string(
    "data_dir", None, "Corpus folder that prepare_speech.py wrote.", flag_values=FLAGS
)
flags.DEFINE_integer("layers", 5, "Recurrent layers.", lower_bound=1, flag_values=FLAGS)
flags.DEFINE_integer(
    "units", 250, "Units of each layer and direction.", lower_bound=1, flag_values=FLAGS
)
flags.DEFINE_bool(
    "bidirectional",
    True,
    "Read each utterance in both directions; false for a model that hears no later frames.",
    flag_values=FLAGS,
)
flags.DEFINE_integer(
    "batch_size", 24, "Utterances of a mini-batch.", lower_bound=2, flag_values=FLAGS
)
flags.DEFINE_integer(
    "max_frames",
    MAX_FRAMES,
    "Leave longer utterances out of training (never out of dev and test).",
    lower_bound=1,
    flag_values=FLAGS,
)
flags.DEFINE_bool(
    "augment",
    False,
    "Hide random stretches of time and bands of channels of the training utterances, others in "
    f"each epoch (SpecAugment: {SpecAugment()}).",
    flag_values=FLAGS,
)
flags.DEFINE_integer(
    "epochs",
    20,
    "Epochs to train in all. A finished run goes on when the number is raised.",
    lower_bound=1,
    flag_values=FLAGS,
)
flags.DEFINE_float(
    "learning_rate", 1e-3, "Learning rate of Adam.", lower_bound=0.0, flag_values=FLAGS
)


@rejoined_after_losing_a_worker(FLAGS)
def main(argv):
    if len(argv) > 1:
        raise CommandError(f"unexpected argument {argv[1]!r}; every option is a --flag")
    strategy = make_strategy(FLAGS.strategy)
    command_line.set_up_tensorflow(FLAGS, strategy)
    worker = worker_of(strategy)
    corpus = load_corpus(command_line.require_flag(FLAGS, "data_dir"))
    output_dir = command_line.require_flag(FLAGS, "output_dir")
    kept = kept_lengths(corpus.split("train"), FLAGS.max_frames)
    if len(kept):  # Else reading says why.
        check_batch_size(FLAGS.batch_size, len(kept), strategy)
    # Before the run's folder is made: says what is wrong with the shards.
    splits = Splits(
        train=lambda epoch: batches(corpus, "train", worker, first_epoch=epoch),
        valid=batches(corpus, "dev", worker),
        rows=FLAGS.batch_size // worker.count,
        describe=lambda epoch, step: describe_batch(corpus, worker, epoch, step),
    )
    splits.train(0)
    run = RunFolder(output_dir, describe_run(corpus), SPEECH_COLUMNS, CRITERION, worker)
    run.keep_file("corpus.json", json.dumps(corpus.document, indent=1) + "\n")
    if worker.is_chief:
        with damage_explained(corpus):
            keep_phone_counts(run, corpus)

    keras.utils.set_random_seed(FLAGS.seed)
    with strategy.scope():
        model = build_speech_model(
            corpus.dimension,
            corpus.num_states,
            normalized=FLAGS.model == "batch_norm",
            layers=FLAGS.layers,
            units=FLAGS.units,
            bidirectional=FLAGS.bidirectional,
            momentum=FLAGS.momentum,
            synchronized=FLAGS.synchronized and strategy.num_replicas_in_sync > 1,
        )
        compile_speech_model(
            model,
            FLAGS.learning_rate,
            jit_compile=FLAGS.jit_compile,
            steps_per_execution=FLAGS.steps_per_execution,
        )
    print_plan(corpus, kept, model, strategy.num_replicas_in_sync)
    with damage_explained(corpus):
        train(
            model,
            strategy,
            run,
            splits,
            FLAGS.epochs,
            callbacks=watchers(FLAGS.tensorboard, run, splits),
            checkpoint_steps=FLAGS.checkpoint_steps,
            verbose=command_line.fit_verbosity(),
        )
        final_weights = model.get_weights()
        model.load_weights(run.best_model_path)
        extra = {"dev_fer_of_commonest_state": commonest_state_error(corpus)}
        if "test" in corpus.splits:
            scores = evaluate(model, strategy, batches(corpus, "test", worker), splits.rows)
            extra.update(test_fce=scores["fce"], test_fer=scores["fer"])
        model.set_weights(final_weights)
        run.finish(model, **extra)
    print_results(run, extra)


def batches(corpus, split, worker=Worker(), first_epoch=0):  # noqa: B008  immutable
    """A worker's batches `(inputs, labels, weights)`; weights are 1 for live frames, else 0."""
    dataset = read(corpus, split, worker, first_epoch)
    return dataset.map(lambda inputs, labels, mask: (inputs, labels, tf.cast(mask, tf.float32)))


def read(corpus, split, worker, first_epoch=0, with_ids=False):
    return speech_dataset(
        corpus,
        split,
        FLAGS.batch_size // worker.count,
        max_frames=FLAGS.max_frames,
        seed=FLAGS.seed,
        first_epoch=first_epoch,
        augment=SpecAugment() if FLAGS.augment and split == "train" else None,
        worker=worker,
        with_ids=with_ids,
    )


def describe_batch(corpus, worker, epoch, step):
    """The ids of a training batch's utterances, found by reading up to it again."""
    dataset = read(corpus, "train", worker, epoch, with_ids=True)
    ids = [name.decode() for *_, names in dataset.skip(step).take(1) for name in names.numpy()]
    return f"utterances {', '.join(ids) or 'of other workers'}"


def keep_phone_counts(run, corpus):
    """Puts into the run's folder what a phone recogniser learns from the training alignments."""
    if not (run.path / PHONE_COUNTS_FILE).exists():
        counts = phone_counts(corpus.states, alignments(corpus, "train"))
        run.keep_file(PHONE_COUNTS_FILE, json.dumps(counts) + "\n")


@contextlib.contextmanager
def damage_explained(corpus):
    """Turns a record that cannot be read into an error that names the damaged shards."""
    try:
        yield
    except tf.errors.DataLossError as error:
        damaged = ", ".join(corpus.damaged_shards()) or "none now, so perhaps the disk fails"
        raise CorpusError(
            f"{corpus.path}: a record cannot be read ({error.message.splitlines()[0]}); shards "
            f"whose checksum is wrong: {damaged}. Prepare the corpus again (prepare_speech.py "
            f"--verify={corpus.path} tells more), then give this command again: it continues"
        ) from error


def describe_run(corpus):
    """Everything that decides the numbers of a run's epochs; how many epochs does not."""
    return {
        "model": FLAGS.model,
        "layers": FLAGS.layers,
        "units": FLAGS.units,
        "bidirectional": FLAGS.bidirectional,
        "batch_size": FLAGS.batch_size,
        "max_frames": FLAGS.max_frames,
        "augment": FLAGS.augment,
        "mixed_precision": FLAGS.mixed_precision,
        "synchronized": FLAGS.synchronized,
        "learning_rate": FLAGS.learning_rate,
        "momentum": FLAGS.momentum,
        "seed": FLAGS.seed,
        "corpus": {
            "source": corpus.source,
            "states": corpus.num_states,
            "sha256": corpus.checksum[:16],
        },
    }


def commonest_state_error(corpus):
    """Dev frame error rate of always answering the training split's most frequent state."""
    commonest = int(np.argmax(corpus.split("train")["state_frames"]))
    dev = corpus.split("dev")
    return 1.0 - dev["state_frames"][commonest] / dev["frames"]


def print_plan(corpus, kept, model, replicas):
    counts = ", ".join(
        f"{entry['utterances']:,} {name} ({entry['frames']:,} frames)"
        for name, entry in corpus.splits.items()
    )
    print(f"Corpus {corpus.path}: utterances {counts}; {corpus.num_states:,} states.")
    train = corpus.split("train")
    if len(kept) < train["utterances"]:
        print(
            f"Left out of training: {train['utterances'] - len(kept):,} utterances longer than "
            f"--max_frames={FLAGS.max_frames}, {1.0 - kept.sum() / train['frames']:.1%} of its "
            "frames."
        )
    direction = "bidirectional" if FLAGS.bidirectional else "forward"
    print(
        f"Model: {FLAGS.model}, {FLAGS.layers} {direction} layers of {FLAGS.units} units, "
        f"{model.count_params():,} weights, on {replicas} device{'s' if replicas > 1 else ''}.",
        flush=True,
    )


def print_results(run, extra):
    best = run.best_row
    print(
        f"Best epoch {best['epoch']} of {run.completed_epochs}: "
        f"train fce {best['train_fce']:.3f}, fer {best['train_fer']:.1%}; "
        f"dev fce {best['dev_fce']:.3f}, fer {best['dev_fer']:.1%} "
        f"(always the commonest state: {extra['dev_fer_of_commonest_state']:.1%})."
    )
    if "test_fer" in extra:
        print(f"On test: fce {extra['test_fce']:.3f}, fer {extra['test_fer']:.1%}.")
    print(f"Written: {run.path}/results.json, history.csv, best.keras, final.keras")
    other = "baseline" if FLAGS.model == "batch_norm" else "batch_norm"
    exported = Path(run.path) / "exported"
    print(
        f"Next: the same command with --model={other} and another --output_dir, then\n"
        f"  python training/compare.py {run.path} OTHER_OUTPUT_DIR\n"
        f"  python training/export.py --run_dir={run.path} --output_dir={exported}\n"
        f"  python training/transcribe.py --model={exported} AUDIO"
    )


if __name__ == "__main__":
    command_line.run(main, FLAGS, __doc__, expected_errors=(CorpusError,))
