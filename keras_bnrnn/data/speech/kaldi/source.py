"""A Kaldi recipe's folders as a source: features or audio, and alignments to pdf-ids."""

import functools
from dataclasses import dataclass, fields

import numpy as np

from keras_bnrnn.data.errors import CorpusError, UtteranceError
from keras_bnrnn.data.speech.alignment import SAMPLE_RATE, State, match_lengths
from keras_bnrnn.data.speech.audio import Take, audio_header
from keras_bnrnn.data.speech.features import append_differences, normalize_features
from keras_bnrnn.data.speech.folders import and_unread
from keras_bnrnn.data.speech.kaldi.alignments import DERIVED, PdfIds, read_alignments
from keras_bnrnn.data.speech.kaldi.archives import (
    LOCATION,
    find_archive,
    is_command,
    load_audio,
    load_matrix,
    read_table,
    without_flac,
)
from keras_bnrnn.data.speech.sources.base import (
    Failure,
    LabelledFrames,
    Source,
    Utterance,
    dealt_out,
    failures_to_read,
    filter_bank,
    filter_bank_settings,
    require_folder,
    require_rate,
)
from keras_bnrnn.data.speech.splits import find_chosen_files, named_folders, split_of_folders
from keras_bnrnn.data.speech.transcripts import CHARACTERS

STATIC_DIMENSION = 41
CMVN_FLOOR = 1e-20  # Kaldi's.
CMVN_KINDS = ("none", "mean", "mean_variance")
GENDERS = ("f", "m")


@dataclass(frozen=True)
class KaldiEntry:
    """Where an utterance's features or audio, cepstral statistics and pdf-ids are.

    Attributes:
        features, cmvn: places in archives; `cmvn` is empty where none is wanted. In the place of
            features a `Take` of a recording, from which to compute them.
        pdf_ids: `None` where nothing aligns the utterance.
        num_pdfs: of the model.
    """

    features: str | Take
    cmvn: str
    pdf_ids: PdfIds | None
    num_pdfs: int

    @property
    def file(self):
        """The archive, or the recording."""
        return self.features.path if isinstance(self.features, Take) else self.features

    def __str__(self):
        return self.file


@dataclass(frozen=True)
class KaldiSource(Source):
    """A Kaldi data directory and an alignment directory, as a recipe leaves them.

    The data directory holds `feats.scp`, or folders below it do; links to folders are followed,
    hidden ones and `split4` and the like left out. Where none has, features are computed from the
    audio in `wav.scp`, by `segments` if that is there. Utterances of which nothing is said in
    `utt2spk` are their own speakers; `spk2gender` is kept with the utterances. Paths in the lists
    are looked for from the working directory and from the data directory upwards. Features of 41
    dimensions (energy and 40 channels) are completed with first and second differences, others
    are taken as they are.

    Alignments are integer vectors in archives anywhere in the alignment directory, text or binary,
    gzipped or not: transition-ids in `ali*`, which need a `final.mdl` (binary or text, the latter
    also as `final.mdl.txt`) in the same folder, or pdf-ids in `pdf*`, as `ali-to-pdf` writes them.
    A `phones.txt` beside the model, or in `lang` of the data directory, names the states' phones.
    Where the ids of train and dev are the same, alignments are in folders named after them.
    A folder of test utterances that has no alignments at all is prepared without labels.
    While a corpus is prepared its alignments lie in a temporary file, 4 bytes a frame.

    Args:
        input_dir: the data directory.
        alignment_dir: the alignment directory, or several separated by commas.
        cmvn: `"none"`, or what of the statistics in `cmvn.scp` to apply: `"mean"` or
            `"mean_variance"`.
        splits: `"layout"` (folders named after train, dev and test), names of folders such as
            `"train=train_si284,dev=test_dev93,test=test_eval92"`, or shares such as
            `"train=0.9,dev=0.1"`.
        seed: of the deal.
        pipes: run the commands of entries such as `gunzip -c feats.gz |`. Only for a directory that
            you trust; without it they are refused.
        audio_rate: sampling rate of features that are computed here, in Hz.
        channel: which channel of recordings with several, from 1, where `segments` does not say;
            by default they are averaged.
        labels: `"pdfs"`; or `"characters"`, the transcripts in `text`: no alignments are read.
    """

    input_dir: str = ""
    alignment_dir: str = ""
    cmvn: str = "none"
    splits: str = "layout"
    seed: int = 0
    pipes: bool = False
    audio_rate: int = SAMPLE_RATE
    channel: int | None = None
    labels: str = "pdfs"

    name = "kaldi"

    def __post_init__(self):
        if self.labels not in ("pdfs", CHARACTERS):
            raise CorpusError(f"labels={self.labels!r} is not one of pdfs, {CHARACTERS}")
        if self.cmvn not in CMVN_KINDS:
            raise CorpusError(f"cmvn={self.cmvn!r} is not one of {', '.join(CMVN_KINDS)}")
        require_rate(self.audio_rate)

    def utterances(self):
        root, listed_by = require_folder(self.input_dir), {}
        files, unread = self._files
        listed, failures = [], failures_to_read(unread)
        failures += self._without_features(root, files, unread)
        if not self.sample_rate and (self.channel or self.audio_rate != SAMPLE_RATE):
            raise CorpusError(
                f"input_dir={root} has features: a channel and a sampling rate are of audio"
            )
        for path in self._lists:
            found = self._list_folder(root, path, failures)
            for utterance in found:
                self._claim(utterance, path, listed_by)
            listed += found
        return dealt_out(listed, failures, self)

    @functools.cached_property
    def _files(self):
        return find_chosen_files(require_folder(self.input_dir), self.splits, DERIVED)

    @property
    def _lists(self):
        """The lists of utterances: `feats.scp`, or `wav.scp` where no folder has features."""
        files, unread = self._files
        for name in ("feats.scp", "wav.scp"):
            lists = [path for path in files if path.name == name]
            if lists:
                return lists
        raise CorpusError(
            f"input_dir={self.input_dir}: no feats.scp or wav.scp in it or below"
            f"{and_unread(unread)}"
        )

    @property
    def sample_rate(self):
        """Of the audio that features are computed from; `None` where they are there."""
        return None if self._lists[0].name == "feats.scp" else self.audio_rate

    def _without_features(self, root, files, unread):
        """A `Failure` for each data folder that is not listed; CorpusError if it was named."""
        folders, name = {path.parent for path in self._lists}, self._lists[0].name
        for folder in named_folders(self.splits):
            if not any(root / folder in (one, *one.parents) for one in folders):
                raise CorpusError(
                    f"splits={self.splits!r}: no {name} in {root / folder}{and_unread(unread)}"
                )
        others = {path.parent for path in files if path.name == "wav.scp"} - folders
        return [
            Failure(folder.name, f"{folder}: no {name}, which other folders have")
            for folder in sorted(others)
        ]

    def _claim(self, utterance, path, listed_by):
        """CorpusError where two folders list an utterance, so that either could be meant."""
        split = utterance.split if self._split_by_folders else ""
        other = listed_by.setdefault((split, utterance.id), path)
        if other != path:
            raise CorpusError(
                f"input_dir={self.input_dir}: {other} and {path} both list {utterance.id}, and "
                "either could be meant: name the folders to take, such as "
                "splits=train=train_si284,dev=test_dev93"
            )

    @property
    def _split_by_folders(self):
        return self.splits == "layout" or bool(named_folders(self.splits))

    @functools.cached_property
    def _alignments(self):
        def split_of(names):
            return split_of_folders(names, self.splits) or split_of_folders(names)

        lang_dir = require_folder(self.input_dir) / "lang"
        return read_alignments(self.alignment_dir, lang_dir, split_of)

    def __getstate__(self):
        # A worker has no use for everybody's alignments.
        return {one.name: getattr(self, one.name) for one in fields(self)}

    def _list_folder(self, root, path, failures):
        folder = path.parent
        speakers = read_table(folder / "utt2spk")
        bad = {}
        transcripts = read_table(folder / "text", bad=bad)
        genders = read_table(folder / "spk2gender")
        for speaker, gender in genders.items():
            if gender not in GENDERS:
                raise CorpusError(
                    f"{folder / 'spk2gender'}: {speaker} is {gender!r}, not one of "
                    f"{', '.join(GENDERS)}"
                )
        cmvn = read_table(folder / "cmvn.scp")
        if self.cmvn != "none" and path.name == "wav.scp":
            raise CorpusError(
                f"cmvn={self.cmvn}: {folder} has no feats.scp that it would belong to"
            )
        if self.cmvn != "none" and not cmvn:
            raise CorpusError(f"cmvn={self.cmvn}: {folder} has no cmvn.scp")
        split = split_of_folders(path.relative_to(root).parts[:-1], self.splits)
        if not split and not named_folders(self.splits):
            split = split_of_folders([root.name])
        entries = self._entries(path, failures)
        if self.labels == CHARACTERS:
            aligned, num_pdfs = dict.fromkeys(name for name, _ in entries), 0
        else:
            aligned = self._aligned([name for name, _ in entries], split)
            num_pdfs = len(self._alignments.states)
        listed = []
        for name, location in entries:
            if isinstance(aligned[name], UtteranceError):
                failures.append(Failure(name, str(aligned[name])))
                continue
            if name in bad:
                failures.append(Failure(name, f"{folder / 'text'}: transcript is {bad[name]}"))
                continue
            speaker = speakers.get(name, "")
            statistics = ""
            if self.cmvn != "none":
                statistics = cmvn.get(speaker or name, "")
                if not statistics:
                    failures.append(Failure(name, f"{folder / 'cmvn.scp'}: nothing for {speaker}"))
                    continue
                statistics = self._archive(folder / "cmvn.scp", speaker or name, statistics)
            entry = KaldiEntry(location, statistics, aligned[name], num_pdfs)
            gender = genders.get(speaker or name, "")
            listed.append(Utterance(name, speaker, split, transcripts.get(name, ""), entry, gender))
        return listed

    def _entries(self, path, failures):
        """`[(utterance, place of its features or Take of its audio), …]` of a list."""

        def rows(path):
            bad = {}
            yield from read_table(path, repeated=True, bad=bad)
            failures.extend(Failure(name, f"{path}: {bad[name]}") for name in sorted(bad))

        table = [
            (name, self._archive(path, name, without_flac(location)))
            for name, location in rows(path)
        ]
        if path.name == "feats.scp":
            return table
        segments = path.parent / "segments"
        if not segments.is_file():
            return [(name, Take(location, self.channel)) for name, location in table]
        recordings, entries = dict(table), []
        for name, line in rows(segments):
            try:
                recording, start, end, *channel = line.split()
                # Channels are counted from 0; an end of -1 is the recording's.
                [channel] = [int(one) + 1 for one in channel] or [self.channel]
                start, end = float(start), float(end)
                take = Take(recordings[recording], channel, start, None if end == -1 else end)
            except KeyError as error:
                failures.append(Failure(name, f"{segments}: {error} is not in {path.name}"))
            except ValueError:
                reason = f"{segments}: {line!r} is not a recording, its start and its end"
                failures.append(Failure(name, reason))
            else:
                entries.append((name, take))
        return entries

    def _aligned(self, names, split):
        """The pdf-ids of a folder's utterances, or why there are none.

        A folder of test utterances may have none at all: they are to be decoded.
        """
        found = {}
        for name in names:
            try:
                found[name] = self._alignments.find(name, split)
            except UtteranceError as error:
                found[name] = error
        if split == "test" and not any(found.values()):
            return found
        missing = UtteranceError("no alignment of this utterance")
        return {name: missing if ids is None else ids for name, ids in found.items()}

    def _archive(self, scp, name, location):
        """Where the matrix is that an scp names; commands only where they are allowed."""
        if is_command(location, self.pipes, f"{scp}, {name}: "):
            return location
        return find_archive(location, scp.parent)

    def _features(self, entry):
        """`[time, D]`; raises UtteranceError."""
        if isinstance(entry.features, Take):
            samples = load_audio(entry.features, self.audio_rate, self.pipes)
            features = filter_bank(self.audio_rate)(samples)
            if not len(features):
                raise UtteranceError(f"{len(samples)} samples are less than one frame")
            return features
        features = load_matrix(entry.features, self.pipes)
        if features.ndim != 2 or not len(features):
            raise UtteranceError(f"{entry.features}: no matrix of features, {features.shape}")
        if self.cmvn != "none":
            features = apply_cmvn(
                features, load_matrix(entry.cmvn, self.pipes), self.cmvn == "mean_variance"
            )
        if features.shape[1] == STATIC_DIMENSION:
            features = append_differences(features)
        return np.asarray(features, np.float32)

    def prepare(self, utterance):
        entry = utterance.location
        features = self._features(entry)
        told = self._told(entry.features)
        if entry.pdf_ids is None:
            return LabelledFrames(features, None, **told)
        pdf_ids = entry.pdf_ids.read()
        largest = entry.num_pdfs - 1
        if len(pdf_ids) and not 0 <= pdf_ids.min() <= pdf_ids.max() <= largest:
            raise UtteranceError(
                f"labels {pdf_ids.min()} to {pdf_ids.max()} are out of range: pdf-ids are 0 to "
                f"{largest}"
            )
        features, pdf_ids = match_lengths(features, pdf_ids)
        return LabelledFrames(features, [State(int(pdf)) for pdf in pdf_ids], **told)

    def _told(self, place):
        """What a recording says of itself; nothing of features, or of what a command writes."""
        if not isinstance(place, Take) or is_command(place.path, self.pipes):
            return {}
        header = audio_header(place.path)
        mixed = header.channels > 1 and place.channel is None
        return {"file_rate": header.samplerate, "mixed": mixed}

    def file(self, utterance):
        return utterance.location.file

    def files(self, utterance):
        entry = utterance.location
        return [LOCATION.fullmatch(one)[1] for one in (entry.file, entry.cmvn)]

    def feature_settings(self):
        if self.sample_rate:
            return filter_bank_settings(self.sample_rate)
        return {"kind": "kaldi", "cmvn": self.cmvn}

    def all_states(self, occurring):
        return [State(pdf) for pdf in range(len(self._alignments.states))]

    def phone_names(self):
        alignments = self.__dict__.get("_alignments")  # If they were needed.
        return [state.name for state in alignments.states] if alignments else None

    def described(self, state):
        return self._alignments.states[state.number]


def apply_cmvn(features, statistics, variance):
    """Subtracts a speaker's mean, and divides by the deviation if asked.

    Args:
        features: `[time, D]`.
        statistics: `[2, D + 1]`: sums with the count at the end, and sums of squares.
        variance: also normalise the variance.
    """
    if statistics.ndim != 2 or statistics.shape[1] != features.shape[1] + 1:
        raise UtteranceError(
            f"cmvn statistics of shape {statistics.shape} for {features.shape[1]} features"
        )
    count = statistics[0, -1]
    mean = statistics[0, :-1] / count
    squares = statistics[1, :-1] / count - np.square(mean) if variance else np.ones_like(mean)
    return normalize_features(features, mean, squares, CMVN_FLOOR).astype(np.float32)
