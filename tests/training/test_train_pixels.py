"""train_pixels.py: its images, a run, and what it refuses."""

import json

import keras
import numpy as np
import pytest

pytest.importorskip("sklearn", reason="the `experiments` extra is not installed")

import train_pixels
from command_line import CommandError
from keras_bnrnn.fit.distribution import Worker
from keras_bnrnn.fit.errors import FitError
from keras_bnrnn.fit.tables import read_history
from recipes.pixel_task import PixelTask, batches, read_images

FLAGS = ("--units=6", "--epochs=2", "--batch_size=100")


def inputs_of(pixels):
    return {"pixels": pixels, "lengths": np.full(len(pixels), 64)}


def test_splits_are_disjoint_and_the_permutation_is_one():
    images, permuted = read_images(False), read_images(True)
    assert {name: len(part[1]) for name, part in images.items()} == {
        "train": 1197,
        "valid": 300,
        "test": 300,
    }
    seen = np.concatenate([pixels[:, :, 0] for pixels, _ in images.values()])
    assert seen.shape[1:] == (64,) and seen.min() == 0.0 and seen.max() == 1.0
    assert len(np.unique(seen, axis=0)) == len(seen)
    for name, (pixels, classes) in images.items():
        other, same = permuted[name]
        np.testing.assert_array_equal(classes, same)
        np.testing.assert_array_equal(np.sort(pixels, axis=1), np.sort(other, axis=1))
        assert (pixels != other).any()
    order = np.lexsort(images["train"][0][:, :, 0].T[::-1])
    assert len(order) == 1197


def test_batches_are_shuffled_by_seed_and_epoch_and_shared_out():
    images = (np.arange(10, dtype="float32").reshape(10, 1, 1), np.arange(10))

    def order(**arguments):
        dataset = batches(images, 4, **arguments)
        return [int(y) for _, labels, _ in dataset for y in labels]

    assert order() == list(range(10))
    first, again, second = (order(shuffle=pair) for pair in ((3, 0), (3, 0), (3, 1)))
    assert first == again != second and sorted(first) == sorted(second) == list(range(10))
    parts = [order(shuffle=(3, 0), worker=Worker(index, 2)) for index in range(2)]
    assert sorted(parts[0] + parts[1]) == list(range(10))


@pytest.mark.parametrize(
    "flags",
    [
        pytest.param(["--model=baseline"], id="baseline"),
        pytest.param(
            [
                *("--normalize_recurrent", "--normalize_cell_state", "--per_step", "--gamma=0.1"),
                "--permuted",
            ],
            id="per_step",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_run(call_script, tmp_path, flags):
    call_script(train_pixels, *FLAGS, *flags, f"--output_dir={tmp_path}")
    rows = read_history(tmp_path)
    assert [row["epoch"] for row in rows] == [1, 2]
    assert rows[1]["train_loss"] < rows[0]["train_loss"] < 3.0
    best = json.loads((tmp_path / "results.json").read_text())["best"]
    assert 0.0 < best["test_error"] < 1.0
    model = keras.models.load_model(tmp_path / "best.keras")
    pixels, classes = read_images("--permuted" in flags)["test"]
    answers = model.predict(inputs_of(pixels), batch_size=100, verbose=0).argmax(axis=-1)
    assert np.mean(answers != classes) == pytest.approx(best["test_error"])
    layer = model.get_layer("lstm")
    if "--per_step" in flags:
        assert layer.max_timesteps == 64 and layer.normalize_recurrent
        gammas = [weight for weight in layer.weights if weight.name.endswith("gamma")]
        assert len(gammas) == 3
        assert all(np.abs(np.asarray(one) - 0.1).max() < 0.4 for one in gammas)
    else:
        assert type(layer) is keras.layers.LSTM


@pytest.mark.slow
@pytest.mark.parametrize("model", ["baseline", "batch_norm"])
def test_two_devices_are_one(call_script, tmp_path, model):
    """Though the last batch of 1197 and that of 300 images are filled up to 400."""
    flags = ["--units=6", "--epochs=2", "--batch_size=400", f"--model={model}"]
    for strategy in ("none", "mirrored"):
        call_script(
            train_pixels, *flags, f"--strategy={strategy}", f"--output_dir={tmp_path}/{strategy}"
        )
    rows = zip(read_history(tmp_path / "none"), read_history(tmp_path / "mirrored"), strict=True)
    for row, other in rows:
        assert other == pytest.approx(row, rel=1e-4)
    alone, together = (
        keras.models.load_model(tmp_path / strategy / "final.keras")
        for strategy in ("none", "mirrored")
    )
    # A normalised projection of one input has the same outputs whatever its kernel's size: the
    # kernel's gradient is rounding errors, which Adam makes into steps, and the statistics follow
    # it. The answers below depend on all of them.
    undetermined = ("cell/kernel", "moving_") if model == "batch_norm" else ()
    for weight, same in zip(alone.weights, together.weights, strict=True):
        if not any(name in weight.path for name in undetermined):
            np.testing.assert_allclose(weight, same, atol=1e-5, err_msg=weight.path)
    pixels, _ = read_images(False)["test"]
    inputs = inputs_of(pixels)
    answers = [one.predict(inputs, batch_size=300, verbose=0) for one in (alone, together)]
    np.testing.assert_allclose(*answers, atol=1e-5)


@pytest.mark.parametrize(
    ("flags", "error", "message"),
    [
        (["--per_step", "--normalization=sequence"], CommandError, "--per_step needs"),
        (["--batch_size=3", "--strategy=mirrored"], FitError, "does not divide"),
        (["--normalize_cell_state", "--strategy=mirrored"], CommandError, "be synchronised"),
    ],
)
def test_what_is_refused(call_script, tmp_path, flags, error, message):
    with pytest.raises(error, match=message):
        call_script(train_pixels, *flags, f"--output_dir={tmp_path}/run")
    assert not (tmp_path / "run").exists()


def test_files_of_before_images_had_lengths_load(tmp_path):
    @keras.saving.register_keras_serializable(package="keras_bnrnn")
    class ImagesWithInk(keras.layers.Layer):
        def call(self, pixels):
            return pixels

    pixels = keras.Input((64, 1), name="pixels")
    logits = keras.layers.LSTM(3, name="lstm")(ImagesWithInk(name="images")(pixels))
    old = keras.Model(pixels, logits)
    old.save(tmp_path / "old.keras")
    keras.saving.get_custom_objects().pop("keras_bnrnn>ImagesWithInk")
    images, _ = read_images(False)["test"]
    loaded = PixelTask.load_model(tmp_path / "old.keras")
    np.testing.assert_allclose(loaded(inputs_of(images[:9])), old(images[:9]), atol=1e-6)
