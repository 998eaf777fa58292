"""What a training run shows in TensorBoard while it runs."""

import contextlib
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from keras_bnrnn.fit.keras_overrides import inner
from keras_bnrnn.gap import is_gap

PROBED_BATCHES = 10


class TensorBoard(keras.callbacks.Callback):
    """Writes an epoch's figures for TensorBoard.

    Scalars: every loss and metric (`train/…`, `validation/…`), the gaps of
    `keras_bnrnn.StatisticsGap`, `learning_rate`, `gradient_norm` (the epoch's mean, before
    clipping), `seconds_per_step`, and `input_pipeline/share_of_step`: the time that the input
    pipeline alone takes for a batch over that of a step. Below 1 prefetching hides it behind the
    computation; near 1 the devices wait for data. Histograms: every gamma and moving variance.

    An epoch that the folder has already is not written again: a kill may come between its point and
    its checkpoint. A file that cannot be written is told once, and training goes on.

    Of several workers each needs one, because statistics are read from all of them together; the
    first writes.

    Args:
        folder: of the event files.
        batches: a function of nothing to this worker's batches of the first epoch, to time them.
        writes: whether this worker writes.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        batches: Callable[[], tf.data.Dataset],
        writes: bool = True,
    ) -> None:
        super().__init__()
        self.folder, self.batches, self.writes = str(folder), batches, writes
        self.writer = self.seconds_per_batch = None
        self.written = 0

    def on_epoch_begin(self, epoch, logs=None):
        if self.writer is None:
            self.writer = tf.summary.create_noop_writer()
            if self.writes:
                self.written = last_step(self.folder)
                with self._told():
                    self.writer = tf.summary.create_file_writer(self.folder)
            self.seconds_per_batch = probe(self.batches())
        self.steps, self.began = 0, time.monotonic()
        self.ended = self.began

    def on_train_batch_end(self, batch, logs=None):
        self.steps, self.ended = batch + 1, time.monotonic()

    def on_epoch_end(self, epoch, logs=None):
        scalars = {
            **{scalar_name(name): value for name, value in (logs or {}).items()},
            "learning_rate": float(np.asarray(self.model.optimizer.learning_rate)),
        }
        if self.steps:  # None where a run was stopped between an epoch's last step and its end.
            seconds = (self.ended - self.began) / self.steps
            scalars |= {
                "gradient_norm": inner(self.model.optimizer).gradient_norm.take(),
                "seconds_per_step": seconds,
                "input_pipeline/share_of_step": self.seconds_per_batch / max(seconds, 1e-9),
            }
        # Statistics are read by all workers together.
        watched = [w for w in self.model.weights if w.name.endswith(("gamma", "moving_variance"))]
        histograms = {weight.path: np.asarray(weight) for weight in watched}
        if epoch < self.written:
            return
        with self._told(), self.writer.as_default(step=epoch + 1):
            for name, value in scalars.items():
                tf.summary.scalar(name, value)
            for name, values in histograms.items():
                tf.summary.histogram(name, values)
            self.writer.flush()

    @contextlib.contextmanager
    def _told(self):
        try:
            yield
        except tf.errors.OpError as error:
            print(f"warning: no more for TensorBoard: {error.message}", file=sys.stderr)
            self.writer = tf.summary.create_noop_writer()


def last_step(folder):
    """The last step that event files in a folder have; 0 without any."""
    last = 0
    for path in Path(folder).glob("events.out.tfevents.*"):
        with contextlib.suppress(tf.errors.OpError):  # A kill may have cut the last record.
            for record in tf.data.TFRecordDataset(str(path)):
                last = max(last, tf.compat.v1.Event.FromString(record.numpy()).step)
    return last


def scalar_name(name):
    """`val_fce` to `validation/fce`, `fce` to `train/fce`; a gap has its group in its name."""
    if is_gap(name):
        return name
    if name.startswith("val_"):
        return f"validation/{name.removeprefix('val_')}"
    return f"train/{name}"


def probe(batches):
    """Seconds that a batch takes of a pipeline that nothing else keeps busy."""
    iterator = iter(batches.take(PROBED_BATCHES + 1))
    next(iterator)  # Fills the shuffle's buffer.
    began = time.monotonic()
    count = sum(1 for _ in iterator)
    return (time.monotonic() - began) / max(count, 1)
