"""Batch normalisation with population statistics, for one array of pre-activations.

    BN(a) = gamma * (a - mean) / sqrt(variance + epsilon)  [+ beta]

`BatchNormalizer` owns gamma and the population statistics, and knows over which rows mean and
variance are taken: a whole sequence, each frame by itself, or the population's. It knows no time
loop; a loop asks it for one frame at a time and hands the moments back when it is done.
"""

import keras
import tensorflow as tf

from keras_bnrnn.moments import (
    Moments,
    live_mean,
    moments,
    over_replicas,
    pool,
    statistics_dtype,
)
from keras_bnrnn.projection import normalized_projection, plain_projection, product, project

# One row normalises to zero whatever it holds, so a mean needs two.
FEWEST_ROWS = 2


def as_tensor(value):
    """`value` as a `tf.Tensor`: a Keras variable converts to a `tf.Variable` otherwise."""
    return tf.convert_to_tensor(keras.ops.convert_to_tensor(value))


def statistics_config(one):
    """What the configuration of a normaliser and that of its cell have in common."""
    initializers = keras.initializers
    return {
        "max_timesteps": one.max_timesteps,
        "momentum": one.momentum,
        "epsilon": one.epsilon,
        "gamma_initializer": initializers.serialize(one.gamma_initializer),
        "gamma_regularizer": keras.regularizers.serialize(one.gamma_regularizer),
        "gamma_constraint": keras.constraints.serialize(one.gamma_constraint),
        "moving_mean_initializer": initializers.serialize(one.moving_mean_initializer),
        "moving_variance_initializer": initializers.serialize(one.moving_variance_initializer),
    }


class BatchNormalizer(keras.layers.Layer):
    """Normalises pre-activations of `channels` channels; part of a cell, not of the public API.

    Args:
        max_timesteps: `None` for one pair of population statistics, or N for a pair for each of
            the first N frames.
        momentum: Share of the old value that a moving average keeps at each update.
        epsilon: Added to the variance.
        use_beta: Whether to add a trained shift; the input-to-hidden path has the cell's bias.
        synchronized: Whether moments are taken over all replicas of a `tf.distribute` strategy.
        prefix: Put before the names of the weights.
        gamma_initializer, gamma_regularizer, gamma_constraint: Of the scale.
        moving_mean_initializer, moving_variance_initializer: Of the population statistics.
    """

    def __init__(
        self,
        *,
        max_timesteps,
        momentum,
        epsilon,
        gamma_initializer,
        gamma_regularizer,
        gamma_constraint,
        moving_mean_initializer,
        moving_variance_initializer,
        use_beta=False,
        synchronized=False,
        prefix="",
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.max_timesteps = max_timesteps
        self.momentum = momentum
        self.epsilon = epsilon
        self.use_beta = use_beta
        self.synchronized = synchronized
        self.prefix = prefix
        self.gamma_initializer = keras.initializers.get(gamma_initializer)
        self.gamma_regularizer = keras.regularizers.get(gamma_regularizer)
        self.gamma_constraint = keras.constraints.get(gamma_constraint)
        self.moving_mean_initializer = keras.initializers.get(moving_mean_initializer)
        self.moving_variance_initializer = keras.initializers.get(moving_variance_initializer)
        self.beta = None
        # While set, batch statistics are used and collected here instead of averaged.
        self.collector = None

    def get_config(self):
        own = {"use_beta": self.use_beta, "synchronized": self.synchronized, "prefix": self.prefix}
        return {**super().get_config(), **statistics_config(self), **own}

    def build(self, channels):
        self.gamma = self.add_weight(
            shape=(channels,),
            name=self.prefix + "gamma",
            initializer=self.gamma_initializer,
            regularizer=self.gamma_regularizer,
            constraint=self.gamma_constraint,
            autocast=False,
        )
        if self.use_beta:
            self.beta = self.add_weight(
                shape=(channels,), name=self.prefix + "beta", initializer="zeros", autocast=False
            )
        shape = (channels,) if self.max_timesteps is None else (self.max_timesteps, channels)

        def statistic(name, initializer):
            # Each replica averages on its own, inside a loop too, and the mean is saved.
            return keras.Variable(
                initializer,
                shape=shape,
                dtype=self.variable_dtype,
                trainable=False,
                autocast=False,
                synchronization="on_read",
                aggregation="mean",
                name=self.prefix + name,
            )

        self.moving_mean = statistic("moving_mean", self.moving_mean_initializer)
        self.moving_variance = statistic("moving_variance", self.moving_variance_initializer)
        self.built = True

    def normalizes_by_batch(self, training):
        """Whether a call takes its own moments, rather than the population's."""
        return bool(training and self.trainable) or self.collector is not None

    def project(self, x, kernel, bias, *, whole_sequence, mask=None, training=False, first_time=0):
        """Normalised projection of all frames, `BN(x W) + bias`.

        Args:
            x: `[time, batch, features]`, or a list of such, one for each equal part of the
                kernel's columns (inputs with a dropout mask for each gate).
            kernel: `[features, channels]`.
            bias: `[channels]` or `None`.
            whole_sequence: Moments over all live frames together, or over each frame by itself.
            mask: Boolean `[time, batch]` or `None`.
            training: Python boolean.
            first_time: The index of the first frame.

        Returns:
            `[time, batch, channels]`. Updates the population statistics where it trains.
        """
        if not self.normalizes_by_batch(training):
            project_frames, arrays = self.population_projection(kernel, bias)
            return project_frames(x, first_time, *arrays)
        by_hand = not self.synchronized and not isinstance(x, list)
        z, batch = (self._project_by_hand if by_hand else self._project_by_autodiff)(
            x, kernel, bias, whole_sequence, mask, first_time
        )
        self.update(batch, first_time, after=z)
        return z

    def _project_by_hand(self, x, kernel, bias, whole_sequence, mask, first_time):
        frames = None if whole_sequence else self._frames(x, first_time)
        return normalized_projection(
            x,
            kernel,
            tf.zeros(kernel.shape[1:], kernel.dtype) if bias is None else bias,
            self._gamma(),
            self._population(frames),
            mask,
            whole_sequence=whole_sequence,
            epsilon=self.epsilon,
            fewest_rows=FEWEST_ROWS,
        )

    def _project_by_autodiff(self, x, kernel, bias, whole_sequence, mask, first_time):
        """The same for moments over all replicas, and for inputs that differ from gate to gate."""
        axes = (0, 1) if whole_sequence else (1,)
        # Any constant taken off the inputs leaves BN(x W) as it is. Their own mean makes the
        # product small where it would otherwise cancel: a mean of 1e3, a deviation of 0.1.
        parts = x if isinstance(x, list) else [x]
        kernels = tf.split(kernel, len(parts), axis=1)
        products, offsets = [], []
        for part, columns in zip(parts, kernels, strict=True):
            wide = tf.cast(part, statistics_dtype(part.dtype))
            shift = tf.stop_gradient(live_mean(wide, mask, axes, self.synchronized)[0])
            centred = wide - self._local(shift, part, whole_sequence)
            if mask is not None:
                centred = tf.where(mask[..., tf.newaxis], centred, tf.zeros_like(centred))
            products.append(product(tf.cast(centred, part.dtype), columns))
            offsets.append(product(shift, tf.cast(columns, shift.dtype)))
        a, offset = tf.concat(products, -1), tf.concat(offsets, -1)
        batch = moments(a, mask, axes, self.synchronized)

        enough = batch.count >= FEWEST_ROWS
        population = self._population(None if whole_sequence else self._frames(offset, first_time))
        mean = tf.where(enough, batch.mean, population.mean - offset)
        variance = tf.where(enough, batch.variance, population.variance)
        scale = self._gamma() * tf.math.rsqrt(variance + self.epsilon)
        shift = -mean * scale if bias is None else tf.cast(bias, mean.dtype) - mean * scale
        scale, shift = (self._local(value, a, whole_sequence) for value in (scale, shift))
        z = tf.cast(tf.cast(a, scale.dtype) * scale + shift, a.dtype)
        return z, Moments(batch.mean + offset, batch.variance, batch.count)

    def normalize_frame(self, a, mask=None, time=None, training=False, channels=slice(None)):
        """`BN(a)` of one frame, for use inside a time loop.

        Args:
            a: `[batch, channels]`.
            mask: Boolean `[batch]` or `None`.
            time: The frame's index, an integer tensor.
            training: Python boolean.
            channels: Which of the normaliser's channels these are.

        Returns:
            `BN(a)`, and the frame's `Moments` to be handed to `update` after the loop
            (`None` where the population's were used).
        """
        population = self._population(time)
        batch = None
        mean, variance = population.mean[channels], population.variance[channels]
        if self.normalizes_by_batch(training):
            batch = moments(a, mask)
            enough = batch.count >= FEWEST_ROWS
            mean = tf.where(enough, batch.mean, mean)
            variance = tf.where(enough, batch.variance, variance)
        y = (tf.cast(a, mean.dtype) - mean) * tf.math.rsqrt(variance + self.epsilon)
        y *= self._gamma()[channels]
        if self.beta is not None:
            y += tf.cast(as_tensor(self.beta), y.dtype)
        return tf.cast(y, a.dtype), batch

    def update(self, batch, first_time=0, *, after):
        """Moves the population statistics towards a call's moments, once.

        Args:
            batch: `Moments` of a whole sequence (`[channels]`) or of each of its frames
                (`[time, channels]`). Frames with fewer than two live rows are left out.
            first_time: The index of the first of these frames.
            after: A tensor that has to be there first: what was normalised with the statistics as
                they were. (Without this a graph was seen to read some of them too late.)
        """
        with tf.control_dependencies([after]):
            self._update(batch, first_time)

    def _update(self, batch, first_time):
        batch = Moments(*(tf.stop_gradient(value) for value in batch))
        by_frame = len(batch.mean.shape) == 2
        if self.max_timesteps is not None:
            batch = self._align_frames(batch, first_time)
        if self.collector is not None:
            self.collector.add(batch if self.max_timesteps or not by_frame else pool(batch))
            return
        if by_frame and self.max_timesteps is None:
            counted = tf.where(batch.count >= FEWEST_ROWS, batch.count, tf.zeros_like(batch.count))
            batch = pool(batch._replace(count=counted))
        for variable, value in (
            (self.moving_mean, batch.mean),
            (self.moving_variance, batch.variance),
        ):
            old = tf.cast(as_tensor(variable), value.dtype)
            moved = self.momentum * old + (1.0 - self.momentum) * value
            variable.assign(tf.where(batch.count >= FEWEST_ROWS, moved, old))

    def fold(self, kernel, bias):
        """The kernel and bias with which a plain projection equals the normalised one.

        Args:
            kernel: `[features, channels]`.
            bias: `[channels]`, or `None` for zeros.

        Returns:
            `W diag(gamma / sigma)` and `bias - gamma mean / sigma`, both in float32 or wider.
        """
        scale, shift = self._affine(self._population(), bias)
        return tf.cast(kernel, scale.dtype) * scale, shift

    def fold_batch(self, x, kernel, bias, mask):
        """The same with a mini-batch's own moments over all its live frames, differentiable.

        The variance of x W is diag(W^T Cov(x) W), so neither needs x W.

        Args:
            x: `[batch, time, features]`.
            kernel: `[features, channels]`.
            bias: `[channels]` or `None`.
            mask: Boolean `[batch, time]` or `None`.

        Returns:
            The inputs less their mean (zero where masked), and the kernel and bias to be applied to
            them. Updates the population statistics.
        """
        axes = (0, 1)
        centred = tf.cast(x, statistics_dtype(x.dtype))
        W = tf.cast(kernel, centred.dtype)
        total_mean = 0.0
        # Twice, as the first mean is rounded on the scale of the inputs.
        for _ in range(2):
            mean, count = live_mean(centred, mask, axes, self.synchronized)
            enough = count >= FEWEST_ROWS
            total_mean += mean
            centred -= tf.where(enough, mean, tf.zeros_like(mean))
            if mask is not None:
                centred = tf.where(mask[..., tf.newaxis], centred, tf.zeros_like(centred))
        rows = tf.reshape(centred, [-1, centred.shape[-1]])
        scatter = over_replicas(tf.matmul(rows, rows, transpose_a=True), self.synchronized)
        squares = tf.reduce_sum(W * (scatter @ W), 0)
        variance = tf.maximum(squares, 0.0) / tf.maximum(count, 1.0)
        variance = tf.where(enough, variance, tf.zeros_like(variance))
        population = self._population()
        used = Moments(
            tf.where(enough, tf.zeros_like(population.mean), population.mean),
            tf.where(enough, variance, population.variance),
            None,
        )
        scale, shift = self._affine(used, bias)
        self.update(Moments(product(total_mean, W), variance, count), after=shift)
        return tf.cast(centred, x.dtype), W * scale, shift

    def population_projection(self, kernel, bias):
        """`BN(x W) + bias` with the population's statistics, to be applied to any frames.

        Returns:
            A function of frames `[time, batch, features]`, the index of the first of them, and
            some arrays; and those arrays.
        """
        dtype = kernel.dtype
        if self.max_timesteps is None:
            kernel, shift = self.fold(kernel, bias)
            return plain_projection(tf.cast(kernel, dtype), tf.cast(shift, dtype))
        scale, shift = self._affine(self._population(tf.range(self.max_timesteps)), bias)

        def project_frames(x, first_time, kernel, scale, shift):
            a = tf.cast(project(x, kernel, None), scale.dtype)
            frames = tf.minimum(self._frames(a, first_time), self.max_timesteps - 1)
            scale_t, shift_t = (tf.gather(v, frames)[:, tf.newaxis] for v in (scale, shift))
            return tf.cast(a * scale_t + shift_t, dtype)

        return project_frames, [kernel, scale, shift]

    def _affine(self, population, bias):
        scale = self._gamma() * tf.math.rsqrt(population.variance + self.epsilon)
        shift = -population.mean * scale
        return scale, shift if bias is None else tf.cast(bias, shift.dtype) + shift

    def _gamma(self):
        gamma = as_tensor(self.gamma)
        return tf.cast(gamma, statistics_dtype(self.compute_dtype))

    def _population(self, time=None):
        """Population moments: a pair, or the pairs that belong to the frames `time`."""
        dtype = statistics_dtype(self.compute_dtype)
        mean = tf.cast(as_tensor(self.moving_mean), dtype)
        variance = tf.cast(as_tensor(self.moving_variance), dtype)
        if self.max_timesteps is not None:
            time = tf.minimum(time, self.max_timesteps - 1)
            mean, variance = tf.gather(mean, time), tf.gather(variance, time)
        return Moments(mean, variance, None)

    def _align_frames(self, batch, first_time):
        """Moments by frame, as `max_timesteps` rows that begin at frame 0 of the sequence."""
        row = tf.range(self.max_timesteps) - first_time
        frames = tf.shape(batch.mean)[0]
        present = ((row >= 0) & (row < frames))[:, tf.newaxis]
        row = tf.clip_by_value(row, 0, tf.maximum(frames - 1, 0))
        mean, variance, count = (tf.gather(value, row) for value in batch)
        return Moments(mean, variance, tf.where(present, count, tf.zeros_like(count)))

    @staticmethod
    def _frames(by_frame, first_time):
        return tf.range(tf.shape(by_frame)[0]) + first_time

    @staticmethod
    def _local(value, x, whole_sequence):
        """Values for each frame of any replica, as they meet this replica's `[time, batch]`."""
        return value if whole_sequence else value[: tf.shape(x)[0], tf.newaxis]
