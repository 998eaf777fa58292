"""`train_ptb.py` from its command line: results, resuming, and errors before the first step."""

import csv
import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import keras
import numpy as np
import pytest

import command_line
import export
import train_ptb
from recipes import language_model

pytest.importorskip("tensorflow_text", reason="the `text` extra is not installed")

SCRIPT = Path(train_ptb.__file__)


@pytest.fixture(scope="module")
def text_dir(tmp_path_factory):
    """Sentences of a dozen words, in which each word says much about the next."""
    folder = tmp_path_factory.mktemp("text")
    generator = np.random.default_rng(3)
    for split, sentences in (("train", 130), ("valid", 15), ("test", 17)):
        lines = []
        for _ in range(sentences):
            begin, length = generator.integers(0, 12), generator.integers(4, 9)
            lines.append(" ".join(f"w{(begin + k) % 12}" for k in range(length)))
        (folder / f"ptb.{split}.txt").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture
def tiny_recipe(monkeypatch):
    recipe = dataclasses.replace(
        language_model.RECIPES["small"], units=8, timesteps=5, batch_size=4, epochs=3, dropout=0.2
    )
    monkeypatch.setitem(language_model.RECIPES, "small", recipe)
    return recipe


def train(*arguments):
    train_ptb.FLAGS.unparse_flags()
    for name in train_ptb.FLAGS:
        train_ptb.FLAGS[name].unparse()
    train_ptb.FLAGS(["train_ptb.py", *map(str, arguments)])
    return train_ptb.main(["train_ptb.py"])


def history(folder):
    with (folder / "history.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("model", command_line.MODELS)
def test_a_run_writes_history_and_results(model, text_dir, tmp_path, tiny_recipe, capsys):
    folder = tmp_path / "run"
    flags = [f"--data_dir={text_dir}", f"--output_dir={folder}", f"--model={model}", "--seed=4"]
    train(*flags)
    rows = history(folder)
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    assert float(rows[-1]["train_perplexity"]) < float(rows[0]["train_perplexity"]) < 14
    results = json.loads((folder / "results.json").read_text())
    assert results["model"] == model
    assert results["finished"]
    assert results["config"]["seed"] == 4
    assert results["config"]["text"]["vocabulary"] == 14
    best = results["best"]
    assert best["valid_perplexity"] == min(float(row["valid_perplexity"]) for row in rows)
    assert 1 < best["test_perplexity"] < 14
    assert {"epoch", "train_perplexity"} <= set(best)
    printed = capsys.readouterr().out
    assert "14 words" in printed
    assert f"compare.py {folder}" in printed

    # The best model's file is whole: it gives the figure again, by itself.
    saved = keras.models.load_model(folder / "best.keras")
    corpus = train_ptb.read_corpus(text_dir)
    test = train_ptb.make_windows(corpus, tiny_recipe, None)["test"]
    scores = saved.evaluate(
        test, callbacks=[language_model.ResetStates()], verbose=0, return_dict=True
    )
    assert scores["perplexity"] == pytest.approx(best["test_perplexity"], rel=1e-5)


def test_flags_change_the_recipe_and_the_layers(
    text_dir, tmp_path, tiny_recipe, capsys, call_script
):
    folder = tmp_path / "run"
    flags = ["--dropout=0.5", "--learning_rate=0.5", "--constant_epochs=1", "--decay=4"]
    flags += ["--normalization=sequence", "--normalize_recurrent", "--gamma=0.25", "--epochs=2"]
    train(f"--data_dir={text_dir}", f"--output_dir={folder}", "--model=batch_norm", *flags)
    output = capsys.readouterr().out
    assert "see each window's later words" in output
    assert "cannot be exported" in output and "export.py" not in output
    refused = r"no part of a plain model \(.*lstm_1.*cannot be exported"
    with pytest.raises(command_line.CommandError, match=refused):
        call_script(export, f"--run_dir={folder}", f"--output_dir={tmp_path}/exported")
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


def test_an_interrupted_run_goes_on_as_if_undisturbed(text_dir, tmp_path, tiny_recipe, monkeypatch):
    flags = [f"--data_dir={text_dir}", "--model=batch_norm", "--seed=5", "--epochs=2"]
    train(*flags, f"--output_dir={tmp_path / 'whole'}")

    class Interrupting(language_model.ResetStates):
        def on_epoch_begin(self, epoch, logs=None):
            super().on_epoch_begin(epoch, logs)
            self.epoch = epoch

        def on_train_batch_end(self, batch, logs=None):
            if (self.epoch, batch) == (1, 7):
                raise KeyboardInterrupt

    cut = [*flags, f"--output_dir={tmp_path / 'cut'}"]
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(language_model, "ResetStates", Interrupting)
        train(*cut)
    assert len(history(tmp_path / "cut")) == 1
    train(*cut)
    for got, want in zip(history(tmp_path / "cut"), history(tmp_path / "whole"), strict=True):
        for key, value in want.items():
            assert float(got[key]) == pytest.approx(float(value), rel=1e-4)


def test_a_finished_run_goes_on_when_asked_for_more(text_dir, tmp_path, tiny_recipe, capsys):
    folder = tmp_path / "run"
    flags = [f"--data_dir={text_dir}", f"--output_dir={folder}", "--steps_per_epoch=4"]
    train(*flags, "--epochs=1")
    first = history(folder)
    train(*flags, "--epochs=1")
    assert history(folder) == first
    assert "1 epoch is done already; epochs=1 asks for no more." in capsys.readouterr().out
    train(*flags, "--epochs=2")
    assert history(folder)[:1] == first
    assert len(history(folder)) == 2


@pytest.mark.slow
def test_two_devices(text_dir, tmp_path, tiny_recipe):
    folder = tmp_path / "run"
    flags = [f"--data_dir={text_dir}", f"--output_dir={folder}", "--strategy=mirrored"]
    train(*flags, "--steps_per_epoch=10", "--epochs=1")
    train(*flags, "--steps_per_epoch=10", "--epochs=2")
    results = json.loads((folder / "results.json").read_text())
    assert results["final"]["epoch"] == 2
    assert 1 < results["best"]["test_perplexity"] < 14


def test_an_epoch_can_be_cut_short(text_dir, tiny_recipe):
    corpus = train_ptb.read_corpus(text_dir)
    windows = train_ptb.make_windows(corpus, tiny_recipe, 3)
    assert len(windows["train"]) == 3
    for name in ("valid", "test"):
        counted = sum(weights.sum() for _, _, weights in windows[name].as_numpy_iterator())
        assert counted == len(getattr(corpus, name))


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
        (["--seed=9"], "another configuration .*seed=0 there and 9 here"),
        (["stray"], "unexpected argument 'stray'"),
        (["--size=huge"], "should be one of"),
        (["--epochs=0"], "--epochs=0"),
        (["--momentum=2"], "--momentum=2"),
        (["--dropout=1"], "--dropout=1.0 must be below 1"),
        (["--decay=0.5"], "--decay=0.5 must be at least 1"),
    ],
)
def test_errors_are_one_line_before_the_first_step(
    arguments, message, text_dir, tmp_path, tiny_recipe, monkeypatch, capsys
):
    sizes = train_ptb.FLAGS["size"].parser
    monkeypatch.setattr(sizes, "enum_values", [*sizes.enum_values, "three", "long"])
    recipes = language_model.RECIPES
    monkeypatch.setitem(recipes, "three", dataclasses.replace(tiny_recipe, batch_size=3))
    monkeypatch.setitem(recipes, "long", dataclasses.replace(tiny_recipe, timesteps=10_000))
    monkeypatch.setattr(keras.Model, "fit", lambda *_, **__: pytest.fail("training began"))
    for name in train_ptb.FLAGS:
        train_ptb.FLAGS[name].unparse()
    folder = tmp_path / "run"
    flags = ["--model=baseline", f"--data_dir={text_dir}", f"--output_dir={folder}"]
    if "--seed=9" in arguments:
        train_ptb.FLAGS(["train_ptb.py", *flags])
        corpus = train_ptb.read_corpus(text_dir)
        train_ptb.RunFolder(
            folder,
            train_ptb.describe_run(corpus, tiny_recipe),
            train_ptb.LANGUAGE_COLUMNS,
            "valid_perplexity",
        )
    monkeypatch.setattr(sys, "argv", ["train_ptb.py", *flags, *arguments])
    with pytest.raises(SystemExit) as stop:
        command_line.run(train_ptb.main, train_ptb.FLAGS, train_ptb.__doc__)
    assert stop.value.code in (1, 2)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(lines) == 1
    assert re.search(message, lines[0]), lines[0]


def test_help_names_every_flag_and_what_comes_next(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["train_ptb.py", "--help"])
    with pytest.raises(SystemExit) as stop:
        command_line.run(train_ptb.main, train_ptb.FLAGS, train_ptb.__doc__)
    assert not stop.value.code
    text = capsys.readouterr().out
    for name in train_ptb.FLAGS:
        assert f"--{name}" in text or f"--[no]{name}" in text
    assert "compare.py" in text


@pytest.mark.slow
def test_a_killed_run_ends_like_an_undisturbed_one(text_dir, tmp_path):
    """SIGKILL at a random moment of training, with the recipe as it is."""
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}

    def command(folder):
        return [
            sys.executable,
            str(SCRIPT),
            f"--output_dir={folder}",
            "--model=batch_norm",
            "--epochs=3",
            "--steps_per_epoch=20",
        ]

    subprocess.run(command(tmp_path / "whole"), check=True, env=environment)
    cut = tmp_path / "cut"
    process = subprocess.Popen(command(cut), env=environment)
    deadline = time.monotonic() + 120
    while not (cut / "history.csv").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.3)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert len(history(cut)) < 3
    subprocess.run(command(cut), check=True, env=environment)
    for got, want in zip(history(cut), history(tmp_path / "whole"), strict=True):
        for key, value in want.items():
            assert float(got[key]) == pytest.approx(float(value), rel=1e-3)
