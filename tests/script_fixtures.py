"""A tiny corpus and a way to call the training scripts, for tests that need either."""

import contextlib
import dataclasses
import fcntl
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.python.framework.config import disable_op_determinism

import command_line
from keras_bnrnn.ctc import BLANK
from keras_bnrnn.data.speech.corpus import file_checksum, make_example
from keras_bnrnn.data.speech.transcripts import TextRules, decoded
from recipes.language_model import RECIPES

REPOSITORY = Path(__file__).resolve().parent.parent
STATES = 5
DIMENSION = 123
SAMPLE_RATE = 8000
ALPHABET = [" ", "a", "e", "ö"]

# A process in which some packages cannot be imported, whatever is installed or on the path. They
# can be looked up: TensorFlow asks where Keras lies before it needs any of it.
WITHOUT_PACKAGES = """
import importlib.machinery
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name in {blocked}:
            return importlib.machinery.ModuleSpec(name, self)

    def create_module(self, spec):
        raise ModuleNotFoundError(f"No module named {{spec.name!r}}", name=spec.name)

sys.meta_path.insert(0, Blocked())
"""


def write_corpus(folder, utterances=(26, 9), seed=0, shard_count=2, characters=False):
    """Writes a corpus whose labels can be learnt from its features; 8 frames per character."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(STATES, DIMENSION)).astype("float32")
    folder.mkdir(parents=True, exist_ok=True)
    splits, seen = {}, []
    for split, count in zip(("train", "dev"), utterances, strict=True):
        examples, lengths, counts = [], [], np.zeros(STATES, int)
        for index in range(count):
            labels = rng.integers(int(characters), STATES, size=rng.integers(2, 7))
            aligned = np.repeat(labels, 8 if characters else 4)
            labels = labels if characters else aligned
            features = 3.0 + centres[aligned] + rng.normal(size=(len(aligned), DIMENSION))
            name = f"{split}-{index:02d}"
            transcript = decoded(labels, ALPHABET) if characters else "words"
            examples.append(make_example(name, "speaker", transcript, features, labels))
            lengths.append(len(aligned))
            counts += np.bincount(labels, minlength=STATES)
            if split == "train":
                seen.append(features)
        shards = []
        for shard in range(shard_count):
            part = slice(shard, None, shard_count)
            path = folder / f"{split}-{shard:05d}-of-{shard_count:05d}.tfrecord"
            with tf.io.TFRecordWriter(str(path)) as writer:
                for example in examples[part]:
                    writer.write(example)
            shards.append(
                {
                    "file": path.name,
                    "utterances": len(examples[part]),
                    "frames": sum(lengths[part]),
                    "bytes": path.stat().st_size,
                    "sha256": file_checksum(str(path)),
                }
            )
        splits[split] = {
            "utterances": count,
            "frames": sum(lengths),
            "lengths": {str(length): lengths.count(length) for length in sorted(set(lengths))},
            "state_frames": counts.tolist(),
            "shards": shards,
        }
    frames = np.concatenate(seen)
    document = {
        "format_version": 1,
        "source": "test",
        "sample_rate": SAMPLE_RATE,
        "features": {
            "dimension": DIMENSION,
            "sample_rate": SAMPLE_RATE,
            "num_mel_bins": 40,
            "use_energy": True,
            "delta_order": 2,
            "snip_edges": False,
        },
        "states": [
            {"name": f"{phone}/{place}", "phone": phone, "position": place, "senone": 100 + k}
            for k, (phone, place) in enumerate(
                [("SIL", 0), ("AH", 0), ("AH", 1), ("T", 0), ("OW", 0)]
            )
        ],
        "splits": splits,
        "mean": frames.mean(0).tolist(),
        "variance": frames.var(0).tolist(),
        "seed": seed,
        "versions": {},
        "failures": 0,
    }
    if characters:
        document["states"] = [{"name": name} for name in (BLANK, *ALPHABET)]
        document["text"] = TextRules().changes([])
    (folder / "corpus.json").write_text(json.dumps(document))
    return folder


@pytest.fixture(scope="session")
def tiny_corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("speech") / "corpus")


@pytest.fixture(scope="session")
def tiny_characters(tmp_path_factory):
    """A corpus of characters: texts of the characters in `ALPHABET`."""
    return write_corpus(tmp_path_factory.mktemp("speech") / "text", characters=True)


@pytest.fixture(scope="session", params=[1, 3], ids="{} shards".format)
def sharded_corpus(tmp_path_factory, request):
    """27 and 7 utterances in one shard or in three."""
    folder = tmp_path_factory.mktemp("speech") / f"corpus{request.param}"
    return write_corpus(folder, (27, 7), 1, request.param)


@pytest.fixture(scope="session")
def parse_flags():
    """Gives a script these flags, the others their defaults; returns what is left for `main`."""

    def parse(module, *arguments):
        module.FLAGS.unparse_flags()
        for name in module.FLAGS:
            module.FLAGS[name].unparse()
        program = f"{module.__name__}.py"
        return [program, *command_line.parse(module.FLAGS, [program, *map(str, arguments)])]

    return parse


@pytest.fixture
def settings_end_with_the_test():
    """Undoes what the scripts set for the whole process."""
    yield
    disable_op_determinism()
    keras.mixed_precision.set_dtype_policy("float32")


@pytest.fixture
def call_script(call_script_in_module, settings_end_with_the_test):
    """Calls a script's `main` in this process: `call_script(train_speech, "--seed=1", …)`."""
    return call_script_in_module


@pytest.fixture(scope="session")
def call_script_in_module(parse_flags):
    """The same for fixtures that outlive a test."""

    def call(module, *arguments):
        return module.main(parse_flags(module, *arguments))

    return call


@pytest.fixture
def run_command(capsys, settings_end_with_the_test):
    """Runs a script as a command, but in this process: `run_command("train_speech.py", …)`.

    Returns its exit code, and what it wrote to stdout and stderr.
    """

    def run(script, *arguments):
        capsys.readouterr()
        code = command_line.call(REPOSITORY / "training" / script, arguments)
        return code, *capsys.readouterr()

    return run


@pytest.fixture(scope="session")
def made_once(tmp_path_factory):
    """Makes a folder for all test processes: `made_once("name", function_of_the_folder)`."""
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent

    def make(name, write):
        folder, aside = root / name, root / f"{name}-unfinished"
        with (root / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not folder.exists():
                shutil.rmtree(aside, ignore_errors=True)
                aside.mkdir()
                write(aside)
                aside.rename(folder)
        return folder

    return make


@pytest.fixture(scope="session")
def trained_speech(made_once, tiny_corpus, call_script_in_module):
    """A batch-normalised model of `tiny_corpus` after two epochs.

    `run/` is the run's folder, `output.txt` what train_speech.py printed, `exported/` the
    SavedModel. Not to be changed.
    """

    def train(folder):
        import export
        import train_speech

        flags = ["--layers=1", "--units=6", "--batch_size=8", "--learning_rate=0.01", "--epochs=2"]
        run = f"{folder}/run"
        with (folder / "output.txt").open("w") as output, contextlib.redirect_stdout(output):
            call_script_in_module(
                train_speech, f"--data_dir={tiny_corpus}", f"--output_dir={run}", *flags
            )
        call_script_in_module(export, f"--run_dir={run}", f"--output_dir={folder}/exported")

    return made_once("trained-speech", train)


@pytest.fixture(scope="session")
def trained_ctc(made_once, tiny_characters, call_script_in_module):
    """A batch-normalised model of `tiny_characters` after a few epochs.

    `run/` is the run's folder, `output.txt` what train_ctc.py printed, `exported/` the SavedModel.
    Not to be changed.
    """

    def train(folder):
        import export
        import train_ctc

        flags = ["--layers=1", "--units=12", "--batch_size=8", "--learning_rate=0.02"]
        run = f"{folder}/run"
        with (folder / "output.txt").open("w") as output, contextlib.redirect_stdout(output):
            call_script_in_module(
                train_ctc,
                f"--data_dir={tiny_characters}",
                f"--output_dir={run}",
                "--epochs=3",
                *flags,
            )
        call_script_in_module(export, f"--run_dir={run}", f"--output_dir={folder}/exported")

    return made_once("trained-ctc", train)


@pytest.fixture(scope="session")
def tiny_recipe():
    """What stands for `RECIPES["small"]` of the language models."""
    return dataclasses.replace(
        RECIPES["small"], units=8, timesteps=5, batch_size=4, epochs=2, dropout=0.2
    )


@pytest.fixture(scope="session")
def tiny_text(made_once):
    """A folder of text with a dozen words, in which each word says much about the next."""
    return made_once("text", write_text)


@pytest.fixture(scope="session")
def trained_language(made_once, tiny_text, tiny_recipe, call_script_in_module):
    """A batch-normalised language model of `tiny_text` after two epochs.

    `run/` is the run's folder, `output.txt` what train_ptb.py printed. Not to be changed.
    """
    pytest.importorskip("tensorflow_text", reason="the `text` extra is not installed")

    def train(folder):
        import train_ptb

        flags = [f"--data_dir={tiny_text}", f"--output_dir={folder}/run", "--seed=4"]
        with (
            pytest.MonkeyPatch.context() as patch,
            (folder / "output.txt").open("w") as output,
            contextlib.redirect_stdout(output),
        ):
            patch.setitem(RECIPES, "small", tiny_recipe)
            call_script_in_module(train_ptb, *flags)

    return made_once("trained-language", train)


def write_text(folder, sentences=130):
    generator = np.random.default_rng(3)
    for split, count in (("train", sentences), ("valid", 15), ("test", 17)):
        lines = []
        for _ in range(count):
            begin, length = generator.integers(0, 12), generator.integers(4, 9)
            lines.append(" ".join(f"w{(begin + k) % 12}" for k in range(length)))
        (folder / f"ptb.{split}.txt").write_text("\n".join(lines) + "\n")


@pytest.fixture
def run_without():
    """Runs code where packages cannot be imported: `run_without(["keras"], code, *arguments)`."""

    def run(blocked, code, *arguments):
        code = WITHOUT_PACKAGES.format(blocked=repr(set(blocked))) + code
        return subprocess.run(
            [sys.executable, "-c", code, *map(str, arguments)],
            capture_output=True,
            text=True,
            env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
            check=False,
        )

    return run
