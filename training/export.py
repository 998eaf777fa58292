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
import os
import tempfile
from pathlib import Path

import keras
import tensorflow as tf
from absl import flags

import command_line
from command_line import CommandError
from keras_bnrnn import fold_batch_norm
from keras_bnrnn.data.errors import CorpusError
from keras_bnrnn.data.speech.corpus import CORPUS_FILE, load_corpus
from keras_bnrnn.data.speech.pipelines import kept_lengths
from keras_bnrnn.fit.run_folder import (
    BEST_MODEL_FILE,
    PHONE_COUNTS_FILE,
    VOCABULARY_FILE,
    read_results,
)
from keras_bnrnn.serving.endpoints import language_endpoints, speech_endpoints
from keras_bnrnn.serving.model_card import model_card
from keras_bnrnn.serving.runtimes import FORMATS, export_runtime, runtime_models

MODEL_CARD_FILE = "MODEL_CARD.md"
SPEECH_DESCRIPTION_FILE = "speech_model.json"
LANGUAGE_DESCRIPTION_FILE = "language_model.json"

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
    if output_dir.exists() and (not output_dir.is_dir() or any(output_dir.iterdir())):
        raise CommandError(f"--output_dir={output_dir} exists already; name a new or empty folder")
    results = read_results(run_dir)
    exporters = {CORPUS_FILE: export_speech, VOCABULARY_FILE: export_language}
    kind = next((file for file in exporters if (run_dir / file).exists()), None)
    if kind is None:
        raise CommandError(
            f"--run_dir={run_dir} is no run of train_speech.py or train_ptb.py: it has no "
            f"{' and no '.join(exporters)}"
        )
    unknown = sorted(set(FLAGS.formats) - set(FORMATS))
    if unknown:
        raise CommandError(f"--formats={','.join(unknown)} is not of {', '.join(FORMATS)}")
    model = keras.saving.load_model(run_dir / BEST_MODEL_FILE, compile=False)
    try:
        folded = fold_batch_norm(model)
    except ValueError as error:
        raise CommandError(
            f"--run_dir={run_dir}: its normalisation is no part of a plain model "
            f"({str(error).splitlines()[1].strip()}), so it cannot be exported"
        ) from None
    model = for_any_device(folded)
    signatures = exporters[kind](model, run_dir, results, output_dir)
    best, criterion = results["best"], results["criterion"]
    print(
        f"Written: {output_dir}, the {results['model']} model after epoch {best['epoch']} "
        f"({criterion} {best[criterion]:.3f}), signatures {', '.join(signatures)}; "
        f"{output_dir / MODEL_CARD_FILE} says how to call them."
    )
    if "serve_waveform" in signatures:
        print(f"Next: python training/transcribe.py --model={output_dir} AUDIO")


def for_any_device(model):
    """The model with all its computation in float32 and without cuDNN.

    Half precision pays on the devices that training ran on, not on those that serve; and cuDNN's
    operations, which Keras writes into the graph where it sees a GPU, run nowhere else.
    """

    def replaced(config):
        if isinstance(config, dict):
            if config.get("class_name") == "DTypePolicy":
                return {**config, "config": {"name": "float32"}}
            return {key: replaced(value) for key, value in config.items()}
        if isinstance(config, (list, tuple)):
            return type(config)(replaced(value) for value in config)
        return config

    copy = type(model).from_config(replaced(model.get_config()))
    copy.set_weights(model.get_weights())
    for layer in copy._flatten_layers():
        if hasattr(layer, "use_cudnn"):  # Keras has no place for it in a configuration.
            layer.use_cudnn = False
    return copy


def export_speech(model, run_dir, results, output_dir):
    """Exports an acoustic model; returns the names of its signatures."""
    corpus = load_corpus(run_dir)
    endpoints, tracked = speech_endpoints(model, corpus)
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
    return write_saved_model(
        output_dir,
        endpoints,
        tracked,
        {SPEECH_DESCRIPTION_FILE: {**description, "signatures": list(endpoints)}},
        runtime_models(model, FLAGS.formats, FLAGS.litert_frames),
        functools.partial(model_card, "Acoustic model", results, data, endpoints),
    )


def export_language(model, run_dir, results, output_dir):
    """Exports a language model; returns the names of its signatures."""
    description = json.loads((run_dir / VOCABULARY_FILE).read_text(encoding="utf-8"))
    endpoints, tracked = language_endpoints(
        model, description["words"], description["tokenization"]
    )
    text = results["config"]["text"]
    data = (
        f"Trained on {text['train_tokens']:,} tokens of text with {text['vocabulary']:,} words; "
        f"strings are cut into words as {description['tokenization']}. "
        f"`assets/{LANGUAGE_DESCRIPTION_FILE}` has the words."
    )
    return write_saved_model(
        output_dir,
        endpoints,
        tracked,
        {LANGUAGE_DESCRIPTION_FILE: {**description, "signatures": list(endpoints)}},
        runtime_models(model, FLAGS.formats, FLAGS.litert_frames),
        functools.partial(model_card, "Language model", results, data, endpoints),
    )


def write_saved_model(output_dir, endpoints, tracked, assets, runtimes, make_card):
    """Writes the SavedModel, aside first and renamed when it is whole.

    Args:
        output_dir: `Path` of the SavedModel.
        endpoints: `{name: Endpoint}`.
        tracked: the Keras layers and lookup tables that the endpoints use.
        assets: `{file name: JSON document}`.
        runtimes: `{file name: keras.Model}` for other runtimes.
        make_card: from `{endpoint: names of its outputs}` and `runtimes` to the text of
            MODEL_CARD.md.

    Returns:
        The names of the signatures.
    """
    module = tf.Module()
    # Their variables alone: a layer would bring functions and configuration that nobody calls.
    layers = [one for one in tracked if isinstance(one, keras.layers.Layer)]
    module.weights = list({id(w): w.value for layer in layers for w in layer.weights}.values())
    module.tables = [one for one in tracked if not isinstance(one, keras.layers.Layer)]
    signatures = {
        name: tf.function(
            endpoint.function, input_signature=endpoint.inputs, autograph=False
        ).get_concrete_function()
        for name, endpoint in endpoints.items()
    }
    outputs = {name: list(function.structured_outputs) for name, function in signatures.items()}
    output_dir.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output_dir.parent, prefix=".exporting-") as aside:
        whole = Path(aside) / "model"
        # A served model is not trained any further, so the loops' gradients stay out of it.
        options = tf.saved_model.SaveOptions(experimental_custom_gradients=False)
        tf.saved_model.save(module, str(whole), signatures, options)
        (whole / "assets").mkdir(exist_ok=True)
        for file, document in assets.items():
            (whole / "assets" / file).write_text(json.dumps(document, indent=1) + "\n")
        for file, model in runtimes.items():
            export_runtime(model, whole / file)
        (whole / MODEL_CARD_FILE).write_text(make_card(outputs, runtimes), encoding="utf-8")
        if output_dir.exists():
            output_dir.rmdir()
        os.rename(whole, output_dir)
    return list(signatures)


if __name__ == "__main__":
    disk_errors = (tf.errors.ResourceExhaustedError, tf.errors.PermissionDeniedError)
    command_line.run(main, FLAGS, __doc__, expected_errors=(CorpusError, *disk_errors))
