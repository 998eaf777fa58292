"""The task of train_speech.py: which state of which triphone each frame of speech is in."""

import contextlib
import functools
import json
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from absl import flags
from tqdm import tqdm

from command_line import CommandError, define_path, read_json
from keras_bnrnn.data.errors import CorpusError
from keras_bnrnn.data.speech.augmentation import SpecAugment
from keras_bnrnn.data.speech.corpus import CORPUS_FILE, load_corpus, read_utterances
from keras_bnrnn.data.speech.features import FRAME_SECONDS
from keras_bnrnn.data.speech.pipelines import MAX_FRAMES, alignments, kept_lengths, speech_dataset
from keras_bnrnn.fit.distribution import Worker
from keras_bnrnn.metrics import FrameErrorRate
from keras_bnrnn.serving.speech import speech_endpoints
from recipes import measures
from recipes.phone_model import DESCRIPTION_FILE, PHONE_COUNTS, phone_counts
from recipes.speech_model import (
    build_speech_model,
    compile_speech_model,
    speech_metrics,
    with_lengths,
)
from recipes.training import Task, check_config, training_section

PHONE_COUNTS_FILE = "phone_counts.json"


class SpeechTask(Task):
    """Frame-wise classification of a prepared speech corpus."""

    name = "speech"
    script = "train_speech.py"
    measures = measures.SPEECH
    exported = True
    setting_forms = {**Task.setting_forms, "max_frames": int, "augment": bool}
    data = "corpus"
    labels = "frames"
    title, also_described = "Acoustic model", "the counts of its alignments"
    valid = "dev"
    setting_names = (
        *("model", "layers", "units", "bidirectional", "batch_size", "max_frames", "augment"),
        *("mixed_precision", "synchronized", "learning_rate", "momentum", "seed"),
    )

    def read_data(self, data_dir):
        self.corpus = load_corpus(data_dir)
        self.corpus.require_labels(self.labels)
        if "like" in self.corpus.document:  # Made to be scored on alone.
            self.valid, self.kept = "test", []
        else:
            self.kept = kept_lengths(self.corpus.split("train"), self.settings.max_frames)
        self.batch_size, self.examples = self.settings.batch_size, len(self.kept)

    def describe_data(self):
        corpus = self.corpus
        like = corpus.document.get("like", {"source": corpus.source, "sha256": corpus.checksum})
        return {
            "source": like["source"],
            "states": corpus.num_states,
            "sha256": like["sha256"][:16],
        }

    def check_devices(self, strategy):
        if self.examples:  # Else reading says why.
            super().check_devices(strategy)

    def batches(self, split, worker=Worker(), epoch=None):  # noqa: B008  immutable
        """A worker's batches; weights are 1 for live frames, else 0."""
        return self.read(split, worker, epoch).map(weighted)

    def read(self, split, worker=Worker(), epoch=None, with_ids=False):  # noqa: B008  immutable
        augment = epoch is not None and split == "train" and self.settings.augment
        return speech_dataset(
            self.corpus,
            split,
            self.batch_size // worker.count,
            max_frames=self.settings.max_frames,
            seed=self.settings.seed,
            first_epoch=epoch or 0,
            augment=SpecAugment() if augment else None,
            worker=worker,
            with_ids=with_ids,
        )

    def describe_batch(self, worker, epoch, step):
        """The ids of its utterances, found by reading up to it again."""
        dataset = self.read("train", worker, epoch, with_ids=True)
        ids = [name.decode() for *_, names in dataset.skip(step).take(1) for name in names.numpy()]
        return f"utterances {', '.join(ids) or 'of other workers'}"

    def build_model(self, replicas, **options):
        settings = self.settings
        model = build_speech_model(
            self.corpus.dimension,
            self.corpus.num_states,
            normalized=settings.model == "batch_norm",
            layers=settings.layers,
            units=settings.units,
            bidirectional=settings.bidirectional,
            renorm=settings.renorm,
            momentum=settings.momentum,
            synchronized=settings.synchronized and replicas > 1,
        )
        compile_speech_model(model, settings.learning_rate, **options)
        return model

    @staticmethod
    def load_model(path):
        return with_lengths(keras.models.load_model(path, compile=False))

    def metrics(self):
        return speech_metrics()

    def has_test(self):
        return "test" in self.corpus.splits and self.corpus.has_labels("test")

    def files(self):
        corpus = self.corpus

        def counts():
            """What a phone recogniser learns from the training alignments."""
            return json.dumps(phone_counts(corpus.states, alignments(corpus, "train"))) + "\n"

        return {
            CORPUS_FILE: lambda: json.dumps(corpus.document, indent=1) + "\n",
            PHONE_COUNTS_FILE: counts,
        }

    def trivial_scores(self):
        """Dev frame error rate of always answering the training split's most frequent state."""
        commonest = int(np.argmax(self.corpus.split("train")["state_frames"]))
        dev = self.corpus.split("dev")
        return {"dev_fer_of_commonest_state": 1.0 - dev["state_frames"][commonest] / dev["frames"]}

    def plan(self):
        [rate] = self.trivial_scores().values()
        yield from self.plan_of_data(f"{self.corpus.num_states:,} states")
        yield f"Always answering the commonest state: dev fer {rate:.1%}."

    def plan_of_data(self, classes):
        """Lines about the corpus and what of it is trained on."""
        corpus, train = self.corpus, self.corpus.split("train")
        counts = ", ".join(
            f"{entry['utterances']:,} {name} ({entry['frames']:,} frames)"
            for name, entry in corpus.splits.items()
        )
        yield f"Corpus {corpus.path}: utterances {counts}; {classes}."
        if len(self.kept) < train["utterances"]:
            yield (
                f"Left out of training: {train['utterances'] - len(self.kept):,} utterances longer "
                f"than --max_frames={self.settings.max_frames}, "
                f"{1.0 - self.kept.sum() / train['frames']:.1%} of its frames."
            )

    def model_title(self):
        settings = self.settings
        direction = "bidirectional" if settings.bidirectional else "forward"
        return f"{settings.model}, {settings.layers} {direction} layers of {settings.units} units"

    def next_commands(self, folder):
        exported = Path(folder) / "exported"
        return [
            f"python training/export.py --run_dir={folder} --output_dir={exported}",
            f"python training/transcribe.py --model={exported} AUDIO",
        ]

    @classmethod
    def served(cls, run_dir, results):
        corpus = load_corpus(run_dir)
        check_config(run_dir, results["config"], {"max_frames": (int, type(None))})
        if "corpus" in results["config"]:
            check_config(run_dir, results["config"], {"corpus": {"sha256": str}})
            if results["config"]["corpus"]["sha256"] != corpus.checksum[:16]:
                raise CommandError(
                    f"{run_dir / CORPUS_FILE} is not that of the run; put a copy of it back"
                )
        described = cls.described(run_dir, corpus, results["config"])
        lengths = kept_lengths(corpus.split("train"), results["config"]["max_frames"])
        hours = lengths.sum() * FRAME_SECONDS / 3600
        data = (
            f"Trained on {len(lengths):,} utterances ({hours:.2f} hours) of a corpus prepared from "
            f"{corpus.source}: {corpus.num_states} states, frames of 10 ms with {corpus.dimension} "
            f"features. `{DESCRIPTION_FILE}` has the states' names, the set-up of the "
            f"features, the training set's mean and variance, and {cls.also_described}."
        )
        description = {
            "sample_rate": corpus.sample_rate,
            "features": corpus.features,
            "mean": corpus.mean.tolist(),
            "variance": corpus.variance.tolist(),
            "states": corpus.states,
            "recordings": corpus.document.get("recordings"),
            **described,
            **{key: results[key] for key in ("model", "config", "best", "versions")},
        }
        return {
            "endpoints": functools.partial(
                speech_endpoints, corpus=corpus, reduction=results["config"].get("reduction", 1)
            ),
            "title": cls.title,
            "training": training_section(data, results),
            "assets": {DESCRIPTION_FILE.name: description},
        }

    @staticmethod
    def described(run_dir, corpus, config):
        """What else `speech_model.json` says."""
        counts = read_json(run_dir / PHONE_COUNTS_FILE, PHONE_COUNTS)
        if {len(counts[name]) for name in ("state_frames", "visits")} != {corpus.num_states}:
            raise CommandError(
                f"{run_dir / PHONE_COUNTS_FILE} does not count the {corpus.num_states} states of "
                f"{CORPUS_FILE}; put a copy of it back"
            )
        return {"phone_counts": counts}

    def more_scores(self, infer):
        """Error rates of speakers that training heard, of others, and of each."""
        train = read_utterances(self.corpus, "train") if "train" in self.corpus.splits else ()
        heard = {utterance["speaker"] for utterance in train}
        speakers = {u["id"]: u["speaker"] for u in read_utterances(self.corpus, self.valid)}
        rates = {}
        for x, y, mask, names in tqdm(
            self.read(self.valid, with_ids=True), desc="by speaker", unit="batch"
        ):
            x, y, mask = weighted(x, y, mask)
            logits = infer(x)
            for row, name in enumerate(names.numpy()):
                speaker = speakers[name.decode()]
                groups = ["seen" if speaker in heard else "unseen"] if heard else ["all"]
                groups.append(f"speaker {speaker}")
                for group in groups:
                    rate = rates.setdefault(group, self.rate_by_speaker())
                    rate.update_state(
                        y[row : row + 1], logits[row : row + 1], sample_weight=mask[row : row + 1]
                    )
        return {"speakers": {group: float(rates[group].result()) for group in sorted(rates)}}

    def rate_by_speaker(self):
        """A fresh metric of what is told for each speaker."""
        return FrameErrorRate()

    @contextlib.contextmanager
    def damage_explained(self):
        """Turns a record that cannot be read into an error that names the damaged shards."""
        try:
            yield
        except tf.errors.DataLossError as error:
            path = self.corpus.path
            damaged = (
                ", ".join(self.corpus.damaged_shards()) or "none now, so perhaps the disk fails"
            )
            raise CorpusError(
                f"{path}: a record cannot be read ({error.message.splitlines()[0]}); shards "
                f"whose checksum is wrong: {damaged}. Prepare the corpus again (prepare_speech.py "
                f"--verify={path} tells more), then give this command again: it continues"
            ) from error


def weighted(inputs, labels, counts):
    """A batch with weights; frames of a state that the model does not know weigh nothing."""
    if counts.shape.rank == 2:
        counts, labels = counts & (labels >= 0), tf.maximum(labels, 0)
    return inputs, labels, tf.cast(counts, tf.float32)


def define_speech_flags(flag_values):
    """Defines the flags of every script that trains on speech."""
    define_path(
        "data_dir", None, "Corpus folder that prepare_speech.py wrote.", flag_values, remote=True
    )
    flags.DEFINE_integer("layers", 5, "Recurrent layers.", lower_bound=1, flag_values=flag_values)
    flags.DEFINE_integer(
        "units", 250, "Units of each layer and direction.", lower_bound=1, flag_values=flag_values
    )
    flags.DEFINE_bool(
        "bidirectional",
        True,
        "Read each utterance in both directions; false for a model that hears no later frames.",
        flag_values=flag_values,
    )
    flags.DEFINE_integer(
        "batch_size", 24, "Utterances of a mini-batch.", lower_bound=2, flag_values=flag_values
    )
    flags.DEFINE_integer(
        "max_frames",
        MAX_FRAMES,
        "Leave longer utterances out of training (never out of dev and test).",
        lower_bound=1,
        flag_values=flag_values,
    )
    flags.DEFINE_bool(
        "augment",
        False,
        "Hide random stretches of time and bands of channels of the training utterances, others in "
        f"each epoch (SpecAugment: {SpecAugment()}).",
        flag_values=flag_values,
    )
    flags.DEFINE_integer(
        "epochs",
        20,
        "Epochs to train in all. A finished run goes on when the number is raised.",
        lower_bound=1,
        flag_values=flag_values,
    )
    flags.DEFINE_float(
        "learning_rate", 1e-3, "Learning rate of Adam.", lower_bound=0.0, flag_values=flag_values
    )
