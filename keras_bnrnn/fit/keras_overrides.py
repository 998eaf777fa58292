"""What Keras's `fit` does not do under `tf.distribute` as it should, put right for one model.

Each override belongs to one instance, so a saved model knows nothing of it. The tests run `fit`
without each of them too: where that begins to work, a test fails and the override can go.

* Clipping: `keras.optimizers` clip a replica's gradient before the replicas' are summed, which is
  not the clipping of the sum (https://github.com/tensorflow/tensorflow/issues/33929).
* `MultiWorkerMirroredStrategy`: `_maybe_symbolic_build` fails on PerReplica batches, and
  `reduce_per_replica` asks for the mean over axis 0 of scalars
  (https://github.com/tensorflow/tensorflow/issues/72388,
  https://github.com/keras-team/keras/issues/20585).
"""

import keras
import numpy as np
import tensorflow as tf

from keras_bnrnn.fit.distribution import worker_of


def prepare(model, strategy, element_spec, rows):
    """Makes a compiled model's `fit` and `evaluate` right under its strategy.

    Args:
        model: built and compiled in the strategy's scope.
        strategy: the script's.
        element_spec: of the batches that `fit` will get.
        rows: of a replica's batch.
    """
    with strategy.scope():
        clip_after_sum(model.optimizer)
    if strategy.num_replicas_in_sync == 1:
        return
    build_metrics(model, strategy, element_spec, rows)
    # The model, its loss and its metrics are built; a batch drawn to build them again would fail
    # on several machines, and be lost for training on all.
    model._maybe_symbolic_build = lambda *arguments, **options: None
    if worker_of(strategy).count > 1:
        reduce_over_an_axis(model)


class GradientNorm:
    """The mean norm of the gradients that an optimizer got, over all replicas and before clipping.

    No Keras object, so that the optimizer that has it saves no variable of it.
    """

    def __init__(self):
        self._total, self._count = (
            keras.Variable(0.0, trainable=False, name=f"gradient_norm_{name}")
            for name in ("total", "count")
        )

    def add(self, gradients):
        norm = tf.linalg.global_norm([tf.cast(gradient, tf.float32) for gradient in gradients])
        self._total.assign_add(norm)
        self._count.assign_add(1.0)

    def take(self):
        """The mean since the last call; 0 without a step."""
        total, count = float(np.asarray(self._total)), float(np.asarray(self._count))
        self._total.assign(0.0)
        self._count.assign(0.0)
        return total / max(count, 1.0)


def clip_after_sum(optimizer):
    """Clips the sum over the replicas; gives the optimizer a `gradient_norm`."""
    optimizer = getattr(optimizer, "inner_optimizer", optimizer)
    sum_gradients, clip_gradients = optimizer._all_reduce_sum_gradients, optimizer._clip_gradients
    norm = GradientNorm()

    def summed_and_clipped(grads_and_vars):
        gradients, variables = zip(*sum_gradients(grads_and_vars), strict=True)
        norm.add(gradients)
        return list(zip(clip_gradients(list(gradients)), variables, strict=True))

    optimizer._all_reduce_sum_gradients = summed_and_clipped
    optimizer._clip_gradients = lambda gradients: gradients
    optimizer.gradient_norm = norm


def build_metrics(model, strategy, element_spec, rows):
    """Makes the variables of loss and metrics, which must exist before the replicas run."""
    batch = tf.nest.map_structure(
        lambda spec: tf.zeros([rows, *(size or 1 for size in spec.shape[1:])], spec.dtype),
        element_spec,
    )
    with strategy.scope():
        model._symbolic_build(data_batch=batch)


def reduce_over_an_axis(model):
    """Gives the steps' results the axis that Keras's mean over workers reduces."""

    def with_axis(step):
        return lambda data: {name: tf.expand_dims(value, 0) for name, value in step(data).items()}

    model.train_step = with_axis(model.train_step)
    model.test_step = with_axis(model.test_step)
