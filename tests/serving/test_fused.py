"""LSTMs as one operation give Keras's numbers, and only where the operation can."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_bnrnn import serving
from keras_bnrnn.serving import fused as module
from keras_bnrnn.serving.fused import fused


def shaken(model):
    rng = np.random.default_rng(0)
    model.set_weights([rng.normal(0.0, 0.5, one.shape) for one in model.get_weights()])
    return model


def lstm(**options):
    inputs = keras.Input((None, 3))
    mask = keras.Input((None,), dtype="bool")
    states = [keras.Input((4,)) for _ in "hc"]
    outputs = keras.layers.LSTM(4, **options)(inputs, mask=mask, initial_state=states)
    return keras.Model([inputs, mask, *states], outputs)


def both_directions(**options):
    inputs = keras.Input((None, 3))
    mask = keras.Input((None,), dtype="bool")
    layer = keras.layers.LSTM(4, return_sequences=True, **options)
    outputs = keras.layers.Bidirectional(layer)(inputs, mask=mask)
    return keras.Model([inputs, mask], outputs)


MASKS = {
    "none": np.ones([3, 6], bool),
    "right": np.arange(6) < np.array([[6], [2], [0]]),
    "left and holes": np.array([[0, 0, 1, 0, 1, 1], [0, 1, 1, 1, 1, 0], [1, 0, 0, 1, 0, 0]], bool),
}


@pytest.fixture(params=["few rows", "many rows"])
def rows(request, monkeypatch):
    """Three rows are few or, where two are many, many."""
    if request.param == "many rows":
        monkeypatch.setattr(module, "MANY_ROWS", 2)
        monkeypatch.setattr(module, "MANY_FRAMES", 2)


@pytest.mark.usefixtures("rows")
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize(
    "model",
    [
        lambda: lstm(return_sequences=True, return_state=True),
        lambda: lstm(return_state=True, go_backwards=True, use_bias=False),
        lambda: lstm(return_sequences=True, zero_output_for_mask=True),
        both_directions,
    ],
    ids=["forwards", "last of backwards", "zeros", "bidirectional"],
)
def test_the_outputs_are_those_of_keras(model, mask):
    model = shaken(model())
    rng = np.random.default_rng(1)
    given = [rng.normal(size=[3, 6, 3]), MASKS[mask]]
    given += [rng.normal(size=[3, 4]) for _ in model.inputs[2:]]
    found = keras.tree.flatten(fused(model)(given))
    for actual, expected in zip(found, keras.tree.flatten(model(given)), strict=True):
        np.testing.assert_allclose(actual, expected, atol=1e-6)


@pytest.mark.usefixtures("rows")
@pytest.mark.parametrize("mask", MASKS)
def test_gradients_are_those_of_keras(mask):
    """Of what is put before an exported model, or of a question which frames matter to it."""
    model = shaken(lstm(return_sequences=True, return_state=True))
    rng = np.random.default_rng(1)
    given = [tf.constant(rng.normal(size=size), "float32") for size in ([3, 6, 3], [3, 4], [3, 4])]

    def gradients(model):
        with tf.GradientTape() as tape:
            tape.watch(given)
            outputs = model([given[0], tf.constant(MASKS[mask]), *given[1:]])
            loss = tf.add_n([tf.reduce_sum(one**2) for one in outputs])
        return tape.gradient(loss, given)

    for actual, expected in zip(gradients(fused(model)), gradients(model), strict=True):
        np.testing.assert_allclose(actual, expected, atol=1e-5)


def test_cells_may_grow():
    """The operation would hold them to 3."""
    model = keras.Model(inputs := keras.Input((None, 3)), keras.layers.LSTM(4)(inputs))
    model.set_weights([np.ones(one.shape) for one in model.get_weights()])
    frames = np.ones([1, 9, 3])
    np.testing.assert_allclose(fused(model)(frames), model(frames), atol=1e-6)


@pytest.mark.parametrize(
    "mask_shape, mask_dtype, dtype",
    [((None,), "float32", "float32"), ((None,), "int32", "uint8"), ((None, 1), "bool", "int32")],
)
def test_other_dtypes_and_shapes(mask_shape, mask_dtype, dtype):
    inputs = keras.Input((None, 3), dtype=dtype)
    mask = keras.Input(mask_shape, dtype=mask_dtype)
    outputs = keras.layers.LSTM(4, return_sequences=True)(inputs, mask=mask)
    model = shaken(keras.Model([inputs, mask], outputs))
    given = np.arange(54).reshape([3, 6, 3]).astype(dtype)
    valid = 2 * np.reshape(MASKS["left and holes"], [3, 6, *mask_shape[1:]]).astype(mask_dtype)
    found = fused(model)([given, valid.astype(mask_dtype)])
    np.testing.assert_allclose(found, model([given, valid.astype(mask_dtype)]), atol=1e-6)


def operations(model):
    """The operations of what is traced and of the functions that it calls."""
    inputs = [tf.TensorSpec(one.shape, one.dtype) for one in model.inputs]
    graph = tf.function(lambda *given: model(list(given))).get_concrete_function(*inputs).graph
    nodes = [*graph.as_graph_def().node]
    nodes += [node for one in graph.as_graph_def().library.function for node in one.node_def]
    return [node.op for node in nodes]


def loops_and_blocks(model):
    """How many loops there are, and how many operations in the place of one."""
    found = operations(model)
    return sum("While" in one for one in found), found.count("BlockLSTM")


def test_only_what_the_operation_computes_fast(monkeypatch):
    layers = {
        "lstm": keras.layers.LSTM(4),
        "relu": keras.layers.LSTM(4, activation="relu"),
        "gru": keras.layers.GRU(4),
    }
    for name, layer in layers.items():
        model = keras.Model(inputs := keras.Input((None, 3)), layer(inputs))
        # The loop of an LSTM is for many rows.
        assert loops_and_blocks(fused(model)) == ((1, 1) if name == "lstm" else (1, 0))
    weights = 4 * 4 * (3 + 4) + 4 * 4
    for most in (weights, weights - 1):
        monkeypatch.setattr(module, "MOST_WEIGHTS", most)
        model = keras.Model(inputs := keras.Input((None, 3)), layers["lstm"](inputs))
        assert loops_and_blocks(fused(model)) == (1, int(most == weights))


@pytest.mark.parametrize(
    "options", [{}, {"use_bias": False}, {"activation": "relu"}, {"lora_rank": 2}]
)
@pytest.mark.parametrize("shape", [(3,), (None, 3), (2, None, 3)])
def test_dense_layers(shape, options, monkeypatch):
    layer = keras.layers.Dense(4, **options)
    model = shaken(keras.Model(inputs := keras.Input(shape), layer(inputs)))
    given = np.random.default_rng(0).normal(size=[size or 5 for size in (None, *shape)])
    np.testing.assert_allclose(fused(model)(given), model(given), atol=1e-6)
    assert "ReadVariableOp" not in operations(fused(model))
    monkeypatch.setattr(module, "MOST_WEIGHTS", 11)
    assert "ReadVariableOp" in operations(fused(model))


def test_an_export_holds_its_weights_once(tmp_path):
    model = keras.Sequential(
        [
            keras.Input((None, 60), name="x"),
            keras.layers.LSTM(100, return_sequences=True),
            keras.layers.LSTM(100, return_sequences=True),
        ]
    )
    assert serving.export(model, tmp_path / "exported") == ["serve", "step"]
    size = sum(file.stat().st_size for file in (tmp_path / "exported").rglob("*.*"))
    assert 0 < size - 4 * model.count_params() < 150_000


def test_few_rows_are_answered_as_many(speech, language):
    """`step` has a quick way for few rows all of whose frames count."""
    rng = np.random.default_rng(0)
    frames = {"features": rng.normal(size=[17, 18, 123]), "lengths": np.full([17], 18)}
    tokens = {"tokens": rng.integers(0, 5, [17, 18])}
    for exported, inputs in ((speech, frames), (language, tokens)):
        inputs |= {
            name: rng.normal(size=state.shape) for name, state in exported.zero_states(17).items()
        }
        step = exported.signatures["step"]
        specs = step.structured_input_signature[1]
        inputs = {name: tf.constant(value, specs[name].dtype) for name, value in inputs.items()}
        many = step(**inputs)
        few = step(**{name: value[:3] for name, value in inputs.items()})
        for name, values in few.items():
            np.testing.assert_allclose(values, many[name][:3], atol=1e-5)
