"""Prints the phones or words that an exported model hears in audio files, with their times.

    python training/transcribe.py --model=exported speech.wav more.flac
    python training/transcribe.py --model=exported --transcript="one two three" --plot speech.wav
    sox long.wav -t wav - | python training/transcribe.py --model=exported --format=ctm -

For each file: a line with its name and its phones, then a line per phone with its beginning and
end in seconds. Where a transcript is given, the phone error rate too: phones inserted, deleted or
substituted in relation to the pronunciation in pocketsphinx's dictionary that fits best.

A model of train_ctc.py writes words in the place of phones: the best character of each frame, or
with --beam the likeliest text of those that are kept, and with --nbest the next likely ones and the
logarithms of their probabilities. With --lexicon or --grammar it hears known words only. A model of
Kaldi's pdf-ids writes words too, by the recipe's --graph. A transcript then gives the error rates
of words and characters, as jiwer defines them.

The phones are those of the best path (Viterbi) through the states: log-posteriors less log-priors,
durations and a phone bigram, which are those of the training alignments. More than a minute is
heard in overlapping parts, in memory that does not grow with the recording. Needs TensorFlow,
NumPy, soundfile and soxr, of keras_bnrnn only the file that reads audio, and no Keras, except to
look up a transcript's words and for a graph.
"""

import command_line  # isort: skip  First, for Ctrl-C while the others are imported.
import sys
from pathlib import Path
from typing import NamedTuple

import absl.logging
import numpy as np
import tensorflow as tf
from absl import flags

from command_line import CommandError
from recipes.heard import FORMATS, FRAME_SECONDS, Heard, draw
from recipes.phone_model import (
    DESCRIPTION_FILE,
    PHONE_COUNTS,
    PhoneModel,
    Search,
    comparison,
    is_speech,
    log_priors,
    phone_errors,
)
from recipes.scoring import ErrorRates, read_transcripts, text_rules, word_error_rates
from recipes.text_model import TextModel
from recipes.word_graph import INCOMPLETE, define_graph_flags, define_search_flags, search_options

recordings = command_line.module_by_file("data/speech/recordings.py")

SIXTEEN_BIT = recordings.SIXTEEN_BIT
SILENT_PEAK = 16.0  # of 32768
CLIPPED_SHARE = 0.001
WHOLE_SECONDS = 60  # Longer recordings are heard in parts.
PART_FRAMES, OVERLAP_FRAMES = 2000, 300
PARTS_AT_ONCE = 6
OF_PHONES = ("min_frames", "bigram_weight")
OF_STATES = ("prior_scale", "graph", "transition_model")
OF_TEXT = ("beam", "nbest", "grammar")
OF_GRAPHS = ("acoustic_scale", "graph_beam")


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
    "What was said, to print the error rate: the words themselves if there is one audio "
    "file, or a file with a line for each: its name or id, a tab or space, and the words. Words in "
    "brackets are noise and do not count.",
    FLAGS,
)
command_line.define_path(
    "lexicon",
    None,
    "Of a model of phones: extra pronunciations for --transcript, as in CMUdict. Of a model that "
    "writes text: hear these words only, one in each line; what follows a word in its line is how "
    "the model writes it.",
    FLAGS,
)
command_line.define_path(
    "grammar",
    None,
    "Of a model that writes text: what words may follow which, and their costs; an acceptor of "
    "words in OpenFst's text form. Without --lexicon, its words are written as they are.",
    FLAGS,
)
define_graph_flags(FLAGS)
define_search_flags(FLAGS)
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
flags.DEFINE_integer(
    "beam",
    0,
    "Of a model that writes text: how many beginnings of texts to keep; 0 takes the best character "
    "of each frame.",
    lower_bound=0,
    flag_values=FLAGS,
)
flags.DEFINE_integer(
    "nbest",
    1,
    "With --beam: how many texts to print, with the logarithms of their probabilities. Of "
    "recordings up to a minute.",
    lower_bound=1,
    flag_values=FLAGS,
)
flags.DEFINE_string(
    "channel",
    "mix",
    "Which channel of recordings with several: 1 or A, 2 or B, …; mix: their average.",
    flag_values=FLAGS,
)
flags.DEFINE_enum(
    "format",
    "text",
    list(FORMATS),
    "What to write: text; NIST's CTM, a line per phone or word; or Praat's TextGrid.",
    flag_values=FLAGS,
)
command_line.define_path(
    "output_dir",
    None,
    "Folder to write NAME.txt, NAME.ctm or NAME.TextGrid into, instead of standard output.",
    FLAGS,
)
flags.DEFINE(
    PlotParser(),
    "plot",
    None,
    "Draw waveform, features, posteriors and phones or words: `--plot` into NAME.png in the "
    "current folder, `--plot=PATH` into a PNG file, or a folder for several audio files. Up to a "
    "minute.",
    flag_values=FLAGS,
    boolean=True,
)


def main(argv):
    folder = Path(command_line.require_flag(FLAGS, "model"))
    paths = argv[1:]
    if not paths:
        raise CommandError("no audio file is named; give one or more after the flags")
    try:
        channel = recordings.parse_channel(FLAGS.channel)
    except ValueError as error:
        raise CommandError(f"--channel: {error}") from None
    description = read_description(folder)
    kind = of_text if "text" in description else of_phones
    scorer, new_search = kind(folder, description, paths)
    pictures = output_paths("plot", FLAGS.plot, paths, ".png")
    outputs = output_paths("output_dir", FLAGS.output_dir, paths, FORMATS[FLAGS.format].suffix)
    if FLAGS.format == "textgrid" and len(paths) > 1 and not FLAGS.output_dir:
        raise CommandError("--format=textgrid is a file for each recording; name --output_dir")
    # TensorFlow warns that the model cannot be trained any further.
    absl.logging.set_verbosity(absl.logging.ERROR)
    signatures = tf.saved_model.load(str(folder)).signatures
    failed = mixed = 0
    rows = zip(paths, names_of(paths), pictures, outputs, strict=True)
    for number, (path, name, picture, output) in enumerate(rows):
        try:
            heard = transcribe(path, channel, description, signatures, new_search())
        except recordings.AudioError as error:
            if len(paths) == 1:
                raise CommandError(str(error)) from None
            print(f"error: {error}", file=sys.stderr, flush=True)
            failed += 1
            continue
        mixed += heard.mixed
        text = FORMATS[FLAGS.format].write(path if FLAGS.format == "text" else name, heard, channel)
        if output is None:
            print(text, end="", flush=True)
        else:
            output.write_text(text, encoding="utf-8")
            print(f"{path}: {output}", flush=True)
        # What other programs are to read stays theirs.
        stream = sys.stdout if output or FLAGS.format == "text" else sys.stderr
        if FLAGS.nbest > 1:
            print_answers(path, heard, stream)
        if scorer is not None:
            print(f"  {scorer.add(number, heard.segments)}", file=stream, flush=True)
        if picture and heard.segments:
            if heard.scores is None:
                seconds = f"{heard.seconds:.0f} s, more than {WHOLE_SECONDS} s"
                print(f"warning: {path} is not drawn: {seconds}", file=sys.stderr)
                continue
            draw(picture, Path(path).name, description, heard)
            print(f"  picture: {picture}")
    if len(paths) > 1 and scorer is not None and scorer.count:
        print(f"all: {scorer.total()}")
    if mixed:
        print(
            f"note: {mixed} recordings have several channels, which were averaged; --channel "
            "chooses one",
            file=sys.stderr,
        )
    if failed:
        raise CommandError(f"{failed} of {len(paths)} files could not be transcribed")


def of_phones(folder, description, paths):
    """The `ErrorRates` where transcripts are given, and a function to a new search for phones."""
    refuse(OF_TEXT, "a model that writes text (train_ctc.py)")
    if FLAGS.graph is not None:
        return of_states(description, paths)
    refuse(OF_GRAPHS, "words by a graph (--graph)")
    try:
        phone_model = PhoneModel(
            description["states"],
            description["phone_counts"],
            FLAGS.min_frames,
            FLAGS.prior_scale,
            FLAGS.bigram_weight,
        )
    except (ValueError, KeyError, TypeError):
        raise CommandError(
            f"{folder / DESCRIPTION_FILE} counts other phones than the model's; export it again"
        ) from None
    if FLAGS.transcript is None:
        return None, lambda: Search(phone_model)
    references, compared_as = look_up(read_transcripts(FLAGS.transcript, paths), phone_model.phones)

    def compare(number, segments):
        spoken = [compared_as(one.phone) for one in segments if is_speech(one.phone)]
        return {"phone": phone_errors(references[number], spoken)}

    return ErrorRates(compare), lambda: Search(phone_model)


def of_text(folder, description, paths):
    """The same for a model that writes text."""
    refuse((*OF_PHONES, *OF_STATES), "a model of phones (train_speech.py)")
    text_model = TextModel(description["states"], description["reduction"], FLAGS.beam, FLAGS.nbest)
    scorer = word_error_rates(
        FLAGS.transcript, paths, description["text"], set(text_model.characters)
    )
    if FLAGS.lexicon is None and FLAGS.grammar is None:
        refuse(OF_GRAPHS, "words by a graph (--lexicon, --grammar)")
        if FLAGS.nbest > max(FLAGS.beam, 1):
            raise CommandError(f"--nbest={FLAGS.nbest} needs a --beam of as many or more")
        return scorer, text_model.search
    refuse(("beam", "nbest"), "texts of any words; --lexicon and --grammar give one text")
    from recipes.spelled_words import word_graph

    graph = word_graph(
        text_model.characters,
        text_rules(description["text"]).normalized,
        FLAGS.lexicon,
        FLAGS.grammar,
        reduction=text_model.reduction,
        **search_options(FLAGS, 1.0),
    )
    return scorer, graph.search


def of_states(description, paths):
    """The same for a model of Kaldi's pdf-ids and a graph."""
    refuse((*OF_PHONES, "lexicon"), "phones, without --graph")
    from recipes.kaldi_graph import KALDI_SCALE, kaldi_graph

    graph = kaldi_graph(
        FLAGS.graph,
        FLAGS.transition_model,
        description["states"],
        log_priors=FLAGS.prior_scale * log_priors(description["phone_counts"]["state_frames"]),
        **search_options(FLAGS, KALDI_SCALE),
    )
    return word_error_rates(FLAGS.transcript, paths), graph.search


def refuse(names, whose):
    """A `CommandError` where flags are given that have no meaning."""
    for name in names:
        if FLAGS[name].present:
            raise CommandError(f"--{name} is for {whose}; here it would do nothing")


def print_answers(path, heard, stream):
    """A line for each of several texts."""
    if heard.answers is None:
        print(
            f"warning: {path} has one text only: more than {WHOLE_SECONDS} s are heard in parts",
            file=sys.stderr,
        )
        return
    for text, score in heard.answers:
        print(f"  {score:10.3f}  {text}", file=stream)


def transcribe(path, channel, description, signatures, search):
    """What is `Heard` in an audio file, by a new search."""
    here = path == recordings.STANDARD_INPUT or Path(path).exists()
    if not here and not recordings.URL.match(path):
        raise recordings.AudioError(f"{path}: no such file")
    rate, level = description["sample_rate"], Level()
    reduction = description.get("reduction", 1)
    with recordings.as_file(path) as file:
        header = recordings.read_header(file)
        warn_of_bandwidth(path, header.samplerate, description)
        blocks = recordings.read_blocks(file, rate, channel, watch=level.add)
        parts = parts_of(blocks, description["features"], reduction)
        start, whole, samples = 0.0, (None, None, None), 0
        for some in batches_of(parts):
            waveforms = [part.waveform for part in some]
            features, scores, middle = hear(signatures, waveforms, reduction)
            for part, row in zip(some, scores, strict=True):
                own = None if part.frames is None else part.frames // reduction
                search.extend(row[part.skip // reduction :][:own])
                samples += part.new_samples
            if some[0].first:
                start = max(middle - 0.5 * FRAME_SECONDS, 0.0)
                if some[0].last:
                    whole = waveforms[0], features[0], scores[0]
    level.warn(path)
    segments, words = search.finish(), not isinstance(search, Search)
    if not segments:
        # A text may be empty.
        short = "too short for a single frame of 25 ms"
        empty = samples >= rate * 0.025 and words
        print(f"warning: {path} is {'without words' if empty else short}", file=sys.stderr)
    if not getattr(search, "complete", True):
        print(f"warning: {path} {INCOMPLETE}", file=sys.stderr)
    mixed = header.channels > 1 and channel is None
    answers = getattr(search, "answers", None)
    return Heard(segments, start, samples / rate, mixed, *whole, answers, words)


class Part(NamedTuple):
    """A part of a recording with the frames around it.

    Attributes:
        waveform: `[samples]`.
        skip: frames of it that belong to the part before.
        frames: that are the part's own; `None`: all that follow.
        new_samples: that were in no part before.
        first, last: whether it begins or ends the recording.
    """

    waveform: np.ndarray
    skip: int
    frames: int | None
    new_samples: int
    first: bool
    last: bool


def parts_of(blocks, front_end, reduction=1):
    """Cuts a recording into `Part`s; one of up to a minute is a single one.

    Args:
        blocks: its samples, in blocks.
        front_end: the set-up of the features: `sample_rate`.
        reduction: parts begin and end with a multiple of so many frames.
    """
    part_frames, overlap = (n // reduction * reduction for n in (PART_FRAMES, OVERLAP_FRAMES))
    shift = int(front_end["sample_rate"] * FRAME_SECONDS)
    whole = WHOLE_SECONDS * front_end["sample_rate"]
    # Frames reach beyond their shift; what they lack at a part's end is in the overlap.
    length = (part_frames + overlap) * shift
    pending, skip, known = np.zeros(0, np.float32), 0, 0
    divided = False
    for block in blocks:
        pending = np.concatenate([pending, block])
        divided = divided or len(pending) > whole
        while divided and len(pending) > length + skip * shift:
            part = pending[: length + skip * shift]
            yield Part(part, skip, part_frames, len(part) - known, skip == 0, False)
            done = part_frames + skip - overlap
            pending, skip = pending[done * shift :], overlap
            known = len(part) - done * shift
    yield Part(pending, skip, None, len(pending) - known, skip == 0, True)


def batches_of(parts):
    """Lists of a few `Part`s, so that the model hears them side by side."""
    some = []
    for part in parts:
        some.append(part)
        if len(some) == PARTS_AT_ONCE:
            yield some
            some = []
    if some:
        yield some


def read_description(folder):
    """The SavedModel's `speech_model.json`; a `CommandError` says what is missing."""
    if not (folder / "saved_model.pb").is_file():
        raise CommandError(f"--model={folder} is no SavedModel; training/export.py writes one")
    if not (folder / DESCRIPTION_FILE).is_file():
        raise CommandError(
            f"{folder / DESCRIPTION_FILE} is missing: no acoustic model that export.py wrote"
        )
    path = folder / DESCRIPTION_FILE
    description = command_line.read_json(path, {"signatures": [str], "states": [{"name": str}]})
    rules = {"keep_case": bool, "keep_punctuation": bool}
    text = {"text": rules, "reduction": int}
    command_line.read_json(path, text if "text" in description else {"phone_counts": PHONE_COUNTS})
    if "serve_waveform" not in description["signatures"]:
        raise CommandError(
            f"--model={folder} takes features and no audio: its training corpus came with features "
            "that were computed elsewhere"
        )
    number = command_line.files.NUMBER
    form = {"sample_rate": number, "features": {"sample_rate": number}}
    return command_line.read_json(folder / DESCRIPTION_FILE, form)


class Level:
    """How loud a recording is, block by block."""

    def __init__(self):
        self._peak, self._clipped, self._samples = 0.0, 0, 0

    def add(self, samples):
        """Takes `[samples]` in -1…1 into account."""
        level = SIXTEEN_BIT * np.abs(samples)
        self._peak = max(self._peak, level.max(initial=0.0))
        self._clipped += np.count_nonzero(level >= SIXTEEN_BIT - 1)
        self._samples += len(level)

    def warn(self, path):
        """Says on stderr when it looks like no good recording."""
        clipped = self._clipped / max(self._samples, 1)
        if self._peak < SILENT_PEAK:
            print(f"warning: {path} is silent", file=sys.stderr)
        elif clipped > CLIPPED_SHARE:
            print(f"warning: {path} is clipped: {clipped:.1%} at full scale", file=sys.stderr)


def warn_of_bandwidth(path, file_rate, description):
    """Says on stderr when a recording's bandwidth is none of those in training."""
    rate = description["sample_rate"]
    # Models of before do not say what they were trained on.
    rates = (description.get("recordings") or {}).get("sample_rates", {})
    trained = {min(int(one), rate) // 2 for one in rates}
    heard = min(file_rate, rate) // 2
    if trained and heard not in trained:
        known = " or ".join(map(str, sorted(trained)))
        print(
            f"warning: {path} has frequencies up to {heard} Hz, the model was trained on speech "
            f"up to {known} Hz: expect more errors",
            file=sys.stderr,
        )


def look_up(transcripts, phones):
    """Pronunciations of each word of each transcript, and how `phones` are compared with them."""
    from keras_bnrnn.data.errors import CorpusError, UtteranceError
    from keras_bnrnn.data.speech.alignment import Aligner, model_phones

    try:
        aligner = Aligner(FLAGS.lexicon)
        found = [
            [aligner.pronunciations(word) for word in aligner.words(text)] for text in transcripts
        ]
        compared_as, rule = comparison(phones, model_phones())
    except (CorpusError, UtteranceError, ValueError) as error:
        raise CommandError(f"--transcript: {error}") from None
    if not all(found):
        raise CommandError("--transcript: a transcript has no words")
    if rule:
        print(f"note: {rule}", file=sys.stderr)
    known = {compared_as(phone) for phone in phones}
    spoken = {phone for words in found for variants in words for one in variants for phone in one}
    if spoken - known:
        print(
            f"note: no training utterance has {', '.join(sorted(spoken - known))}; each of them "
            "in a transcript is an error",
            file=sys.stderr,
        )
    return found, compared_as


def hear(signatures, waveforms, reduction=1):
    """Hears several waveforms side by side.

    Args:
        signatures: the SavedModel's.
        waveforms: `[samples]` each.
        reduction: how many frames of the features the model joins to one.

    Returns:
        For each of them features `[time, dimension]`, and log-posteriors `[time, states]`; and the
        middle of frame 0 in seconds, 0 where there is none.
    """
    lengths = [len(waveform) for waveform in waveforms]
    rows = np.zeros((len(waveforms), max(lengths)), np.float32)
    for row, waveform in zip(rows, waveforms, strict=True):
        row[: len(waveform)] = waveform
    heard = signatures["features"](waveform=tf.constant(rows), lengths=tf.constant(lengths))
    scores = signatures["serve"](features=heard["features"], lengths=heard["frames"])
    frames = heard["frames"].numpy()
    joined = (frames + reduction - 1) // reduction
    each = [
        [row[:count] for row, count in zip(values.numpy(), counts, strict=True)]
        for values, counts in ((heard["features"], frames), (scores["log_posteriors"], joined))
    ]
    times = np.ravel(heard["times"])  # Models of before have one row for all.
    return *each, float(times[0]) if len(times) else 0.0


def name_of(path):
    """What files made of a recording are called."""
    return "stdin" if path == recordings.STANDARD_INPUT else Path(path).stem


def names_of(paths):
    """What each recording is called: its file's name, or its path where names repeat."""
    names = list(map(name_of, paths))
    return [
        str(Path(path).with_suffix("")) if names.count(name) > 1 else name
        for path, name in zip(paths, names, strict=True)
    ]


def output_paths(flag, folder, paths, suffix):
    """The file to write for each audio file, or `None` for each."""
    if folder is None:
        return [None] * len(paths)
    folder = Path(folder)
    if flag == "plot" and folder.suffix.lower() == suffix:
        if len(paths) > 1:
            raise CommandError(
                f"--plot={folder} is one file for {len(paths)} pictures; name a folder"
            )
        folder.parent.mkdir(parents=True, exist_ok=True)
        return [folder]
    outputs = [folder / f"{name_of(path)}{suffix}" for path in paths]
    for number, output in enumerate(outputs):
        if output in outputs[:number]:
            raise CommandError(
                f"--{flag}={folder}: {paths[outputs.index(output)]} and {paths[number]} would "
                f"both be {'drawn' if flag == 'plot' else 'written'} into {output}; call twice, "
                "with a folder for each"
            )
    folder.mkdir(parents=True, exist_ok=True)
    return outputs


if __name__ == "__main__":
    command_line.run(main, FLAGS, __doc__, positional=True)
