"""A prepared speech corpus on disk: `corpus.json` and its shards of records.

    corpus.json                     features, states, splits with their shards, mean, variance
    failures.tsv                    utterances that were left out, and why
    train-00000-of-00002.tfrecord   `tf.train.Example`s, one per utterance

An example holds `id`, `speaker`, `gender` and `transcript` (bytes), `features` (float32, `[T * D]`,
not normalised), `labels` (int64, `[T]`: indices into the states of `corpus.json`, or -1 in an
utterance that nothing aligns, to be decoded) and, where labels were aligned, `alignment_score`
(float32, `[1]`: per frame, 0 at best).

In a corpus of characters `labels` are those of the text instead: indices from 1 into the states,
of which the first is no character, and one beyond them for a character that training lacks.
"""

import hashlib
import itertools
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from keras_bnrnn.data.errors import CorpusError
from keras_bnrnn.data.speech.alignment import State
from keras_bnrnn.data.speech.transcripts import TextRules
from keras_bnrnn.files import NUMBER, misfit

FORMAT_VERSION = 1
CORPUS_FILE = "corpus.json"
FAILURES_FILE = "failures.tsv"
SPLITS = ("train", "dev", "test")
# What `corpus.json` and each of its splits has.
CORPUS = {
    "source": str,
    "sample_rate": (*NUMBER, type(None)),
    "features": {"dimension": int},
    "states": [{"name": str}],
    "splits": dict,
    "mean": [NUMBER],
    "variance": [NUMBER],
}
SPLIT = {
    "utterances": int,
    "frames": int,
    "lengths": dict,
    "state_frames": [int],
    "shards": [{"file": str, "utterances": int, "frames": int, "bytes": int, "sha256": str}],
}
UNLABELLED = -1  # The label of every frame of an utterance that nothing aligns.


@dataclass(frozen=True)
class Corpus:
    """What `corpus.json` says.

    Attributes:
        path: the corpus folder.
        source: where it came from, e.g. `"librispeech"`.
        sample_rate: of the audio behind the features, in Hz; `None` if unknown.
        features: the set-up of the features, among it `"dimension"`.
        states: `states[k]` says what label k stands for (`"name"` and, where known, `"phone"`,
            `"position"`, `"senone"` or `"pdf"`). Of characters `"name"` alone; 0 is the blank.
        splits: `{"train": {"utterances", "frames", "shards": […], …}, "dev": …}`; of a test split
            also `"unlabelled"`, how many utterances nothing aligns, if there are any; of
            characters `"unknown_characters"`, which training lacks, and how often they occur. Of
            a corpus made like another `"unknown_states"`, whose frames are labelled -1.
        mean, variance: of the training split's features, `[dimension]`, float32.
        document: the whole of `corpus.json`.
    """

    path: str
    source: str
    sample_rate: int | None
    features: dict[str, Any]
    states: list[dict[str, Any]]
    splits: dict[str, Any]
    mean: np.ndarray
    variance: np.ndarray
    document: dict[str, Any] = field(repr=False)

    @property
    def num_states(self) -> int:
        """Number of labels."""
        return len(self.states)

    @property
    def alphabet(self) -> list[str] | None:
        """The characters of the labels from 1; `None` where labels are those of frames."""
        if "text" not in self.document:
            return None
        return [state["name"] for state in self.states[1:]]

    @property
    def text_rules(self) -> TextRules:
        """What became of the transcripts, in a corpus of characters."""
        text = self.document["text"]
        return TextRules(text["keep_case"], text["keep_punctuation"])

    def require_labels(self, kind: str) -> None:
        """Checks what the corpus is labelled with.

        Args:
            kind: `"frames"` or `"characters"`.

        Raises:
            CorpusError: with the other; says what to do.
        """
        here = "frames" if self.alphabet is None else "characters"
        if here != kind:
            advice = {
                "frames": "it has text and no labels of frames: prepare it with labels=senones, or "
                "train it with train_ctc.py",
                "characters": "it has labels of frames and no text: prepare it with "
                "labels=characters, or train it with train_speech.py",
            }
            raise CorpusError(f"{self.path}: {advice[kind]}")

    @property
    def dimension(self) -> int:
        """Number of features per frame."""
        return self.features["dimension"]

    @property
    def checksum(self) -> str:
        """SHA-256 of `document`, in hexadecimal: tells corpora apart."""
        return hashlib.sha256(json.dumps(self.document, sort_keys=True).encode()).hexdigest()

    def phones(self, labels: npt.ArrayLike) -> list[str]:
        """The phone string of a label sequence: one name per run of frames in the same phone.

        Args:
            labels: `[T]`, integers.

        Returns:
            A list of phone names. States without a phone (Kaldi's pdf-ids) stand for themselves;
            frames without a label (-1) have none.
        """
        states = [self.states[k] for k in np.asarray(labels) if k != UNLABELLED]
        names = [state.get("phone", state["name"]) for state in states]
        return [name for name, _ in itertools.groupby(names)]

    def split(self, name: str) -> dict[str, Any]:
        """The entry of a split.

        Raises:
            CorpusError: the corpus has no such split.
        """
        if name not in self.splits:
            raise CorpusError(f"{self.path}: no split {name!r}; it has {', '.join(self.splits)}")
        return self.splits[name]

    def has_labels(self, split: str) -> bool:
        """Whether every utterance of a split is labelled, so that models can be scored on it."""
        return not self.split(split).get("unlabelled")

    def shard_paths(self, split: str) -> list[str]:
        """Paths of a split's shards, in order."""
        return [_join(self.path, shard["file"]) for shard in self.split(split)["shards"]]

    def damaged_shards(self) -> list[str]:
        """Paths of the shards whose checksums differ from `corpus.json`'s. Reads every byte."""
        return [
            path
            for split, entry in self.splits.items()
            for path, shard in zip(self.shard_paths(split), entry["shards"], strict=True)
            if file_checksum(path) != shard["sha256"]
        ]

    def check_shards(self, split: str) -> None:
        """Checks that a split's shards are there and as long as they were written.

        Raises:
            CorpusError: names the first shard that is missing or of another length.
        """
        for shard in self.split(split)["shards"]:
            path = _join(self.path, shard["file"])
            try:
                length = tf.io.gfile.stat(path).length
            except tf.errors.NotFoundError as error:
                raise CorpusError(f"{path}: the shard is missing; prepare it again") from error
            if length != shard["bytes"]:
                raise CorpusError(
                    f"{path}: the shard has {length} bytes instead of {shard['bytes']}, so it was "
                    "truncated or overwritten; prepare the corpus again"
                )


def load_corpus(data_dir: str | os.PathLike[str]) -> Corpus:
    """Reads `corpus.json`.

    Args:
        data_dir: a folder that preparation wrote, local or any path `tf.io.gfile` knows.

    Returns:
        A `Corpus`.

    Raises:
        CorpusError: the folder holds no corpus, or one this version cannot read.

    Example:

    >>> from keras_bnrnn.data import load_corpus
    >>> corpus = load_corpus("corpus")  # doctest: +SKIP
    >>> corpus.dimension, corpus.num_states  # doctest: +SKIP
    (123, 309)
    """
    data_dir = str(data_dir)
    path = _join(data_dir, CORPUS_FILE)
    try:
        with tf.io.gfile.GFile(path) as file:
            document = json.loads(file.read())
    except (tf.errors.NotFoundError, tf.errors.FailedPreconditionError) as error:
        raise CorpusError(
            f"{path}: no such file; is {data_dir} a prepared corpus, and was its preparation "
            "finished?"
        ) from error
    except ValueError as error:
        raise CorpusError(f"{path}: not readable as JSON ({error})") from error
    except tf.errors.OpError as error:
        raise CorpusError(f"{path}: cannot be read ({error.message})") from error
    version = document.get("format_version") if isinstance(document, dict) else None
    if version != FORMAT_VERSION:
        raise CorpusError(
            f"{path}: format_version {version!r}, but this version reads {FORMAT_VERSION}; "
            "prepare the corpus again"
        )
    wrong = misfit(document, CORPUS)
    for name, entry in {} if wrong else document["splits"].items():
        wrong = wrong or misfit(entry, SPLIT, f"splits.{name}")
    if wrong:
        raise CorpusError(f"{path} {wrong}; prepare the corpus again, or put a copy of it back")
    _check_names(path, document["splits"])
    sizes = {"dimension": document["features"]["dimension"]}
    sizes |= {name: len(document[name]) for name in ("mean", "variance")}
    if len(set(sizes.values())) > 1:
        described = ", ".join(f"{name} {size}" for name, size in sizes.items())
        raise CorpusError(f"{path} has features of several sizes ({described}); prepare it again")
    return Corpus(
        path=data_dir,
        source=document["source"],
        sample_rate=document["sample_rate"],
        features=document["features"],
        states=document["states"],
        splits=document["splits"],
        mean=np.array(document["mean"], np.float32),
        variance=np.array(document["variance"], np.float32),
        document=document,
    )


def verify_corpus(data_dir):
    """Reads every byte of a corpus and lists what is damaged.

    Checks the shards' checksums, that every record can be read, that the labels are among the
    states and the features finite and of the right number, and the counts.

    Args:
        data_dir: a corpus folder.

    Returns:
        A list of messages, each naming a file and, where it applies, an utterance; empty if the
        corpus is sound.
    """
    corpus = load_corpus(data_dir)
    problems = []
    for split, entry in corpus.splits.items():
        seen = set()
        for shard in entry["shards"]:
            path = _join(corpus.path, shard["file"])
            if not tf.io.gfile.exists(path):
                problems.append(f"{path}: the shard is missing")
                continue
            if file_checksum(path) != shard["sha256"]:
                problems.append(f"{path}: the checksum differs from corpus.json's")
            problems.extend(_verify_records(path, shard, corpus, seen, entry))
        if len(seen) != entry["utterances"]:
            problems.append(
                f"{corpus.path}: {split} has {len(seen)} readable utterances, corpus.json says "
                f"{entry['utterances']}"
            )
    return problems


def file_checksum(path):
    """SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with tf.io.gfile.GFile(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def make_example(
    utterance_id, speaker, transcript, features, labels, gender="", alignment_score=None
):
    """Serialises an utterance.

    Args:
        utterance_id, speaker, transcript, gender: strings, empty where unknown.
        features: `[T, D]`, float32.
        labels: `[T]`, integers; of characters as many as there are.
        alignment_score: of an `Alignment`; `None` where there is none.

    Returns:
        Bytes of a `tf.train.Example`.
    """

    def text(value):
        return tf.train.Feature(bytes_list=tf.train.BytesList(value=[value.encode("utf-8")]))

    features = np.asarray(features, np.float32)
    example = tf.train.Example(
        features=tf.train.Features(
            feature={
                "id": text(utterance_id),
                "speaker": text(speaker),
                "gender": text(gender),
                "transcript": text(transcript),
                "features": tf.train.Feature(float_list=tf.train.FloatList(value=features.ravel())),
                "labels": tf.train.Feature(
                    int64_list=tf.train.Int64List(value=np.asarray(labels, np.int64))
                ),
            }
        )
    )
    if alignment_score is not None:
        example.features.feature["alignment_score"].float_list.value.append(alignment_score)
    return example.SerializeToString(deterministic=True)


def read_example(record, dimension):
    """The reverse of `make_example`, in NumPy.

    Returns:
        A dictionary with `id`, `speaker`, `gender`, `transcript`, `features` `[T, D]`, `labels`
        (`[T]`, or of the text) and `alignment_score`, which is `None` where there is none.

    Raises:
        CorpusError: the number of features is not a multiple of the dimension.
    """
    fields = tf.train.Example.FromString(record).features.feature
    features = np.array(fields["features"].float_list.value, np.float32)
    labels = np.array(fields["labels"].int64_list.value, np.int64)
    utterance_id = fields["id"].bytes_list.value[0].decode("utf-8")
    if features.size % dimension:
        raise CorpusError(
            f"utterance {utterance_id}: {features.size} features for frames of {dimension}"
        )
    return {
        "alignment_score": next(iter(fields["alignment_score"].float_list.value), None),
        **{
            name: b"".join(fields[name].bytes_list.value).decode("utf-8")
            for name in ("id", "speaker", "gender", "transcript")
        },
        "features": features.reshape(-1, dimension),
        "labels": labels,
    }


def read_utterances(corpus: Corpus, split: str) -> Iterator[dict[str, Any]]:
    """Yields a split's utterances one after the other.

    Args:
        corpus: what `load_corpus` gave.
        split: `"train"`, `"dev"` or `"test"`.

    Returns:
        An iterator of dictionaries: `id`, `speaker`, `gender` and `transcript`, strings; `features`
        `[time, dimension]`, float32; `labels` `[time]`, int64; `alignment_score`, which is `None`
        where there is none.

    Raises:
        CorpusError: a shard is missing or damaged.

    Example:

    >>> from keras_bnrnn.data import load_corpus, read_utterances
    >>> for utterance in read_utterances(load_corpus("corpus"), "dev"):  # doctest: +SKIP
    ...     print(utterance["id"], utterance["transcript"])
    """
    corpus.check_shards(split)
    for path in corpus.shard_paths(split):
        try:
            for record in tf.data.TFRecordDataset(path):
                yield read_example(record.numpy(), corpus.dimension)
        except tf.errors.DataLossError as error:
            raise CorpusError(f"{path}: damaged record ({error.message})") from error


def read_alignment_scores(corpus: Corpus, split: str) -> list[tuple[float, str]]:
    """`(score, id)` of a split's utterances, worst first; empty where labels were not aligned.

    Raises:
        CorpusError: a shard is missing or damaged.
    """
    corpus.check_shards(split)
    wanted = {
        "id": tf.io.FixedLenFeature([], tf.string),
        "alignment_score": tf.io.FixedLenFeature([], tf.float32, np.nan),
    }
    found = []
    for path in corpus.shard_paths(split):
        try:
            for record in tf.data.TFRecordDataset(path).batch(256):
                fields = tf.io.parse_example(record, wanted)
                scores, ids = fields["alignment_score"].numpy(), fields["id"].numpy()
                found += [
                    (float(score), name.decode())
                    for score, name in zip(scores, ids, strict=True)
                    if not np.isnan(score)
                ]
        except tf.errors.DataLossError as error:
            raise CorpusError(f"{path}: damaged record ({error.message})") from error
    return sorted(found)


def find_utterance(corpus, utterance_id):
    """Looks an utterance up by its id, in one split after the other.

    An id is unique in its split only; `"dev/ID"` says which is meant.

    Returns:
        The split's name, and the utterance as `read_example` gives it.

    Raises:
        CorpusError: no split has it.
    """
    for split in corpus.splits:
        for utterance in read_utterances(corpus, split):
            if utterance_id in (utterance["id"], f"{split}/{utterance['id']}"):
                return split, utterance
    raise CorpusError(f"{corpus.path}: no utterance {utterance_id!r} in {', '.join(corpus.splits)}")


def corpus_states(corpus):
    """The `State` of every label."""
    return [State.from_entry(entry) for entry in corpus.states]


def _check_names(path, splits):
    """Refuses names of splits and shards that would lead out of the corpus's folder."""
    folder = os.path.dirname(path)
    for split, entry in splits.items():
        for name in (split, *(shard["file"] for shard in entry["shards"])):
            inside = name not in ("", ".", "..") and not set(name) & set("/\\\0")
            if inside and "://" not in folder:
                file = os.path.realpath(os.path.join(folder, name))
                inside = os.path.dirname(file) == os.path.realpath(folder)
            if not inside:
                raise CorpusError(f"{path}: {name!r} does not name a file in this folder")


def _verify_records(path, shard, corpus, seen, entry):
    problems, frames, utterances = [], 0, 0
    try:
        for record in tf.data.TFRecordDataset(path):
            try:
                utterance = read_example(record.numpy(), corpus.dimension)
            except CorpusError as error:
                problems.append(f"{path}: {error}")
                continue
            name = f"{path}: utterance {utterance['id']}"
            utterances += 1
            frames += len(utterance["features"])
            if utterance["id"] in seen:
                problems.append(f"{name}: occurs twice")
            seen.add(utterance["id"])
            if not np.isfinite(utterance["features"]).all():
                problems.append(f"{name}: features that are not finite numbers")
            labels = utterance["labels"]
            if corpus.alphabet is None and len(labels) != len(utterance["features"]):
                problems.append(
                    f"{name}: {len(labels)} labels for {len(utterance['features'])} frames"
                )
            if entry.get("unlabelled") and (labels == UNLABELLED).all():
                continue
            if entry.get("unknown_states"):
                labels = labels[labels != UNLABELLED]
            if corpus.alphabet is not None:
                labels = labels[labels != corpus.num_states]  # What training lacks.
            if len(labels) and not 0 <= labels.min() <= labels.max() < corpus.num_states:
                problems.append(
                    f"{name}: labels {labels.min()} to {labels.max()}, but there are "
                    f"{corpus.num_states} states"
                )
    except tf.errors.DataLossError as error:
        problems.append(f"{path}: damaged after {utterances} utterances ({error.message})")
    if (utterances, frames) != (shard["utterances"], shard["frames"]):
        problems.append(
            f"{path}: {utterances} utterances and {frames} frames, corpus.json says "
            f"{shard['utterances']} and {shard['frames']}"
        )
    return problems


def _join(folder, name):
    return str(Path(folder) / name) if "://" not in folder else f"{folder.rstrip('/')}/{name}"
