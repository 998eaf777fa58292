"""Projection of the inputs, plain and with batch normalisation whose gradient is written by hand.

With x_c the inputs less their mean over the n rows that a statistic is taken over, a = x_c W has
mean zero, and

    var = sum(a^2) / n,   s = gamma / sqrt(var + epsilon),   z = s a + bias
    k = -sum(dz a) / n / (var + epsilon),   c = -s sum(dz) / n
    da = s (dz + k a) + c,   dW = x_c^T da,   dx = da W^T

The array a is `[time, batch, channels]`, by far the largest here, and each pass over it costs. c is
the same for all rows of a statistic, so it is left out of da and added to dx. Where there are few
features, and one statistic for all rows, one gets by without a, through the inputs' scatter matrix
C = x_c^T x_c:

    sum(a^2) = diag(W^T C W),   z = x_c (s W) + bias
    sum(dz a) = diag(W^T x_c^T dz),   dW = s (x_c^T dz + k C W)
    dx = dz (s W)^T + x_c (W diag(k s) W^T) + c W^T

This is a plain projection of x_c, which cuDNN may do as well; see `folded_projection`. Both forms
differ in how they come to the two sums, and share the rest (`_Normalization`). Kept for the
backward pass: x_c, of the inputs' size, and in the first form a.

Renormalisation, its r and d held fixed, has s = gamma r / sqrt(var + epsilon) and adds gamma d to
the bias; all else is as it stands.

Over the rows of several replicas n and all sums above are sums over replicas. The gradients of W,
bias and gamma are each replica's share.

Few features may move together (prices), and then W^T C W, the products of x_c with a kernel of
differences, and x_c^T da are small differences of large sums. There the forms are given inputs
that are not correlated, y = x_c T, and V = T^-1 W, which make the same a; see
`_Normalization.decorrelated`.
"""

import numpy as np
import tensorflow as tf

from keras_bnrnn.moments import (
    OVER_SEQUENCE,
    Moments,
    frames_here,
    live_mean,
    normalizing_statistics,
    over_replicas,
    side_by_side,
    statistics_dtype,
    where_enough,
)

# Up to this many features^2 / channels the products with the scatter matrix take less time than the
# passes over all pre-activations that they save (measured on 2 cores of 450 GFLOP/s).
SCATTER_LIMIT = 25

# The least share of large sums that their difference keeps, in units of the rounding. With so much
# errors stay below 1e-3; with less the features are decorrelated first.
LEAST_LEFT = 2**13

# So few channels count as more, where it is asked whether features are few.
LEAST_CHANNELS = 40


def _cancels(C, W, CW):
    """Whether rows of scatter matrix C leave little of their products with W, or of W's gradient.

    The gradient is made of what of each feature is orthogonal to a product.
    """
    least = LEAST_LEFT * np.finfo(C.dtype.as_numpy_dtype).eps
    variances = tf.linalg.diag_part(C)[:, tf.newaxis]
    largest = tf.reduce_max(variances)
    variances, CW = (tf.math.divide_no_nan(value, largest) for value in (variances, CW))
    squares = tf.reduce_sum(W * CW, 0)
    cancels = squares < least * tf.reduce_sum(tf.square(W) * variances, 0)
    if C.shape[0] > 1:  # Of a single feature nothing is orthogonal.
        left = variances - tf.math.divide_no_nan(tf.square(CW), squares)
        cancels |= tf.reduce_max(left, 0) < least * tf.reduce_max(variances)
    return tf.reduce_any(cancels)


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


def _rows(x):
    return tf.reshape(x, [-1, x.shape[-1]])


def product(x, kernel, bias=None):
    """`x W + bias` of `[..., features]` as one matrix product over all rows."""
    rows = _rows(x) @ kernel
    if bias is not None:
        rows = tf.nn.bias_add(rows, bias)
    y = tf.reshape(rows, tf.concat([tf.shape(x)[:-1], [kernel.shape[1]]], 0))
    y.set_shape([*x.shape[:-1], kernel.shape[1]])
    return y


@tf.custom_gradient
def wide_product(x, kernel, *bias):
    """`product` in x's dtype, of a kernel and bias that are wider, as are their gradients' sums."""
    narrow = tf.cast(kernel, x.dtype)

    def gradient(dz):
        rows, dz_rows = (tf.cast(_rows(value), kernel.dtype) for value in (x, dz))
        d_kernel = tf.matmul(rows, dz_rows, transpose_a=True)
        d_bias = [tf.reduce_sum(dz_rows, 0) for _ in bias]
        return product(dz, tf.transpose(narrow)), d_kernel, *d_bias

    return product(x, narrow, *(tf.cast(b, x.dtype) for b in bias)), gradient


def project(x, kernel, bias):
    """Plain projection `x W + bias` of `[..., features]`, or of a list of such, one for a gate."""
    wide = statistics_dtype(kernel.dtype)
    weights = [tf.cast(value, wide) for value in (kernel, bias) if value is not None]
    multiply = product if kernel.dtype == wide else wide_product
    if not isinstance(x, list):
        return multiply(x, *weights)
    parts = (tf.split(value, len(x), -1) for value in weights)
    return tf.concat([multiply(*part) for part in zip(x, *parts, strict=True)], -1)


def plain_projection(kernel, bias):
    """`project` in the form of `BatchNormalizer.population_projection`."""
    if bias is None:
        return lambda x, _, kernel: project(x, kernel, None), [kernel]
    return lambda x, _, kernel, bias: project(x, kernel, bias), [kernel, bias]


def scale_and_shift(gamma, bias, mean, inverse):
    """s and b for which s a + b is gamma (a - mean) inverse + bias."""
    scale = gamma * inverse
    shift = -mean * scale
    return scale, shift if bias is None else tf.cast(bias, shift.dtype) + shift


def normalized_projection(
    x, kernel, bias, gamma, population, mask, *, axes, epsilon, renorm=None, synchronized=False
):
    """`BN(x W) + bias` with the mini-batch's own moments.

    Args:
        x: `[time, batch, features]`, or a list of such, one for each equal part of the channels.
        kernel: `[features, channels]`.
        bias: `[channels]`, zeros for none.
        gamma: `[channels]`, in the dtype of statistics.
        population: `Moments` of `[channels]`, or `[time, channels]` where they differ by frame;
            used for what has too few live rows.
        mask: Boolean `[time, batch]` or `None`. What stands in masked rows of x is not looked at.
        axes: `OVER_SEQUENCE` for moments of all live frames together, or `OVER_FRAME` for those of
            each frame.
        epsilon: Added to the variance.
        renorm: The `Clipping` of renormalisation, or `None` for batch normalisation.
        synchronized: Whether moments are taken over the rows of all replicas.

    Returns:
        z, `[time, batch, channels]`, whose gradient must be zero in masked rows; and the `Moments`
        of x W, of `[channels]` or `[time, channels]`, without gradient.
    """
    if isinstance(x, list):
        split = (tf.split(v, len(x), -1) for v in (kernel, bias, gamma, *population[:2]))
        parts = [
            normalized_projection(
                *(part, W, b, g, Moments(mean, variance, None), mask),
                axes=axes,
                epsilon=epsilon,
                renorm=renorm,
                synchronized=synchronized,
            )
            for part, W, b, g, mean, variance in zip(x, *split, strict=True)
        ]
        z, batches = zip(*parts, strict=True)
        return tf.concat(z, -1), side_by_side(batches)
    features, channels = kernel.shape
    few = features**2 <= SCATTER_LIMIT * max(channels, LEAST_CHANNELS)
    normalization = _Normalization(population, mask, axes, epsilon, renorm, synchronized)
    if axes == OVER_SEQUENCE and few:
        *folded, batch = normalization.fold(x, kernel, bias, gamma)
        return wide_product(*folded), batch
    return normalization.normalize(x, kernel, bias, gamma, decorrelate=few)


def folded_projection(
    x, kernel, bias, gamma, population, mask, *, epsilon, renorm=None, synchronized=False
):
    """`normalized_projection` over all live frames, as inputs, kernel and bias of a plain one.

    Args:
        x: `[batch, time, features]`, or with both exchanged; and the mask like it.
        kernel, bias, gamma, population, epsilon, renorm, synchronized: As there.

    Returns:
        The inputs less their mean, zero where masked; a kernel and a bias, in the dtype of
        statistics; and the `Moments` of x W, without gradient.
    """
    normalization = _Normalization(population, mask, OVER_SEQUENCE, epsilon, renorm, synchronized)
    return normalization.fold(x, kernel, bias, gamma)


class _Normalization:
    """What both forms of the normalised projection share; see `normalized_projection`."""

    def __init__(self, population, mask, axes, epsilon, renorm, synchronized):
        self.population = population
        self.mask = mask
        self.axes = axes
        self.epsilon = epsilon
        self.renorm = renorm
        self.synchronized = synchronized

    def fold(self, x, kernel, bias, gamma):
        """Through the scatter matrix; see `folded_projection`."""
        wide = statistics_dtype(x.dtype)

        @tf.custom_gradient
        def fold(x, W, bias, gamma):
            wide_W = tf.cast(W, wide)
            x_c, means, n = self.centre(x)
            (y, V, mean, CV), x_back, W_back = self.decorrelated(x, x_c, means, n, wide_W)
            batch = self.moments(mean, tf.reduce_sum(V * CV, 0), n)
            s, b, derivative = self.affine(batch, bias, gamma)

            def gradient(d_y, y_dz, d_sum, *_):
                d_dot = tf.reduce_sum(V * y_dz, 0)
                k, c, d_bias, d_gamma = derivative(d_sum, d_dot)
                d_V = self.orthogonal(s * (y_dz + k * CV), V, s * d_dot, batch)
                square = tf.matmul(V * (k * s), V, transpose_b=True)
                shift = product(c, tf.transpose(V))
                d_y += product(y, tf.cast(square, x.dtype), tf.cast(shift, x.dtype))
                return self.live(x_back(d_y)), tf.cast(W_back(d_V), W.dtype), d_bias, d_gamma

            return (y, V * s, b, *batch), gradient

        x_c, folded, b, *batch = fold(x, kernel, bias, gamma)
        return x_c, folded, b, Moments(*map(tf.stop_gradient, batch))

    def decorrelated(self, x, x_c, means, n, W):
        """y = x_c T, V = T^-1 W, the mean of x W, and y^T y V.

        Where nothing cancels y is x_c itself. T is a constant to all derivatives. It is worked out
        in float64, as is all that cancels.

        Returns:
            These four; a function of the gradient for y that makes of it that for x_c, and one
            that does so for V and W.
        """

        def products(x, W):
            rows = tf.cast(_rows(x), W.dtype)
            C = tf.matmul(rows, rows, transpose_a=True)
            return C, C @ W

        unit = tf.eye(W.shape[0], dtype=tf.float64)
        C, CW = products(x_c, W)
        cancels = _cancels(C, W, CW)

        def decorrelated():
            exact = tf.cast(x, tf.float64)
            if self.synchronized:  # Replicas that do not come here exchange nothing.
                mean = sum(tf.cast(mean, tf.float64) for mean in means)
            else:
                mean, _ = live_mean(exact, self.mask, self.axes)
            exact = self.less(exact, mean, n)
            rows = _rows(exact) / tf.sqrt(tf.cast(tf.size(exact[..., 0]), tf.float64))
            length = tf.norm(rows, axis=0)
            length = tf.where(length > 0, length, tf.ones_like(length))
            rows /= length
            # With what float32 inputs do not hold, as features may depend on each other.
            L = tf.linalg.cholesky(tf.matmul(rows, rows, transpose_a=True) + 1e-12 * unit)
            L *= length[:, tf.newaxis]
            inverse = tf.stop_gradient(tf.transpose(L))
            T = tf.stop_gradient(tf.linalg.triangular_solve(inverse, unit, lower=False))
            y = tf.cast(product(exact, T), x_c.dtype)
            exact_W = tf.cast(W, tf.float64)
            V, W_mean = (tf.cast(product(v, exact_W), W.dtype) for v in (inverse, mean))
            return y, V, W_mean, products(y, V)[1], T, inverse

        def as_it_is():
            return x_c, W, product(sum(means), W), CW, unit, unit

        *found, T, inverse = tf.cond(cancels, decorrelated, as_it_is)

        def x_back(d_y):
            back = tf.cast(tf.transpose(T), d_y.dtype)
            return tf.cond(cancels, lambda: product(d_y, back), lambda: d_y)

        def W_back(d_V):
            def as_given():
                d_W = tf.matmul(inverse, tf.cast(d_V, inverse.dtype), transpose_a=True)
                return tf.cast(d_W, d_V.dtype)

            return tf.cond(cancels, as_given, lambda: d_V)

        return found, x_back, W_back

    def orthogonal(self, d_V, V, dot, batch):
        """The gradient of V without the error in V's own direction, where most of it is.

        The length of V changes nothing, but for epsilon: V^T dV is sum(s dz a) times its share of
        the variance. Of one replica's share of the gradient this is not true.

        Args:
            d_V: `[features, channels]`, as computed.
            V: As well.
            dot: s sum(dz a) of each statistic.
            batch: `Moments` of these statistics.
        """
        if self.synchronized:
            return d_V
        share = self.epsilon / (batch.variance + self.epsilon)
        dot = _rows(dot * where_enough(batch.count, share, tf.ones_like(share)))
        excess = tf.reduce_sum(V * d_V, 0) - tf.reduce_sum(dot, 0)
        return d_V - V * tf.math.divide_no_nan(excess, tf.reduce_sum(tf.square(V), 0))

    def normalize(self, x, kernel, bias, gamma, decorrelate):
        """With the array a; see `normalized_projection`."""
        wide = statistics_dtype(x.dtype)

        def total_product(a, b):
            sums = frame_sums(tf.cast(a, wide), tf.cast(b, wide))
            return tf.reduce_sum(sums, 0) if self.axes == OVER_SEQUENCE else sums

        @tf.custom_gradient
        def normalize(x, W, bias, gamma):
            wide_W = tf.cast(W, wide)
            x_c, means, n = self.centre(x)
            if decorrelate:
                (y, V, mean, _), _, W_back = self.decorrelated(x, x_c, means, n, wide_W)
            else:
                y, V, mean = x_c, wide_W, product(sum(means), wide_W)
            a = product(y, tf.cast(V, x.dtype))
            batch = self.moments(mean, total_product(a, a), n)
            s, b, derivative = self.affine(batch, bias, gamma, tf.shape(x)[0])
            z = tf.cast(tf.cast(a, wide) * self.spread(s) + self.spread(b), x.dtype)

            def gradient(dz, *_):
                dz_wide = tf.cast(dz, wide)
                d_sum, d_dot = tf.reduce_sum(dz_wide, self.axes), total_product(dz_wide, a)
                k, c, d_bias, d_gamma = derivative(d_sum, d_dot)
                # In this order one array less is made than in dz s + a k.
                da = (dz_wide + tf.cast(a, wide) * self.spread(k)) * self.spread(s)
                d_W = tf.matmul(tf.cast(_rows(y), wide), _rows(da), transpose_a=True)
                if decorrelate:
                    d_W = W_back(self.orthogonal(d_W, V, s * d_dot, batch))
                da = tf.cast(da, x.dtype)
                shift = tf.cast(product(c, tf.transpose(wide_W)), x.dtype)
                d_x = product(da, tf.transpose(W)) + self.spread(shift)
                return self.live(d_x), tf.cast(d_W, W.dtype), d_bias, d_gamma

            return (z, *batch), gradient

        z, *batch = normalize(x, kernel, bias, gamma)
        z.set_shape([*x.shape[:-1], kernel.shape[1]])
        return z, Moments(*map(tf.stop_gradient, batch))

    def centre(self, x):
        """x_c, the two means that make up that of x, and the count of live rows behind them."""
        wide = tf.cast(x, statistics_dtype(x.dtype))
        mean, n = live_mean(wide, self.mask, self.axes, self.synchronized)
        x_c = self.less(wide, mean, n)
        # The first mean is rounded on the scale of the inputs, the second on that of what is left.
        rest = where_enough(n, live_mean(x_c, self.mask, self.axes, self.synchronized)[0])
        return tf.cast(self.less(x_c, rest, n), x.dtype), (mean, rest), n

    def less(self, x, mean, n):
        """x less the mean of n rows, or as it is where these are too few."""
        mean = frames_here(where_enough(n, mean), tf.shape(x)[0])
        return self.live(x - self.spread(tf.cast(mean, x.dtype)))

    def live(self, x):
        """x with zeros in masked rows."""
        return x if self.mask is None else tf.where(self.mask[..., tf.newaxis], x, tf.zeros_like(x))

    def spread(self, value):
        """A value for all frames, or one for each, to meet `[time, batch, channels]`."""
        return value if len(value.shape) == 1 else value[:, tf.newaxis]

    def moments(self, mean, squares, n):
        """Of x W, from its mean and this replica's sum(a^2)."""
        squares = over_replicas(squares, self.synchronized)
        variance = where_enough(n, tf.maximum(squares, 0.0) / tf.maximum(n, 1.0))
        return Moments(mean, variance, n)

    def affine(self, batch, bias, gamma, timesteps=None):
        """s and b of z = s a + b, and what leads from sum(dz) and sum(dz a) to k, c, dbias, dgamma.

        All of one value for each statistic, and of this replica's frames where these are frames.
        """
        batch = Moments(*(frames_here(value, timesteps) for value in batch))
        mean, inverse = normalizing_statistics(batch, self.population, self.epsilon, self.renorm)
        mean -= where_enough(batch.count, batch.mean)  # as `centre` took it off
        s, b = scale_and_shift(gamma, bias, mean, inverse)

        def everywhere(sums):
            return frames_here(over_replicas(sums, self.synchronized), timesteps)

        def derivative(d_sum, d_dot):
            share = where_enough(batch.count, 1.0 / tf.maximum(batch.count, 1.0))
            k = -share * everywhere(d_dot) / (batch.variance + self.epsilon)
            c = -share * s * everywhere(d_sum)
            d_gamma = inverse * (d_dot - mean * d_sum)
            d_bias, d_gamma = (tf.reduce_sum(_rows(value), 0) for value in (d_sum, d_gamma))
            return k, c, tf.cast(d_bias, bias.dtype), d_gamma

        return s, b, derivative
