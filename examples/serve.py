"""A model of your own, served: trained, exported, and called by a process without this package.

    python examples/serve.py

A model learns to say, frame by frame, how far a noisy walk has come. `serving.export` folds the
normalisation into plain kernels and writes a TensorFlow SavedModel. Whoever loads that needs
TensorFlow, and neither keras_bnrnn nor Keras. It has two signatures: `serve` takes whole sequences,
`step` the next frames of a stream together with the states that the last call returned.
"""

import subprocess
import sys
import tempfile

import keras
import numpy as np

from keras_bnrnn import BatchNormLSTM, serving

TIMESTEPS, FEATURES = 20, 3

# What the other side runs.
CLIENT = """
import sys
import numpy as np
import tensorflow as tf

folder, chunk = sys.argv[1], int(sys.argv[2])
signatures = tf.saved_model.load(folder).signatures
steps = tf.constant(np.load(f"{folder}/steps.npy"))

whole = signatures["serve"](steps=steps)["position"]

step = signatures["step"]
states = {"memory_h": tf.zeros([len(steps), 16]), "memory_c": tf.zeros([len(steps), 16])}
parts = []
for start in range(0, steps.shape[1], chunk):
    outputs = step(steps=steps[:, start : start + chunk], **states)
    parts.append(outputs.pop("position"))
    states = outputs  # What is left are the new states, under the names of the inputs.

assert "keras_bnrnn" not in sys.modules
np.savez(f"{folder}/positions.npz", serve=whole, step=tf.concat(parts, axis=1))
"""


def walks(count, generator):
    """Steps `[count, TIMESTEPS, FEATURES]` and, after each, the walk's position."""
    steps = generator.normal(3, 1, (count, TIMESTEPS, FEATURES)).astype("float32")
    return steps, np.cumsum(steps.mean(-1, keepdims=True) - 3, axis=1)


def trained_model(generator):
    # The names are those of the signatures' inputs, outputs and states.
    model = keras.Sequential(
        [
            keras.Input((None, FEATURES), name="steps"),
            BatchNormLSTM(16, return_sequences=True, momentum=0.9, name="memory"),
            keras.layers.Dense(1, name="position"),
        ]
    )
    model.compile(keras.optimizers.Adam(0.01), "mse")
    model.fit(*walks(1000, generator), batch_size=50, epochs=3, verbose=0)
    return model


def main(call=subprocess.run):
    keras.utils.set_random_seed(0)
    generator = np.random.default_rng(0)
    model = trained_model(generator)
    with tempfile.TemporaryDirectory() as folder:
        signatures = serving.export(model, folder)
        print(f"exported with the signatures {' and '.join(signatures)}", flush=True)
        steps, _ = walks(4, generator)
        np.save(f"{folder}/steps.npy", steps)
        call([sys.executable, "-c", CLIENT, folder, "7"], check=True)
        served = np.load(f"{folder}/positions.npz")
        expected = model.predict(steps, verbose=0)
        deviations = {name: np.max(np.abs(served[name] - expected)) for name in served}
    for name, deviation in deviations.items():
        print(f"{name + ':':6} largest deviation from model.predict {deviation:.1e}")
    return deviations


if __name__ == "__main__":
    main()
