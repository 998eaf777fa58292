"""Normalised projection: hand-derived forms against the formula, differentiated by TensorFlow."""

import numpy as np
import pytest
import tensorflow as tf

from keras_bnrnn import projection
from keras_bnrnn.moments import OVER_FRAME, OVER_SEQUENCE, Clipping, Moments

TIME, BATCH, FEATURES, CHANNELS = 5, 4, 3, 8
EPSILON = 1e-5
MASKS = {
    "none": np.ones((TIME, BATCH), bool),
    "holey": np.random.default_rng(7).random((TIME, BATCH)) > 0.4,
    "few": np.arange(TIME * BATCH).reshape(TIME, BATCH) % 7 == 0,
    "one": np.arange(TIME * BATCH).reshape(TIME, BATCH) == 7,
    "empty": np.zeros((TIME, BATCH), bool),
}


def by_autodiff(x, W, bias, gamma, population, mask, axes, renorm=None):
    """The formula, one statistic after the other."""
    blocks = tf.split(W, len(x), axis=-1)
    a = tf.concat([part @ block for part, block in zip(x, blocks, strict=True)], -1)
    z, batch = tf.zeros_like(a), []
    for number, frame in enumerate(range(TIME) if axes == OVER_FRAME else [...]):
        group = np.zeros_like(mask)
        group[frame] = mask[frame]
        live = np.argwhere(group)
        rows = tf.gather_nd(a, live)
        mean, variance = tf.nn.moments(rows, 0) if len(live) else (tf.zeros_like(gamma),) * 2
        batch.append((mean, variance, [len(live)]))
        own_mean, own_variance = population[:, number]
        r, d = 1.0, 0.0
        if len(live) < 2:
            mean, variance = own_mean, own_variance
        elif renorm is not None:
            own_sigma = tf.sqrt(own_variance + EPSILON)
            r = tf.stop_gradient(renorm.r(tf.sqrt(variance + EPSILON) / own_sigma))
            d = tf.stop_gradient(renorm.d((mean - own_mean) / own_sigma))
        y = gamma * ((rows - mean) / tf.sqrt(variance + EPSILON) * r + d) + bias
        z = tf.tensor_scatter_nd_update(z, live, y)
    batch = [np.stack(values) for values in zip(*batch, strict=True)]
    return z, batch if axes == OVER_FRAME else [value[0] for value in batch]


def by_hand(x, W, bias, gamma, population, mask, axes, fold=False, renorm=None, synchronized=False):
    own = ... if axes == OVER_FRAME else 0
    population = Moments(population[0, own], population[1, own], None)
    arguments = (x if len(x) > 1 else x[0], W, bias, gamma, population, mask)
    options = {"epsilon": EPSILON, "renorm": renorm, "synchronized": synchronized}
    if not fold:
        return projection.normalized_projection(*arguments, axes=axes, **options)
    *folded, batch = projection.folded_projection(*arguments, **options)
    return projection.product(*folded), batch


def observe(project, x, W, bias, gamma, population, mask, axes, dz, **options):
    """Outputs and inputs' gradients; the parameters' gradients; moments."""
    with tf.GradientTape() as tape:
        tape.watch([x, W, bias, gamma])
        z, batch = project(x, W, bias, gamma, population, mask, axes, **options)
        loss = tf.reduce_sum(z * dz)
    d_x, *d_parameters = tape.gradient(loss, [x, W, bias, gamma])
    live = True if mask is None else mask[..., tf.newaxis]
    return [tf.where(live, z, tf.zeros_like(z)), *d_x], d_parameters, list(batch)


def example(parts, mask, axes):
    """The arguments of `observe`, with junk in masked rows, and their like without."""
    random, live = np.random.default_rng(0), mask[..., np.newaxis]
    x = random.normal(3.0, size=(parts, TIME, BATCH, FEATURES))
    W = random.normal(size=(FEATURES, CHANNELS))
    bias, gamma = random.normal(size=(2, CHANNELS))
    population = random.uniform(0.5, 1.5, size=(2, TIME, CHANNELS))
    dz = np.where(live, random.normal(size=(TIME, BATCH, CHANNELS)), 0.0)
    parameters = [tf.constant(value) for value in (W, bias, gamma, population)]
    return [
        ([*map(tf.constant, x)], *parameters, mask, axes, tf.constant(dz))
        for x in (np.where(live, x, np.inf), x)
    ]


def assert_close(found, expected):
    for value, other in zip(tf.nest.flatten(found), tf.nest.flatten(expected), strict=True):
        np.testing.assert_allclose(value, other, rtol=1e-9, atol=1e-9)


CLIPPED = Clipping(rmin=0.7, rmax=2.0, dmax=1.0)
# The scatter limit, the axes, the inputs' parts, whether it is `folded_projection`, and its renorm.
FORMS = {
    "sequence": (0, OVER_SEQUENCE, 1, False, None),
    "frame": (0, OVER_FRAME, 1, False, None),
    "frame-by_gate": (0, OVER_FRAME, 4, False, None),
    "scatter": (1000, OVER_SEQUENCE, 1, False, None),
    "scatter-by_gate": (1000, OVER_SEQUENCE, 4, False, None),
    "folded": (0, OVER_SEQUENCE, 1, True, None),
    "sequence-renorm": (0, OVER_SEQUENCE, 1, False, Clipping()),
    "frame-renorm": (0, OVER_FRAME, 1, False, Clipping()),
    "folded-renorm": (0, OVER_SEQUENCE, 1, True, Clipping()),
    "frame-by_gate-clipped": (0, OVER_FRAME, 4, False, CLIPPED),
    "scatter-clipped": (1000, OVER_SEQUENCE, 1, False, CLIPPED),
    "frame-few": (1000, OVER_FRAME, 1, False, None),
    "frame-few-clipped": (1000, OVER_FRAME, 1, False, CLIPPED),
}


@pytest.mark.parametrize("mask_name", MASKS)
@pytest.mark.parametrize("form", FORMS)
def test_by_hand_equals_autodiff(monkeypatch, form, mask_name):
    scatter_limit, axes, parts, fold, renorm = FORMS[form]
    monkeypatch.setattr(projection, "SCATTER_LIMIT", scatter_limit)
    with_junk, plain = example(parts, MASKS[mask_name], axes)
    if mask_name == "none":
        with_junk = tuple(None if value is MASKS["none"] else value for value in with_junk)
    found = observe(by_hand, *with_junk, fold=fold, renorm=renorm)
    assert_close(found, observe(by_autodiff, *plain, renorm=renorm))


@pytest.mark.parametrize("mask_name", MASKS)
@pytest.mark.parametrize("form", ["scatter-by_gate", "folded", "frame-few", "frame-few-clipped"])
def test_decorrelated_features_change_nothing(monkeypatch, form, mask_name):
    monkeypatch.setattr(projection, "LEAST_LEFT", 1e30)
    test_by_hand_equals_autodiff(monkeypatch, form, mask_name)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("level", ["moving", "walking"])
@pytest.mark.parametrize("form", ["scatter", "folded", "frame-few"])
def test_features_that_move_together(form, level, masked):
    """Level to spread 10000 : 1 in single precision, and a gradient that z takes part in."""
    _, axes, _, fold, _ = FORMS[form]
    random = np.random.default_rng(0)
    rows, channels = (50, 16), 48
    common = random.normal(size=(*rows, 1))
    if level == "walking":
        common = np.cumsum(common, 0) / 5
    x = (1e4 * (1 + common) + random.normal(size=(*rows, 4))).astype("float32")
    # Kernels that see the level, that see the spread alone, and that see both alike.
    W = random.normal(size=(4, channels)).astype("float32")
    W[:, 16:] -= W[:, 16:].mean(0)
    W[:, 32:] += 1e-4 * random.normal(size=16).astype("float32")
    mask = random.random(rows) > 0.3 if masked else np.ones(rows, bool)
    bias, gamma = random.normal(size=(2, channels)).astype("float32")
    population = np.ones((2, rows[0], channels), "float32")
    dz = random.normal(size=(*rows, channels)).astype("float32") * mask[..., np.newaxis]

    def found(dtype, dz):
        x_, *parameters, dz_ = (
            tf.constant(value, dtype) for value in (x, W, bias, gamma, population, dz)
        )
        return observe(by_hand, [x_], *parameters, mask, axes, dz_, fold=fold)

    (z, _), *_ = found("float64", dz)
    dz += np.asarray(z).astype("float32") * mask[..., np.newaxis]
    names = ("z", "d_x", "d_W", "d_bias", "d_gamma", "mean", "variance", "count")
    single, double = (
        {name: np.asarray(value) for name, value in zip(names, values, strict=True)}
        for values in (tf.nest.flatten(found(dtype, dz)) for dtype in ("float32", "float64"))
    )
    scales = {name: np.abs(value).max() for name, value in double.items()}
    scales["d_W"] = np.abs(double["d_W"]).max(0)  # of each channel, where they are far apart
    scales |= {"mean": np.sqrt(double["variance"]), "variance": double["variance"]}
    for name in names:
        error = np.abs(single[name] - double[name]) / scales[name]
        np.testing.assert_array_less(error, 1e-3 if name == "d_W" else 1e-4, err_msg=name)


def test_ordinary_inputs_are_not_decorrelated():
    """Dependent features, constant ones, others of another scale: nothing cancels."""
    random = np.random.default_rng(0)
    normal, common = random.normal(size=(500, 6)), random.normal(size=(500, 1))
    ordinary = {
        "normal": normal,
        "one-hot": np.eye(6)[random.integers(0, 6, 500)],
        "twice": np.concatenate([normal, normal], 1),
        "constant": 0 * normal + 5,
        "one feature": common,
        "scales": normal * [1e-3, 1, 1, 10, 1, 1],
        "not a number": normal * np.nan,
    }
    for name, x in {**ordinary, "together": 1e3 * common + normal}.items():
        x = tf.constant(x - x.mean(0), "float32")
        C = tf.matmul(x, x, transpose_a=True)
        W = tf.constant(random.normal(size=(len(C), CHANNELS)), "float32")
        assert projection._cancels(C, W, C @ W) == (name == "together"), name


# The others are whole layers' in test_synchronized.py.
@pytest.mark.parametrize(
    ("form", "least_left"),
    [
        ("sequence", 1),
        pytest.param("frame-by_gate", 1, marks=pytest.mark.slow),
        ("folded", 1),
        ("folded", 1e30),  # decorrelated, by each replica on its own
        ("frame-few", 1e30),
        ("frame-renorm", 1),
    ],
)
def test_two_replicas_are_one_batch(monkeypatch, strategy, form, least_left):
    scatter_limit, axes, parts, fold, renorm = FORMS[form]
    monkeypatch.setattr(projection, "SCATTER_LIMIT", scatter_limit)
    monkeypatch.setattr(projection, "LEAST_LEFT", least_left)
    with_junk, plain = example(parts, MASKS["holey"], axes)
    x, W, bias, gamma, population, mask, axes, dz = with_junk

    def on_replica():
        half = BATCH // 2
        first = half * tf.distribute.get_replica_context().replica_id_in_sync_group
        x_half, mask_half, dz_half = tf.nest.map_structure(
            lambda value: tf.constant(value)[:, first : first + half], (x, mask, dz)
        )
        arguments = (x_half, W, bias, gamma, population, mask_half, axes, dz_half)
        return observe(by_hand, *arguments, fold=fold, renorm=renorm, synchronized=True)

    run = tf.function(lambda: strategy.run(on_replica), autograph=False)
    found = tf.nest.map_structure(strategy.experimental_local_results, run())
    by_row, d_parameters, batch = found
    by_row = [tf.concat(halves, 1) for halves in by_row]
    d_parameters = [tf.add_n(shares) for shares in d_parameters]
    expected = observe(by_autodiff, *plain, renorm=renorm)
    for replica in range(2):
        assert_close([by_row, d_parameters, [value[replica] for value in batch]], expected)
