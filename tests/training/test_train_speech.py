"""train_speech.py on a tiny corpus: what it writes, how it resumes, what it refuses."""

import shutil
import signal
import subprocess
import sys
import time

import keras
import numpy as np
import pytest

import export
import train_speech
from command_line import CommandError
from keras_bnrnn.data.errors import CorpusError
from keras_bnrnn.fit.run_folder import read_history, read_results

SMALL = ("--layers=2", "--units=6", "--batch_size=8", "--learning_rate=0.01")


def arguments(corpus, folder, *more):
    return [f"--data_dir={corpus}", f"--output_dir={folder}", *SMALL, *more]


@pytest.fixture(scope="module")
def corpus(tiny_corpus):
    return tiny_corpus


@pytest.mark.parametrize("model", ["baseline", "batch_norm"])
def test_trains_and_writes_results(call_script, corpus, tmp_path, capsys, model):
    call_script(train_speech, *arguments(corpus, tmp_path, f"--model={model}", "--epochs=3"))
    rows, results = read_history(tmp_path), read_results(tmp_path)
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    assert rows[-1]["train_fce"] < rows[0]["train_fce"]
    assert {"train_fce", "train_fer", "dev_fce", "dev_fer", "epoch"} <= results["best"].keys()
    assert 0.4 < results["best"]["dev_fer_of_commonest_state"] < 0.9
    loaded = keras.saving.load_model(tmp_path / "best.keras", compile=False)
    batch = next(iter(train_speech.batches(train_speech.load_corpus(corpus), "dev")))
    assert loaded(batch[0]).shape == (*batch[1].shape, 5)
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("Next:") for line in lines)
    # One line per epoch where there is no terminal, and nothing between them.
    first = lines.index(next(line for line in lines if line.startswith("Epoch 1/3: train_fce ")))
    assert [line.split(":")[0] for line in lines[first : first + 3]] == [
        f"Epoch {epoch}/3" for epoch in (1, 2, 3)
    ]
    assert "Epoch" not in lines[first + 3].split() and "Epoch" not in lines[first - 1].split()


def test_what_is_left_out_is_said(call_script, corpus, tmp_path, capsys):
    lengths = train_speech.kept_lengths(train_speech.load_corpus(corpus).split("train"))
    limit = int(np.median(lengths))
    longer = lengths[lengths > limit]
    flags = [f"--max_frames={limit}", "--epochs=1"]
    call_script(train_speech, *arguments(corpus, tmp_path / "run", *flags))
    share = longer.sum() / lengths.sum()
    assert (
        f"Left out of training: {len(longer)} utterances longer than --max_frames={limit}, "
        f"{share:.1%} of its frames."
    ) in capsys.readouterr().out
    exported = tmp_path / "exported"
    call_script(export, f"--run_dir={tmp_path}/run", f"--output_dir={exported}")
    card = (exported / "MODEL_CARD.md").read_text()
    assert f"Trained on {len(lengths) - len(longer)} utterances" in card


def test_one_direction(call_script, corpus, tmp_path):
    call_script(train_speech, *arguments(corpus, tmp_path, "--nobidirectional", "--epochs=1"))
    loaded = keras.saving.load_model(tmp_path / "best.keras", compile=False)
    features = np.random.default_rng(0).normal(size=(1, 9, 123)).astype("float32")
    changed = features.copy()
    changed[:, 5:] += 1.0
    first, second = (
        loaded({"features": one, "lengths": np.array([9])}).numpy() for one in (features, changed)
    )
    np.testing.assert_allclose(first[:, :5], second[:, :5], atol=1e-6)
    assert np.abs(first[:, 5:] - second[:, 5:]).max() > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["none", "mirrored"])
def test_interrupted_run_ends_like_an_undisturbed_one(call_script, corpus, tmp_path, strategy):
    """The order of the data included: epoch 3 sees the third order, whoever trains it."""
    # Rounding differs with the threads' order, and a frame more or less is wrong.
    flags = [f"--strategy={strategy}", "--deterministic"]
    call_script(train_speech, *arguments(corpus, tmp_path / "a", "--epochs=4", *flags))
    for epochs in (1, 3, 4):
        call_script(train_speech, *arguments(corpus, tmp_path / "b", f"--epochs={epochs}", *flags))
    rows, resumed = read_history(tmp_path / "a"), read_history(tmp_path / "b")
    for row, other in zip(rows, resumed, strict=True):
        assert other == pytest.approx(row, rel=1e-4)


def test_orders_differ_between_epochs_and_seeds(parse_flags, corpus, tmp_path):
    loaded = train_speech.load_corpus(corpus)

    def order(seed, first_epoch):
        parse_flags(train_speech, *arguments(corpus, tmp_path, f"--seed={seed}"))
        batches = train_speech.batches(loaded, "train", first_epoch=first_epoch)
        return np.concatenate([inputs["features"][:, 0, 0] for inputs, _, _ in batches]).tolist()

    assert order(0, 0) == order(0, 0)
    assert order(0, 1) == order(0, 1)
    assert order(0, 0) != order(0, 1)
    assert order(0, 0) != order(1, 0)


@pytest.mark.parametrize(
    ("more", "error", "message"),
    [
        (["--output_dir="], CommandError, "--output_dir is missing"),
        (["--data_dir="], CommandError, "--data_dir is missing"),
        (["--data_dir=nowhere"], CorpusError, "no such file"),
        (["--strategy=mirrored", "--batch_size=9"], CommandError, "does not divide over 2"),
        (["extra"], CommandError, "unexpected argument 'extra'"),
        (["--max_frames=3"], CorpusError, "leaves nothing"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_written(
    call_script, corpus, tmp_path, more, error, message
):
    folder = tmp_path / "run"
    with pytest.raises(error, match=message):
        call_script(train_speech, *arguments(corpus, folder, *more))
    assert not folder.exists()


@pytest.mark.parametrize(
    ("more", "code", "message"),
    [
        (["--layers=0"], 2, "flag --layers=0"),
        pytest.param(["--model=bogus"], 2, "bogus", marks=pytest.mark.exhaustive),
        pytest.param(["--nonsense"], 2, "nonsense", marks=pytest.mark.exhaustive),
        (["--data_dir=nowhere"], 1, "no such file"),
    ],
)
def test_errors_are_one_line_on_stderr(run_script, corpus, tmp_path, more, code, message):
    done = run_script("train_speech.py", *arguments(corpus, tmp_path / "run", *more))
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode == code
    assert len(lines) == 1 and message in lines[0]
    assert "Traceback" not in done.stderr


def test_help_lists_the_flags(run_script):
    done = run_script("train_speech.py", "--help")
    assert done.returncode == 0
    assert "--learning_rate" in done.stdout and "prepare_speech.py" in done.stdout


@pytest.mark.slow
def test_sigkill_at_random_moments(run_script, corpus, tmp_path):
    """The same command, killed again and again, ends like the command that was left alone."""
    more = ["--epochs=6", "--strategy=none"]
    done = run_script("train_speech.py", *arguments(corpus, tmp_path / "a", *more))
    assert done.returncode == 0, done.stderr
    script = str(train_speech.__file__)
    command = [sys.executable, script, *arguments(corpus, tmp_path / "b", *more)]
    rng = np.random.default_rng(5)

    def newest():
        names = [folder.name for folder in tmp_path.glob("b/checkpoints/epoch-????")]
        return max(names, default="")

    kills = 0
    while True:
        before = newest()
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        # An epoch and its checkpoint take about as long as the longest wait after the first one.
        while process.poll() is None and newest() == before:
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.15))
        process.send_signal(signal.SIGKILL)
        output, _ = process.communicate()
        if process.returncode == 0:
            break
        assert process.returncode == -signal.SIGKILL, output.decode()
        kills += 1
    assert kills > 1, "the run ended before it could be killed twice"
    assert read_results(tmp_path / "b")["finished"]
    rows, resumed = read_history(tmp_path / "a"), read_history(tmp_path / "b")
    assert [row["epoch"] for row in rows] == [row["epoch"] for row in resumed]
    for row, other in zip(rows, resumed, strict=True):
        assert other == pytest.approx(row, rel=1e-4)


def test_augmentation_is_for_training_alone(parse_flags, call_script, corpus, tmp_path):
    loaded = train_speech.load_corpus(corpus)
    seen = {}
    for flag in ("--augment", "--noaugment"):
        parse_flags(train_speech, *arguments(corpus, tmp_path, flag))
        for split in ("train", "dev"):
            batches = train_speech.batches(loaded, split)
            seen[flag, split] = [inputs["features"].numpy() for inputs, _, _ in batches]
        assert train_speech.describe_run(loaded)["augment"] == (flag == "--augment")
    pairs = list(zip(seen["--augment", "train"], seen["--noaugment", "train"], strict=True))
    assert all(hidden.shape == whole.shape for hidden, whole in pairs)
    assert any(not np.array_equal(hidden, whole) for hidden, whole in pairs)
    for hidden, whole in zip(seen["--augment", "dev"], seen["--noaugment", "dev"], strict=True):
        np.testing.assert_array_equal(hidden, whole)
    call_script(train_speech, *arguments(corpus, tmp_path / "run", "--augment", "--epochs=1"))


def test_a_shard_damaged_after_preparation_is_named(call_script, corpus, tmp_path):
    copy = tmp_path / "corpus"
    shutil.copytree(corpus, copy)
    shard = sorted(copy.glob("train-*.tfrecord"))[0]
    contents = bytearray(shard.read_bytes())
    contents[len(contents) // 2] ^= 0xFF
    shard.write_bytes(contents)
    with pytest.raises(CorpusError, match=rf"{shard.name}\..*--verify={copy}") as caught:
        call_script(train_speech, *arguments(copy, tmp_path / "run", "--epochs=1"))
    assert "dev-" not in str(caught.value)
