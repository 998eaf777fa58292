"""Exported acoustic models in each runtime: size, time of a frame by length, deviation from Keras.

One core, one utterance; the runtimes take turns. Models have random weights, 123 features and 309
states, as those of spoken digits.

    python benchmarks/runtimes.py --lengths=100,1000,6000
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[0]})
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "training"))

import numpy as np  # noqa: E402
import onnxruntime  # noqa: E402
import tensorflow as tf  # noqa: E402
from ai_edge_litert.interpreter import Interpreter  # noqa: E402
from tabulate import tabulate  # noqa: E402

from keras_bnrnn import serving  # noqa: E402
from recipes.speech_model import build_speech_model  # noqa: E402

DIMENSION, STATES = 123, 309
QUANTIZATIONS = {"float32": None, "float16": "float16", "8 bits": "dynamic"}


def onnx(path):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options)
    return lambda features, lengths: session.run(None, {"features": features, "lengths": lengths})[
        0
    ]


def litert(path):
    run = Interpreter(str(path), num_threads=1).get_signature_runner()
    return lambda features, lengths: run(features=features)["output_0"]


def saved_model(folder):
    run = tf.saved_model.load(folder).signatures["serve"]
    return lambda features, lengths: next(
        iter(run(features=tf.constant(features), lengths=tf.constant(lengths)).values())
    ).numpy()


def runtimes_of(model, folder):
    """`{(runtime, weights): (bytes, function of features and lengths)}`."""
    found = {}
    for weights, quantize in QUANTIZATIONS.items():
        exported = Path(folder) / weights.replace(" ", "")
        serving.export(model, exported, formats=["onnx", "litert"], quantize=quantize)
        if quantize is None:
            size = sum(file.stat().st_size for file in exported.glob("variables/*"))
            found["TensorFlow", weights] = size, saved_model(exported)
        for runtime, load, file in (
            ("onnxruntime", onnx, exported / "whole.onnx"),
            ("ai-edge-litert", litert, exported / "whole.tflite"),
        ):
            found[runtime, weights] = file.stat().st_size, load(file)
    return found


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layers", type=int, default=2, help="recurrent layers")
    parser.add_argument("--units", type=int, default=128, help="units of each layer")
    parser.add_argument("--lengths", default="100,1000,6000", help="frames, commas")
    parser.add_argument("--repeats", type=int, default=5, help="turns of each runtime")
    arguments = parser.parse_args()
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    lengths = [int(length) for length in arguments.lengths.split(",")]
    random = np.random.default_rng(0)
    for bidirectional in (False, True):
        model = build_speech_model(
            DIMENSION,
            STATES,
            normalized=True,
            layers=arguments.layers,
            units=arguments.units,
            bidirectional=bidirectional,
        )
        with tempfile.TemporaryDirectory() as folder:
            runtimes = runtimes_of(model, folder)
            rows = {key: [*key, size // 1000] for key, (size, _) in runtimes.items()}
            for length in lengths:
                features = random.normal(size=(1, length, DIMENSION)).astype("float32")
                given = features, np.array([length], "int32")
                expected = np.asarray(model(dict(zip(("features", "lengths"), given, strict=True))))
                times = {key: [] for key in runtimes}
                for _ in range(arguments.repeats + 1):
                    for key, (_, run) in runtimes.items():
                        began = time.perf_counter()
                        run(*given)
                        times[key].append((time.perf_counter() - began) / length)
                for key, taken in times.items():  # The first turn warms up.
                    rows[key].append(1e6 * statistics.median(taken[1:]))
                    if length == lengths[-1]:
                        rows[key].append(np.abs(runtimes[key][1](*given) - expected).max())
        direction = "both directions" if bidirectional else "forwards"
        size = f"{arguments.layers} x {arguments.units}"
        print(f"\n{size}, {direction}, {model.count_params():,} weights")
        times = [f"µs a frame of {length}" for length in lengths]
        names = ["runtime", "weights", "kB", *times, "deviation"]
        print(tabulate(rows.values(), names, "github", floatfmt=".3g"))


if __name__ == "__main__":
    main()
