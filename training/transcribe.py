"""Prints the phones that an exported acoustic model hears in audio files, with their times.

    python training/transcribe.py --model=exported speech.wav more.flac
    python training/transcribe.py --model=exported --transcript="one two three" --plot speech.wav

For each file: a line with its name and its phones, then a line per phone with its beginning and
end in seconds. Where a transcript is given, the phone error rate too: phones inserted, deleted or
substituted in relation to the pronunciation in pocketsphinx's dictionary that fits best.

The phones are those of the best path (Viterbi) through the states: log-posteriors less log-priors,
durations and a phone bigram, which are those of the training alignments. Needs TensorFlow, NumPy,
soundfile and soxr, and neither keras_bnrnn nor Keras, except to look up a transcript's words.
"""

import command_line  # isort: skip  First, for Ctrl-C while the others are imported.
import json
import re
import sys
from pathlib import Path

import absl.logging
import numpy as np
import soundfile
import soxr
import tensorflow as tf
from absl import flags

from command_line import CommandError
from recipes.phone_model import DESCRIPTION_FILE, PhoneModel, phone_errors

SIXTEEN_BIT = 32768.0
SILENT_PEAK = 16.0  # of 32768
CLIPPED_SHARE = 0.001
# As in keras_bnrnn.data.speech, which is not at hand where only the SavedModel is.
FRAME_SECONDS = 0.01
LENGTHS = re.compile(
    r"^ *(?:data|SSND|Data Size|Riff size|riff) *: (\d+) \(should be (\d+)\)", re.MULTILINE
)
UNKNOWN_LENGTH = 0x7FFF0000  # From here on, what programs put that write to a pipe.


class PlotParser(command_line.PathParser):
    """`--plot` alone means the current folder; `--plot=PATH` a file or a folder."""

    def parse(self, argument):
        if argument in ("true", "false"):
            return "." if argument == "true" else None
        return super().parse(argument)


FLAGS = flags.FlagValues()
command_line.define_path("model", None, "SavedModel that export.py wrote.", FLAGS)
command_line.define_path(
    "transcript",
    None,
    "What was said, to print the phone error rate: the words themselves if there is one audio "
    "file, or a file with a line for each: its name or id, a tab or space, and the words.",
    FLAGS,
)
command_line.define_path(
    "lexicon", None, "Extra pronunciations for --transcript, as in CMUdict.", FLAGS
)
flags.DEFINE_integer(
    "min_frames",
    3,
    "Shortest duration of a phone, in frames of 10 ms.",
    lower_bound=1,
    flag_values=FLAGS,
)
flags.DEFINE_float(
    "prior_scale",
    1.0,
    "How much of the states' log-priors to take off their log-posteriors.",
    lower_bound=0.0,
    flag_values=FLAGS,
)
flags.DEFINE_float(
    "bigram_weight",
    2.0,
    "Factor of the phone bigram's log-probabilities.",
    lower_bound=0.0,
    flag_values=FLAGS,
)
flags.DEFINE(
    PlotParser(),
    "plot",
    None,
    "Draw waveform, features, posteriors and phones: `--plot` into NAME.png in the current folder, "
    "`--plot=PATH` into a PNG file, or a folder for several audio files.",
    flag_values=FLAGS,
    boolean=True,
)


def main(argv):
    folder = Path(command_line.require_flag(FLAGS, "model"))
    paths = argv[1:]
    if not paths:
        raise CommandError("no audio file is named; give one or more after the flags")
    description = read_description(folder)
    waveforms = [read_waveform(path, description["sample_rate"]) for path in paths]
    references = [None] * len(paths)
    if FLAGS.transcript is not None:
        references = look_up(read_transcripts(FLAGS.transcript, paths))
    pictures = picture_paths(FLAGS.plot, paths)
    phone_model = PhoneModel(
        description["states"],
        description["phone_counts"],
        FLAGS.min_frames,
        FLAGS.prior_scale,
        FLAGS.bigram_weight,
    )
    # TensorFlow warns that the model cannot be trained any further.
    absl.logging.set_verbosity(absl.logging.ERROR)
    signatures = tf.saved_model.load(str(folder)).signatures
    errors = expected = 0
    for path, waveform, reference, picture in zip(
        paths, waveforms, references, pictures, strict=True
    ):
        features, scores, start = hear(signatures, waveform)
        segments = phone_model.decode(scores)
        if not segments:
            print(f"warning: {path} is too short for a single frame of 25 ms", file=sys.stderr)
        print(f"{path}: {' '.join(segment.phone for segment in segments)}")
        for segment in segments:
            print(
                f"  {start + FRAME_SECONDS * segment.start:8.2f} "
                f"{start + FRAME_SECONDS * segment.end:8.2f}  {segment.phone}"
            )
        if reference is not None:
            spoken = [segment.phone for segment in segments if is_speech(segment.phone)]
            wrong, length = phone_errors(reference, spoken)
            print(f"  phone error rate {wrong / length:.1%} ({wrong} of {length})", flush=True)
            errors, expected = errors + wrong, expected + length
        if picture and segments:
            draw(picture, Path(path).name, waveform, description, features, scores, start, segments)
            print(f"  picture: {picture}")
    if len(paths) > 1 and expected:
        print(f"all: phone error rate {errors / expected:.1%} ({errors} of {expected})")


def read_description(folder):
    """The SavedModel's `speech_model.json`; a `CommandError` says what is missing."""
    if not (folder / "saved_model.pb").is_file():
        raise CommandError(f"--model={folder} is no SavedModel; training/export.py writes one")
    if not (folder / DESCRIPTION_FILE).is_file():
        raise CommandError(
            f"{folder / DESCRIPTION_FILE} is missing: no acoustic model that export.py wrote"
        )
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
        told = soundfile.info(path).extra_info
        samples, rate = soundfile.read(path, dtype="float64", always_2d=True)
    except soundfile.SoundFileError as error:
        raise CommandError(f"{path} cannot be read as audio: {error}") from None
    if not len(samples):
        raise CommandError(f"{path} holds no samples")
    missing = bytes_cut_off(told)
    if missing:
        raise CommandError(f"{path} was cut off: {missing} bytes are missing at its end")
    if not np.isfinite(samples).all():
        raise CommandError(f"{path} holds samples that are not finite numbers")
    samples = samples.mean(axis=1)
    warn_of_level(path, SIXTEEN_BIT * np.abs(samples))
    if rate != sample_rate:
        samples = soxr.resample(samples, rate, sample_rate)
    # Training saw 16-bit samples: resampling alone would leave an emptier silence than any of it.
    samples = np.clip(np.rint(samples * SIXTEEN_BIT), -SIXTEEN_BIT, SIXTEEN_BIT - 1)
    return (samples / SIXTEEN_BIT).astype(np.float32)


def bytes_cut_off(account):
    """How many bytes of samples a file lacks, by libsndfile's `account` of its header."""
    for told, there in LENGTHS.findall(account):
        if int(there) < int(told) < UNKNOWN_LENGTH:
            return int(told) - int(there)
    return 0


def warn_of_level(path, level):
    """Says on stderr when the samples' absolute values (16-bit) look like no good recording."""
    clipped = np.mean(level >= SIXTEEN_BIT - 1)
    if level.max() < SILENT_PEAK:
        print(f"warning: {path} is silent", file=sys.stderr)
    elif clipped > CLIPPED_SHARE:
        print(f"warning: {path} is clipped: {clipped:.1%} at full scale", file=sys.stderr)


def read_transcripts(transcript, paths):
    """The words of each audio file, from `--transcript`."""
    try:
        is_file = Path(transcript).is_file()
    except OSError:  # Words longer than a file's name can be.
        is_file = False
    if not is_file:
        if len(paths) > 1:
            raise CommandError(
                f"--transcript={transcript} is no file, and words alone can be given for one audio "
                f"file only, not for {len(paths)}"
            )
        return [transcript]
    try:
        lines = Path(transcript).read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise CommandError(f"--transcript={transcript} is not UTF-8: {error}") from None
    words = {}
    for line in lines:
        name, _, text = line.partition("\t" if "\t" in line else " ")
        for key in {name, Path(name).name, Path(name).stem}:
            words.setdefault(key, {})[name] = text
    return [words_of_file(path, words, transcript) for path in paths]


def words_of_file(path, words, transcript):
    """A file's words, from `{path, name or stem: {path of a line: its words}}`."""
    for key in (path, Path(path).name, Path(path).stem):
        lines = words.get(key, {})
        if key in lines:
            return lines[key]
        if len(set(lines.values())) > 1:
            raise CommandError(
                f"--transcript={transcript} has several lines for {path}: {', '.join(lines)}; give "
                "the file as one of them does"
            )
        if lines:
            return next(iter(lines.values()))
    raise CommandError(f"--transcript={transcript} has no line for {path}")


def look_up(transcripts):
    """For each transcript, for each of its words, its pronunciations without silences."""
    from keras_bnrnn.data.errors import CorpusError, UtteranceError
    from keras_bnrnn.data.speech.alignment import Aligner, normalize_transcript

    try:
        aligner = Aligner(FLAGS.lexicon)
        found = [
            [aligner.pronunciations(word) for word in normalize_transcript(text).split()]
            for text in transcripts
        ]
    except (CorpusError, UtteranceError) as error:
        raise CommandError(f"--transcript: {error}") from None
    if not all(found):
        raise CommandError("--transcript: a transcript has no words")
    return found


def is_speech(phone):
    """Whether a phone is one of a word's, no silence (SIL) or noise (+NSN+)."""
    return phone != "SIL" and not phone.startswith("+")


def hear(signatures, waveform):
    """Features `[time, dimension]`, log-posteriors `[time, states]` and when frame 0 begins."""
    waveform, length = tf.constant(waveform[np.newaxis]), tf.constant([len(waveform)])
    heard = signatures["features"](waveform=waveform, lengths=length)
    scores = signatures["serve"](features=heard["features"], lengths=heard["frames"])
    middle = float(heard["times"][0]) if len(heard["times"]) else 0.0
    start = max(middle - 0.5 * FRAME_SECONDS, 0.0)
    return heard["features"].numpy()[0], scores["log_posteriors"].numpy()[0], start


def picture_paths(plot, paths):
    """The PNG file of each audio file, or `None` for each."""
    if plot is None:
        return [None] * len(paths)
    plot = Path(plot)
    if plot.suffix.lower() != ".png":
        pictures = [plot / f"{Path(path).stem}.png" for path in paths]
        for number, picture in enumerate(pictures):
            if picture in pictures[:number]:
                raise CommandError(
                    f"--plot={plot}: {paths[pictures.index(picture)]} and {paths[number]} would "
                    f"both be drawn into {picture}; call twice, with a folder for each"
                )
        plot.mkdir(parents=True, exist_ok=True)
        return pictures
    if len(paths) > 1:
        raise CommandError(f"--plot={plot} is one file for {len(paths)} pictures; name a folder")
    plot.parent.mkdir(parents=True, exist_ok=True)
    return [plot]


def draw(picture, title, waveform, description, features, scores, start, segments):
    """Waveform, features, phones' posteriors, and the phones over all three."""
    from matplotlib.figure import Figure

    end = start + FRAME_SECONDS * len(scores)
    channels = description["features"]["num_mel_bins"] + description["features"]["use_energy"]
    phones = [state.get("phone", state["name"]) for state in description["states"]]
    shown = list(dict.fromkeys(segment.phone for segment in segments))
    per_phone = np.stack(
        [np.exp(scores[:, [phone == one for phone in phones]]).sum(axis=1) for one in shown]
    )
    figure = Figure(figsize=(12, 7), layout="constrained")
    wave, log_mel, posteriors = figure.subplots(3, 1, sharex=True, height_ratios=(1, 2, 2.5))
    wave.plot(np.arange(len(waveform)) / description["sample_rate"], waveform, linewidth=0.4)
    wave.set_ylabel("waveform")
    wave.set_title(title, pad=18)
    image = {"origin": "lower", "aspect": "auto"}
    log_mel.imshow(features[:, :channels].T, extent=(start, end, 0, channels), **image)
    log_mel.set_ylabel("energy and\nlog-mel channels")
    picture_of_phones = posteriors.imshow(
        per_phone, extent=(start, end, -0.5, len(shown) - 0.5), vmin=0, vmax=1, **image
    )
    posteriors.set_yticks(range(len(shown)), shown, fontsize=7)
    posteriors.set(xlabel="time [s]", ylabel="posteriors", xlim=(start, end))
    figure.colorbar(picture_of_phones, ax=posteriors, pad=0.01)
    top = wave.get_ylim()[1]
    for phone, first, last in segments:
        for axis in (wave, log_mel, posteriors):
            colour = "black" if axis is wave else "white"
            axis.axvline(start + FRAME_SECONDS * first, color=colour, linewidth=0.5)
        middle = start + FRAME_SECONDS * (first + last) / 2
        wave.text(middle, top, phone, ha="center", va="bottom", fontsize=7)
    figure.savefig(picture, dpi=120)


if __name__ == "__main__":
    command_line.run(main, FLAGS, __doc__, positional=True)
