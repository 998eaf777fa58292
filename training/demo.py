"""The whole way once, in minutes: synthetic speech, two models, comparison, export, recognition.

    python training/demo.py

Everything goes to the folder demo/ of the repository. A run that was stopped continues with the
same command. Each step is a command. It is printed before it runs, so that you can try it with
other values afterwards. The models learn to spell: they see the sentences' letters and no times.
"""

import command_line  # isort: skip  First, for Ctrl-C while the others are imported.
import os
import shlex
import shutil
import time
from pathlib import Path

import soundfile
from absl import flags

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"  # Before TensorFlow is imported.

from command_line import CommandError
from keras_bnrnn.data.errors import CorpusError
from keras_bnrnn.data.speech.corpus import load_corpus, read_utterances
from keras_bnrnn.data.speech.sources import SyntheticSource
from keras_bnrnn.fit.errors import FitError
from keras_bnrnn.fit.tables import read_results

SCRIPTS = Path(__file__).resolve().parent

FLAGS = flags.FlagValues()
command_line.define_path("output_dir", str(SCRIPTS.parent / "demo"), "Folder of everything.", FLAGS)
flags.DEFINE_integer(
    "utterances", 1000, "Sentences to synthesise, dev included.", lower_bound=2, flag_values=FLAGS
)
flags.DEFINE_integer("layers", 2, "Recurrent layers.", lower_bound=1, flag_values=FLAGS)
flags.DEFINE_integer(
    "units", 64, "Units per layer and direction.", lower_bound=1, flag_values=FLAGS
)
flags.DEFINE_integer("epochs", 12, "Epochs of each model.", lower_bound=1, flag_values=FLAGS)
flags.DEFINE_integer("seed", 0, "Seed of everything.", lower_bound=0, flag_values=FLAGS)


def main(argv):
    began = time.monotonic()
    folder = Path(FLAGS.output_dir)
    corpus_dir, exported = folder / "corpus", folder / "exported"
    runs = {model: folder / model for model in command_line.MODELS}

    step("Synthetic speech and what it says")
    run_script(
        "prepare_speech.py",
        "--source=synthetic",
        "--labels=characters",
        f"--output_dir={corpus_dir}",
        f"--utterances={FLAGS.utterances}",
        f"--seed={FLAGS.seed}",
    )
    for model, run_dir in runs.items():
        step(f"Training the {model} model")
        run_script(
            "train_ctc.py",
            f"--data_dir={corpus_dir}",
            f"--output_dir={run_dir}",
            f"--model={model}",
            f"--layers={FLAGS.layers}",
            f"--units={FLAGS.units}",
            f"--epochs={FLAGS.epochs}",
            "--batch_size=16",
            "--learning_rate=0.004",
            f"--seed={FLAGS.seed}",
        )

    step("Comparing")
    run_script("compare.py", f"--output_dir={folder}", *map(str, runs.values()))

    best = min(runs, key=lambda model: read_results(runs[model])["best"]["dev_cer"])
    step(f"Exporting the one with the lower dev_cer, {best}")
    if exported.exists():
        shutil.rmtree(exported)
    run_script("export.py", f"--run_dir={runs[best]}", f"--output_dir={exported}")

    step("Recognising a sentence with the SavedModel")
    audio, transcript = write_dev_audio(corpus_dir, folder)
    picture = folder / "transcription.png"
    run_script(
        "transcribe.py",
        f"--model={exported}",
        f"--transcript={transcript}",
        f"--plot={picture}",
        str(audio),
    )
    print("Training had neither this voice nor this sentence.")

    step(f"Done in {time.monotonic() - began:.0f} s")
    made = {corpus_dir: "features and letters; corpus.json describes them"}
    for model, run_dir in runs.items():
        made[run_dir] = f"{model}: history.csv, results.json, best.keras and final.keras"
    made[folder / "compare.png"] = "the curves of both"
    made[exported] = "the SavedModel"
    made[audio] = "the sentence it heard"
    if picture.exists():  # A model of a few sentences may write nothing.
        made[picture] = "what it made of it: waveform, words, features, letters"
    for path, content in made.items():
        print(f"  {path}  {content}")
    print("Next: the same with recordings of your own; docs/SPEECH.md tells how.")


def step(title):
    print(f"\n=== {title}", flush=True)


def run_script(script, *arguments):
    """Prints a command of one of the scripts beside this file, and runs it in this process."""
    print(f"$ python training/{script} {shlex.join(arguments)}", flush=True)
    code = command_line.call(SCRIPTS / script, arguments)
    if code > command_line.EXIT_BY_SIGNAL:
        raise SystemExit(code)  # It has said why.
    if code:
        raise CommandError(
            f"{script} ended with exit code {code}; the same command continues from here"
        )


def write_dev_audio(corpus_dir, folder):
    """Speaks the first dev utterance of the corpus again.

    Returns:
        The `Path` of its WAV file, and its words.
    """
    corpus = load_corpus(corpus_dir)
    utterance = next(read_utterances(corpus, "dev"))
    source = SyntheticSource(**corpus.document["settings"])
    listed, _ = source.utterances()
    spoken = next(one for one in listed if one.id == utterance["id"])
    audio = folder / f"{utterance['id']}.wav"
    soundfile.write(audio, source.waveform(spoken), source.sample_rate)
    return audio, utterance["transcript"]


if __name__ == "__main__":
    command_line.run(main, FLAGS, __doc__, expected_errors=(CorpusError, FitError))
