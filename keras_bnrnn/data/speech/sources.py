"""Where speech comes from: each source lists utterances and turns one into labelled frames.

A source is small and picklable. `utterances()` runs once, in the main process, and
`prepare_all(utterances)` in any worker; what is costly to make (an aligner, a filter bank) is made
on first use there.
"""

import collections
import functools
import math
import os
import stat
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import tensorflow as tf

from keras_bnrnn.data.encodings import utf_8
from keras_bnrnn.data.errors import CorpusError, UtteranceError, attempt
from keras_bnrnn.data.speech import synthesis
from keras_bnrnn.data.speech.alignment import (
    LABEL_KINDS,
    SAMPLE_RATE,
    Aligner,
    State,
    match_lengths,
    read_lexicon,
    require_sound,
)
from keras_bnrnn.data.speech.audio import (
    AUDIO_SUFFIXES,
    Take,
    audio_header,
    read_audio,
    read_audio_files,
    resample,
    to_sixteen_bit,
)
from keras_bnrnn.data.speech.corpus import SPLITS
from keras_bnrnn.data.speech.features import LogMelFilterBank
from keras_bnrnn.data.speech.folders import and_unread, only_one
from keras_bnrnn.data.speech.recordings import LOWEST_RATE, STANDARD_INPUT, URL, parse_channel
from keras_bnrnn.data.speech.splits import (
    assign_splits,
    find_chosen_files,
    named_folders,
    split_of_folders,
)
from keras_bnrnn.data.speech.textgrid import frame_labels, read_textgrid
from keras_bnrnn.data.speech.transcripts import CHARACTERS

MANIFEST_REQUIRED = ["audio_path", "transcript"]
MANIFEST_COLUMNS = [*MANIFEST_REQUIRED, "id", "speaker", "split", "channel", "start", "end"]
# What Common Voice calls them; its other columns are of no use here.
COMMON_VOICE = {"client_id": "speaker", "path": "audio_path", "sentence": "transcript"}
COMMON_VOICE_AUDIO = "clips"
GENDERS = {"female": "f", "male": "m"}  # By the part before an underscore.
TEXTGRID_TOLERANCE = 0.02  # seconds: two frames
# The 460 spoken digits in telephone quality score -1.14 to -3.46. Less than -3.5, or no alignment,
# have 75 % of their transcripts without the second half of the words, 84 % of other recordings'
# transcripts and 84 % of reversed ones. Synthetic voices score down to -5.5.
MIN_ALIGNMENT_SCORE = -3.5


@dataclass(frozen=True)
class Utterance:
    """What is known of an utterance before it is read.

    Attributes:
        id: unique in its split.
        speaker: who speaks; empty if unknown.
        split: `"train"`, `"dev"` or `"test"`.
        transcript: what is said; empty where labels come from elsewhere.
        location: what the source needs to read it: a path, a prompt, an archive's entry.
        gender: `"f"` or `"m"`; empty if unknown.
    """

    id: str
    speaker: str
    split: str
    transcript: str
    location: object
    gender: str = ""


@dataclass(frozen=True)
class Failure:
    """An utterance that is left out, and why."""

    id: str
    reason: str


@dataclass(frozen=True)
class LabelledFrames:
    """What is prepared of an utterance.

    Attributes:
        features: `[T, D]`, float32.
        states: a `State` for each frame, or `None` if nothing says which.
        alignment_score: of an `Alignment`; `None` where the labels come from elsewhere.
        file_rate: of the recording, in Hz; `None` where there is none.
        mixed: whether several channels were averaged.
    """

    features: np.ndarray
    states: list | None
    alignment_score: float | None = None
    file_rate: int | None = None
    mixed: bool = False


class Source:
    """Base of all sources."""

    def prepare(self, utterance):
        """`LabelledFrames` of an utterance; raises UtteranceError."""
        raise NotImplementedError

    def prepare_all(self, utterances):
        """Yields the `LabelledFrames` of each utterance, or its UtteranceError."""
        for utterance in utterances:
            yield attempt(self.prepare, utterance)

    def file(self, utterance):
        """The file that an utterance is in; empty if there is none."""
        return ""

    def files(self, utterance):
        """Paths of all files that an utterance's frames and labels are read from."""
        return [self.file(utterance)]

    def phone_names(self):
        """Names of the labels where neither settings nor utterances tell them; else `None`."""
        return None

    def described(self, state):
        """What `corpus.json` says of a `State` that `prepare` gave: more than that where known."""
        return state


def require_rate(sample_rate):
    """CorpusError where a sampling rate is too low for speech."""
    if sample_rate < LOWEST_RATE:
        raise CorpusError(f"sample_rate={sample_rate}: speech needs {LOWEST_RATE} Hz or more")


@functools.lru_cache(maxsize=2)
def _aligner(lexicon):
    return Aligner(lexicon)


@functools.lru_cache(maxsize=2)
def filter_bank(sample_rate):
    """Function from `[samples]` to `[time, 123]` in NumPy, through the layer of the graph."""
    layer = LogMelFilterBank(sample_rate=sample_rate)
    compiled = tf.function(layer, input_signature=[tf.TensorSpec([1, None], tf.float32)])
    return lambda samples: compiled(samples[np.newaxis])[0].numpy()


def filter_bank_settings(sample_rate):
    """What `corpus.json` says of the features that `filter_bank` computes."""
    layer = LogMelFilterBank(sample_rate=sample_rate)
    settings = layer.get_config()
    for key in ("name", "trainable", "dtype"):
        settings.pop(key, None)
    return {"kind": "LogMelFilterBank", "dimension": layer.feature_dimension, **settings}


@dataclass(frozen=True)
class AlignedSource(Source):
    """Base of the sources whose labels come from forced alignment.

    Args:
        labels: one of `LABEL_KINDS`; or `"characters"`, the transcript itself: nothing is aligned.
        lexicon: path of extra pronunciations, or `None`.
        sample_rate: of the features, in Hz. The aligner has its own.
        min_alignment_score: an utterance whose alignment scores less is left out; `None` takes
            all. `MIN_ALIGNMENT_SCORE` is one for recordings of people.
    """

    labels: str = "senones"
    lexicon: str | None = None
    sample_rate: int = SAMPLE_RATE
    min_alignment_score: float | None = None

    def __post_init__(self):
        require_rate(self.sample_rate)
        kinds = (*LABEL_KINDS, CHARACTERS)
        if self.labels not in kinds:
            raise CorpusError(f"labels={self.labels!r} is not one of {', '.join(kinds)}")
        if self.lexicon:
            read_lexicon(self.lexicon)

    def waveform(self, utterance):
        """The utterance's samples at `sample_rate`, float32 in -1…1; raises UtteranceError."""
        raise NotImplementedError

    def prepare(self, utterance):
        return self.label(utterance, self.waveform(utterance))

    def label(self, utterance, samples):
        """`LabelledFrames` of an utterance's samples; raises UtteranceError."""
        aligned = self.labels != CHARACTERS
        states, score = self.frame_states(utterance, samples) if aligned else (None, None)
        features = filter_bank(self.sample_rate)(samples)
        if not len(features):
            raise UtteranceError(f"{len(samples)} samples are less than one frame")
        if aligned:
            features, states = match_lengths(features, states)
        return LabelledFrames(features, states, score)

    def frame_states(self, utterance, samples):
        """One `State` per frame, and the alignment's score."""
        if self.sample_rate != SAMPLE_RATE:
            samples = to_sixteen_bit(resample(samples, self.sample_rate, SAMPLE_RATE))
        states = _aligner(self.lexicon).align(samples, utterance.transcript)
        if self.min_alignment_score is not None and states.score < self.min_alignment_score:
            raise UtteranceError(
                f"audio and transcript hardly match: the alignment's score is {states.score:.2f}, "
                f"less than min_alignment_score={self.min_alignment_score:g}"
            )
        return [state.reduced(self.labels) for state in states], states.score

    def feature_settings(self):
        """What `corpus.json` says of the features."""
        return filter_bank_settings(self.sample_rate)

    def all_states(self, occurring):
        """The corpus's states in label order, from the set of those that occur."""
        return sorted(occurring)


@dataclass(frozen=True)
class RecordedSource(AlignedSource):
    """Base of the sources whose audio is in files.

    Args:
        channel: which channel of each recording, from 1; by default several are averaged.
    """

    channel: int | None = None

    def file(self, utterance):
        location = utterance.location
        return location.path if isinstance(location, Take) else location

    def take(self, utterance):
        """The `Take` of an utterance's recording."""
        location = utterance.location
        take = location if isinstance(location, Take) else Take(self.file(utterance))
        return take._replace(channel=take.channel or self.channel)

    def waveform(self, utterance):
        path, *part = self.take(utterance)
        return read_audio(path, self.sample_rate, "auto", *part)

    def prepare_all(self, utterances):
        waveforms = read_audio_files(map(self.take, utterances), self.sample_rate)
        for utterance, samples in zip(utterances, waveforms, strict=True):
            error = isinstance(samples, UtteranceError)
            yield samples if error else attempt(self.label, utterance, samples)

    def label(self, utterance, samples):
        """`LabelledFrames` of an utterance's samples, with what its file says of itself."""
        take = self.take(utterance)
        header = audio_header(take.path)
        mixed = header.channels > 1 and take.channel is None
        try:
            frames = super().label(utterance, samples)
        except UtteranceError as error:
            if mixed:
                raise UtteranceError(f"{error}; {header.channels} channels averaged") from error
            raise
        return replace(frames, file_rate=header.samplerate, mixed=mixed)


@dataclass(frozen=True)
class SyntheticSource(AlignedSource):
    """Sentences of a small grammar spoken by eSpeak NG; five sixths to train on.

    Args:
        count: how many utterances, dev included.
        seed: of the sentences, voices and speeds.
        language: one of `synthesis.LANGUAGES`; the aligner knows English alone.
    """

    count: int = 360
    seed: int = 0
    language: str = "en"

    name = "synthetic"

    def __post_init__(self):
        super().__post_init__()
        if self.language not in synthesis.LANGUAGES:
            known = ", ".join(synthesis.LANGUAGES)
            raise CorpusError(f"language={self.language!r} is not one of {known}")
        if self.language != "en" and self.labels != CHARACTERS:
            raise CorpusError(
                f"language={self.language!r}: the aligner knows English alone; use "
                f"labels={CHARACTERS}"
            )

    def utterances(self):
        if self.count < 2:
            raise CorpusError(f"utterances={self.count}: at least 2 (one to train, one for dev)")
        num_dev = max(1, self.count // 6)
        train, dev = synthesis.make_prompts(self.count - num_dev, num_dev, self.seed, self.language)
        listed = [
            Utterance(f"{split}-{number:05d}", prompt.voice, split, prompt.sentence, prompt)
            for split, prompts in (("train", train), ("dev", dev))
            for number, prompt in enumerate(prompts)
        ]
        return listed, []

    def waveform(self, utterance):
        return synthesis.synthesize(utterance.location, self.sample_rate)


@dataclass(frozen=True)
class LibriSpeechSource(RecordedSource):
    """Folders `speaker/chapter` with `*.trans.txt` beside FLAC or WAV files.

    Folders above them whose names begin with train, dev or test decide the split, or `splits` does.
    Ids that do not begin with their speaker become paths (`train/anna/001`) where they repeat.

    Args:
        input_dir: the folder.
        splits: `"layout"`, names of folders such as `"train=train-clean-100,dev=dev-other"`, or
            shares such as `"train=0.9,dev=0.1"`, dealt out by speaker.
        seed: of the deal.
    """

    input_dir: str = ""
    splits: str = "layout"
    seed: int = 0

    name = "librispeech"

    def utterances(self):
        root = require_folder(self.input_dir)
        files, unread = find_chosen_files(root, self.splits)
        audio = audio_by_name(files)
        transcripts = [path for path in files if path.name.endswith(".trans.txt")]
        if not transcripts:
            raise CorpusError(
                f"input_dir={root}: no '*.trans.txt' file in it; LibriSpeech's layout is "
                "train-…/SPEAKER/CHAPTER/SPEAKER-CHAPTER.trans.txt with FLAC or WAV beside it"
                f"{and_unread(unread)}"
            )
        listed, failures, told = [], failures_to_read(unread), set()
        for path in transcripts:
            self._list_chapter(root, path, audio, listed, failures, told)

        def place(utterance):
            # An id that begins with its speaker means the same wherever it is.
            if utterance.id.startswith(f"{utterance.speaker}-"):
                return Path(utterance.id)
            return Path(utterance.location).parent.relative_to(root) / utterance.id

        names = names_of(map(place, listed), self.splits)
        listed = [replace(u, id=name) for u, name in zip(listed, names, strict=True)]
        failures += unlabelled(audio, told, "no transcript in a *.trans.txt beside it")
        return dealt_out(listed, failures, self)

    def _list_chapter(self, root, path, audio, listed, failures, told):
        split = split_of_folders(path.relative_to(root).parts[:-1], self.splits)
        speaker = path.name.split("-")[0]
        lines = utf_8(path.read_bytes()).splitlines()
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            utterance_id, *rest = line.split(maxsplit=1)
            name = utterance_id.decode("utf-8", "replace")
            told.add((path.parent, name))
            try:
                transcript = b"".join(rest).decode("utf-8")
                location = only_one(audio.get((path.parent, name), []))
            except UnicodeDecodeError:
                failures.append(Failure(name, f"{path}, line {number}: transcript is not UTF-8"))
                continue
            except UtteranceError as error:
                failures.append(Failure(name, str(error)))
                continue
            if location is None:
                failures.append(Failure(name, f"{path.parent}: no audio file {name}.flac or .wav"))
                continue
            listed.append(Utterance(name, speaker, split, transcript.strip(), str(location)))


def audio_by_name(files):
    """The audio files among `files`, a list for each `(folder, name without the suffix)`."""
    found = collections.defaultdict(list)
    for file in files:
        if file.suffix.lower() in AUDIO_SUFFIXES:
            found[file.parent, file.stem].append(file)
    return found


def failures_to_read(unread):
    """A `Failure` for each folder or link that `find_files` could not read."""
    return [Failure(path.name, reason) for path, reason in unread.items()]


def unlabelled(audio, told, reason):
    """A `Failure` for each audio file that nothing says the words or phones of.

    Args:
        audio: of the folder, by `audio_by_name`.
        told: `(folder, stem)` of the files that something does.
        reason: what is missing.
    """
    return [
        Failure(file.stem, f"{file}: {reason}")
        for key, files in audio.items()
        if key not in told
        for file in files
    ]


def require_folder(path, argument="input_dir"):
    """The folder as a `Path`; CorpusError if it is not given or not there."""
    if not path:
        raise CorpusError(f"{argument} is required for this source")
    folder = Path(path)
    if not folder.is_dir():
        raise CorpusError(f"{argument}={path}: there is no such folder")
    return folder


def dealt_out(utterances, failures, source):
    """Gives each utterance its split, and keeps the first of each id in one.

    Numbering may start anew in each split, as where one speaker was recorded for both.

    Args:
        utterances, failures: lists of what was found.
        source: whose `splits` and `seed` decide.

    Returns:
        The utterances, and the failures with those of an id that was there.
    """
    kept, failures, seen = [], list(failures), {}
    for utterance in assign_splits(utterances, source.splits, source.seed):
        key = (utterance.split, utterance.id)
        if key in seen:
            failures.append(
                Failure(
                    utterance.id,
                    f"the id occurs twice in {utterance.split}: {source.file(utterance)}, after "
                    f"{seen[key]}",
                )
            )
        else:
            seen[key] = source.file(utterance)
            kept.append(utterance)
    return kept, failures


def names_of(places, splits):
    """The utterances' ids: their own names, or their paths where names repeat in a split.

    Args:
        places: an iterable of the `Path` of each one below the data's folder, without its suffix.
        splits: of the source; shares are still to be dealt out.
    """
    places = list(places)
    dealt = splits == "layout" or named_folders(splits)
    keys = [
        (split_of_folders(place.parts[:-1], splits) if dealt else "", place.name)
        for place in places
    ]
    count = collections.Counter(keys)
    return [
        place.as_posix() if count[key] > 1 else place.name
        for key, place in zip(keys, places, strict=True)
    ]


@dataclass(frozen=True)
class ManifestSource(RecordedSource):
    """A tab-separated list of audio files and what is said in them.

    Without a header the columns are the audio's path and the transcript. A header names its
    columns: `audio_path` and `transcript`, and any of `id`, `speaker`, `split`, `channel` (from 1)
    and `start` and `end` of the utterance in a longer recording, in seconds. Paths are relative to
    the manifest's folder. The default id is the path, without its suffix unless files differ in
    that alone, from the folder that all manifests are below; the channel if one is named; and for
    a part of a recording, its start and end in hundredths of a second.

    Common Voice's files are read as they are: audio is in `clips/`, and files named after train,
    dev or test are the split.

    Args:
        manifest: the file, UTF-8 or UTF-16; `-` is standard input, where paths are relative to the
            working directory, as in a pipe. Several files are separated by commas.
        splits: `"layout"` takes the `split` column or the file's name, or shares as for
            `LibriSpeechSource`.
        seed: of the deal.
    """

    manifest: str = ""
    splits: str = "layout"
    seed: int = 0

    name = "manifest"

    def utterances(self):
        if named_folders(self.splits):
            raise CorpusError(f"splits={self.splits!r}: a manifest has no folders to name")
        names = [self.manifest] if Path(self.manifest).exists() else self.manifest.split(",")
        listed, failures = [], []
        read = [(name, *self._read(name)) for name in names]
        common = os.path.commonpath([os.path.abspath(folder) for _, folder, _ in read])
        for name, folder, contents in read:
            below = Path(os.path.relpath(folder, common))
            lines = [line for line in utf_8(contents).splitlines() if line.strip()]
            if not lines:
                raise CorpusError(f"manifest={name}: the file is empty")
            columns, lines = self._columns(name, lines)
            split = split_of_folders([Path(name).stem])
            for number, line in enumerate(lines, start=1):
                place = f"{name}, utterance {number}"
                try:
                    listed.append(self._utterance(folder, below, split, line, columns))
                except _BadLine as error:
                    failures.append(Failure(error.id, f"{place}: {error}"))
        suffixes = collections.defaultdict(set)
        for utterance, suffix in listed:
            suffixes[utterance.split, utterance.id].add(suffix)
        named = [
            replace(u, id=u.id + suffix) if len(suffixes[u.split, u.id]) > 1 else u
            for u, suffix in listed
        ]
        return dealt_out(named, failures, self)

    def _read(self, name):
        """The folder that paths are relative to, and a manifest's bytes."""
        if name == STANDARD_INPUT:
            return Path(), sys.stdin.buffer.read()
        path = Path(name)
        if not name or not path.exists():
            raise CorpusError(f"manifest={name}: there is no such file")
        if path.is_dir():
            raise CorpusError(f"manifest={name}: a folder and no file")
        folder = path.parent if stat.S_ISREG(path.stat().st_mode) else Path()
        return folder, path.read_bytes()

    def _columns(self, manifest, lines):
        """Column names, and the lines after a header; what has no use is named `None`."""
        first = lines[0].decode("utf-8", "replace").strip().lower().split("\t")
        first = [name.strip() for name in first]
        if set(COMMON_VOICE) <= set(first):
            known = [*COMMON_VOICE, "gender"]
            names = [COMMON_VOICE.get(name, name) if name in known else None for name in first]
            return names, lines[1:]
        if "audio_path" not in first and "transcript" not in first:
            return MANIFEST_REQUIRED, lines
        unknown = [name for name in first if name not in MANIFEST_COLUMNS]
        missing = [name for name in MANIFEST_REQUIRED if name not in first]
        if unknown or missing or len(set(first)) < len(first):
            raise CorpusError(
                f"manifest={manifest}: the header {first} must have "
                f"{' and '.join(MANIFEST_REQUIRED)} and may have "
                f"{', '.join(MANIFEST_COLUMNS[2:])}, each once"
            )
        return first, lines[1:]

    def _utterance(self, folder, below, split, line, columns):
        """The `Utterance` of a line, and its file's suffix if its id lacks that."""
        try:
            cells = line.decode("utf-8").rstrip("\r\n").split("\t")
        except UnicodeDecodeError:
            name = line.split(b"\t")[0].decode("utf-8", "replace")
            raise _BadLine(name, "not UTF-8") from None
        if len(cells) != len(columns):
            raise _BadLine(cells[0], f"{len(cells)} columns instead of {len(columns)}")
        row = dict(zip(columns, map(str.strip, cells), strict=True))
        path = row["audio_path"]
        if not path:
            raise _BadLine(row.get("id", ""), "no audio_path")
        name, suffix = os.path.splitext(path)
        name = name if URL.match(path) else str(below / name)
        split = row.get("split") or split
        if split and split not in SPLITS:
            raise _BadLine(row.get("id") or name, f"split {split!r} is not in {', '.join(SPLITS)}")
        location = path if URL.match(path) else str(folder / path)
        if None in columns and not (folder / path).exists():
            location = str(folder / COMMON_VOICE_AUDIO / path)
        try:
            start, end = _seconds(row, "start", 0.0), _seconds(row, "end", None)
            channel = parse_channel(row.get("channel", ""))
        except ValueError as error:
            raise _BadLine(row.get("id") or name, str(error)) from None
        name += f"-{channel}" if channel else ""
        if start or end is not None:
            name += f"-{100 * start:07.0f}-{100 * end:07.0f}" if end else f"-{100 * start:07.0f}"
        if channel or start or end is not None:
            location = Take(location, channel, start, end)
        gender = GENDERS.get(row.get("gender", "").partition("_")[0], "")
        suffix, name = ("", row["id"]) if row.get("id") else (suffix, name)
        speaker, transcript = row.get("speaker", ""), row["transcript"]
        return Utterance(name, speaker, split, transcript, location, gender), suffix


class _BadLine(ValueError):
    """A line of a manifest that is no utterance."""

    def __init__(self, name, reason):
        super().__init__(reason)
        self.id = name


def _seconds(row, column, default):
    """A time in a manifest."""
    text = row.get(column, "")
    try:
        seconds = float(text) if text else default
    except ValueError:
        seconds = math.nan
    if seconds is not None and not 0 <= seconds < math.inf:
        raise ValueError(f"{column} {text!r} is no time in seconds")
    return seconds


@dataclass(frozen=True)
class TextGridSource(RecordedSource):
    """Audio with Praat TextGrids, as the Montreal Forced Aligner writes them.

    The labels are the phones of an interval tier as they are written there; empty intervals are
    `SIL`. The speaker is the name of the folder.

    Args:
        input_dir: a folder with audio files, at any depth.
        alignment_dir: a folder with `*.TextGrid` at the same places and of the same names; by
            default they are in `input_dir`.
        labels: `"phones"`, or `"characters"`: the intervals of the tier are words.
        tier: name of the phone tier, or what follows the speaker in it (`s1 - phones`).
        splits, seed: as for `LibriSpeechSource`.
    """

    labels: str = "phones"
    input_dir: str = ""
    alignment_dir: str = ""
    tier: str = "phones"
    splits: str = "layout"
    seed: int = 0

    name = "textgrid"

    def __post_init__(self):
        if self.labels not in ("phones", CHARACTERS) or self.lexicon:
            raise CorpusError(
                "textgrid: labels are the phones of a tier, or characters; no senones, no lexicon"
            )
        require_rate(self.sample_rate)

    def utterances(self):
        root = require_folder(self.input_dir)
        files, unread = find_chosen_files(root, self.splits)
        audio = audio_by_name(files)
        grid_root = root
        if self.alignment_dir:
            grid_root = require_folder(self.alignment_dir, "alignment_dir")
            files, more_unread = find_chosen_files(grid_root, self.splits)
            unread |= more_unread
        grids = [path for path in files if path.suffix.lower() == ".textgrid"]
        if not grids:
            argument = "alignment_dir" if self.alignment_dir else "input_dir"
            raise CorpusError(
                f"{argument}={grid_root}: no '*.TextGrid' file in it{and_unread(unread)}"
            )
        listed, failures, told = [], failures_to_read(unread), set()
        places = [grid.relative_to(grid_root).with_suffix("") for grid in grids]
        for grid, place, name in zip(grids, places, names_of(places, self.splits), strict=True):
            key = root / place.parent, place.name
            told.add(key)
            try:
                file = only_one(audio.get(key, []))
            except UtteranceError as error:
                failures.append(Failure(name, str(error)))
                continue
            if file is None:
                failures.append(
                    Failure(name, f"{grid}: no audio file of the same name in {key[0]}")
                )
                continue
            split = split_of_folders(place.parts[:-1], self.splits)
            speaker = "" if place.parent == Path(".") else place.parent.name
            words = []
            if self.labels == CHARACTERS:
                words = attempt(read_textgrid, str(grid), self.tier)
                if isinstance(words, UtteranceError):
                    failures.append(Failure(name, str(words)))
                    continue
            transcript = " ".join(interval.label for interval in words if interval.label)
            listed.append(Utterance(name, speaker, split, transcript, (str(file), str(grid))))
        failures += unlabelled(audio, told, "no TextGrid of the same name")
        return dealt_out(listed, failures, self)

    def file(self, utterance):
        return utterance.location[0]

    def files(self, utterance):
        return list(utterance.location)

    def frame_states(self, utterance, samples):
        path = utterance.location[1]
        intervals = read_textgrid(path, self.tier)
        duration = len(samples) / self.sample_rate
        end = intervals[-1].end
        if abs(end - duration) > TEXTGRID_TOLERANCE:
            raise UtteranceError(f"{path}: ends at {end:.3f} s, the audio at {duration:.3f} s")
        if any(interval.label for interval in intervals):
            require_sound(samples)
        labels = frame_labels(intervals, len(samples), self.sample_rate)
        return [State(phone=label or "SIL") for label in labels], None
