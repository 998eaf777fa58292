"""The metrics against sums over frames written out in NumPy."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_bnrnn.ctc import NEVER, texts
from keras_bnrnn.metrics import (
    CharacterErrorRate,
    FrameCrossEntropy,
    FrameErrorRate,
    Perplexity,
    UtteranceCTC,
    WordErrorRate,
)

CLASSES = 7


def make_batch(seed, batch, time):
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(batch, time, CLASSES)).astype("float32")
    labels = rng.integers(CLASSES, size=(batch, time)).astype("int32")
    lengths = rng.integers(1, time + 1, size=batch)
    mask = np.arange(time) < lengths[:, None]
    return logits, labels, mask


def log_softmax(logits):
    logits = logits.astype("float64")
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def live_frames(batches):
    """Cross-entropies and errors of the live frames of all batches, in float64."""
    nats, errors = [], []
    for logits, labels, mask in batches:
        chosen = np.take_along_axis(log_softmax(logits), labels[..., None], -1)[..., 0]
        nats.extend(-chosen[mask])
        errors.extend((logits.argmax(-1) != labels)[mask])
    return np.array(nats), np.array(errors)


# A long batch with few live frames beside a short one: a mean of batch means would be far off.
BATCHES = [make_batch(0, 3, 40), make_batch(1, 5, 4)]


@pytest.mark.parametrize(
    ("metric", "expected"),
    [
        (FrameCrossEntropy(from_logits=True), lambda nats, errors: nats.mean()),
        (FrameErrorRate(), lambda nats, errors: errors.mean()),
        (Perplexity(from_logits=True), lambda nats, errors: np.exp(nats.mean())),
    ],
)
def test_every_live_frame_counts_once(metric, expected):
    for logits, labels, mask in BATCHES:
        metric.update_state(labels, logits, sample_weight=mask)
    assert float(metric.result()) == pytest.approx(expected(*live_frames(BATCHES)), rel=1e-5)
    metric.reset_state()
    assert float(metric.count) == 0


@pytest.mark.parametrize("junk", [50.0, np.inf, np.nan])
def test_padding_does_not_count_whatever_it_holds(junk):
    logits, labels, mask = BATCHES[0]
    filled = np.where(mask[..., None], logits, np.float32(junk))
    clean, dirty = FrameCrossEntropy(from_logits=True), FrameCrossEntropy(from_logits=True)
    clean.update_state(labels, logits, sample_weight=mask)
    dirty.update_state(labels, filled, sample_weight=mask)
    assert float(clean.result()) == float(dirty.result())


def test_the_mask_of_the_predictions_counts_too():
    logits, labels, mask = BATCHES[0]
    nats, _ = live_frames(BATCHES[:1])
    predictions = tf.constant(logits)
    predictions._keras_mask = tf.constant(mask)
    metric = FrameCrossEntropy(from_logits=True)
    metric.update_state(labels, predictions)
    assert float(metric.result()) == pytest.approx(nats.mean(), rel=1e-5)


def test_probabilities_and_logits_agree():
    logits, labels, mask = BATCHES[0]
    of_logits, of_probabilities = Perplexity(from_logits=True), Perplexity()
    of_logits.update_state(labels, logits, sample_weight=mask)
    of_probabilities.update_state(labels, tf.nn.softmax(logits), sample_weight=mask)
    assert float(of_logits.result()) == pytest.approx(float(of_probabilities.result()), rel=1e-4)


def test_no_frames_is_zero_and_not_nan():
    logits, labels, mask = BATCHES[0]
    metric = FrameErrorRate()
    metric.update_state(labels, logits, sample_weight=np.zeros_like(mask))
    assert float(metric.result()) == 0.0


def test_round_trip_through_a_config():
    metric = keras.metrics.deserialize(
        keras.metrics.serialize(FrameCrossEntropy(from_logits=True, name="criterion"))
    )
    assert isinstance(metric, FrameCrossEntropy)
    assert metric.from_logits and metric.name == "criterion"


def compiled_model():
    model = keras.Sequential(
        [keras.Input((None, CLASSES)), keras.layers.Dense(CLASSES, kernel_initializer="identity")]
    )
    model.compile(
        loss=keras.losses.SparseCategoricalCrossentropy(
            from_logits=True, reduction="mean_with_sample_weight"
        ),
        weighted_metrics=[FrameCrossEntropy(from_logits=True), FrameErrorRate()],
    )
    return model


def test_evaluate_passes_the_mask_as_sample_weight():
    nats, errors = live_frames(BATCHES)
    dataset = tf.data.Dataset.from_generator(
        lambda: iter(BATCHES),
        output_signature=(
            tf.TensorSpec([None, None, CLASSES]),
            tf.TensorSpec([None, None], tf.int32),
            tf.TensorSpec([None, None], tf.bool),
        ),
    )
    scores = compiled_model().evaluate(dataset, verbose=0, return_dict=True)
    assert scores["fce"] == pytest.approx(nats.mean(), rel=1e-5)
    assert scores["fer"] == pytest.approx(errors.mean(), rel=1e-5)


def test_replicas_are_summed_not_averaged():
    logits, labels, mask = make_batch(2, 4, 9)
    mask[:2] = False
    mask[0, 0] = True  # one live frame on the first replica
    nats, errors = live_frames([(logits, labels, mask)])
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    with strategy.scope():
        model = compiled_model()
    # As floats: Keras sums the first batch over the replicas, and booleans fail there.
    weights = mask.astype("float32")
    dataset = tf.data.Dataset.from_tensors((logits, labels, weights)).unbatch().batch(4)
    scores = model.evaluate(dataset, verbose=0, return_dict=True)
    assert scores["fce"] == pytest.approx(nats.mean(), rel=1e-5)
    assert scores["fer"] == pytest.approx(errors.mean(), rel=1e-5)


ALPHABET = [" ", "a", "b", "ö", "'"]


def written(text, time):
    """Logits `[time, classes]` whose best path is a text, with blanks between and padding after."""
    path = [index for one in text for index in (ALPHABET.index(one) + 1, 0)]
    logits = np.full([time, len(ALPHABET) + 1], NEVER, "float32")
    logits[:, 0] = 0.0
    logits[np.arange(len(path)), path] = 5.0
    return logits


def test_error_rates_are_those_of_jiwer():
    jiwer = pytest.importorskip("jiwer", reason="the tests' package jiwer is not installed")
    said = ["ab a", "öö b' a", "a", "b b b"]
    heard = [" ab  aa", "öb a", "", "a b b b"]
    labels = np.zeros([len(said), 7], int)
    for row, text in enumerate(said):
        labels[row, : len(text)] = [ALPHABET.index(one) + 1 for one in text]
    logits = np.stack([written(text, 16) for text in heard])
    printed = texts(keras.ops.ctc_decode(logits, [16] * 4)[0][0], ALPHABET).numpy()
    printed = [text.decode() for text in printed]
    assert printed == ["ab aa", "öb a", "", "a b b b"]
    rates = {CharacterErrorRate: jiwer.cer, WordErrorRate: jiwer.wer}
    for metric, of_jiwer in rates.items():
        one = metric(ALPHABET)
        one.update_state(labels[:3], logits[:3])
        one.update_state(labels[3:], logits[3:], sample_weight=np.ones(1))
        one.update_state(labels[:1], logits[1:2], sample_weight=np.zeros(1))
        assert float(one.result()) == pytest.approx(of_jiwer(said, printed), rel=1e-6)
        assert metric.from_config(one.get_config()).alphabet == ALPHABET


def test_an_unknown_character_is_an_error():
    metric = CharacterErrorRate(ALPHABET)
    metric.update_state([[2, len(ALPHABET) + 1]], [written("ab", 6)])
    assert float(metric.result()) == 0.5
    loss = UtteranceCTC()
    loss.update_state([[2, len(ALPHABET) + 1]], [written("ab", 6)])
    assert float(loss.count) == 0 and float(loss.result()) == 0
