"""Models and runs as after training, which takes time and is not what these tests are about."""

import dataclasses
import json

import keras
import numpy as np
import soundfile

from recipes.ctc_model import build_ctc_model
from recipes.language_model import RECIPES, build_language_model
from recipes.speech_model import build_speech_model

WORDS = ["<eos>", "<unk>", "the", "assert", "statement", ".", "an", "error", "is", "a", "word"]


def shaken(model, seed=0):
    """The model, its weights and statistics no longer those of a new one."""
    rng = np.random.default_rng(seed)
    for weight in model.weights:
        if "moving_variance" in weight.path:
            weight.assign(rng.uniform(0.5, 2.0, weight.shape))
        elif "seed" not in weight.path:
            weight.assign(weight + rng.normal(0, 0.1, weight.shape))
    return model


def speech_model(states=5, **options):
    small = {"normalized": True, "layers": 2, "units": 6, **options}
    return shaken(build_speech_model(123, states, **small))


def ctc_model(states=5, **options):
    """One that writes something."""
    keras.utils.set_random_seed(0)
    small = {"normalized": True, "layers": 2, "units": 6, "reduction": 4, **options}
    model = shaken(build_ctc_model(123, states, **small))
    logits = model.get_layer("logits")
    logits.bias.assign(logits.bias - keras.ops.one_hot(0, states))  # Fewer blanks.
    return model


def language_model(units=8):
    recipe = dataclasses.replace(RECIPES["small"], units=units)
    return shaken(build_language_model(recipe, len(WORDS), normalized=True))


def speech_run(folder, corpus, model=None):
    """Writes what export.py reads of a run of train_speech.py; returns the folder."""
    folder.mkdir(parents=True)
    counts = {
        "state_frames": [40, 90, 80, 70, 60],
        "visits": [10] * 5,
        "bigram": [["<utterance>", "SIL", 5], ["SIL", "AH", 5], ["AH", "<utterance>", 5]],
    }
    (folder / "corpus.json").write_text((corpus / "corpus.json").read_text())
    (folder / "phone_counts.json").write_text(json.dumps(counts))
    return _run(folder, "speech", model or speech_model(), "dev_fer", {"max_frames": 1300})


def language_run(folder, model=None):
    """Writes what export.py reads of a run of train_ptb.py; returns the folder."""
    folder.mkdir(parents=True)
    (folder / "vocabulary.json").write_text(
        json.dumps({"words": WORDS, "tokenization": "running_text"})
    )
    text = {"train_tokens": 1000, "vocabulary": len(WORDS)}
    model = model or language_model()
    return _run(folder, "language", model, "valid_perplexity", {"text": text})


def _run(folder, task, model, criterion, config):
    model.save(folder / "best.keras")
    results = {
        "task": task,
        "model": "batch_norm",
        "config": config,
        "criterion": criterion,
        "best": {"epoch": 1, criterion: 0.5},
        "versions": {},
    }
    (folder / "results.json").write_text(json.dumps(results))
    return folder


def write_epochs(folder, rows, best, **results):
    """Writes the tables of a run: a row for each epoch, the best one, and what else is known."""
    folder.mkdir(parents=True)
    lines = [",".join(rows[0]), *(",".join(map(str, row.values())) for row in rows)]
    (folder / "history.csv").write_text("\n".join(lines) + "\n")
    seconds = [9.0, *[2.0] * (len(rows) - 1)]
    document = {"best": best, "seconds_per_epoch": seconds, **results}
    (folder / "results.json").write_text(json.dumps(document))


def noise(samples, seed=0):
    """Samples in -1…1 that 16 bits hold."""
    values = np.random.default_rng(seed).integers(-9000, 9000, samples)
    return (values / 32768).astype(np.float32)


def wav(samples, tmp_path, rate=8000):
    """The bytes of a WAV file."""
    path = tmp_path / f"{len(samples)}.wav"
    soundfile.write(path, samples, rate, subtype="PCM_16")
    return path.read_bytes()
