"""Exports a trained model as a TensorFlow SavedModel that needs neither Keras nor keras_bnrnn.

    python training/export.py --run_dir=runs/bn --output_dir=exported
    python training/transcribe.py --model=exported AUDIO

The model with the best criterion is folded into plain layers and written with these signatures:

    a run of train_speech.py
        serve           features and lengths -> log-posteriors
        features        samples and lengths -> the features that serve takes
        serve_waveform  samples and lengths -> log-posteriors, frames, times
        serve_audio     the bytes of WAV files -> the same
        step            the next features and the states -> log-posteriors and new states
                        (models that read in one direction)
    a run of train_ptb.py
        score           sentences -> tokens, log-probability, perplexity
        next_token      beginnings of sentences -> the likeliest next words
        step            the next tokens and the states -> log-probabilities and new states

With --formats=onnx,litert the folded model is written for onnxruntime and ai-edge-litert too.

MODEL_CARD.md in the output folder says what each input and output is, what the model was trained
on, and how good it is. What comes out for frames past an utterance's length has no meaning and no
influence. `assets/speech_model.json` (or `language_model.json`) holds the states' or words' names.
"""

import functools
import json
from pathlib import Path

import keras
import tensorflow as tf
from absl import flags

import command_line
from command_line import CommandError
from keras_bnrnn import fold_batch_norm, serving
from keras_bnrnn.data.errors import CorpusError
from keras_bnrnn.data.speech.corpus import CORPUS_FILE, load_corpus
from keras_bnrnn.data.speech.pipelines import kept_lengths
from keras_bnrnn.fit.run_folder import (
    BEST_MODEL_FILE,
    PHONE_COUNTS_FILE,
    VOCABULARY_FILE,
    read_results,
)
from keras_bnrnn.serving.language import language_endpoints
from keras_bnrnn.serving.runtimes import FORMATS
from keras_bnrnn.serving.saved_model import MODEL_CARD_FILE
from keras_bnrnn.serving.speech import speech_endpoints

SPEECH_DESCRIPTION_FILE = "speech_model.json"
LANGUAGE_DESCRIPTION_FILE = "language_model.json"
FLAG_OF_ARGUMENT = {"folder": "output_dir", "formats": "formats"}

FLAGS = flags.FlagValues()
flags.DEFINE_string(
    "run_dir", None, "Folder of a run of train_speech.py or train_ptb.py.", flag_values=FLAGS
)
flags.DEFINE_string(
    "output_dir", None, "Folder of the SavedModel; must be new or empty.", flag_values=FLAGS
)
flags.DEFINE_list(
    "formats",
    [],
    f"Also write the folded model for other runtimes ({', '.join(FORMATS)}), into files beside the "
    "SavedModel's.",
    flag_values=FLAGS,
)
flags.DEFINE_integer(
    "litert_frames",
    100,
    "Frames of the utterances that a bidirectional LiteRT model takes.",
    lower_bound=1,
    flag_values=FLAGS,
)


def main(argv):
    if len(argv) > 1:
        raise CommandError(f"unexpected argument {argv[1]!r}; every option is a --flag")
    run_dir = Path(command_line.require_flag(FLAGS, "run_dir"))
    output_dir = Path(command_line.require_flag(FLAGS, "output_dir"))
    results = read_results(run_dir)
    described = describe_run(run_dir, results)
    model = keras.saving.load_model(run_dir / BEST_MODEL_FILE, compile=False)
    try:
        model = fold_batch_norm(model)
    except ValueError as error:
        raise CommandError(
            f"--run_dir={run_dir}: its normalisation is no part of a plain model "
            f"({str(error).splitlines()[1].strip()}), so it cannot be exported"
        ) from None
    try:
        signatures = serving.export(
            model,
            output_dir,
            **described,
            configuration={key: results[key] for key in ("config", "versions")},
            formats=FLAGS.formats,
            litert_frames=FLAGS.litert_frames,
        )
    except serving.ServingError as error:
        raise CommandError(f"--{FLAG_OF_ARGUMENT[error.argument]}={error}") from None
    best, criterion = results["best"], results["criterion"]
    print(
        f"Written: {output_dir}, the {results['model']} model after epoch {best['epoch']} "
        f"({criterion} {best[criterion]:.3f}), signatures {', '.join(signatures)}; "
        f"{output_dir / MODEL_CARD_FILE} says how to call them."
    )
    if "serve_waveform" in signatures:
        print(f"Next: python training/transcribe.py --model={output_dir} AUDIO")


def describe_run(run_dir, results):
    """What a run's folder says of its model, as arguments of `serving.export`."""
    describers = {CORPUS_FILE: describe_speech, VOCABULARY_FILE: describe_language}
    for file, describe in describers.items():
        if (run_dir / file).exists():
            return describe(run_dir, results)
    raise CommandError(
        f"--run_dir={run_dir} is no run of train_speech.py or train_ptb.py: it has no "
        f"{' and no '.join(describers)}"
    )


def describe_speech(run_dir, results):
    """Of an acoustic model."""
    corpus = load_corpus(run_dir)
    lengths = kept_lengths(corpus.split("train"), results["config"]["max_frames"])
    data = (
        f"Trained on {len(lengths):,} utterances ({lengths.sum() / 360_000:.2f} hours) of "
        f"a corpus prepared from {corpus.source}: {corpus.num_states} states, frames of 10 ms with "
        f"{corpus.dimension} features. `assets/{SPEECH_DESCRIPTION_FILE}` has the states' names, "
        "the set-up of the features, the training set's mean and variance, and the counts of its "
        "alignments."
    )
    description = {
        "sample_rate": corpus.sample_rate,
        "features": corpus.features,
        "mean": corpus.mean.tolist(),
        "variance": corpus.variance.tolist(),
        "states": corpus.states,
        "phone_counts": json.loads((run_dir / PHONE_COUNTS_FILE).read_text()),
        **{key: results[key] for key in ("model", "config", "best", "versions")},
    }
    return {
        "endpoints": functools.partial(speech_endpoints, corpus=corpus),
        "title": "Acoustic model",
        "training": training_section(data, results),
        "assets": {SPEECH_DESCRIPTION_FILE: description},
    }


def describe_language(run_dir, results):
    """Of a language model."""
    description = json.loads((run_dir / VOCABULARY_FILE).read_text(encoding="utf-8"))
    words, tokenization = description["words"], description["tokenization"]
    text = results["config"]["text"]
    data = (
        f"Trained on {text['train_tokens']:,} tokens of text with {text['vocabulary']:,} words; "
        f"strings are cut into words as {tokenization}. "
        f"`assets/{LANGUAGE_DESCRIPTION_FILE}` has the words."
    )
    return {
        "endpoints": functools.partial(
            language_endpoints, vocabulary=words, tokenization=tokenization
        ),
        "title": "Language model",
        "training": training_section(data, results),
        "assets": {LANGUAGE_DESCRIPTION_FILE: description},
    }


def training_section(data, results):
    """What the card says of the training: a paragraph on the data, and the best measures."""
    best = results["best"]
    return "\n".join(
        [
            data,
            "",
            f"Weights of epoch {best['epoch']}, the best by {results['criterion']}:",
            "",
            "| measure | value |",
            "|---|---|",
            *(f"| {name} | {value:.4g} |" for name, value in best.items() if name != "epoch"),
        ]
    )


if __name__ == "__main__":
    disk_errors = (tf.errors.ResourceExhaustedError, tf.errors.PermissionDeniedError)
    command_line.run(main, FLAGS, __doc__, expected_errors=(CorpusError, *disk_errors))
