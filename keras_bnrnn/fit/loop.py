"""The training loop: `model.fit` that survives.

An epoch is a call of `model.fit` with a dataset of its own, made from the epoch's number, so that
one that was interrupted goes on with the batches that it had not seen. In between: checkpoints, a
loss that is not finite, signals to stop.
"""

import contextlib
import math
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from keras_bnrnn.fit import keras_overrides
from keras_bnrnn.fit.checkpoints import add_metrics
from keras_bnrnn.fit.distribution import (
    LOST,
    agree,
    distribute,
    end_together,
    gather,
    worker_of,
)
from keras_bnrnn.fit.errors import FitError, Stopped
from keras_bnrnn.fit.run_folder import RunFolder
from keras_bnrnn.fit.tensorboard import TensorBoard
from keras_bnrnn.fit.waiting import heeded
from keras_bnrnn.gap import StatisticsGap, is_gap
from keras_bnrnn.population import begin_from

FORGETFUL = (keras.callbacks.EarlyStopping, keras.callbacks.ReduceLROnPlateau)
# Validation batches on which the statistics' gap is measured: one for each so many steps of an
# epoch, which costs less than a hundredth of it, up to the most.
STEPS_PER_GAP_BATCH, MOST_GAP_BATCHES = 50, 8


class Splits(NamedTuple):
    """What a model is trained and validated on.

    Attributes:
        train: a function of the epoch's number, from 0, to this worker's batches of the training
            split; called twice with a number it gives the same batches.
        valid: this worker's batches of the validation split.
        rows: of a full batch of this worker.
        describe: a function of epoch and step, from 0, to a text that names what is in the batch.
    """

    train: Callable[[int], tf.data.Dataset]
    valid: tf.data.Dataset
    rows: int
    describe: Callable[[int, int], str] = lambda epoch, step: f"batch {step + 1}"


def train(
    model: keras.Model,
    strategy: tf.distribute.Strategy,
    run: RunFolder,
    splits: Splits,
    epochs: int,
    *,
    callbacks: Sequence[keras.callbacks.Callback] = (),
    checkpoint_steps: int = 0,
    verbose: int = 2,
) -> None:
    """Trains to the end, from wherever the run's folder stands.

    After each epoch the gap between batch and population statistics (`keras_bnrnn.StatisticsGap`)
    is measured on the first validation batches, for the row of the epoch.

    Args:
        model: compiled in the strategy's scope.
        strategy: that it was made in.
        run: the run's folder.
        splits: what to train and validate on.
        epochs: in all.
        callbacks: Keras callbacks, besides those of this module. They see one `fit` per epoch, so
            `EarlyStopping` and `ReduceLROnPlateau`, which would forget what they saw, are refused.
        checkpoint_steps: write a checkpoint after this many steps of an epoch, and before its
            evaluation; 0 for neither.
        verbose: 0, nothing; 1, Keras's progress bar; 2, one line per epoch.

    Raises:
        FitError: a loss that is not finite, a checkpoint of another run or model, workers that were
            started with different arguments.
        Stopped: by SIGTERM, SIGHUP or Ctrl-C, after a checkpoint was written.
    """
    for callback in callbacks:
        if isinstance(callback, FORGETFUL):
            raise FitError(
                f"{type(callback).__name__} would start anew with each epoch; decide by the run's "
                "rows instead (RunFolder.rows)",
                "callbacks",
            )
    valid, valid_steps = prepare(model, strategy, splits.valid, splits.rows)
    first_valid, _ = distribute(splits.valid.take(MOST_GAP_BATCHES), strategy, splits.rows)
    gap = StatisticsGap(first_valid)
    agree(strategy, {"epochs": epochs, "checkpoint_steps": checkpoint_steps})
    first = run.restore(model)
    agree(strategy, {"finished epochs": first, "finished steps": run.completed_steps})
    if first >= epochs:
        done = "1 epoch is" if first == 1 else f"{first} epochs are"
        print(f"{done} done already; epochs={epochs} asks for no more.")
    if not (first or run.completed_steps) and strategy.num_replicas_in_sync == 1:
        begin_from(model, lambda: splits.train(0))
    recorder = Recorder(run, splits.describe, checkpoint_steps, epochs if verbose == 2 else 0)
    with stopped_by_signals(recorder):
        for epoch in range(first, epochs):
            skipped = run.completed_steps
            batches, steps = distribute(splits.train(epoch), strategy, splits.rows, skipped)
            recorder.begin(skipped, steps)
            gap.steps = gap_batches(skipped + steps)
            everybody = keras.callbacks.CallbackList(
                [gap, *callbacks, recorder],
                add_history=True,
                add_progbar=verbose == 1 and steps > 0,
                model=model,
                verbose=verbose,
                epochs=epochs,
                steps=steps,
            )
            if not steps:
                if strategy.num_replicas_in_sync == 1:  # Else `prepare` has built them.
                    keras_overrides.build_metrics(
                        model, strategy, splits.valid.element_spec, splits.rows
                    )
                end_epoch(model, everybody, epoch, valid, valid_steps)
                continue
            model.fit(
                batches,
                validation_data=valid,
                validation_steps=valid_steps,
                steps_per_epoch=steps,
                initial_epoch=epoch,
                epochs=epoch + 1,
                callbacks=everybody,
                shuffle=False,  # The datasets are shuffled already.
                verbose=verbose % 2,  # Keras's 2 prints two lines per epoch.
            )
    gather(strategy, 0)  # The first worker has written the best model when all go on.


def gap_batches(steps):
    """On how many batches the gap is measured after an epoch of so many steps."""
    return min(max(steps // STEPS_PER_GAP_BATCH, 1), MOST_GAP_BATCHES)


def end_epoch(model, callbacks, epoch, valid, valid_steps):
    """What `fit` does after an epoch's last step, for a run that was stopped there."""
    callbacks.on_train_begin()
    callbacks.on_epoch_begin(epoch)
    logs = model.get_metrics_result()
    scores = model.evaluate(
        valid, steps=valid_steps, callbacks=callbacks, verbose=0, return_dict=True
    )
    logs |= {f"val_{name}": value for name, value in scores.items()}
    callbacks.on_epoch_end(epoch, {name: float(value) for name, value in logs.items()})


def prepare(
    model: keras.Model, strategy: tf.distribute.Strategy, batches: tf.data.Dataset, rows: int
) -> tuple:
    """Makes a compiled model ready for its strategy; returns what `distribute` makes of batches."""
    distributed, steps = distribute(batches, strategy, rows)
    replicas = strategy.num_replicas_in_sync // worker_of(strategy).count
    keras_overrides.prepare(model, strategy, batches.element_spec, rows // replicas)
    return distributed, steps


def evaluate(
    model: keras.Model,
    strategy: tf.distribute.Strategy,
    batches: tf.data.Dataset,
    rows: int,
    callbacks: Sequence[keras.callbacks.Callback] = (),
) -> dict[str, float]:
    """Keras's `evaluate` over all devices.

    Args:
        model: after `prepare`, in its strategy.
        strategy: that it was made in.
        batches: of this worker.
        rows: of a full batch of this worker.
        callbacks: Keras callbacks.

    Returns:
        The loss and the metrics by name.
    """
    batches, steps = distribute(batches, strategy, rows)
    return model.evaluate(
        batches, steps=steps, callbacks=list(callbacks), verbose=0, return_dict=True
    )


def watchers(tensorboard, run, splits):
    """`[TensorBoard(…)]` in the run's folder, or nothing."""
    if not tensorboard:
        return []
    folder = run.path / "tensorboard"
    return [TensorBoard(folder, lambda: splits.train(0), writes=run.worker.is_chief)]


class Recorder(keras.callbacks.Callback):
    """Keeps the run's folder up to date, and ends what must not go on.

    Args:
        run: its `RunFolder`.
        describe: names what is in a batch, from epoch and step.
        checkpoint_steps: write a checkpoint after this many steps of an epoch, and before its
            evaluation; 0 for neither.
        announced: print a line after each of so many epochs; 0 for none.
    """

    def __init__(self, run, describe, checkpoint_steps, announced=0):
        super().__init__()
        self.run, self.describe, self.checkpoint_steps = run, describe, checkpoint_steps
        self.announced = announced
        self.stop_requested = None  # The signal that did.

    def begin(self, skipped, steps):
        """Tells that the next epoch has `steps` left after `skipped` were made already."""
        self.step, self.skipped, self.last = skipped, skipped, skipped + steps

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch, self.began = epoch, time.monotonic()
        if self.skipped:
            # After other callbacks have begun the epoch, which carries no states over.
            self.run.checkpoints.restore_again(self.model)
        if self.skipped == self.last:
            add_metrics(self.model, self.run.take_metrics(), self.run.worker)

    def on_train_batch_end(self, batch, logs=None):
        before = self.step
        self.step = min(self.skipped + batch + 1, self.last)
        if not math.isfinite(logs["loss"]):
            self.stop_at(before, "the loss is")
        if before == self.skipped and self.skipped:
            add_metrics(self.model, self.run.take_metrics(), self.run.worker)
        every = self.checkpoint_steps
        due = every and (self.step // every > before // every or self.step == self.last)
        stopping = self.stopping()
        if due or stopping:
            weights = map(np.asarray, self.model.trainable_variables)
            if not all(np.isfinite(weight).all() for weight in weights):
                self.stop_at(before, "weights are")
            self.run.save_steps(self.model, self.step, time.monotonic() - self.began)
        if stopping and self.stop_requested:
            self.stop()

    def stopping(self):
        """Whether a checkpoint is wanted after this step because a worker was told to stop.

        A checkpoint takes all workers. None is more than a step ahead of another, so one that is
        told to stop asks for a checkpoint after the next step, and makes that step.
        """
        if self.run.worker.count == 1:
            return self.stop_requested is not None
        finished, wanted = self.run.completed_epochs, self.run.checkpoints.is_wanted
        if self.stop_requested and not wanted(finished, self.step):
            self.run.checkpoints.want(finished, self.step + 1)
            return False
        return wanted(finished, self.step)

    def on_test_batch_end(self, batch, logs=None):
        # Without a checkpoint before the evaluation it has to come to its end.
        if self.stop_requested and self.checkpoint_steps:
            self.stop()

    def on_epoch_end(self, epoch, logs=None):
        seconds = time.monotonic() - self.began
        logs = {} if logs is None else logs
        self.run.end_epoch(self.model, epoch, logs, seconds)
        for name in list(filter(is_gap, logs)):
            del logs[name]  # Keras's progress bar, which comes last, would print them all.
        if self.announced:
            row = list(self.run.rows[-1].items())[1:]
            figures = (f"{key} {value:.4g}" for key, value in row if not is_gap(key))
            print(
                f"Epoch {epoch + 1}/{self.announced}: {', '.join(figures)}; {self.last} steps, "
                f"{self.run.seconds[-1]:.0f} s",
                flush=True,
            )
        if self.stop_requested:
            self.stop()

    def stop(self):
        raise Stopped(
            f"{self.stop_requested.name} in epoch {self.epoch + 1}, step {self.step}; the newest "
            f"checkpoint is in {self.run.checkpoints.folder}, and the same command goes on from it",
            self.stop_requested,
        )

    def stop_at(self, before, what):
        """Ends the run for what is not finite; names the batches since `before` steps."""
        batches = "; ".join(self.describe(self.epoch, step) for step in range(before, self.step))
        end_together(self.model.distribute_strategy)
        raise FitError(
            f"{what} not finite in epoch {self.epoch + 1}, step {self.step} ({batches}); the "
            "last checkpoint before it is kept. Try a lower learning rate in another folder, full "
            "precision, or look at these inputs"
        )


@contextlib.contextmanager
def stopped_by_signals(recorder):
    """Lets signals ask the recorder to stop after the step; Ctrl-C again ends it at once."""

    def ask(number, frame):
        if number == signal.SIGINT:
            print("Ending after this step; Ctrl-C again: at once.", file=sys.stderr, flush=True)
            signal.signal(number, before[number])
        recorder.stop_requested = signal.Signals(number)

    if threading.current_thread() is not threading.main_thread():
        yield  # Python tells signals to the main thread alone.
        return
    before = {number: signal.signal(number, ask) for number in heeded()}
    try:
        yield
    except LOST:
        if recorder.stop_requested is None:
            raise
        recorder.stop()  # Another worker was faster.
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
