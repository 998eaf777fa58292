"""Audio files to mono waveforms at one sampling rate.

16-bit WAV and FLAC are decoded by tensorflow-io where its native operations load (TensorFlow
2.16), and by soundfile elsewhere, to the same samples; every other format libsndfile knows goes
through soundfile. Everything downstream sees 16-bit samples, as if the file had been converted
beforehand: resampled audio is rounded to them, which also keeps empty bands at the level of
quantisation noise instead of the resampler's.
"""

import functools
import re
from pathlib import Path

import numpy as np

from keras_bnrnn.data.errors import CorpusError, UtteranceError, missing_extra

AUDIO_SUFFIXES = (".flac", ".wav", ".ogg", ".opus", ".mp3", ".aiff", ".aif", ".au", ".sph")
DECODERS = ("auto", "tensorflow_io", "soundfile")
SIXTEEN_BIT = 32768.0
# What libsndfile says of a header that does not tell the length of the samples that follow.
LENGTHS = re.compile(
    r"^ *(?:data|SSND|Data Size|Riff size|riff) *: (\d+) \(should be (\d+)\)", re.MULTILINE
)
UNKNOWN_LENGTH = 0x7FFF0000  # From here on, what programs put that write to a pipe.


def read_audio(path, sample_rate=16000, decoder="auto"):
    """Reads one channel of speech at a sampling rate.

    Several channels are averaged.

    Args:
        path: an audio file.
        sample_rate: wanted rate in Hz; other rates are resampled.
        decoder: `"tensorflow_io"`, `"soundfile"` or `"auto"`, the former where it loads and
            knows the format.

    Returns:
        `[samples]`, float32 in -1…1, whole multiples of 1/32768.

    Raises:
        UtteranceError: there is no such file, it is empty or cannot be decoded.
    """
    if decoder not in DECODERS:
        raise ValueError(f"decoder={decoder!r} is not one of {DECODERS}")
    header = audio_header(path)
    if decoder == "auto":
        known = tensorflow_io_audio() is not None and is_native(header)
        decoder = "tensorflow_io" if known else "soundfile"
    if decoder == "tensorflow_io":
        samples = _decode_with_tensorflow_io(path, header)
    else:
        samples = _decode_with_soundfile(path)
    samples = samples.mean(axis=1) if samples.shape[1] > 1 else samples[:, 0]
    if not np.isfinite(samples).all():
        raise UtteranceError(f"{path}: samples that are not finite numbers")
    return to_sixteen_bit(resample(samples, header.samplerate, sample_rate))


def read_audio_files(paths, sample_rate=16000):
    """Reads many files, through `audio_dataset` where tensorflow-io decodes.

    Args:
        paths: list of audio files.
        sample_rate: wanted rate in Hz.

    Yields:
        For each path what `read_audio` returns, or the `UtteranceError` that it raises.
    """
    if tensorflow_io_audio() is None:
        yield from (_samples_or_error(path, sample_rate) for path in paths)
        return
    import tensorflow as tf

    readable = []
    for path in paths:
        try:
            readable.append(is_native(audio_header(path)))
        except UtteranceError:
            readable.append(False)
    native = [path for path, known in zip(paths, readable, strict=True) if known]
    decoded = iter(audio_dataset(native, sample_rate)) if native else iter(())
    for path, known in zip(paths, readable, strict=True):
        if known:
            try:
                yield next(decoded).numpy()
                continue
            except tf.errors.OpError:
                pass  # The other way of reading tells what is wrong with this file.
        yield _samples_or_error(path, sample_rate)


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


def _samples_or_error(path, sample_rate):
    try:
        return read_audio(path, sample_rate)
    except UtteranceError as error:
        return error


def audio_header(path):
    """Format, sampling rate and length of an audio file that is there and not empty."""
    soundfile = _soundfile()
    path = Path(path)
    try:
        if path.stat().st_size == 0:
            raise UtteranceError(f"{path}: the audio file is empty (0 bytes)")
        header = soundfile.info(str(path))
    except FileNotFoundError as error:
        raise UtteranceError(f"{path}: there is no such audio file") from error
    except (soundfile.LibsndfileError, OSError) as error:
        raise UtteranceError(f"{path}: not an audio file that can be read ({error})") from error
    missing = bytes_cut_off(header.extra_info)
    if missing:
        raise UtteranceError(
            f"{path}: {missing} bytes fewer than its header says: the file was cut off"
        )
    if header.frames == 0:
        raise UtteranceError(f"{path}: the audio file holds no samples")
    return header


def is_native(header):
    """Whether tensorflow-io decodes a file with this header to the samples soundfile gives."""
    told = not LENGTHS.search(header.extra_info)
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
    try:
        import soxr
    except ImportError as error:
        raise missing_extra("soxr", "resampling audio") from error
    return soxr.resample(samples.astype(np.float64), from_rate, to_rate)


def to_sixteen_bit(samples):
    """Rounds to the grid of 16-bit samples, `[samples]` float32; louder than full scale is cut."""
    scaled = np.clip(np.rint(np.asarray(samples, np.float64) * SIXTEEN_BIT), -32768, 32767)
    return (scaled / SIXTEEN_BIT).astype(np.float32)


def _decode_with_soundfile(path):
    soundfile = _soundfile()
    try:
        samples, _ = soundfile.read(str(path), dtype="float64", always_2d=True)
    except (soundfile.LibsndfileError, OSError) as error:
        raise UtteranceError(f"{path}: the audio cannot be decoded ({error})") from error
    if len(samples) == 0:
        raise UtteranceError(f"{path}: the audio file holds no samples")
    return samples


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


def bytes_cut_off(account):
    """How many bytes of samples a file lacks, by libsndfile's `account` of its header."""
    for told, there in LENGTHS.findall(account):
        if int(there) < int(told) < UNKNOWN_LENGTH:
            return int(told) - int(there)
    return 0


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


def _soundfile():
    try:
        import soundfile
    except ImportError as error:
        raise missing_extra("soundfile", "reading audio") from error
    return soundfile
