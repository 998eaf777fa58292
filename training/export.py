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
    a run of train_ctc.py: the same, and the text beside the log-posteriors
    a run of train_ptb.py
        score           sentences -> tokens, log-probability, perplexity
        next_token      beginnings of sentences -> the likeliest next words
        step            the next tokens and the states -> log-probabilities and new states

With --formats=onnx,litert the folded model is written for onnxruntime and ai-edge-litert too.

MODEL_CARD.md in the output folder says what each input and output is, what the model was trained
on, and how good it is. What comes out for frames past an utterance's length has no meaning and no
influence. `assets/speech_model.json` (or `language_model.json`) holds the states' or words' names.
"""

import command_line  # isort: skip  First, for Ctrl-C while the others are imported.
from pathlib import Path

import keras
import tensorflow as tf
from absl import flags

from command_line import CommandError
from keras_bnrnn import fold_batch_norm, serving
from keras_bnrnn.data.errors import CorpusError
from keras_bnrnn.fit.errors import FitError
from keras_bnrnn.fit.tables import RESULTS_FILE, best_model
from keras_bnrnn.folding import FoldingError
from keras_bnrnn.serving.litert import QUANTIZATIONS
from keras_bnrnn.serving.runtimes import FORMATS
from keras_bnrnn.serving.saved_model import MODEL_CARD_FILE
from recipes.tasks import check_results, read_run

FLAGS = flags.FlagValues()
command_line.define_path(
    "run_dir", None, "Folder of a run of train_speech.py, train_ctc.py or train_ptb.py.", FLAGS
)
command_line.define_path(
    "output_dir", None, "Folder of the SavedModel; must be new or empty.", FLAGS
)
flags.DEFINE_list(
    "formats",
    [],
    f"Also write the folded model for other runtimes ({', '.join(FORMATS)}), into files beside the "
    "SavedModel's.",
    flag_values=FLAGS,
)
flags.DEFINE_enum(
    "quantize",
    None,
    QUANTIZATIONS,
    "Weights of the files of --formats. dynamic: 8 bits, a quarter of the size; float16: half of "
    "it. Not given: float32.",
    flag_values=FLAGS,
)


def main(argv):
    run_dir = Path(command_line.require_flag(FLAGS, "run_dir"))
    output_dir = Path(command_line.require_flag(FLAGS, "output_dir"))
    kind, results = read_run(run_dir)
    if kind.exported:
        form = {"model": str, "criterion": str, "best": dict, "versions": dict}
        check_results(run_dir / RESULTS_FILE, results, form)
    described = kind.served(run_dir, results)
    model = keras.saving.load_model(best_model(run_dir, results), compile=False)
    try:
        model = fold_batch_norm(model)
    except FoldingError as error:
        name, reason = next(iter(error.reasons.items()))
        raise CommandError(
            f"--run_dir={run_dir}: its normalisation is no part of a plain model "
            f"({name}: {reason}), so it cannot be exported"
        ) from None
    signatures = serving.export(
        model,
        output_dir,
        **described,
        configuration={key: results[key] for key in ("config", "versions")},
        formats=FLAGS.formats,
        quantize=FLAGS.quantize,
    )
    best, criterion = results["best"], results["criterion"]
    if not results.get("finished", True):
        print("Warning: the run is not finished; MODEL_CARD.md says so.")
    print(
        f"Written: {output_dir}, the {results['model']} model after epoch {best['epoch']} "
        f"({criterion} {best[criterion]:.3f}), signatures {', '.join(signatures)}; "
        f"{output_dir / MODEL_CARD_FILE} says how to call them."
    )
    if "serve_waveform" in signatures:
        print(f"Next: python training/transcribe.py --model={output_dir} AUDIO")


if __name__ == "__main__":
    disk_errors = (tf.errors.ResourceExhaustedError, tf.errors.PermissionDeniedError)
    errors = (CorpusError, FitError, serving.ServingError, *disk_errors)
    command_line.run(main, FLAGS, __doc__, expected_errors=errors)
