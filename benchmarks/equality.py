"""Ten training steps on one device, on two replicas and on two workers: the largest deviation.

    python benchmarks/equality.py

The same global batches are trained on three ways, each in processes of its own: by one device, by
`MirroredStrategy` over two logical CPUs, and by `MultiWorkerMirroredStrategy` over two processes on
this machine. Weights and population statistics are compared afterwards, in float32.

    speech    bidirectional, sequence-wise, masks and unequal lengths, a last batch that is not full
    language  stateful, frame-wise, gradients clipped at every step
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
from workers import environments

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "training"))

STEPS = 10
STREAMS = 8
STRATEGIES = ("none", "mirrored", "multi_worker")
KINDS = ("speech", "language")
MODELS = ("baseline", "batch_norm")


def speech(model, strategy):
    """The compiled acoustic model, and ten global batches."""
    import numpy as np
    import tensorflow as tf

    from recipes.speech_model import build_speech_model, compile_speech_model

    with strategy.scope():
        network = build_speech_model(
            9,
            5,
            normalized=model == "batch_norm",
            layers=2,
            units=8,
            synchronized=strategy.num_replicas_in_sync > 1,
        )
        compile_speech_model(network, 0.01)
    rng = np.random.default_rng(0)
    batches = []
    for step in range(STEPS):
        rows = STREAMS if step < STEPS - 1 else 3
        lengths = np.sort(rng.integers(3, 20, rows))
        mask = np.arange(lengths.max()) < lengths[:, np.newaxis]
        features = rng.normal(size=(*mask.shape, 9)) * rng.uniform(0.5, 3, (rows, 1, 1)) + 1.0
        batches.append(
            (
                {
                    "features": np.where(mask[..., np.newaxis], features, 0.0).astype(np.float32),
                    "lengths": lengths.astype(np.int32),
                },
                np.where(mask, rng.integers(0, 5, mask.shape), 0).astype(np.int32),
                mask.astype(np.float32),
            )
        )
    spec = (
        {
            "features": tf.TensorSpec([None, None, 9], tf.float32),
            "lengths": tf.TensorSpec([None], tf.int32),
        },
        tf.TensorSpec([None, None], tf.int32),
        tf.TensorSpec([None, None], tf.float32),
    )
    return network, dataset(batches, spec)


def language(model, strategy):
    """The compiled language model, and ten global windows."""
    import dataclasses

    import numpy as np
    import tensorflow as tf

    from recipes import language_model

    # So small a bound is met by every gradient.
    recipe = dataclasses.replace(
        language_model.RECIPES["small"], units=8, timesteps=6, batch_size=STREAMS, clip_norm=0.05
    )
    replicas = strategy.num_replicas_in_sync
    with strategy.scope():
        network = language_model.build_language_model(
            recipe, 30, model == "batch_norm", replicas=replicas, synchronized=replicas > 1
        )
    rng = np.random.default_rng(0)
    # Streams of unequal entropy, so that replicas' gradients have unequal norms.
    windows = [
        (rng.random((STREAMS, 7)) ** 3 * np.linspace(2, 30, STREAMS)[:, np.newaxis]).astype(
            np.int32
        )
        for _ in range(STEPS)
    ]
    batches = [(w[:, :-1], w[:, 1:], np.ones((STREAMS, 6), np.float32)) for w in windows]
    spec = tuple(tf.TensorSpec([None, 6], kind) for kind in (tf.int32, tf.int32, tf.float32))
    return network, dataset(batches, spec)


def dataset(batches, spec):
    import tensorflow as tf

    made = tf.data.Dataset.from_generator(lambda: iter(batches), output_signature=spec)
    return made.apply(tf.data.experimental.assert_cardinality(len(batches)))


def train(kind, model, strategy_name, path):
    """A process: trains ten steps and writes the model's weights and statistics."""
    import tensorflow as tf

    if strategy_name == "mirrored":
        cpu = tf.config.list_physical_devices("CPU")[0]
        tf.config.set_logical_device_configuration(
            cpu, [tf.config.LogicalDeviceConfiguration()] * 2
        )
    import keras
    import numpy as np

    from keras_bnrnn.fit.distribution import make_strategy, rows_of_worker, worker_of
    from keras_bnrnn.fit.loop import prepare

    strategy = make_strategy(strategy_name)
    worker = worker_of(strategy)
    keras.utils.set_random_seed(0)
    network, batches = {"speech": speech, "language": language}[kind](model, strategy)
    rows = STREAMS // worker.count
    mine = rows_of_worker(batches, worker, rows)
    distributed, steps = prepare(network, strategy, mine, rows)
    network.fit(distributed, steps_per_epoch=steps, epochs=1, verbose=0)
    values = {weight.path: np.asarray(weight) for weight in network.weights}
    if worker.is_chief:
        np.savez(path, **{name.replace("/", "|"): value for name, value in values.items()})


def run(kind, model, strategy, folder):
    """Trains in processes of their own; returns what they wrote."""
    import numpy as np

    path = Path(folder) / f"{kind}-{model}-{strategy}.npz"
    command = [sys.executable, __file__, "--train", kind, model, strategy, str(path)]
    processes = [
        subprocess.Popen(
            command, env=one, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        for one in environments(2 if strategy == "multi_worker" else 1)
    ]
    outputs = [process.communicate()[0] for process in processes]
    if any(process.returncode for process in processes):
        raise RuntimeError("\n".join(outputs))
    with np.load(path) as arrays:
        return dict(arrays)


def deviations(kind, model, folder):
    """`{strategy: (largest deviation of the weights, of the statistics)}` from one device."""
    import numpy as np

    alone = run(kind, model, "none", folder)
    found = {}
    for strategy in STRATEGIES[1:]:
        values = run(kind, model, strategy, folder)
        largest = {True: 0.0, False: 0.0}
        for name, value in alone.items():
            moving = "moving" in name
            largest[moving] = max(largest[moving], float(np.abs(values[name] - value).max()))
        found[strategy] = largest[False], largest[True]
    return found


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--train", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.train:
        train(*arguments.train)
        return
    print(f"largest deviation from one device after {STEPS} steps")
    print("| model | | 2 replicas: weights | statistics | 2 workers: weights | statistics |")
    print("|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for kind in KINDS:
            for model in MODELS:
                figures = deviations(kind, model, folder).values()
                cells = [f"{value:.1e}" for pair in figures for value in pair]
                print(f"| {kind} | {model} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
