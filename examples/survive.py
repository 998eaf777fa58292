"""Kill it, start it again: a training run that goes on as if nothing had happened.

    python examples/survive.py            Ctrl-C, kill -9, a power cut: then the same line again
    rm -r survive_run                     begin from the beginning

The model and the data are your own: a function that compiles a model, and a `tf.data` pipeline.
`fit` adds the rest: checkpoints within epochs and between them, a history and the best model in the
run's folder, an end before a loss that is not finite gets into a checkpoint, SIGTERM, and training
on all GPUs (or, with TF_CONFIG, on several machines) with the result of one.
"""

import sys

import keras
import numpy as np
import tensorflow as tf

from keras_bnrnn import BatchNormGRU
from keras_bnrnn.fit import fit

FOLDER = "survive_run"
TIMESTEPS, SEQUENCES, BATCH, EPOCHS = 20, 1200, 40, 12


def build_model():
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((TIMESTEPS, 1)),
            BatchNormGRU(16, momentum=0.9, synchronized=True),
            keras.layers.Dense(1, activation="sigmoid"),
        ]
    )
    model.compile(keras.optimizers.Adam(0.01), "binary_crossentropy", metrics=["accuracy"])
    return model


def batches(epoch, count=SEQUENCES):
    """Random walks `[batch, TIMESTEPS, 1]`, and whether they were above 0 more often than below.

    The same number gives the same batches, so that an epoch can go on in the middle.
    """
    steps = np.random.default_rng(epoch).normal(size=(count, TIMESTEPS, 1)).astype("float32")
    walks = np.cumsum(steps, axis=1)
    above = (np.mean(walks > 0, axis=1) > 0.5).astype("float32")
    return tf.data.Dataset.from_tensor_slices((walks, above)).batch(BATCH, drop_remainder=True)


def main(folder=FOLDER):
    print("Stop me in any way you like, and start me again with the same line.", flush=True)
    model, run = fit(
        build_model,
        train=batches,
        valid=lambda: batches(10_000, 400),
        epochs=EPOCHS,
        output_dir=folder,
        checkpoint_steps=10,
    )
    best = run.best_row
    print(f"Best epoch {best['epoch']} of {EPOCHS}: {best['val_accuracy']:.1%} of unseen walks.")
    print(f"Written: {run.path}/history.csv, results.json, best.keras, final.keras")
    print("Next: raise EPOCHS and start me again, or keras.saving.load_model on best.keras.")
    return model, run


if __name__ == "__main__":
    main(*sys.argv[1:])
