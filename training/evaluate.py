"""Evaluates a trained model on its validation split: by statistics, and by speaker.

    python training/evaluate.py --run_dir=runs/bn --data_dir=corpus
    python training/evaluate.py --run_dir=runs/ptb_batch_norm --data_dir=DIR

A batch-normalised model is scored with the population statistics that training left (the moving
averages), with exact ones (`keras_bnrnn.recalibrate` over the training split) and with those of
each validation batch, which no served model has. Speech is also scored for the speakers that
training heard and for those that it did not. The figures are printed and written to evaluation.json
in the run's folder, which is otherwise only read: best.keras keeps its moving averages.
"""

import json
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from absl import flags
from tqdm import tqdm

import command_line
import train_pixels
import train_ptb
from command_line import CommandError
from keras_bnrnn import recalibrate
from keras_bnrnn.data.errors import CorpusError
from keras_bnrnn.data.speech.corpus import load_corpus, read_utterances
from keras_bnrnn.data.speech.pipelines import speech_dataset
from keras_bnrnn.files import write_aside
from keras_bnrnn.fit.run_folder import BEST_MODEL_FILE, read_results
from keras_bnrnn.metrics import FrameCrossEntropy, FrameErrorRate, Perplexity
from recipes import language_model
from recipes.speech_model import with_lengths

EVALUATION_FILE = "evaluation.json"

FLAGS = flags.FlagValues()
flags.DEFINE_string("run_dir", None, "Output folder of a training script.", flag_values=FLAGS)
flags.DEFINE_string("data_dir", None, "The --data_dir that it was trained with.", flag_values=FLAGS)


def main(argv):
    if len(argv) > 1:
        raise CommandError(f"unexpected argument {argv[1]!r}; every option is a --flag")
    run_dir = Path(command_line.require_flag(FLAGS, "run_dir"))
    results = read_results(run_dir)
    path = run_dir / BEST_MODEL_FILE
    if not path.is_file():
        raise CommandError(f"--run_dir={run_dir}: no {BEST_MODEL_FILE} in it")
    task = task_of(results["config"])(results["config"], FLAGS.data_dir)
    model = keras.models.load_model(path, train_pixels.FORMER_CLASSES, compile=False)
    if len(model.inputs) == 1 and isinstance(task.train.element_spec[0], dict):
        model = with_lengths(model)
    found = {"moving_averages": score(model, task, "moving averages")}
    if hasattr(task, "by_speaker"):
        found["speakers"] = task.by_speaker(model)
    if results["model"] == "batch_norm":
        without_dropout(model)
        found["batch_statistics"] = score(model, task, "batch statistics", training=True)
        print("recalibrating over the training split", flush=True)
        recalibrate(model, task.train, verbose=command_line.fit_verbosity())
        found["recalibrated"] = score(model, task, "recalibrated")
    write_aside(run_dir / EVALUATION_FILE, (json.dumps(found, indent=2) + "\n").encode())
    for name, scores in found.items():
        print(f"{name}: " + ", ".join(f"{key} {value:.4f}" for key, value in scores.items()))
    print(f"Written: {run_dir / EVALUATION_FILE}")


class SpeechTask:
    """The batches and metrics of train_speech.py."""

    def __init__(self, config, data_dir):
        self.corpus = load_corpus(command_line.require_flag(FLAGS, "data_dir"))
        checksum = config["corpus"]["sha256"]
        if not self.corpus.checksum.startswith(checksum):
            raise CommandError(
                f"--data_dir={data_dir} has {self.corpus.num_states} states and the checksum "
                f"{self.corpus.checksum[: len(checksum)]}, the run's corpus had "
                f"{config['corpus']['states']} and {checksum}: it was trained on another corpus"
            )
        self.config = config
        self.train, self.valid = (self._batches(split) for split in ("train", "dev"))

    def _batches(self, split):
        dataset = speech_dataset(
            self.corpus, split, self.config["batch_size"], max_frames=self.config["max_frames"]
        )
        return dataset.map(lambda x, y, mask: (x, y, tf.cast(mask, tf.float32)))

    def metrics(self):
        return [FrameCrossEntropy(from_logits=True), FrameErrorRate()]

    def by_speaker(self, model):
        """Frame error rates of speakers that training heard, of others, and of each."""
        heard = {utterance["speaker"] for utterance in read_utterances(self.corpus, "train")}
        speakers = {u["id"]: u["speaker"] for u in read_utterances(self.corpus, "dev")}
        rates = {}
        dataset = speech_dataset(self.corpus, "dev", self.config["batch_size"], with_ids=True)
        for x, y, mask, names in tqdm(dataset, desc="by speaker", unit="batch"):
            logits = model.predict_on_batch(x)
            for row, name in enumerate(names.numpy()):
                speaker = speakers[name.decode()]
                groups = ("seen" if speaker in heard else "unseen", f"speaker {speaker}")
                for group in groups:
                    rate = rates.setdefault(group, FrameErrorRate())
                    rate.update_state(y[row], logits[row], sample_weight=mask[row])
        return {group: float(rates[group].result()) for group in sorted(rates)}


class LanguageTask:
    """The batches and metrics of train_ptb.py."""

    def __init__(self, config, data_dir):
        corpus = train_ptb.read_corpus(data_dir)
        text = train_ptb.describe_text(corpus)
        if text != config["text"]:
            raise CommandError(
                f"--data_dir={data_dir} has {text['vocabulary']} words and the checksum "
                f"{text['sha256']}, the run's text had {config['text']['vocabulary']} and "
                f"{config['text']['sha256']}: it was trained on another text"
            )
        recipe = language_model.Recipe(**config["recipe"])
        windows = train_ptb.make_windows(corpus, recipe, config["steps_per_epoch"])
        self.train, self.valid = windows["train"], windows["valid"]

    def metrics(self):
        return [Perplexity(from_logits=True)]


class PixelTask:
    """The batches and metrics of train_pixels.py."""

    def __init__(self, config, data_dir):
        images = train_pixels.read_images(config["permuted"])
        self.train, self.valid = (
            train_pixels.batches(images[split], config["batch_size"])
            for split in ("train", "valid")
        )

    def metrics(self):
        loss = keras.metrics.SparseCategoricalCrossentropy(from_logits=True, name="loss")
        return [loss, train_pixels.error_rate()]


def task_of(config):
    """The task that a run's configuration is of."""
    for key, task in (("corpus", SpeechTask), ("text", LanguageTask), ("permuted", PixelTask)):
        if key in config:
            return task
    raise CommandError(f"--run_dir={FLAGS.run_dir} is of no known training script")


def score(model, task, title, training=False):
    """The metrics over the validation split; every variable is as before afterwards."""
    before = [(variable, np.asarray(variable)) for variable in model.variables]
    language_model.reset_states(model)
    run = tf.function(lambda x: model(x, training=training), reduce_retracing=True)
    metrics = task.metrics()
    for x, y, weights in tqdm(task.valid, desc=title, unit="batch"):
        logits = run(x)
        for metric in metrics:
            metric.update_state(y, logits, sample_weight=weights)
    language_model.reset_states(model)
    for variable, value in before:
        variable.assign(value)
    return {metric.name: float(metric.result()) for metric in metrics}


def without_dropout(model):
    """Switches dropout off, so that training differs from inference by the statistics alone."""
    for layer in model.layers:
        if isinstance(layer, keras.layers.Dropout):
            layer.rate = 0.0


if __name__ == "__main__":
    command_line.run(main, FLAGS, __doc__, expected_errors=(CorpusError,))
