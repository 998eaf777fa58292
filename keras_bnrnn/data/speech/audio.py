"""Audio files to mono waveforms at one sampling rate.

16-bit WAV and FLAC are decoded by tensorflow-io where its native operations load (TensorFlow
2.16), and by soundfile elsewhere, to the same samples; every other format libsndfile knows goes
through soundfile. Everything downstream sees 16-bit samples, as if the file had been converted
beforehand: resampled audio is rounded to them, which also keeps empty bands at the level of
quantisation noise instead of the resampler's.
"""

import contextlib
import functools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from keras_bnrnn.data.errors import CorpusError, UtteranceError, attempt, missing_extra
from keras_bnrnn.data.speech.recordings import (
    LENGTHS,
    SIXTEEN_BIT,
    AudioError,
    Header,
    OneChannel,
    part_of,
    read_blocks,
    read_header,
    resampled,
    to_sixteen_bit,
)

AUDIO_SUFFIXES = (".flac", ".wav", ".ogg", ".opus", ".mp3", ".aiff", ".aif", ".au", ".sph")
DECODERS = ("auto", "tensorflow_io", "soundfile")


class Take(NamedTuple):
    """Which part of which channel of a recording.

    Attributes:
        path: an audio file.
        channel: from 1; `None` averages all.
        start: of the part, in seconds.
        end: of the part; `None` is the recording's.
    """

    path: str
    channel: int | None = None
    start: float = 0.0
    end: float | None = None


def read_audio(
    path: str | Path,
    sample_rate: int = 16000,
    decoder: str = "auto",
    channel: int | None = None,
    start: float = 0.0,
    end: float | None = None,
) -> np.ndarray:
    """Reads one channel of speech at a sampling rate.

    Args:
        path: an audio file.
        sample_rate: wanted rate in Hz; other rates are resampled.
        decoder: `"tensorflow_io"`, `"soundfile"` or `"auto"`, the former where it loads and
            knows the format.
        channel: which channel, from 1; by default several are averaged.
        start, end: the part to read, in seconds; by default all.

    Returns:
        `[samples]`, float32 in -1…1, whole multiples of 1/32768.

    Raises:
        UtteranceError: there is no such file, it is empty or cut off, cannot be decoded, or holds
            no audio: another scale, channels that cancel each other.
    """
    if decoder not in DECODERS:
        raise ValueError(f"decoder={decoder!r} is not one of {DECODERS}")
    header = audio_header(path)
    if decoder == "auto":
        known = tensorflow_io_audio() is not None and is_native(header)
        decoder = "tensorflow_io" if known else "soundfile"
    _require_soxr()
    with _utterance_errors():
        if decoder == "tensorflow_io":
            first, last = part_of(path, header, start, end)
            taken = OneChannel(path, header.channels, channel)
            samples = taken.take(_decode_with_tensorflow_io(path, header)[first:last])
            taken.close()
            blocks = resampled([samples], header, sample_rate)
        else:
            blocks = read_blocks(path, sample_rate, channel, start, end)
        samples = np.concatenate(list(blocks))
    if not len(samples):
        raise UtteranceError(f"{path}: too short for a single sample at {sample_rate} Hz")
    return samples


def read_audio_files(
    takes: Iterable[Take | str | Path], sample_rate: int = 16000
) -> Iterator[np.ndarray | UtteranceError]:
    """Reads many recordings, through `audio_dataset` where tensorflow-io decodes.

    Args:
        takes: what to read of which audio files; a path alone is all of it.
        sample_rate: wanted rate in Hz.

    Yields:
        For each of them what `read_audio` returns, or the `UtteranceError` that it raises.
    """
    takes = [take if isinstance(take, Take) else Take(take) for take in takes]
    if tensorflow_io_audio() is None:
        yield from (_samples_or_error(take, sample_rate) for take in takes)
        return
    import tensorflow as tf

    readable = []
    for take in takes:
        header = attempt(audio_header, take.path)
        readable.append(isinstance(header, Header) and _is_native_and_whole(take, header))
    native = [take.path for take, known in zip(takes, readable, strict=True) if known]
    decoded = iter(audio_dataset(native, sample_rate)) if native else iter(())
    for take, known in zip(takes, readable, strict=True):
        if known:
            try:
                yield next(decoded).numpy()
                continue
            except tf.errors.OpError:
                pass  # The other way of reading tells what is wrong with this file.
        yield _samples_or_error(take, sample_rate)


def _is_native_and_whole(take, header):
    return is_native(header) and header.channels == 1 and take[1:] == (None, 0.0, None)


def audio_dataset(paths, sample_rate=16000):
    """Waveforms of 16-bit WAV and FLAC files, decoded by tensorflow-io in the `tf.data` graph.

    Args:
        paths: list of audio files.
        sample_rate: wanted rate in Hz.

    Returns:
        A `tf.data.Dataset` of `[samples]`, float32 as from `read_audio`, in the order of `paths`.

    Raises:
        CorpusError: the native operations of tensorflow-io do not load here.
        UtteranceError: a file is missing, empty, or of another format.
    """
    import tensorflow as tf

    decoders = _native_decoders()
    headers = [_native_header(path) for path in paths]

    def finish(samples, rate):
        mono = (samples.astype(np.float64) / SIXTEEN_BIT).mean(axis=1)
        return to_sixteen_bit(resample(mono, int(rate), sample_rate))

    def decode(path, is_wav, rate):
        contents = tf.io.read_file(path)
        samples = tf.cond(
            is_wav,
            lambda: decoders.decode_wav(contents, dtype=tf.int16),
            lambda: decoders.decode_flac(contents, dtype=tf.int16),
        )
        samples = tf.numpy_function(finish, [samples, rate], tf.float32, stateful=False)
        return tf.ensure_shape(samples, [None])

    columns = (
        [str(path) for path in paths],
        [header.format == "WAV" for header in headers],
        [header.samplerate for header in headers],
    )
    dataset = tf.data.Dataset.from_tensor_slices(columns)
    return dataset.map(decode, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)


def _samples_or_error(take, sample_rate):
    path, *part = take
    return attempt(read_audio, path, sample_rate, "auto", *part)


def audio_header(path: str | Path) -> Header:
    """Format, sampling rate and length of an audio file that is there, whole and not empty.

    Raises:
        UtteranceError: it is not.
    """
    try:
        import soundfile  # noqa: F401  what read_header needs
    except ImportError as error:
        raise missing_extra("soundfile", "reading audio") from error
    with _utterance_errors():
        return read_header(path)


@contextlib.contextmanager
def _utterance_errors():
    try:
        yield
    except AudioError as error:
        raise UtteranceError(str(error)) from error


def is_native(header):
    """Whether tensorflow-io decodes a file with this header to the samples soundfile gives."""
    told = header.frames is not None and not LENGTHS.search(header.extra_info)
    return header.format in ("WAV", "FLAC") and header.subtype == "PCM_16" and told


@functools.cache
def tensorflow_io_audio():
    """The audio module of tensorflow-io, or `None` where its native operations do not load."""
    try:
        import tensorflow_io

        # The import succeeds where only the pure-Python part works: ask for an operation.
        tensorflow_io.audio.decode_wav(_silent_wav(), dtype="int16")
    except (ImportError, NotImplementedError, AttributeError, RuntimeError):
        return None
    return tensorflow_io.audio


def resample(samples, from_rate, to_rate):
    """Band-limited resampling of `[samples]` floats, in soxr's high quality."""
    if from_rate == to_rate:
        return samples
    return _require_soxr().resample(samples.astype(np.float64), from_rate, to_rate)


def _require_soxr():
    try:
        import soxr
    except ImportError as error:
        raise missing_extra("soxr", "resampling audio") from error
    return soxr


def _decode_with_tensorflow_io(path, header):
    import tensorflow as tf

    decoders = _native_decoders()
    _native_header(path, header)
    decode = decoders.decode_wav if header.format == "WAV" else decoders.decode_flac
    try:
        samples = decode(tf.io.read_file(str(path)), dtype=tf.int16).numpy()
    except tf.errors.OpError as error:
        raise UtteranceError(f"{path}: the audio cannot be decoded ({error.message})") from error
    return samples.astype(np.float64) / SIXTEEN_BIT


def _native_decoders():
    decoders = tensorflow_io_audio()
    if decoders is None:
        raise CorpusError(
            "decoder='tensorflow_io' was asked for, but the native operations of tensorflow-io "
            "do not load here: install keras-bnrnn[tfio] with TensorFlow 2.16, or use "
            "decoder='auto'"
        )
    return decoders


def _native_header(path, header=None):
    header = header or audio_header(path)
    if not is_native(header):
        raise UtteranceError(
            f"{path}: {header.format} {header.subtype} is not among tensorflow-io's formats "
            "here (16-bit WAV and FLAC); use decoder='auto'"
        )
    return header


def _silent_wav():
    """One 16-bit sample of silence as a WAV file's bytes."""
    import io
    import wave

    with io.BytesIO() as contents:
        with wave.open(contents, "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(8000)
            file.writeframes(b"\0\0")
        return contents.getvalue()
