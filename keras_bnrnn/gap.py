"""How far the statistics of mini-batches and of the population are apart."""

import collections
import itertools
import re
from collections.abc import Iterable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_bnrnn.keras_internals import flattened_layers
from keras_bnrnn.moments import Clipping, where_enough
from keras_bnrnn.normalization import BatchNormalizer
from keras_bnrnn.population import Collector, collecting, inputs_of, strategy_of

# The logs' names begin with these; the layer's name follows.
VARIANCE, MEAN = "gap_variance/", "gap_mean/"


def is_gap(name: str) -> bool:
    """Whether an epoch's log is one of `StatisticsGap`."""
    return name.startswith((VARIANCE, MEAN))


class StatisticsGap(keras.callbacks.Callback):
    """Logs how far batch and population statistics are apart, layer by layer.

    Training normalises with the statistics of the mini-batch, inference with those of the
    population. Where these differ a model computes another function at inference than in training.
    At the end of each epoch this callback runs a few batches through the model, normalised as in
    training and with everything else, dropout among it, at `training=False`, and adds to the
    epoch's logs

        gap_variance/LAYER = mean |log(sigma_B / sigma)|
        gap_mean/LAYER     = mean |mean_B - mean| / sigma,    sigma = sqrt(variance + epsilon)

    the means being over channels and over all live rows that training would normalise with these
    statistics: of their frame, in `"frame"` mode and within the loop, or of their batch. Statistics
    of fewer than two live rows are left out, as training uses the population's instead. LAYER is
    the layer's name, one that Keras gave it counted within the model;
    `bidirectional/forward_lstm` and the like in a wrapper or a nested model; with `/recurrent` and
    `/cell` behind it for the recurrent term and the cell state. With `renorm=True`
    these are the sizes of |log r| and |d|: the gap that nothing but the clipping lets through.

    The model is as before afterwards: weights, statistics, and states of stateful layers. Under
    `tf.distribute` each replica takes its share of a batch, as in `fit`. A model without layers or
    cells of this package gets no logs.

    A layer that normalises each time step warns of mini-batches with fewer than eight rows, also
    where `fit` does not know their size beforehand.

    List it before the callbacks that are to see its logs, such as `keras.callbacks.CSVLogger` and
    `keras.callbacks.TensorBoard`.

    Args:
        dataset: What `model.fit` reads (see `recalibrate`), or what a `tf.distribute` strategy has
            dealt out, in mini-batches of the size that it trains on. The first ones are taken after
            each epoch: have a dataset that gives the same each time, so that epochs compare.
        steps: How many mini-batches to take; all of them when `None`.

    Raises:
        ValueError: If `steps` is less than 1.

    Example:

    >>> import keras, keras_bnrnn, numpy as np
    >>> layer = keras_bnrnn.BatchNormLSTM(4, name="lstm")
    >>> model = keras.Sequential([keras.Input((None, 3)), layer])
    >>> model.compile("sgd", "mse")
    >>> x, y = np.ones((8, 5, 3), "float32"), np.ones((8, 4), "float32")
    >>> gap = keras_bnrnn.StatisticsGap([x])
    >>> history = model.fit(x, y, epochs=2, callbacks=[gap], verbose=0).history
    >>> sorted(history)
    ['gap_mean/lstm', 'gap_variance/lstm', 'loss']
    """

    def __init__(self, dataset: Iterable[Any], steps: int | None = 8) -> None:
        super().__init__()
        if steps is not None and steps < 1:
            raise ValueError(f"steps must be a positive integer or None. Received: {steps!r}")
        if isinstance(dataset, Iterator):  # The next epoch needs them again.
            dataset = list(itertools.islice(dataset, steps))
        self.dataset, self.steps = dataset, steps
        self._measured = None

    def on_epoch_end(self, epoch, logs=None):
        if logs is not None:
            logs.update(self.measure())

    def measure(self) -> dict[str, float]:
        """The gaps by the names of their logs, of the model as it stands."""
        model = self.model
        if self._measured is not model:
            strategy = strategy_of(model)
            with strategy.scope():
                self._meters = {
                    name: _Meter(normalizer) for name, normalizer in named(model).items()
                }
            # Kept for all epochs, unlike the collectors, which are in place while it runs.
            self._run = tf.function(
                lambda x, trainable: strategy.run(lambda x: model(x, training=False), (x,)),
                reduce_retracing=True,
            )
            self._measured = model
        if not self._meters:
            return {}
        for meter in self._meters.values():
            meter.totals.assign(tf.zeros([3], tf.float64))
        trainable = tuple(meter.normalizer.trainable for meter in self._meters.values())
        with collecting(model, self._meters.values()):
            for x in inputs_of(model, self.dataset, self.steps)[0]:
                self._run(_dealt_out(x, strategy_of(model)), trainable)
        logs = {}
        for name, meter in self._meters.items():
            variance, mean, rows = np.asarray(meter.totals)
            if rows:
                logs |= {VARIANCE + name: float(variance / rows), MEAN + name: float(mean / rows)}
        return logs


class _Meter(Collector):
    """Sums up a normaliser's gaps over live rows.

    Attributes:
        totals: Of both gaps and of the rows.
    """

    def __init__(self, normalizer):
        super().__init__(normalizer)
        self.totals = tf.Variable(
            tf.zeros([3], tf.float64),
            trainable=False,
            synchronization=tf.VariableSynchronization.ON_READ,
            aggregation=tf.VariableAggregation.SUM,
        )

    @property
    def clipping(self):
        """As in training, where frozen layers normalise with the population's statistics."""
        return self.normalizer.clipping if self.normalizer.trainable else Clipping()

    def add(self, batch, first_time):
        population = self.normalizer.population_of(batch, first_time)
        epsilon = self.normalizer.epsilon
        variance = population.variance + epsilon
        gaps = tf.stack(
            [
                0.5 * tf.abs(tf.math.log((batch.variance + epsilon) / variance)),
                tf.abs(batch.mean - population.mean) * tf.math.rsqrt(variance),
                tf.ones_like(batch.mean),
            ]
        )
        gaps = tf.reduce_mean(gaps, axis=-1, keepdims=True)
        sums = where_enough(batch.count, tf.cast(batch.count * gaps, tf.float64))
        self.totals.assign_add(tf.reduce_sum(sums, axis=list(range(1, len(sums.shape)))))


def named(model):
    """`{name: normaliser}` of all normalisers in a model."""
    found = {}

    def look_into(layer, names):
        parts = flattened_layers(layer, include_self=False, recursive=False)
        for part, name in zip(parts, _names(parts), strict=True):
            if not isinstance(part, BatchNormalizer):
                inner = part is getattr(layer, "cell", None)
                look_into(part, names if inner else [*names, name])
            elif part not in found.values():
                add("/".join(filter(None, [*names, part.prefix.strip("_")])), part)

    def add(name, normalizer):
        unique, number = name, 0
        while unique in found:
            number += 1
            unique = f"{name}_{number}"
        found[unique] = normalizer

    look_into(model, [])
    return found


def _names(layers):
    """The layers' names, with a count of their own where Keras counts layers.

    Keras's goes on from model to model, so that one made once more would have other names.
    """
    counts = collections.Counter()
    for layer in layers:
        name = re.sub(r"_\d+$", "", layer.name)
        kind = re.sub(r"^(forward|backward)_", "", name).replace("_", "")
        if kind != type(layer).__name__.lower():  # The user's name.
            yield layer.name
            continue
        yield f"{name}_{counts[name]}" if counts[name] else name
        counts[name] += 1


def _dealt_out(x, strategy):
    """A batch's rows for each replica; what is dealt out already as it is."""
    replicas = strategy.num_replicas_in_sync
    leaves = tf.nest.flatten(x)
    if replicas == 1 or any(isinstance(one, tf.distribute.DistributedValues) for one in leaves):
        return x

    def shares(values):
        values = tf.convert_to_tensor(values)
        rows = -(-values.shape[0] // replicas)
        return strategy.experimental_distribute_values_from_function(
            lambda replica: values[replica.replica_id_in_sync_group * rows :][:rows]
        )

    return tf.nest.map_structure(shares, x)
