"""Parts of a corpus in preparation: a file of records, and a summary that says that it is whole."""

import collections
import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import platform
import time
from pathlib import Path

import numpy as np
import tensorflow as tf

from keras_bnrnn.data.errors import CorpusError, UtteranceError, attempt
from keras_bnrnn.data.speech.corpus import SPLITS, UNLABELLED, make_example
from keras_bnrnn.files import misfit, written_aside

PART_UTTERANCES = 32
SECONDS_TO_APPEAR = 60  # How long a shared file system may hide a new file.
FILES = "files"  # What preparation.json and a summary say of the files that they were made of.
SUMMARY = {
    "bytes": int,
    "states": [dict],
    "state_frames": [int],
    "lengths": [int],
    "failures": [list],
    "moments": list,
}  # What is known of a part.


@dataclasses.dataclass(frozen=True)
class Part:
    path: Path
    split: str
    utterances: list
    files: str  # A checksum of the names, sizes and times of what it is made of.


def parts_of(parts_dir, listed, source):
    """The parts, and a checksum of the files of all, which does not depend on the parts."""
    parts, stamp, of_all = [], functools.cache(_stamp), hashlib.sha256()
    for split in SPLITS:
        members = [u for u in listed if u.split == split]
        for start in range(0, len(members), PART_UTTERANCES):
            path = parts_dir / f"{split}-{start // PART_UTTERANCES:05d}.tfrecord"
            some, of_part = members[start : start + PART_UTTERANCES], hashlib.sha256()
            for utterance in some:
                stamps = repr([stamp(file) for file in source.files(utterance) if file]).encode()
                of_part.update(stamps)
                of_all.update(stamps)
            parts.append(Part(path, split, some, of_part.hexdigest()))
    return parts, of_all.hexdigest()


def _stamp(file):
    """What tells that a file has changed; nothing where there is none."""
    try:
        status = os.stat(file)
    except (OSError, ValueError):
        return None
    return status.st_size, status.st_mtime_ns


def make_part(part, source, dimension, text=None):
    """Prepares a part's utterances; returns its summary, which is on disk then."""
    labels_of, failures, lengths, counts = {}, [], [], {}
    rates, mixed, unlabelled = collections.Counter(), 0, 0
    moments = Moments()
    with (
        disk_errors(part.path),
        written_aside(part.path, this_process()) as aside,
        tf.io.TFRecordWriter(str(aside)) as writer,
    ):
        prepared = source.prepare_all(part.utterances)
        for utterance, frames in zip(part.utterances, prepared, strict=True):
            if not isinstance(frames, UtteranceError):
                frames = attempt(_checked, frames, dimension)
            if text is not None and not isinstance(frames, UtteranceError):
                frames = attempt(text.labelled, frames, utterance)
            if isinstance(frames, UtteranceError):
                file, reason = str(source.file(utterance)), str(frames)
                failures.append([utterance.id, reason if file in reason else f"{file}: {reason}"])
                continue
            if frames.states is None:
                unlabelled += 1
                labels = [UNLABELLED] * len(frames.features)
            else:
                labels = [labels_of.setdefault(state, len(labels_of)) for state in frames.states]
            for label, count in zip(*np.unique(labels, return_counts=True), strict=True):
                if label != UNLABELLED:
                    counts[int(label)] = counts.get(int(label), 0) + int(count)
            moments.add(frames.features)
            lengths.append(len(frames.features))
            mixed += frames.mixed
            if frames.file_rate:
                rates[str(frames.file_rate)] += 1
            writer.write(
                make_example(
                    utterance.id,
                    utterance.speaker,
                    utterance.transcript,
                    frames.features,
                    labels,
                    utterance.gender,
                    frames.alignment_score,
                )
            )
    summary = {
        "bytes": part.path.stat().st_size,
        FILES: part.files,
        "states": [state.entry() for state in labels_of],
        "state_frames": [counts[k] for k in range(len(labels_of))],
        "lengths": lengths,
        "file_rates": rates,
        "mixed": mixed,
        "unlabelled": unlabelled,
        "failures": failures,
        "moments": moments.document(),
    }
    place = _summary_path(part.path)
    with disk_errors(part.path), written_aside(place, this_process()) as aside:
        aside.write_text(json.dumps(summary), encoding="utf-8")
    return summary


def _checked(frames, dimension):
    """The same `LabelledFrames`; UtteranceError where they do not fit into the corpus."""
    if dimension and frames.features.shape[-1] != dimension:
        raise UtteranceError(
            f"{frames.features.shape[-1]} features per frame, where others have {dimension}"
        )
    if not np.isfinite(frames.features).all():
        raise UtteranceError("features that are not finite numbers")
    return frames


def finished_summary(part):
    """The summary of a part that somebody has just finished."""
    deadline = time.monotonic() + SECONDS_TO_APPEAR
    while (summary := read_summary(part)) is None:
        if time.monotonic() > deadline:
            raise CorpusError(
                f"{part.path} is not there, though a worker has made it: the workers need the same "
                "shared file system"
            )
        time.sleep(1.0)
    return summary


def read_summary(part):
    """A finished part's summary; `None` where it has to be prepared, also where files changed."""
    try:
        summary = json.loads(_summary_path(part.path).read_text(encoding="utf-8"))
        if misfit(summary, SUMMARY) or part.path.stat().st_size != summary["bytes"]:
            return None
    except (FileNotFoundError, ValueError):
        return None
    return summary if summary.get(FILES, part.files) == part.files else None


def _summary_path(path):
    return path.with_suffix(".json")


class Moments:
    """Count, mean and sum of squared deviations, merged pairwise (Chan et al. 1979)."""

    def __init__(self, count=0, mean=0.0, squares=0.0):
        self.count = count
        self.mean = np.asarray(mean, np.float64)
        self.squares = np.asarray(squares, np.float64)

    def add(self, features):
        features = np.asarray(features, np.float64)
        mean = features.mean(axis=0)
        self.merge(Moments(len(features), mean, np.square(features - mean).sum(axis=0)))

    def merge(self, other):
        if not other.count:
            return
        count = self.count + other.count
        step = other.mean - self.mean
        self.squares = (
            self.squares + other.squares + np.square(step) * (self.count * other.count / count)
        )
        self.mean = self.mean + step * (other.count / count)
        self.count = count

    def document(self):
        return [self.count, self.mean.tolist(), self.squares.tolist()]


def this_process():
    """For names of unfinished files: a worker that counts as lost may write on beside another."""
    return f".{platform.node()}-{os.getpid()}"


@contextlib.contextmanager
def disk_errors(path):
    """Turns a disk that is full or cannot be written into a CorpusError."""
    try:
        yield
    except OSError as error:
        raise CorpusError(
            f"{path}: cannot be written or read ({error.strerror or error}); put that right and "
            "run the same command again: it continues"
        ) from error
    except (
        tf.errors.ResourceExhaustedError,
        tf.errors.PermissionDeniedError,
        tf.errors.UnknownError,
    ) as error:
        raise CorpusError(
            f"{path}: cannot be written ({error.message}); put that right and run the same "
            "command again: it continues"
        ) from error
