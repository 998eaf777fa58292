"""Kaldi's tables and archives, read safely: no pickles, and commands only where allowed."""

import codecs
import io
import re
import struct
import subprocess
import tempfile
import zlib
from pathlib import Path

import numpy as np

from keras_bnrnn.data.encodings import utf_8
from keras_bnrnn.data.errors import CorpusError, PipeError, UtteranceError, missing_extra
from keras_bnrnn.data.speech.audio import read_audio

# What Kaldi's binary matrices and vectors begin with; its text begins with a bracket.
BINARY = re.compile(rb"\0B(\x04|(FM|DM|FV|DV|CM|CM2|CM3) )")
LONGEST_BEGINNING = 16
FLAC = re.compile(r"flac(?: -[cds]+)+ ([^\s|;&<>$`'\"-][^\s|;&<>$`'\"]*) \|")
# A path, the matrix's place in it, and its rows and columns, the last of each included.
LOCATION = re.compile(r"(.*?)(?::(\d+))?(?:\[(\d+:\d+|:?)(?:,(\d+:\d+|:?))?\])?", re.DOTALL)


def read_integer_vectors(path):
    """Yields `(utterance, [frames] int32)` of a Kaldi archive, text or binary, gzipped or not.

    What is no vector of integers yields an `UtteranceError` in its place.

    Raises:
        ValueError: the archive is cut off or damaged, after what precedes the damage.
    """
    contents, whole = _unzipped(Path(path).read_bytes())
    if b"\0" in contents[:4096]:
        file = io.BytesIO(contents)
        try:
            while name := _kaldiio().matio.read_token(file):
                vector = np.asarray(_read_kaldi(file))
                if vector.ndim != 1 or vector.dtype.kind != "i":
                    vector = UtteranceError(f"{path}: {name} is no vector of integers")
                yield name, vector
        except (AssertionError, struct.error) as error:  # what kaldiio makes of a cut archive
            raise ValueError("damaged or cut off") from error
    else:
        *lines, rest = contents.removeprefix(codecs.BOM_UTF8).split(b"\n")
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield _integers_of_line(line, f"{path}, line {number}")
        whole = whole and not rest
    if not whole:
        raise ValueError("cut off")


def _integers_of_line(line, place):
    name, *numbers = line.decode("utf-8", "replace").split()
    try:
        vector = np.array([int(number) for number in numbers], np.int64)
        if np.abs(vector).max(initial=0) > np.iinfo(np.int32).max:
            raise OverflowError("beyond 32 bits")
        return name, vector.astype(np.int32)
    except (ValueError, OverflowError) as error:
        return name, UtteranceError(f"{place}: not a line of integers ({error})")


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


def read_table(path, repeated=False, bad=None):
    """Reads a Kaldi table of lines `key value…`.

    Args:
        path: the file, UTF-8 or UTF-16; one that is not there is an empty table.
        repeated: keys may be repeated.
        bad: a dictionary, to which the keys of lines that cannot be used are added with the reason.

    Returns:
        A dictionary; a list of pairs where keys may be repeated.

    Raises:
        CorpusError: a line cannot be used, and `bad` is not given.
    """
    pairs, wrong = [], {}
    contents = utf_8(path.read_bytes()) if path.is_file() else b""
    for line in contents.splitlines():
        key, *value = line.split(maxsplit=1) or [b""]
        try:
            if key:
                pairs.append((key.decode("utf-8"), b"".join(value).decode("utf-8").strip()))
        except UnicodeDecodeError:
            wrong[key.decode("utf-8", "replace")] = "not UTF-8"
    table = {}
    for key, value in pairs if not repeated else []:
        if table.setdefault(key, value) != value:
            wrong[key] = "there twice, and differently"
    if bad is not None:
        bad.update(wrong)
    elif wrong:
        key, reason = next(iter(wrong.items()))
        raise CorpusError(f"{path}: what it says of {key} is {reason}")
    return pairs if repeated else table


def is_command(location, pipes, entry=""):
    """Whether a location is a command to run; PipeError if it is and may not be."""
    command = location.endswith("|")
    if command and not pipes:
        raise PipeError(
            f"{entry}{location!r} is a command. If you trust where it comes from, let it run with "
            "pipes=True"
        )
    return command


def without_flac(location):
    """The file that `flac -c -d -s FILE |` decodes, which needs no command; else the location."""
    decoded = FLAC.fullmatch(location)
    return decoded[1] if decoded else location


def run_command(location):
    """What the command of a location writes; UtteranceError if that is nothing, or it fails."""
    ran = subprocess.run(location[:-1], shell=True, capture_output=True, check=False)
    if ran.returncode == 0 and ran.stdout:
        return ran.stdout
    told = ran.stderr.decode("utf-8", "replace").strip().splitlines()
    reason = next((line for line in told if "ERROR" in line), told[-1] if told else "")
    did = f"returned non-zero exit status {ran.returncode}" if ran.returncode else "wrote nothing"
    raise UtteranceError(f"{location}: the command {did}{reason and f' ({reason})'}")


def find_archive(location, folder):
    """An archive's `path:offset`, its path looked for from the data directory upwards too.

    Raises:
        CorpusError: the working directory has another one of the name.
    """
    path = LOCATION.fullmatch(location)[1]
    if Path(path).is_absolute():
        return location
    above = (base / path for base in (folder, *folder.resolve().parents))
    found = next((place for place in above if place.exists()), None)
    here = Path(path).exists()
    if here and found and not found.samefile(path):
        raise CorpusError(
            f"{folder}: {path} could be {Path(path).absolute()} or {found.absolute()}: give the "
            "command from the folder that the paths begin in"
        )
    return location if here or not found else f"{found}{location[len(path) :]}"


def load_audio(take, sample_rate, pipes=False):
    """`[samples]` of an entry of `wav.scp`, as `read_audio` gives them.

    Args:
        take: a `Take` whose path may be `command |`, which writes an audio file.
        sample_rate: in Hz.
        pipes: whether a command may be run.

    Raises:
        PipeError: a command, which may not be run.
        UtteranceError: there is nothing to read there.
    """
    path, *part = take
    if not is_command(path, pipes):
        return read_audio(path, sample_rate, "auto", *part)
    with tempfile.NamedTemporaryFile(prefix="audio-") as file:
        file.write(run_command(path))
        file.flush()
        try:
            return read_audio(file.name, sample_rate, "auto", *part)
        except UtteranceError as error:
            raise UtteranceError(str(error).replace(file.name, path)) from error


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
            return np.asarray(_read_kaldi(io.BytesIO(run_command(location))))
        path, offset, *ranges = LOCATION.fullmatch(location).groups()
        with open(path, "rb") as file:
            file.seek(int(offset or 0))
            return np.asarray(_read_kaldi(file))[tuple(map(_slice, ranges))]
    except FileNotFoundError as error:
        raise UtteranceError(f"{location}: the archive is missing") from error
    except (CorpusError, UtteranceError):
        raise
    except Exception as error:  # kaldiio lets whatever struct and NumPy raise come through
        # What kaldiio asserts of an archive that is cut off says nothing.
        reason = f"{type(error).__name__}: {error}" if str(error) else "damaged or cut off"
        raise UtteranceError(f"{location}: not readable as a Kaldi matrix ({reason})") from error


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


def _kaldiio():
    try:
        import kaldiio
    except ImportError as error:
        raise missing_extra("kaldiio", "reading Kaldi archives") from error
    return kaldiio
