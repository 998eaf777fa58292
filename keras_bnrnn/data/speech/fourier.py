"""Power spectra in single precision, rounded where kaldi-native-fbank rounds.

A band without speech lies 90 dB and more below the others and holds little but the rounding
errors of the transform. So features agree there only if the transform adds in the same order: that
of KissFFT (radices 4 and 2, decimation in time), as the wheel's compiler has arranged it.
"""

import numpy as np
import tensorflow as tf


def power_spectrum(signal):
    """Squared magnitudes of the Fourier transform of real signals.

    Args:
        signal: `[length, signals]`, float32; the length is a power of two, at least 4.

    Returns:
        `[length // 2 + 1, signals]`, float32.
    """
    half = signal.shape[0] // 2
    # Even samples as real and odd ones as imaginary parts of a transform of half the length.
    real, imaginary = _complex_transform(signal[0::2], signal[1::2])
    first, last = real[:1] + imaginary[:1], real[:1] - imaginary[:1]
    k = np.arange(1, half // 2 + 1)
    turn = _turns(-0.5 * (k / half + 0.5))
    a_real, a_imaginary = real[1 : half // 2 + 1], imaginary[1 : half // 2 + 1]
    b_real, b_imaginary = real[: half // 2 - 1 : -1], imaginary[: half // 2 - 1 : -1]
    difference, total = a_real - b_real, a_imaginary + b_imaginary
    rr, ii = difference * turn.real, total * turn.imag
    ri = total * turn.real + difference * turn.imag
    low = _square(((a_real + b_real) + rr) - ii, (a_imaginary - b_imaginary) + ri)
    high = _square(((a_real + b_real) + ii) - rr, (b_imaginary - a_imaginary) + ri)
    return tf.concat([first * first, low, high[-2::-1], last * last], axis=0)


def _square(real, imaginary):
    real, imaginary = 0.5 * real, 0.5 * imaginary
    return real * real + imaginary * imaginary


def _complex_transform(real, imaginary):
    """The transform of `real + i imaginary` `[length, signals]` as its two parts."""
    length, shape = real.shape[0], tf.shape(real)
    done = 1  # The length of the transforms that are done: `[done, length // done, signals]`.
    while done < length:
        # Radix 2 comes first, where the length is not a power of 4.
        radix = 2 if done == 1 and length.bit_length() % 2 == 0 else 4
        parts = zip(
            tf.unstack(tf.reshape(real, [done, radix, -1]), axis=1),
            tf.unstack(tf.reshape(imaginary, [done, radix, -1]), axis=1),
            strict=True,
        )
        turns = [_turns(-np.arange(done) * j / (done * radix)) for j in range(radix)]
        butterfly = _radix_2 if radix == 2 else _radix_4
        real, imaginary = (tf.stack(x) for x in butterfly(*zip(parts, turns, strict=True)))
        done *= radix
    return tf.reshape(real, shape), tf.reshape(imaginary, shape)


def _turns(fractions):
    """exp(2 π i fraction) `[fractions, 1]`, complex64."""
    return np.exp(2j * np.pi * fractions).astype(np.complex64)[:, np.newaxis]


def _radix_2(a, b):
    (ar, ai), _ = a
    rr, ii, ri = _products(*b)
    return [(ar + rr) - ii, (ar + ii) - rr], [ai + ri, ai - ri]


def _radix_4(a, b, c, d):
    (ar, ai), _ = a
    brr, bii, bi = _products(*b)
    crr, cii, ci = _products(*c)
    drr, dii, di = _products(*d)
    br = brr - bii
    even, even_i = (ar + crr) - cii, ai + ci
    odd, odd_i = (ar + cii) - crr, ai - ci
    total, total_i = (br - dii) + drr, bi + di
    rest = (br - drr) + dii
    return (
        [even + total, (odd + bi) - di, even - total, (odd + di) - bi],
        [even_i + total_i, odd_i - rest, even_i - total_i, odd_i + rest],
    )


def _products(x, turn):
    """Of x times turn: the two products that make up the real part, and the imaginary part."""
    real, imaginary = x
    return (
        real * turn.real,
        imaginary * turn.imag,
        imaginary * turn.real + real * turn.imag,
    )
