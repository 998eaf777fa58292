"""Mean and variance over the live rows of a batch, on one replica or over all of them.

Every statistic of this package is computed here or pooled here. Moments are two-pass (the mean
first, then the mean squared deviation from it), because E[x^2] - E[x]^2 cancels in float32 as soon
as the mean is large against the deviation.
"""

from typing import NamedTuple

import tensorflow as tf


class Moments(NamedTuple):
    """Mean and biased variance of some rows, and how many rows they were taken over."""

    mean: tf.Tensor
    variance: tf.Tensor
    count: tf.Tensor


def statistics_dtype(dtype):
    """The dtype in which statistics are computed: at least float32."""
    return tf.float64 if tf.as_dtype(dtype) == tf.float64 else tf.float32


def live_mean(x, mask=None, axes=(0,), synchronized=False):
    """The mean over live rows, in `x`'s dtype, and their count; see `moments`."""
    axes = list(axes)
    ones = tf.ones_like(x[..., :1])
    if mask is not None:
        live = mask[..., tf.newaxis]
        x, ones = tf.where(live, x, tf.zeros_like(x)), tf.where(live, ones, tf.zeros_like(ones))
    count = over_replicas(tf.reduce_sum(ones, axes), synchronized)
    # At least one row in the divisor: sums over no row are zero, and so is their mean.
    mean = over_replicas(tf.reduce_sum(x, axes), synchronized) / tf.maximum(count, 1.0)
    return mean, count


def moments(x, mask=None, axes=(0,), synchronized=False):
    """Masked two-pass moments.

    Args:
        x: Tensor `[..., channels]` of any floating dtype. What stands in masked rows is not looked
            at, be it infinite.
        mask: Boolean tensor of `x`'s shape without the channels, `True` for the rows that count;
            `None` when all do.
        axes: The leading axes to reduce: `(0, 1)` of `[time, batch, channels]` gives the moments of
            a sequence, `(1,)` those of each frame.
        synchronized: Whether to take them over the rows of all replicas of the current
            `tf.distribute` strategy. Where `axes` leaves a leading axis standing it may be of a
            different length on each replica; the longest is returned.

    Returns:
        `Moments` in float32 or wider: mean and variance of `x`'s shape without `axes`, and the
        count of live rows behind them, of that shape with one channel. Without any live row mean
        and variance are zero.
    """
    x = tf.cast(x, statistics_dtype(x.dtype))
    mean, count = live_mean(x, mask, axes, synchronized)
    # Another replica may have had more frames than are here.
    centre = mean[: tf.shape(x)[0]] if synchronized and len(mean.shape) > 1 else mean
    for axis in axes:
        centre = tf.expand_dims(centre, axis)
    variance, _ = live_mean(tf.square(x - centre), mask, axes, synchronized)
    return Moments(mean, variance, count)


def pool(frames):
    """Joins the moments of groups of rows into the moments of all rows.

    Args:
        frames: `Moments` of shapes `[groups, channels]`, `[groups, channels]`, `[groups, 1]`.

    Returns:
        `Moments` of shapes `[channels]`, `[channels]`, `[1]`.
    """
    count = tf.reduce_sum(frames.count, 0)
    share = frames.count / tf.maximum(count, 1.0)
    mean = tf.reduce_sum(share * frames.mean, 0)
    variance = tf.reduce_sum(share * (frames.variance + tf.square(frames.mean - mean)), 0)
    return Moments(mean, variance, count)


def over_replicas(total, synchronized):
    """The sum of a total over all replicas; of a total for each frame, padded to the longest."""
    if not synchronized:
        return total
    replica = tf.distribute.get_replica_context()
    if replica is None or replica.num_replicas_in_sync == 1:
        return total
    if len(total.shape) > 1:
        frames = tf.shape(total)[:1]
        longest = tf.reduce_max(replica.all_gather(frames, axis=0))
        total = tf.pad(total, [[0, longest - frames[0]], [0, 0]])
    return replica.all_reduce(tf.distribute.ReduceOp.SUM, total)
