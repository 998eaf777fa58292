"""Batch normalisation with population statistics, for one array of pre-activations.

    BN(a) = gamma * (a - mean) / sqrt(variance + epsilon)  [+ beta]

`BatchNormalizer` owns gamma and the population statistics, and knows over which rows mean and
variance are taken: a whole sequence, each frame by itself, or the population's. It knows no time
loop; a loop asks it for one frame at a time and hands the moments back when it is done.
"""

from typing import Any, NamedTuple

import keras
import tensorflow as tf

from keras_bnrnn.moments import (
    OVER_SEQUENCE,
    Clipping,
    Moments,
    moments,
    normalizing_statistics,
    pool,
    statistics_dtype,
    where_enough,
)
from keras_bnrnn.projection import (
    folded_projection,
    normalized_projection,
    plain_projection,
    project,
    scale_and_shift,
)


class Statistics(NamedTuple):
    """What a normaliser's variables of that name hold when a call begins.

    A call moves the variables from what it read first, and normalises all frames with the same.
    Nothing else keeps the calls of a graph in order: TensorFlow's optimizer prunes a read that is
    not needed, and with it a control dependency that led through it.

    Attributes:
        moving_mean, moving_variance: `[channels]`, or `[max_timesteps, channels]`.
        updates: The same with one channel; `None` but for renormalisation.
    """

    moving_mean: tf.Tensor
    moving_variance: tf.Tensor
    updates: Any


# So many updates that the moving averages forget at their `momentum`, and no faster.
SETTLED = 2.0**24


def as_tensor(value):
    """`value` as a `tf.Tensor`: a Keras variable converts to a `tf.Variable` otherwise."""
    return tf.convert_to_tensor(keras.ops.convert_to_tensor(value))


def _or_zeros(bias, kernel):
    return tf.zeros(kernel.shape[1:], kernel.dtype) if bias is None else bias


@tf.custom_gradient
def _differentiated_like(value, other):
    """`value` with the derivative of `other`."""
    return tf.identity(value), lambda upstream: (None, upstream)


def statistics_config(one):
    """What the configuration of a normaliser and that of its cell have in common."""
    initializers = keras.initializers
    return {
        "max_timesteps": one.max_timesteps,
        "renorm": one.renorm,
        "renorm_clipping": one.renorm_clipping,
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
        renorm: Whether to renormalise (Ioffe 2017), which trains what inference computes. The
            population statistics are then plain averages until `momentum` is reached.
        renorm_clipping: A dictionary of bounds of its corrections; see `Clipping`.
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
        renorm,
        renorm_clipping,
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
        self.renorm = renorm
        self.renorm_clipping = renorm_clipping
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
        self.updates = None
        # While set, batch statistics are collected here instead of averaged, and used with the
        # renormalisation that its `clipping` says.
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

        def statistic(name, initializer, shape=shape, dtype=self.variable_dtype):
            # Each replica averages on its own, inside a loop too, and the mean is saved.
            return keras.Variable(
                initializer,
                shape=shape,
                dtype=dtype,
                trainable=False,
                autocast=False,
                synchronization="on_read",
                aggregation="mean",
                name=self.prefix + name,
            )

        self.moving_mean = statistic("moving_mean", self.moving_mean_initializer)
        self.moving_variance = statistic("moving_variance", self.moving_variance_initializer)
        if self.renorm:
            # How many the statistics are the average of.
            self.updates = statistic("updates", "zeros", (*shape[:-1], 1), self._wide.name)
        self.built = True

    def normalizes_by_batch(self, training):
        """Whether a call takes its own moments, rather than the population's."""
        return bool(training and self.trainable) or self.collector is not None

    def project(self, x, kernel, bias, *, axes, mask=None, training=False, first_time=0):
        """Normalised projection of all frames, `BN(x W) + bias`.

        Args:
            x: `[time, batch, features]`, or a list of such, one for each equal part of the
                kernel's columns (inputs with a dropout mask for each gate).
            kernel: `[features, channels]`.
            bias: `[channels]` or `None`.
            axes: `OVER_SEQUENCE` for moments over all live frames together, or `OVER_FRAME` for
                those of each frame.
            mask: Boolean `[time, batch]` or `None`.
            training: Python boolean.
            first_time: The index of the first frame.

        Returns:
            `[time, batch, channels]`. Updates the population statistics where it trains.
        """
        if not self.normalizes_by_batch(training):
            project_frames, arrays = self.population_projection(kernel, bias)
            return project_frames(x, first_time, *arrays)
        statistics = self.read()
        time = None
        if axes != OVER_SEQUENCE:
            time = self._frames(x[0] if isinstance(x, list) else x, first_time)
        z, batch = normalized_projection(
            *(x, kernel, _or_zeros(bias, kernel), self._gamma()),
            *(self._population(statistics, time), mask),
            axes=axes,
            epsilon=self.epsilon,
            renorm=self._clipping(),
            synchronized=self.synchronized,
        )
        self.update(batch, statistics, first_time)
        return z

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
        # Read here: of a tensor that the loop only passes on, TensorFlow's optimizer made one that
        # no turn computed, once it knew the batch size and with it what is chosen below.
        population = self._population(self.read(), time)
        population = Moments(population.mean[channels], population.variance[channels], None)
        batch = moments(a, mask) if self.normalizes_by_batch(training) else None
        renorm = self._clipping()
        mean, inverse = normalizing_statistics(batch, population, self.epsilon, renorm)
        wide = tf.cast(a, mean.dtype)
        y = (wide - mean) * inverse
        if renorm is not None and batch is not None:
            batch_mean, batch_inverse = normalizing_statistics(batch, population, self.epsilon)
            r = tf.stop_gradient(inverse / batch_inverse)
            y = _differentiated_like(y, (wide - batch_mean) * batch_inverse * r)
        y *= self._gamma()[channels]
        if self.beta is not None:
            y += tf.cast(as_tensor(self.beta), y.dtype)
        return tf.cast(y, a.dtype), batch

    def read(self):
        """The `Statistics` at this point of a program, in float32 or wider."""
        variables = (self.moving_mean, self.moving_variance, self.updates)
        return Statistics(
            *(None if v is None else tf.cast(as_tensor(v), self._wide) for v in variables)
        )

    def update(self, batch, statistics, first_time=0):
        """Moves the population statistics towards a call's moments, once.

        Args:
            batch: `Moments` of a whole sequence (`[channels]`) or of each of its frames
                (`[time, channels]`). Frames with fewer than two live rows are left out.
            statistics: What `read` gave when the call began.
            first_time: The index of the first of these frames.
        """
        batch = Moments(*map(tf.stop_gradient, batch))
        if self.collector is not None:
            self.collector.add(batch, first_time)
            return
        batch = batch._replace(count=where_enough(batch.count, batch.count))
        batch = self.joined(batch, first_time)
        momentum, updates = self.momentum, statistics.updates
        if updates is not None:
            momentum = tf.minimum(updates / (updates + 1.0), momentum)
            self.updates.assign(where_enough(batch.count, updates + 1.0, updates))
        for variable, old, value in (
            (self.moving_mean, statistics.moving_mean, batch.mean),
            (self.moving_variance, statistics.moving_variance, batch.variance),
        ):
            moved = momentum * old + (1.0 - momentum) * value
            variable.assign(where_enough(batch.count, moved, old))

    def joined(self, batch, first_time=0):
        """A call's moments (see `update`) in the population statistics' shape."""
        if self.max_timesteps is not None:
            return self._align_frames(batch, first_time)
        return pool(batch) if len(batch.mean.shape) == 2 else batch

    def population_of(self, batch, first_time=0):
        """The population's moments that belong to a call's (see `update`)."""
        by_frame = len(batch.mean.shape) == 2
        time = self._frames(batch.mean, first_time) if by_frame else None
        return self._population(self.read(), time)

    def fold(self, kernel, bias):
        """The kernel and bias with which a plain projection equals the normalised one.

        Args:
            kernel: `[features, channels]`.
            bias: `[channels]`, or `None` for zeros.

        Returns:
            `W diag(gamma / sigma)` and `bias - gamma mean / sigma`, both in float32 or wider.
        """
        scale, shift = self._affine(self._population(self.read()), bias)
        return tf.cast(kernel, scale.dtype) * scale, shift

    def fold_batch(self, x, kernel, bias, mask):
        """The same with a mini-batch's own moments over all its live frames, differentiable.

        Args:
            x: `[batch, time, features]`.
            kernel: `[features, channels]`.
            bias: `[channels]` or `None`.
            mask: Boolean `[batch, time]` or `None`.

        Returns:
            The inputs less their mean (zero where masked), and the kernel and bias to be applied to
            them. Updates the population statistics.
        """
        statistics = self.read()
        x, kernel, shift, batch = folded_projection(
            *(x, kernel, _or_zeros(bias, kernel), self._gamma()),
            *(self._population(statistics), mask),
            epsilon=self.epsilon,
            renorm=self._clipping(),
            synchronized=self.synchronized,
        )
        self.update(batch, statistics)
        return x, kernel, shift

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
        scale, shift = self._affine(
            self._population(self.read(), tf.range(self.max_timesteps)), bias
        )

        def project_frames(x, first_time, kernel, scale, shift):
            a = tf.cast(project(x, kernel, None), scale.dtype)
            frames = tf.minimum(self._frames(a, first_time), self.max_timesteps - 1)
            scale_t, shift_t = (tf.gather(v, frames)[:, tf.newaxis] for v in (scale, shift))
            return tf.cast(a * scale_t + shift_t, dtype)

        return project_frames, [kernel, scale, shift]

    def _affine(self, population, bias):
        return scale_and_shift(
            self._gamma(), bias, *normalizing_statistics(None, population, self.epsilon)
        )

    @property
    def clipping(self):
        """The bounds of renormalisation in training, `None` where there is none."""
        return Clipping(**(self.renorm_clipping or {})) if self.renorm else None

    def _clipping(self):
        return self.clipping if self.collector is None else self.collector.clipping

    @property
    def _wide(self):
        return statistics_dtype(self.compute_dtype)

    def _gamma(self):
        return tf.cast(as_tensor(self.gamma), self._wide)

    def _population(self, statistics, time=None):
        """Population moments: a pair, or the pairs that belong to the frames `time`."""
        mean, variance, _ = statistics
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
