"""Trains a classifier of small images read pixel by pixel: 64 steps of one number each.

    python training/train_pixels.py --model=baseline --output_dir=runs/pixels_baseline
    python training/train_pixels.py --normalize_recurrent --normalize_cell_state --per_step \\
        --gamma=0.1 --output_dir=runs/pixels_cooijmans

The images are scikit-learn's 1797 handwritten digits of 8 x 8 pixels, in rows or, with --permuted,
in one fixed random order, which leaves no local structure to lean on. It is the small sister of
the task of Cooijmans et al. 2016 (arXiv 1603.09025): what an LSTM has read must last to the end.

The output folder gets history.csv (a row per epoch), results.json, best.keras (the epoch with the
lowest valid_loss) and final.keras. A run that was stopped goes on when the same command is given
again. Losses are in nats per image, errors the share of images given the wrong class.
"""

import keras
import numpy as np
import tensorflow as tf
from absl import flags

import command_line
from command_line import CommandError
from keras_bnrnn import BatchNormLSTM
from keras_bnrnn.data import sequence_mask
from keras_bnrnn.fit.distribution import (
    Worker,
    check_batch_size,
    make_strategy,
    rejoined_after_losing_a_worker,
    worker_of,
)
from keras_bnrnn.fit.loop import Splits, evaluate, train, watchers
from keras_bnrnn.fit.precision import scaled
from keras_bnrnn.fit.run_folder import RunFolder
from keras_bnrnn.losses import FrameMeanCrossEntropy

COLUMNS = {
    "train_loss": "cross_entropy",
    "train_error": "error",
    "valid_loss": "val_cross_entropy",
    "valid_error": "val_error",
}
CLASSES, PIXELS, LARGEST = 10, 64, 16.0
VALID, TEST = 300, 300
# What models of today do without: it masked images of zeros.
FORMER_CLASSES = {"keras_bnrnn>ImagesWithInk": keras.layers.Identity}
ORDER_SEED = 0  # Of the split and of the permutation: the same for all runs.

FLAGS = flags.FlagValues()
command_line.define_run_flags(FLAGS)
command_line.define_normalization_flags(FLAGS)
flags.DEFINE_bool("permuted", False, "Read the pixels in a fixed random order.", flag_values=FLAGS)
flags.DEFINE_bool(
    "per_step",
    False,
    "Of batch_norm: population statistics of their own for each of the 64 steps.",
    flag_values=FLAGS,
)
flags.DEFINE_bool(
    "normalize_cell_state",
    False,
    "Of batch_norm: normalise the cell state on its way to the output too.",
    flag_values=FLAGS,
)
flags.DEFINE_integer("units", 64, "Units of the LSTM.", lower_bound=1, flag_values=FLAGS)
flags.DEFINE_integer("batch_size", 50, "Images of a batch.", lower_bound=2, flag_values=FLAGS)
flags.DEFINE_integer("epochs", 40, "Epochs to train in all.", lower_bound=1, flag_values=FLAGS)
flags.DEFINE_float(
    "learning_rate", 1e-2, "Learning rate of Adam.", lower_bound=0.0, flag_values=FLAGS
)


@rejoined_after_losing_a_worker(FLAGS)
def main(argv):
    if len(argv) > 1:
        raise CommandError(f"unexpected argument {argv[1]!r}; every option is a --flag")
    strategy = make_strategy(FLAGS.strategy)
    command_line.set_up_tensorflow(FLAGS, strategy)
    worker = worker_of(strategy)
    output_dir = command_line.require_flag(FLAGS, "output_dir")
    if FLAGS.normalization == "sequence" and FLAGS.per_step:
        raise CommandError("--per_step needs --normalization=frame")
    images = read_images(FLAGS.permuted)
    check_batch_size(FLAGS.batch_size, len(images["train"][0]), strategy)
    rows = FLAGS.batch_size // worker.count
    splits = Splits(
        train=lambda epoch: batches(images["train"], rows, worker, (FLAGS.seed, epoch)),
        valid=batches(images["valid"], rows, worker),
        rows=rows,
        describe=lambda epoch, step: (
            f"images {step * rows} to {(step + 1) * rows - 1} in its order"
        ),
    )
    run = RunFolder(output_dir, describe_run(), COLUMNS, "valid_loss", worker)
    keras.utils.set_random_seed(FLAGS.seed)
    with strategy.scope():
        model = build_model(strategy.num_replicas_in_sync)
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
    scores = evaluate(model, strategy, batches(images["test"], rows, worker), rows)
    model.set_weights(final_weights)
    run.finish(model, test_loss=scores["cross_entropy"], test_error=scores["error"])
    best = run.best_row
    print(
        f"Best epoch {best['epoch']} of {run.completed_epochs}: train loss "
        f"{best['train_loss']:.3f}, valid loss {best['valid_loss']:.3f}, errors "
        f"{best['valid_error']:.1%} valid, {scores['error']:.1%} test."
    )
    print(f"Written: {run.path}/results.json, history.csv, best.keras, final.keras")
    print(f"Next: another --output_dir with other flags, and compare {run.path}/history.csv.")


def read_images(permuted):
    """`{split: (pixels [images, 64, 1] from 0 to 1, classes [images])}`."""
    try:
        from sklearn.datasets import load_digits
    except ModuleNotFoundError:
        raise CommandError(
            "the images come with scikit-learn: pip install 'keras-bnrnn[experiments]'"
        ) from None
    pixels, classes = load_digits(return_X_y=True)
    order = np.random.default_rng(ORDER_SEED)
    chosen = order.permutation(len(pixels))
    if permuted:
        pixels = pixels[:, order.permutation(PIXELS)]
    pixels, classes = pixels[chosen, :, np.newaxis] / LARGEST, classes[chosen]
    parts = {
        "valid": slice(VALID),
        "test": slice(VALID, VALID + TEST),
        "train": slice(VALID + TEST, None),
    }
    return {
        name: (pixels[part].astype("float32"), classes[part].astype("int32"))
        for name, part in parts.items()
    }


def batches(images, rows, worker=Worker(), shuffle=None):  # noqa: B008  immutable
    """A worker's batches `({pixels, lengths}, classes, weights)`, shuffled by a seed and an epoch.

    Every image is of 64 pixels, but not the rows that fill a batch up over several devices.
    """
    pixels, classes = images
    chosen = np.arange(len(pixels))
    if shuffle is not None:
        chosen = np.random.default_rng(shuffle).permutation(chosen)
    chosen = chosen[worker.index :: worker.count]
    weights = np.ones(len(chosen), "float32")
    inputs = {"pixels": pixels[chosen], "lengths": np.full(len(chosen), PIXELS, "int32")}
    arrays = (inputs, classes[chosen], weights)
    return tf.data.Dataset.from_tensor_slices(arrays).batch(rows).prefetch(2)


def build_model(replicas):
    """The compiled classifier; its weights start from `--seed`."""
    if FLAGS.model == "batch_norm":
        layer = BatchNormLSTM(
            FLAGS.units,
            normalization=FLAGS.normalization,
            normalize_recurrent=FLAGS.normalize_recurrent,
            normalize_cell_state=FLAGS.normalize_cell_state,
            gamma_initializer=keras.initializers.Constant(FLAGS.gamma),
            max_timesteps=PIXELS if FLAGS.per_step else None,
            momentum=FLAGS.momentum,
            synchronized=FLAGS.synchronized and replicas > 1,
            name="lstm",
        )
    else:
        layer = keras.layers.LSTM(FLAGS.units, name="lstm")
    pixels = keras.Input((PIXELS, 1), name="pixels")
    lengths = keras.Input((), dtype="int32", name="lengths")
    hidden = layer(pixels, mask=sequence_mask(pixels, lengths))
    logits = keras.layers.Dense(CLASSES, dtype="float32", name="logits")(hidden)
    model = keras.Model({"pixels": pixels, "lengths": lengths}, logits, name="pixel_classifier")
    model.compile(
        scaled(keras.optimizers.Adam(FLAGS.learning_rate, global_clipnorm=1.0)),
        FrameMeanCrossEntropy(from_logits=True),
        weighted_metrics=[cross_entropy(), error_rate()],
        jit_compile=FLAGS.jit_compile,
        steps_per_execution=FLAGS.steps_per_execution,
    )
    return model


def cross_entropy():
    """The metric: the mean over images."""
    return keras.metrics.SparseCategoricalCrossentropy(from_logits=True, name="cross_entropy")


def error_rate():
    """The metric: the share of images given the wrong class."""
    return keras.metrics.MeanMetricWrapper(wrong_class, name="error")


@keras.saving.register_keras_serializable(package="keras_bnrnn")
def wrong_class(y_true, y_pred):
    """1 for each image whose likeliest class is another one."""
    chosen = keras.ops.argmax(y_pred, axis=-1)
    different = keras.ops.not_equal(keras.ops.cast(y_true, chosen.dtype), chosen)
    return keras.ops.cast(different, "float32")


def describe_run():
    """Everything that decides the numbers of a run's epochs; how many epochs does not."""
    names = (
        *("model", "normalization", "normalize_recurrent", "per_step", "gamma"),
        *("momentum", "permuted", "units", "batch_size", "learning_rate"),
        *("mixed_precision", "synchronized", "seed"),
    )
    # Only where it is asked for, so that runs from before the flag go on.
    more = ("normalize_cell_state",) if FLAGS.normalize_cell_state else ()
    return {name: FLAGS[name].value for name in (*names, *more)}


if __name__ == "__main__":
    command_line.run(main, FLAGS, __doc__)
