"""When the training loop saves, and what ends it."""

import signal
from types import SimpleNamespace

import keras
import numpy as np
import pytest

from keras_bnrnn.fit import checkpoints, loop
from keras_bnrnn.fit.distribution import Worker
from keras_bnrnn.fit.errors import FitError, Stopped


def test_weights_that_are_not_finite_are_not_saved():
    """The step that makes them has a finite loss; the checkpoint before it is to be kept."""
    saved = []
    run = SimpleNamespace(
        worker=Worker(), save_steps=lambda model, steps, seconds: saved.append(steps)
    )
    recorder = loop.Recorder(run, lambda epoch, step: f"batch {step}", 1)
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    recorder.set_model(model)
    recorder.begin(0, 9)
    recorder.on_epoch_begin(0)
    recorder.on_train_batch_end(0, {"loss": 1.0})
    model.set_weights([np.array([[1.0], [np.inf]]), np.zeros(1)])
    with pytest.raises(FitError, match=r"weights are not finite in epoch 1, step 2 \(batch 1\)"):
        recorder.on_train_batch_end(1, {"loss": 1.0})
    assert saved == [1]


def test_one_of_two_workers_told_to_stop_makes_both_save(tmp_path):
    def recorder(index):
        worker = Worker(index, 2)
        saved = []
        run = SimpleNamespace(
            worker=worker,
            completed_epochs=0,
            checkpoints=checkpoints.Checkpoints(tmp_path, worker),
            save_steps=lambda model, steps, seconds: saved.append(steps),
        )
        made = loop.Recorder(run, None, 0)
        made.set_model(keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)]))
        made.begin(0, 9)
        made.on_epoch_begin(0)
        return made, saved

    (told, its), (other, others) = recorder(0), recorder(1)
    for step in range(2):
        told.on_train_batch_end(step, {"loss": 1.0})
        other.on_train_batch_end(step, {"loss": 1.0})
    told.stop_requested = signal.SIGTERM
    told.on_train_batch_end(2, {"loss": 1.0})
    other.on_train_batch_end(2, {"loss": 1.0})
    assert its == others == []
    with pytest.raises(Stopped, match="SIGTERM in epoch 1, step 4"):
        told.on_train_batch_end(3, {"loss": 1.0})
    other.on_train_batch_end(3, {"loss": 1.0})
    assert its == others == [4]
