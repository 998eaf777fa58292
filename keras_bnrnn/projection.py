"""Projection of the inputs, plain and with batch normalisation whose gradient is written by hand.

With x_c the inputs less their mean over the rows that a statistic is taken over, a = x_c W has mean
zero, and

    var = sum(a^2) / n,   s = gamma / sqrt(var + epsilon),   z = s a + bias
    k = -sum(dz a) / n / (var + epsilon),   c = -s sum(dz) / n
    da = s (dz + k a) + c,   dW = x_c^T da,   dx = da W^T

The array a is `[time, batch, channels]`, by far the largest here, and each pass over it costs. c is
the same for all rows of a statistic, so it is left out of da and added to dx. Where there are few
features, one gets by without any pass over a, through the inputs' scatter matrix C = x_c^T x_c:

    sum(a^2) = diag(W^T C W),   z = x_c (s W) + bias
    sum(dz a) = diag(W^T x_c^T dz),   dW = s (x_c^T dz + k C W)
    dx = (dz + x_c (k W)) (s W)^T + c W^T

Kept for the backward pass: x_c, of the inputs' size, and in the first form a.
"""

import tensorflow as tf

from keras_bnrnn.moments import Moments, live_mean, statistics_dtype

# Up to this many features^2 / channels the products with the scatter matrix take less time than the
# passes over all pre-activations that they save (measured on 2 cores of 450 GFLOP/s).
SCATTER_LIMIT = 25


def frame_sums(a, b):
    """`[time, channels]`: the sum of a b over the rows of each frame of `[time, batch, channels]`.

    On a CPU frame by frame, in memory that is used again: to write the products of all frames into
    fresh memory takes eight times as long as to compute them. A GPU has the bandwidth, and would
    wait for each operation of a loop.
    """
    if tf.config.list_logical_devices("GPU"):
        return tf.reduce_sum(a * b, 1)
    timesteps = tf.shape(a)[0]

    def turn(time, sums):
        return time + 1, sums.write(time, tf.reduce_sum(a[time] * b[time], 0))

    sums = tf.TensorArray(a.dtype, timesteps, element_shape=a.shape[2:])
    return tf.while_loop(lambda time, _: time < timesteps, turn, (0, sums))[1].stack()


def product(x, kernel, bias=None):
    """`x W + bias` of `[..., features]` as one matrix product over all rows."""
    rows = tf.reshape(x, [-1, kernel.shape[0]]) @ kernel
    if bias is not None:
        rows = tf.nn.bias_add(rows, bias)
    y = tf.reshape(rows, tf.concat([tf.shape(x)[:-1], [kernel.shape[1]]], 0))
    y.set_shape([*x.shape[:-1], kernel.shape[1]])
    return y


def project(x, kernel, bias):
    """Plain projection `x W + bias` of `[..., features]`, or of a list of such, one for a gate."""
    if not isinstance(x, list):
        return product(x, kernel, bias)
    kernels = tf.split(kernel, len(x), axis=1)
    z = tf.concat([product(*pair) for pair in zip(x, kernels, strict=True)], -1)
    return z if bias is None else z + bias


def plain_projection(kernel, bias):
    """`project` in the form of `BatchNormalizer.population_projection`."""
    if bias is None:
        return lambda x, _, kernel: project(x, kernel, None), [kernel]
    return lambda x, _, kernel, bias: project(x, kernel, bias), [kernel, bias]


def normalized_projection(
    x, kernel, bias, gamma, population, mask, *, whole_sequence, epsilon, fewest_rows
):
    """`BN(x W) + bias` with the mini-batch's own moments.

    Args:
        x: `[time, batch, features]`; where it is masked it must be finite.
        kernel: `[features, channels]`.
        bias: `[channels]`, zeros for none.
        gamma: `[channels]`, in the dtype of statistics.
        population: `Moments` of `[channels]`, or `[time, channels]` where they differ by frame;
            used for what has fewer than `fewest_rows` live rows.
        mask: Boolean `[time, batch]` or `None`.
        whole_sequence: Moments over all live frames together, or over each frame by itself.
        epsilon: Added to the variance.
        fewest_rows: How many live rows moments need.

    Returns:
        z, `[time, batch, channels]`, and the `Moments` of x W, of `[channels]` or
        `[time, channels]`, without gradient.
    """
    wide = statistics_dtype(x.dtype)
    axes = (0, 1) if whole_sequence else (1,)
    features, channels = kernel.shape
    by_scatter = whole_sequence and features**2 <= SCATTER_LIMIT * channels
    live = None if mask is None else mask[..., tf.newaxis]

    def spread(value):
        """A value for each statistic, to meet `[time, batch, channels]`."""
        return value if whole_sequence else value[:, tf.newaxis]

    def total(value):
        return tf.reduce_sum(value, axes)

    def total_product(a, b):
        sums = frame_sums(tf.cast(a, wide), tf.cast(b, wide))
        return tf.reduce_sum(sums, 0) if whole_sequence else sums

    def centre(x, mean):
        x -= spread(mean)
        return x if live is None else tf.where(live, x, tf.zeros_like(x))

    @tf.custom_gradient
    def normalize(x, W, bias, gamma):
        x_wide = tf.cast(x, wide)
        x_mean, n = live_mean(x_wide, mask, axes)
        # What falls back on the population's statistics needs its x W as it is.
        enough = n >= fewest_rows
        x_c = centre(x_wide, tf.where(enough, x_mean, tf.zeros_like(x_mean)))
        # The first mean is rounded on the scale of the inputs, the second on that of what is left.
        rest = live_mean(x_c, mask, axes)[0]
        rest = tf.where(enough, rest, tf.zeros_like(rest))
        x_c = tf.cast(centre(x_c, rest), x.dtype)
        rows = tf.maximum(n, 1.0)
        wide_W = tf.cast(W, wide)
        if by_scatter:
            x_rows = tf.cast(tf.reshape(x_c, [-1, features]), wide)
            CW = tf.matmul(x_rows, x_rows, transpose_a=True) @ wide_W
            squares = tf.reduce_sum(wide_W * CW, 0)
        else:
            a = product(x_c, W)
            squares = total_product(a, a)
        batch_variance = tf.where(enough, tf.maximum(squares, 0.0) / rows, tf.zeros_like(squares))
        mean = tf.where(enough, tf.zeros_like(population.mean), population.mean)
        variance = tf.where(enough, batch_variance, population.variance)
        inverse = tf.math.rsqrt(variance + epsilon)
        s = gamma * inverse
        b = tf.cast(bias, wide) - mean * s
        if by_scatter:
            z = product(x_c, tf.cast(wide_W * s, x.dtype), tf.cast(b, x.dtype))
        else:
            z = tf.cast(tf.cast(a, wide) * spread(s) + spread(b), x.dtype)

        batch_mean = product(x_mean + rest, wide_W)

        def gradient(dz, *_):
            dz_wide = tf.cast(dz, wide)
            d_sum = total(dz_wide)
            if by_scatter:
                x_dz = tf.matmul(x_rows, tf.reshape(dz_wide, [-1, channels]), transpose_a=True)
                d_dot = tf.reduce_sum(wide_W * x_dz, 0)
            else:
                d_dot = total_product(dz_wide, a)
            d_gamma = inverse * (d_dot - mean * d_sum)
            d_bias = d_sum
            if not whole_sequence:
                d_gamma, d_bias = tf.reduce_sum(d_gamma, 0), tf.reduce_sum(d_bias, 0)
            share = tf.where(enough, 1.0 / rows, tf.zeros_like(rows))
            k = -share * tf.square(inverse) * d_dot
            c = -share * s * d_sum
            shift = tf.cast(product(c, tf.transpose(wide_W)), x.dtype)
            if by_scatter:
                d_W = s * (x_dz + k * CW)
                d_x = product(dz, tf.cast(tf.transpose(wide_W * s), x.dtype), shift)
                square = tf.matmul(wide_W * (k * s), wide_W, transpose_b=True)
                d_x += product(x_c, tf.cast(square, x.dtype))
            else:
                # In this order one array less is made than in dz s + a k.
                da = tf.cast((dz_wide + tf.cast(a, wide) * spread(k)) * spread(s), x.dtype)
                da_rows = tf.reshape(da, [-1, channels])
                d_W = tf.matmul(tf.reshape(x_c, [-1, features]), da_rows, transpose_a=True)
                d_x = product(da, tf.transpose(W)) + spread(shift)
            if live is not None:
                d_x = tf.where(live, d_x, tf.zeros_like(d_x))
            return d_x, tf.cast(d_W, W.dtype), tf.cast(d_bias, bias.dtype), d_gamma

        return (z, batch_mean, batch_variance, n), gradient

    z, *batch = normalize(x, kernel, bias, gamma)
    z.set_shape([*x.shape[:-1], channels])
    return z, Moments(*(tf.stop_gradient(value) for value in batch))
