"""A whole run in one call."""

import contextlib
import os
from collections.abc import Callable, Sequence

import keras
import tensorflow as tf

from keras_bnrnn.fit import loop
from keras_bnrnn.fit.distribution import (
    agree,
    check_batch_size,
    end_together,
    make_strategy,
    refusals_shared,
    rejoined_after_losing_a_worker,
    rows_of_worker,
    worker_of,
)
from keras_bnrnn.fit.errors import FitError
from keras_bnrnn.fit.run_folder import RunFolder, claim_in_turn
from keras_bnrnn.fit.tables import path_of_run


def fit(
    build_model: Callable[[], keras.Model],
    train: tf.data.Dataset | Callable[[int], tf.data.Dataset],
    valid: tf.data.Dataset | Callable[[], tf.data.Dataset],
    epochs: int,
    output_dir: str | os.PathLike,
    *,
    config: dict | None = None,
    criterion: str = "val_loss",
    batch_size: int | None = None,
    strategy: str = "auto",
    callbacks: Sequence[keras.callbacks.Callback] = (),
    checkpoint_steps: int = 1000,
    tensorboard: bool = False,
    restart: bool = False,
    verbose: int = 2,
) -> tuple[keras.Model, RunFolder]:
    """Trains a model to the end, over devices and machines, whatever interrupts it on the way.

    The same call on the same folder goes on where it was killed; a finished run goes on when
    `epochs` is raised. With `TF_CONFIG` in the environment of several machines each makes this
    call, and one that is lost is waited for. A loss that is not finite ends the run before it
    reaches a checkpoint, and SIGTERM, SIGHUP or Ctrl-C after it has written one. The result is that
    of one device where layers with statistics have `synchronized=True`.

    Args:
        build_model: makes and compiles the model; called in the strategy's scope. Set a seed in it
            for the same initial weights on one device and on several.
        train: batches of all devices and machines together, `(inputs, targets)` or `(inputs,
            targets, weights)`, nested tensors `[batch, …]`; or a function of the epoch's number,
            from 0, to them. Read twice it must give the same batches, or an interrupted epoch goes
            on with others: no `shuffle` without a seed, or with one but another order each time.
        valid: batches of the validation split, or a function of nothing to them. On several
            machines both must be functions: TensorFlow connects before there are any tensors.
        epochs: in all.
        output_dir: the run's folder (see `RunFolder`), shared by all machines.
        config: what decides the numbers and is to be refused where it changes (JSON values).
        criterion: the log whose smallest value makes an epoch the best one.
        batch_size: rows of a full batch, where the datasets do not know and several devices share.
        strategy: see `make_strategy`.
        callbacks: Keras callbacks that need not remember the epochs before (see `train`).
        checkpoint_steps: write a checkpoint after this many steps of an epoch, too; 0 for none.
        tensorboard: write event files into the folder.
        restart: start again where a run has no whole checkpoint left (see `RunFolder`).
        verbose: 0, nothing; 1, Keras's progress bar; 2, a line per epoch.

    Returns:
        The model after the last epoch, and the run's folder: its `rows`, its `best_row`, the paths
        of its models.

    Raises:
        FitError: something to put right; the message says what.
        Stopped: by SIGTERM, SIGHUP or Ctrl-C, after a checkpoint was written.

    Example:

    >>> import keras, tempfile, tensorflow as tf
    >>> def build_model():
    ...     model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    ...     model.compile("sgd", "mse")
    ...     return model
    >>> data = tf.data.Dataset.from_tensor_slices((tf.ones([8, 2]), tf.ones([8, 1]))).batch(4)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     model, run = fit(build_model, data, data, 2, folder, verbose=0)
    >>> [row["epoch"] for row in run.rows]
    [1, 2]
    """
    output_dir = path_of_run(output_dir)
    several = strategy not in ("none", "mirrored")
    with rejoined_after_losing_a_worker(output_dir) if several else contextlib.nullcontext():
        distribution = make_strategy(strategy)
        worker = worker_of(distribution)
        arguments = {"config": config, "criterion": criterion, "batch_size": batch_size}
        agree(distribution, arguments | {"tensorboard": tensorboard, "restart": restart})
        batches_of = train if callable(train) else lambda epoch: train
        with refusals_shared(distribution):
            batch_size = batch_size or _batch_size(batches_of(0))
            if distribution.num_replicas_in_sync > 1:
                if batch_size is None:
                    raise FitError(
                        "several devices share a batch, whose size the dataset does not know; use "
                        "batch(…, drop_remainder=True), or give it",
                        "batch_size",
                    )
                check_batch_size(batch_size, batch_size, distribution)
            rows = (batch_size or 1) // worker.count
            splits = loop.Splits(
                train=lambda epoch: rows_of_worker(batches_of(epoch), worker, rows),
                valid=rows_of_worker(valid() if callable(valid) else valid, worker, rows),
                rows=rows,
            )
        run = claim_in_turn(
            distribution,
            lambda: RunFolder(output_dir, config or {}, None, criterion, worker, restart=restart),
        )
        with distribution.scope():
            model = build_model()
        loop.train(
            model,
            distribution,
            run,
            splits,
            epochs,
            callbacks=[*callbacks, *loop.watchers(tensorboard, run, splits)],
            checkpoint_steps=checkpoint_steps,
            verbose=verbose,
        )
        run.finish(model)
        end_together(distribution)
    return model, run


def _batch_size(dataset):
    """The rows of each batch, where all are full."""
    return tf.nest.flatten(dataset.element_spec)[0].shape[0]
