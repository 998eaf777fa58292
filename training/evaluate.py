"""Evaluates a trained model on its validation split: by statistics, and by speaker.

    python training/evaluate.py --run_dir=runs/bn --data_dir=corpus
    python training/evaluate.py --run_dir=runs/ptb_batch_norm --data_dir=DIR

A batch-normalised model is scored with the population statistics that training left (the moving
averages), with exact ones (`keras_bnrnn.recalibrate` over the training split) and with those of
each validation batch, which no served model has. Speech is also scored for the speakers that
training heard and for those that it did not. The figures are printed and written to evaluation.json
in the run's folder, which is otherwise only read: best.keras keeps its moving averages.

A corpus that prepare_speech.py --like made of other recordings is scored with the moving averages,
in all and by speaker, into evaluation-NAME.json.
"""

import command_line  # isort: skip  First, for Ctrl-C while the others are imported.
import json
from pathlib import Path

import tensorflow as tf
from absl import flags
from tqdm import tqdm

from command_line import CommandError
from keras_bnrnn import recalibrate
from keras_bnrnn.data.errors import CorpusError
from keras_bnrnn.files import write_aside
from keras_bnrnn.fit.errors import FitError
from keras_bnrnn.fit.tables import best_model
from keras_bnrnn.population import normalizing_by_batch
from recipes.language_model import reset_states
from recipes.language_task import define_text_files
from recipes.speech_task import SpeechTask
from recipes.tasks import EVALUATION_FILE, read_run
from recipes.training import check_config, unchanged

FLAGS = flags.FlagValues()
command_line.define_path("run_dir", None, "Output folder of a training script.", FLAGS)
command_line.define_path(
    "data_dir",
    None,
    "The --data_dir that it was trained with, or a corpus made by prepare_speech.py --like of it.",
    FLAGS,
    remote=True,
)
define_text_files(FLAGS)


def main(argv):
    run_dir = Path(command_line.require_flag(FLAGS, "run_dir"))
    kind, results = read_run(run_dir, {"model": str})
    path = best_model(run_dir, results)
    if issubclass(kind, SpeechTask):
        command_line.require_flag(FLAGS, "data_dir")
    described = {kind.data: {"sha256": str}} if kind.data else {}
    form = dict.fromkeys(kind.setting_names, object) | kind.setting_forms | described
    check_config(run_dir, results["config"], form)
    task = kind(results["config"], kind.data_of(FLAGS))
    check_data(task, results)
    other = task.valid == "test"
    model = task.load_model(path)
    infer = function_of(model, task)
    found = {
        "moving_averages": score(model, infer, task, "moving averages"),
        **task.more_scores(infer),
    }
    if results["model"] == "batch_norm" and not other:
        with normalizing_by_batch(model):
            on_batches = function_of(model, task)
            found["batch_statistics"] = score(model, on_batches, task, "batch statistics")
        print("recalibrating over the training split", flush=True)
        recalibrate(model, task.batches("train"), verbose=command_line.fit_verbosity())
        found["recalibrated"] = score(model, infer, task, "recalibrated")
    file = f"evaluation-{Path(FLAGS.data_dir).name}.json" if other else EVALUATION_FILE
    write_aside(run_dir / file, (json.dumps(found, indent=2) + "\n").encode())
    for name, scores in found.items():
        print(f"{name}: " + ", ".join(f"{key} {value:.4f}" for key, value in scores.items()))
    print(f"Written: {run_dir / file}")


def check_data(task, results):
    """Raises a `CommandError` where the data are not those that a run was trained on."""
    if task.data is None:
        return
    here, there = task.describe_data(), results["config"][task.data]
    if here["sha256"] != there["sha256"]:
        described = [
            ", ".join(f"{key} {value}" for key, value in one.items()) for one in (here, there)
        ]
        raise CommandError(
            f"--data_dir: there are {described[0]}, the run's {task.data} had {described[1]}: it "
            f"was trained on another {task.data}"
        )


def function_of(model, task):
    """The model as a function that is traced once, whatever the batches' shapes."""
    inputs = task.batches(task.valid).element_spec[0]
    return tf.function(lambda x: model(x, training=False), input_signature=[inputs])


def score(model, call, task, title):
    """The task's measures over the validation split; every variable is as before afterwards."""
    metrics = {one.name: metric for one, metric in zip(task.measures, task.metrics(), strict=True)}
    with unchanged(model):
        reset_states(model)
        for x, y, weights in tqdm(task.batches(task.valid), desc=title, unit="batch"):
            logits = call(x)
            for metric in metrics.values():
                metric.update_state(y, logits, sample_weight=weights)
    return {name: float(metric.result()) for name, metric in metrics.items()}


if __name__ == "__main__":
    command_line.run(main, FLAGS, __doc__, expected_errors=(CorpusError, FitError))
