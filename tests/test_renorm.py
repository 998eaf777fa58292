"""Batch renormalisation: what it promises beside the numbers, which test_against_numpy.py has."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import conformance
import keras_bnrnn
from conformance import BATCH, CASES, FEATURES, TIME, UNITS, assert_all_close
from keras_bnrnn import fit
from keras_bnrnn.moments import Clipping, Moments, normalizing_statistics
from keras_bnrnn.population import begin_from

RENORM = [case for case in CASES if case.kwargs.get("renorm")]
UNCLIPPED = [case for case in RENORM if "renorm_clipping" not in case.kwargs]


def _layer_and_inputs(case, seed=0, **kwargs):
    rng = np.random.default_rng(seed)
    x = rng.normal(1.0, 2.0, size=(BATCH, TIME, FEATURES))
    return case.built(case.weights(rng), **kwargs), x


@pytest.mark.parametrize("case", UNCLIPPED, ids=str)
def test_training_computes_what_inference_does(case):
    layer, x = _layer_and_inputs(case)
    for mask in conformance.masks().values():
        inference = layer(x, mask=mask, training=False)
        assert_all_close(layer(x, mask=mask, training=True), inference, atol=1e-12)


def _model(**options):
    layer = keras_bnrnn.BatchNormLSTM(16, normalization="frame", renorm=True, **options)
    return keras.Sequential([keras.Input((40, 2)), layer]), layer.cell


def test_a_fit_begins_from_a_first_mini_batch(tmp_path):
    """Small inputs: normalised from the second call on, they blow up what is within the loop."""
    x = 1e-2 * np.random.default_rng(0).normal(size=(20, 40, 2)).astype("float32")
    data = tf.data.Dataset.from_tensors((x, np.zeros((20, 16), "float32")))

    def build():
        keras.utils.set_random_seed(0)
        model, _ = _model(normalize_recurrent=True, normalize_cell_state=True)
        model.compile(keras.optimizers.SGD(0.0), "mse")  # Nothing is learnt, only statistics move.
        return model

    model, _ = fit.fit(build, lambda epoch: data, data, 1, tmp_path / "run", verbose=0)
    exact = build()
    keras_bnrnn.recalibrate(exact, data, verbose=0)
    for found, expected in zip(model.weights, exact.weights, strict=True):
        if found.name.endswith("updates"):
            np.testing.assert_array_equal(found, 2.0)
        elif found.name == "cell_moving_variance":
            assert np.max(found) < 3 * np.max(expected)


def test_begin_from_leaves_others_alone():
    model, _ = _model()
    before = model.get_weights()
    begin_from(model, lambda: [np.ones((4, 40, 2), "float32")])
    assert_all_close(dict(enumerate(model.get_weights())), dict(enumerate(before)), atol=0)


def test_inputs_far_from_zero():
    """Of mean 1000 and deviation 0.1, in float32: a plain x W would lose them."""
    case = conformance.find("lstm-sequence_renorm")
    wide, x = _layer_and_inputs(case)
    x = 1000.0 + 0.1 * (x - x.mean()) / x.std()
    for _ in range(3):
        wide(x, training=True)
    narrow = case.layer(dtype="float32")
    narrow.build(x.shape)
    narrow.set_weights(wide.get_weights())
    found = narrow(x, training=True)[0]
    np.testing.assert_allclose(found, wide(x.astype("float32"), training=True)[0], atol=2e-2)


@pytest.mark.parametrize("case", RENORM, ids=str)
def test_statistics_are_the_average_of_what_was_seen(case):
    """Nothing of the initial values is left after the first update."""
    layer = case.layer(moving_mean_initializer="ones", moving_variance_initializer="zeros")
    rng = np.random.default_rng(1)
    layer.build((None, None, FEATURES))
    by_step, seen = case.kwargs.get("max_timesteps"), []
    axes = 0 if by_step else (0, 1)
    for _ in range(3):
        x = rng.normal(3.0, 2.0, size=(BATCH, by_step or TIME, FEATURES))
        layer(x, training=True)
        a = x @ layer.cell.kernel.numpy()
        seen.append((a.mean(axis=axes), a.var(axis=axes)))
    normalizer = layer.cell.normalizer
    found = normalizer.moving_mean.numpy(), normalizer.moving_variance.numpy()
    np.testing.assert_allclose(found, np.mean(seen, axis=0), rtol=1e-9)
    for one in (normalizer, *layer.cell.loop_normalizers):
        np.testing.assert_array_equal(one.updates, np.full(one.updates.shape, 3.0))


def test_averages_give_way_to_momentum():
    layer = keras_bnrnn.BatchNormSimpleRNN(UNITS, renorm=True, momentum=0.5, dtype="float64")
    rng = np.random.default_rng(2)
    layer.build((None, None, FEATURES))
    mean = 0.0
    for share in (1.0, 0.5, 0.5, 0.5):
        x = rng.normal(size=(BATCH, TIME, FEATURES))
        layer(x, training=True)
        mean = (1.0 - share) * mean + share * (x @ layer.cell.kernel.numpy()).mean(axis=(0, 1))
        np.testing.assert_allclose(layer.cell.normalizer.moving_mean, mean, rtol=1e-9, atol=1e-12)


def test_statistics_put_there_are_not_thrown_away():
    """`recalibrate` and `copy_weights` leave statistics of many updates."""
    rng = np.random.default_rng(3)
    x = rng.normal(size=(BATCH, TIME, FEATURES)).astype("float32")
    layer = keras_bnrnn.BatchNormGRU(UNITS, renorm=True, momentum=0.9)
    plain = keras.layers.GRU(UNITS)
    for one in (layer, plain):
        one.build(x.shape)
    normalizer = layer.cell.normalizer
    for put in (
        lambda: keras_bnrnn.copy_weights(plain, layer),
        lambda: keras_bnrnn.recalibrate(layer, [x + 1.0], verbose=0),
    ):
        normalizer.updates.assign([0.0])
        put()
        before = normalizer.moving_mean.numpy()
        layer(x, training=True)
        moved = 0.9 * before + 0.1 * (x @ layer.cell.kernel.numpy()).mean(axis=(0, 1))
        np.testing.assert_allclose(normalizer.moving_mean, moved, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("clipping", "mean", "inverse"),
    [
        # sigma 2 and mean 1 of the population, sigma 6 and mean 4 of the batch: r = 3, d = 1.5.
        (Clipping(), 1.0, 1 / 2),
        (Clipping(rmin=0.5, rmax=4.0, dmax=2.0), 1.0, 1 / 2),
        (Clipping(rmin=1.0, rmax=1.0, dmax=0.0), 4.0, 1 / 6),
        (Clipping(rmax=1.5), 4.0 - 1.5 * 4.0, 1 / 4),
        (Clipping(rmin=4.0), 4.0 - 1.5 * 1.5, 4 / 6),
        (Clipping(dmax=0.5), 4.0 - 0.5 * 2.0, 1 / 2),
    ],
)
def test_clipping(clipping, mean, inverse):
    population, batch = (
        Moments(*(tf.constant([value], tf.float64) for value in values))
        for values in ((1.0, 4.0, 0.0), (4.0, 36.0, 2.0))
    )
    found = normalizing_statistics(batch, population, 0.0, clipping)
    np.testing.assert_allclose(found, [[mean], [inverse]], rtol=1e-12)
    few = batch._replace(count=tf.ones_like(batch.count))
    np.testing.assert_allclose(
        normalizing_statistics(few, population, 0.0, clipping), [[1.0], [0.5]], rtol=1e-12
    )


def test_clipped_to_nothing_it_is_batch_normalisation():
    """In the projection and in the loop, with their gradients."""
    rng = np.random.default_rng(4)
    case = conformance.find("lstm-frame_recurrent_cell_steps")
    x, weights = rng.normal(size=(BATCH, TIME, FEATURES)), case.weights(rng)
    results = []
    for renorm in ({}, {"renorm": True, "renorm_clipping": {"rmin": 1, "rmax": 1, "dmax": 0}}):
        layer = case.layer(**renorm)
        layer.build(x.shape)
        for variable in layer.weights:
            if variable.name in weights:
                variable.assign(weights[variable.name])
        outputs, states, gradients = conformance.call_and_differentiate(layer, x, training=True)
        results.append([outputs, *states, *gradients.values()])
    assert_all_close(*results, atol=1e-10)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"renorm_clipping": {"rmax": 2.0}}, "renorm=True"),
        ({"renorm": True, "renorm_clipping": {"max": 2.0}}, "dictionary with any of"),
        ({"renorm": True, "renorm_clipping": [1.0, 2.0]}, "dictionary with any of"),
        ({"renorm": True, "renorm_clipping": {"rmin": 2.0, "rmax": 1.0}}, "rmin <= rmax"),
        ({"renorm": True, "renorm_clipping": {"dmax": -1.0}}, "dmax >= 0"),
        ({"renorm": True, "normalization": None}, "Leave it at False"),
    ],
)
def test_what_cannot_work_is_refused(arguments, message):
    for cls in (keras_bnrnn.BatchNormLSTM, keras_bnrnn.BatchNormGRUCell):
        with pytest.raises(ValueError, match=message):
            cls(UNITS, **arguments)
