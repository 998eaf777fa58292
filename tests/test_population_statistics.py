"""Population statistics: what they become in training, and when they are used and left alone.

The statistics of x W are computed here directly, from x, W and the mask; those of recurrent terms
and cell states, and those of cells in a bare `keras.layers.RNN`, come from the NumPy models.
"""

import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf

import conformance
import reference
from conformance import BATCH, CASES, FEATURES, KINDS, MAIN_CASES, TIME, UNITS, assert_all_close

MOMENTUM = 0.8
NORMALIZED = [case for case in CASES if case.normalized]


def _built(case, rng, **overrides):
    weights = case.weights(rng)
    return case.built(weights, **overrides), weights


def _moved(old, batch):
    return MOMENTUM * old + (1 - MOMENTUM) * batch


@pytest.mark.parametrize(
    ("kind", "normalization"),
    conformance.parameters(
        itertools.product(KINDS, ["sequence", "frame"]),
        [("simple_rnn", "frame"), ("lstm", "sequence"), ("gru", "frame")],
    ),
)
def test_one_update_a_call_with_the_pooled_moments(kind, normalization):
    """Both modes make the same update, but a frame of one live row counts only in "sequence"."""
    rng = np.random.default_rng(0)
    layer, weights = _built(conformance.find(f"{kind}-{normalization}"), rng, momentum=MOMENTUM)
    mean, variance = weights["moving_mean"], weights["moving_variance"]
    for mask in conformance.masks().values():
        x = rng.normal(rng.normal(), 2.0, size=(BATCH, TIME, FEATURES))
        layer(x, mask=mask, training=True)
        counted = np.ones((BATCH, TIME), bool) if mask is None else mask
        if normalization == "frame":
            counted = counted & (counted.sum(axis=0) >= 2)
        rows = (x @ weights["kernel"])[counted]
        mean, variance = _moved(mean, rows.mean(axis=0)), _moved(variance, rows.var(axis=0))
        found = dict(zip(weights, layer.get_weights(), strict=True))
        np.testing.assert_allclose(found["moving_mean"], mean, rtol=1e-12)
        np.testing.assert_allclose(found["moving_variance"], variance, rtol=1e-12)


@pytest.mark.parametrize(
    ("kind", "backwards"),
    conformance.parameters(
        itertools.product(KINDS, [False, True]), [("lstm", False), ("gru", True)]
    ),
)
def test_a_pair_for_each_of_the_first_steps(kind, backwards):
    """Steps are counted in the order of the loop, backwards from each row's last live frame."""
    rng = np.random.default_rng(1)
    layer, weights = _built(
        conformance.find(f"{kind}-frame_steps"), rng, momentum=MOMENTUM, go_backwards=backwards
    )
    steps = len(weights["moving_mean"])
    mean, variance = weights["moving_mean"].copy(), weights["moving_variance"].copy()
    for mask in conformance.masks().values():
        x = rng.normal(rng.normal(), 2.0, size=(BATCH, steps, FEATURES))
        live = np.ones((BATCH, steps), bool) if mask is None else mask[:, :steps]
        layer(x, mask=None if mask is None else live, training=True)
        a, ends = x @ weights["kernel"], steps - live[:, ::-1].argmax(axis=1)
        for step in range(steps):
            frames = [(row, end - 1 - step if backwards else step) for row, end in enumerate(ends)]
            rows = np.array([a[one] for one in frames if one[1] >= 0 and live[one]])
            if len(rows) >= 2:
                mean[step] = _moved(mean[step], rows.mean(axis=0))
                variance[step] = _moved(variance[step], rows.var(axis=0))
        found = dict(zip(weights, layer.get_weights(), strict=True))
        np.testing.assert_allclose(found["moving_mean"], mean, rtol=1e-12)
        np.testing.assert_allclose(found["moving_variance"], variance, rtol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_later_steps_use_the_last_pair(kind):
    """At inference: repeating the last pair for every later step changes nothing."""
    rng = np.random.default_rng(2)
    case = conformance.find(f"{kind}-frame_recurrent_steps")
    layer, weights = _built(case, rng)
    repeated = {
        name: np.concatenate([w] + [w[-1:]] * (TIME - len(w)))
        if name.endswith(reference.STATISTICS)
        else w
        for name, w in weights.items()
    }
    more = case.built(repeated, max_timesteps=TIME)
    x = rng.normal(size=(BATCH, TIME, FEATURES))
    np.testing.assert_allclose(layer(x)[0], more(x)[0], rtol=0, atol=1e-13)


@pytest.mark.by_route
@pytest.mark.parametrize("case", NORMALIZED, ids=str)
def test_a_frozen_layer_is_at_inference(case):
    rng = np.random.default_rng(3)
    layer, weights = _built(case, rng)
    x = rng.normal(size=(BATCH, TIME, FEATURES))
    mask = conformance.masks()["holey"]
    layer.trainable = False
    assert not layer.trainable_weights
    outputs, states, gradients = conformance.call_and_differentiate(layer, x, mask, training=True)
    expected = reference.layer(case.options, weights, x, mask, training=False)
    conformance.assert_as_expected(case, layer, (outputs, *states), expected, 1e-11)
    assert_all_close(layer.get_weights(), weights.values())
    layer.trainable = True
    _, _, inference = conformance.call_and_differentiate(layer, x, mask, training=False)
    np.testing.assert_allclose(gradients["x"], inference["x"], rtol=0, atol=1e-11)
    layer(x, mask=mask, training=True)
    for name, value in conformance.statistics(case, layer).items():
        assert np.any(value != weights[name]), f"unfrozen, the layer learns {name} again"


@pytest.mark.parametrize("name", ["normalizer", "recurrent_normalizer", "cell_normalizer"])
def test_one_normaliser_frozen_by_itself(name):
    """It keeps its statistics, and the others move."""
    case = conformance.find("lstm-sequence_recurrent_cell")
    rng = np.random.default_rng(15)
    layer, weights = _built(case, rng)
    getattr(layer.cell, name).trainable = False
    layer(rng.normal(size=(BATCH, TIME, FEATURES)), training=True)
    prefix = name.removesuffix("normalizer")
    for statistic, value in conformance.statistics(case, layer).items():
        kept = statistic in (f"{prefix}moving_mean", f"{prefix}moving_variance")
        assert np.all(value == weights[statistic]) == kept, statistic


def test_a_layer_frozen_at_construction_or_by_its_model():
    rng = np.random.default_rng(4)
    x = rng.normal(size=(BATCH, TIME, FEATURES)).astype("float32")
    for how in ("construction", "layer", "model"):
        layer = conformance.find("lstm-sequence_recurrent_cell").layer(
            dtype="float32", return_state=False, trainable=how != "construction"
        )
        model = keras.Sequential([layer, keras.layers.Dense(1)])
        model.build(x.shape)
        if how == "layer":
            layer.trainable = False
        if how == "model":
            model.trainable = False
        before = layer.get_weights()
        model.compile("sgd", "mse", run_eagerly=True)
        model.train_on_batch(x, np.ones((BATCH, TIME, 1), "float32"))
        for old, new in zip(before, layer.get_weights(), strict=True):
            np.testing.assert_array_equal(new, old, err_msg=how)


@pytest.mark.by_route
@pytest.mark.parametrize("case", NORMALIZED, ids=str)
def test_inference_leaves_the_statistics_alone(case):
    layer, weights = _built(case, np.random.default_rng(5))
    layer(np.ones((BATCH, TIME, FEATURES)), training=False)
    layer(np.ones((BATCH, TIME, FEATURES)))
    assert_all_close(layer.get_weights(), weights.values())


@pytest.mark.by_route
@pytest.mark.parametrize(
    "case", [c for c in NORMALIZED if c.kwargs["normalization"] != "sequence"], ids=str
)
def test_a_single_row_is_too_few_for_frames(case):
    rng = np.random.default_rng(6)
    layer, weights = _built(case, rng)
    x = rng.normal(size=(1, TIME, FEATURES))
    expected = layer(x, training=False)
    assert_all_close(layer(x, training=True), expected, atol=1e-12)
    assert_all_close(layer.get_weights(), weights.values())


@pytest.mark.parametrize("kind", KINDS)
def test_a_single_frame_is_too_few_for_a_call(kind):
    rng = np.random.default_rng(7)
    layer, weights = _built(conformance.find(f"{kind}-sequence"), rng)
    x = rng.normal(size=(BATCH, TIME, FEATURES))
    mask = np.zeros((BATCH, TIME), bool)
    mask[2, 3] = True
    expected = layer(x, mask=mask, training=False)
    assert_all_close(layer(x, mask=mask, training=True), expected, atol=1e-12)
    assert_all_close(layer.get_weights(), weights.values())
    mask[0, 1] = True  # two suffice
    layer(x, mask=mask, training=True)
    assert np.any(
        conformance.statistics(conformance.find(f"{kind}-sequence"), layer)["moving_mean"]
        != weights["moving_mean"]
    )


def _one_after_another(layer, batches):
    return [layer(x, training=True) for x in batches]


def _in_micro_batches(layer, batches):
    weights = [weight.value for weight in layer.trainable_weights]
    gradients = []
    for x in batches:
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(tf.square(layer(x, training=True)))
        gradients.append(tape.gradient(loss, weights))
    return gradients


def _between_inferences(layer, batches):
    return [layer(x, training=training) for x in batches for training in (True, False)]


def _by_time_distributed(layer, batches):
    return keras.layers.TimeDistributed(layer, dtype=layer.dtype)(
        tf.stack(batches, 1), training=True
    )


def _by_a_function(layer, batches):
    """Traced for any shape, and optimized for one when it has become part of another."""
    shape = tf.TensorSpec((None, None, FEATURES), layer.dtype)
    train = tf.function(lambda x: layer(x, training=True), [shape], autograph=False)
    return [train(x) for x in batches]


def _in_a_loop(layer, batches):
    batches = tf.stack(batches)

    def turn(index, total):
        return index + 1, total + layer(batches[index], training=True)

    return tf.while_loop(
        lambda index, _: index < batches.shape[0],
        turn,
        (0, tf.zeros((BATCH, UNITS), layer.dtype)),
        parallel_iterations=1,
    )


MANY_CALLS = (
    _one_after_another,
    _in_micro_batches,
    _between_inferences,
    _by_time_distributed,
    _by_a_function,
    _in_a_loop,
)


@pytest.mark.parametrize(
    ("case", "call"),
    conformance.parameters(
        itertools.product(NORMALIZED, MANY_CALLS),
        [
            (conformance.find("lstm-sequence"), _one_after_another),
            (conformance.find("gru-frame"), _by_time_distributed),
            (conformance.find("lstm-frame_recurrent_cell_steps_renorm_clipped"), _in_a_loop),
            (conformance.find("gru-sequence_renorm"), _between_inferences),
            (conformance.find("simple_rnn-frame_recurrent"), _by_a_function),
            (conformance.find("gru_reset_before-sequence"), _in_micro_batches),
        ],
    ),
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_every_call_in_a_graph_updates(case, call):
    """Shapes are static and no frame masked, so that the optimizer of graphs has most to prune."""
    rng = np.random.default_rng(14)
    layer, weights = _built(
        case, rng, momentum=MOMENTUM, return_sequences=False, return_state=False
    )
    batches = [rng.normal(k, 1 + k, size=(BATCH, TIME, FEATURES)) for k in range(3)]
    expected = weights
    for x in batches:
        moved = reference.layer(_options(case), expected, x, training=True).statistics
        expected = expected | moved
    run = tf.function(lambda *batches: call(layer, list(batches)), autograph=False)
    for _ in range(20):
        conformance.set_weights(layer, weights)
        run(*batches)
        for name, value in conformance.statistics(case, layer).items():
            np.testing.assert_allclose(value, expected[name], rtol=1e-9, atol=1e-9, err_msg=name)


def _updated_by_vectorized_map(layer, batches):
    run = tf.function(
        lambda x: tf.vectorized_map(lambda x: layer(x, training=True), x), autograph=False
    )
    before, found = layer.get_weights(), []
    for _ in range(20):
        layer.set_weights(before)
        run(tf.stack(batches))
        found.append([weight.numpy() for weight in layer.non_trainable_weights])
    return found


@pytest.mark.parametrize("case", ["simple_rnn-sequence", "gru-frame_renorm"])
def test_under_vectorized_map_the_first_example_updates(case):
    """As with Keras's layer, whose updates are lost likewise."""
    case = conformance.find(case)
    rng = np.random.default_rng(15)
    batches = [rng.normal(k, 1 + k, size=(BATCH, TIME, FEATURES)) for k in range(3)]
    layer, weights = _built(
        case, rng, momentum=MOMENTUM, return_sequences=False, return_state=False
    )
    expected = reference.layer(_options(case), weights, batches[0], training=True).statistics
    for found in _updated_by_vectorized_map(layer, batches):
        for value, same in zip(found, expected.values(), strict=True):
            np.testing.assert_allclose(value, same, rtol=1e-9, atol=1e-9)
    keras_layer = keras.layers.BatchNormalization(momentum=MOMENTUM, dtype="float64")
    keras_layer.build((None, TIME, FEATURES))
    for mean, _ in _updated_by_vectorized_map(keras_layer, batches):
        assert_all_close(mean, (1 - MOMENTUM) * batches[0].mean((0, 1)), atol=1e-9)


@pytest.mark.parametrize("normalization", ["sequence", "frame"])
def test_two_live_rows_normalise_to_plus_and_minus_one(normalization):
    layer = conformance.find("simple_rnn-sequence").layer(
        normalization=normalization,
        activation="linear",
        recurrent_initializer="zeros",
        epsilon=1e-12,
        return_state=False,
    )
    x = np.random.default_rng(8).normal(size=(2, 1, FEATURES))
    found = np.abs(layer(x, training=True))
    np.testing.assert_allclose(found, np.ones((2, 1, UNITS)), rtol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_moments_see_the_dropped_inputs(kind):
    """One mask [batch, features] on x, before W: with one feature of ones, a is 0 or 2 W."""
    for normalization in ("sequence", "frame"):
        layer = conformance.find(f"{kind}-{normalization}").layer(
            dropout=0.5, seed=3, momentum=0.0, dtype="float32", use_bias=False
        )
        batch = 64
        layer.build((batch, TIME, 1))
        weights = layer.get_weights()
        weights[0] = np.ones_like(weights[0])
        layer.set_weights(weights)
        layer(np.ones((batch, TIME, 1)), training=True)
        *_, mean, variance = layer.get_weights()
        kept = mean / 2  # the share of rows that the mask kept, the same for every unit
        assert 0.2 < kept[0] < 0.8
        np.testing.assert_allclose(kept * batch, np.round(kept * batch), atol=1e-4)
        np.testing.assert_allclose(mean, np.full_like(mean, mean[0]))
        np.testing.assert_allclose(variance, 4 * kept * (1 - kept), rtol=1e-4)


# Cells in a bare keras.layers.RNN.

CELL_CASES = [case for case in CASES if case.cell_mode]


def _bare(case, weights, **rnn_kwargs):
    cell = case.cell_class(UNITS, **case.kwargs, momentum=MOMENTUM, dtype="float64")
    rnn = keras.layers.RNN(
        cell, return_sequences=True, return_state=True, dtype="float64", **rnn_kwargs
    )
    rnn.build((BATCH, TIME, FEATURES))
    conformance.set_weights(cell, weights)
    return rnn


def _options(case, **changes):
    return reference.dataclasses.replace(case.options, momentum=MOMENTUM, **changes)


def _assert_bare(case, rnn, result, found):
    outputs, *states = found
    np.testing.assert_allclose(outputs, result.outputs, rtol=0, atol=1e-10)
    for state, expected in zip(states, result.states):  # noqa: B905  # a step counter may follow
        np.testing.assert_allclose(state, expected, rtol=0, atol=1e-10)
    conformance.assert_statistics(case, rnn, result.statistics)


LOOPS = {"rolled": {}, "backwards": {"go_backwards": True}, "unrolled": {"unroll": True}}


@pytest.mark.parametrize(
    ("case", "rnn_kwargs", "training"),
    conformance.parameters(
        itertools.product(CELL_CASES, LOOPS.values(), [False, True]),
        [
            *((case, {}, True) for case in CELL_CASES),
            (conformance.find("simple_rnn-none"), {}, False),
            (conformance.find("lstm-none_cell"), LOOPS["backwards"], True),
            (conformance.find("gru-frame"), LOOPS["unrolled"], True),
            (conformance.find("lstm-frame_recurrent_cell_steps"), LOOPS["backwards"], True),
            (conformance.find("lstm-frame_recurrent_cell_steps"), LOOPS["unrolled"], False),
        ],
    ),
    ids=str,
)
def test_a_cell_in_a_bare_rnn_updates_at_every_call_of_it(case, rnn_kwargs, training):
    rng = np.random.default_rng(9)
    weights = case.weights(rng)
    rnn = _bare(case, weights, **rnn_kwargs)
    x = rng.normal(size=(BATCH, TIME, FEATURES))
    result = reference.bare_cell(
        _options(case, go_backwards=rnn_kwargs.get("go_backwards", False)),
        weights,
        x,
        training=training,
        extra_calls=0 if rnn_kwargs.get("unroll") else 1,
    )
    found = rnn(x, training=training)
    _assert_bare(case, rnn, result, found)
    counted = 1 if case.kwargs.get("max_timesteps") else 0
    assert len(found) == 1 + case.state_count + counted, "the counter is the last state"
    if counted:
        np.testing.assert_array_equal(np.unique(found[-1]), [TIME])


@pytest.mark.by_route
@pytest.mark.parametrize("case", [c for c in CELL_CASES if c in MAIN_CASES], ids=str)
def test_a_bare_rnn_in_a_graph_updates_as_often(case):
    rng = np.random.default_rng(10)
    weights = case.weights(rng)
    rnn = _bare(case, weights)
    x = rng.normal(size=(BATCH, TIME, FEATURES))
    result = reference.bare_cell(_options(case), weights, x, training=True)
    found = tf.function(lambda x: rnn(x, training=True))(x)
    _assert_bare(case, rnn, result, found)


@pytest.mark.by_route
@pytest.mark.parametrize("case", [c for c in CELL_CASES if c in MAIN_CASES], ids=str)
def test_a_single_row_in_a_bare_rnn(case):
    rng = np.random.default_rng(11)
    weights = case.weights(rng)
    rnn = _bare(case, weights)
    x = rng.normal(size=(1, TIME, FEATURES))
    result = reference.bare_cell(_options(case), weights, x, training=True)
    _assert_bare(case, rnn, result, rnn(x, training=True))
    assert_all_close(rnn.get_weights(), weights.values())


@pytest.mark.parametrize("kind", KINDS)
def test_a_bare_rnn_counts_every_row_masked_or_not(kind):
    """What the layers exist to avoid, and the documentation warns of."""
    rng = np.random.default_rng(12)
    case = conformance.find(f"{kind}-frame")
    weights = case.weights(rng)
    rnn = _bare(case, weights)
    x = rng.normal(size=(BATCH, TIME, FEATURES))
    rnn(x, mask=conformance.masks()["right"], training=True)
    result = reference.bare_cell(_options(case), weights, x, training=True)
    conformance.assert_statistics(case, rnn, result.statistics)


@pytest.mark.parametrize("kind", KINDS)
def test_stacked_cells_are_called_twice_more_each(kind):
    """`StackedRNNCells` adds a call on frame 0 to the loop's."""
    rng = np.random.default_rng(13)
    case = conformance.find(f"{kind}-frame")
    first = case.weights(rng)
    second = case.weights(rng, features=UNITS)
    cells = [
        case.cell_class(UNITS, **case.kwargs, momentum=MOMENTUM, dtype="float64") for _ in range(2)
    ]
    stack = keras.layers.StackedRNNCells(cells, dtype="float64")
    rnn = keras.layers.RNN(stack, return_sequences=True, dtype="float64")
    rnn.build((BATCH, TIME, FEATURES))
    x = rng.normal(size=(BATCH, TIME, FEATURES))
    for cell, weights in zip(cells, (first, second), strict=True):
        conformance.set_weights(cell, weights)
    found = rnn(x, training=True)
    below = reference.bare_cell(_options(case), first, x, training=True, extra_calls=2)
    above = reference.bare_cell(_options(case), second, below.outputs, training=True, extra_calls=2)
    np.testing.assert_allclose(found, above.outputs, rtol=0, atol=1e-10)
    for cell, result in zip(cells, (below, above), strict=True):
        conformance.assert_statistics(case, cell, result.statistics)


@pytest.mark.parametrize("kind", KINDS)
def test_a_cell_refuses_what_needs_the_sequence(kind):
    case = conformance.find(f"{kind}-sequence")
    with pytest.raises(ValueError, match=case.layer_class.__name__):
        case.cell_class(UNITS, normalization="sequence")
