"""Moments over live rows, against NumPy."""

import numpy as np
import pytest
import tensorflow as tf

from keras_bnrnn.moments import (
    FEWEST_ROWS,
    OVER_FRAME,
    OVER_SEQUENCE,
    Moments,
    frames_here,
    live_mean,
    moments,
    normalizing_statistics,
    over_replicas,
    pool,
    side_by_side,
)

ROWS, CHANNELS = 7, 3


def rows_and_mask(rng=None, shape=(ROWS,)):
    """Rows whose masked ones are junk, and the mask."""
    rng = rng or np.random.default_rng(0)
    mask = rng.random(shape) < 0.6
    mask.flat[:2] = True
    junk = rng.choice([np.inf, -np.inf, np.nan, 50.0], size=(*shape, CHANNELS))
    return np.where(mask[..., None], rng.normal(2.0, size=(*shape, CHANNELS)), junk), mask


def assert_moments(found, rows, rtol=1e-12, atol=1e-12):
    rows = rows.astype(float)
    np.testing.assert_allclose(found.mean, rows.mean(axis=0), rtol=rtol, atol=atol)
    np.testing.assert_allclose(found.variance, rows.var(axis=0), rtol=rtol, atol=atol)
    np.testing.assert_array_equal(found.count, [len(rows)])


def test_every_row_counts_without_a_mask():
    x = np.random.default_rng(0).normal(size=(ROWS, CHANNELS))
    assert_moments(moments(tf.constant(x)), x)


def test_masked_rows_do_not_count_whatever_they_hold():
    x, mask = rows_and_mask()
    assert_moments(moments(tf.constant(x), tf.constant(mask)), x[mask])


def test_without_a_live_row_all_is_zero():
    x = tf.fill([ROWS, CHANNELS], np.float64(np.inf))
    for found in (moments(x, tf.zeros([ROWS], bool)), moments(x[:0])):
        for value in found:
            np.testing.assert_array_equal(value, np.zeros_like(value))


def test_a_large_mean_does_not_cancel():
    x = np.random.default_rng(0).normal(1e3, 0.1, size=(500, CHANNELS)).astype("float32")
    assert_moments(moments(tf.constant(x)), x, rtol=1e-3)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_summed_in_single(dtype):
    """In half precision the count of rows would stop growing, and the sum overflow or stop."""
    x = tf.cast(tf.tile([[100.0, 1.0], [102.0, 3.0]], [5000, 1]), dtype)
    found = moments(x)
    assert all(value.dtype == tf.float32 for value in found)
    assert_moments(found, np.array(x).astype(float), rtol=1e-5)


@pytest.mark.parametrize("axes", [OVER_SEQUENCE, OVER_FRAME], ids=["sequence", "frame"])
def test_live_mean_over_axes(axes):
    x, mask = rows_and_mask(shape=(5, ROWS))
    mask[3] = False
    mean, count = live_mean(tf.constant(x), tf.constant(mask), axes)
    if axes == OVER_SEQUENCE:
        expected, rows = x[mask].mean(axis=0), [mask.sum()]
    else:
        live = [frame[one] for frame, one in zip(x, mask, strict=True)]
        expected = [rows.mean(axis=0) if len(rows) else np.zeros(CHANNELS) for rows in live]
        rows = mask.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(mean, expected, rtol=1e-12)
    np.testing.assert_array_equal(count, rows)


def test_pooled_moments_are_those_of_all_rows():
    rng = np.random.default_rng(1)
    sizes = (4, 1, 0, 9)
    groups = [rng.normal(rng.normal(1e3), 0.1, size=(size, CHANNELS)) for size in sizes]
    stacked = Moments(*map(tf.stack, zip(*(moments(tf.constant(g)) for g in groups), strict=True)))
    assert_moments(pool(stacked), np.concatenate(groups), rtol=1e-9)


def test_groups_of_frames_are_pooled_frame_by_frame():
    x = np.random.default_rng(2).normal(size=(3, 5, ROWS, CHANNELS))
    frames = [[moments(tf.constant(rows)) for rows in group] for group in x]
    stacked = [[tf.stack(values) for values in zip(*group, strict=True)] for group in frames]
    pooled = pool(Moments(*map(tf.stack, zip(*stacked, strict=True))))
    for t in range(5):
        assert_moments(Moments(*(value[t] for value in pooled)), x[:, t].reshape(-1, CHANNELS))


def test_no_rows_at_all_pool_to_zero():
    for value in pool(Moments(tf.zeros([2, 3]), tf.zeros([2, 3]), tf.zeros([2, 1]))):
        np.testing.assert_array_equal(value, np.zeros_like(value))


def test_blocks_of_channels_side_by_side_are_all_channels():
    x, mask = rows_and_mask()
    blocks = [moments(tf.constant(block), tf.constant(mask)) for block in np.split(x, 3, axis=1)]
    assert_moments(side_by_side(blocks), x[mask])


@pytest.mark.parametrize("count", range(4))
def test_too_few_rows_are_normalised_with_the_populations(count):
    batch = Moments(tf.constant([1.0]), tf.constant([4.0]), tf.constant([float(count)]))
    population = Moments(tf.constant([5.0]), tf.constant([16.0]), None)
    expected = (1.0, 0.5) if count >= FEWEST_ROWS == 2 else (5.0, 0.25)
    np.testing.assert_allclose(
        normalizing_statistics(batch, population, 0.0), np.transpose([expected])
    )
    np.testing.assert_allclose(normalizing_statistics(None, population, 0.0), [[5.0], [0.25]])


@pytest.mark.parametrize("lengths", [(5, 5), (3, 5), (5, 2)], ids=str)
def test_replicas_of_any_length_share_their_rows(strategy, lengths):
    """A frame's mean is over the replicas that have it, and each replica is given all frames'."""
    parts = [rows_and_mask(np.random.default_rng(seed), (5, ROWS)) for seed in range(2)]
    for (_, mask), length in zip(parts, lengths, strict=True):
        mask[length:] = False

    def on_replica(x, mask):
        by_frame = live_mean(x, mask, OVER_FRAME, synchronized=True)
        whole = live_mean(x, mask, OVER_SEQUENCE, synchronized=True)
        total = over_replicas(tf.ones([tf.shape(x)[0], 1]), synchronized=True)
        return *by_frame, *whole, total, frames_here(total, tf.shape(x)[0])

    def of_each_replica(i):
        return strategy.experimental_distribute_values_from_function(
            lambda context: tf.constant(
                parts[context.replica_id_in_sync_group][i][
                    : lengths[context.replica_id_in_sync_group]
                ]
            )
        )

    run = tf.function(lambda *arguments: strategy.run(on_replica, arguments))
    results = run(of_each_replica(0), of_each_replica(1))
    found = [strategy.experimental_local_results(value) for value in results]
    x, mask = (np.concatenate(values, axis=1) for values in zip(*parts, strict=True))
    longest = max(lengths)
    for replica, length in enumerate(lengths):
        frame_mean, frame_count, mean, count, total, here = (value[replica] for value in found)
        for t in range(longest):
            np.testing.assert_allclose(frame_mean[t], x[t][mask[t]].mean(axis=0), rtol=1e-12)
        np.testing.assert_array_equal(frame_count, mask.sum(axis=1, keepdims=True)[:longest])
        np.testing.assert_allclose(mean, x[mask].mean(axis=0), rtol=1e-12)
        np.testing.assert_array_equal(count, [mask.sum()])
        assert total.shape == (longest, 1) and here.shape == (length, 1)
