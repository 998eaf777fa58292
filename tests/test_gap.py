"""`StatisticsGap`: how far batch and population statistics are apart, in the logs of `fit`."""

import csv

import keras
import numpy as np
import pytest
import tensorflow as tf

import conformance
import keras_bnrnn
import reference
from conformance import BATCH, CASES, FEATURES, TIME, UNITS
from keras_bnrnn import gap

RUNS = ("jit_compile", "run_eagerly")


def _batches(rng, count=2):
    """Batches (x, mask) of several sizes and lengths, zero-padded."""
    for i in range(count):
        x = rng.normal(i, 1.0 + i, size=(BATCH + i, TIME + i, FEATURES))
        mask = np.arange(TIME + i) < rng.integers(1, TIME + i + 1, BATCH + i)[:, None]
        mask[0] = True  # At the longest length a single live row is left.
        yield np.where(mask[..., None], x, 0.0), mask


def _masked(*layers):
    inputs = keras.Input((None, FEATURES), dtype="float64")
    return keras.Sequential([inputs, keras.layers.Masking(0.0, dtype="float64"), *layers])


def _measured(model, batches, **options):
    measure = keras_bnrnn.StatisticsGap(batches, **options)
    measure.set_model(model)
    return measure.measure()


def _expected(name, gaps):
    logs = {}
    for prefix, (variance, mean) in gaps.items():
        path = "/".join(filter(None, [name, prefix.strip("_")]))
        logs |= {f"gap_variance/{path}": variance, f"gap_mean/{path}": mean}
    return logs


@pytest.mark.by_route
@pytest.mark.parametrize("case", [case for case in CASES if case.normalized], ids=str)
def test_values_are_those_of_numpy(case):
    rng = np.random.default_rng(0)
    weights = case.weights(rng)
    layer = case.layer(return_state=False, name="layer")
    model = _masked(layer)
    conformance.set_weights(layer, weights)
    # An unrolled layer takes one length alone.
    batches = list(_batches(rng, 1 if "unroll" in case.name else 2))
    found = _measured(model, [x for x, _ in batches])
    assert found == pytest.approx(
        _expected("layer", reference.gaps(case.options, weights, batches)), rel=1e-9, abs=1e-12
    )
    for name, value in zip(weights, layer.get_weights(), strict=True):
        np.testing.assert_array_equal(value, weights[name], err_msg=name)


@pytest.mark.parametrize("first", ["plain", "renorm", "frozen"])
def test_later_layers_see_what_they_see_in_training(first):
    rng = np.random.default_rng(1)
    renorm = {"renorm": first == "renorm"}
    cases = [conformance.find(f"lstm-frame{name}") for name in ("_renorm" * renorm["renorm"], "")]
    weights = [cases[0].weights(rng), cases[1].weights(rng, features=UNITS)]
    layers = [case.layer(return_state=False, name=f"lstm_{i}") for i, case in enumerate(cases)]
    model = keras.Sequential([keras.Input((None, FEATURES), dtype="float64"), *layers])
    for layer, values in zip(layers, weights, strict=True):
        conformance.set_weights(layer, values)
    layers[0].trainable = first != "frozen"
    x = rng.normal(1.0, 3.0, size=(BATCH, TIME, FEATURES))
    between = reference.layer(cases[0].options, weights[0], x, training=first == "plain").outputs
    expected = _expected("lstm_0", reference.gaps(cases[0].options, weights[0], [(x, None)]))
    expected |= _expected("lstm_1", reference.gaps(cases[1].options, weights[1], [(between, None)]))
    assert _measured(model, [x]) == pytest.approx(expected, rel=1e-9)


def test_a_layer_that_was_frozen_since_is_measured_as_frozen():
    model = conformance.model_of("sequential", conformance.find("lstm-sequence_recurrent"))
    measure = keras_bnrnn.StatisticsGap([np.ones((4, TIME, FEATURES), "float32")])
    measure.set_model(model)
    trained = measure.measure()
    model.trainable = False
    frozen = measure.measure()
    assert frozen.keys() == trained.keys()
    assert frozen != trained  # The recurrent term of other states.


def test_every_layer_has_a_name_of_its_own():
    for container, names in {
        "bidirectional": ["bidirectional/forward_gru", "bidirectional/backward_gru"],
        "time_distributed": ["time_distributed/gru"],
        "stacked_cells": ["rnn/gru_cell", "rnn/gru_cell_1"],
    }.items():
        for _ in range(2):  # Keras counts on from model to model.
            model = conformance.model_of(container, conformance.find("gru-frame"))
            assert [name.replace("batch_norm_", "") for name in gap.named(model)] == names

    class Twins(keras.Model):
        def __init__(self):
            super().__init__()
            cells = [keras_bnrnn.BatchNormLSTMCell(2, name="cell") for _ in range(2)]
            self.halves = [
                keras.Sequential([keras.layers.RNN(cell, name="rnn")], name="half")
                for cell in cells
            ]
            self.again = self.halves[0]

        def call(self, x):
            return self.halves[0](x) + self.halves[1](x) + self.again(x)

    model = Twins()
    model(np.ones((2, TIME, FEATURES), "float32"))
    assert list(gap.named(model)) == ["half/rnn", "half/rnn_1"]


@pytest.mark.parametrize("container", ["bidirectional", "time_distributed", "stacked_cells"])
@pytest.mark.slow
def test_wrapped_layers_are_measured(container):
    x = np.random.default_rng(2).normal(size=(4, TIME, FEATURES)).astype("float32")
    model = conformance.model_of(container, conformance.find("lstm-frame_recurrent_cell_steps"))
    found = _measured(model, [x])
    assert len(found) == 2 * len(gap.named(model))
    assert min(found.values()) > 0.0


def _model(stateful=False, rows=None, **options):
    keras.utils.set_random_seed(3)
    model = keras.Sequential(
        [
            keras.Input(batch_shape=(rows, None, FEATURES)),
            keras.layers.Dropout(0.5),
            keras_bnrnn.BatchNormLSTM(
                4,
                normalization="frame",
                stateful=stateful,
                momentum=0.5,
                name="lstm",
            ),
            keras.layers.Dense(1),
        ]
    )
    model.compile(keras.optimizers.SGD(0.1), "mse", **options)
    return model


def _data(count=2):
    rng = np.random.default_rng(4)
    x = rng.normal(2.0, 2.0, size=(count * 8, TIME, FEATURES)).astype("float32")
    return tf.data.Dataset.from_tensor_slices((x, x[:, 0, :1])).batch(8, drop_remainder=True)


@pytest.mark.parametrize(
    "options",
    [{}, *(pytest.param({name: True}, marks=pytest.mark.slow) for name in RUNS)],
    ids=str,
)
def test_training_is_as_without(options, tmp_path):
    """Dropout's random numbers, carried states and statistics among it; and CSVs have columns."""
    data, trained = _data(), []
    measure = keras_bnrnn.StatisticsGap(data, steps=1)
    log = keras.callbacks.CSVLogger(tmp_path / "log.csv")
    for callbacks in ([], [measure, log]):
        model = _model(stateful=True, rows=8, **options)
        history = model.fit(data, epochs=2, callbacks=callbacks, verbose=0, shuffle=False).history
        states = [state.numpy() for state in model.get_layer("lstm").states]
        trained.append([history["loss"], *model.get_weights(), *states])
    for without, found in zip(*trained, strict=True):
        np.testing.assert_array_equal(found, without)
    with (tmp_path / "log.csv").open() as file:
        rows = list(csv.DictReader(file))
    for name in ("gap_mean/lstm", "gap_variance/lstm"):
        np.testing.assert_allclose([float(row[name]) for row in rows], history[name])
        assert min(history[name]) > 0.0


@pytest.mark.slow
def test_replicas_take_their_shares(strategy):
    """Each measures what it trains with, and keeps its own statistics and states."""
    local = strategy.experimental_local_results
    with strategy.scope():
        inputs = keras.Input(batch_shape=(4, None, FEATURES))
        layers = [
            keras_bnrnn.BatchNormSimpleRNN(
                2, normalization="frame", stateful=True, synchronized=together
            )
            for together in (False, True)
        ]
        outputs = keras.layers.Add()([layer(inputs) for layer in layers])
        model = keras.Model(inputs, outputs)
    data = _data()
    normalizers = [layer.cell.normalizer for layer in layers]
    statistics = [(one.moving_mean, one.moving_variance) for one in normalizers]
    rng = np.random.default_rng(7)
    own = [v for pair in statistics for v in pair] + [v for layer in layers for v in layer.states]
    parts = [part for variable in own for part in local(variable.value)]
    for part in parts:
        part.assign(rng.uniform(0.5, 1.5, part.shape))
    before = [part.numpy() for part in parts]
    measure = keras_bnrnn.StatisticsGap(data)
    measure.set_model(model)
    found = measure.measure()
    dealt_out = data.unbatch().batch(4, drop_remainder=True)
    measure.dataset = strategy.distribute_datasets_from_function(lambda context: dealt_out)
    assert measure.measure() == pytest.approx(found, rel=1e-5)
    for part, old in zip(parts, before, strict=True):
        np.testing.assert_array_equal(part, old)
    for layer, name, pair in zip(layers, gap.named(model), statistics, strict=True):
        expected = []
        for replica in range(2):
            mean, variance = (local(v.value)[replica].numpy() for v in pair)
            for x, _ in data:
                a = x.numpy() @ layer.cell.kernel.numpy()
                a = a if layer.synchronized else a[4 * replica :][:4]
                sigma = np.sqrt(variance + layer.epsilon)
                expected.append(
                    (
                        np.abs(np.log(np.sqrt(a.var(0) + layer.epsilon) / sigma)).mean(),
                        np.abs((a.mean(0) - mean) / sigma).mean(),
                    )
                )
        of_layer = [found[gap.VARIANCE + name], found[gap.MEAN + name]]
        np.testing.assert_allclose(of_layer, np.mean(expected, 0), rtol=1e-4)


@pytest.mark.slow
def test_it_is_large_where_a_model_fails_at_inference():
    """Frames that differ by orders of magnitude, and statistics that all of them share."""
    rng = np.random.default_rng(5)
    x = rng.normal(size=(32, 4, 2)) * [[[1.0], [10.0], [100.0], [1000.0]]]
    x, y = x.astype("float32"), (x[:, 0, :1] > 0).astype("float32")
    data = tf.data.Dataset.from_tensors((x, y)).repeat()
    gaps, losses = {}, {}
    for renorm in (False, True):
        keras.utils.set_random_seed(0)
        layer = keras_bnrnn.BatchNormSimpleRNN(
            8, normalization="frame", momentum=0.5, renorm=renorm, name="rnn"
        )
        model = keras.Sequential([keras.Input((4, 2)), layer, keras.layers.Dense(1, "sigmoid")])
        model.compile(keras.optimizers.Adam(0.05), "binary_crossentropy")
        history = model.fit(
            data,
            steps_per_epoch=40,
            callbacks=[keras_bnrnn.StatisticsGap([x])],
            shuffle=False,
            verbose=0,
        ).history
        [gaps[renorm]] = history["gap_variance/rnn"]
        evaluated, trained = (
            float(tf.reduce_mean(keras.losses.binary_crossentropy(y, model(x, training=training))))
            for training in (False, True)  # The latter moves the statistics.
        )
        losses[renorm] = evaluated / trained
    assert gaps[False] > 1.0
    assert losses[False] > 3.0  # The gap shows it before the evaluation.
    assert gaps[True] > 1.0  # Renormalisation bridges it.
    assert losses[True] == pytest.approx(1.0, rel=1e-2)


def test_what_has_no_statistics_has_no_logs():
    x = np.ones((1, TIME, FEATURES), "float32")
    plain = keras.Sequential([keras.Input((None, FEATURES)), keras.layers.LSTM(2)])
    assert _measured(plain, [x]) == {}
    assert _measured(_model(), [x]) == {}  # Frames of a single row.


def test_an_iterator_serves_every_epoch():
    x = np.random.default_rng(6).normal(size=(4, TIME, FEATURES)).astype("float32")
    measure = keras_bnrnn.StatisticsGap(iter([x, 2.0 * x]), steps=1)
    measure.set_model(_model())
    assert measure.measure() == measure.measure() == _measured(measure.model, [x]) != {}


def test_bad_arguments():
    with pytest.raises(ValueError, match="steps must be a positive integer or None"):
        keras_bnrnn.StatisticsGap([], steps=0)
