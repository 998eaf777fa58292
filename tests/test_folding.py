"""`fold_batch_norm`: the same function with plain `keras.layers` only."""

import collections
import functools
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

import conformance
import keras_bnrnn
import reference
from conformance import (
    BATCH,
    CASES,
    CONTAINERS,
    FEATURES,
    MAIN_CASES,
    TIME,
    UNITS,
    assert_all_close,
)
from keras_bnrnn.folding import FoldingError
from keras_bnrnn.losses import FrameMeanCrossEntropy

FOLDABLE = [case for case in CASES if case.foldable]
UNFOLDABLE = [case for case in MAIN_CASES if not case.foldable]


def _inputs(seed=0):
    """Batches with padding of zeros, which `Masking` takes out."""
    x = np.random.default_rng(seed).normal(size=(BATCH, TIME, FEATURES)).astype("float32")
    x[1, 3:] = 0.0
    return x


def _holds_ours(model):
    return [
        layer.name
        for layer in model._flatten_layers()
        if type(layer).__module__.startswith("keras_bnrnn")
    ]


@pytest.mark.parametrize("case", FOLDABLE, ids=str)
def test_a_folded_layer_is_its_namesake(case):
    """In float64, with masks, states and `return_state`."""
    rng = np.random.default_rng(0)
    weights = case.weights(rng)
    layer = case.built(weights)
    folded = keras_bnrnn.fold_batch_norm(layer)
    assert type(folded) is case.namesake_class
    x = rng.normal(size=(BATCH, TIME, FEATURES))
    states = conformance.random_states(case, rng)
    for mask in conformance.masks().values():
        expected = reference.layer(case.options, weights, x, mask, states)
        outputs, *final = folded(x, mask=mask, initial_state=states)
        np.testing.assert_allclose(outputs, expected.outputs, rtol=0, atol=1e-11)
        assert_all_close(final, expected.states, atol=1e-11)
    for found, value in zip(layer.get_weights(), weights.values(), strict=True):
        np.testing.assert_array_equal(found, value, err_msg="the original is untouched")


@pytest.mark.parametrize(
    ("kind", "container"),
    conformance.parameters(
        [(kind, container) for kind in conformance.KINDS for container in CONTAINERS],
        [*(("lstm", container) for container in CONTAINERS), ("gru", "bidirectional")],
    ),
)
def test_models_of_every_kind(kind, container):
    mode = "frame" if container == "stacked_cells" else "sequence"
    model = conformance.model_of(container, conformance.find(f"{kind}-{mode}"))
    x = _inputs()
    before = model.get_weights()
    folded = keras_bnrnn.fold_batch_norm(model)
    assert folded is not model
    assert not _holds_ours(folded)
    outputs, expected = np.array(folded(x)), np.array(model(x))
    if tf.config.list_physical_devices("GPU"):
        # Keras's layers show zeros in masked frames where cuDNN runs them.
        live = np.any(x, axis=-1)
        outputs, expected = outputs[live], expected[live]
    np.testing.assert_allclose(outputs, expected, rtol=1e-5, atol=1e-5)
    assert_all_close(model.get_weights(), before)


@pytest.mark.parametrize("case", UNFOLDABLE, ids=str)
def test_what_cannot_be_folded_is_named_or_kept(case):
    model = conformance.model_of("sequential", case)
    name = model.layers[-1].name
    with pytest.raises(ValueError, match=name):
        keras_bnrnn.fold_batch_norm(model)
    kept = keras_bnrnn.fold_batch_norm(model, strict=False)
    assert type(kept.layers[-1]) is case.layer_class
    np.testing.assert_allclose(kept(_inputs()), model(_inputs()), rtol=0, atol=1e-6)


def test_one_error_names_all_and_strict_false_folds_the_rest():
    steps = conformance.find("lstm-frame_steps")
    inputs = keras.Input((None, FEATURES))
    options = {"dtype": "float32", "return_state": False}
    x = steps.layer(**options, name="first_that_stays")(inputs)
    x = conformance.find("gru-sequence").layer(**options, name="folds")(x)
    outputs = conformance.find("lstm-sequence_cell").layer(**options, name="last_that_stays")(x)
    model = keras.Model(inputs, outputs)
    with pytest.raises(FoldingError) as error:
        keras_bnrnn.fold_batch_norm(model)
    assert list(error.value.reasons) == ["first_that_stays", "last_that_stays"]
    for name, reason in error.value.reasons.items():
        assert f"{name}: {reason}" in str(error.value)
    folded = keras_bnrnn.fold_batch_norm(model, strict=False)
    assert len(_holds_ours(folded)) >= 2
    assert type(folded.get_layer("folds")) is keras.layers.GRU
    np.testing.assert_allclose(folded(_inputs()), model(_inputs()), rtol=1e-5, atol=1e-5)


def test_nested_models_and_shared_layers():
    """A layer used twice stays one layer; a model inside a model is folded too."""
    shared = keras_bnrnn.BatchNormLSTM(UNITS, return_sequences=True)
    encoder = keras.Sequential([keras.Input((None, FEATURES)), shared], name="encoder")
    left, right = keras.Input((None, FEATURES)), keras.Input((None, FEATURES))
    both = keras.layers.Concatenate()([encoder(left), shared(right)])
    above = keras_bnrnn.Bidirectional(keras_bnrnn.BatchNormGRU(UNITS))(both)
    model = keras.Model([left, right], above)
    rng = np.random.default_rng(1)
    model.set_weights([w + rng.uniform(0.1, 0.4, w.shape) for w in model.get_weights()])
    folded = keras_bnrnn.fold_batch_norm(model)
    assert not _holds_ours(folded)
    # Three recurrent layers of three weights each: the shared one is there once.
    assert len(folded.weights) == 9
    x = [_inputs(2), _inputs(3)]
    np.testing.assert_allclose(folded(x), model(x), rtol=1e-5, atol=1e-5)


def test_a_plain_model_folds_to_an_equal_one():
    model = keras.Sequential(
        [
            keras.Input((None, FEATURES)),
            keras.layers.Masking(0.0),
            keras.layers.LSTM(UNITS, return_sequences=True),
            keras.layers.Dense(2),
        ]
    )
    folded = keras_bnrnn.fold_batch_norm(model)
    assert folded is not model
    np.testing.assert_allclose(folded(_inputs()), model(_inputs()), rtol=0, atol=1e-7)
    before = model.get_weights()
    folded.set_weights([w + 1.0 for w in folded.get_weights()])
    assert_all_close(model.get_weights(), before)


LOAD = """
import sys
sys.modules["keras_bnrnn"] = None
import keras, numpy
model = keras.models.load_model(sys.argv[1])
numpy.save(sys.argv[2], model(numpy.load(sys.argv[2])))
"""


@pytest.mark.slow
def test_a_folded_model_is_saved_without_this_package(tmp_path):
    """Whatever it was compiled with, and where only `Bidirectional` was this package's."""
    model = keras.Sequential(
        [
            keras.Input((None, FEATURES)),
            keras.layers.Masking(0.0),
            keras_bnrnn.Bidirectional(keras.layers.LSTM(UNITS, return_sequences=True)),
            keras_bnrnn.Bidirectional(keras_bnrnn.BatchNormGRU(UNITS, return_sequences=True)),
        ]
    )
    model.compile("adam", FrameMeanCrossEntropy(from_logits=True))
    model.fit(_inputs(), np.zeros((BATCH, TIME)), verbose=0)
    folded = keras_bnrnn.fold_batch_norm(model)
    assert not _holds_ours(folded) and not folded.compiled
    folded.save(tmp_path / "folded.keras")
    np.save(tmp_path / "values.npy", _inputs())
    command = [sys.executable, "-c", LOAD, tmp_path / "folded.keras", tmp_path / "values.npy"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    np.testing.assert_allclose(np.load(tmp_path / "values.npy"), model(_inputs()), atol=1e-5)


class Block(keras.layers.Layer):
    """A user's layer: passes masks on and has weights of its own."""

    def __init__(self, activation, **kwargs):
        super().__init__(**kwargs)
        self.supports_masking = True
        self.activation = keras.activations.get(activation)
        self.inner = keras_bnrnn.BatchNormLSTM(UNITS, return_sequences=True)

    def build(self, shape):
        self.scale = self.add_weight(shape=(UNITS,), initializer="ones")
        self.inner.build(shape)

    def call(self, x, mask=None):
        return self.activation(self.inner(x, mask=mask) * self.scale)


class Residual(keras.layers.Layer):
    """A user's cell around another cell, which its configuration holds as it is."""

    def __init__(self, cell, **kwargs):
        super().__init__(**kwargs)
        self.cell = cell
        self.state_size, self.output_size = cell.state_size, cell.units

    def build(self, shape):
        self.cell.build(shape)

    def call(self, x, states):
        outputs, states = self.cell(x, states)
        return x + outputs, states

    def get_config(self):
        return {**super().get_config(), "cell": self.cell}

    @classmethod
    def from_config(cls, config):
        return cls(keras.saving.deserialize_keras_object(config.pop("cell")), **config)


Pair = collections.namedtuple("Pair", "layer number")


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.masking = keras.layers.Masking()
        self.stacks = {"first": [keras_bnrnn.BatchNormGRU(UNITS, return_sequences=True)]}
        self.pair = Pair(keras_bnrnn.BatchNormSimpleRNN(UNITS, return_sequences=True), 2.0)
        self.block = Block("relu")
        cells = [
            keras_bnrnn.BatchNormLSTMCell(UNITS),
            Residual(keras_bnrnn.BatchNormGRUCell(UNITS)),
        ]
        self.cells = keras.layers.RNN(cells, return_sequences=True, stateful=True)
        self.frozen = keras.layers.Dense(FEATURES, trainable=False)
        self.first = self.stacks["first"][0]
        self.embedding = keras.layers.Embedding(7, UNITS)
        self.embedding.build((None,))
        self.tied = self.embedding.embeddings
        self.run = self.through

    def through(self, x):
        for layer in self.stacks["first"]:
            x = layer(x)
        return self.cells(self.block(self.pair.layer(x)))

    def call(self, x):
        x = self.frozen(self.run(self.masking(x))) * self.pair.number
        return keras.ops.matmul(self.first(x), keras.ops.transpose(self.tied))


def test_whatever_a_subclassed_model_holds():
    """Attributes in containers, user's layers and cells, shared weights, compiled and trained."""
    model = Subclassed()
    x, y = _inputs(), np.zeros((BATCH, TIME, 7))
    model.compile("adam", "mse", metrics=["mae"], run_eagerly=True)
    model.fit(x, y, batch_size=BATCH, verbose=0)
    states = [state.numpy() for state in keras.tree.flatten(model.cells.states)]
    assert any(state.any() for state in states)
    before = model.get_weights()
    folded = keras_bnrnn.fold_batch_norm(model)
    assert type(folded) is Subclassed and not folded.compiled and not _holds_ours(folded)
    assert folded.first is folded.stacks["first"][0]
    assert folded.tied is folded.embedding.embeddings and folded.run.__self__ is folded
    assert folded.trainable and not folded.frozen.trainable
    of_model, of_folded = (
        {id(w) for w in [*one.variables, *keras.tree.flatten(one.cells.states)]}
        for one in (model, folded)
    )
    assert not of_model & of_folded
    assert_all_close(states, keras.tree.flatten(folded.cells.states))
    for _ in range(2):  # And they are carried on.
        np.testing.assert_allclose(folded(x), model(x), rtol=1e-5, atol=1e-5)
    assert_all_close(model.get_weights(), before)
    folded.set_weights([w + 1.0 for w in folded.get_weights()])
    np.testing.assert_array_equal(model.get_weights()[0], before[0])


def test_weights_shared_between_places_stay_shared():
    cell, inputs = keras_bnrnn.BatchNormLSTMCell(UNITS), keras.Input((None, FEATURES))
    dense = keras.layers.Dense(FEATURES)
    plain_part = keras.Sequential([keras.Input((None, FEATURES)), dense])
    both = keras_bnrnn.Bidirectional(keras_bnrnn.BatchNormGRU(UNITS))
    x = keras.layers.Masking()(inputs)
    block = Block("relu")(x)  # Its mask reaches the next layer.
    outputs = [
        keras.layers.RNN(cell)(dense(x)),
        keras.layers.RNN(cell, go_backwards=True)(plain_part(x)),
        both(x),
        both.forward_layer(x),
        keras_bnrnn.BatchNormGRU(UNITS)(block),
    ]
    model = keras.Model(inputs, outputs)
    rng = np.random.default_rng(1)
    model.set_weights([w + rng.uniform(0.1, 0.4, w.shape) for w in model.get_weights()])
    folded = keras_bnrnn.fold_batch_norm(model)
    # Cell, dense, two directions, the block and what follows.
    assert len(folded.weights) == 3 + 2 + 6 + 4 + 3
    assert_all_close(folded(_inputs()), model(_inputs()), rtol=1e-5, atol=1e-5)


def test_layers_that_learnt_something_beside_weights():
    normalization = keras.layers.Normalization()
    normalization.adapt(3.0 * _inputs() + 1.0)
    model = keras.Sequential(
        [keras.Input((None, FEATURES)), normalization, keras_bnrnn.BatchNormLSTM(UNITS)]
    )
    folded = keras_bnrnn.fold_batch_norm(model)
    np.testing.assert_allclose(folded(_inputs()), model(_inputs()), rtol=1e-5, atol=1e-5)
    words = keras.layers.TextVectorization(output_sequence_length=4)
    words.adapt(["a b c", "d a"])
    text = keras.Sequential(
        [
            keras.Input((), dtype="string"),
            words,
            keras.layers.Embedding(9, FEATURES, mask_zero=True),
            keras_bnrnn.BatchNormLSTM(UNITS),
        ]
    )
    sentences = tf.constant(["b b q", "d"])
    folded = keras_bnrnn.fold_batch_norm(text)
    np.testing.assert_allclose(folded(sentences), text(sentences), rtol=1e-5, atol=1e-5)


def test_subclasses_of_the_layers():
    """One that only has other defaults is folded; one that computes something else is refused."""

    class Returning(keras_bnrnn.BatchNormLSTM):
        def __init__(self, size):
            super().__init__(size, return_sequences=True)

        def get_config(self):
            return {"size": self.units}

    class Doubled(keras_bnrnn.BatchNormGRU):
        def call(self, sequences, initial_state=None, mask=None, training=False):
            return 2.0 * super().call(sequences, initial_state, mask, training)

    layers = [keras.Input((None, FEATURES)), keras.layers.Masking(), Returning(UNITS)]
    model = keras.Sequential(layers)
    folded = keras_bnrnn.fold_batch_norm(model)
    assert type(folded.layers[-1]) is keras.layers.LSTM
    np.testing.assert_allclose(folded(_inputs()), model(_inputs()), rtol=1e-5, atol=1e-5)
    model = keras.Sequential([*layers, Doubled(UNITS, name="other")])
    with pytest.raises(ValueError, match=r"other: its class Doubled has code of its own \(call\)"):
        keras_bnrnn.fold_batch_norm(model)
    kept = keras_bnrnn.fold_batch_norm(model, strict=False)
    assert [type(layer) for layer in kept.layers[-2:]] == [keras.layers.LSTM, Doubled]
    np.testing.assert_allclose(kept(_inputs()), model(_inputs()), rtol=1e-5, atol=1e-5)


def test_a_functional_model_with_a_call_of_its_own():
    class Doubling(keras.Model):
        def call(self, inputs, training=None, mask=None):
            return 2.0 * super().call(inputs)

    class Making(Doubling):
        def __init__(self):
            inputs = keras.Input((None, FEATURES))
            super().__init__(inputs, keras_bnrnn.BatchNormLSTM(UNITS)(inputs))

    inputs = keras.Input((None, FEATURES))
    model = Doubling(inputs, keras_bnrnn.BatchNormLSTM(UNITS)(inputs))
    folded = keras_bnrnn.fold_batch_norm(model)
    assert type(folded) is Doubling and len(folded.weights) == 3
    np.testing.assert_allclose(folded(_inputs()), model(_inputs()), rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match=r"Making .* a `call` and a constructor of its own"):
        keras_bnrnn.fold_batch_norm(Making())


class Wrapping(keras.Model):
    """Reaches its layer through what `wrap` makes of a method."""

    def __init__(self, wrap):
        super().__init__()
        self.rnn = keras_bnrnn.BatchNormLSTM(UNITS)
        self.run = wrap(self.through)

    def through(self, x):
        return self.rnn(x)

    def call(self, x):
        return self.run(x)


GLOBAL = keras_bnrnn.BatchNormGRU(UNITS, name="everybodys")
GLOBAL.build((None, None, FEATURES))
rnn = GLOBAL  # Of the name of an attribute below.


def through_a_global(x):
    return GLOBAL(x)


class Holder:
    """An object that Keras looks into for no layers."""

    def __init__(self, held):
        self.held = held

    def __call__(self, x):
        return self.held(x)

    run = __call__


# What an attribute may run a model's layer through, and what the copy finds it as.
WAYS = {
    "method": lambda model: model.through,
    "tf.function": lambda model: tf.function(model.through),
    "lambda": lambda model: lambda x: model.through(x),
    "partial": lambda model: functools.partial(model.through),
    "property": lambda model: model.property_of_a_function,
    "deque": lambda model: collections.deque([model.rnn]),
}
WAYS_REFUSED = {
    "method of a layer": lambda model: model.rnn.__call__,
    "partial of a layer": lambda model: functools.partial(model.rnn),
    "closure over a layer": lambda model: (lambda layer: lambda x: layer(x))(model.rnn),
    "default": lambda model: lambda x, layer=model.rnn: layer(x),
    "in a dictionary": lambda model: {"a": [lambda x, layer=model.rnn: layer(x)]},
    "object": lambda model: Holder(model.rnn),
    "method of an object": lambda model: Holder(model.rnn).run,
    "another layer": lambda model: Holder(keras_bnrnn.BatchNormGRU(UNITS)).run,
    "global": lambda model: lambda x: GLOBAL(x),
    "global function": lambda model: through_a_global,
}


class Configured(Wrapping):
    def __init__(self, way, **kwargs):
        super().__init__(lambda method: (WAYS | WAYS_REFUSED)[way](self))
        self.way = way

    @property
    def property_of_a_function(self):
        return lambda x: self.rnn(x)

    def call(self, x):
        run = self.run["a"] if isinstance(self.run, dict) else self.run
        return (run if callable(run) else run[0])(x)

    def get_config(self):
        return {"way": self.way}


class OfItsClass(keras.Model):
    """Runs a layer of everybody's, by a name or as an attribute of the class."""

    shared = GLOBAL

    def __init__(self):
        super().__init__()
        self.rnn = keras_bnrnn.BatchNormLSTM(UNITS)


class ByName(OfItsClass):
    def call(self, x):
        return self.further(x)

    def further(self, x):
        return through_a_global(self.rnn(x)[:, None, :1] * x)


class ByClass(OfItsClass):
    def call(self, x):
        return self.shared(x) + self.rnn(x)


@pytest.mark.parametrize("way", WAYS)
def test_functions_of_a_model_run_the_layers_of_the_copy(way, tmp_path):
    model = Configured(way)
    expected = model(_inputs()).numpy()
    folded = keras_bnrnn.fold_batch_norm(model)
    assert type(folded.rnn) is keras.layers.LSTM
    model.set_weights([0.0 * w for w in model.get_weights()])
    if way == "tf.function":  # Exported before it is called.
        signature = [keras.InputSpec(shape=(None, None, FEATURES), dtype="float32")]
        folded.export(tmp_path / "it", verbose=False, input_signature=signature)
        loaded = tf.saved_model.load(tmp_path / "it")
        np.testing.assert_allclose(loaded.serve(_inputs()), expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(folded(_inputs()), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("way", WAYS_REFUSED)
def test_what_runs_a_layer_past_the_copy_is_named(way):
    model = Configured(way)
    model(_inputs())
    with pytest.raises(ValueError, match=r"attribute 'run' of .*\(Configured\) runs the layer"):
        keras_bnrnn.fold_batch_norm(model)


@pytest.mark.parametrize("cls", [ByName, ByClass])
def test_layers_of_no_model_are_named(cls):
    model = cls()
    model(_inputs())
    with pytest.raises(ValueError, match=r"attribute 'call' of .* runs the layer 'everybodys'"):
        keras_bnrnn.fold_batch_norm(model)


def test_what_a_configuration_does_not_make_is_refused():
    """A class without one, a constructor's arguments, and layers that only a function has."""

    class Scaled(keras.Model):
        def __init__(self, factor=1.0):
            super().__init__()
            self.rnn, self.factor = keras_bnrnn.BatchNormLSTM(UNITS), factor

        def call(self, x):
            return self.factor * self.rnn(x)

    rnn = keras_bnrnn.BatchNormLSTM(UNITS)
    inputs = keras.Input((TIME, FEATURES))
    through_lambda = keras.Model(inputs, keras.layers.Lambda(lambda x: rnn(x), name="by")(inputs))
    for model, message in (
        (Wrapping(lambda method: lambda x: method(x)), "Wrapping .*`get_config`.*'run' runs"),
        (Scaled(2.0), "Scaled .*no `get_config`"),
        (through_lambda, "attribute 'function' of 'by' .* runs the layer 'batch_norm_lstm"),
    ):
        model(_inputs())
        with pytest.raises(ValueError, match=message):
            keras_bnrnn.fold_batch_norm(model)


def test_functions_that_cannot_be_written_down_are_handed_on():
    """Lambdas with a closure, alone, in a wrapper, and as activations; and `use_cudnn`."""
    factor = 2.0
    twice = lambda x: factor * x  # noqa: E731
    model = keras.Sequential(
        [
            keras.Input((TIME, FEATURES)),
            keras.layers.Lambda(twice),
            keras.layers.TimeDistributed(keras.layers.Lambda(lambda x: tf.nn.relu(x) + factor)),
            keras.layers.Dense(FEATURES, activation=twice),
            keras.layers.LSTM(FEATURES, return_sequences=True, use_cudnn=False),
            keras_bnrnn.BatchNormLSTM(UNITS, activation=twice),
        ]
    )
    folded = keras_bnrnn.fold_batch_norm(model)
    assert folded.layers[-2].use_cudnn is False
    np.testing.assert_allclose(folded(_inputs()), model(_inputs()), rtol=1e-5, atol=1e-5)


def test_an_unbuilt_model_is_refused():
    with pytest.raises(ValueError, match=r"(?i)build"):
        keras_bnrnn.fold_batch_norm(keras_bnrnn.BatchNormLSTM(UNITS))
