"""Exact population statistics from a dataset, in place of moving averages."""

import contextlib
import itertools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_bnrnn.keras_internals import flattened_layers
from keras_bnrnn.moments import Moments, pool
from keras_bnrnn.normalization import SETTLED, BatchNormalizer

FIT_BATCH_SIZE = 32  # into which `keras.Model.fit` cuts arrays


class Collector:
    """Takes a normaliser's moments in a pass (see `collecting`), and does nothing with them."""

    def __init__(self, normalizer):
        self.normalizer = normalizer

    @property
    def clipping(self):
        """The bounds of the renormalisation in the pass, `None` for none: as in training."""
        return self.normalizer.clipping

    def add(self, batch, first_time):
        """Takes a call's moments; see `BatchNormalizer.update`."""


class _Pool(Collector):
    """Pools the moments of many calls, in float64."""

    def __init__(self, normalizer):
        super().__init__(normalizer)
        self._trained = normalizer.updates is not None and np.any(normalizer.updates)
        shape = normalizer.moving_mean.shape
        shapes = Moments(shape, shape, (*shape[:-1], 1))
        self.moments = Moments(
            *(tf.Variable(tf.zeros(shape, tf.float64), trainable=False) for shape in shapes)
        )

    @property
    def clipping(self):
        """Nothing was trained with initial statistics."""
        return super().clipping if self._trained else None

    def add(self, batch, first_time):
        batch = self.normalizer.joined(batch, first_time)
        groups = (
            tf.stack([old, tf.cast(new, old.dtype)])
            for old, new in zip(self.moments, batch, strict=True)
        )
        for variable, value in zip(self.moments, pool(Moments(*groups)), strict=True):
            variable.assign(value)


def recalibrate(
    model: keras.Layer, dataset: Iterable[Any], steps: int | None = None, verbose: int = 1
) -> None:
    """Replaces every population statistic in a model by the exact one over a dataset.

    One pass over `dataset`, in which the batch-normalised recurrent layers normalise with the
    statistics of each mini-batch, with `renorm=True` corrected by the population's as in training,
    and everything else runs at `training=False`. Then each layer's
    moving mean and variance become the pooled mean and the biased variance of all live frames of
    the pass; where statistics are kept for each time step, of that step's (a step that no sequence
    reaches keeps what it had). Use it after a training too short for the moving averages to have
    forgotten their initial values, and before folding or exporting.

    With `renorm=True` the statistics of a recurrent term or a cell state are part of what was
    learnt, so that exact ones may well be worse: compare before and after.

    All other variables, states of stateful layers among them, are as before afterwards. If the
    pass fails nothing has changed.

    Args:
        model: A `keras.Model` or `keras.Layer` that holds layers or cells of this package.
        dataset: What `model.fit` reads, of which the inputs count: a `tf.data.Dataset`, a
            `keras.utils.PyDataset`, a PyTorch loader, a generator or another iterable of
            mini-batches, each `x`, `(x, y)` or `(x, y, sample_weight)`; or whole arrays, `x` or a
            tuple `(x, y)`, of which mini-batches of 32 are made.
        steps: How many mini-batches to take; all of them when `None`.
        verbose: 1 for a progress bar, 2 for one line at the end, 0 for silence.

    Raises:
        ValueError: If the model has nothing to recalibrate, the dataset gives no live frame or
            never ends, what its mini-batches are is not clear, or the statistics come out infinite
            or not a number.

    Example:

    >>> import keras, keras_bnrnn, numpy as np
    >>> layer = keras_bnrnn.BatchNormLSTM(4, kernel_initializer="ones")
    >>> model = keras.Sequential([keras.Input((None, 3)), layer])
    >>> batches = [np.full((8, 5, 3), value, "float32") for value in (1.0, 3.0)]
    >>> recalibrate(model, batches, verbose=0)
    >>> float(layer.cell.normalizer.moving_mean[0])
    6.0
    """
    if steps is not None and steps < 1:
        raise ValueError(f"steps must be a positive integer or None. Received: {steps!r}")
    if isinstance(dataset, tf.distribute.DistributedDataset):
        raise _unclear(dataset)  # The pass is on one device.
    inputs, length = inputs_of(model, dataset, steps)
    if not model.built:
        first = next(inputs, None)
        if first is None:
            raise ValueError("dataset is empty: it gave no mini-batch to recalibrate with.")
        model(first)
        inputs = itertools.chain([first], inputs)
    normalizers = normalizers_of(model)
    if not normalizers:
        raise ValueError(
            f"{model.name!r} has no batch-normalised recurrent layer, so there is nothing to "
            "recalibrate. (keras.layers.BatchNormalization is left to Keras.)"
        )
    with collecting(model, map(_Pool, normalizers)):
        # A new function, so that nothing traced earlier is run and nothing traced here is kept.
        run = tf.function(lambda x: model(x, training=False), reduce_retracing=True)
        progress = keras.utils.Progbar(length, unit_name="batch", verbose=verbose)
        for batch, x in enumerate(inputs, start=1):
            run(x)
            progress.update(batch)
        statistics = [_statistics(normalizer) for normalizer in normalizers]
    for variable, value in itertools.chain(*statistics):
        variable.assign(value)


def begin_from(model: keras.Model, make_dataset: Callable[[], Iterable[Any]]) -> None:
    """Gives a new model that renormalises within its loop the statistics of a first mini-batch.

    From their initial values the first update is of what nothing normalised: of a recurrent term
    and a cell state so small that the second call, whose inputs are normalised, blows them up.

    Args:
        model: Built.
        make_dataset: Makes what `recalibrate` reads; not called for other models.
    """
    renormalized = [one for one in normalizers_of(model) if one.updates is not None]
    if any(one.prefix for one in renormalized):
        recalibrate(model, make_dataset(), steps=1, verbose=0)
        for normalizer in renormalized:
            normalizer.updates.assign(tf.ones_like(normalizer.updates))


def normalizers_of(model):
    """The normalisers of all layers and cells in a model."""
    return [layer for layer in flattened_layers(model) if isinstance(layer, BatchNormalizer)]


def normalizing_by_batch(model):
    """A context in which calls at `training=False` normalise as in training, and move nothing."""
    return collecting(model, map(Collector, normalizers_of(model)))


@contextlib.contextmanager
def collecting(model, collectors):
    """Hands moments to `collectors`, one of each normaliser, in a pass that leaves no other trace.

    The pass is at `training=False`, begins at fresh states of stateful layers, and ends with every
    variable, on each replica, as it was.
    """
    # Keras does not list the states of stateful layers among the variables.
    stateful = [layer for layer in flattened_layers(model) if getattr(layer, "stateful", False)]
    states = keras.tree.flatten([getattr(layer, "states", None) for layer in stateful])
    states = [state for state in states if isinstance(state, keras.Variable)]
    replicated = strategy_of(model).experimental_local_results
    before = [
        (component, component.numpy())
        for variable in (*model.variables, *states)
        for component in replicated(variable.value)
    ]
    collectors = list(collectors)
    try:
        for layer in stateful:
            if hasattr(layer, "reset_state"):
                layer.reset_state()
        for collector in collectors:
            collector.normalizer.collector = collector
        yield
    finally:
        for collector in collectors:
            collector.normalizer.collector = None
        for component, value in before:
            component.assign(value)


def strategy_of(model):
    """The strategy that a model was made in; a mere layer is of the one at hand."""
    return getattr(model, "distribute_strategy", None) or tf.distribute.get_strategy()


def _statistics(normalizer):
    """`[(variable, new value), …]`; statistics of a whole dataset are no mere beginning."""
    mean, variance, count = (value.numpy() for value in normalizer.collector.moments)
    if not count.any():
        raise ValueError(
            f"No live frame reached {normalizer.moving_mean.path!r}, so it has no statistics. Is "
            "the dataset empty, everything masked, or the layer not called by the model (or only "
            "through a tf.function of the model's own)? Nothing was changed."
        )
    found = [(normalizer.moving_mean, mean), (normalizer.moving_variance, variance)]
    if normalizer.updates is not None:
        found.append((normalizer.updates, SETTLED))
    found = [(variable, np.where(count > 0, value, variable.numpy())) for variable, value in found]
    if not all(np.isfinite(value).all() for _, value in found):
        raise ValueError(
            f"The statistics for {normalizer.moving_mean.path!r} came out infinite or not a "
            "number. Check the dataset's live frames for such values. Nothing was changed."
        )
    return found


def inputs_of(model, dataset, steps):
    """The inputs of at most `steps` mini-batches, and how many there are if that is known."""
    count = len(getattr(model, "inputs", None) or [None])
    dataset = _cut(dataset, count)
    length = _length(dataset)
    if length == tf.data.INFINITE_CARDINALITY:
        if steps is None:
            raise ValueError("dataset never ends. Say with steps how many mini-batches to take.")
        length = steps
    length = steps if length is None else min(steps or length, length)
    if isinstance(dataset, keras.utils.PyDataset):
        batches = _epoch(dataset, length)
    else:
        batches = itertools.islice(dataset, steps)
    return (_input(batch, count) for batch in batches), length


def _cut(dataset, count):
    """Mini-batches, where `dataset` is what `fit` cuts into such itself, for `count` inputs."""
    x = dataset
    if isinstance(dataset, tuple) and not _are_inputs(dataset, count):
        parts = [part for part in tf.nest.flatten(dataset) if part is not None]
        alike = all(map(_is_array, parts)) and len({len(part) for part in parts}) == 1
        x = dataset[0] if len(dataset) <= 3 and alike else None
    if _are_inputs(x, count):
        # Tuples, since `tf.data` would stack a list.
        x = tuple(x) if isinstance(x, list) else x
        x = tf.nest.map_structure(_readable, x)
        return tf.data.Dataset.from_tensor_slices((x,)).batch(FIT_BATCH_SIZE)
    if isinstance(dataset, tuple):
        raise _unclear(dataset)
    return dataset


def _unclear(dataset):
    return ValueError(
        f"What the mini-batches of this {type(dataset).__name__} are is not clear. Pass arrays "
        "as (x, y), a tf.data.Dataset, or a list of mini-batches such as [(x, y)]."
    )


def _are_inputs(x, count):
    """Whether it is all inputs in full, rather than mini-batches: a list is that of one input's."""
    if isinstance(x, (list, tuple)):
        return len(x) == count > 1 and all(map(_is_array, x))
    return isinstance(x, Mapping) or _is_array(x)


def _is_array(value):
    return tf.is_tensor(value) or hasattr(value, "__array__")


def _readable(value):
    """Arrays of other libraries as NumPy's; PyTorch's may be elsewhere."""
    if tf.is_tensor(value) or not _is_array(value):
        return value
    return np.asarray(value.cpu() if hasattr(value, "cpu") else value)


def _length(dataset):
    """How many mini-batches there are, `tf.data.INFINITE_CARDINALITY`, or `None` if unknown."""
    if isinstance(dataset, keras.utils.PyDataset):
        length = dataset.num_batches
        return tf.data.INFINITE_CARDINALITY if length is None else length
    if isinstance(dataset, tf.data.Dataset):
        length = int(dataset.cardinality())
        return None if length == tf.data.UNKNOWN_CARDINALITY else length
    try:
        return len(dataset)
    except (TypeError, NotImplementedError):
        return None


def _epoch(dataset, length):
    """The mini-batches of a `PyDataset`, asked for as `fit` does."""
    dataset.on_epoch_begin()
    yield from (dataset[index] for index in range(length))
    dataset.on_epoch_end()


def _input(batch, count):
    """The inputs in a mini-batch as `fit` takes it."""
    if isinstance(batch, (list, tuple)) and not 1 <= len(batch) <= 3:
        raise ValueError(
            "A mini-batch must be x, (x, y) or (x, y, sample_weight). Received one of "
            f"{len(batch)} parts."
        )
    x = keras.utils.unpack_x_y_sample_weight(batch)[0]
    if count > 1 and _is_array(x):
        raise ValueError(
            f"The model has {count} inputs, but in a mini-batch x is a single array. Put the "
            "inputs together: ((a, b), y), or ((a, b),) without targets."
        )
    return tf.nest.map_structure(_readable, x)
