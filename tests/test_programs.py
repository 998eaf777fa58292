"""Whole programs, drawn at random, against the NumPy model: outputs, statistics and gradients.

A program calls a few blocks, each as often as it likes, on its inputs or on what it has computed:
layers, `Bidirectional`, `TimeDistributed`, models that share layers with it; all rows together or
in two parts. It runs eagerly, as a `tf.function`, under XLA or on two replicas, in some precision,
and is folded, saved or exported afterwards. A few are fixed; `make test-all` draws many.
"""

import contextlib
import copy
import dataclasses

import hypothesis
import hypothesis.strategies as st
import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_bnrnn
import reference
from test_properties import NAMESAKES, layers

BATCH, TIME, WIDTH, STEPS = 8, 4, 2, 2
FORMS = ("eager", "function", "xla", "mirrored")
# What values may deviate by, relative to the largest of them.
TOLERANCES = {"float64": 1e-7, "float32": 2e-3, "mixed_bfloat16": 0.2, "mixed_float16": 0.05}


@st.composite
def blocks(draw, dtype):
    kind, kwargs = draw(layers())
    kwargs |= {"unroll": draw(st.booleans()), "zero_output_for_mask": False}
    if dtype != "float64":
        # So that rounding is not amplified to what it is to be told from.
        kwargs |= {"activation": "tanh", "epsilon": 1e-2 if dtype == "float32" else 0.1}
    wrapper = draw(st.sampled_from(["layer", "bidirectional", "distributed"]))
    if wrapper == "bidirectional":
        kwargs["go_backwards"] = False
    frozen = draw(st.sampled_from([False, False, True]))
    return {"wrapper": wrapper, "kind": kind, "kwargs": kwargs, "frozen": frozen}


@st.composite
def programs(draw, form):
    """A program as JSON values, of which its `get_config` is made."""
    dtype = draw(st.sampled_from(list(TOLERANCES)))
    pool = draw(st.lists(blocks(dtype), min_size=1, max_size=2))
    synchronized = form == "mirrored" and draw(st.booleans())
    for block in pool:
        kwargs = block["kwargs"]
        if kwargs["normalize_recurrent"] or kwargs.get("normalize_cell_state"):
            synchronized = False
    for block in pool:
        block["kwargs"]["synchronized"] = synchronized
    stateful = form != "mirrored" and draw(st.booleans())
    if draw(st.booleans()):
        chain = draw(st.lists(st.integers(0, len(pool) - 1), min_size=1, max_size=2))
        pool.append({"wrapper": "nested", "chain": chain})
    numbers = [*range(len(pool)), *draw(st.lists(st.integers(0, len(pool) - 1), max_size=1))]
    calls = []
    for done, number in enumerate(numbers):
        whole = stateful or synchronized or pool[number]["wrapper"] != "layer"
        parts = draw(st.sampled_from([1] if whole else [1, 2]))
        calls.append((number, draw(st.integers(0, done)), parts))
    return {
        "dtype": dtype,
        "pool": pool,
        "calls": calls,
        "stateful": stateful,
        "masked": draw(st.booleans()),
        "training": draw(st.sampled_from([True, True, False])),
        "then": draw(st.sampled_from(["fold"] if stateful else ["fold", "save", "export"])),
    }


@keras.saving.register_keras_serializable("tests")
class Program(keras.Model):
    """The program in Keras."""

    def __init__(self, program, **kwargs):
        super().__init__(**kwargs)
        self.program, self.blocks = program, []
        for block in program["pool"]:
            self.blocks.append(self._made(block))

    def _made(self, block):
        if block["wrapper"] == "nested":
            shapes = (BATCH, TIME) if self.program["stateful"] else (None, TIME)
            x = keras.Input(batch_shape=(*shapes, WIDTH), dtype=self.compute_dtype)
            mask = keras.Input(batch_shape=shapes, dtype="bool")
            y = x
            for number in block["chain"]:
                y = self._call(number, y, mask)
            return keras.Model([x, mask], y, dtype=self.dtype_policy)
        options = {"dtype": self.dtype_policy, "trainable": not block["frozen"]}
        layer = getattr(keras_bnrnn, f"BatchNorm{NAMESAKES[block['kind']]}")(
            WIDTH,
            return_sequences=True,
            stateful=self.program["stateful"],
            **block["kwargs"],
            **options,
        )
        if block["wrapper"] == "bidirectional":
            return keras_bnrnn.Bidirectional(layer, merge_mode="sum", **options)
        if block["wrapper"] == "distributed":
            return keras.layers.TimeDistributed(layer, **options)
        return layer

    def _call(self, number, x, mask, **kwargs):
        wrapper, block = self.program["pool"][number]["wrapper"], self.blocks[number]
        if wrapper == "nested":
            return block([x, mask], **kwargs)
        mask = mask if self.program["masked"] else None
        if wrapper != "distributed":
            return block(x, mask=mask, **kwargs)
        apart = (-1, STEPS, TIME // STEPS)
        if mask is not None:
            mask = keras.ops.reshape(mask, apart)
        y = block(keras.ops.reshape(x, (*apart, WIDTH)), mask=mask, **kwargs)
        return keras.ops.reshape(y, (-1, TIME, WIDTH))

    def call(self, inputs, training=None):
        x, mask = inputs
        values = [x]
        for number, taken, parts in self.program["calls"]:
            done = [
                self._call(number, part, of_it, training=training)
                for part, of_it in zip(
                    tf.split(values[taken], parts), tf.split(mask, parts), strict=True
                )
            ]
            values.append(tf.concat(done, axis=0))
        return tf.concat(values[1:], axis=-1)

    def get_config(self):
        return {**super().get_config(), "program": self.program}

    def leaves(self):
        """The layers, in the order of those of `expected_leaves`."""
        found = []
        for block in self.blocks:
            if isinstance(block, keras.layers.Bidirectional):
                found += [block.forward_layer, block.backward_layer]
            elif isinstance(block, keras.layers.TimeDistributed):
                found.append(block.layer)
            elif not isinstance(block, keras.Model):
                found.append(block)
        return found


@dataclasses.dataclass
class Leaf:
    """A layer in NumPy, whose statistics and states move."""

    options: reference.Options
    weights: dict
    frozen: bool
    stateful: bool
    states: list | None = None

    def __call__(self, x, mask, training):
        training = training and not self.frozen
        found = reference.layer(self.options, self.weights, x, mask, self.states, training)
        self.weights = self.weights | found.statistics
        if self.stateful:
            self.states = [state.real for state in found.states]
        return found.outputs


def expected_leaves(program, rng):
    """For each block its leaves, with random weights; none for nested models."""
    found = []
    for block in program["pool"]:
        count = {"bidirectional": 2, "nested": 0}.get(block["wrapper"], 1)
        found.append([])
        for backwards in [False, True][:count]:
            kwargs = dict(block["kwargs"])
            if count == 2:
                kwargs |= {"go_backwards": backwards, "zero_output_for_mask": True}
            options = reference.Options.of(block["kind"], **kwargs)
            weights = reference.random_weights(options, WIDTH, WIDTH, rng)
            leaf = Leaf(options, weights, block["frozen"], program["stateful"])
            found[-1].append(leaf)
    return found


def expected_outputs(program, leaves, x, mask, training):
    """The program in NumPy; moves the statistics and states of `leaves`."""
    mask = mask if program["masked"] else np.ones_like(mask)

    def call(number, x, mask):
        block = program["pool"][number]
        if block["wrapper"] == "nested":
            for inner in block["chain"]:
                x = call(inner, x, mask)
            return x
        if block["wrapper"] == "bidirectional":
            forward, backward = leaves[number]
            return forward(x, mask, training) + backward(x, mask, training)[:, ::-1]
        (leaf,) = leaves[number]
        if block["wrapper"] == "layer":
            return leaf(x, mask, training)
        parts = zip(np.split(x, STEPS, axis=1), np.split(mask, STEPS, axis=1), strict=True)
        return np.concatenate([leaf(part, of_it, training) for part, of_it in parts], axis=1)

    values = [x]
    for number, taken, parts in program["calls"]:
        rows = zip(np.split(values[taken], parts), np.split(mask, parts), strict=True)
        values.append(np.concatenate([call(number, part, of_it) for part, of_it in rows]))
    return np.concatenate(values[1:], axis=-1)


def _flat(leaves):
    return [leaf for of_block in leaves for leaf in of_block]


def _derivatives(program, leaves, x, mask, weights_of_loss, directions):
    """Of the loss in each direction, by complex steps: for x, and by (leaf, weight)."""

    def derivative(where):
        moved, moved_x = copy.deepcopy(leaves), x
        if where == "x":
            moved_x = x + 1e-30j * directions[where]
        else:
            leaf, name = where
            leaf = _flat(moved)[leaf]
            leaf.weights[name] = leaf.weights[name] + 1e-30j * directions[where]
        outputs = expected_outputs(program, moved, moved_x, mask, program["training"])
        return (weights_of_loss * outputs).sum().imag / 1e-30

    return {where: derivative(where) for where in directions}


def _close(found, expected, tolerance, what):
    scale = max(1.0, np.abs(expected).max(initial=0.0))
    found = np.asarray(found, "float64")
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * scale, err_msg=what)


def _runner(form, model, strategy):
    """A function of arrays that runs the model and differentiates it, on each replica.

    Returns, a list over replicas each: outputs, and the gradients with respect to x and to the
    weights.
    """
    program = model.program
    variables = [weight.value for weight in model.trainable_weights]

    def step(x, mask, weights_of_loss):
        with tf.GradientTape() as tape:
            tape.watch(x)
            outputs = model([x, mask], training=program["training"])
            loss = tf.reduce_sum(tf.cast(outputs, weights_of_loss.dtype) * weights_of_loss)
        zero = tf.UnconnectedGradients.ZERO
        return outputs, tape.gradient(loss, [x, *variables], unconnected_gradients=zero)

    if form == "mirrored":
        run = tf.function(lambda *arrays: strategy.run(step, arrays))

        def distributed(array):
            return strategy.experimental_distribute_values_from_function(
                lambda context: tf.split(array, 2)[context.replica_id_in_sync_group]
            )

        def call(*arrays):
            outputs, gradients = run(*map(distributed, arrays))
            local = strategy.experimental_local_results
            return local(outputs), list(zip(*map(local, gradients), strict=True))

        return call
    run = step if form == "eager" else tf.function(step, jit_compile=form == "xla")

    def call(*arrays):
        outputs, gradients = run(*arrays)
        return [outputs], [gradients]

    return call


def _program(pool, calls, then, stateful=False):
    pool = [
        {"wrapper": wrapper, "kind": kind, "kwargs": kwargs, "frozen": False}
        for wrapper, kind, kwargs in pool
    ]
    pool.append({"wrapper": "nested", "chain": [0]})
    given = {"dtype": "float64", "masked": True, "training": True}
    return {**given, "pool": pool, "calls": calls, "then": then, "stateful": stateful}


FEW = {
    "function": _program(
        [
            ("layer", "gru", {"normalization": "frame", "renorm": True}),
            ("distributed", "simple_rnn", {"normalization": "sequence"}),
        ],
        [(0, 0, 1), (1, 1, 1), (2, 2, 1)],
        "fold",
        stateful=True,
    ),
    "xla": _program(
        [("bidirectional", "lstm", {"normalization": "sequence"})], [(0, 0, 1), (1, 1, 1)], "export"
    ),
    "mirrored": _program(
        [("layer", "lstm", {"normalization": "sequence"})], [(0, 0, 2), (1, 1, 1)], "save"
    ),
}


@pytest.mark.parametrize(
    "form",
    [form if form == "function" else pytest.param(form, marks=pytest.mark.slow) for form in FEW],
)
def test_a_few_programs_equal_the_numpy_model(form, strategy, tmp_path):
    check_program(FEW[form], 0, form, strategy, tmp_path)


@pytest.mark.exhaustive
@pytest.mark.parametrize("form", FORMS)
def test_programs_equal_the_numpy_model(form, strategy, tmp_path):
    @hypothesis.settings(max_examples=hypothesis.settings.default.max_examples // 8)
    @hypothesis.given(programs(form), st.integers(0, 2**32 - 1))
    def check(program, seed):
        check_program(program, seed, form, strategy, tmp_path)

    check()


def check_program(program, seed, form, strategy, folder):
    rng = np.random.default_rng(seed)
    tolerance = TOLERANCES[program["dtype"]]
    leaves = expected_leaves(program, rng)
    with strategy.scope() if form == "mirrored" else contextlib.nullcontext():
        model = Program(program, dtype=program["dtype"])
        rows = BATCH // 2 if form == "mirrored" else BATCH
        model([np.zeros((rows, TIME, WIDTH)), np.ones((rows, TIME), bool)])
        for layer, leaf in zip(model.leaves(), _flat(leaves), strict=True):
            layer.set_weights(list(leaf.weights.values()))
            if program["stateful"]:
                layer.reset_state()
    run = _runner(form, model, strategy)
    synchronized = any(block.get("kwargs", {}).get("synchronized") for block in program["pool"])
    apart = form == "mirrored" and not synchronized
    replicas = [copy.deepcopy(leaves) for _ in range(1 + apart)]
    dtype = "float64" if program["dtype"] == "float64" else "float32"
    for _ in range(2):
        x = rng.normal(rng.normal(), 1.0, (BATCH, TIME, WIDTH))
        x = np.asarray(tf.cast(x, model.compute_dtype), "float64")
        mask = rng.random((BATCH, TIME)) < 0.7
        weights_of_loss = rng.normal(size=(BATCH, TIME, WIDTH * len(program["calls"])))
        weights_of_loss = weights_of_loss.astype(dtype).astype("float64")
        before = copy.deepcopy(replicas)
        outputs, gradients = run(
            tf.constant(x, dtype), tf.constant(mask), tf.constant(weights_of_loss, dtype)
        )
        expected = [
            expected_outputs(program, *arguments, program["training"])
            for arguments in zip(
                replicas, np.split(x, 1 + apart), np.split(mask, 1 + apart), strict=True
            )
        ]
        _close(np.concatenate(outputs), np.concatenate(expected), tolerance, "outputs")

    # Statistics: a replica's own are averaged when they are read.
    last = _flat(replicas[0])
    for leaf, *others in zip(*map(_flat, replicas), strict=True):
        for name in leaf.options.statistics():
            leaf.weights[name] = np.mean([one.weights[name] for one in (leaf, *others)], axis=0)
    for number, (layer, leaf) in enumerate(zip(model.leaves(), last, strict=True)):
        for name, value in zip(leaf.weights, layer.get_weights(), strict=True):
            _close(value, leaf.weights[name], tolerance, f"{name} of layer {number}")

    # Gradients of the last call, each in a random direction.
    found = {"x": np.concatenate([one[0] for one in gradients])}
    variables = {id(weight): i for i, weight in enumerate(model.trainable_weights, start=1)}
    for number, (layer, leaf) in enumerate(zip(model.leaves(), last, strict=True)):
        for name, weight in zip(leaf.weights, layer.weights, strict=True):
            if id(weight) in variables:
                every = [np.asarray(one[variables[id(weight)]], "float64") for one in gradients]
                found[number, name] = sum(every)
    assert len(found) == 1 + len(variables)
    directions = {where: rng.normal(size=value.shape) for where, value in found.items()}
    parts = [
        _derivatives(
            program,
            *arguments,
            directions | {"x": direction},
        )
        for *arguments, direction in zip(
            before,
            *(np.split(array, 1 + apart) for array in (x, mask, weights_of_loss, directions["x"])),
            strict=True,
        )
    ]
    for where, gradient in found.items():
        products = np.asarray(gradient, "float64") * directions[where]
        expected = sum(part[where] for part in parts)
        scale = max(1.0, np.abs(products).sum())
        _close(products.sum() / scale, expected / scale, tolerance, f"gradient of {where}")

    # What it is made into computes the same.
    expected = expected_outputs(program, replicas[0], x, mask, training=False)
    inputs = [tf.constant(x, dtype), tf.constant(mask)]
    if program["then"] == "fold":
        made = keras_bnrnn.fold_batch_norm(model, strict=False)(inputs)
    elif program["then"] == "save":
        model.save(folder / "it.keras")
        made = keras.saving.load_model(folder / "it.keras")(inputs)
    else:
        # Keras gives all inputs of a subclassed model one dtype.
        specs = [tf.TensorSpec((None, *one.shape[1:]), one.dtype) for one in inputs]
        model.export(folder / "it", verbose=False, input_signature=[specs])
        loaded = tf.saved_model.load(folder / "it")
        made = loaded.serve(inputs)
    _close(made, expected, tolerance, program["then"])
