"""Prints the phones that an exported acoustic model hears in audio files.

    python training/transcribe.py --model=exported speech.wav more.flac

One line per file: its name and its phones. Needs TensorFlow, NumPy, soundfile and soxr, and neither
keras_bnrnn nor Keras: whoever has the SavedModel can do the same.

The posteriors of a phone's states are added up frame by frame, and the phone sequence with the
highest sum of log-posteriors is taken in which every phone lasts `--min_frames` frames or more.
"""

import itertools
import json
from pathlib import Path

import absl.logging
import numpy as np
import soundfile
import soxr
import tensorflow as tf
from absl import flags

import command_line
from command_line import CommandError

DESCRIPTION_FILE = Path("assets") / "speech_model.json"
SIXTEEN_BIT = 32768.0

FLAGS = flags.FlagValues()
flags.DEFINE_string("model", None, "SavedModel that export.py wrote.", flag_values=FLAGS)
flags.DEFINE_integer(
    "min_frames",
    3,
    "Shortest duration of a phone, in frames of 10 ms.",
    lower_bound=1,
    flag_values=FLAGS,
)


def main(argv):
    folder = Path(command_line.require_flag(FLAGS, "model"))
    if len(argv) < 2:
        raise CommandError("no audio file is named; give one or more after the flags")
    description = read_description(folder)
    waveforms = [read_waveform(path, description["sample_rate"]) for path in argv[1:]]
    # TensorFlow warns that the model cannot be trained any further.
    absl.logging.set_verbosity(absl.logging.ERROR)
    model = tf.saved_model.load(str(folder))
    for path, waveform in zip(argv[1:], waveforms, strict=True):
        scores = log_posteriors(model, waveform)
        print(path, *decode_phones(scores, description["states"], FLAGS.min_frames))


def read_description(folder):
    """The SavedModel's `speech_model.json`; a `CommandError` says what is missing."""
    if not (folder / "saved_model.pb").is_file():
        raise CommandError(f"--model={folder} is no SavedModel; training/export.py writes one")
    if not (folder / DESCRIPTION_FILE).is_file():
        raise CommandError(f"{folder / DESCRIPTION_FILE} is missing: no SavedModel of export.py")
    description = json.loads((folder / DESCRIPTION_FILE).read_text())
    if "serve_waveform" not in description["signatures"]:
        raise CommandError(
            f"--model={folder} takes features and no audio: its training corpus came with features "
            "that were computed elsewhere"
        )
    return description


def read_waveform(path, sample_rate):
    """Reads audio as one channel at `sample_rate`: float32 `[samples]` in -1…1."""
    if not Path(path).is_file():
        raise CommandError(f"{path}: no such file")
    try:
        samples, rate = soundfile.read(path, dtype="float64", always_2d=True)
    except soundfile.SoundFileError as error:
        raise CommandError(f"{path} cannot be read as audio: {error}") from None
    if not len(samples):
        raise CommandError(f"{path} holds no samples")
    samples = samples.mean(axis=1)
    if rate != sample_rate:
        samples = soxr.resample(samples, rate, sample_rate)
    # Training saw 16-bit samples: resampling alone would leave an emptier silence than any of it.
    samples = np.clip(np.rint(samples * SIXTEEN_BIT), -SIXTEEN_BIT, SIXTEEN_BIT - 1)
    return (samples / SIXTEEN_BIT).astype(np.float32)


def log_posteriors(model, waveform):
    """Log-posteriors `[time, states]` of a waveform `[samples]`."""
    result = model.signatures["serve_waveform"](
        waveform=tf.constant(waveform[np.newaxis]), lengths=tf.constant([len(waveform)])
    )
    return result["log_posteriors"].numpy()[0, : int(result["frames"][0])]


def decode_phones(scores, states, min_frames):
    """The best phone sequence in which every phone lasts `min_frames` or more.

    Args:
        scores: log-posteriors `[time, states]`.
        states: what each state is, as in `corpus.json`; a state without a phone stands for itself.
        min_frames: shortest duration of a phone. An utterance shorter than that is one phone.

    Returns:
        A list of names, no two neighbours alike.
    """
    names = [state.get("phone", state["name"]) for state in states]
    phones = sorted(set(names))
    per_phone = np.stack(
        [
            np.logaddexp.reduce(scores[:, [name == phone for name in names]], axis=1)
            for phone in phones
        ],
        axis=1,
    )
    segments = best_segments(per_phone, min_frames)
    return [name for name, _ in itertools.groupby(phones[phone] for phone, _, _ in segments)]


def best_segments(scores, min_frames):
    """Divides frames into segments of one class each, of `min_frames` or more, scoring highest.

    With C_t = scores summed over the frames before t, the best score up to t is

        best_t = max_k ( C_t(k) + max_{s <= t - min_frames} ( best_s - C_s(k) ) )

    Args:
        scores: `[time, classes]`, added over frames.
        min_frames: shortest segment; all of `scores` if that is shorter still.

    Returns:
        A list of `(class, first frame, frame after the last)`.
    """
    time, classes = scores.shape
    if not time:
        return []
    min_frames = min(min_frames, time)
    sums = np.concatenate([np.zeros((1, classes)), np.cumsum(scores, axis=0, dtype=np.float64)])
    best = np.full(time + 1, -np.inf)
    best[0] = 0.0
    entered = np.full(classes, -np.inf)  # the inner maximum, and the s it was found at
    entry = np.zeros(classes, int)
    back = [None] * (time + 1)
    for t in range(min_frames, time + 1):
        s = t - min_frames
        better = best[s] - sums[s] > entered
        entered = np.where(better, best[s] - sums[s], entered)
        entry = np.where(better, s, entry)
        k = int(np.argmax(sums[t] + entered))
        best[t] = sums[t, k] + entered[k]
        back[t] = (k, int(entry[k]), t)
    segments = []
    t = time
    while t:
        segments.append(back[t])
        t = back[t][1]
    return segments[::-1]


def edit_distance(reference, hypothesis):
    """Fewest insertions, deletions and substitutions that turn one sequence into the other."""
    distances = list(range(len(hypothesis) + 1))
    for row, expected in enumerate(reference, 1):
        diagonal, distances[0] = distances[0], row
        for column, found in enumerate(hypothesis, 1):
            substituted = diagonal + (expected != found)
            diagonal = distances[column]
            distances[column] = min(substituted, diagonal + 1, distances[column - 1] + 1)
    return distances[-1]


if __name__ == "__main__":
    command_line.run(main, FLAGS, __doc__)
