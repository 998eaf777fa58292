"""train_speech.py on a tiny corpus: what it writes, what it reads, what it refuses."""

import shutil

import keras
import numpy as np
import pytest

import train_speech
from command_line import CommandError
from keras_bnrnn.data.errors import CorpusError
from keras_bnrnn.fit.distribution import Worker
from keras_bnrnn.fit.errors import FitError
from keras_bnrnn.fit.tables import read_history, read_results
from recipes.speech_task import SpeechTask

SMALL = ("--layers=1", "--units=6", "--batch_size=8", "--learning_rate=0.01")


@pytest.fixture
def task(parse_flags, tiny_corpus):
    """The task of some flags."""

    def make(*flags):
        parse_flags(train_speech, *SMALL, *flags)
        return SpeechTask(SpeechTask.settings_of(train_speech.FLAGS), tiny_corpus)

    return make


def test_trains_and_writes_results(trained_speech, task):
    rows, results = read_history(trained_speech / "run"), read_results(trained_speech / "run")
    assert [row["epoch"] for row in rows] == [1, 2]
    assert rows[-1]["train_fce"] < rows[0]["train_fce"]
    assert {"train_fce", "train_fer", "dev_fce", "dev_fer", "epoch"} <= results["best"].keys()
    assert 0.4 < results["best"]["dev_fer_of_commonest_state"] < 0.9
    assert results["task"] == "speech"
    loaded = keras.saving.load_model(trained_speech / "run" / "best.keras", compile=False)
    inputs, labels, _ = next(iter(task().batches("dev")))
    assert loaded(inputs).shape == (*labels.shape, 5)
    lines = (trained_speech / "output.txt").read_text().splitlines()
    assert any(line.startswith("Next:") for line in lines)
    # One line per epoch where there is no terminal, and nothing between them.
    first = lines.index(next(line for line in lines if line.startswith("Epoch 1/2: train_fce ")))
    assert lines[first + 1].startswith("Epoch 2/2: ")
    assert "Epoch" not in lines[first + 2].split() and "Epoch" not in lines[first - 1].split()


@pytest.mark.slow
def test_what_is_left_out_is_said_and_a_test_split_is_scored(
    call_script, tiny_corpus, tmp_path, capsys, task
):
    lengths = np.sort(task().kept)
    limit = int(np.median(lengths))
    longer = lengths[lengths > limit]
    assert task(f"--max_frames={limit}").examples == len(lengths) - len(longer)
    flags = [f"--data_dir={tiny_corpus}", f"--output_dir={tmp_path}/run", "--model=baseline"]
    call_script(train_speech, *SMALL, *flags, f"--max_frames={limit}", "--epochs=1")
    output = capsys.readouterr().out
    assert (
        f"Left out of training: {len(longer)} utterances longer than --max_frames={limit}, "
        f"{longer.sum() / lengths.sum():.1%} of its frames."
    ) in output
    assert "Model: baseline, 1 bidirectional layers of 6 units" in output
    assert read_results(tmp_path / "run")["model"] == "baseline"


def test_one_direction(task):
    model = task("--nobidirectional").build_model(1)
    features = np.random.default_rng(0).normal(size=(1, 9, 123)).astype("float32")
    changed = features.copy()
    changed[:, 5:] += 1.0
    first, second = (
        model({"features": one, "lengths": np.array([9])}).numpy() for one in (features, changed)
    )
    np.testing.assert_allclose(first[:, :5], second[:, :5], atol=1e-6)
    assert np.abs(first[:, 5:] - second[:, 5:]).max() > 1e-3


def test_orders_differ_between_epochs_and_seeds(task):
    def order(seed, epoch):
        batches = task(f"--seed={seed}").batches("train", Worker(), epoch)
        return np.concatenate([inputs["features"][:, 0, 0] for inputs, _, _ in batches]).tolist()

    first = order(0, 0)
    assert first == order(0, 0)
    assert first != order(0, 1)
    assert first != order(1, 0)


def test_augmentation_is_for_training_alone(task):
    augmented, plain = task("--augment"), task("--noaugment")
    assert augmented.config["augment"] and not plain.config["augment"]

    def pairs(split, epoch):
        both = (one.batches(split, Worker(), epoch) for one in (augmented, plain))
        return [
            [inputs["features"].numpy() for inputs, *_ in pair] for pair in zip(*both, strict=True)
        ]

    training = pairs("train", 0)
    assert all(hidden.shape == whole.shape for hidden, whole in training)
    assert any(not np.array_equal(hidden, whole) for hidden, whole in training)
    for hidden, whole in pairs("train", None):
        np.testing.assert_array_equal(hidden, whole)


def test_a_batch_is_described_by_its_utterances(task):
    speech = task()
    described = speech.describe_batch(Worker(), 1, 2)
    names = [name.decode() for name in list(speech.read("train", Worker(), 1, True))[2][3].numpy()]
    assert described == f"utterances {', '.join(names)}" and len(names) > 1


@pytest.mark.parametrize(
    ("more", "error", "message"),
    [
        (["--output_dir="], CommandError, "--output_dir is missing"),
        (["--data_dir="], CommandError, "--data_dir is missing"),
        (["--data_dir=nowhere"], CorpusError, "no such file"),
        (["--strategy=mirrored", "--batch_size=9"], FitError, "does not divide over 2"),
        (["--strategy=mirrored", "--jit_compile"], CommandError, "several devices"),
        (["--strategy=mirrored", "--steps_per_execution=2"], CommandError, "several devices"),
        (["--max_frames=3"], CorpusError, "leaves nothing"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_written(
    call_script, tiny_corpus, tmp_path, more, error, message
):
    folder = tmp_path / "run"
    with pytest.raises(error, match=message):
        call_script(
            train_speech, *SMALL, f"--data_dir={tiny_corpus}", f"--output_dir={folder}", *more
        )
    assert not folder.exists()


def test_a_shard_damaged_after_preparation_is_named(call_script, tiny_corpus, tmp_path):
    copy = tmp_path / "corpus"
    shutil.copytree(tiny_corpus, copy)
    shard = sorted(copy.glob("train-*.tfrecord"))[0]
    contents = bytearray(shard.read_bytes())
    contents[len(contents) // 2] ^= 0xFF
    shard.write_bytes(contents)
    with pytest.raises(CorpusError, match=rf"{shard.name}\..*--verify={copy}") as caught:
        call_script(train_speech, *SMALL, f"--data_dir={copy}", f"--output_dir={tmp_path}/run")
    assert "dev-" not in str(caught.value)
