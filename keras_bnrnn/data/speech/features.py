r"""From waveform to features, in the TensorFlow graph: Kaldi's log-mel filter bank and differences.

Preparation and an exported model both compute their features with `LogMelFilterBank`, so that
what a model is served cannot differ from what it was trained on.
"""

import keras
import numpy as np
import tensorflow as tf

from keras_bnrnn.data.speech.fourier import power_spectrum

# Kaldi floors energies at float32's machine epsilon before it takes the logarithm.
ENERGY_FLOOR = float(np.finfo(np.float32).eps)
PREEMPHASIS = 0.97
LOWEST_FREQUENCY = 20.0
FRAME_MILLISECONDS = 25.0
SHIFT_MILLISECONDS = 10.0
FRAME_SECONDS = SHIFT_MILLISECONDS / 1000  # From one frame to the next.
DIFFERENCE_WINDOW = 2
VARIANCE_FLOOR = 1e-8


@keras.saving.register_keras_serializable(package="keras_bnrnn")
class LogMelFilterBank(keras.layers.Layer):
    r"""Log-mel filter bank with energy and differences, as Kaldi computes them.

    Frames of 25 ms every 10 ms of the waveform in 16-bit scale, without dither: subtract the
    frame's mean, take the log energy, pre-emphasise, apply Povey's window

        w_n = (0.5 - 0.5 cos(2 π n / (N - 1)))^0.85,

    take the power spectrum of the frame padded to a power of two, sum it in `num_mel_bins`
    triangles equally spaced in mel = 1127 ln(1 + f / 700) between 20 Hz and half the sampling
    rate, and take logarithms. First differences are
    Δ_t = Σ_{j=-2..2} j x_{t+j} / 10, second differences the same window convolved with itself,
    with the first and last frames repeated outwards (Kaldi's `add-deltas`). The order is Kaldi's:
    energy, filter bank, then the first and the second differences of these.

    Args:
        sample_rate: of the waveform, in Hz.
        num_mel_bins: triangles of the filter bank.
        use_energy: put the log energy in front of the filter bank.
        delta_order: 0, 1 or 2: how many differences to append.
        snip_edges: `True` takes whole frames only, as Kaldi does by default; `False` centres
            frame t on sample `(t + 0.5) * shift` and mirrors the waveform at its ends.
        dtype: as for every layer. The arithmetic is float32 under any policy.

    Call arguments:
        waveform: `[batch, samples]`, float in -1…1.
        lengths: `[batch]`, optional: samples of each waveform that count. The others have no
            influence, and the features of frames past the end are 0.

    Returns:
        `[batch, time, (1 + delta_order) * (use_energy + num_mel_bins)]`: 123 by default.

    Example:

    >>> import numpy as np
    >>> waveform = np.sin(np.arange(16000.0) * 0.1)[np.newaxis]
    >>> LogMelFilterBank(sample_rate=16000)(waveform).shape
    TensorShape([1, 98, 123])
    """

    def __init__(
        self,
        sample_rate=16000,
        num_mel_bins=40,
        use_energy=True,
        delta_order=2,
        snip_edges=True,
        **kwargs,
    ):
        super().__init__(**kwargs)
        if sample_rate < 1000:
            raise ValueError(
                f"sample_rate={sample_rate!r} is not a sampling rate of speech in Hz: give at "
                "least 1000, usually 8000 or 16000"
            )
        if delta_order not in (0, 1, 2):
            raise ValueError(f"delta_order={delta_order!r} is not one of 0, 1 and 2")
        if num_mel_bins < 3:
            raise ValueError(f"num_mel_bins={num_mel_bins!r} is less than 3")
        self.sample_rate = sample_rate
        self.num_mel_bins = num_mel_bins
        self.use_energy = use_energy
        self.delta_order = delta_order
        self.snip_edges = snip_edges
        # The waveform must not be rounded to half precision on its way in.
        self.autocast = False

        self.frame_length = int(sample_rate * 0.001 * FRAME_MILLISECONDS)
        self.frame_shift = int(sample_rate * 0.001 * SHIFT_MILLISECONDS)
        self._fft_length = 1 << (self.frame_length - 1).bit_length()
        self._window = povey_window(self.frame_length)
        self._mel_bins, self._mel_weights = gathered(
            mel_filter_bank(num_mel_bins, self._fft_length, sample_rate)
        )

    @property
    def feature_dimension(self):
        """Number of features per frame."""
        return (1 + self.delta_order) * (int(self.use_energy) + self.num_mel_bins)

    def num_frames(self, num_samples):
        """How many frames come out for a number of samples (integer or integer tensor)."""
        if self.snip_edges:
            whole = (num_samples - self.frame_length) // self.frame_shift + 1
            return tf.maximum(whole, 0) if tf.is_tensor(whole) else max(whole, 0)
        return (num_samples + self.frame_shift // 2) // self.frame_shift

    def call(self, waveform, lengths=None):
        waveform = tf.cast(waveform, tf.float32) * 32768.0
        samples = tf.shape(waveform)[1]
        if lengths is None:
            lengths = tf.fill([tf.shape(waveform)[0]], samples)
        lengths = tf.cast(lengths, tf.int32)

        frames = self._frames(waveform, lengths)
        static = self._static_features(frames)
        num_frames = self.num_frames(lengths)
        features = self._append_differences(static, num_frames)
        live = tf.sequence_mask(num_frames, tf.shape(features)[1])
        features = tf.where(live[:, :, tf.newaxis], features, 0.0)
        features.set_shape(self.compute_output_shape(waveform.shape))
        return tf.cast(features, self.compute_dtype)

    def compute_output_shape(self, waveform_shape, lengths_shape=None):
        batch, samples = waveform_shape
        time = None if samples is None else self.num_frames(samples)
        return (batch, time, self.feature_dimension)

    def get_config(self):
        return {
            **super().get_config(),
            "sample_rate": self.sample_rate,
            "num_mel_bins": self.num_mel_bins,
            "use_energy": self.use_energy,
            "delta_order": self.delta_order,
            "snip_edges": self.snip_edges,
        }

    def _frames(self, waveform, lengths):
        """Cuts `[batch, samples]` into `[batch, time, frame_length]`."""
        if self.snip_edges:
            return tf.signal.frame(waveform, self.frame_length, self.frame_shift)
        samples = tf.shape(waveform)[1]
        time = self.num_frames(samples)
        centre = tf.range(time) * self.frame_shift + self.frame_shift // 2
        index = centre[:, tf.newaxis] + tf.range(self.frame_length) - self.frame_length // 2
        # Mirroring repeats the sample at the edge, hence the period of twice the length.
        end = tf.maximum(lengths, 1)[:, tf.newaxis, tf.newaxis]
        index = index[tf.newaxis] % (2 * end)
        index = tf.where(index < end, index, 2 * end - 1 - index)
        return tf.gather(waveform, tf.minimum(index, samples - 1), batch_dims=1)

    def _static_features(self, frames):
        """Energy and filter bank `[batch, time, 1 + num_mel_bins]` of raw frames."""
        shape = tf.shape(frames)
        frames = tf.transpose(tf.reshape(frames, [-1, self.frame_length]))
        # Added one sample after the other, as Kaldi does, because another mean would round every
        # sample otherwise; divided in double precision, because TensorFlow's graphs multiply by
        # a reciprocal instead.
        total = tf.cast(tf.cumsum(frames, axis=0)[-1:], tf.float64)
        frames -= tf.cast(total / self.frame_length, tf.float32)
        energy = tf.reduce_sum(tf.square(frames), axis=0, keepdims=True)
        previous = tf.concat([frames[:1], frames[:-1]], axis=0)
        frames = (frames - PREEMPHASIS * previous) * self._window[:, np.newaxis]
        frames = tf.pad(frames, [[0, self._fft_length - self.frame_length], [0, 0]])
        # Not a matrix product, whose roundings depend on how many threads share it.
        mel = tf.gather(power_spectrum(frames), self._mel_bins) * self._mel_weights
        mel = tf.reduce_sum(mel, axis=1)
        static = tf.concat([energy, mel], axis=0) if self.use_energy else mel
        static = tf.transpose(tf.math.log(tf.maximum(static, ENERGY_FLOOR)))
        return tf.reshape(static, [shape[0], shape[1], static.shape[-1]])

    def _append_differences(self, static, num_frames):
        """Appends differences; frames past the ends are the utterance's own first and last."""
        last = tf.maximum(num_frames - 1, 0)[:, tf.newaxis]
        time = tf.range(tf.shape(static)[1])[tf.newaxis]
        blocks = [static]
        for order in range(1, self.delta_order + 1):
            window = difference_window(order)
            reach = len(window) // 2
            block = tf.zeros_like(static)
            for offset, weight in zip(range(-reach, reach + 1), window, strict=True):
                if weight != 0.0:
                    neighbour = tf.minimum(tf.maximum(time + offset, 0), last)
                    block += weight * tf.gather(static, neighbour, batch_dims=1)
            blocks.append(block)
        return tf.concat(blocks, axis=-1)


def povey_window(length):
    """Povey's window `[length]`, float32: a Hann window to the power 0.85."""
    n = np.arange(length, dtype=np.float64)
    hann = 0.5 - 0.5 * np.cos(2.0 * np.pi * n / (length - 1))
    return np.power(hann, 0.85).astype(np.float32)


def mel_filter_bank(num_mel_bins, fft_length, sample_rate):
    """Triangles `[fft_length // 2 + 1, num_mel_bins]`, float32, linear in mel.

    The triangles reach from 20 Hz to half the sampling rate. As in Kaldi, the bin at half the
    sampling rate itself belongs to none.
    """

    def mel(frequency):
        return 1127.0 * np.log(1.0 + frequency / 700.0)

    edges = np.linspace(mel(LOWEST_FREQUENCY), mel(0.5 * sample_rate), num_mel_bins + 2)
    left, centre, right = edges[:-2], edges[1:-1], edges[2:]
    bins = mel(np.arange(fft_length // 2 + 1) * (sample_rate / fft_length))[:, np.newaxis]
    rising = (bins - left) / (centre - left)
    falling = (right - bins) / (right - centre)
    triangles = np.maximum(np.minimum(rising, falling), 0.0)
    triangles[-1] = 0.0
    return triangles.astype(np.float32)


def gathered(matrix):
    """A matrix with few entries, close together in each column, as what to gather and how to weigh.

    Args:
        matrix: `[rows, columns]`; the last row is 0.

    Returns:
        Rows `[columns, width]`, integers, and their weights `[columns, width, 1]`.
    """
    first = np.argmax(matrix > 0, axis=0)[:, np.newaxis]
    rows = first + np.arange(np.count_nonzero(matrix, axis=0).max())
    rows = np.minimum(rows, len(matrix) - 1)
    return rows, np.take_along_axis(matrix.T, rows, axis=1)[..., np.newaxis]


def difference_window(order):
    """Weights of the difference of an order over the frames around one, as Kaldi defines them."""
    offsets = np.arange(-DIFFERENCE_WINDOW, DIFFERENCE_WINDOW + 1, dtype=np.float64)
    window = np.ones(1)
    for _ in range(order):
        window = np.convolve(window, offsets / np.sum(np.square(offsets)))
    return window.tolist()


def append_differences(static, order=2):
    """First and second differences in NumPy, for features that come without them.

    Args:
        static: `[time, dimensions]`.
        order: how many differences to append.

    Returns:
        `[time, (1 + order) * dimensions]`, float32.
    """
    static = np.asarray(static, dtype=np.float32)
    blocks = [static]
    for degree in range(1, order + 1):
        window = difference_window(degree)
        reach = len(window) // 2
        padded = np.pad(static, ((reach, reach), (0, 0)), mode="edge")
        blocks.append(
            sum(np.float32(w) * padded[j : j + len(static)] for j, w in enumerate(window))
        )
    return np.concatenate(blocks, axis=1)


def normalize_features(features, mean, variance, floor=VARIANCE_FLOOR):
    """Features less their mean, divided by their deviation.

    Args:
        features: `[..., D]`, an array or a tensor.
        mean, variance: `[D]`, arrays.
        floor: lesser variances count as this.

    Returns:
        As `features`.

    Example:

    >>> normalize_features(np.array([[1.0, 5.0]]), np.array([1.0, 1.0]), np.array([0.0, 4.0]))
    array([[0., 2.]])
    """
    return (features - mean) / np.sqrt(np.maximum(variance, floor))
