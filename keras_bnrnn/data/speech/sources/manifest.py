"""Recordings and their transcripts, listed in a table."""

import collections
import math
import os
import stat
import sys
from dataclasses import dataclass, replace
from pathlib import Path

from keras_bnrnn.data.encodings import utf_8
from keras_bnrnn.data.errors import CorpusError
from keras_bnrnn.data.speech.audio import (
    Take,
)
from keras_bnrnn.data.speech.corpus import SPLITS
from keras_bnrnn.data.speech.recordings import STANDARD_INPUT, URL, parse_channel
from keras_bnrnn.data.speech.sources.base import Failure, RecordedSource, Utterance, dealt_out
from keras_bnrnn.data.speech.splits import (
    named_folders,
    split_of_folders,
)

MANIFEST_REQUIRED = ["audio_path", "transcript"]
MANIFEST_COLUMNS = [*MANIFEST_REQUIRED, "id", "speaker", "split", "channel", "start", "end"]
# What Common Voice calls them; its other columns are of no use here.
COMMON_VOICE = {"client_id": "speaker", "path": "audio_path", "sentence": "transcript"}
COMMON_VOICE_AUDIO = "clips"
GENDERS = {"female": "f", "male": "m"}  # By the part before an underscore.


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
