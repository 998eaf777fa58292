"""The one list of layers and options that every property test runs over, and what they share.

A `Case` is a layer in one of its modes. `CASES` holds every layer in every mode, in a small size
and with weights far from their initial values, so that a forgotten term shows. A new layer or
option is added here and is thereby tested for masks, serialization, numerics and the rest.

Every case is compared with the NumPy model at every change. Other properties are tested on the
cases in `REPRESENTATIVES`, or, where nothing but the way through a layer matters, in `ROUTES`; the
rest carry the mark `exhaustive` (`conftest.py` gives it).
"""

import dataclasses
import itertools
import random

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_bnrnn
import reference

FEATURES = 3
UNITS = 2
BATCH = 4
TIME = 5

KINDS = {
    "simple_rnn": ("SimpleRNN", {}),
    "lstm": ("LSTM", {}),
    "gru": ("GRU", {}),
    "gru_reset_before": ("GRU", {"reset_after": False}),
}
# Some of the corrections exceed each bound.
CLIPPING = {"rmin": 0.8, "rmax": 1.2, "dmax": 0.3}
# Modes are named after the normalisation of the inputs' path, and what is added to it.
ADDED = {
    "recurrent": {"normalize_recurrent": True},
    "cell": {"normalize_cell_state": True},
    "steps": {"max_timesteps": 3},
    "renorm": {"renorm": True},
    "clipped": {"renorm_clipping": CLIPPING},
}
MODES = (
    *("none", "sequence", "frame", "frame_steps", "none_recurrent", "sequence_recurrent"),
    *("frame_recurrent", "frame_recurrent_steps", "sequence_recurrent_steps"),
    *("sequence_renorm", "frame_renorm", "frame_recurrent_renorm_clipped"),
)
CELL_STATE_MODES = (
    *("none_cell", "sequence_cell", "frame_cell", "sequence_recurrent_cell"),
    "frame_recurrent_cell_steps",  # The configuration of Cooijmans et al. 2016.
    *("sequence_recurrent_cell_steps", "sequence_recurrent_cell_renorm"),
    "frame_recurrent_cell_steps_renorm_clipped",
)
OWN_ARGUMENTS = {
    *("normalization", "normalize_recurrent", "normalize_cell_state", "max_timesteps"),
    *("renorm", "renorm_clipping"),
}
# What changes the loop rather than the normalisation, on the modes that take different paths.
VARIATIONS = {
    "no_bias": {"use_bias": False},
    "backwards": {"go_backwards": True},
    "unroll": {"unroll": True},
    "zero_output": {"zero_output_for_mask": True},
    "relu": {"activation": "relu"},
}


@dataclasses.dataclass(frozen=True)
class Case:
    """One layer with one set of arguments.

    Attributes:
        name: how tests and tables call it, e.g. "lstm-sequence".
        kind: key of `KINDS`.
        mode: of `MODES` or `CELL_STATE_MODES`.
        kwargs: constructor arguments less `units`.
    """

    name: str
    kind: str
    mode: str
    kwargs: dict = dataclasses.field(hash=False)

    @property
    def namesake_name(self):
        return KINDS[self.kind][0]

    @property
    def layer_class(self):
        return getattr(keras_bnrnn, f"BatchNorm{self.namesake_name}")

    @property
    def cell_class(self):
        return getattr(keras_bnrnn, f"BatchNorm{self.namesake_name}Cell")

    @property
    def namesake_class(self):
        """The `keras.layers` class that the layer replaces."""
        return getattr(keras.layers, self.namesake_name)

    @property
    def namesake_kwargs(self):
        """The arguments that the `keras.layers` class takes too."""
        return {name: value for name, value in self.kwargs.items() if name not in OWN_ARGUMENTS}

    @property
    def normalized(self):
        """Whether the layer normalises anything at all."""
        return self.mode != "none"

    @property
    def foldable(self):
        """Whether `fold_batch_norm` makes a plain layer of it, rather than refusing."""
        return self.mode.removesuffix("_renorm") in ("none", "sequence", "frame")

    @property
    def cell_mode(self):
        """Whether a cell can do this: not what needs the sequence, nor what the loop decides."""
        loop = {"go_backwards", "unroll", "zero_output_for_mask"}
        return self.kwargs["normalization"] != "sequence" and not loop & set(self.kwargs)

    @property
    def options(self):
        kind = "gru" if self.kind.startswith("gru") else self.kind
        return reference.Options.of(kind, **self.kwargs)

    @property
    def state_count(self):
        return self.options.state_count

    def layer(self, units=UNITS, **overrides):
        """A new layer; float64 and returning everything unless told otherwise."""
        defaults = {"dtype": "float64", "return_sequences": True, "return_state": True}
        return self.layer_class(units, **{**defaults, **self.kwargs, **overrides})

    def built(self, weights, **overrides):
        """A layer with these weights."""
        layer = self.layer(**overrides)
        layer.build((None, None, FEATURES))
        set_weights(layer, weights)
        return layer

    @property
    def for_xla(self):
        """What a layer has to be told before XLA compiles it on a GPU."""
        return {} if self.namesake_name == "SimpleRNN" else {"use_cudnn": False}

    def weights(self, rng, features=FEATURES, units=UNITS):
        """Random weights by name, in the order of `get_weights()`."""
        return reference.random_weights(self.options, features, units, rng)

    def __str__(self):
        return self.name


def _arguments(mode):
    normalization, *added = mode.split("_")
    arguments = {"normalization": None if normalization == "none" else normalization}
    for name in added:
        arguments |= ADDED[name]
    return arguments


def _cases():
    for kind, (namesake, kwargs) in KINDS.items():
        modes = MODES + (CELL_STATE_MODES if namesake == "LSTM" else ())
        varied = {"sequence", "frame_recurrent"}
        if namesake == "LSTM":
            varied = {"sequence", "frame_recurrent_cell_steps"}
        for mode in modes:
            arguments = {**kwargs, **_arguments(mode)}
            yield Case(f"{kind}-{mode}", kind, mode, arguments)
            if mode in varied:
                for variation, extra in VARIATIONS.items():
                    if variation == "no_bias" or kind == "lstm":
                        name = f"{kind}-{mode}-{variation}"
                        yield Case(name, kind, mode, {**arguments, **extra})


CASES = tuple(_cases())
# Every layer in every mode, once.
MAIN_CASES = tuple(case for case in CASES if case.name.count("-") == 1)
# For what is slow (a process, a compilation): per layer the default and everything at once.
SLOW_CASES = tuple(
    case
    for case in MAIN_CASES
    if case.mode
    in {
        "sequence",
        "frame_recurrent_cell_steps" if case.kind == "lstm" else "frame_recurrent_steps",
    }
)


# Every mode and every variation once, over all layers; each layer's default.
REPRESENTATIVES = {
    *("simple_rnn-none", "simple_rnn-sequence", "simple_rnn-frame_steps"),
    *("simple_rnn-frame_recurrent", "gru-sequence-no_bias", "gru-frame", "gru-none_recurrent"),
    *("gru-frame_recurrent_steps", "gru_reset_before-sequence"),
    *("gru_reset_before-sequence_recurrent", "lstm-sequence", "lstm-none_cell"),
    *("lstm-sequence_cell", "lstm-frame_cell", "lstm-sequence_recurrent_cell"),
    *("lstm-sequence-backwards", "lstm-sequence-zero_output", "lstm-sequence-relu"),
    *("lstm-frame_recurrent_cell_steps", "lstm-frame_recurrent_cell_steps-unroll"),
    *("gru-sequence_renorm", "lstm-frame_renorm", "lstm-sequence_recurrent_cell_renorm"),
    *("gru_reset_before-frame_recurrent_renorm_clipped", "gru-sequence_recurrent_steps"),
    *("lstm-sequence_recurrent_cell_steps", "lstm-frame_recurrent_cell_steps-backwards"),
    "lstm-frame_recurrent_cell_steps_renorm_clipped",
}
# Each way through a layer once: both loops, and all ways to take moments.
ROUTES = {
    *("simple_rnn-none", "lstm-sequence", "gru-frame", "gru_reset_before-frame_recurrent_steps"),
    "lstm-frame_recurrent_cell_steps",
}


def parameters(combinations, kept):
    """Parameters of a test; those of `combinations` that are not in `kept` are `exhaustive`."""
    return [
        pytest.param(*one, marks=() if one in kept else pytest.mark.exhaustive)
        for one in combinations
    ]


def covering_pairs(*factors):
    """Parameters: the product of `factors`, kept: enough for any two values of two to meet."""
    combinations = list(itertools.product(*(range(len(factor)) for factor in factors)))
    random.Random(0).shuffle(combinations)

    def pairs(combination):
        return set(itertools.combinations(enumerate(combination), 2))

    open_pairs, kept = set().union(*map(pairs, combinations)), []
    while open_pairs:
        kept.append(max(combinations, key=lambda one: len(pairs(one) & open_pairs)))
        open_pairs -= pairs(kept[-1])
    kept = [tuple(factor[i] for factor, i in zip(factors, one, strict=True)) for one in kept]
    return parameters(itertools.product(*factors), kept)


def find(name):
    """The case of that name."""
    return next(case for case in CASES if case.name == name)


def masks(batch=BATCH, time=TIME):
    """Masks by name, [batch, time]; None for no mask."""
    lengths = np.array([time, time - 2, 0, 2] * batch)[:batch, None]  # 0: an all-masked row
    right = np.arange(time) < lengths
    rng = np.random.default_rng(5)
    holey = rng.random((batch, time)) < 0.6
    holey[:, 0] = [True] + [False] * (batch - 1)  # a frame with a single live row
    holey[0, 1] = False  # a hole right after it
    return {"no_mask": None, "right": right, "left": right[:, ::-1], "holey": holey}


def random_states(case, rng, batch=BATCH, units=UNITS):
    """Initial states [batch, units] within the range of true ones."""
    return [rng.uniform(-0.9, 0.9, (batch, units)) for _ in range(case.state_count)]


def set_weights(layer, weights):
    """Gives a built layer the weights of `Case.weights`."""
    layer.set_weights(list(weights.values()))


def statistics(case, layer):
    """A layer's population statistics by name."""
    names = case.options.weight_shapes(FEATURES, UNITS)
    values = dict(zip(names, layer.get_weights(), strict=True))
    return {name: value for name, value in values.items() if name.endswith(reference.STATISTICS)}


def assert_all_close(found, expected, rtol=0.0, atol=0.0):
    """Each of several arrays is like its counterpart, or the same."""
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=rtol, atol=atol)


def assert_as_expected(case, layer, found, expected, atol=1e-10):
    """Outputs, states and the statistics afterwards are those of the NumPy model."""
    outputs, *states = found
    np.testing.assert_allclose(outputs, expected.outputs, rtol=0, atol=atol)
    assert_all_close(states, expected.states, atol=atol)
    assert_statistics(case, layer, expected.statistics, atol)


def assert_statistics(case, layer, expected, atol=1e-10):
    for name, value in statistics(case, layer).items():
        np.testing.assert_allclose(value, expected[name], rtol=0, atol=atol, err_msg=name)


def call_and_differentiate(layer, x, mask=None, initial_state=None, training=False, seed=9):
    """Calls a layer that returns sequences and states, and differentiates a random projection.

    Returns:
        Outputs, states, and the gradients of `projection(outputs, states)` with respect to x, the
        initial states and the trainable weights, all as NumPy arrays.
    """
    x = tf.constant(x, layer.compute_dtype)
    states = [] if initial_state is None else [tf.constant(s, x.dtype) for s in initial_state]
    with tf.GradientTape() as tape:
        tape.watch([x, *states])
        outputs, *final = layer(x, mask=mask, initial_state=states or None, training=training)
        loss = projection(outputs, final, seed, tf)
    variables = [weight.value for weight in layer.trainable_weights]
    zero = tf.UnconnectedGradients.ZERO
    gradients = tape.gradient(loss, [x, *states, *variables], unconnected_gradients=zero)
    gradients = [np.asarray(g) for g in gradients]
    by_name = {"x": gradients[0]}
    by_name |= {f"state_{i}": g for i, g in enumerate(gradients[1 : 1 + len(states)])}
    names = [weight.name for weight in layer.trainable_weights]
    by_name |= dict(zip(names, gradients[1 + len(states) :], strict=True))
    return np.asarray(outputs), [np.asarray(s) for s in final], by_name


def projection(outputs, states, seed=9, library=np):
    """A scalar that every output and state enters with a weight of its own."""
    rng = np.random.default_rng(seed)
    total = 0.0
    for tensor in [outputs, *states]:
        weight = rng.normal(size=tensor.shape)
        if library is np:
            total = total + (weight * tensor).sum()
        else:
            total = total + tf.reduce_sum(tf.cast(weight, tensor.dtype) * tensor)
    return total


def _sequential(case):
    return keras.Sequential(
        [keras.Input((None, FEATURES)), keras.layers.Masking(0.0), _plain_output(case)]
    )


def _functional(case):
    """Hands the first layer's states to the second."""
    inputs = keras.Input((None, FEATURES))
    outputs, *states = case.layer(UNITS, dtype=None)(inputs)
    outputs = case.layer(UNITS, dtype=None, return_state=False)(outputs, initial_state=states)
    return keras.Model(inputs, keras.layers.Dense(2)(outputs))


def _bidirectional(case):
    return keras.Sequential(
        [
            keras.Input((None, FEATURES)),
            keras.layers.Masking(0.0),
            keras_bnrnn.Bidirectional(_plain_output(case)),
        ]
    )


def _keras_bidirectional(case):
    return keras.Sequential(
        [keras.Input((None, FEATURES)), keras.layers.Bidirectional(_plain_output(case))]
    )


def _stacked_cells(case):
    kwargs = dict(case.kwargs)
    if kwargs["normalization"] == "sequence":
        kwargs["normalization"] = "frame"
    cells = [case.cell_class(UNITS, **kwargs) for _ in range(2)]
    stack = keras.layers.RNN(keras.layers.StackedRNNCells(cells), return_sequences=True)
    return keras.Sequential([keras.Input((None, FEATURES)), stack])


def _time_distributed(case):
    inner = case.layer(dtype=None, return_state=False, return_sequences=False)
    return keras.Sequential(
        [
            keras.Input((TIME, FEATURES)),
            keras.layers.Reshape((TIME, 1, FEATURES)),
            keras.layers.TimeDistributed(inner),
        ]
    )


class Subclassed(keras.Model):
    """A model that makes its layers in its constructor, from the name of a case."""

    def __init__(self, case, **kwargs):
        super().__init__(**kwargs)
        self.case = case
        self.recurrent = _plain_output(find(case))
        self.dense = keras.layers.Dense(2)

    def call(self, inputs, training=None):
        return self.dense(self.recurrent(inputs, training=training))

    def get_config(self):
        return {**super().get_config(), "case": self.case}


def _plain_output(case):
    return case.layer(dtype=None, return_state=False)


# Models that hold a layer or cell in each way that Keras knows, by name; [batch, time, FEATURES].
CONTAINERS = {
    "sequential": _sequential,
    "functional": _functional,
    "subclassed": lambda case: Subclassed(case.name),
    "bidirectional": _bidirectional,
    "keras_bidirectional": _keras_bidirectional,
    "stacked_cells": _stacked_cells,
    "time_distributed": _time_distributed,
}


def model_of(container, case, seed=0):
    """A built model with weights, statistics included, far from their initial values."""
    rng = np.random.default_rng(seed)
    keras.utils.set_random_seed(seed)
    model = CONTAINERS[container](case)
    model(np.zeros((2, TIME, FEATURES), "float32"))
    model.set_weights([w + rng.uniform(0.1, 0.4, w.shape) for w in model.get_weights()])
    return model
