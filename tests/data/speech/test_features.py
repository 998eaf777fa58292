"""LogMelFilterBank against Kaldi's own arithmetic, and the promises of a layer."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_bnrnn.data.speech.audio import read_audio, resample
from keras_bnrnn.data.speech.features import LogMelFilterBank, append_differences
from keras_bnrnn.data.speech.fourier import power_spectrum

TOLERANCE = 1e-3


def kaldi_features(samples, sample_rate, snip_edges=True):
    knf = pytest.importorskip("kaldi_native_fbank", reason="kaldi-native-fbank is not installed")
    options = knf.FbankOptions()
    options.frame_opts.samp_freq = sample_rate
    options.frame_opts.dither = 0
    options.frame_opts.snip_edges = snip_edges
    options.mel_opts.num_bins = 40
    options.use_energy = True
    options.energy_floor = 0
    extractor = knf.OnlineFbank(options)
    extractor.accept_waveform(sample_rate, (samples * 32768).tolist())
    extractor.input_finished()
    static = np.array([extractor.get_frame(t) for t in range(extractor.num_frames_ready)])
    if not len(static):
        return np.zeros((0, 123), np.float32)
    return knf.compute_deltas(knf.DeltaOptions(order=2, window=2), static.astype(np.float32))


def speech(shared_data, count):
    paths = sorted((shared_data / "spoken-digits").rglob("*.flac"))
    return paths[:: len(paths) // count][:count]


def noise(samples, seed=0):
    generator = np.random.default_rng(seed)
    return np.rint(generator.normal(0, 3000, samples)).astype(np.float32) / 32768


@pytest.mark.parametrize("snip_edges", [True, False])
@pytest.mark.parametrize("sample_rate", [8000, 16000])
def test_agrees_with_kaldi_on_real_speech(shared_data, sample_rate, snip_edges):
    """Also where there is no speech: above 4 kHz, as the recordings are of 8 kHz."""
    pytest.importorskip("soxr", reason="the extra 'speech' is not installed")
    soundfile = pytest.importorskip("soundfile", reason="the extra 'speech' is not installed")
    layer = LogMelFilterBank(sample_rate=sample_rate, snip_edges=snip_edges)
    # TensorFlow rewrites the arithmetic of a graph; that of preparation and of an export is one.
    graph = tf.function(layer, input_signature=[tf.TensorSpec([None, None], tf.float32)])
    for path in speech(shared_data, 6):
        recorded, rate = soundfile.read(path)
        # Resampled and not rounded, the empty bands lie lower still.
        floats = resample(0.7 * recorded, rate, sample_rate).astype(np.float32)
        for samples in (read_audio(path, sample_rate), floats):
            expected = kaldi_features(samples, sample_rate, snip_edges)
            for function in (layer, graph):
                actual = function(samples[np.newaxis])[0].numpy()
                np.testing.assert_allclose(actual, expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("length", [4, 8, 256, 512, 2048])
def test_spectrum_is_that_of_kaldis_transform(length):
    knf = pytest.importorskip("kaldi_native_fbank", reason="kaldi-native-fbank is not installed")
    # Two tones that leave most of the spectrum 100 dB below.
    time = np.arange(length, dtype=np.float64)[:, np.newaxis]
    signals = 1e4 * np.sin(0.3 * time + [0, 1, 2]) + 3e3 * np.cos(1.1 * time)
    signals = (signals * np.hanning(length)[:, np.newaxis]).astype(np.float32)
    actual = power_spectrum(tf.constant(signals)).numpy()
    assert actual.shape == (length // 2 + 1, 3)
    for column, signal in zip(actual.T, signals.T, strict=True):
        first, last, *rest = np.array(knf.Rfft(length).compute(signal.tolist()), np.float32)
        parts = [(first, 0), *zip(rest[::2], rest[1::2], strict=True), (last, 0)]
        np.testing.assert_allclose(column, [r * r + i * i for r, i in parts], rtol=1e-6)
    exact = np.square(np.abs(np.fft.rfft(signals.astype(np.float64), axis=0)))
    np.testing.assert_allclose(actual, exact, atol=1e-5 * exact.max())


@pytest.mark.parametrize("snip_edges", [True, False])
@pytest.mark.parametrize("sample_rate", [8000, 11025, 16000, 44100])
def test_agrees_with_kaldi_on_noise(sample_rate, snip_edges):
    samples = noise(sample_rate + 7)
    expected = kaldi_features(samples, sample_rate, snip_edges)
    actual = LogMelFilterBank(sample_rate=sample_rate, snip_edges=snip_edges)(samples[np.newaxis])
    np.testing.assert_allclose(actual[0], expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("snip_edges", [True, False])
def test_agrees_with_kaldi_on_a_few_frames(snip_edges):
    layer = LogMelFilterBank(snip_edges=snip_edges)
    lengths = [80, 100, 240, 399, 400, 401, 560, 700]
    batch = np.full((len(lengths), 900), 0.9, np.float32)
    for row, length in enumerate(lengths):
        batch[row, :length] = noise(length)
    together = layer(batch, lengths=lengths).numpy()
    for row, length in enumerate(lengths):
        expected = kaldi_features(noise(length), 16000, snip_edges)
        for actual in (layer(noise(length)[np.newaxis])[0], together[row, : len(expected)]):
            np.testing.assert_allclose(actual, expected, rtol=0, atol=TOLERANCE)
        assert not together[row, len(expected) :].any()


def in_one_thread(function, tensor):
    options = tf.data.Options()
    options.threading.max_intra_op_parallelism = 1
    return next(iter(tf.data.Dataset.from_tensors(tensor).map(function).with_options(options)))


def test_number_of_threads_changes_no_bit():
    """As it would change a matrix product's, so that a corpus depended on the number of workers."""
    layer = LogMelFilterBank(delta_order=0)
    waveform = tf.constant(noise(25 * 16000)[np.newaxis])
    together = tf.function(layer)(waveform)
    np.testing.assert_array_equal(in_one_thread(layer, waveform), together)


def test_silence_has_the_floor_and_no_infinities():
    features = LogMelFilterBank()(np.zeros((1, 4000), np.float32)).numpy()
    np.testing.assert_allclose(features[0, :, :41], np.log(np.finfo(np.float32).eps), rtol=1e-6)
    np.testing.assert_allclose(features[0, :, 41:], 0, atol=1e-5)


@pytest.mark.parametrize("snip_edges", [True, False])
def test_lengths_hide_what_lies_past_the_end(snip_edges):
    layer = LogMelFilterBank(snip_edges=snip_edges)
    lengths = [4000, 2345, 399, 0]
    batch = np.full((4, 4000), 50.0, np.float32)
    for row, length in enumerate(lengths):
        batch[row, :length] = noise(length, seed=row)
    together = layer(batch, lengths=np.array(lengths)).numpy()
    assert np.isfinite(together).all()
    for row, length in enumerate(lengths[:2]):
        alone = layer(batch[row : row + 1, :length]).numpy()[0]
        frames = layer.num_frames(length)
        assert alone.shape[0] == frames
        np.testing.assert_allclose(together[row, :frames], alone, atol=1e-4)
        assert not together[row, frames:].any()
    if snip_edges:
        assert not together[2:].any()


def test_fewer_samples_than_a_frame_give_no_frames():
    assert LogMelFilterBank()(np.zeros((2, 399), np.float32)).shape == (2, 0, 123)


def test_settings_decide_the_dimension():
    waveform = noise(4000)[np.newaxis]
    layer = LogMelFilterBank(num_mel_bins=23, use_energy=False, delta_order=1)
    assert layer(waveform).shape == (1, 23, 46)
    assert layer.feature_dimension == 46
    whole = LogMelFilterBank(num_mel_bins=23)(waveform).numpy()
    np.testing.assert_allclose(layer(waveform)[..., :23], whole[..., 1:24], atol=1e-5)


def test_survives_keras_file_and_saved_model(tmp_path):
    inputs = keras.Input([None])
    model = keras.Model(inputs, LogMelFilterBank(sample_rate=8000)(inputs))
    waveform = noise(3000)[np.newaxis]
    expected = model(waveform).numpy()
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(again(waveform), expected)
    model.export(tmp_path / "exported", verbose=False)
    served = tf.saved_model.load(tmp_path / "exported").serve(waveform)
    np.testing.assert_allclose(served, expected, atol=1e-5)


def test_half_precision_policy_rounds_only_the_result():
    waveform = noise(4000)[np.newaxis]
    half = LogMelFilterBank(dtype="mixed_float16")(waveform)
    assert half.dtype == tf.float16
    np.testing.assert_allclose(half, LogMelFilterBank()(waveform), atol=0.02)


def test_differences_in_numpy_are_those_of_the_layer():
    features = LogMelFilterBank()(noise(8000)[np.newaxis])[0].numpy()
    np.testing.assert_allclose(append_differences(features[:, :41]), features, atol=1e-5)


@pytest.mark.parametrize(
    "argument, value", [("delta_order", 3), ("sample_rate", 16), ("num_mel_bins", 2)]
)
def test_impossible_settings_are_refused(argument, value):
    with pytest.raises(ValueError, match=argument):
        LogMelFilterBank(**{argument: value})
