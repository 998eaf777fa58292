"""Audio files: formats, rates, decoders and what cannot be read."""

import numpy as np
import pytest

from keras_bnrnn.data.errors import CorpusError, UtteranceError
from keras_bnrnn.data.speech import audio
from keras_bnrnn.data.speech.sources import ManifestSource, Utterance

soundfile = pytest.importorskip("soundfile", reason="the extra 'speech' is not installed")

needs_tensorflow_io = pytest.mark.skipif(
    audio.tensorflow_io_audio() is None, reason="tensorflow-io's native operations do not load"
)


def tone(sample_rate, seconds=0.5, frequency=440.0):
    return 0.3 * np.sin(2 * np.pi * frequency * np.arange(int(sample_rate * seconds)) / sample_rate)


@pytest.mark.parametrize("sample_rate", [8000, 16000, 22050, 44100, 48000])
@pytest.mark.parametrize("suffix", ["wav", "flac"])
def test_every_rate_becomes_the_wanted_one(tmp_path, sample_rate, suffix):
    path = tmp_path / f"tone.{suffix}"
    soundfile.write(path, tone(sample_rate), sample_rate)
    samples = audio.read_audio(path, 16000)
    assert samples.dtype == np.float32 and samples.shape == (8000,)
    np.testing.assert_array_equal(samples * 32768, np.rint(samples * 32768))
    np.testing.assert_allclose(samples[1000:-1000], tone(16000)[1000:-1000], atol=2e-3)


@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24", "FLOAT"])
def test_sample_formats(tmp_path, subtype):
    path = tmp_path / "tone.wav"
    soundfile.write(path, tone(16000), 16000, subtype=subtype)
    np.testing.assert_allclose(audio.read_audio(path), tone(16000), atol=1e-4)


@pytest.mark.parametrize("suffix", ["ogg", "mp3", "aiff", "au"])
def test_other_containers_in_stereo(tmp_path, suffix):
    path = tmp_path / f"tone.{suffix}"
    soundfile.write(path, np.stack([tone(44100), tone(44100)], axis=1), 44100)
    samples = audio.read_audio(path, 16000)
    assert abs(len(samples) - 8000) < 1000  # an mp3 is made of whole blocks
    spectrum = np.abs(np.fft.rfft(samples[1000:7400]))
    assert np.argmax(spectrum) == 176 and 0.25 < samples.max() < 0.35  # 440 Hz at 2.5 Hz a bin


def test_channels_are_averaged(tmp_path):
    path = tmp_path / "stereo.wav"
    left = tone(16000)
    soundfile.write(path, np.stack([left, np.zeros_like(left)], axis=1), 16000)
    np.testing.assert_allclose(audio.read_audio(path), left / 2, atol=1e-4)


@needs_tensorflow_io
@pytest.mark.parametrize("suffix", ["wav", "flac"])
@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("sample_rate", [8000, 16000, 44100])
def test_both_decoders_give_the_same_samples(tmp_path, suffix, channels, sample_rate):
    path = tmp_path / f"noise.{suffix}"
    noise = np.random.default_rng(0).integers(-32768, 32767, (sample_rate, channels), np.int16)
    soundfile.write(path, noise, sample_rate)
    np.testing.assert_array_equal(
        audio.read_audio(path, 16000, decoder="tensorflow_io"),
        audio.read_audio(path, 16000, decoder="soundfile"),
    )


@needs_tensorflow_io
def test_both_decoders_give_the_same_samples_of_real_speech(shared_data):
    for path in sorted((shared_data / "spoken-digits").rglob("*.flac"))[::60]:
        np.testing.assert_array_equal(
            audio.read_audio(path, 16000, decoder="tensorflow_io"),
            audio.read_audio(path, 16000, decoder="soundfile"),
        )


@needs_tensorflow_io
def test_a_truncated_file_fails_with_tensorflow_io_too(tmp_path):
    whole = tmp_path / "whole.flac"
    soundfile.write(whole, tone(16000), 16000)
    (tmp_path / "half.flac").write_bytes(whole.read_bytes()[:60])
    with pytest.raises(UtteranceError, match=r"half\.flac"):
        audio.read_audio(tmp_path / "half.flac")


def test_tensorflow_io_where_it_does_not_load_is_an_error(tmp_path, monkeypatch):
    path = tmp_path / "tone.wav"
    soundfile.write(path, tone(16000), 16000)
    monkeypatch.setattr(audio, "tensorflow_io_audio", lambda: None)
    with pytest.raises(CorpusError, match="tfio"):
        audio.read_audio(path, decoder="tensorflow_io")
    audio.read_audio(path, decoder="auto")


@pytest.mark.parametrize(
    "contents, reason",
    [(None, "no such"), (b"", "empty"), (b"not audio at all", "not an audio file")],
)
def test_unreadable_files_name_themselves(tmp_path, contents, reason):
    path = tmp_path / "bad.wav"
    if contents is not None:
        path.write_bytes(contents)
    with pytest.raises(UtteranceError, match=rf"bad\.wav.*{reason}"):
        audio.read_audio(path)


@pytest.mark.parametrize("suffix", ["wav", "flac"])
def test_fewer_samples_than_the_header_says(tmp_path, suffix):
    path = tmp_path / f"cut.{suffix}"
    soundfile.write(path, np.random.default_rng(0).normal(0, 0.1, 16000), 16000)
    audio.read_audio(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    with pytest.raises(UtteranceError, match=rf"cut\.{suffix}"):
        audio.read_audio(path)


@pytest.mark.parametrize("kind", ["WAVEX", "RF64", "W64", "AIFF", "AU"])
def test_other_containers_that_were_cut_off(tmp_path, kind):
    path = tmp_path / "cut.wav"
    samples = np.random.default_rng(0).normal(0, 0.1, 16000)
    soundfile.write(path, samples, 16000, format=kind, subtype="PCM_24")
    audio.read_audio(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    with pytest.raises(UtteranceError, match=r"cut\.wav.*cut off"):
        audio.read_audio(path)


@pytest.mark.parametrize("length", [0x7FFFF000, 0x7FFFFFFF, 0xFFFFFFFF])
def test_a_header_written_to_a_pipe_does_not_know_the_length(tmp_path, length):
    path = tmp_path / "pipe.wav"
    soundfile.write(path, np.zeros(1600), 16000)
    contents = bytearray(path.read_bytes())
    contents[40:44] = length.to_bytes(4, "little")
    path.write_bytes(contents)
    assert len(audio.read_audio(path)) == 1600


def test_a_file_without_samples_is_an_error(tmp_path):
    path = tmp_path / "none.wav"
    soundfile.write(path, np.zeros(0), 16000)
    with pytest.raises(UtteranceError, match="no samples"):
        audio.read_audio(path)


@needs_tensorflow_io
def test_the_dataset_gives_what_read_audio_gives(tmp_path):
    generator = np.random.default_rng(0)
    paths = []
    for suffix, channels, sample_rate in (("wav", 1, 8000), ("flac", 2, 16000), ("wav", 2, 44100)):
        paths.append(tmp_path / f"{sample_rate}.{suffix}")
        noise = generator.integers(-32768, 32767, (sample_rate // 2, channels), np.int16)
        soundfile.write(paths[-1], noise, sample_rate)
    seen = [samples.numpy() for samples in audio.audio_dataset(paths, 16000)]
    for samples, path in zip(seen, paths, strict=True):
        np.testing.assert_array_equal(samples, audio.read_audio(path, 16000, decoder="soundfile"))
    soundfile.write(tmp_path / "float.wav", tone(16000), 16000, subtype="FLOAT")
    with pytest.raises(UtteranceError, match="FLOAT is not among"):
        audio.audio_dataset([*paths, tmp_path / "float.wav"])


@needs_tensorflow_io
def test_preparation_decodes_in_the_graph(tmp_path, monkeypatch):
    paths = [tmp_path / "a.wav", tmp_path / "b.ogg", tmp_path / "c.flac"]
    for path in paths:
        soundfile.write(path, tone(16000), 16000)
    decoded, dataset = [], audio.audio_dataset
    monkeypatch.setattr(
        audio, "audio_dataset", lambda paths, rate: decoded.extend(paths) or dataset(paths, rate)
    )
    source = ManifestSource(manifest="unused")
    monkeypatch.setattr(ManifestSource, "label", lambda self, utterance, samples: samples)
    utterances = [Utterance(path.stem, "", "train", "", str(path)) for path in paths]
    for path, samples in zip(paths, source.prepare_all(utterances), strict=True):
        np.testing.assert_array_equal(samples, audio.read_audio(path, decoder="soundfile"))
    assert decoded == [str(paths[0]), str(paths[2])]


def test_reading_many_files_loses_no_good_one(tmp_path):
    """In either environment: through the dataset, or one after the other."""
    good = [tmp_path / "a.wav", tmp_path / "b.flac", tmp_path / "c.ogg", tmp_path / "d.wav"]
    for number, path in enumerate(good):
        soundfile.write(path, tone(16000, frequency=200.0 * (number + 1)), 16000)
    broken = tmp_path / "broken.flac"
    broken.write_bytes(good[1].read_bytes()[:3000])
    (tmp_path / "empty.wav").touch()
    paths = [good[0], tmp_path / "missing.wav", good[1], broken, good[2], tmp_path / "empty.wav"]
    paths.append(good[3])
    seen = dict(zip(paths, audio.read_audio_files(paths, 16000), strict=True))
    for path in good:
        np.testing.assert_array_equal(seen[path], audio.read_audio(path))
    for path in (broken, tmp_path / "missing.wav", tmp_path / "empty.wav"):
        assert isinstance(seen[path], UtteranceError) and path.name in str(seen[path])
