"""`train_ptb.py` from its command line: results, resuming, and errors before the first step."""

import csv
import dataclasses
import json
import re

import keras
import numpy as np
import pytest

import train_ptb
from keras_bnrnn.data.text import SPLITS
from keras_bnrnn.fit.distribution import Worker
from recipes.language_model import RECIPES, ResetStates
from recipes.language_task import LanguageTask

pytest.importorskip("tensorflow_text", reason="the `text` extra is not installed")


@pytest.fixture
def train(call_script, monkeypatch, tiny_recipe, tiny_text):
    """Runs the script with the tiny recipe."""
    monkeypatch.setitem(RECIPES, "small", tiny_recipe)
    return lambda *flags: call_script(train_ptb, f"--data_dir={tiny_text}", *flags)


def history(folder):
    with (folder / "history.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_run_writes_history_and_results(trained_language, tiny_text):
    folder = trained_language / "run"
    rows = history(folder)
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert float(rows[-1]["train_perplexity"]) < float(rows[0]["train_perplexity"]) < 14
    results = json.loads((folder / "results.json").read_text())
    assert (results["model"], results["task"]) == ("batch_norm", "language")
    assert results["finished"]
    assert results["config"]["seed"] == 4
    assert results["config"]["text"]["vocabulary"] == 14
    best = results["best"]
    assert best["valid_perplexity"] == min(float(row["valid_perplexity"]) for row in rows)
    assert 1 < best["test_perplexity"] < 14
    assert {"epoch", "train_perplexity"} <= set(best)
    printed = (trained_language / "output.txt").read_text()
    assert "14 words" in printed
    assert "python training/compare.py" in printed and "python training/export.py" in printed

    # The best model's file is whole: it gives the figure again, by itself.
    saved = keras.models.load_model(folder / "best.keras")
    test = LanguageTask(results["config"], tiny_text).batches("test")
    scores = saved.evaluate(test, callbacks=[ResetStates()], verbose=0, return_dict=True)
    assert scores["perplexity"] == pytest.approx(best["test_perplexity"], rel=1e-5)


@pytest.mark.slow
def test_flags_change_the_recipe_and_the_layers(train, tmp_path, capsys):
    folder = tmp_path / "run"
    flags = ["--dropout=0.5", "--learning_rate=0.5", "--constant_epochs=1", "--decay=4"]
    flags += ["--normalization=sequence", "--normalize_recurrent", "--gamma=0.25"]
    train(f"--output_dir={folder}", "--model=batch_norm", *flags, "--steps_per_epoch=2")
    output = capsys.readouterr().out
    assert "see each window's later words" in output
    assert "cannot be exported" in output and "export.py" not in output
    assert [float(row["learning_rate"]) for row in history(folder)] == [0.5, 0.125]
    config = json.loads((folder / "config.json").read_text())["config"]
    assert config["recipe"]["dropout"] == 0.5
    assert (config["normalization"], config["gamma"]) == ("sequence", 0.25)
    saved = keras.models.load_model(folder / "best.keras")
    assert [layer.rate for layer in saved.layers if hasattr(layer, "rate")] == [0.5] * 3
    layer = saved.get_layer("lstm_1")
    assert layer.normalization == "sequence" and layer.normalize_recurrent
    names = [weight.name for weight in layer.weights]
    assert "recurrent_gamma" in names
    assert layer.get_config()["gamma_initializer"]["config"]["value"] == 0.25


def test_words_that_are_cut_are_told(tiny_text, trained_language):
    config = json.loads((trained_language / "run" / "config.json").read_text())["config"]
    assert "max_words" not in config
    assert not any("different words" in line for line in LanguageTask(config, tiny_text).plan())
    task = LanguageTask({**config, "max_words": 9}, tiny_text)
    assert task.config["max_words"] == 9 and len(task.corpus.vocabulary) == 9
    [line] = [line for line in task.plan() if "different words" in line]
    share = task.corpus.unknown_share("test")
    assert 0.2 < share < 0.6 and f"{share:.1%} of test" in line
    assert line.startswith("The training text has 13 different words (--max_words); <unk> are")


def test_the_text_is_named_file_by_file_and_cut_otherwise(tiny_text, trained_language, parse_flags):
    split_files = [f"--{split}_file={tiny_text}/ptb.{split}.txt" for split in SPLITS]
    parse_flags(train_ptb, *split_files, "--streams=3", "--timesteps=7")
    flags = train_ptb.FLAGS
    task = LanguageTask(LanguageTask.settings_of(flags), LanguageTask.data_of(flags))
    assert task.batches("train").element_spec[0].shape == (3, 7)
    config = json.loads((trained_language / "run" / "config.json").read_text())["config"]
    assert task.config["text"] == config["text"]
    assert task.config["recipe"] == {
        **dataclasses.asdict(RECIPES["small"]),
        "batch_size": 3,
        "timesteps": 7,
    }


def test_batches_of_a_part_of_the_text_and_of_workers(trained_language, tiny_text):
    config = json.loads((trained_language / "run" / "config.json").read_text())["config"]
    task = LanguageTask({**config, "steps_per_epoch": 3}, tiny_text)
    assert len(task.batches("train")) == 3
    for name in ("valid", "test"):
        counted = sum(weights.sum() for _, _, weights in task.batches(name).as_numpy_iterator())
        assert counted == len(getattr(task.corpus, name))
    parts = [task.batches("train", Worker(index, 2)).as_numpy_iterator() for index in range(2)]
    for whole, *halves in zip(task.batches("train").as_numpy_iterator(), *parts, strict=True):
        for array, *rows in zip(whole, *halves, strict=True):
            np.testing.assert_array_equal(array, np.concatenate(rows))
    assert task.describe_batch(Worker(), 0, 2) == "tokens 10 to 14 of the 4 streams"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--steps_per_epoch=100000"], "--steps_per_epoch=100000 is more than the text's"),
        (["--strategy=mirrored", "--size=three"], "do not divide over 2 devices"),
        (
            ["--strategy=mirrored", "--model=batch_norm", "--normalize_recurrent"],
            "--nosynchronized",
        ),
        (["--data_dir=/nowhere"], "/nowhere, which is not there"),
        (["--size=long"], "train text of .* Too little text"),
        (["--output_dir="], "--output_dir is missing"),
        (["--seed=9"], "another configuration .*seed=4 there and 9 here"),
        (["--size=huge"], "should be one of"),
        (["--epochs=0"], "--epochs=0"),
        (["--momentum=2"], "--momentum=2"),
        (["--momentum=nan"], "--momentum=nan: not a finite number"),
        (["--learning_rate=inf"], "--learning_rate=inf: not a finite number"),
        (["--data_dir=s3://bucket/text"], "--data_dir=s3://bucket/text: this is a URL"),
        (["--max_words=2"], "--max_words=2"),
        (["--max_words=9"], "another configuration .*max_words=None there and 9 here"),
        (["--dropout=1"], "--dropout=1.0 must be below 1"),
        (["--decay=0.5"], "--decay=0.5 must be at least 1"),
        (["--streams=0"], "--streams=0"),
        (["--timesteps=4"], "another configuration .*'timesteps': 5.* there and .*'timesteps': 4"),
        (["--streams=400"], "train text of .*fewer --streams or --timesteps"),
        (["--train_file=a.txt"], "--valid_file is missing: a text needs all three files"),
        (
            ["--train_file=a", "--valid_file=b", "--test_file=c"],
            "--data_dir and --train_file both name a text",
        ),
    ],
)
def test_errors_are_one_line_before_the_first_step(
    arguments, message, trained_language, tiny_text, tiny_recipe, monkeypatch, run_command
):
    monkeypatch.setitem(RECIPES, "small", tiny_recipe)
    monkeypatch.setitem(RECIPES, "three", dataclasses.replace(tiny_recipe, batch_size=3))
    monkeypatch.setitem(RECIPES, "long", dataclasses.replace(tiny_recipe, timesteps=10_000))
    monkeypatch.setattr(keras.Model, "fit", lambda *_, **__: pytest.fail("training began"))
    flags = [f"--data_dir={tiny_text}", f"--output_dir={trained_language}/run"]
    code, _, errors = run_command("train_ptb.py", *flags, *arguments)
    assert code in (1, 2)
    lines = [line for line in errors.splitlines() if line.startswith("error:")]
    assert len(lines) == 1
    assert re.search(message, lines[0]), lines[0]
