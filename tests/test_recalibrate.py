"""`recalibrate` replaces every population statistic by the exact one over a dataset."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import conformance
import keras_bnrnn
import reference
from conformance import BATCH, FEATURES, MAIN_CASES, TIME, UNITS, assert_all_close
from keras_bnrnn import population

NORMALIZED = [case for case in MAIN_CASES if case.normalized]


def _batches(rng, count=3):
    """Batches (x, mask) of several sizes and lengths, zero-padded."""
    for i in range(count):
        batch, time = BATCH + i, TIME + i
        x = rng.normal(i, 1.0 + i, size=(batch, time, FEATURES))
        mask = np.arange(time) < rng.integers(1, time + 1, batch)[:, None]
        mask[0] = True  # at the longest length a single live row is left
        yield np.where(mask[..., None], x, 0.0), mask


def _model(layer, *others):
    inputs = keras.Input((None, FEATURES), dtype="float64")
    masked = keras.layers.Masking(0.0, dtype="float64")
    return keras.Sequential([inputs, masked, layer, *others])


@pytest.mark.by_route
@pytest.mark.parametrize("case", NORMALIZED, ids=str)
def test_statistics_are_exact(case):
    rng = np.random.default_rng(0)
    weights = case.weights(rng)
    layer = case.layer(return_state=False)
    model = _model(layer)
    conformance.set_weights(layer, weights)
    batches = list(_batches(rng))
    keras_bnrnn.recalibrate(model, [x for x, _ in batches])
    expected = reference.exact_statistics(case.options, weights, batches)
    assert set(expected) == set(conformance.statistics(case, layer))
    for name, value in zip(weights, layer.get_weights(), strict=True):
        np.testing.assert_allclose(
            value, expected.get(name, weights[name]), rtol=1e-9, atol=1e-9, err_msg=name
        )


@pytest.mark.parametrize("kind", conformance.KINDS)
def test_inference_then_answers_as_training_did(kind):
    """On a single batch, in "sequence" mode: the moments of the batch are those of the data."""
    case = conformance.find(f"{kind}-sequence")
    rng = np.random.default_rng(1)
    layer = case.layer(return_state=False)
    model = _model(layer)
    conformance.set_weights(layer, case.weights(rng))
    x = rng.normal(5.0, 3.0, size=(BATCH, TIME, FEATURES))
    keras_bnrnn.recalibrate(model, [x])
    before = layer.get_weights()
    inference = model(x, training=False)
    np.testing.assert_allclose(inference, model(x, training=True), rtol=0, atol=1e-9)
    layer.set_weights(before)


def test_a_layer_above_a_renormalised_one_sees_what_it_sees_in_training():
    """That is what it sees at inference; statistics of a frame alone would be another function."""
    case = conformance.find("lstm-frame_renorm")
    rng = np.random.default_rng(4)
    below, above = case.layer(return_state=False), case.layer(return_state=False)
    model = _model(below, above)
    conformance.set_weights(below, case.weights(rng) | {"updates": np.array([3.0])})
    x = 10.0 + rng.normal(size=(1, TIME, 1)) + rng.normal(size=(BATCH, TIME, FEATURES))
    between = below(x)
    with population.normalizing_by_batch(model):
        assert_all_close(below(x), between, atol=1e-9)
    keras_bnrnn.recalibrate(model, [x], verbose=0)
    rows = between.numpy().reshape(-1, UNITS) @ above.cell.kernel.numpy()
    normalizer = above.cell.normalizer
    found = [normalizer.moving_mean.numpy(), normalizer.moving_variance.numpy()]
    assert_all_close(found, [rows.mean(axis=0), rows.var(axis=0)], atol=1e-9)


def test_layers_of_a_stack_see_each_other_on_batch_statistics():
    case = conformance.find("lstm-sequence")
    rng = np.random.default_rng(2)
    below, above = case.layer(return_state=False), case.layer(return_state=False)
    model = _model(below, above)
    first, second = case.weights(rng), case.weights(rng, features=UNITS)
    conformance.set_weights(below, first)
    conformance.set_weights(above, second)
    batches = list(_batches(rng))
    keras_bnrnn.recalibrate(model, [x for x, _ in batches])
    between = [
        (reference.layer(case.options, first, x, mask, training=True).outputs, mask)
        for x, mask in batches
    ]
    for layer, weights, seen in ((below, first, batches), (above, second, between)):
        found = conformance.statistics(case, layer)
        for name, value in reference.exact_statistics(case.options, weights, seen).items():
            np.testing.assert_allclose(found[name], value, rtol=1e-9, atol=1e-9, err_msg=name)


def test_both_halves_of_bidirectional():
    case = conformance.find("gru-frame_recurrent")
    rng = np.random.default_rng(3)
    both = keras_bnrnn.Bidirectional(case.layer(return_state=False), dtype="float64")
    model = _model(both)
    forward, backward = case.weights(rng), case.weights(rng)
    conformance.set_weights(both.forward_layer, forward)
    conformance.set_weights(both.backward_layer, backward)
    batches = list(_batches(rng))
    keras_bnrnn.recalibrate(model, [x for x, _ in batches])
    for layer, weights, backwards in (
        (both.forward_layer, forward, False),
        (both.backward_layer, backward, True),
    ):
        options = reference.dataclasses.replace(case.options, go_backwards=backwards)
        expected = reference.exact_statistics(options, weights, batches)
        found = conformance.statistics(case, layer)
        for name, value in expected.items():
            np.testing.assert_allclose(found[name], value, rtol=1e-9, atol=1e-9, err_msg=name)


def _rich_model():
    """With everything that a training pass would move: dropout, batch norm, states, seeds."""
    case = conformance.find("lstm-frame_recurrent_cell_steps")
    inputs = keras.Input((TIME, FEATURES), batch_size=BATCH, dtype="float32")
    x = keras.layers.Dropout(0.5, seed=1)(inputs)
    x = keras.layers.BatchNormalization()(x)
    x = case.layer(dtype="float32", return_state=False, dropout=0.3, seed=2, stateful=True)(x)
    x = keras.layers.LSTM(UNITS, return_sequences=True, stateful=True)(x)
    model = keras.Model(inputs, keras.layers.Dense(1)(x))
    model.compile("adam", "mse", run_eagerly=True)
    data = np.random.default_rng(4).normal(size=(BATCH, TIME, FEATURES)).astype("float32")
    model.train_on_batch(data, np.ones((BATCH, TIME, 1), "float32"))
    return model, data


def _everything(model):
    variables = [*model.variables, *model.optimizer.variables]
    states = keras.tree.flatten([getattr(layer, "states", []) for layer in model.layers])
    assert len(states) == 4
    return {variable.path: np.array(variable) for variable in variables} | {
        f"state {number}": np.array(state) for number, state in enumerate(states)
    }


def test_nothing_else_moves():
    model, data = _rich_model()
    before = _everything(model)
    flags = [layer.trainable for layer in model._flatten_layers()]
    keras_bnrnn.recalibrate(model, [data + 1.0, data * 2.0])
    after = _everything(model)
    moved = {path for path, value in before.items() if np.any(after[path] != value)}
    assert moved
    for path in moved:
        assert "moving" in path and "batch_normalization" not in path, path
    names = {path.rsplit("/", 1)[-1] for path in moved}
    for prefix in ("", "recurrent_", "cell_"):
        assert {f"{prefix}moving_mean", f"{prefix}moving_variance"} <= names
    assert flags == [layer.trainable for layer in model._flatten_layers()]


def test_an_attribute_of_that_name_is_no_state():
    model, data = _rich_model()
    model.layers[1].states = ["AA", "B"]
    keras_bnrnn.recalibrate(model, [data])


def test_a_failing_pass_is_undone():
    model, data = _rich_model()
    before = _everything(model)

    def failing():
        yield data
        yield data
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        keras_bnrnn.recalibrate(model, failing())
    for path, value in _everything(model).items():
        np.testing.assert_array_equal(value, before[path], err_msg=path)
    expected = model(data, training=False)
    model.layers[3].reset_state()
    assert np.all(np.isfinite(expected))
    keras_bnrnn.recalibrate(model, [data])  # and the model still works
    assert any(np.any(v != before[path]) for path, v in _everything(model).items())


def test_dropout_is_off():
    """The statistics are those that inference meets."""
    found = []
    for dropout in (0.0, 0.5):
        layer = conformance.find("gru-sequence").layer(
            return_state=False, dropout=dropout, seed=1, kernel_initializer="ones"
        )
        model = keras.Sequential(
            [
                keras.Input((None, FEATURES), dtype="float64"),
                keras.layers.Dropout(dropout, seed=1, dtype="float64"),
                layer,
            ]
        )
        keras_bnrnn.recalibrate(model, [np.random.default_rng(5).normal(size=(9, 4, FEATURES))])
        found.append(layer.get_weights()[-2:])
    np.testing.assert_allclose(found[1], found[0], rtol=1e-12)


def test_a_frozen_layer_is_recalibrated_and_stays_frozen():
    """Every population statistic of the model is replaced: freezing stops training, not this."""
    case = conformance.find("lstm-sequence")
    rng = np.random.default_rng(6)
    layer = case.layer(return_state=False)
    model = _model(layer)
    weights = case.weights(rng)
    conformance.set_weights(layer, weights)
    layer.trainable = False
    batches = list(_batches(rng))
    keras_bnrnn.recalibrate(model, [x for x, _ in batches])
    assert not layer.trainable
    expected = reference.exact_statistics(case.options, weights, batches)
    for name, value in conformance.statistics(case, layer).items():
        np.testing.assert_allclose(value, expected[name], rtol=1e-9, atol=1e-9, err_msg=name)


class _Data(keras.utils.PyDataset):
    """As many mini-batches as it is told, or endless, and no length."""

    def __init__(self, x, y, num_batches):
        super().__init__()
        self.x, self.y, self.count, self.events = x, y, num_batches, []

    @property
    def num_batches(self):
        return self.count

    def __getitem__(self, index):
        return self.x[index], self.y[index]

    def on_epoch_begin(self):
        self.events.append("begin")

    def on_epoch_end(self):
        self.events.append("end")


class _Tensor:
    """Of another library, elsewhere."""

    def __init__(self, array):
        self.array = array

    def cpu(self):
        return self.array

    def __array__(self, dtype=None, copy=None):
        raise TypeError("call cpu() first")


def test_datasets_of_every_kind_and_steps(capsys):
    """Inputs count alone, though the targets have their shape."""
    case = conformance.find("simple_rnn-sequence")
    rng = np.random.default_rng(7)
    weights = case.weights(rng)
    x = rng.normal(size=(3, BATCH, TIME, FEATURES))
    y = 100.0 * x
    expected = reference.exact_statistics(case.options, weights, [(part, None) for part in x[:2]])

    class Sequence(_Data):
        def __len__(self):
            return len(x)

    whole, targets = (array[:2].reshape(-1, TIME, FEATURES) for array in (x, y))
    datasets = {
        "tf.data": tf.data.Dataset.from_tensor_slices((x, y)),
        "with weights": tf.data.Dataset.from_tensor_slices((x, y, y[..., 0])),
        "inputs only": tf.data.Dataset.from_tensor_slices(x),
        "endless": tf.data.Dataset.from_tensor_slices((x, y)).repeat(),
        "PyDataset": Sequence(x, y, 3),
        "PyDataset without a length": _Data(x, y, 2),
        "endless PyDataset": _Data(x, y, None),
        "generator": ((part, None) for part in x),
        "list": list(zip(x, y, strict=True)),
        "loader of another library": [[_Tensor(part), _Tensor(part)] for part in x],
        "array": whole,
        "tensor": tf.constant(whole),
        "arrays": (whole, targets),
        "arrays and weights": (whole, targets, targets[..., 0, 0]),
    }
    layer = case.layer(return_state=False)
    model = _model(layer)
    for name, dataset in datasets.items():
        conformance.set_weights(layer, weights)
        keras_bnrnn.recalibrate(model, dataset, steps=2)
        found = conformance.statistics(case, layer)
        for statistic, value in expected.items():
            np.testing.assert_allclose(found[statistic], value, rtol=1e-9, err_msg=name)
    assert datasets["endless PyDataset"].events == ["begin", "end"]
    assert "2/2" in capsys.readouterr().out, "there is a progress bar"


def test_models_of_several_inputs():
    rng = np.random.default_rng(8)
    inputs = [keras.Input((TIME, FEATURES), name=name) for name in ("left", "right")]
    layer = conformance.find("simple_rnn-sequence").layer(dtype="float32", return_state=False)
    x = [rng.normal(size=(BATCH, TIME, FEATURES)) for _ in inputs]
    named = dict(zip(("left", "right"), x, strict=True))
    outputs = layer(keras.layers.Concatenate()(inputs))
    for model, datasets in (
        (keras.Model(inputs, outputs), [x, tuple(x), (x, x[0]), [(x, x[0])], [(tuple(x),)]]),
        (keras.Model(dict(zip(named, inputs, strict=True)), outputs), [named, (named, 0 * x[0])]),
    ):
        kernel = model.get_weights()[0]
        expected = (np.concatenate(x, -1) @ kernel).var(axis=(0, 1))
        for dataset in datasets:
            keras_bnrnn.recalibrate(model, dataset, verbose=0)
            np.testing.assert_allclose(layer.get_weights()[-1], expected, rtol=1e-4)
    with pytest.raises(ValueError, match="The model has 2 inputs"):
        keras_bnrnn.recalibrate(keras.Model(inputs, outputs), [tuple(x)], verbose=0)


def test_what_is_not_clear_is_refused():
    model = _model(conformance.find("simple_rnn-sequence").layer(return_state=False))
    x = np.ones((BATCH, TIME, FEATURES))
    for dataset, message in (
        (((x, x), (x, x)), "not clear"),
        ((x, x[:2]), "not clear"),
        ([(x, x, x, x)], "one of 4 parts"),
        (tf.data.Dataset.from_tensors(x).repeat(), "never ends"),
        (_Data([x], [x], None), "never ends"),
    ):
        with pytest.raises(ValueError, match=message) as error:
            keras_bnrnn.recalibrate(model, dataset)
        assert "\n" not in str(error.value)


def test_float32_statistics_of_a_large_mean():
    """Pooling over batches must not cancel either."""
    layer = conformance.find("simple_rnn-sequence").layer(dtype="float32", return_state=False)
    model = keras.Sequential([keras.Input((None, FEATURES)), layer])
    rng = np.random.default_rng(8)
    kernel = rng.normal(size=(FEATURES, UNITS)).astype("float32")
    layer.set_weights([kernel, *layer.get_weights()[1:]])
    x = rng.normal(1e3, 0.1, size=(6, 8, 5, FEATURES)).astype("float32")
    keras_bnrnn.recalibrate(model, list(x))
    a = (x.astype(float) @ kernel).reshape(-1, UNITS)
    *_, mean, variance = layer.get_weights()
    np.testing.assert_allclose(mean, a.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(variance, a.var(axis=0), rtol=2e-2)


def test_bare_cells_are_recalibrated_over_every_row():
    """A bare `keras.layers.RNN` shows its cell no mask; frame 0 is seen once more."""
    case = conformance.find("gru-frame")
    rng = np.random.default_rng(9)
    weights = case.weights(rng)
    cell = case.cell_class(UNITS, **case.kwargs, dtype="float64")
    rnn = keras.layers.RNN(cell, unroll=True, dtype="float64")
    model = keras.Sequential([keras.Input((TIME, FEATURES), dtype="float64"), rnn])
    conformance.set_weights(cell, weights)
    x = rng.normal(size=(2, BATCH, TIME, FEATURES))
    keras_bnrnn.recalibrate(model, list(x))
    a = (x @ weights["kernel"]).reshape(-1, weights["kernel"].shape[1])
    found = dict(zip(weights, cell.get_weights(), strict=True))
    np.testing.assert_allclose(found["moving_mean"], a.mean(axis=0), rtol=1e-9)
    np.testing.assert_allclose(found["moving_variance"], a.var(axis=0), rtol=1e-9)


@pytest.mark.parametrize(
    "model",
    [
        lambda: keras.Sequential([keras.Input((TIME, FEATURES)), keras.layers.LSTM(UNITS)]),
        lambda: keras.Sequential(
            [
                keras.Input((TIME, FEATURES)),
                keras_bnrnn.BatchNormLSTM(UNITS, normalization=None),
            ]
        ),
    ],
    ids=["plain", "none"],
)
def test_nothing_to_recalibrate_is_an_error(model):
    with pytest.raises(ValueError, match="recalibrate"):
        keras_bnrnn.recalibrate(model(), [np.ones((2, TIME, FEATURES), "float32")])


def test_an_empty_dataset_is_an_error():
    layer = conformance.find("lstm-sequence").layer(return_state=False)
    model = _model(layer)
    before = layer.get_weights()
    with pytest.raises(ValueError):
        keras_bnrnn.recalibrate(model, [])
    assert_all_close(layer.get_weights(), before)
