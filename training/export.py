"""Exports a trained acoustic model as a TensorFlow SavedModel.

    python training/export.py --run_dir=runs/bn --output_dir=exported
    python training/transcribe.py --model=exported AUDIO

The model with the best dev criterion is written. `tf.saved_model.load(output_dir).signatures` has

    serve           features [batch, time, dimension] float32 as the training pipeline yields them
                    (normalised with the training set's mean and variance), lengths [batch] int32
                    -> log_posteriors [batch, time, states]
    serve_waveform  waveform [batch, samples] float32 in -1…1 at the training rate, lengths [batch]
                    int32, in samples
                    -> log_posteriors [batch, time, states], frames [batch] int32

Frames past an utterance's length have no influence on the others, and what comes out for them has
no meaning. `assets/speech_model.json` holds the states' and phones' names, the sampling rate and
the set-up of the features. Neither needs keras_bnrnn.
"""

import json
import os
import tempfile
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from absl import flags

import command_line
from command_line import CommandError
from keras_bnrnn import fold_batch_norm
from keras_bnrnn.data.corpus import CORPUS_FILE, load_corpus
from keras_bnrnn.data.errors import CorpusError
from keras_bnrnn.data.features import LogMelFilterBank
from keras_bnrnn.data.speech import VARIANCE_FLOOR
from run_folder import BEST_MODEL_FILE, read_results

DESCRIPTION_FILE = "speech_model.json"

FLAGS = flags.FlagValues()
flags.DEFINE_string("run_dir", None, "Folder of a run of train_speech.py.", flag_values=FLAGS)
flags.DEFINE_string(
    "output_dir", None, "Folder of the SavedModel; must be new or empty.", flag_values=FLAGS
)


def main(argv):
    if len(argv) > 1:
        raise CommandError(f"unexpected argument {argv[1]!r}; every option is a --flag")
    run_dir = Path(command_line.require_flag(FLAGS, "run_dir"))
    output_dir = Path(command_line.require_flag(FLAGS, "output_dir"))
    if output_dir.exists() and (not output_dir.is_dir() or any(output_dir.iterdir())):
        raise CommandError(f"--output_dir={output_dir} exists already; name a new or empty folder")
    results = read_results(run_dir)
    if not (run_dir / CORPUS_FILE).exists():
        raise CommandError(
            f"--run_dir={run_dir} is no run of train_speech.py: it has no {CORPUS_FILE}"
        )
    corpus = load_corpus(run_dir)
    # Served by plain Keras layers: nothing of the normalisation is left to compute.
    model = fold_batch_norm(keras.saving.load_model(run_dir / BEST_MODEL_FILE, compile=False))
    signatures = export_speech_model(model, corpus, describe(corpus, results), output_dir)
    best = results["best"]
    print(
        f"Written: {output_dir}, the {results['model']} model after epoch {best['epoch']} "
        f"(dev fce {best['dev_fce']:.3f}, fer {best['dev_fer']:.1%}), signatures "
        f"{', '.join(signatures)}."
    )
    if "serve_waveform" in signatures:
        print(f"Next: python training/transcribe.py --model={output_dir} AUDIO")


def describe(corpus, results):
    """What a user of the SavedModel has to know about it, for `speech_model.json`."""
    return {
        "sample_rate": corpus.sample_rate,
        "features": corpus.features,
        "states": corpus.states,
        "model": results["model"],
        "config": results["config"],
        "best": results["best"],
        "versions": results["versions"],
    }


def export_speech_model(model, corpus, description, output_dir):
    """Writes the SavedModel, aside first and renamed when it is whole.

    Args:
        model: from features `[batch, time, dimension]` to logits `[batch, time, states]`.
        corpus: the `Corpus` it was trained on, for its mean, variance and feature set-up.
        description: dictionary for `assets/speech_model.json`.
        output_dir: `Path` of the SavedModel.

    Returns:
        The names of its signatures.
    """
    deviation = np.sqrt(np.maximum(corpus.variance, VARIANCE_FLOOR))

    def log_posteriors(features, lengths):
        live = tf.sequence_mask(lengths, tf.shape(features)[1])[:, :, tf.newaxis]
        logits = model(tf.where(live, features, 0.0), training=False)
        return tf.nn.log_softmax(logits)

    def serve(features, lengths):
        return {"log_posteriors": log_posteriors(features, lengths)}

    signatures = ["serve"]
    archive = keras.export.ExportArchive()
    archive.track(model)
    features_spec = tf.TensorSpec([None, None, corpus.dimension], tf.float32, "features")
    lengths_spec = tf.TensorSpec([None], tf.int32, "lengths")
    archive.add_endpoint("serve", serve, [features_spec, lengths_spec])
    front_end = make_front_end(corpus)
    if front_end is not None:

        def serve_waveform(waveform, lengths):
            frames = front_end.num_frames(lengths)
            features = (front_end(waveform, lengths) - corpus.mean) / deviation
            return {"log_posteriors": log_posteriors(features, frames), "frames": frames}

        archive.track(front_end)
        waveform_spec = tf.TensorSpec([None, None], tf.float32, "waveform")
        archive.add_endpoint("serve_waveform", serve_waveform, [waveform_spec, lengths_spec])
        signatures.append("serve_waveform")
    output_dir.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output_dir.parent, prefix=".exporting-") as aside:
        whole = Path(aside) / "model"
        # A served model is not trained any further, so the loops' gradients stay out of it.
        options = tf.saved_model.SaveOptions(experimental_custom_gradients=False)
        archive.write_out(whole, options=options, verbose=False)
        assets = whole / "assets"
        assets.mkdir(exist_ok=True)
        description = {**description, "signatures": signatures}
        (assets / DESCRIPTION_FILE).write_text(json.dumps(description, indent=1) + "\n")
        if output_dir.exists():
            output_dir.rmdir()
        os.rename(whole, output_dir)
    return signatures


def make_front_end(corpus):
    """The corpus's `LogMelFilterBank`, or `None` where its features were computed elsewhere."""
    names = ("sample_rate", "num_mel_bins", "use_energy", "delta_order", "snip_edges")
    if any(name not in corpus.features for name in names):
        return None
    front_end = LogMelFilterBank(**{name: corpus.features[name] for name in names})
    front_end.build((None, None))
    return front_end


if __name__ == "__main__":
    command_line.run(main, FLAGS, __doc__, expected_errors=(CorpusError,))
