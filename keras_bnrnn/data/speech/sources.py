"""Where speech comes from: each source lists utterances and turns one into labelled frames.

A source is small and picklable. `utterances()` runs once, in the main process, and
`prepare_all(utterances)` in any worker; what is costly to make (an aligner, a filter bank) is made
on first use there.
"""

import codecs
import collections
import functools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tensorflow as tf

from keras_bnrnn.data.errors import CorpusError, UtteranceError
from keras_bnrnn.data.speech import synthesis
from keras_bnrnn.data.speech.alignment import (
    LABEL_KINDS,
    SAMPLE_RATE,
    Aligner,
    State,
    match_lengths,
    read_lexicon,
)
from keras_bnrnn.data.speech.audio import AUDIO_SUFFIXES, read_audio, read_audio_files
from keras_bnrnn.data.speech.corpus import SPLITS
from keras_bnrnn.data.speech.features import LogMelFilterBank
from keras_bnrnn.data.speech.folders import only_one
from keras_bnrnn.data.speech.splits import (
    assign_splits,
    find_chosen_files,
    named_folders,
    split_of_folders,
)
from keras_bnrnn.data.speech.textgrid import frame_labels, read_textgrid

MANIFEST_REQUIRED = ["audio_path", "transcript"]
MANIFEST_COLUMNS = [*MANIFEST_REQUIRED, "id", "speaker", "split"]
TEXTGRID_TOLERANCE = 0.02  # seconds: two frames


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
    """Features `[T, D]`, float32, and a `State` for each frame, or `None` if nothing says which."""

    features: np.ndarray
    states: list | None


class Source:
    """Base of all sources."""

    def prepare(self, utterance):
        """`LabelledFrames` of an utterance; raises UtteranceError."""
        raise NotImplementedError

    def prepare_all(self, utterances):
        """Yields the `LabelledFrames` of each utterance, or its UtteranceError."""
        for utterance in utterances:
            try:
                yield self.prepare(utterance)
            except UtteranceError as error:
                yield error

    def file(self, utterance):
        """The file that an utterance is in; empty if there is none."""
        return ""

    def described(self, state):
        """What `corpus.json` says of a `State` that `prepare` gave: more than that where known."""
        return state


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
        labels: one of `LABEL_KINDS`.
        lexicon: path of extra pronunciations, or `None`.
    """

    labels: str = "senones"
    lexicon: str | None = None

    sample_rate = SAMPLE_RATE

    def __post_init__(self):
        if self.labels not in LABEL_KINDS:
            raise CorpusError(f"labels={self.labels!r} is not one of {', '.join(LABEL_KINDS)}")
        if self.lexicon:
            read_lexicon(self.lexicon)

    def waveform(self, utterance):
        """The utterance's samples at `sample_rate`, float32 in -1…1; raises UtteranceError."""
        raise NotImplementedError

    def prepare(self, utterance):
        return self.label(utterance, self.waveform(utterance))

    def label(self, utterance, samples):
        """`LabelledFrames` of an utterance's samples; raises UtteranceError."""
        states = self.frame_states(utterance, samples)
        features = filter_bank(self.sample_rate)(samples)
        if not len(features):
            raise UtteranceError(f"{len(samples)} samples are less than one frame")
        features, states = match_lengths(features, states)
        return LabelledFrames(features, states)

    def frame_states(self, utterance, samples):
        """One `State` per frame."""
        states = _aligner(self.lexicon).align(samples, utterance.transcript)
        return [state.reduced(self.labels) for state in states]

    def feature_settings(self):
        """What `corpus.json` says of the features."""
        return filter_bank_settings(self.sample_rate)

    def all_states(self, occurring):
        """The corpus's states in label order, from the set of those that occur."""
        return sorted(occurring)


class RecordedSource(AlignedSource):
    """Base of the sources whose audio is in files."""

    def file(self, utterance):
        return utterance.location

    def waveform(self, utterance):
        return read_audio(self.file(utterance), self.sample_rate)

    def prepare_all(self, utterances):
        paths = [self.file(utterance) for utterance in utterances]
        waveforms = read_audio_files(paths, self.sample_rate)
        for utterance, samples in zip(utterances, waveforms, strict=True):
            try:
                if isinstance(samples, UtteranceError):
                    raise samples
                yield self.label(utterance, samples)
            except UtteranceError as error:
                yield error


@dataclass(frozen=True)
class SyntheticSource(AlignedSource):
    """Sentences of a small grammar spoken by eSpeak NG; five sixths to train on.

    Args:
        count: how many utterances, dev included.
        seed: of the sentences, voices and speeds.
    """

    count: int = 360
    seed: int = 0

    name = "synthetic"

    def utterances(self):
        if self.count < 2:
            raise CorpusError(f"utterances={self.count}: at least 2 (one to train, one for dev)")
        num_dev = max(1, self.count // 6)
        train, dev = synthesis.make_prompts(self.count - num_dev, num_dev, self.seed)
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
            )
        listed, failures, told = [], failures_to_read(unread), set()
        for path in transcripts:
            self._list_chapter(root, path, audio, listed, failures, told)
        failures += unlabelled(audio, told, "no transcript in a *.trans.txt beside it")
        return dealt_out(listed, failures, self)

    def _list_chapter(self, root, path, audio, listed, failures, told):
        split = split_of_folders(path.relative_to(root).parts[:-1], self.splits)
        speaker = path.name.split("-")[0]
        lines = path.read_bytes().removeprefix(codecs.BOM_UTF8).splitlines()
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
                    f"the id occurs twice in {utterance.split}: {utterance.location}, after "
                    f"{seen[key]}",
                )
            )
        else:
            seen[key] = utterance.location
            kept.append(utterance)
    return kept, failures


def names_of(places, splits):
    """The utterances' ids: their files' names, or their paths where names repeat in a split.

    Args:
        places: `Path` of each file below the data's folder, without its suffix.
        splits: of the source; shares are still to be dealt out.
    """
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
    columns: `audio_path` and `transcript`, and any of `id`, `speaker` and `split`. Paths are
    relative to the manifest's folder. The default id is the path without its suffix.

    Args:
        manifest: the file, UTF-8.
        splits: `"layout"` takes the `split` column, or shares as for `LibriSpeechSource`.
        seed: of the deal.
    """

    manifest: str = ""
    splits: str = "layout"
    seed: int = 0

    name = "manifest"

    def utterances(self):
        if named_folders(self.splits):
            raise CorpusError(f"splits={self.splits!r}: a manifest has no folders to name")
        path = Path(self.manifest)
        if not self.manifest or not path.is_file():
            raise CorpusError(f"manifest={self.manifest}: there is no such file")
        lines = [line for line in path.read_bytes().splitlines() if line.strip()]
        if not lines:
            raise CorpusError(f"manifest={path}: the file is empty")
        columns, lines = self._columns(lines)
        listed, failures = [], []
        for number, line in enumerate(lines, start=1):
            self._list_line(path, number, line, columns, listed, failures)
        return dealt_out(listed, failures, self)

    def _columns(self, lines):
        """Column names, and the lines after a header."""
        first = lines[0].decode("utf-8", "replace").lstrip("\ufeff").strip().lower().split("\t")
        first = [name.strip() for name in first]
        if "audio_path" not in first and "transcript" not in first:
            return MANIFEST_REQUIRED, lines
        unknown = [name for name in first if name not in MANIFEST_COLUMNS]
        missing = [name for name in MANIFEST_REQUIRED if name not in first]
        if unknown or missing or len(set(first)) < len(first):
            raise CorpusError(
                f"manifest={self.manifest}: the header {first} must have "
                f"{' and '.join(MANIFEST_REQUIRED)} and may have "
                f"{', '.join(MANIFEST_COLUMNS[2:])}, each once"
            )
        return first, lines[1:]

    def _list_line(self, path, number, line, columns, listed, failures):
        place = f"{path}, utterance {number}"
        try:
            cells = line.decode("utf-8").lstrip("\ufeff").rstrip("\r\n").split("\t")
        except UnicodeDecodeError:
            name = line.split(b"\t")[0].decode("utf-8", "replace")
            failures.append(Failure(name, f"{place}: not UTF-8"))
            return
        if len(cells) != len(columns):
            failures.append(
                Failure(cells[0], f"{place}: {len(cells)} columns instead of {len(columns)}")
            )
            return
        row = dict(zip(columns, map(str.strip, cells), strict=True))
        if not row["audio_path"]:
            failures.append(Failure(row.get("id", ""), f"{place}: no audio_path"))
            return
        split = row.get("split", "")
        name = row.get("id") or str(Path(row["audio_path"]).with_suffix(""))
        if split and split not in SPLITS:
            failures.append(
                Failure(name, f"{place}: split {split!r} is not in {', '.join(SPLITS)}")
            )
            return
        location = str(path.parent / row["audio_path"])
        listed.append(Utterance(name, row.get("speaker", ""), split, row["transcript"], location))


@dataclass(frozen=True)
class TextGridSource(RecordedSource):
    """Audio with Praat TextGrids beside it, as the Montreal Forced Aligner writes them.

    The labels are the phones of an interval tier as they are written there; empty intervals are
    `SIL`. The speaker is the name of the folder.

    Args:
        input_dir: a folder with `*.TextGrid` and audio files of the same names, at any depth.
        tier: name of the phone tier.
        splits, seed: as for `LibriSpeechSource`.
    """

    labels: str = "phones"
    input_dir: str = ""
    tier: str = "phones"
    splits: str = "layout"
    seed: int = 0

    name = "textgrid"

    def __post_init__(self):
        if self.labels != "phones" or self.lexicon:
            raise CorpusError("textgrid: labels are the phones of a tier; no senones, no lexicon")

    def utterances(self):
        root = require_folder(self.input_dir)
        files, unread = find_chosen_files(root, self.splits)
        audio = audio_by_name(files)
        grids = [path for path in files if path.suffix.lower() == ".textgrid"]
        if not grids:
            raise CorpusError(f"input_dir={root}: no '*.TextGrid' file in it")
        listed, failures = [], failures_to_read(unread)
        places = [grid.relative_to(root).with_suffix("") for grid in grids]
        for grid, place, name in zip(grids, places, names_of(places, self.splits), strict=True):
            try:
                file = only_one(audio.get((grid.parent, grid.stem), []))
            except UtteranceError as error:
                failures.append(Failure(name, str(error)))
                continue
            if file is None:
                failures.append(Failure(name, f"{grid}: no audio file of the same name"))
                continue
            split = split_of_folders(place.parts[:-1], self.splits)
            speaker = "" if place.parent == Path(".") else place.parent.name
            listed.append(Utterance(name, speaker, split, "", (str(file), str(grid))))
        told = {(grid.parent, grid.stem) for grid in grids}
        failures += unlabelled(audio, told, "no TextGrid of the same name")
        return dealt_out(listed, failures, self)

    def file(self, utterance):
        return utterance.location[0]

    def frame_states(self, utterance, samples):
        intervals = read_textgrid(utterance.location[1], self.tier)
        duration = len(samples) / self.sample_rate
        end = intervals[-1].end
        if abs(end - duration) > TEXTGRID_TOLERANCE:
            raise UtteranceError(
                f"{utterance.location[1]}: ends at {end:.3f} s, the audio at {duration:.3f} s"
            )
        return [State(phone=label or "SIL") for label in frame_labels(intervals, len(samples))]
