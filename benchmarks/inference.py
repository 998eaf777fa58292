"""Latency and throughput of exported acoustic models, chunk by chunk and whole.

For a 2-layer, 128-unit model that reads in one direction, three ways to run it in inference:

    folded     the SavedModel that export.py makes: folded, its LSTMs one operation each
    unfolded   the same signature around the model as it was trained, normalisation included
    keras      the same signature around keras.layers.LSTM of the same size

Each lives in a process of its own on one core, and the processes take turns.

    python benchmarks/inference.py --chunks=1,10,100 --json=inference.json
"""

import argparse
import json
import multiprocessing
import os
import resource
import statistics
import sys
import tempfile
import time
from pathlib import Path

VARIANTS = ("folded", "unfolded", "keras")
FRAMES_PER_SECOND = 100
STATES, DIMENSION = 309, 123
SECONDS_OF_A_TURN = 0.3


def serve(connection, variant, layers, units):
    """A process: builds and exports its model, then times what it is asked for."""
    # One core, and it alone: set before TensorFlow makes its threads.
    os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[0]})
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "training"))
    import numpy as np
    import tensorflow as tf

    from keras_bnrnn import fold_batch_norm
    from keras_bnrnn.serving.fused import fused
    from keras_bnrnn.serving.speech import speech_step
    from keras_bnrnn.serving.stack import CarriedStack
    from recipes.speech_model import build_speech_model

    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    model = build_speech_model(
        DIMENSION,
        STATES,
        normalized=variant != "keras",
        layers=layers,
        units=units,
        bidirectional=False,
    )
    if variant == "folded":
        model = fused(fold_batch_norm(model))
    stack = CarriedStack(model, mask="given")
    features = tf.TensorSpec([None, None, DIMENSION], tf.float32, "features")
    lengths = tf.TensorSpec([None], tf.int32, "lengths")

    inputs = [features, lengths, *stack.state_specs]
    step = tf.function(speech_step(stack), input_signature=inputs, autograph=False)

    module = tf.Module()
    module.weights = [weight.value for weight in stack.model.weights]
    with tempfile.TemporaryDirectory() as folder:
        options = tf.saved_model.SaveOptions(experimental_custom_gradients=False)
        tf.saved_model.save(module, folder, {"step": step.get_concrete_function()}, options)
        signature = tf.saved_model.load(folder).signatures["step"]
    random = np.random.default_rng(0)
    connection.send("ready")
    while (question := connection.recv()) is not None:
        batch, frames, chunks = question
        x = tf.constant(random.normal(size=(batch, frames, DIMENSION)), tf.float32)
        lengths = tf.fill([batch], frames)
        states = {spec.name: tf.zeros([batch, spec.shape[1]]) for spec in stack.state_specs}
        times = []
        ends = time.perf_counter() + SECONDS_OF_A_TURN
        while time.perf_counter() < ends or (chunks and len(times) < chunks):
            began = time.perf_counter()
            outputs = signature(features=x, lengths=lengths, **states)
            outputs.pop("log_posteriors").numpy()
            states = outputs
            times.append(time.perf_counter() - began)
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        connection.send((statistics.median(times), sum(times), memory))


def start(variant, layers, units):
    connection, other = multiprocessing.Pipe()
    process = multiprocessing.Process(target=serve, args=(other, variant, layers, units))
    process.start()
    return process, connection


def ask(connection, *question):
    connection.send(question)
    return connection.recv()


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layers", type=int, default=2, help="recurrent layers")
    parser.add_argument("--units", type=int, default=128, help="units of each layer")
    parser.add_argument("--chunks", default="1,10,100", help="frames of a chunk, commas")
    parser.add_argument("--batches", default="1,16", help="streams scored together, commas")
    parser.add_argument("--repeats", type=int, default=9, help="turns of each variant")
    parser.add_argument("--json", help="file to write the figures into")
    arguments = parser.parse_args()
    multiprocessing.set_start_method("spawn")
    workers = {name: start(name, arguments.layers, arguments.units) for name in VARIANTS}
    for _, connection in workers.values():
        connection.recv()
    measurements = []
    print("one core; a chunk's latency, audio seconds per second (all streams), against keras")
    for batch in map(int, arguments.batches.split(",")):
        for frames in map(int, arguments.chunks.split(",")):
            turns = {name: [] for name in VARIANTS}
            for turn in range(arguments.repeats + 1):
                for name, (_, connection) in workers.items():
                    median, _, _ = ask(connection, batch, frames, 0)
                    if turn:  # The first turn warms up.
                        turns[name].append(median)
            medians = {name: statistics.median(times) for name, times in turns.items()}
            for name, median in medians.items():
                speed = batch * frames / FRAMES_PER_SECOND / median
                ratio = median / medians["keras"]
                measurements.append(
                    {"variant": name, "batch": batch, "frames": frames, "seconds": median}
                )
                print(
                    f"{batch:3} streams x {frames:4} frames  {name:9} {1e3 * median:8.3f} ms "
                    f"{speed:8.0f} x real time  {ratio:5.2f}",
                    flush=True,
                )
    minutes = 10
    count = minutes * 60 * FRAMES_PER_SECOND // 10
    before = ask(workers["folded"][1], 1, 10, 1)[2]
    _, seconds, after = ask(workers["folded"][1], 1, 10, count)
    print(
        f"{minutes} minutes of audio through `step`, chunks of 10 frames: {seconds:.1f} s, peak "
        f"memory {before:.0f} MB before and {after:.0f} MB after"
    )
    for process, connection in workers.values():
        connection.send(None)
        process.join()
    if arguments.json:
        with open(arguments.json, "w", encoding="utf-8") as file:
            json.dump(measurements, file, indent=1)


if __name__ == "__main__":
    main()
