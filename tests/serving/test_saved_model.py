"""`serving.export`: any model's SavedModel gives what `model.predict` does, whole and in pieces."""

import importlib
import json

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_bnrnn import (
    BatchNormGRU,
    BatchNormLSTM,
    BatchNormLSTMCell,
    BatchNormSimpleRNN,
    Bidirectional,
    serving,
)
from keras_bnrnn.data import sequence_mask
from keras_bnrnn.serving.saved_model import for_serving
from untrained import shaken

layers = keras.layers
BATCH, TIME, WORDS = 2, 6, 9


def stacked():
    return keras.Sequential(
        [
            keras.Input((None, 3)),
            layers.Masking(),
            BatchNormLSTM(4, return_sequences=True),
            layers.Dropout(0.5),
            layers.LayerNormalization(),
            BatchNormGRU(5, return_sequences=True),
            layers.Dense(2, activation="softmax", name="classes"),
        ]
    )


def two_inputs():
    """Of a skip connection, and dictionaries for its inputs and outputs."""
    values = keras.Input((TIME, 3), name="values")
    tokens = keras.Input((TIME,), dtype="int32", name="tokens")
    words = layers.Embedding(WORDS, 5, mask_zero=True)(tokens)
    joined = layers.Concatenate()([words, values])
    read = BatchNormSimpleRNN(8, return_sequences=True, normalization="frame")(joined)
    added = layers.Add()([joined, read])
    outputs = {"tags": layers.Dense(2)(added), "added": added}
    return keras.Model({"values": values, "tokens": tokens}, outputs)


def with_lengths():
    features, lengths = keras.Input((None, 3)), keras.Input((), dtype="int32", name="lengths")
    mask = sequence_mask(features, lengths)
    scores = BatchNormGRU(4, return_sequences=True, name="scores")(features, mask=mask)
    return keras.Model([features, lengths], scores)


def lengths_first():
    features, lengths = keras.Input((None, 3)), keras.Input((), dtype="int32", name="lengths")
    mask = sequence_mask(features, lengths)
    scores = BatchNormLSTM(4, return_sequences=True, name="scores")(features, mask=mask)
    return keras.Model([lengths, features], scores)


def unrolled():
    frames = keras.Input((TIME, 3))
    layer = keras.layers.LSTM(4, return_sequences=True, unroll=True, name="scores")
    return keras.Model(frames, layer(frames))


def bidirectional():
    """An output for each frame, and one for the sequence."""
    features = keras.Input((None, 3), name="features")
    frames = Bidirectional(BatchNormLSTM(4, return_sequences=True), name="frames")(features)
    return keras.Model(features, [frames, layers.GlobalAveragePooling1D(name="pooled")(frames)])


def last_output():
    """Built by a call."""
    model = keras.Sequential([BatchNormGRU(4), layers.Dense(2, name="classes")])
    model(np.zeros((3, TIME, 3), "float32"))
    return model


def carried_states():
    """Of a fixed batch, and normalisation that cannot be folded."""
    options = {"return_sequences": True, "normalize_recurrent": True, "normalization": "frame"}
    return keras.Sequential(
        [
            keras.Input(batch_shape=(BATCH, None, 3)),
            BatchNormLSTM(4, stateful=True, name="scores", **options),
        ]
    )


def per_step():
    options = {"return_sequences": True, "normalization": "frame", "max_timesteps": 3}
    return keras.Sequential([keras.Input((None, 3)), BatchNormLSTM(4, name="scores", **options)])


def cells():
    cells = [BatchNormLSTMCell(4), layers.GRUCell(3)]
    return keras.Sequential(
        [keras.Input((None, 3)), layers.RNN(cells, return_sequences=True, name="scores")]
    )


def strings():
    words = keras.Input((None,), dtype="string", name="words")
    numbers = layers.StringLookup(vocabulary=["a", "b"])(words)
    return keras.Model(words, BatchNormGRU(4, name="read")(layers.Embedding(3, 2)(numbers)))


# Inputs, outputs, and whether it steps.
MODELS = {
    stacked: (["inputs"], ["classes"], True),
    two_inputs: (["values", "tokens"], ["added", "tags"], True),
    with_lengths: (["inputs", "lengths"], ["scores"], True),
    lengths_first: (["lengths", "inputs"], ["scores"], True),
    unrolled: (["inputs"], ["scores"], True),
    cells: (["inputs"], ["scores"], True),
    carried_states: (["inputs"], ["scores"], True),
    per_step: (["inputs"], ["scores"], False),
    bidirectional: (["features"], ["frames", "pooled"], False),
    last_output: (["inputs"], ["classes"], False),
    strings: (["words"], ["read"], False),
}


def examples(signature):
    """A value for each input of a signature that is no state."""
    rng = np.random.default_rng(0)
    values = {}
    for name, spec in signature.structured_input_signature[1].items():
        if name == "lengths":
            values[name] = np.array([TIME, TIME - 2], "int32")
        elif spec.dtype == tf.string:
            values[name] = rng.choice(["a", "b", "c"], (BATCH, TIME))
        elif spec.dtype == tf.int32:
            values[name] = rng.integers(0, WORDS, (BATCH, TIME), "int32")
        else:
            values[name] = rng.normal(size=(BATCH, TIME, spec.shape[-1])).astype("float32")
            values[name][1, TIME - 2 :] = 0.0  # What masking leaves out.
    return values


def called(signature, values):
    outputs = signature(**{name: tf.constant(value) for name, value in values.items()})
    return {name: value.numpy() for name, value in outputs.items()}


@pytest.mark.parametrize("make", MODELS, ids=lambda make: make.__name__)
def test_serves_what_the_model_predicts(make, tmp_path):
    inputs, outputs, steps = MODELS[make]
    model = shaken(make())
    names = serving.export(model, tmp_path / "exported")
    assert names == ["serve", "step"][: 1 + steps]
    signatures = tf.saved_model.load(tmp_path / "exported").signatures
    assert set(signatures) == {*names, "serving_default"}
    serve = signatures["serve"]
    values = examples(serve)
    assert values.keys() == set(inputs) and serve.structured_outputs.keys() == set(outputs)
    given = values if make is two_inputs else [tf.constant(values[name]) for name in inputs]
    if len(given) == 1:
        [given] = given
    predicted = model.predict(given, verbose=0)
    if not isinstance(predicted, dict):
        predicted = dict(zip(outputs, keras.tree.flatten(predicted), strict=True))
    whole = called(serve, values)
    for name in outputs:
        np.testing.assert_allclose(whole[name], predicted[name], atol=1e-5)
    default = called(signatures["serving_default"], values)
    np.testing.assert_array_equal(next(iter(default.values())), next(iter(whole.values())))

    card = (tmp_path / "exported/MODEL_CARD.md").read_text()
    assert ("not folded" in card) == (make in (carried_states, per_step))
    for name in names:
        for one in signatures[name].structured_input_signature[1]:
            assert f"| input | `{one}` |" in card
        for one in signatures[name].structured_outputs:
            assert f"| output | `{one}` |" in card
    if steps:
        parts = stepped(signatures["step"], values, [1, 0, 3, 2])
        for name in outputs:
            live = (slice(None), slice(TIME - 2))  # What others show has no meaning.
            np.testing.assert_allclose(parts[name][live], whole[name][live], atol=1e-5)
            np.testing.assert_allclose(parts[name][0], whole[name][0], atol=1e-5)


def stepped(step, values, sizes):
    """What a signature gives for pieces of these sizes, one after the other."""
    specs = step.structured_input_signature[1]
    states = {
        name: np.zeros([BATCH, spec.shape[1]], "float32")
        for name, spec in specs.items()
        if name not in values
    }
    assert states
    parts = []
    for start, size in zip(np.cumsum([0, *sizes[:-1]]), sizes, strict=True):
        piece = {
            name: value[:, start : start + size]
            if value.ndim > 1
            else np.clip(value - start, 0, size, dtype="int32")
            for name, value in values.items()
        }
        results = called(step, {**piece, **states})
        states = {name: results.pop(name) for name in states}
        parts.append(results)
    return {name: np.concatenate([part[name] for part in parts], 1) for name in parts[0]}


def test_what_the_caller_adds_to_card_and_assets(tmp_path):
    serving.export(
        keras.Sequential([keras.Input((None, 3)), BatchNormGRU(2, return_sequences=True)]),
        tmp_path / "exported",
        title="Tiny",
        training="On nothing.",
        configuration={"units": 4},
        assets={"more.json": {"words": ["a"]}},
    )
    card = (tmp_path / "exported/MODEL_CARD.md").read_text()
    assert card.startswith("# Tiny\n") and "On nothing." in card and '"units": 4' in card
    asset = json.loads((tmp_path / "exported/assets/more.json").read_text())
    assert asset == {"words": ["a"], "signatures": ["serve", "step"]}


class Subclass(keras.Model):
    def __init__(self):
        super().__init__()
        self.read = layers.GRU(2)

    def call(self, values):
        return self.read(values)


class OtherCall(keras.Model):
    def call(self, values):
        return 2 * super().call(values)


def test_models_that_cannot_be_exported(tmp_path):
    subclassed = Subclass()
    subclassed(np.zeros((1, 2, 3)))
    values = keras.Input((None, 3))
    for model, message in {
        "a model": "only a keras.Model",
        keras.Sequential([BatchNormGRU(2)]): "give it a keras.Input, or call it",
        subclassed: r"make it with keras.Model\(inputs, outputs\)",
        OtherCall(values, layers.GRU(2)(values)): "OtherCall has a `call` of its own",
    }.items():
        with pytest.raises(serving.ServingError, match=message) as raised:
            serving.export(model, tmp_path / "exported")
        assert raised.value.argument == "model"
    assert not list(tmp_path.iterdir())


def test_a_folder_in_use_and_formats_that_do_not_exist(tmp_path, monkeypatch):
    model = keras.Sequential([keras.Input((None, 3)), layers.GRU(2)])
    with pytest.raises(serving.ServingError, match="coreml is not of onnx, litert") as raised:
        serving.export(model, tmp_path / "exported", formats=["coreml"])
    assert raised.value.argument == "formats" and not list(tmp_path.iterdir())
    (tmp_path / "notes.txt").touch()
    for folder in (tmp_path, tmp_path / "notes.txt"):
        with pytest.raises(serving.ServingError, match="exists already; name a new") as raised:
            serving.export(model, folder)
        assert raised.value.argument == "folder"
    monkeypatch.chdir(tmp_path)
    with pytest.raises(serving.ServingError, match="gs://bucket/exported is a URL"):
        serving.export(model, "gs://bucket/exported")
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_nothing_is_left_of_an_export_that_fails(tmp_path, monkeypatch):
    model = keras.Sequential([keras.Input((None, 3)), layers.GRU(2)])
    monkeypatch.setattr("keras_bnrnn.serving.saved_model.model_card", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        serving.export(model, tmp_path / "exported")
    assert not list(tmp_path.iterdir())


class Doubled(layers.Layer):
    """As users write them: not registered."""

    def call(self, inputs):
        return 2 * inputs


def halved_tanh(values):
    return keras.ops.tanh(values) / 2


def served_as_predicted(model, values, folder):
    assert "serve" in serving.export(model, folder)
    serve = tf.saved_model.load(folder).signatures["serve"]
    [name] = serve.structured_input_signature[1]
    [found] = serve(**{name: tf.constant(values)}).values()
    np.testing.assert_allclose(found, model(values), atol=1e-5)


def test_what_layers_learnt_from_data(tmp_path):
    """Of which weights and configurations are silent."""
    values = np.random.default_rng(0).normal(3.0, 2.0, [4, TIME, 3]).astype("float32")
    scale, words = layers.Normalization(), layers.TextVectorization()
    scale.adapt(values)
    model = keras.Sequential([keras.Input((None, 3)), scale, BatchNormLSTM(4)])
    served_as_predicted(model, values, tmp_path / "numbers")
    texts = tf.constant(["the cat", "a dog sat"])
    words.adapt(texts)
    text = keras.Input((), dtype="string")
    read = layers.LSTM(4)(layers.Embedding(WORDS, 2, mask_zero=True)(words(text)))
    served_as_predicted(keras.Model(text, read), texts, tmp_path / "words")


def test_classes_and_functions_that_are_not_registered(tmp_path):
    steps = [keras.Input((None, 3)), Doubled(), BatchNormLSTM(4, activation=halved_tanh)]
    values = np.random.default_rng(0).normal(size=[BATCH, TIME, 3]).astype("float32")
    served_as_predicted(keras.Sequential(steps), values, tmp_path / "exported")


def test_states_are_told_from_layers_with_automatic_names(tmp_path):
    """`rnn` has the states `rnn_0` to `rnn_3`."""
    keras.utils.clear_session()
    model = keras.Sequential(
        [
            keras.Input((None, 3)),
            layers.RNN([layers.LSTMCell(4), layers.LSTMCell(5)], return_sequences=True, name="rnn"),
            layers.RNN(layers.GRUCell(4), return_sequences=True, name="rnn_9"),
        ]
    )
    assert serving.export(model, tmp_path / "exported") == ["serve", "step"]


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision_is_served_in_float32(precision, tmp_path):
    values = keras.Input((None, 3), name="values")
    policy = {"dtype": f"mixed_{precision}"}
    read = Bidirectional(BatchNormLSTM(4, return_sequences=True, **policy), **policy)(values)
    model = shaken(keras.Model(values, layers.Dense(2, name="scores", dtype="float32")(read)))
    serving.export(model, tmp_path / "exported")
    serve = tf.saved_model.load(tmp_path / "exported").signatures["serve"]
    given = np.random.default_rng(0).normal(size=(2, 7, 3)).astype("float32")
    scores = serve(values=tf.constant(given))["scores"]
    # The reference is computed in float32 too, so nothing of half precision may be left.
    np.testing.assert_allclose(scores, for_serving(model)[0](given), atol=1e-5)
    np.testing.assert_allclose(scores, model(given), atol=0.1)
    half = tf.as_dtype(precision).as_datatype_enum
    functions = serve.graph.as_graph_def().library.function
    assert not any(node.attr["T"].type == half for one in functions for node in one.node_def)


def test_a_model_exported_beside_a_gpu_is_served_without_one(monkeypatch):
    """Keras writes cuDNN's operations into the graph where it sees a GPU."""
    keras_rnn = importlib.import_module("keras.src.backend.tensorflow.rnn")
    monkeypatch.setattr(keras_rnn, "_is_gpu_available", lambda: True)

    def operations(model):
        call = tf.function(model, input_signature=[tf.TensorSpec([None, None, 3])], autograph=False)
        graph = call.get_concrete_function().graph
        inner = [function.graph for function in graph._functions.values()]
        return {operation.type for one in (graph, *inner) for operation in one.get_operations()}

    model = keras.Sequential([keras.Input((None, 3))])
    model.add(layers.Bidirectional(layers.LSTM(4, return_sequences=True)))
    model.add(layers.GRU(4))
    assert any("Cudnn" in name for name in operations(model))
    assert not any("Cudnn" in name for name in operations(for_serving(model)[0]))
