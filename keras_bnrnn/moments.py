"""Mean and variance over the live rows of a batch, on one replica or over all of them.

Every statistic of this package is computed here or pooled here. Moments are two-pass (the mean
first, then the mean squared deviation from it), because E[x^2] - E[x]^2 cancels in float32 as soon
as the mean is large against the deviation.
"""

from typing import NamedTuple

import tensorflow as tf

# One row normalises to zero whatever it holds, so a statistic needs two.
FEWEST_ROWS = 2

# The axes of `[time, batch, channels]` over which a statistic is taken.
OVER_SEQUENCE, OVER_FRAME = (0, 1), (1,)


class Moments(NamedTuple):
    """Mean and biased variance of some rows, and how many rows they were taken over."""

    mean: tf.Tensor
    variance: tf.Tensor
    count: tf.Tensor


class Clipping(NamedTuple):
    """Bounds of r and d in batch renormalisation, `None` for no bound."""

    rmin: float | None = None
    rmax: float | None = None
    dmax: float | None = None

    def r(self, value):
        value = value if self.rmin is None else tf.maximum(value, self.rmin)
        return value if self.rmax is None else tf.minimum(value, self.rmax)

    def d(self, value):
        return value if self.dmax is None else tf.clip_by_value(value, -self.dmax, self.dmax)


def where_enough(count, value, otherwise=None):
    """`value` where a statistic's live rows suffice for it; `otherwise`, or zero, where not."""
    otherwise = tf.zeros_like(value) if otherwise is None else otherwise
    return tf.where(count >= FEWEST_ROWS, value, otherwise)


def normalizing_statistics(batch, population, epsilon, renorm=None):
    """What a call normalises with: the batch's statistics, the population's where rows are too few.

    Only here is it chosen. Renormalisation has, with sigma = sqrt(variance + epsilon),

        r = clip(sigma_B / sigma),   d = clip((mean_B - mean) / sigma)
        RN(a) = gamma ((a - mean_B) / sigma_B r + d)

    with r and d constant in the derivative, which is through the batch's moments whatever the
    forward pass takes. With nothing clipped RN(a) = gamma (a - mean) / sigma.

    Args:
        batch: The call's `Moments`, or `None` for the population's alone.
        population: `Moments` of the same shapes, or of ones that broadcast.
        epsilon: Added to the variance.
        renorm: The `Clipping` of renormalisation, or `None` for batch normalisation.

    Returns:
        The mean and the inverse deviation in BN(a) = gamma (a - mean) inverse.
    """
    mean, inverse = population.mean, tf.math.rsqrt(population.variance + epsilon)
    if batch is None or renorm == Clipping():
        return mean, inverse
    batch_mean, batch_inverse = batch.mean, tf.math.rsqrt(batch.variance + epsilon)
    if renorm is not None:
        d = renorm.d((batch_mean - mean) * inverse)
        batch_inverse *= renorm.r(inverse / batch_inverse)
        batch_mean -= d / batch_inverse
    return tuple(
        where_enough(batch.count, *pair) for pair in ((batch_mean, mean), (batch_inverse, inverse))
    )


def statistics_dtype(dtype):
    """The dtype in which statistics are computed: at least float32."""
    return tf.float64 if tf.as_dtype(dtype) == tf.float64 else tf.float32


def live_mean(x, mask=None, axes=(0,), synchronized=False):
    """The mean over live rows, and their count; zeros without any.

    Args:
        x: Tensor `[..., channels]`, wide enough for sums over rows.
        mask: Boolean tensor of `x`'s shape without the channels, or `None`.
        axes: The leading axes to reduce: `OVER_SEQUENCE`, `OVER_FRAME`, or `(0,)` of
            `[rows, channels]`.
        synchronized: Whether rows of all replicas of the current `tf.distribute` strategy count.

    Returns:
        The mean, of `x`'s shape without `axes`, and the count, of that shape with one channel. For
        each frame of all replicas they are as long as the longest of these; see `frames_here`.
    """
    axes = list(axes)
    ones = tf.ones_like(x[..., :1])
    if mask is not None:
        live = mask[..., tf.newaxis]
        x, ones = tf.where(live, x, tf.zeros_like(x)), tf.where(live, ones, tf.zeros_like(ones))
    count = over_replicas(tf.reduce_sum(ones, axes), synchronized)
    # At least one row in the divisor: sums over no row are zero, and so is their mean.
    mean = over_replicas(tf.reduce_sum(x, axes), synchronized) / tf.maximum(count, 1.0)
    return mean, count


def moments(x, mask=None):
    """Masked two-pass moments of rows.

    Args:
        x: Tensor `[rows, channels]` of any floating dtype. What stands in masked rows is not looked
            at, be it infinite.
        mask: Boolean `[rows]`, `True` for the rows that count; `None` when all do.

    Returns:
        `Moments` in float32 or wider, of shapes `[channels]`, `[channels]`, `[1]`; zeros without
        any live row.
    """
    x = tf.cast(x, statistics_dtype(x.dtype))
    mean, count = live_mean(x, mask)
    variance, _ = live_mean(tf.square(x - mean), mask)
    return Moments(mean, variance, count)


def pool(groups):
    """Joins the moments of groups of rows, stacked in the first axis, into those of all rows.

    Args:
        groups: `Moments` of shapes `[groups, …, channels]` twice and `[groups, …, 1]`.

    Returns:
        `Moments` of the same shapes without the first axis.
    """
    count = tf.reduce_sum(groups.count, 0)
    share = groups.count / tf.maximum(count, 1.0)
    mean = tf.reduce_sum(share * groups.mean, 0)
    variance = tf.reduce_sum(share * (groups.variance + tf.square(groups.mean - mean)), 0)
    return Moments(mean, variance, count)


def side_by_side(parts):
    """Joins the moments of the same rows' blocks of channels."""
    mean, variance, counts = zip(*parts, strict=True)
    return Moments(tf.concat(mean, -1), tf.concat(variance, -1), counts[0])


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


def frames_here(value, timesteps):
    """This replica's of a value for each frame of all replicas, of which another may have more."""
    return value if len(value.shape) == 1 else value[:timesteps]
