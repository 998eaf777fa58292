"""The signatures of language models: their numbers, and what strangers send them."""

import numpy as np
import pytest
import tensorflow as tf

from untrained import WORDS


def test_states_of_other_streams_are_refused(language):
    with pytest.raises(tf.errors.InvalidArgumentError, match="another number of rows"):
        language.signatures["step"](tokens=tf.ones([2, 5], tf.int32), **language.zero_states(1))


def test_numbers_that_are_no_words(language):
    step = language.signatures["step"]
    for wrong in (-1, 10**6):
        with pytest.raises(tf.errors.InvalidArgumentError, match="tokens must lie between 0 and"):
            step(tokens=tf.constant([[1, wrong]]), **language.zero_states(1))
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"k must be 1 or more"):
        language.signatures["next_token"](prefix=tf.constant(["the"]), k=tf.constant(0))
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"k must be 1 or more"):
        language.signatures["next_token"](prefix=tf.constant(["a", "b"]), k=tf.constant([2, 0]))


def test_language_model_scores_sentences(language):
    sentences = ["The assert statement .", "an xyzzy", ""]
    outputs = language.signatures["score"](sentences=tf.constant(sentences))
    assert outputs["tokens"].numpy().tolist() == [5, 3, 1]
    tokens = [["the", "assert", "statement", "."], ["an", "<unk>"], []]
    end = WORDS.index("<eos>")
    rows = np.full((20, 5), end)
    for row, sentence in enumerate(tokens):
        rows[row, 1 : 1 + len(sentence)] = [WORDS.index(word) for word in sentence]
    for layer in language.model.layers:
        if getattr(layer, "stateful", False):
            layer.reset_state()
    scores = tf.nn.log_softmax(language.model(rows)).numpy()
    for row, sentence in enumerate(tokens):
        targets = [WORDS.index(word) for word in sentence] + [end]
        expected = scores[row, np.arange(len(targets)), targets].sum()
        np.testing.assert_allclose(outputs["log_probability"][row], expected, rtol=1e-5)
        perplexity = np.exp(-expected / len(targets))
        np.testing.assert_allclose(outputs["perplexity"][row], perplexity, rtol=1e-4)
    best = language.signatures["next_token"](prefix=tf.constant(["an xyzzy", ""]), k=tf.constant(4))
    assert best["words"].shape == (2, 4)
    order = np.argsort(-scores[1, 2])[:4]
    assert [word.decode() for word in best["words"][0].numpy()] == [WORDS[k] for k in order]
    np.testing.assert_allclose(best["probabilities"][0], np.exp(scores[1, 2, order]), rtol=1e-4)
    np.testing.assert_allclose(best["probabilities"][1, 0], np.exp(scores[2, 0].max()), rtol=1e-4)


def test_each_row_has_its_own_number_of_words(language):
    next_token = language.signatures["next_token"]
    prefix = tf.constant(["an xyzzy", "the", ""])
    alike = next_token(prefix=prefix, k=tf.constant(3))
    own = next_token(prefix=prefix, k=tf.constant([2, 3, 1]))
    for row, k in enumerate((2, 3, 1)):
        for name, missing in (("words", b""), ("probabilities", 0.0)):
            assert own[name].shape == (3, 3)
            np.testing.assert_array_equal(own[name][row, :k], alike[name][row, :k])
            assert all(one == missing for one in own[name][row, k:].numpy())
    many = next_token(prefix=prefix, k=tf.constant([100, 1, 1]))
    assert many["words"].shape == (3, len(WORDS))
    assert next_token(prefix=prefix[:0], k=tf.constant([], tf.int32))["words"].shape == (0, 1)


def test_no_sentences(language):
    outputs = language.signatures["score"](sentences=tf.constant([], tf.string))
    assert outputs["perplexity"].shape == (0,)
    step = language.signatures["step"]
    states = {name: state + 0.5 for name, state in language.zero_states(2).items()}
    outputs = step(tokens=tf.zeros([2, 0], tf.int32), **states)
    for name, state in states.items():
        np.testing.assert_array_equal(outputs[name], state)


@pytest.mark.parametrize("chunk", [1, 3])
def test_language_model_steps_equal_the_whole(language, chunk):
    tokens = np.random.default_rng(0).integers(0, len(WORDS), (2, 7)).astype(np.int32)
    step = language.signatures["step"]
    whole = step(tokens=tf.constant(tokens), **language.zero_states(2))["log_probabilities"]
    states, parts = language.zero_states(2), []
    for start in range(0, 7, chunk):
        outputs = dict(step(tokens=tf.constant(tokens[:, start : start + chunk]), **states))
        parts.append(outputs.pop("log_probabilities"))
        states = outputs
    np.testing.assert_allclose(tf.concat(parts, 1), whole, atol=1e-5)
