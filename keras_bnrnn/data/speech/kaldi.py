"""What a Kaldi recipe leaves on disk: features in archives, and alignments to pdf-ids."""

import atexit
import codecs
import contextlib
import functools
import hashlib
import io
import os
import re
import struct
import subprocess
import tempfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from keras_bnrnn.data.errors import CorpusError, PipeError, UtteranceError, missing_extra
from keras_bnrnn.data.speech.alignment import State, match_lengths
from keras_bnrnn.data.speech.corpus import SPLITS
from keras_bnrnn.data.speech.features import append_differences, normalize_features
from keras_bnrnn.data.speech.sources import (
    Failure,
    LabelledFrames,
    Source,
    Utterance,
    dealt_out,
    require_folder,
)
from keras_bnrnn.data.speech.splits import split_of_folders

STATIC_DIMENSION = 41
CMVN_FLOOR = 1e-20  # Kaldi's.
CMVN_KINDS = ("none", "mean", "mean_variance")
ALIGNMENT_PATTERNS = ("ali*", "pdf*", "*.ali", "*.pdf")
TEXT_MODELS = ("final.mdl.txt", "final.txt", "final.mdl")
# What Kaldi's binary matrices and vectors begin with; its text begins with a bracket.
BINARY = re.compile(rb"\0B(\x04|(FM|DM|FV|DV|CM|CM2|CM3) )")
LONGEST_BEGINNING = 16
# A path, the matrix's place in it, and its rows and columns, the last of each included.
LOCATION = re.compile(r"(.*?)(?::(\d+))?(?:\[(\d+:\d+|:?)(?:,(\d+:\d+|:?))?\])?", re.DOTALL)
NOT_ALIGNMENTS = (".scp", ".log", ".mdl")
GENDERS = ("f", "m")


@dataclass(frozen=True, repr=False)
class PdfIds:
    """Where in a file of int32 an utterance's pdf-ids are, and their checksum."""

    file: str
    offset: int
    frames: int
    sha256: str

    def __repr__(self):
        return self.sha256

    def read(self):
        """`[frames]`, int32."""
        return np.fromfile(self.file, np.int32, self.frames, offset=self.offset)


@dataclass(frozen=True)
class KaldiEntry:
    """Where an utterance's features, cepstral statistics and pdf-ids are."""

    features: str
    cmvn: str
    pdf_ids: PdfIds
    num_pdfs: int

    def __str__(self):
        return self.features


@dataclass(frozen=True)
class KaldiSource(Source):
    """A Kaldi data directory and an alignment directory.

    The data directory holds `feats.scp`, or sub-folders named after train, dev and test that do.
    Utterances of which nothing is said in `utt2spk` are their own speakers; `spk2gender` is kept
    with the utterances. Paths in `feats.scp`
    are looked for from the working directory and from the data directory upwards. Features of 41
    dimensions (energy and 40 channels) are completed with first and second differences, others
    are taken as they are.

    Alignments are integer vectors in archives `ali*` or `pdf*` anywhere in the alignment
    directory, text or binary, gzipped or not; where the ids of train and dev are the same, in
    sub-folders named after them. They are pdf-ids, as `ali-to-pdf` writes them,
    unless the directory holds the text form of `final.mdl` (as `final.mdl`, `final.mdl.txt` or
    `final.txt`): then they are transition-ids. While a corpus is prepared they lie in a temporary
    file, 4 bytes a frame.

    Args:
        input_dir: the data directory.
        alignment_dir: the alignment directory.
        cmvn: `"none"`, or what of the statistics in `cmvn.scp` to apply: `"mean"` or
            `"mean_variance"`.
        splits: `"layout"` (the sub-folders), or shares such as `"train=0.9,dev=0.1"`.
        seed: of the deal.
        pipes: run the commands of entries such as `gunzip -c feats.gz |`. Only for a directory that
            you trust; without it they are refused.
    """

    input_dir: str = ""
    alignment_dir: str = ""
    cmvn: str = "none"
    splits: str = "layout"
    seed: int = 0
    pipes: bool = False

    name = "kaldi"
    sample_rate = None

    def __post_init__(self):
        if self.cmvn not in CMVN_KINDS:
            raise CorpusError(f"cmvn={self.cmvn!r} is not one of {', '.join(CMVN_KINDS)}")

    def utterances(self):
        root = require_folder(self.input_dir)
        lists = sorted(root.rglob("feats.scp"))
        if not lists:
            raise CorpusError(f"input_dir={root}: no feats.scp in it or below")
        alignments = read_alignments(require_folder(self.alignment_dir, "alignment_dir"))
        listed, failures = [], []
        for path in lists:
            self._list_folder(root, path, alignments, listed, failures)
        return dealt_out(listed, failures, self)

    def _list_folder(self, root, path, alignments, listed, failures):
        folder = path.parent
        speakers = read_table(folder / "utt2spk")
        not_utf_8 = set()
        transcripts = read_table(folder / "text", not_utf_8=not_utf_8)
        genders = read_table(folder / "spk2gender")
        for speaker, gender in genders.items():
            if gender not in GENDERS:
                raise CorpusError(
                    f"{folder / 'spk2gender'}: {speaker} is {gender!r}, not one of "
                    f"{', '.join(GENDERS)}"
                )
        cmvn = read_table(folder / "cmvn.scp")
        if self.cmvn != "none" and not cmvn:
            raise CorpusError(f"cmvn={self.cmvn}: {folder} has no cmvn.scp")
        split = split_of_folders(path.relative_to(root).parts[:-1]) or split_of_folders([root.name])
        for name, location in read_table(path, repeated=True):
            try:
                pdf_ids = alignments.find(name, split)
            except UtteranceError as error:
                failures.append(Failure(name, str(error)))
                continue
            if name in not_utf_8:
                failures.append(Failure(name, f"{folder / 'text'}: transcript is not UTF-8"))
                continue
            speaker = speakers.get(name, "")
            statistics = ""
            if self.cmvn != "none":
                statistics = cmvn.get(speaker or name, "")
                if not statistics:
                    failures.append(Failure(name, f"{folder / 'cmvn.scp'}: nothing for {speaker}"))
                    continue
                statistics = self._archive(folder / "cmvn.scp", speaker or name, statistics)
            features = self._archive(path, name, location)
            entry = KaldiEntry(features, statistics, pdf_ids, alignments.num_pdfs)
            gender = genders.get(speaker or name, "")
            listed.append(Utterance(name, speaker, split, transcripts.get(name, ""), entry, gender))

    def _archive(self, scp, name, location):
        """Where the matrix is that an scp names; commands only where they are allowed."""
        if is_command(location, self.pipes, f"{scp}, {name}: "):
            return location
        return find_archive(location, scp.parent)

    def prepare(self, utterance):
        entry = utterance.location
        features = load_matrix(entry.features, self.pipes)
        if features.ndim != 2 or not len(features):
            raise UtteranceError(f"{entry.features}: no matrix of features, {features.shape}")
        if self.cmvn != "none":
            features = apply_cmvn(
                features, load_matrix(entry.cmvn, self.pipes), self.cmvn == "mean_variance"
            )
        if features.shape[1] == STATIC_DIMENSION:
            features = append_differences(features)
        pdf_ids = entry.pdf_ids.read()
        largest = entry.num_pdfs - 1
        if len(pdf_ids) and not 0 <= pdf_ids.min() <= pdf_ids.max() <= largest:
            raise UtteranceError(
                f"labels {pdf_ids.min()} to {pdf_ids.max()} are out of range: pdf-ids are 0 to "
                f"{largest}"
            )
        features, pdf_ids = match_lengths(np.asarray(features, np.float32), pdf_ids)
        return LabelledFrames(features, [State(int(pdf)) for pdf in pdf_ids])

    def file(self, utterance):
        return utterance.location.features

    def files(self, utterance):
        entry = utterance.location
        return [LOCATION.fullmatch(archive)[1] for archive in (entry.features, entry.cmvn)]

    def feature_settings(self):
        return {"kind": "kaldi", "cmvn": self.cmvn}

    def all_states(self, occurring):
        return [State(pdf) for pdf in range(read_alignments(Path(self.alignment_dir)).num_pdfs)]


class Alignments:
    """Pdf-ids per utterance, and what could not be read.

    Attributes:
        num_pdfs: of the model, or one more than the largest id seen.
        damage: messages, one for each archive that could not be read to its end.
    """

    def __init__(self):
        self.num_pdfs = 0
        self.damage = []
        self._found = {}

    def __len__(self):
        return len(self._found)

    def add(self, name, split, path, pdf_ids):
        """Adds what the archive `path`, in a folder of `split` if any, says of an utterance."""
        self._found.setdefault((name, split), {})[pdf_ids] = path

    def find(self, name, split):
        """The `PdfIds` of an utterance, those in a folder of its split before others.

        Raises:
            UtteranceError: there are none, or different ones.
        """
        for candidates in ([split], [""], SPLITS):
            found = {}
            for candidate in candidates:
                found |= self._found.get((name, candidate), {})
            if len({pdf_ids.sha256 for pdf_ids in found}) > 1:
                places = ", ".join(map(str, found.values()))
                raise UtteranceError(f"the id occurs twice, aligned differently: in {places}")
            if found:
                return next(iter(found))
        raise UtteranceError("; ".join(["no alignment of this utterance", *self.damage]))


@functools.lru_cache(maxsize=1)
def read_alignments(folder):
    """Reads every alignment archive of a folder and below.

    Raises:
        CorpusError: there is none, or the ids cannot be told from transition-ids.
    """
    paths = sorted(
        {
            path
            for pattern in ALIGNMENT_PATTERNS
            for path in folder.rglob(pattern)
            if path.is_file() and path.suffix not in NOT_ALIGNMENTS
        }
    )
    if not paths:
        raise CorpusError(f"alignment_dir={folder}: no archive named ali* or pdf* in it or below")
    model, binary_model = _text_model(folder)
    if model is None and binary_model and not all(p.name.startswith("pdf") for p in paths):
        raise CorpusError(
            f"alignment_dir={folder}: beside a binary final.mdl, ali.*.gz holds transition-ids. "
            'Write pdf-ids with: ali-to-pdf final.mdl "ark:gunzip -c ali.*.gz|" ark,t:pdf.txt, '
            "into a folder of their own, or write the model as text with: "
            "gmm-copy --binary=false final.mdl final.mdl.txt"
        )
    alignments, pdf_of = Alignments(), None
    if model is not None:
        pdf_of, alignments.num_pdfs = read_transition_model(model)
    # In a file, because the alignments of a thousand hours would take gigabytes of memory.
    with tempfile.NamedTemporaryFile(prefix="pdf-ids-", delete=False) as file:
        atexit.register(_remove, file.name)
        for path in paths:
            split = split_of_folders(path.relative_to(folder).parts[:-1])
            try:
                for name, vector in read_integer_vectors(path):
                    if model is None:
                        largest = int(vector.max(initial=-1))
                        alignments.num_pdfs = max(alignments.num_pdfs, 1 + largest)
                    else:
                        vector = _pdfs_of_transitions(vector, pdf_of)
                    contents = np.asarray(vector, np.int32).tobytes()
                    checksum = hashlib.sha256(contents).hexdigest()
                    pdf_ids = PdfIds(file.name, file.tell(), len(vector), checksum)
                    alignments.add(name, split, path, pdf_ids)
                    file.write(contents)
            except (OSError, ValueError) as error:
                alignments.damage.append(f"{path} cannot be read to its end ({error})")
    if not alignments:
        raise CorpusError(
            f"alignment_dir={folder}: nothing could be read; {'; '.join(alignments.damage)}"
        )
    return alignments


def _remove(path):
    with contextlib.suppress(OSError):
        os.unlink(path)


def _pdfs_of_transitions(ids, pdf_of):
    """Pdf-ids of transition-ids; -1 for an impossible one, to fail with its utterance."""
    inside = (ids > 0) & (ids < len(pdf_of))
    return np.where(inside, pdf_of[np.where(inside, ids, 0)], -1).astype(np.int32)


def read_integer_vectors(path):
    """Yields `(utterance, [frames] int32)` of a Kaldi archive, text or binary, gzipped or not.

    Raises:
        ValueError: the archive is cut off or damaged, after what precedes the damage.
    """
    contents, whole = _unzipped(Path(path).read_bytes())
    if b"\0" in contents[:4096]:
        file = io.BytesIO(contents)
        try:
            while name := _kaldiio().matio.read_token(file):
                yield name, _read_kaldi(file)
        except (AssertionError, struct.error) as error:  # what kaldiio makes of a cut archive
            raise ValueError("damaged or cut off") from error
    else:
        *lines, rest = contents.split(b"\n")
        for line in lines:
            name, *numbers = line.decode("utf-8").split()
            yield name, np.array([int(number) for number in numbers], np.int32)
        whole = whole and not rest
    if not whole:
        raise ValueError("cut off")


def _unzipped(contents):
    """A file's bytes without gzip, as far as they go, and whether that is to the end."""
    parts = []
    while contents.startswith(b"\x1f\x8b"):
        member = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)
        # Block by block, because what precedes damage in the same block is lost.
        for start in range(0, len(contents), 1024):
            try:
                parts.append(member.decompress(contents[start : start + 1024]))
            except zlib.error:
                return b"".join(parts), False
            if member.eof:
                contents = member.unused_data + contents[start + 1024 :]
                break
        else:
            return b"".join(parts), False
    return (b"".join(parts), not contents) if parts else (contents, True)


def read_transition_model(path):
    """Reads `TransitionModel`'s text form.

    Returns:
        An array of pdf-ids indexed by transition-id (which begin at 1), and the number of pdfs.

    Raises:
        CorpusError: the file is not of this form.
    """
    try:
        tokens = iter(Path(path).read_text(encoding="utf-8").split())
        topology, tuples = {}, []
        for token in tokens:
            if token == "<TopologyEntry>":
                _read_topology_entry(tokens, topology)
            elif token in ("<Triples>", "<Tuples>"):
                width = 3 if token == "<Triples>" else 4
                for _ in range(int(next(tokens))):
                    tuples.append([int(next(tokens)) for _ in range(width)])
                break
        if not tuples:
            raise ValueError("no transition states")
        pdf_of = [-1]
        for phone, state, forward, *self_loop in tuples:
            for destination in topology[phone][state]:
                loop = self_loop[0] if self_loop else forward
                pdf_of.append(loop if destination == state else forward)
        return np.array(pdf_of, np.int32), max(pdf_of) + 1
    except (StopIteration, RuntimeError, ValueError, KeyError) as error:
        raise CorpusError(f"{path}: not a transition model in text form") from error


def _read_topology_entry(tokens, topology):
    """Adds `{phone: {state: [destination, …]}}` of one `<TopologyEntry>`."""
    phones, states, state = [], {}, None
    for token in tokens:
        if token == "<ForPhones>":
            while (token := next(tokens)) != "</ForPhones>":
                phones.append(int(token))
        elif token == "<State>":
            state = int(next(tokens))
            states[state] = []
        elif token == "<Transition>":
            states[state].append(int(next(tokens)))
            next(tokens)  # its probability
        elif token == "</TopologyEntry>":
            break
    topology.update(dict.fromkeys(phones, states))


def _text_model(folder):
    """The text form of the model if there is one, and whether there is a binary one."""
    binary = False
    for name in TEXT_MODELS:
        for path in sorted(folder.rglob(name)):
            with open(path, "rb") as file:
                if file.read(2) == b"\0B":
                    binary = True
                else:
                    return path, binary
    return None, binary


def read_table(path, repeated=False, not_utf_8=None):
    """Reads a Kaldi table of lines `key value…`.

    Args:
        path: the file; one that is not there is an empty table.
        repeated: keys may be repeated.
        not_utf_8: a set, to which the keys of lines are added that cannot be decoded.

    Returns:
        A dictionary; a list of pairs where keys may be repeated.

    Raises:
        CorpusError: a line cannot be decoded, and `not_utf_8` is not given.
    """
    pairs = []
    contents = path.read_bytes().removeprefix(codecs.BOM_UTF8) if path.is_file() else b""
    for line in contents.splitlines():
        key, *value = line.split(maxsplit=1) or [b""]
        try:
            if key:
                pairs.append((key.decode("utf-8"), b"".join(value).decode("utf-8").strip()))
        except UnicodeDecodeError as error:
            if not_utf_8 is None:
                raise CorpusError(f"{path}: not UTF-8 ({error})") from error
            not_utf_8.add(key.decode("utf-8", "replace"))
    return pairs if repeated else dict(pairs)


def is_command(location, pipes, entry=""):
    """Whether a location is a command to run; PipeError if it is and may not be."""
    command = location.endswith("|")
    if command and not pipes:
        raise PipeError(
            f"{entry}{location!r} is a command. If you trust where it comes from, let it run with "
            "pipes=True"
        )
    return command


def find_archive(location, folder):
    """An archive's `path:offset`, its path looked for from the data directory upwards too."""
    path = LOCATION.fullmatch(location)[1]
    if Path(path).is_absolute() or Path(path).exists():
        return location
    for base in (folder, *folder.resolve().parents):
        if (base / path).exists():
            return f"{base / path}{location[len(path) :]}"
    return location


def load_matrix(location, pipes=False):
    """A matrix of an archive.

    Args:
        location: `path`, `path:offset`, either with a range such as `[0:99]`, or `command |`.
        pipes: whether a command may be run.

    Raises:
        PipeError: a command, which may not be run.
        UtteranceError: the archive is missing or damaged, or holds something else.
    """
    try:
        if is_command(location, pipes):
            ran = subprocess.run(location[:-1], shell=True, stdout=subprocess.PIPE, check=True)
            return np.asarray(_read_kaldi(io.BytesIO(ran.stdout)))
        path, offset, *ranges = LOCATION.fullmatch(location).groups()
        with open(path, "rb") as file:
            file.seek(int(offset or 0))
            return np.asarray(_read_kaldi(file))[tuple(map(_slice, ranges))]
    except FileNotFoundError as error:
        raise UtteranceError(f"{location}: the archive is missing") from error
    except CorpusError:
        raise
    except Exception as error:  # kaldiio lets whatever struct and NumPy raise come through
        raise UtteranceError(
            f"{location}: not readable as a Kaldi matrix ({type(error).__name__}: {error})"
        ) from error


def _slice(text):
    """`3:5`, the last included, as a slice; all for an empty text, a colon or `None`."""
    first, _, last = (text or "").partition(":")
    return slice(int(first), int(last) + 1) if last else slice(None)


def _read_kaldi(file):
    """A matrix or vector from a file, which stands after it then.

    kaldiio reads audio, NumPy's arrays and Python's pickles too, and these run whatever they hold.

    Raises:
        ValueError: it is none of Kaldi's.
    """
    place = file.tell()
    beginning = file.read(LONGEST_BEGINNING)
    file.seek(place)
    if not BINARY.match(beginning) and not beginning.lstrip().startswith(b"["):
        raise ValueError(f"no matrix or vector of Kaldi's, it begins with {beginning[:4]!r}")
    return _kaldiio().matio.read_kaldi(file)


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


def _kaldiio():
    try:
        import kaldiio
    except ImportError as error:
        raise missing_extra("kaldiio", "reading Kaldi archives") from error
    return kaldiio
