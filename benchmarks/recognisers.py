"""What a training step of each speech model costs: frame by frame, and of text.

    python benchmarks/recognisers.py
    python benchmarks/recognisers.py --units=256 --frames=1200

Both models are bidirectional and normalised sequence-wise; they see batches of the same features.
The model of text is timed at a quarter of the frames, as it is trained, and at all of them, where
its recurrent layers see as many frames as the other's; without its metrics, which are edit
distances; and its loss alone, with its gradient. They take turns in one process.
"""

import argparse
import os
import sys
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "training"))

import numpy as np
import tensorflow as tf

from keras_bnrnn.losses import UtteranceMeanCTC
from recipes.ctc_model import build_ctc_model, compile_ctc_model
from recipes.speech_model import build_speech_model, compile_speech_model

DIMENSION, STATES, BATCH = 123, 309, 24
ALPHABET = "abcdefghijklmnopqrstuvwxyz' "
FRAMES_PER_CHARACTER = 10  # Sixty characters in six seconds.


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--units", type=int, default=128)
    parser.add_argument("--frames", type=int, default=600)
    parser.add_argument("--turns", type=int, default=15)
    arguments = parser.parse_args()

    steps = variants(arguments)
    for step in steps.values():
        step()
    seconds = {name: [] for name in steps}
    for _ in range(arguments.turns):
        for name, step in steps.items():
            began = time.perf_counter()
            step()
            seconds[name].append(time.perf_counter() - began)
    fastest = {name: min(times) for name, times in seconds.items()}
    whole = next(iter(fastest.values()))
    for name, least in fastest.items():
        print(f"{name:42} {1000 * least:8.1f} ms  {least / whole:5.2f}")


def variants(arguments):
    """`{name: function}`; the first is the frame-wise model."""
    random = np.random.default_rng(0)
    frames = arguments.frames
    x = {
        "features": random.standard_normal((BATCH, frames, DIMENSION)).astype(np.float32),
        "lengths": random.integers(frames // 2, frames + 1, BATCH).astype(np.int32),
    }
    x["lengths"][0] = frames
    said = random.integers(1, len(ALPHABET) + 1, (BATCH, frames // FRAMES_PER_CHARACTER))
    # What is beyond an utterance's end is not said.
    ends = x["lengths"][:, np.newaxis] // FRAMES_PER_CHARACTER
    said = np.where(np.arange(said.shape[1]) < ends, said, 0).astype(np.int32)
    states = random.integers(0, STATES, (BATCH, frames)).astype(np.int32)
    size = {"layers": arguments.layers, "units": arguments.units, "normalized": True}

    by_frame = build_speech_model(DIMENSION, STATES, **size)
    compile_speech_model(by_frame, 1e-3)
    live = (np.arange(frames) < x["lengths"][:, np.newaxis]).astype(np.float32)
    steps = {"frame by frame": step_of(by_frame, x, states, live)}
    for reduction in (1, 4):
        share = "all" if reduction == 1 else f"1/{reduction}"
        for metrics in (True, False):
            model = build_ctc_model(DIMENSION, len(ALPHABET) + 1, reduction=reduction, **size)
            compile_ctc_model(model, 1e-3, ALPHABET)
            if not metrics:
                model.compile(model.optimizer, UtteranceMeanCTC())
            told = "" if metrics else ", no metrics"
            steps[f"text, {share} of the frames{told}"] = step_of(model, x, said)
        shape = (BATCH, -(-frames // reduction), len(ALPHABET) + 1)
        logits = tf.constant(random.standard_normal(shape), tf.float32)
        steps[f"its loss alone, {share} of the frames"] = loss_of(logits, said)
    return steps


def step_of(model, x, y, weights=None):
    """A training step that is traced once, as `fit` runs it."""
    model.make_train_function()
    train = model.train_function
    batch = (x, y) if weights is None else (x, y, weights)
    batches = iter(tf.data.Dataset.from_tensors(batch).repeat())
    return lambda: tf.nest.map_structure(np.asarray, train(batches))


def loss_of(logits, said):
    """The loss and its gradient for the logits."""
    loss = UtteranceMeanCTC()

    @tf.function
    def gradient():
        with tf.GradientTape() as tape:
            tape.watch(logits)
            value = loss(said, logits)
        return tape.gradient(value, logits)

    return lambda: gradient().numpy()


if __name__ == "__main__":
    main()
