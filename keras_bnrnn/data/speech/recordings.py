"""Audio files block by block: decoded, checked, one channel, at one sampling rate.

Needs NumPy, soundfile and soxr alone, and nothing of this package, so that a script can load this
file where Keras is not installed.
"""

import contextlib
import mmap
import re
import shutil
import stat
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

SIXTEEN_BIT = 32768.0
LOWEST_RATE = 4000  # Hz: below it nothing is speech.
LOUDEST = 10.0  # 20 dB above full scale: what is louder was not meant to be in -1…1.
CANCELLED = 0.01  # Of the channels' mean power; what of it independent channels keep is a half.
BLOCK_FRAMES = 1 << 16
STANDARD_INPUT = "-"
URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")
# What libsndfile says of a header that does not tell the length of the samples that follow.
LENGTHS = re.compile(
    r"^ *(?:data|SSND|Data Size|Riff size|riff) *: (\d+) \(should be (\d+)\)", re.MULTILINE
)
UNKNOWN_LENGTH = 0x7FFF0000  # From here on, what programs put that write to a pipe.
OGG_END = 4  # The flag of a stream's last page.
SPHERE_HEADER = 1024
MP3_KILOBITS = {  # By MPEG version 1 or later: of a frame of layer III.
    True: (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    False: (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
MP3_FRAME_SAMPLES = 576  # Or twice as many.
MP3_SLACK = 1.1
MP3_RATES = (44100, 48000, 32000)


class AudioError(ValueError):
    """A recording cannot be used; the message names the file and says why."""


class Header(NamedTuple):
    """What a checked audio file says of itself; `frames` is `None` where it does not know."""

    format: str
    subtype: str
    samplerate: int
    channels: int
    frames: int | None
    extra_info: str


def read_header(path: str | Path) -> Header:
    """Reads and checks a file's header.

    Raises:
        AudioError: it is missing, empty, cut off, or no audio.
    """
    import soundfile

    if URL.match(str(path)):
        raise AudioError(f"{path}: a URL; copy the file to this machine and name the copy")
    try:
        kind = Path(path).stat()
        if stat.S_ISDIR(kind.st_mode):
            raise AudioError(f"{path}: a folder and no audio file")
        if not stat.S_ISREG(kind.st_mode):
            raise AudioError(f"{path}: no regular file: what comes through a pipe is read once")
        if kind.st_size == 0:
            raise AudioError(f"{path}: the audio file is empty (0 bytes)")
        info = soundfile.info(str(path))
    except FileNotFoundError as error:
        raise AudioError(f"{path}: there is no such audio file") from error
    except AudioError:
        raise
    except (soundfile.LibsndfileError, OSError, ValueError) as error:
        raise AudioError(
            f"{path}: not an audio file, it cannot be read as audio ({error})"
        ) from error
    # Of MP3 it is an estimate.
    frames = None if info.frames >= 1 << 62 or info.format == "MP3" else info.frames
    header = Header(
        info.format, info.subtype, info.samplerate, info.channels, frames, info.extra_info
    )
    if header.samplerate < LOWEST_RATE:
        raise AudioError(
            f"{path}: a sampling rate of {header.samplerate} Hz, where speech needs {LOWEST_RATE} "
            "or more: probably a damaged header"
        )
    missing = bytes_cut_off(header.extra_info)
    if missing:
        raise AudioError(f"{path}: the file was cut off: {missing} bytes are missing at its end")
    if frames == 0:
        raise AudioError(f"{path}: the audio file holds no samples")
    checked_end(Path(path), header.format, info.frames)
    return header


def bytes_cut_off(account: str) -> int:
    """How many bytes of samples a file lacks, by libsndfile's `account` of its header."""
    for told, there in LENGTHS.findall(account):
        if int(there) < int(told) < UNKNOWN_LENGTH:
            return int(told) - int(there)
    return 0


def checked_end(path: Path, kind: str, frames: int) -> None:
    """Checks the end of a file of a format whose end libsndfile does not check.

    Args:
        path: of the file.
        kind: libsndfile's name of the format.
        frames: how many samples libsndfile will read.

    Raises:
        AudioError: it is missing, or would not be read.
    """
    check = {"OGG": _end_of_ogg, "MP3": _end_of_mp3, "NIST": _end_of_sphere}.get(kind)
    if check is None:
        return
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as contents:
        samples = check(contents)
    if samples is None:
        raise AudioError(f"{path}: the file was cut off, its end is missing")
    if samples > MP3_SLACK * frames:
        raise AudioError(
            f"{path}: MP3 of varying bit rate without a header that tells its length, of which "
            "only a part would be read: convert it to another format"
        )


def _end_of_ogg(contents):
    place = contents.rfind(b"OggS")
    page = contents[place:]
    if place < 0 or len(page) < 27 or len(page) < 27 + page[26]:
        return None
    whole = len(page) >= 27 + page[26] + sum(page[27 : 27 + page[26]])
    return 0 if whole and page[5] & OGG_END else None


def _end_of_mp3(contents):
    """Samples in all frames, if the last is whole and there are as many as the first one says."""
    place = 0
    if contents[:3] == b"ID3":
        size = contents[6:10]
        place = 10 + sum(byte << shift for byte, shift in zip(size, (21, 14, 7, 0), strict=True))
    frames, told = 0, None
    while (size := _mp3_frame_size(contents[place : place + 4])) is not None:
        if frames == 0:
            first = contents[place : place + size]
            tag = max(first.find(b"Xing", 0, 64), first.find(b"Info", 0, 64))
            if tag > 0 and first[tag + 7] & 1:
                told = int.from_bytes(first[tag + 8 : tag + 12], "big")
        frames += 1
        place += size
    # What follows whole frames is a tag, or the rest of a file that is no plain row of frames.
    if place > len(contents) or (told is not None and frames < told):
        return None
    return 0 if told is not None else frames * MP3_FRAME_SAMPLES


def _mp3_frame_size(header):
    if len(header) < 4 or header[0] != 0xFF or header[1] & 0xE6 != 0xE2:  # Layer III.
        return None
    version = header[1] >> 3 & 3  # 3: MPEG 1, 2: MPEG 2, 0: MPEG 2.5
    bit_rate, rate = header[2] >> 4, header[2] >> 2 & 3
    if version == 1 or bit_rate in (0, 15) or rate == 3:
        return None
    first = version == 3
    samples_per_second = MP3_RATES[rate] // {3: 1, 2: 2, 0: 4}[version]
    bits = MP3_KILOBITS[first][bit_rate] * 1000
    return (144 if first else 72) * bits // samples_per_second + (header[2] >> 1 & 1)


def _end_of_sphere(contents):
    fields = dict(re.findall(rb"(?m)^(\w+) -\w+ (\S+)", contents[:SPHERE_HEADER]))
    names = (b"sample_count", b"channel_count", b"sample_n_bytes")
    if not all(fields.get(name, b"").isdigit() for name in names):
        return 0
    count, channels, width = (int(fields[name]) for name in names)
    coding = fields.get(b"sample_coding", b"pcm").split(b",")
    whole = len(coding) > 1 or len(contents) >= SPHERE_HEADER + count * channels * width
    return 0 if whole else None


def parse_channel(text: str) -> int | None:
    """The number of a channel, from 1 or from A; `None` for all, averaged (`mix`, or nothing).

    Raises:
        ValueError: the text is none of these.
    """
    text = text.strip().lower()
    if text in ("", "mix"):
        return None
    number = "ab".find(text) + 1 if text in ("a", "b") else int(text) if text.isdecimal() else 0
    if number < 1:
        raise ValueError(f"channel {text!r} is neither 'mix' nor a number from 1")
    return number


class OneChannel:
    """One channel of the blocks of a recording, and a check of what cannot be one.

    Args:
        path: names the recording in errors.
        channels: how many it has.
        channel: which of them, from 1; `None` averages them.
    """

    def __init__(self, path: str | Path, channels: int, channel: int | None) -> None:
        if channel is not None and channel > channels:
            raise AudioError(f"{path}: channel {channel} of {channels} was asked for")
        self._path, self._channel = path, channel
        self._power = self._mixed_power = 0.0

    def take(self, block: np.ndarray) -> np.ndarray:
        """`[frames]` of a block `[frames, channels]`."""
        if not np.isfinite(block).all():
            raise AudioError(f"{self._path}: samples that are not finite numbers")
        peak = np.abs(block).max(initial=0.0)
        if peak > LOUDEST:
            raise AudioError(
                f"{self._path}: samples up to {peak:.0f}, where audio is in -1…1: written in "
                "another scale (16-bit numbers: divide by 32768)"
            )
        if self._channel is not None or block.shape[1] == 1:
            return block[:, (self._channel or 1) - 1]
        mixed = block.mean(axis=1)
        self._power += np.square(block).sum() / block.shape[1]
        self._mixed_power += np.square(mixed).sum()
        return mixed

    def close(self) -> None:
        """Raises an AudioError where the channels cancelled each other."""
        if self._mixed_power < CANCELLED * self._power:
            raise AudioError(
                f"{self._path}: the channels cancel each other (one is the other's negative): "
                "choose a channel instead of their average"
            )


def read_blocks(
    path: str | Path,
    sample_rate: int,
    channel: int | None = None,
    start: float = 0.0,
    end: float | None = None,
    watch: Callable[[np.ndarray], object] = id,
) -> Iterator[np.ndarray]:
    """Reads one channel of a recording, or of a part of it, in bounded memory.

    Args:
        path: an audio file.
        sample_rate: wanted rate in Hz; other rates are resampled.
        channel: from 1; `None` averages all.
        start, end: of the part, in seconds.
        watch: called with each block `[samples]` as it is before it is resampled.

    Yields:
        `[samples]`, float32 in -1…1, whole multiples of 1/32768.

    Raises:
        AudioError: it is missing, damaged or no audio.
    """
    header = read_header(path)
    blocks = _decoded(path, header, channel, start, end, watch)
    yield from resampled(blocks, header, sample_rate)


def _decoded(path, header, channel, start, end, watch):
    import soundfile

    rate = header.samplerate
    first, last = part_of(path, header, start, end)
    taken = OneChannel(path, header.channels, channel)
    try:
        with soundfile.SoundFile(str(path)) as file:
            if first:
                file.seek(first)
            # Reading ends with a seek, which fails where the length is unknown.
            file.seekable = lambda: False
            place = first
            while last is None or place < last:
                wanted = BLOCK_FRAMES if last is None else min(BLOCK_FRAMES, last - place)
                block = file.read(wanted, dtype="float64", always_2d=True)
                place += len(block)
                samples = taken.take(block)
                watch(samples)
                yield samples
                if len(block) < wanted:
                    break
    except (soundfile.LibsndfileError, OSError) as error:
        raise AudioError(f"{path}: the audio cannot be decoded ({error})") from error
    if place == first:
        raise AudioError(f"{path}: the audio file holds no samples")
    if last is not None and place < last:
        raise AudioError(
            f"{path}: {place / rate:.2f} s of samples instead of {last / rate:.2f} s: the file "
            "was cut off"
        )
    taken.close()


def part_of(
    path: str | Path, header: Header, start: float, end: float | None
) -> tuple[int, int | None]:
    """First sample of a part and the one after its last; `None` for an end that is not known.

    Raises:
        AudioError: it is not within the recording.
    """
    first, last = round(start * header.samplerate), header.frames
    if end is not None:
        last = round(end * header.samplerate)
        # Ends are rounded, often to hundredths of a second.
        slack = 0.02 * header.samplerate
        if header.frames is not None and header.frames < last <= header.frames + slack:
            last = header.frames
    known = header.frames if header.frames is not None else last
    if not first >= 0 or (last is not None and not first < last <= known):
        length = "" if known is None else f" of {known / header.samplerate:.2f} s"
        until = "its end" if end is None else f"{end} s"
        raise AudioError(f"{path}: no part from {start} to {until} in a recording{length}")
    return first, last


def resampled(
    blocks: Iterable[np.ndarray], header: Header, sample_rate: int
) -> Iterator[np.ndarray]:
    """Blocks `[samples]` at the header's rate as float32 at another, on the grid of 16 bits."""
    if header.samplerate == sample_rate:
        yield from map(to_sixteen_bit, blocks)
        return
    import soxr

    stream = soxr.ResampleStream(header.samplerate, sample_rate, 1, dtype="float64")
    for block in blocks:
        yield to_sixteen_bit(stream.resample_chunk(block))
    yield to_sixteen_bit(stream.resample_chunk(np.zeros(0), last=True))


def to_sixteen_bit(samples: np.ndarray) -> np.ndarray:
    """Rounds to the grid of 16-bit samples, `[samples]` float32; louder than full scale is cut."""
    scaled = np.clip(np.rint(np.asarray(samples, np.float64) * SIXTEEN_BIT), -32768, 32767)
    return (scaled / SIXTEEN_BIT).astype(np.float32)


@contextlib.contextmanager
def as_file(path: str | Path) -> Iterator[str | Path]:
    """A regular file with what a path holds: standard input (`-`) and pipes are copied to one."""
    piped = str(path) == STANDARD_INPUT
    with contextlib.suppress(OSError, ValueError):
        piped = piped or stat.S_ISFIFO(Path(path).stat().st_mode)
    if not piped:
        yield path
        return
    with tempfile.NamedTemporaryFile(prefix="audio-") as copy:
        with contextlib.ExitStack() as stack:
            source = sys.stdin.buffer
            if str(path) != STANDARD_INPUT:
                source = stack.enter_context(open(path, "rb"))
            shutil.copyfileobj(source, copy)
        copy.flush()
        try:
            yield copy.name
        except AudioError as error:
            raise AudioError(str(error).replace(copy.name, str(path))) from error
