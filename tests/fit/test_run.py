"""A whole run in one call: killed, damaged, moved or copied, it loses and mixes nothing."""

import io
import itertools
import json
import os
import resource
import shutil
import signal
import zipfile
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from keras_bnrnn import BatchNormSimpleRNN, StatisticsGap, files
from keras_bnrnn.fit import (
    FitError,
    RunFolder,
    Stopped,
    best_model,
    fit,
    read_history,
    read_results,
)
from keras_bnrnn.fit import checkpoints as checkpoints_module

EPOCHS, STEPS, ROWS = 3, 4, 4


class Killed(Exception):
    """Stands for SIGKILL where a test wants to choose the very moment."""


class At(keras.callbacks.Callback):
    """Does something after a step of an epoch, or in its evaluation (step `None`)."""

    def __init__(self, epoch, step, action):
        super().__init__()
        self.moment, self.action = (epoch, step), action

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch, self.step = epoch, 0

    def on_train_batch_end(self, batch, logs=None):
        self.step += 1
        if (self.epoch, self.step) == self.moment:
            self.action()

    def on_test_batch_end(self, batch, logs=None):
        if (self.epoch, None) == self.moment:
            self.action()


def kill():
    raise Killed


def batches(epoch=0):
    rng = np.random.default_rng(epoch)
    x = rng.normal(size=(STEPS * ROWS, 3)).astype("float32")
    return tf.data.Dataset.from_tensor_slices((x, x[:, :1])).batch(ROWS, drop_remainder=True)


def build_model(units=2, name="hidden", eager=True, dropout=0.5):
    keras.utils.set_random_seed(1)
    model = keras.Sequential(
        [
            keras.Input((3,)),
            keras.layers.Dropout(dropout),
            keras.layers.Dense(units, name=name),
            keras.layers.BatchNormalization(),
            keras.layers.Dense(1),
        ]
    )
    optimizer = keras.optimizers.SGD(0.05, momentum=0.9, global_clipnorm=1.0)
    model.compile(optimizer, "mse", metrics=["mae"], run_eagerly=eager)
    return model


def train(folder, *callbacks, epochs=EPOCHS, build=build_model, **options):
    options = {"checkpoint_steps": 2, "verbose": 0, **options}
    return fit(
        build, batches, lambda: batches(9).take(2), epochs, folder, callbacks=callbacks, **options
    )


def content(folder):
    """`{name: bytes}` of everything in a folder."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def damage(folder):
    """Spoils all checkpoints."""
    for part in folder.glob("checkpoints/epoch-*/worker-0.npz"):
        part.write_bytes(part.read_bytes()[:-200])


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "undisturbed"
    train(folder)
    return folder


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "run"


@pytest.fixture(scope="module")
def trained_for_two_epochs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "two_epochs"
    train(folder, epochs=2)
    return folder


@pytest.fixture
def two_epochs(trained_for_two_epochs, folder):
    """A copy of a run of two epochs."""
    shutil.copytree(trained_for_two_epochs, folder)
    return folder


def assert_same(one, other):
    """To the byte and to the bit."""
    assert (one / "history.csv").read_bytes() == (other / "history.csv").read_bytes()
    assert read_results(one)["best"] == read_results(other)["best"]
    assert read_results(one)["finished"]
    for name in ("best.keras", "final.keras"):
        models = [keras.saving.load_model(run / name, compile=False) for run in (one, other)]
        for weight, same in zip(models[0].weights, models[1].weights, strict=True):
            np.testing.assert_array_equal(weight, same)


def test_what_a_run_leaves(undisturbed):
    rows, results = read_history(undisturbed), read_results(undisturbed)
    assert list(rows[0]) == ["epoch", "loss", "mae", "val_loss", "val_mae", "learning_rate"]
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    assert results["best"] == pytest.approx(min(rows, key=lambda row: row["val_loss"]))
    assert results["final"] == pytest.approx(rows[-1])
    assert len(results["seconds_per_epoch"]) == EPOCHS and results["finished"]
    names = sorted(path.name for path in (undisturbed / "checkpoints").iterdir())
    assert names == ["epoch-0002-step-000004", "epoch-0003"]
    loaded = keras.saving.load_model(undisturbed / "final.keras")
    assert loaded.count_params() == results["parameters"]


def test_killed_at_steps_and_in_evaluations(folder, undisturbed, capsys):
    """Order of the data, optimizer, dropout, statistics and running metrics go on."""
    for epoch, step in ((0, 1), (0, 4), (0, None), (1, 1), (1, 4), (2, 3)):
        with pytest.raises(Killed):
            train(folder, At(epoch, step, kill))
    train(folder)
    assert f"Continuing {folder} after epoch 2 and 2 steps." in capsys.readouterr().out
    assert_same(folder, undisturbed)


def test_killed_at_file_operations(folder, undisturbed, monkeypatch):
    """Dies at the n-th flush or rename, which is not done any more; n grows with each attempt."""
    left = [0]

    def dying(function):
        def call(*arguments):
            left[0] -= 1
            if left[0] < 0:
                raise Killed
            return function(*arguments)

        return call

    with monkeypatch.context() as patch:
        patch.setattr(files, "flush", dying(files.flush))
        patch.setattr(checkpoints_module, "flush", files.flush)
        patch.setattr(os, "replace", dying(os.replace))
        for attempt in itertools.count(step=2):
            left[0] = attempt
            try:
                train(folder)
                break
            except Killed:
                pass
    assert attempt > 10
    assert_same(folder, undisturbed)


def test_killed_before_the_checkpoint_of_a_new_best_model(two_epochs, monkeypatch):
    """`best.keras` stays the model of the epoch that `results.json` names."""
    before, best = content(two_epochs), read_results(two_epochs)["best"]
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints_module.Checkpoints, "save", lambda *arguments: kill())
        with pytest.raises(Killed):
            train(two_epochs, checkpoint_steps=0)
    assert [path.name for path in two_epochs.glob("best-of-*")] == ["best-of-epoch-0003.keras"]
    assert read_results(two_epochs)["best"] == best
    for name in ("best.keras", "history.csv"):
        assert content(two_epochs)[name] == before[name]
    assert best_model(two_epochs, read_results(two_epochs)) == two_epochs / "best.keras"
    train(two_epochs)
    assert not list(two_epochs.glob("best-of-*"))


def test_what_is_exported_and_what_is_quoted_are_of_one_epoch(two_epochs, monkeypatch):
    """Wherever a kill comes in between: the file's comment says its epoch."""

    def epochs():
        results = read_results(two_epochs)
        path = best_model(two_epochs, results)
        with zipfile.ZipFile(path) as archive:
            assert archive.comment == b"epoch %d" % results["best"]["epoch"]
        return len(read_history(two_epochs)), results["final"]["epoch"]

    assert epochs() == (2, 2)
    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "_take_new_best", lambda run: kill())
        with pytest.raises(Killed):
            train(two_epochs)
        assert epochs() == (2, 2)
        patch.setattr(RunFolder, "_take_new_best", lambda run: run.rows[2:] and kill())
        with pytest.raises(Killed):
            train(two_epochs)
    assert epochs() == (3, 3)
    assert best_model(two_epochs, read_results(two_epochs)).name == "best-of-epoch-0003.keras"
    train(two_epochs)
    assert best_model(two_epochs, read_results(two_epochs)).name == "best.keras"


def test_a_best_model_that_is_of_another_epoch_or_damaged_is_said(two_epochs, undisturbed):
    best, results = two_epochs / "best.keras", read_results(two_epochs)
    shutil.copy(undisturbed / "best.keras", best)
    with pytest.raises(FitError, match=r"best\.keras is of epoch 3, but results.json of epoch 1"):
        best_model(two_epochs, results)
    best.write_bytes(best.read_bytes()[:-100])
    with pytest.raises(FitError, match=r"best\.keras is damaged: File is not a zip file"):
        best_model(two_epochs, results)
    spoilt = bytearray((undisturbed / "best.keras").read_bytes())
    spoilt[len(spoilt) // 2] ^= 0x10
    best.write_bytes(spoilt)
    with pytest.raises(FitError, match=r"best\.keras is damaged"):
        best_model(two_epochs, results)
    best.unlink()
    with pytest.raises(FitError, match=r"has no best\.keras"):
        best_model(two_epochs, results)


def test_a_finished_run_goes_on_when_epochs_are_raised(two_epochs, undisturbed, capsys):
    before = content(two_epochs)
    train(two_epochs, epochs=2)
    assert "2 epochs are done already; epochs=2 asks for no more." in capsys.readouterr().out
    for name in ("history.csv", "best.keras", "checkpoints/epoch-0002/worker-0.npz"):
        assert content(two_epochs)[name] == before[name]
    train(two_epochs)
    assert_same(two_epochs, undisturbed)


@pytest.mark.parametrize("kind", ["cut", "flipped", "removed"])
def test_a_damaged_checkpoint_is_passed_over(two_epochs, undisturbed, capsys, kind):
    victim = two_epochs / "checkpoints" / "epoch-0002" / "worker-0.npz"
    spoilt = bytearray(victim.read_bytes())
    spoilt[len(spoilt) // 2] ^= 0x10
    if kind == "removed":
        victim.unlink()
    else:
        victim.write_bytes(spoilt if kind == "flipped" else spoilt[:-200])
    train(two_epochs)
    messages = capsys.readouterr()
    said = "unfinished" if kind == "removed" else "damaged"
    assert f"skipping {said} {victim.parent}" in messages.err
    assert "after epoch 1 and 4 steps" in messages.out
    kept = [path.name for path in two_epochs.glob("checkpoints/damaged-*")]
    assert kept == ([] if kind == "removed" else ["damaged-epoch-0002-1"])
    assert_same(two_epochs, undisturbed)


def test_all_checkpoints_damaged_and_then_killed_again(two_epochs, undisturbed, capsys):
    """Asks before it starts again; the new checkpoints stay, and nothing old is overwritten."""
    damage(two_epochs)
    before = content(two_epochs)
    with pytest.raises(
        FitError, match=r"best\.keras, .*history\.csv of a run, but no whole"
    ) as asked:
        train(two_epochs)
    assert asked.value.argument == "restart" and content(two_epochs) == before
    with pytest.raises(Killed):
        train(two_epochs, At(1, 3, kill), restart=True)
    kept = two_epochs / "damaged-1"
    assert f"starting again. The former models and tables are kept in {kept}" in (
        capsys.readouterr().err
    )
    for name in ("best.keras", "final.keras", "history.csv", "results.json"):
        assert content(kept)[name] == before[name]
    train(two_epochs, restart=True)  # A whole checkpoint is gone on from.
    messages = capsys.readouterr()
    assert "after epoch 1 and 2 steps" in messages.out and "damaged" not in messages.err
    assert_same(two_epochs, undisturbed)
    checkpoints = content(two_epochs / "checkpoints")
    for name in ("epoch-0002", "epoch-0001-step-000004"):
        assert (
            checkpoints[f"damaged-{name}-1/worker-0.npz"]
            == before[f"checkpoints/{name}/worker-0.npz"]
        )


def test_a_removed_checkpoint_folder_is_no_new_run(two_epochs):
    shutil.rmtree(two_epochs / "checkpoints")
    before = content(two_epochs)
    with pytest.raises(FitError, match="no whole checkpoint to go on from"):
        train(two_epochs)
    assert content(two_epochs) == before


def test_the_best_model_stays_until_an_epoch_is_better(folder, undisturbed):
    """Though the checkpoint that knew of it is damaged: figures and model are of one epoch."""
    shutil.copytree(undisturbed, folder)
    (folder / "checkpoints" / "epoch-0003" / "worker-0.npz").write_bytes(b"")
    results = read_results(folder)
    assert results["best"]["epoch"] == 3
    results["best"]["val_loss"] = 1e-9  # Never reached again.
    (folder / "results.json").write_text(json.dumps(results))
    before = content(folder)
    with pytest.raises(Killed):
        train(folder, At(2, None, kill))
    for name in ("best.keras", "history.csv", "results.json"):
        assert content(folder)[name] == before[name]
    train(folder)
    assert content(folder)["best.keras"] == before["best.keras"]
    results = read_results(folder)
    assert best_model(folder, results) == folder / "best.keras"
    assert (results["best"]["epoch"], results["best"]["val_loss"]) == (3, 1e-9)
    assert content(folder)["history.csv"] == before["history.csv"]


def test_a_checkpoint_that_cannot_be_read_is_not_damaged(two_epochs, undisturbed, monkeypatch):
    before = content(two_epochs)
    read = Path.read_bytes

    def denied(path):
        if path.suffix == ".npz":
            raise PermissionError(13, "Permission denied", str(path))
        return read(path)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", denied)
        with pytest.raises(PermissionError, match=r"epoch-0002/worker-0\.npz"):
            train(two_epochs)
    assert content(two_epochs) == before
    train(two_epochs)
    assert_same(two_epochs, undisturbed)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"units": 5}, r"hidden/kernel is \[3, 2\] there and \[3, 5\] here; .* and \d+ more"),
        ({"name": "other"}, "sequential.*/hidden/kernel is in the checkpoint only"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused(two_epochs, change, message):
    before = content(two_epochs)
    models = []

    def build():
        models.append(build_model(**change))
        return models[0]

    with pytest.raises(FitError, match=f"epoch-0002 does not fit the model: .*{message}"):
        train(two_epochs, build=build)
    for weight, fresh in zip(models[0].weights, build_model(**change).weights, strict=True):
        np.testing.assert_array_equal(weight, fresh)
    assert content(two_epochs) == before


def test_a_checkpoint_of_another_run_is_refused(two_epochs, tmp_path):
    for name, config in (("same", {}), ("other", {"seed": 3})):
        train(tmp_path / name, epochs=1, config=config)
        copied = tmp_path / name / "checkpoints" / "epoch-0002"
        shutil.copytree(two_epochs / "checkpoints" / "epoch-0002", copied)
        with pytest.raises(FitError, match="epoch-0002 is of another run") as error:
            train(tmp_path / name, config=config)
        assert error.value.argument == "output_dir"
    shutil.rmtree(copied)
    train(tmp_path / name, config=config)


def test_a_folder_from_before_runs_had_numbers_goes_on(two_epochs, undisturbed):
    config_path = two_epochs / "config.json"
    config = json.loads(config_path.read_text())
    del config["run"]
    config_path.write_text(json.dumps(config))
    for part in two_epochs.glob("checkpoints/*/worker-0.npz"):
        in_todays_former_format(part)
    train(two_epochs)
    assert_same(two_epochs, undisturbed)


def in_todays_former_format(part):
    """Arrays numbered in the variables' order, and no identity."""
    with np.load(part) as arrays:
        found = {name: arrays[name] for name in arrays.files}
    document = json.loads(str(found.pop("progress")))
    old = {"progress": np.array(json.dumps({k: document[k] for k in list(document)[:4]}))}
    assert list(json.loads(str(old["progress"]))) == ["epochs", "steps", "workers", "progress"]
    for kind in ("shared", "local", "metric"):
        values = [array for name, array in found.items() if name.startswith(f"{kind}/")]
        old |= {f"{kind}/{index}": value for index, value in enumerate(values)}
    buffer = io.BytesIO()
    np.savez(buffer, **old)
    part.write_bytes(buffer.getvalue())


@pytest.mark.parametrize("size", [1000, 12_000])
def test_a_full_disk_names_the_file_and_leaves_nothing(folder, undisturbed, size):
    """The limit of a file's size stands for it: checkpoints exceed the one, models the other."""
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, unlimited[1]))
    try:
        with pytest.raises(OSError) as error:
            train(folder)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    assert str(folder) in str(error.value) and "None" not in str(error.value)
    assert not [name for name in content(folder) if "partial" in name]
    train(folder)
    assert_same(folder, undisturbed)


def test_foreign_names_among_the_checkpoints_are_left_alone(two_epochs, undisturbed):
    folder = two_epochs / "checkpoints"
    names = ("epoch-0002.bak", "epoch-0002-backup", "epoch-00009", "epoch-x", "wanted-x")
    for name in names:
        (folder / name).mkdir()
    (folder / "epoch-0007").write_text("a file")
    train(two_epochs)
    assert all((folder / name).exists() for name in (*names, "epoch-0007"))
    assert_same(two_epochs, undisturbed)


def test_a_folder_that_is_moved_while_at_work_is_not_made_again(folder, tmp_path, undisturbed):
    moved = tmp_path / "moved"
    with pytest.raises(FitError, match="is gone: it was moved, removed or replaced"):
        train(folder, At(1, 1, lambda: folder.rename(moved)))
    assert not folder.exists()
    train(moved)
    assert_same(moved, undisturbed)


def test_a_run_ends_where_another_has_taken_its_folder(folder, tmp_path, undisturbed):
    def replace():
        shutil.rmtree(folder)
        shutil.copytree(undisturbed, folder)

    with pytest.raises(FitError, match="is another run's now"):
        train(folder, At(1, 1, replace))
    assert content(folder) == content(undisturbed)


def test_a_loss_that_is_not_finite_ends_the_run(folder):
    def spoilt(epoch):
        bad = tf.data.Dataset.from_tensors((tf.fill([ROWS, 3], np.inf), tf.zeros([ROWS, 1])))
        return batches(epoch).take(3).concatenate(bad) if epoch else batches(epoch)

    with pytest.raises(FitError, match=r"the loss is not finite in epoch 2, step 4 \(batch 4\)"):
        fit(build_model, spoilt, batches(9), EPOCHS, folder, checkpoint_steps=2, verbose=0)
    assert len(read_history(folder)) == 1
    newest = checkpoints_module.newest_checkpoint(folder)
    assert newest == "epoch-0001-step-000002"
    part = checkpoints_module.read_part(folder / "checkpoints" / newest / "worker-0.npz")
    assert all(np.isfinite(value).all() for name, value in part.items() if name != "progress")


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP"])
def test_signals_save_and_end(folder, undisturbed, name):
    number = getattr(signal, name)
    handler = signal.getsignal(number)
    with pytest.raises(Stopped, match=f"{name} in epoch 2, step 1") as stopped:
        train(folder, At(1, 1, lambda: os.kill(os.getpid(), number)))
    assert signal.getsignal(number) == handler and stopped.value.signal == number
    assert checkpoints_module.newest_checkpoint(folder) == "epoch-0001-step-000001"
    train(folder)
    assert_same(folder, undisturbed)


def test_ctrl_c_twice_ends_at_once(folder, undisturbed, capsys):
    def interrupt():
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(folder, At(1, 1, interrupt), At(1, 1, interrupt))
    assert "Ending after this step; Ctrl-C again: at once." in capsys.readouterr().err
    train(folder)
    assert_same(folder, undisturbed)


def test_what_is_ignored_stays_so(folder, monkeypatch):
    """As SIGHUP under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        train(folder, At(0, 1, lambda: os.kill(os.getpid(), signal.SIGHUP)), epochs=1)
    finally:
        signal.signal(signal.SIGHUP, before)
    assert read_results(folder)["finished"]


def test_several_devices_give_the_result_of_one(tmp_path):
    def with_synchronized_statistics():
        model = build_model(eager=False, dropout=0.0)
        model.layers[2].synchronized = True
        return model

    alone, _ = train(
        tmp_path / "one", build=lambda: build_model(dropout=0.0), epochs=1, strategy="none"
    )
    both, run = train(
        tmp_path / "two", build=with_synchronized_statistics, epochs=1, strategy="mirrored"
    )
    assert both.distribute_strategy.num_replicas_in_sync == 2
    for weight, other in zip(alone.get_weights(), both.get_weights(), strict=True):
        np.testing.assert_allclose(weight, other, atol=1e-5)
    assert run.rows[0] == pytest.approx(read_history(tmp_path / "one")[0], rel=1e-4)


def test_batches_that_cannot_be_dealt_out_are_refused(folder):
    partial = batches().unbatch().batch(ROWS)

    def run(dataset, **options):
        fit(build_model, dataset, dataset, 1, folder, strategy="mirrored", **options)

    with pytest.raises(FitError, match="whose size the dataset does not know"):
        run(partial)
    with pytest.raises(FitError, match=r"full batches or on \(inputs, targets, weights\)"):
        run(partial, batch_size=ROWS)
    with pytest.raises(FitError, match="does not divide over 2 replicas"):
        run(batches(), batch_size=3)
    with pytest.raises(FitError, match="must be known and finite"):
        fit(build_model, batches().repeat(), batches(), 1, folder)


def test_a_url_is_no_folder(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FitError, match="s3://bucket/run is a URL"):
        train("s3://bucket/run")
    assert not any(tmp_path.iterdir())


def test_callbacks_that_would_forget_are_refused(folder):
    with pytest.raises(FitError, match="EarlyStopping would start anew with each epoch"):
        train(folder, keras.callbacks.EarlyStopping())


def test_tensorboard_can_be_read_back(folder):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoints_module.Checkpoints, "save", lambda *arguments: kill())
        with pytest.raises(Killed):
            train(folder, epochs=2, tensorboard=True, checkpoint_steps=0)
    train(folder, epochs=2, tensorboard=True)  # The first point is there already.
    [file, *_] = sorted((folder / "tensorboard").iterdir())
    file.write_bytes(file.read_bytes()[:-5])
    train(folder, epochs=2, tensorboard=True)
    events = EventAccumulator(str(folder / "tensorboard"), {"tensors": 0})
    events.Reload()

    def read(tag):
        return [float(tf.make_ndarray(event.tensor_proto)) for event in events.Tensors(tag)]

    names = {"train/loss": "loss", "validation/mae": "val_mae", "learning_rate": "learning_rate"}
    for tag, column in names.items():
        expected = [row[column] for row in read_history(folder)]
        np.testing.assert_allclose(read(tag), expected, rtol=1e-5)
    for tag in ("gradient_norm", "seconds_per_step", "input_pipeline/share_of_step"):
        assert len(read(tag)) == 2 and min(read(tag)) > 0
    assert any(tag.endswith("gamma") for tag in events.Tags()["tensors"])


@pytest.mark.slow
def test_the_statistics_gap_is_recorded(tmp_path, monkeypatch, capsys):
    """It is the same after a kill; the epochs of a run from before there was one go without."""

    def build():
        keras.utils.set_random_seed(1)
        rnn = BatchNormSimpleRNN(2, normalization="frame", renorm=True, name="rnn")
        layers = [keras.layers.Reshape((3, 1)), rnn, keras.layers.Dense(1)]
        model = keras.Sequential([keras.Input((3,)), *layers])
        model.compile(keras.optimizers.SGD(0.05), "mse")
        return model

    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    train(whole, epochs=2, build=build, tensorboard=True, verbose=2)
    assert "gap" not in capsys.readouterr().out
    with monkeypatch.context() as before:
        before.setattr(StatisticsGap, "measure", lambda callback: {})
        with pytest.raises(Killed):
            train(resumed, At(1, 2, kill), epochs=2, build=build)
    train(resumed, epochs=2, build=build)
    (first, second), rows = read_history(resumed), read_history(whole)
    gaps = {"gap_mean/rnn", "gap_variance/rnn"}
    assert gaps == rows[0].keys() - first.keys() == set(list(rows[0])[-2:])
    assert second == rows[1] and {**first, **rows[0]} == rows[0]
    assert min(rows[1][name] for name in gaps) > 0.0
    events = EventAccumulator(str(whole / "tensorboard"), {"tensors": 0})
    events.Reload()
    assert gaps <= set(events.Tags()["tensors"])
