"""Recordings as people have them: cut, of unknown length or another scale, with channels."""

import os
from pathlib import Path

import numpy as np
import pytest

from keras_bnrnn.data.errors import UtteranceError
from keras_bnrnn.data.speech.audio import read_audio
from keras_bnrnn.data.speech.recordings import (
    BLOCK_FRAMES,
    AudioError,
    _mp3_frame_size,
    parse_channel,
    read_blocks,
    read_header,
)

soundfile = pytest.importorskip("soundfile", reason="the extra 'speech' is not installed")


def noise(*shape):
    return 0.1 * np.random.default_rng(0).normal(size=shape)


@pytest.mark.parametrize(
    ("suffix", "kind", "subtype"),
    [
        (".ogg", "OGG", "VORBIS"),
        (".opus", "OGG", "OPUS"),
        (".mp3", "MP3", "MPEG_LAYER_III"),
        (".sph", "NIST", "PCM_16"),
    ],
)
@pytest.mark.parametrize("share", [0.6, 0.99])
def test_files_whose_end_is_missing(tmp_path, suffix, kind, subtype, share):
    path = tmp_path / f"cut{suffix}"
    soundfile.write(path, noise(48000), 16000, format=kind, subtype=subtype)
    assert abs(len(read_audio(path)) - 48000) < 3000
    contents = path.read_bytes()
    path.write_bytes(contents[: int(share * len(contents))])
    with pytest.raises(UtteranceError, match=rf"cut\{suffix}: the file was cut off"):
        read_audio(path)


def test_mp3_without_a_count_of_its_frames(tmp_path):
    path = tmp_path / "plain.mp3"
    soundfile.write(path, noise(48000), 16000, format="MP3")
    contents = path.read_bytes()
    # Without its first frame, which holds the count; followed by a tag, as players write it.
    frame = _mp3_frame_size(contents[:4])
    path.write_bytes(b"ID3\4\0\0\0\0\0\5hello" + contents[frame:] + b"TAG" + bytes(125))
    # libsndfile takes the first frame's bit rate for that of all.
    with pytest.raises(UtteranceError, match="varying bit rate without a header"):
        read_audio(path)
    path.write_bytes(contents[frame:-10])
    with pytest.raises(UtteranceError, match="cut off"):
        read_audio(path)


def with_unknown_length(path):
    """Clears the number of samples in a FLAC file's header, as an encoder that writes to a pipe."""
    contents = bytearray(path.read_bytes())
    contents[21] &= 0xF0
    contents[22:26] = bytes(4)
    path.write_bytes(contents)


def test_flac_of_unknown_length(tmp_path):
    path = tmp_path / "pipe.flac"
    soundfile.write(path, noise(BLOCK_FRAMES + 5000), 16000)
    expected = read_audio(path)
    with_unknown_length(path)
    assert read_header(path).frames is None
    np.testing.assert_array_equal(read_audio(path), expected)
    np.testing.assert_array_equal(read_audio(path, start=0.5, end=1.0), expected[8000:16000])
    path.write_bytes(path.read_bytes()[:100_000])
    with pytest.raises(UtteranceError, match=r"pipe\.flac: the audio cannot be decoded"):
        read_audio(path)


def test_a_sample_that_resamples_to_nothing(tmp_path):
    soundfile.write(tmp_path / "one.wav", [0.1], 48000)
    with pytest.raises(UtteranceError, match="too short for a single sample"):
        read_audio(tmp_path / "one.wav")


def test_a_rate_that_is_none_of_speech(tmp_path):
    soundfile.write(tmp_path / "slow.wav", noise(100), 1)
    with pytest.raises(UtteranceError, match="sampling rate of 1 Hz"):
        read_audio(tmp_path / "slow.wav")


def test_another_scale_is_no_audio(tmp_path):
    path = tmp_path / "scale.wav"
    soundfile.write(path, 32768 * noise(1000), 16000, subtype="FLOAT")
    with pytest.raises(UtteranceError, match="another scale"):
        read_audio(path)
    soundfile.write(path, 20 * noise(1000), 16000, subtype="FLOAT")  # Hot, but audio.
    assert np.abs(read_audio(path)).max() == 1.0


def test_channels(tmp_path):
    path, samples = tmp_path / "two.wav", noise(8000, 2)
    soundfile.write(path, samples, 16000)
    tolerance = {"atol": 1e-4}
    np.testing.assert_allclose(read_audio(path), samples.mean(axis=1), **tolerance)
    np.testing.assert_allclose(read_audio(path, channel=2), samples[:, 1], **tolerance)
    with pytest.raises(UtteranceError, match="channel 3 of 2"):
        read_audio(path, channel=3)
    soundfile.write(path, samples[:, :1] * [1, -1], 16000)
    with pytest.raises(UtteranceError, match="cancel each other"):
        read_audio(path)
    np.testing.assert_allclose(read_audio(path, channel=1), samples[:, 0], **tolerance)


def test_names_of_channels():
    assert [parse_channel(text) for text in ("", "mix", "1", "2", "A", "b")] == [
        None,
        None,
        1,
        2,
        1,
        2,
    ]
    for text in ("0", "left", "-1"):
        with pytest.raises(ValueError, match="neither"):
            parse_channel(text)


def test_parts_of_a_recording(tmp_path):
    path = tmp_path / "long.wav"
    soundfile.write(path, noise(32000), 16000)
    whole = read_audio(path)
    np.testing.assert_array_equal(read_audio(path, start=0.25, end=1.5), whole[4000:24000])
    assert len(read_audio(path, start=1.9, end=2.01)) == 1600
    for part in ((0.0, 3.0), (2.5, None), (1.0, 1.0)):
        with pytest.raises(UtteranceError, match="no part from"):
            read_audio(path, start=part[0], end=part[1])


@pytest.mark.parametrize("rate", [8000, 16000, 44100])
def test_blocks_are_the_whole(tmp_path, rate):
    path = tmp_path / "long.wav"
    soundfile.write(path, noise(3 * BLOCK_FRAMES + 17), rate)
    blocks = list(read_blocks(path, 16000))
    assert len(blocks) >= 4
    np.testing.assert_array_equal(np.concatenate(blocks), read_audio(path))


def test_what_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "pipe.wav")
    for path, reason in (
        (tmp_path, "a folder"),
        (Path("/"), "a folder"),
        ("a\0b.wav", "not an audio file"),
        (tmp_path / "pipe.wav", "no regular file"),
        ("https://example.com/a.wav", "https://example.com/a.wav: a URL"),
    ):
        with pytest.raises(AudioError, match=reason):
            read_header(path)
        with pytest.raises(UtteranceError, match=reason):
            read_audio(path)
