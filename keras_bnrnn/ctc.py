"""Connectionist temporal classification: from a model's logits to text, in the graph.

Class 0 is the blank, classes from 1 are the characters of an alphabet. A model writes nothing in an
utterance's padding: there the logit of the blank is 0 and the others are `NEVER`
(`keras_bnrnn.data.FillPadding`), so that losses and searches need no lengths.
"""

from collections.abc import Sequence

import keras
import tensorflow as tf

BLANK = "<blank>"  # The name of class 0.
UNKNOWN = "\N{REPLACEMENT CHARACTER}"  # Stands in texts for what the alphabet lacks.
NEVER = -1e9  # The logit of what cannot be.


def live_frame_counts(logits: tf.Tensor) -> tf.Tensor:
    """Frames of each utterance that are no padding, `[batch]`, int32.

    Args:
        logits: `[batch, time, classes]`, sure of the blank in the padding.
    """
    return tf.math.count_nonzero(logits[:, :, -1] > 0.5 * NEVER, axis=1, dtype=tf.int32)


def greedy_labels(logits: tf.Tensor) -> tf.Tensor:
    """The best class of each frame, less repetitions and blanks.

    Args:
        logits: `[batch, time, classes]`, sure of the blank in the padding.

    Returns:
        `[batch, time]`, int32: labels, then -1.
    """
    lengths = tf.fill([tf.shape(logits)[0]], tf.shape(logits)[1])
    labels, _ = keras.ops.ctc_decode(logits, lengths, strategy="greedy")
    return labels[0]


def texts(labels: tf.Tensor, alphabet: Sequence[str]) -> tf.Tensor:
    """The texts of labels: words with one space between them.

    Args:
        labels: `[batch, characters]`, integers; 0 and less is nothing, beyond the alphabet is
            `UNKNOWN`.
        alphabet: the characters of the labels from 1.

    Returns:
        `[batch]`, strings in UTF-8.

    Example:

    >>> texts([[1, 2, 3, -1], [3, 3, 4, 0]], ["a", "b", " "]).numpy().tolist()
    [b'ab', b'\\xef\\xbf\\xbd']
    """
    names = tf.constant(["", *alphabet, UNKNOWN])
    text = tf.strings.reduce_join(tf.gather(names, tf.maximum(labels, 0)), axis=-1)
    return tf.strings.regex_replace(tf.strings.strip(text), " +", " ")
