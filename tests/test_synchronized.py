"""`synchronized=True`: two replicas make the moments, and so the training step, of one.

On two logical CPUs under `tf.distribute.MirroredStrategy`.
"""

import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf

import conformance
import reference
from conformance import BATCH, FEATURES, KINDS, TIME, UNITS, assert_all_close

MOMENTUM = 0.8
HALF = BATCH // 2
CASES = [
    conformance.find(f"{kind}-{mode}")
    for kind in KINDS
    for mode in ("sequence", "frame", "frame_steps", "frame_renorm")
]


def _options(case):
    return reference.dataclasses.replace(case.options, momentum=MOMENTUM)


def _replicated(case, strategy, weights, **overrides):
    with strategy.scope():
        return case.built(weights, momentum=MOMENTUM, **overrides)


def _step(strategy, layer, batches, training=True):
    """One training call on each replica.

    Args:
        batches: (x, mask, projection weights of the outputs) for each replica.

    Returns:
        Outputs of each replica, and the sum over replicas of the gradients of the weights.
    """
    variables = [weight.value for weight in layer.trainable_weights]

    def on_replica(x, mask, weight):
        with tf.GradientTape() as tape:
            outputs, *_ = layer(x, mask=mask, training=training)
            loss = tf.reduce_sum(weight * outputs)
        return outputs, tape.gradient(loss, variables)

    @tf.function
    def run(*arguments):
        return strategy.run(on_replica, arguments)

    distributed = [
        strategy.experimental_distribute_values_from_function(
            lambda context, i=i: tf.constant(batches[context.replica_id_in_sync_group][i])
        )
        for i in range(3)
    ]
    outputs, gradients = run(*distributed)
    outputs = [np.asarray(y) for y in strategy.experimental_local_results(outputs)]
    summed = [
        sum(np.asarray(part) for part in strategy.experimental_local_results(gradient))
        for gradient in gradients
    ]
    names = [weight.name for weight in layer.trainable_weights]
    return outputs, dict(zip(names, summed, strict=True))


def _pad(array, time):
    return np.pad(array, [(0, 0), (0, time - array.shape[1]), (0, 0)][: array.ndim])


# Each takes a trace.
MASKED = conformance.parameters(
    itertools.product(CASES, ["no_mask", "right", "holey", "lopsided"]),
    [
        (conformance.find("lstm-sequence"), "lopsided"),
        (conformance.find("gru-frame"), "lopsided"),
        (conformance.find("simple_rnn-frame_steps"), "holey"),
    ],
)


@pytest.mark.parametrize(("case", "mask_name"), MASKED, ids=str)
def test_two_replicas_are_one_batch(case, mask_name, strategy):
    """Outputs, gradients and statistics; with lengths that differ from replica to replica."""
    rng = np.random.default_rng(0)
    weights = case.weights(rng)
    times = (TIME, TIME) if mask_name == "no_mask" else (TIME, TIME - 2)
    if mask_name == "lopsided":
        mask = np.repeat([True, False], HALF)[:, None] & np.ones((BATCH, TIME), bool)
    else:
        mask = conformance.masks().get(mask_name)
        mask = np.ones((BATCH, TIME), bool) if mask is None else mask.copy()
    mask[HALF:, times[1] :] = False
    x = rng.normal(size=(BATCH, TIME, FEATURES)) + np.repeat([0.0, 3.0], HALF)[:, None, None]
    projection = rng.normal(size=(BATCH, TIME, UNITS))
    projection[HALF:, times[1] :] = 0.0
    rows = (slice(0, HALF), slice(HALF, None))
    batches = [
        tuple(part[row, :time] for part in (x, mask, projection))
        for row, time in zip(rows, times, strict=True)
    ]
    layer = _replicated(case, strategy, weights, synchronized=True)
    outputs, gradients = _step(strategy, layer, batches)

    expected = reference.layer(_options(case), weights, x, mask, training=True)
    for found, row, time in zip(outputs, rows, times, strict=True):
        np.testing.assert_allclose(found, expected.outputs[row, :time], rtol=0, atol=1e-10)
    conformance.assert_statistics(case, layer, expected.statistics)
    for weight in layer.weights:
        copies = [np.asarray(v) for v in strategy.experimental_local_results(weight.value)]
        np.testing.assert_array_equal(copies[0], copies[-1], err_msg=weight.name)

    def loss(arguments):
        moved = weights | arguments
        result = reference.layer(_options(case), moved, x, mask, training=True)
        return (projection * result.outputs).sum()

    trainable = {name: weights[name] for name in gradients}
    for name, value in reference.gradients(loss, trainable).items():
        np.testing.assert_allclose(gradients[name], value, rtol=0, atol=1e-9, err_msg=name)


@pytest.mark.slow
@pytest.mark.by_route
@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_call_in_a_graph_updates_on_all_replicas(case, strategy):
    rng = np.random.default_rng(5)
    weights = case.weights(rng)
    batches = [rng.normal(k, 1 + k, size=(BATCH, TIME, FEATURES)) for k in range(3)]
    layer = _replicated(case, strategy, weights, synchronized=True)

    def on_replica():
        rows = tf.range(HALF) + HALF * tf.distribute.get_replica_context().replica_id_in_sync_group
        return [layer(tf.gather(x, rows), training=True)[0] for x in batches]

    run = tf.function(lambda: strategy.run(on_replica), autograph=False)
    expected = weights
    for x in batches:
        moved = reference.layer(_options(case), expected, x, training=True).statistics
        expected = expected | moved
    for _ in range(20):
        with strategy.scope():
            conformance.set_weights(layer, weights)
        run()
        for name, value in conformance.statistics(case, layer).items():
            np.testing.assert_allclose(value, expected[name], rtol=1e-9, atol=1e-9, err_msg=name)


@pytest.mark.parametrize(
    "case",
    conformance.parameters(
        [(case,) for case in CASES if case.kind == "lstm"],
        [(conformance.find(name),) for name in ("lstm-sequence", "lstm-frame")],
    ),
    ids=str,
)
def test_one_live_row_on_each_replica_suffices(case, strategy):
    rng = np.random.default_rng(1)
    weights = case.weights(rng)
    x = rng.normal(size=(2, 1, FEATURES))
    batches = [(x[i : i + 1], np.ones((1, 1), bool), np.ones((1, 1, UNITS))) for i in range(2)]
    layer = _replicated(case, strategy, weights, synchronized=True)
    outputs, _ = _step(strategy, layer, batches)
    expected = reference.layer(_options(case), weights, x, training=True)
    np.testing.assert_allclose(np.concatenate(outputs), expected.outputs, rtol=0, atol=1e-10)
    assert np.any(conformance.statistics(case, layer)["moving_mean"] != weights["moving_mean"])


@pytest.mark.by_route
@pytest.mark.parametrize("case", CASES, ids=str)
def test_without_a_strategy_it_changes_nothing(case):
    rng = np.random.default_rng(2)
    weights = case.weights(rng)
    x = rng.normal(size=(BATCH, TIME, FEATURES))
    layer = case.built(weights, momentum=MOMENTUM, synchronized=True)
    mask = conformance.masks()["holey"]
    expected = reference.layer(_options(case), weights, x, mask, training=True)
    found = layer(x, mask=mask, training=True)
    conformance.assert_as_expected(case, layer, found, expected)


UNSYNCHRONIZED = [
    "lstm-sequence",
    "simple_rnn-frame_recurrent",
    "gru-frame",
    "lstm-frame_recurrent_cell_steps",
]


@pytest.mark.parametrize(
    "name", conformance.parameters(zip(UNSYNCHRONIZED), [*zip(UNSYNCHRONIZED[:1])])
)
def test_without_synchronization_each_replica_has_its_own_moments(name, strategy):
    """And the statistics that are saved are the mean of the replicas'."""
    case = conformance.find(name)
    rng = np.random.default_rng(3)
    weights = case.weights(rng)
    x = rng.normal(size=(BATCH, TIME, FEATURES)) + np.repeat([0.0, 3.0], HALF)[:, None, None]
    rows = (slice(0, HALF), slice(HALF, None))
    layer = _replicated(case, strategy, weights)
    ones = np.ones((HALF, TIME), bool)
    batches = [(x[row], ones, np.ones((HALF, TIME, UNITS))) for row in rows]
    outputs, _ = _step(strategy, layer, batches)
    expected = [reference.layer(_options(case), weights, x[row], training=True) for row in rows]
    for found, result in zip(outputs, expected, strict=True):
        np.testing.assert_allclose(found, result.outputs, rtol=0, atol=1e-10)
    for statistic, value in conformance.statistics(case, layer).items():
        mean = np.mean([result.statistics[statistic] for result in expected], axis=0)
        np.testing.assert_allclose(value, mean, rtol=0, atol=1e-10, err_msg=statistic)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    conformance.parameters(
        [("lstm-sequence",), ("gru-frame_steps",), ("simple_rnn-frame",)], [("lstm-sequence",)]
    ),
)
def test_fit_on_two_replicas_is_fit_on_one(name, strategy):
    case = conformance.find(name)
    rng = np.random.default_rng(4)
    x = rng.normal(size=(2 * BATCH, TIME, FEATURES)).astype("float32")
    y = rng.normal(size=(2 * BATCH, TIME, 1)).astype("float32")

    def trained():
        keras.utils.set_random_seed(0)
        model = keras.Sequential(
            [
                keras.Input((TIME, FEATURES)),
                case.layer(dtype="float32", return_state=False, synchronized=True),
                keras.layers.Dense(1),
            ]
        )
        model.compile(keras.optimizers.SGD(0.1), "mse")
        model.fit(x, y, batch_size=BATCH, epochs=2, shuffle=False, verbose=0)
        return model.get_weights()

    alone = trained()
    with strategy.scope():
        together = trained()
    assert_all_close(alone, together, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("option", ["normalize_recurrent", "normalize_cell_state"])
def test_it_is_refused_with_what_the_loop_normalises(option):
    layer_class = conformance.find("lstm-sequence").layer_class
    with pytest.raises(ValueError, match="synchronized") as error:
        layer_class(UNITS, synchronized=True, **{option: True})
    assert option in str(error.value)
