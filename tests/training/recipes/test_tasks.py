"""The tasks: which one a folder is of, and that runs of before go on."""

import json
from pathlib import Path
from types import SimpleNamespace

import keras
import numpy as np
import pytest

import keras_bnrnn
from command_line import CommandError
from keras_bnrnn.data.speech.corpus import load_corpus
from keras_bnrnn.keras_internals import flattened_layers
from paper.experiments import EXPERIMENTS
from recipes import measures
from recipes.tasks import TASKS, task_of
from recipes.training import unchanged

RESULTS = Path(__file__).resolve().parents[3] / "results"


def committed_runs():
    """A run of each configuration in results/."""
    for name, experiment in EXPERIMENTS.items():
        for key in experiment.configurations:
            path = RESULTS / name / f"{key}-0" / "results.json"
            if path.is_file():
                yield pytest.param(experiment, path, id=f"{name}/{key}")


@pytest.mark.parametrize(("experiment", "path"), committed_runs())
def test_a_run_of_before_has_the_configuration_that_its_command_has_now(
    experiment, path, parse_flags
):
    """Key by key: else the command would refuse the folder instead of going on."""
    results = json.loads(path.read_text())
    task = task_of(results)
    assert task is experiment.task
    script = __import__(task.script.removesuffix(".py"))
    parse_flags(script, *results["arguments"])
    settings = json.loads(json.dumps(task.settings_of(script.FLAGS)))
    config = {key: value for key, value in results["config"].items() if key != task.data}
    if not config.get("normalize_cell_state"):  # For a while it was recorded when it was false too.
        config.pop("normalize_cell_state", None)
    assert settings == config
    assert {one.validation for one in task.measures} <= results["best"].keys()


@pytest.mark.slow
def test_the_whole_configuration(trained_speech, trained_language):
    for folder, script, name in (
        (trained_speech, "train_speech", "speech"),
        (trained_language, "train_ptb", "language"),
    ):
        recorded = json.loads((folder / "run" / "config.json").read_text())
        task = TASKS[name]
        assert recorded["task"] == name and task.script == f"{script}.py"
        assert set(recorded["config"]) == {*task.setting_names, task.data}
        assert len(recorded["config"][task.data]["sha256"]) == 16


@pytest.mark.parametrize("name", TASKS)
def test_renorm_is_every_layers_and_recorded_only_where_it_is_on(
    name, parse_flags, tiny_corpus, tiny_characters, tiny_text
):
    data_dir = {"speech": tiny_corpus, "ctc": tiny_characters, "language": tiny_text}.get(name)
    kind = TASKS[name]
    script = __import__(kind.script.removesuffix(".py"))
    for asked in (False, True):
        parse_flags(script, f"--renorm={asked}")
        task = kind(kind.settings_of(script.FLAGS), data_dir)
        assert task.config.get("renorm") is (asked or None)
        layers = flattened_layers(task.build_model(1))
        found = {one.renorm for one in layers if isinstance(one, keras_bnrnn.BatchNormLSTM)}
        assert found == {asked}


def test_the_task_is_recorded_and_that_of_old_folders_is_recognised():
    for name, task in TASKS.items():
        assert task_of({"task": name, "config": {}}) is task
    for key, name in (("corpus", "speech"), ("text", "language"), ("permuted", "pixels")):
        assert task_of({"config": {key: {}}}).name == name
    for results in ({"config": {}}, {"task": "cooking", "config": {"corpus": {}}}):
        with pytest.raises(CommandError, match="no known task"):
            task_of(results)


def test_columns_of_history(tiny_characters):
    assert measures.columns(measures.SPEECH) == {
        "train_fce": "fce",
        "train_fer": "fer",
        "dev_fce": "val_fce",
        "dev_fer": "val_fer",
    }
    assert measures.columns(measures.PIXELS)["train_loss"] == "cross_entropy"
    corpus = SimpleNamespace(corpus=load_corpus(tiny_characters))
    for task in TASKS.values():
        names = [metric.name for metric in task.metrics(corpus)]
        assert names == [measure.key for measure in task.measures]


def test_a_model_is_unchanged_afterwards():
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile(keras.optimizers.Adam(0.1), "mse")
    data = np.ones((4, 2)), np.ones((4, 1))
    model.fit(*data, verbose=0)
    variables = [*model.variables, *model.optimizer.variables]
    before = [np.array(one) for one in variables]
    with pytest.raises(KeyError), unchanged(model):
        model.fit(*data, verbose=0)
        raise KeyError
    for variable, value in zip(variables, before, strict=True):
        np.testing.assert_array_equal(variable, value)
