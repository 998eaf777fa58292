"""The task of train_pixels.py: which digit an image shows, read pixel by pixel.

The images are scikit-learn's 1797 handwritten digits of 8 x 8 pixels.
"""

import keras
import numpy as np
import tensorflow as tf

from command_line import CommandError
from keras_bnrnn import BatchNormLSTM
from keras_bnrnn.fit.distribution import Worker
from recipes import measures
from recipes.pixel_model import FORMER_CLASSES, PIXELS, build_pixel_model, pixel_metrics
from recipes.speech_model import with_lengths
from recipes.training import Task

LARGEST = 16.0
VALID, TEST = 300, 300
ORDER_SEED = 0  # Of the split and of the permutation: the same for all runs.


class PixelTask(Task):
    """Classification of small images, 64 steps of one number each."""

    name = "pixels"
    script = "train_pixels.py"
    measures = measures.PIXELS
    setting_names = (
        *("model", "normalization", "normalize_recurrent", "per_step", "gamma", "momentum"),
        *("permuted", "units", "batch_size", "learning_rate", "mixed_precision", "synchronized"),
        "seed",
    )
    optional_setting_names = ("renorm", "normalize_cell_state")

    @classmethod
    def settings_of(cls, options):
        in_loop = options.normalize_recurrent or options.normalize_cell_state
        if options.per_step and options.normalization == "sequence" and not in_loop:
            raise CommandError(
                "--per_step needs what is normalised step by step: --normalization=frame, "
                "--normalize_recurrent or --normalize_cell_state"
            )
        return super().settings_of(options)

    def read_data(self, data_dir):
        self.images = read_images(self.settings.permuted)
        self.batch_size, self.examples = self.settings.batch_size, len(self.images["train"][0])

    def batches(self, split, worker=Worker(), epoch=None):  # noqa: B008  immutable
        rows = self.batch_size // worker.count
        shuffle = None if epoch is None else (self.settings.seed, epoch)
        return batches(self.images[split], rows, worker, shuffle)

    def describe_batch(self, worker, epoch, step):
        rows = self.batch_size // worker.count
        return f"images {step * rows} to {(step + 1) * rows - 1} in its order"

    def build_model(self, replicas, **options):
        settings = self.settings
        if settings.model == "batch_norm":
            layer = BatchNormLSTM(
                settings.units,
                normalization=settings.normalization,
                normalize_recurrent=settings.normalize_recurrent,
                normalize_cell_state=settings.normalize_cell_state,
                gamma_initializer=keras.initializers.Constant(settings.gamma),
                max_timesteps=PIXELS if settings.per_step else None,
                renorm=settings.renorm,
                momentum=settings.momentum,
                synchronized=settings.synchronized and replicas > 1,
                name="lstm",
            )
        else:
            layer = keras.layers.LSTM(settings.units, name="lstm")
        return build_pixel_model(layer, settings.learning_rate, **options)

    def metrics(self):
        return pixel_metrics()

    def plan(self):
        counts = ", ".join(f"{len(images):,} {name}" for name, (images, _) in self.images.items())
        order = "in a fixed random order" if self.settings.permuted else "in rows"
        yield f"Images of {PIXELS} pixels, {order}: {counts}."

    def model_title(self):
        return f"{self.settings.model}, {self.settings.units} units"

    @staticmethod
    def load_model(path):
        return with_lengths(keras.models.load_model(path, FORMER_CLASSES, compile=False))


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
