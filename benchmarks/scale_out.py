"""What a training step costs over several workers: bytes, collectives and time; then a forecast.

    python benchmarks/scale_out.py

Measured: the collective operations that a step runs, noted inside its graph, and the time of a step
on 1 and on 2 workers of this machine, each on a core of its own, with the same work for each
worker. Computed from that and from the links' published bandwidths: the efficiency of more devices.
docs/SCALING.md explains the tables that this prints.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from workers import environments

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "training"))

STATES = 3400  # of the triphone system of Kaldi's recipe for WSJ, about
FRAMES = 780  # of an utterance of WSJ on average, about
MEASURED_FRAMES = 100
TIMED_STEPS, OTHER_STEPS = 12, 3
SPEECH_ROWS = 24
TASKS = ("speech", "small", "medium", "large")
TIMED_TASKS = ("speech", "small", "medium")
MODELS = ("baseline", "batch_norm")


class Link(NamedTuple):
    """What joins the devices: bytes per second in each direction, and seconds of a hop."""

    name: str
    devices: int
    bandwidth: float
    latency: float


# Bandwidths as published for A100 NVLink (600 GB/s for both directions together), InfiniBand NDR
# and Ethernet; a hop's latency is assumed. Between machines all eight GPUs share the link.
LINKS = (
    Link("8 GPUs of a machine, NVLink", 8, 300e9, 5e-6),
    Link("8 GPUs of a machine, PCIe 4", 8, 25e9, 10e-6),
    Link("16 machines, 1 GPU each, InfiniBand 400 Gb/s", 16, 50e9, 10e-6),
    Link("16 machines, 1 GPU each, Ethernet 25 Gb/s", 16, 3.1e9, 30e-6),
    Link("16 machines, 1 GPU each, Ethernet 10 Gb/s", 16, 1.25e9, 30e-6),
)
# Assumed of one GPU: what its matrix products sustain, and a time step of a recurrent layer.
SUSTAINED_FLOPS = 20e12
SECONDS_PER_TIME_STEP = 15e-6


def timesteps_of(task, measured=True):
    from recipes import language_model

    if task == "speech":
        return MEASURED_FRAMES if measured else FRAMES
    return language_model.RECIPES[task].timesteps


def rows_of(task):
    from recipes import language_model

    return SPEECH_ROWS if task == "speech" else language_model.RECIPES[task].batch_size


def build(task, model, strategy):
    """The compiled model of the paper, each replica with a batch of the paper's size."""
    import dataclasses

    from recipes import language_model
    from recipes.speech_model import build_speech_model, compile_speech_model

    normalized, several = model == "batch_norm", strategy.num_replicas_in_sync > 1
    with strategy.scope():
        if task == "speech":
            network = build_speech_model(
                123, STATES, normalized=normalized, layers=5, units=250, synchronized=several
            )
            compile_speech_model(network, 1e-3)
            return network
        recipe = language_model.RECIPES[task]
        replicas = strategy.num_replicas_in_sync
        recipe = dataclasses.replace(recipe, batch_size=recipe.batch_size * replicas)
        return language_model.build_language_model(
            recipe, 10_000, normalized, replicas=replicas, synchronized=several
        )


def batches(task, steps):
    """A worker's random batches."""
    import tensorflow as tf

    shape = (rows_of(task), timesteps_of(task))
    if task == "speech":
        batch = (
            {
                "features": tf.random.normal((*shape, 123)),
                "lengths": tf.fill(shape[:1], shape[1]),
            },
            tf.random.uniform(shape, maxval=STATES, dtype=tf.int32),
            tf.ones(shape),
        )
    else:
        words = (tf.random.uniform(shape, maxval=10_000, dtype=tf.int32) for _ in range(2))
        batch = (*words, tf.ones(shape))
    return tf.data.Dataset.from_tensors(batch).repeat(steps)


def record_collectives():
    """Notes the bytes of every collective that a graph made from now on runs; returns the list."""
    import tensorflow as tf
    from tensorflow.python.ops import collective_ops

    sizes = []

    def note(size):
        sizes.append(int(size))
        return size

    def recorded(operation):
        def call(t, *arguments, **options):
            if not tf.executing_eagerly():
                noted = tf.numpy_function(note, [tf.size(t) * t.dtype.size], tf.int32)
                with tf.control_dependencies([noted]):
                    t = tf.identity(t)
            return operation(t, *arguments, **options)

        return call

    for name in ("all_reduce_v2", "all_gather_v2"):
        setattr(collective_ops, name, recorded(getattr(collective_ops, name)))
    return sizes


def work(task, model, workers, steps, index, path):
    """A process: trains, and the first writes what it has measured."""
    os.sched_setaffinity(0, {index})
    import time

    import keras
    import numpy as np
    import tensorflow as tf

    from keras_bnrnn.fit.distribution import make_strategy
    from keras_bnrnn.fit.loop import prepare

    tf.config.threading.set_intra_op_parallelism_threads(1)
    strategy = make_strategy("multi_worker" if workers > 1 else "none")
    network = build(task, model, strategy)
    data, _ = prepare(network, strategy, batches(task, steps), rows_of(task))
    times = []

    class Clock(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            times.append(time.perf_counter())

    network.fit(data, steps_per_epoch=steps - 1, verbose=0, shuffle=False, callbacks=[Clock()])
    sizes = record_collectives()
    network.make_train_function(force=True)
    network.fit(data, steps_per_epoch=1, verbose=0, shuffle=False)
    if index == 0:
        found = {
            "seconds": float(np.median(np.diff(times)[-steps // 2 :])),
            "weights": sum(int(np.prod(v.shape)) for v in network.trainable_variables),
            "sizes": sizes,
        }
        Path(path).write_text(json.dumps(found))


def measure(task, model, workers, steps, side_by_side=1):
    """What the first of some processes found.

    Args:
        task, model: of `TASKS` and `MODELS`.
        workers: that train together.
        steps: to train; the median of the last half is the time.
        side_by_side: how many such trainings run at once, one core for each process.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "found.json"
        processes = [
            subprocess.Popen(
                [
                    *(sys.executable, __file__, "--worker"),
                    *(task, model, str(workers), str(steps), str(index), str(path)),
                ],
                env=environment,
                stdout=subprocess.DEVNULL,
            )
            for index, environment in enumerate(environments(workers) * side_by_side)
        ]
        codes = [process.wait() for process in processes]
        if any(codes):
            raise RuntimeError(f"{task}, {model}, {workers} workers: a process failed")
        return json.loads(path.read_text())


def seconds_on_a_gpu(task, weights):
    """Assumed time of a step: products at the sustained rate, and the recurrence one by one."""
    from recipes import language_model

    steps = timesteps_of(task, measured=False)
    layers = 5 if task == "speech" else 2
    if task != "speech":  # The embedding is looked up, not multiplied.
        weights -= 10_000 * language_model.RECIPES[task].units
    products = 6 * weights * rows_of(task) * steps / SUSTAINED_FLOPS
    return products + 2 * layers * steps * SECONDS_PER_TIME_STEP


def seconds_of_collectives(sizes, link):
    """The sum, each in the shorter of two ways, as NCCL chooses: a ring or a tree.

    Ring: 2 (N - 1) hops of an N-th of the bytes. Tree: 2 log2 N hops of all of them.
    """
    ring, tree = 2 * (link.devices - 1), 2 * math.log2(link.devices)
    return sum(
        min(
            ring * (size / link.devices / link.bandwidth + link.latency),
            tree * (size / link.bandwidth + link.latency),
        )
        for size in sizes
    )


def forecast(task, found, link):
    """The share of a device's time that is computation, collectives not overlapping with it."""
    computing = seconds_on_a_gpu(task, found["weights"])
    waiting = seconds_of_collectives(found["sizes"], link)
    return computing / (computing + waiting)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--worker", nargs=6, help=argparse.SUPPRESS)
    parser.add_argument("--no_times", action="store_true", help="count bytes, and time nothing")
    arguments = parser.parse_args()
    if arguments.worker:
        task, model, *numbers, path = arguments.worker
        work(task, model, *map(int, numbers), path)
        return
    rows = {}
    print("Measured: what a step reduces over 2 workers, and its time\n")
    print(
        "| task | model | weights | collectives | bytes | 1 worker | 1 beside another training "
        "| 2 workers |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for task in TASKS:
        for model in MODELS:
            timed = task in TIMED_TASKS and not arguments.no_times
            steps = TIMED_STEPS if timed else OTHER_STEPS
            two = rows[task, model] = measure(task, model, 2, steps)
            cells = [task, model, f"{two['weights']:,}", str(len(two["sizes"]))]
            cells.append(f"{sum(two['sizes']):,}")
            if timed:
                one = measure(task, model, 1, steps)
                found = [one, measure(task, model, 1, steps, side_by_side=2), two]
                cells += [f"{one['seconds'] * 1e3:.0f} ms" for one in found]
            else:
                cells += ["-"] * 3
            print(f"| {' | '.join(cells)} |", flush=True)
    print("\nComputed: seconds of a step on one GPU, and the efficiency of many\n")
    print(f"| task | model | 1 GPU | {' | '.join(link.name for link in LINKS)} |")
    print("|---|---|---|" + "---|" * len(LINKS))
    for (task, model), found in rows.items():
        cells = [f"{forecast(task, found, link):.0%}" for link in LINKS]
        seconds = seconds_on_a_gpu(task, found["weights"])
        print(f"| {task} | {model} | {seconds * 1e3:.1f} ms | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
