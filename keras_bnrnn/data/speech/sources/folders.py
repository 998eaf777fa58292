"""Folders of recordings: LibriSpeech's, and audio beside Praat's TextGrids."""

import collections
from dataclasses import dataclass, replace
from pathlib import Path

from keras_bnrnn.data.encodings import utf_8
from keras_bnrnn.data.errors import CorpusError, UtteranceError, attempt
from keras_bnrnn.data.speech.alignment import (
    State,
    require_sound,
)
from keras_bnrnn.data.speech.audio import (
    AUDIO_SUFFIXES,
)
from keras_bnrnn.data.speech.folders import and_unread, only_one
from keras_bnrnn.data.speech.sources.base import (
    Failure,
    RecordedSource,
    Utterance,
    dealt_out,
    failures_to_read,
    require_folder,
    require_rate,
)
from keras_bnrnn.data.speech.splits import (
    find_chosen_files,
    named_folders,
    split_of_folders,
)
from keras_bnrnn.data.speech.textgrid import frame_labels, read_textgrid
from keras_bnrnn.data.speech.transcripts import CHARACTERS

TEXTGRID_TOLERANCE = 0.02  # seconds: two frames


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


def audio_by_name(files):
    """The audio files among `files`, a list for each `(folder, name without the suffix)`."""
    found = collections.defaultdict(list)
    for file in files:
        if file.suffix.lower() in AUDIO_SUFFIXES:
            found[file.parent, file.stem].append(file)
    return found


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
