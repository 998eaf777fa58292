"""Exported models in each runtime: size, time of a frame by length, deviation, errors.

One core, one utterance; the runtimes take turns. Acoustic models have random weights, 123 features
and 309 states, as those of spoken digits. With a run of train_speech.py, train_ctc.py or
train_ptb.py instead: its errors of frames or of words over the dev split, or its perplexity over
the beginning of the valid text.

    python benchmarks/runtimes.py --lengths=100,1000,6000
    python benchmarks/runtimes.py --run_dir=runs/bn --data_dir=corpus
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

import keras  # noqa: E402
import numpy as np  # noqa: E402
import onnxruntime  # noqa: E402
import tensorflow as tf  # noqa: E402
from ai_edge_litert.interpreter import Interpreter  # noqa: E402
from tabulate import tabulate  # noqa: E402

from keras_bnrnn import serving  # noqa: E402
from keras_bnrnn.data import speech_dataset  # noqa: E402
from keras_bnrnn.data.speech.corpus import load_corpus  # noqa: E402
from keras_bnrnn.fit.tables import best_model, read_results  # noqa: E402
from keras_bnrnn.metrics import WordErrorRate  # noqa: E402
from keras_bnrnn.serving.runtimes import FILES  # noqa: E402
from recipes.speech_model import build_speech_model  # noqa: E402
from recipes.speech_task import SpeechTask  # noqa: E402
from recipes.tasks import task_of  # noqa: E402

DIMENSION, STATES = 123, 309
TOKENS, CHUNK = 5_000, 100
QUANTIZATIONS = {"float32": None, "float16": "float16", "8 bits": "dynamic"}


def onnx(path):
    """The file as a function from inputs by name to the list of outputs; and below likewise."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options)
    names = [one.name for one in session.get_inputs()]
    return lambda given: session.run(None, {name: given[name] for name in names})


def litert(path):
    run = Interpreter(str(path), num_threads=1).get_signature_runner()
    names = list(run.get_input_details())
    outputs = [f"output_{k}" for k in range(len(run.get_output_details()))]

    def call(given):
        found = run(**{name: given[name] for name in names})
        return [found[name] for name in outputs]

    return call


def saved_model(folder, name):
    run = tf.saved_model.load(folder).signatures[name]
    names = list(run.structured_input_signature[1])
    output, *_ = [one for one in run.structured_outputs if one not in names]

    def call(given):
        found = run(**{name: tf.constant(given[name]) for name in names})
        states = [name for name in given if name in found]
        return [found[name].numpy() for name in (output, *states)]

    return call


def runtimes_of(model, folder, signature="serve", **described):
    """`{(runtime, weights): (bytes, function of inputs by name)}`."""
    found = {}
    file = FILES[signature]
    for weights, quantize in QUANTIZATIONS.items():
        exported = Path(folder) / weights.replace(" ", "")
        serving.export(model, exported, formats=["onnx", "litert"], quantize=quantize, **described)
        if quantize is None:
            files = [exported / "saved_model.pb", *exported.glob("variables/*")]
            size = sum(file.stat().st_size for file in files)
            found["TensorFlow", weights] = size, saved_model(exported, signature)
        for runtime, load, path in (
            ("onnxruntime", onnx, exported / f"{file}.onnx"),
            ("ai-edge-litert", litert, exported / f"{file}.tflite"),
        ):
            found[runtime, weights] = path.stat().st_size, load(path)
    return found


def frame_error_rate(call, corpus):
    """Per cent, over the dev split, utterance by utterance."""
    wrong = frames = 0
    for inputs, labels, _ in speech_dataset(corpus, "dev", 1, bucket=False).as_numpy_iterator():
        wrong += np.sum(np.argmax(call(inputs)[0], -1) != labels)
        frames += labels.size
    return 100 * wrong / frames


def word_error_rate(call, corpus):
    """Likewise of a model that writes text, of the best character of each frame."""
    rate = WordErrorRate(corpus.alphabet)
    for inputs, labels, _ in speech_dataset(corpus, "dev", 1, bucket=False).as_numpy_iterator():
        rate.update_state(labels, call(inputs)[0])
    return 100 * float(rate.result())


def perplexity(call, text, states):
    """Over the first `TOKENS` of the valid text, in chunks."""
    tokens = np.concatenate([[text.eos_id], text.valid[:TOKENS]]).astype("int32")
    total = 0.0
    for first in range(0, len(tokens) - 1, CHUNK):
        chunk = tokens[first : first + CHUNK + 1]
        scores, *after = call({"tokens": chunk[np.newaxis, :-1], **states})
        total -= scores[0, np.arange(len(chunk) - 1), chunk[1:]].sum()
        states = dict(zip(states, after, strict=True))
    return np.exp(total / (len(tokens) - 1))


def print_errors(run_dir, data_dir):
    """The errors of a run's best model in each runtime."""
    results = read_results(run_dir)
    kind = task_of(results)
    model = keras.saving.load_model(best_model(run_dir, results), compile=False)
    speech = issubclass(kind, SpeechTask)
    with tempfile.TemporaryDirectory() as folder:
        runtimes = runtimes_of(
            model, folder, "serve" if speech else "step", **kind.served(run_dir, results)
        )
        if speech:
            corpus = load_corpus(data_dir)
            rate = frame_error_rate if corpus.alphabet is None else word_error_rate
            name = f"{rate.__name__.replace('_', ' ')}, %"

            def error(call):
                return rate(call, corpus)
        else:
            text = kind(results["config"], data_dir).corpus
            # In the order of the inputs, in which new states come out.
            session = onnxruntime.InferenceSession(Path(folder) / "float32/step.onnx")
            states = {
                one.name: np.zeros([1, one.shape[1]], "float32")
                for one in session.get_inputs()
                if one.name != "tokens"
            }
            name = "perplexity"

            def error(call):
                return perplexity(call, text, states)

        rows = [[*key, size // 1000, error(call)] for key, (size, call) in runtimes.items()]
    print(tabulate(rows, ["runtime", "weights", "kB", name], "github", floatfmt=".2f"))


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layers", type=int, default=2, help="recurrent layers")
    parser.add_argument("--units", type=int, default=128, help="units of each layer")
    parser.add_argument("--lengths", default="100,1000,6000", help="frames, commas")
    parser.add_argument("--repeats", type=int, default=5, help="turns of each runtime")
    parser.add_argument("--run_dir", type=Path, help="a run, whose errors are to be counted")
    parser.add_argument("--data_dir", help="what it was trained on")
    arguments = parser.parse_args()
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    if arguments.run_dir:
        print_errors(arguments.run_dir, arguments.data_dir)
        return
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
                given = {"features": features, "lengths": np.array([length], "int32")}
                expected = np.asarray(model(given))
                times = {key: [] for key in runtimes}
                for _ in range(arguments.repeats + 1):
                    for key, (_, run) in runtimes.items():
                        began = time.perf_counter()
                        run(given)
                        times[key].append((time.perf_counter() - began) / length)
                for key, taken in times.items():  # The first turn warms up.
                    rows[key].append(1e6 * statistics.median(taken[1:]))
                    if length == lengths[-1]:
                        rows[key].append(np.abs(runtimes[key][1](given)[0] - expected).max())
        direction = "both directions" if bidirectional else "forwards"
        size = f"{arguments.layers} x {arguments.units}"
        print(f"\n{size}, {direction}, {model.count_params():,} weights")
        times = [f"µs a frame of {length}" for length in lengths]
        names = ["runtime", "weights", "kB", *times, "deviation"]
        print(tabulate(rows.values(), names, "github", floatfmt=".3g"))


if __name__ == "__main__":
    main()
