"""Time and memory of a training step and of inference, against Keras's layers and PyTorch's.

Each variant lives in a process of its own, which tells its peak memory, and the processes take
turns, so that ratios mean something on a machine whose speed wanders. A training step is forward,
backward and update (plain gradient descent) of a layer that returns sequences.

    python benchmarks/layers.py --shapes=20x20x200x200 --layers=LSTM --json=results.json
"""

import argparse
import importlib.util
import json
import multiprocessing
import os
import resource
import statistics
import time

SHAPES = "20x20x200x200,20x35x650x650,24x500x123x250,24x500x500x250"
SECONDS_OF_A_TURN = 0.05
GATES = {"SimpleRNN": 1, "GRU": 3, "LSTM": 4}
VARIANTS = (
    *("keras", "none", "sequence", "frame", "sequence-renorm", "frame-renorm", "naive", "torch"),
)
BOTH, RENORM = "-both", "-renorm"
DIRECTIONS = ("keras" + BOTH, "sequence" + BOTH)
EXPLANATION = {
    "keras": "keras.layers, no normalisation",
    "none": "this package, normalization=None",
    "sequence": 'this package, normalization="sequence"',
    "frame": 'this package, normalization="frame"',
    "sequence-renorm": "sequence with renorm=True",
    "frame-renorm": "frame with renorm=True",
    "naive": "keras.layers.BatchNormalization in a cell in keras.layers.RNN (LSTM only)",
    "torch": "torch.nn, no normalisation",
    "keras-both": "keras in keras.layers.Bidirectional",
    "sequence-both": "sequence in this package's Bidirectional",
}


def keras_functions(variant, layer_name, shape, jit_compile):
    """A training step and an inference call, both without arguments."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import keras
    import numpy as np
    import tensorflow as tf

    import keras_bnrnn

    class NaiveCell(keras.layers.LSTMCell):
        def build(self, input_shape):
            super().build(input_shape)
            self.normalization = keras.layers.BatchNormalization()
            self.normalization.build((None, 4 * self.units))

        def call(self, inputs, states, training=False):
            h, c = states
            z = self.normalization(keras.ops.matmul(inputs, self.kernel), training=training)
            z = z + keras.ops.matmul(h, self.recurrent_kernel) + self.bias
            i, f, g, o = keras.ops.split(z, 4, axis=-1)
            c = keras.ops.sigmoid(f) * c + keras.ops.sigmoid(i) * keras.ops.tanh(g)
            h = keras.ops.sigmoid(o) * keras.ops.tanh(c)
            return h, [h, c]

    batch, timesteps, features, units = shape
    both, variant = variant.endswith(BOTH), variant.removesuffix(BOTH)
    renorm, variant = variant.endswith(RENORM), variant.removesuffix(RENORM)
    if variant == "keras":
        layer = getattr(keras.layers, layer_name)(units, return_sequences=True)
    elif variant == "naive":
        layer = keras.layers.RNN(NaiveCell(units), return_sequences=True)
    else:
        layer = getattr(keras_bnrnn, "BatchNorm" + layer_name)(
            units,
            normalization=None if variant == "none" else variant,
            renorm=renorm,
            return_sequences=True,
        )
    if both:
        package = keras.layers if variant == "keras" else keras_bnrnn
        layer = package.Bidirectional(layer)
    random = np.random.default_rng(0)
    x = tf.constant(random.normal(size=(batch, timesteps, features)), tf.float32)
    d = tf.constant(random.normal(size=(batch, timesteps, (1 + both) * units)), tf.float32)
    layer.build(x.shape)
    inputs = tf.Variable(x)  # Its gradient is taken too, as in a stack of layers.

    @tf.function(jit_compile=jit_compile)
    def train():
        variables = [variable.value for variable in layer.trainable_variables]
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(layer(inputs.read_value(), training=True) * d)
        for variable, gradient in zip(
            [inputs, *variables], tape.gradient(loss, [inputs, *variables]), strict=True
        ):
            variable.assign_sub(1e-6 * gradient)
        return loss

    @tf.function(jit_compile=jit_compile)
    def infer():
        return tf.reduce_mean(layer(x, training=False))

    return lambda: train().numpy(), lambda: infer().numpy()


def torch_functions(layer_name, shape):
    import torch

    torch.set_num_threads(os.cpu_count())
    batch, timesteps, features, units = shape
    layer = {"SimpleRNN": torch.nn.RNN, "GRU": torch.nn.GRU, "LSTM": torch.nn.LSTM}[layer_name](
        features, units, batch_first=True
    )
    x = torch.randn(batch, timesteps, features, requires_grad=True)
    d = torch.randn(batch, timesteps, units)
    parameters = [x, *layer.parameters()]

    def train():
        loss = (layer(x)[0] * d).mean()
        for parameter in parameters:
            parameter.grad = None
        loss.backward()
        with torch.no_grad():
            for parameter in parameters:
                parameter -= 1e-6 * parameter.grad
        return loss.item()

    def infer():
        with torch.no_grad():
            return layer(x)[0].mean().item()

    return train, infer


def work(connection, variant, layer_name, shape, jit_compile):
    """A process: builds its variant, then times what it is asked for until told to stop."""
    if variant == "torch":
        train, infer = torch_functions(layer_name, shape)
    else:
        train, infer = keras_functions(variant, layer_name, shape, jit_compile)
    infer()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(2):
        train()
        infer()
    connection.send((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
    functions = {"train": train, "infer": infer}
    while task := connection.recv():
        # In training one step follows the other; after the others' turn threads sleep and caches
        # are cold.
        calls, awake = 0, time.perf_counter()
        while time.perf_counter() - awake < SECONDS_OF_A_TURN or not calls:
            functions[task]()
            calls += 1
        start = time.perf_counter()
        for _ in range(calls):
            functions[task]()
        connection.send((time.perf_counter() - start) / calls)


def matrix_product_peak(connection):
    """A process: the machine's rate of large single-precision products, in FLOP/s."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import tensorflow as tf

    a = tf.random.normal((3000, 3000))
    best = float("inf")
    for _ in range(6):
        start = time.perf_counter()
        (a @ a).numpy()
        best = min(best, time.perf_counter() - start)
    connection.send(2 * 3000**3 / best)


def start(function, *arguments):
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.Process(target=function, args=(theirs, *arguments), daemon=True)
    process.start()
    return process, ours


def measure(layer_name, shape, variants, repeats, jit_compile):
    """Median seconds and peak megabytes of each variant."""
    workers = {name: start(work, name, layer_name, shape, jit_compile) for name in variants}
    results = {
        name: {"train": [], "infer": [], "peak_megabytes": connection.recv()}
        for name, (_, connection) in workers.items()
    }
    for task in ("train", "infer"):
        for _ in range(repeats):
            for name, (_, connection) in workers.items():
                connection.send(task)
                results[name][task].append(connection.recv())
    for process, connection in workers.values():
        connection.send(None)
        process.join()
    for values in results.values():
        for task in ("train", "infer"):
            values[task] = statistics.median(values[task])
    return results


def table(layer_name, shape, results, peak):
    batch, timesteps, features, units = shape
    operations = 6 * batch * timesteps * GATES[layer_name] * units * (features + units)
    plain = results["keras"]["train"]
    plain_infer = results["keras"]["infer"]
    own = results.get("none", {}).get("train")
    torch = results.get("torch", {}).get("train")
    lines = [
        f"{layer_name} {batch} x {timesteps} x {features} x {units}",
        f"{'':15} {'training':>10} {'to keras':>9} {'to none':>8} {'to torch':>9} {'of peak':>8} "
        f"{'memory':>8} {'inference':>10} {'to keras':>9}",
    ]
    for name, values in results.items():
        train, infer = values["train"], values["infer"]
        lines.append(
            f"{name:15} {1e3 * train:7.1f} ms {train / plain:9.2f} "
            f"{train / own if own else float('nan'):8.2f} "
            f"{train / torch if torch else float('nan'):9.2f} {operations / train / peak:8.0%} "
            f"{values['peak_megabytes']:5.0f} MB {1e3 * infer:7.1f} ms {infer / plain_infer:9.2f}"
        )
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="variants: " + "; ".join(f"{k} = {v}" for k, v in EXPLANATION.items()),
    )
    parser.add_argument("--shapes", default=SHAPES, help="batch x time x features x units, commas")
    parser.add_argument("--layers", default="LSTM,GRU,SimpleRNN", help="which layers, commas")
    parser.add_argument("--variants", default=",".join(VARIANTS), help="keras is always measured")
    parser.add_argument("--repeats", type=int, default=15, help="timed repetitions of each variant")
    parser.add_argument("--jit_compile", action="store_true", help="compile with XLA")
    parser.add_argument("--json", help="file to write the figures into")
    arguments = parser.parse_args()

    multiprocessing.set_start_method("spawn")
    process, connection = start(matrix_product_peak)
    peak = connection.recv()
    process.join()
    print(f"Peak of single-precision matrix products: {peak / 1e9:.0f} GFLOP/s", flush=True)
    collected = []
    for layer_name in arguments.layers.split(","):
        for text in arguments.shapes.split(","):
            shape = tuple(int(size) for size in text.split("x"))
            variants = [
                name
                for name in (*VARIANTS, *DIRECTIONS)
                if name in ("keras", *arguments.variants.split(","))
                and (name != "naive" or layer_name == "LSTM")
                and (name != "torch" or importlib.util.find_spec("torch"))
            ]
            results = measure(layer_name, shape, variants, arguments.repeats, arguments.jit_compile)
            print("\n" + table(layer_name, shape, results, peak), flush=True)
            collected.append({"layer": layer_name, "shape": shape, "results": results})
    if arguments.json:
        with open(arguments.json, "w", encoding="utf-8") as file:
            json.dump(
                {
                    "peak_flops": peak,
                    "cores": os.cpu_count(),
                    "jit_compile": arguments.jit_compile,
                    "measurements": collected,
                },
                file,
                indent=1,
            )


if __name__ == "__main__":
    main()
