"""From log-posteriors to words and their times."""

import itertools

import numpy as np
import pytest

from recipes.phone_model import Segment
from recipes.text_model import TextModel, label_spans

STATES = [{"name": name} for name in ("<blank>", " ", "a", "b", "ö")]


def path_of(text, others=-8.0):
    """Log-posteriors `[time, classes]`, best along a path: one character a frame, `_` the blank."""
    names = "_ abö"
    scores = np.full([len(text), len(STATES)], others, np.float32)
    for time, one in enumerate(text):
        scores[time, names.index(one)] = -0.1
    return scores


def heard(path, **options):
    search = TextModel(STATES, **options).search()
    search.extend(path_of(path))
    return search.finish(), search.answers


@pytest.mark.parametrize("beam", [0, 8])
def test_words_and_when_they_are_spoken(beam):
    words, answers = heard("_aa_ab  __bö_", beam=beam)
    assert words == [Segment("aab", 1, 6), Segment("bö", 10, 12)]
    assert answers[0].text == "aab bö"
    words, _ = heard("_aa_ab  __bö_", beam=beam, reduction=4)
    assert words == [Segment("aab", 4, 24), Segment("bö", 40, 48)]


def test_nothing_is_no_word():
    for path in ("", "___", "  _ "):
        words, answers = heard(path)
        assert words == [] and answers[0].text == ""


def test_answers_are_the_best_of_all_texts_with_their_probabilities():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(5, len(STATES))) * 2.0
    scores = (logits - np.log(np.exp(logits).sum(-1, keepdims=True))).astype("float32")
    expected = {}
    for path in itertools.product(range(len(STATES)), repeat=5):
        labels = tuple(one for one, _ in itertools.groupby(path) if one)
        score = sum(scores[time, one] for time, one in enumerate(path))
        expected[labels] = np.logaddexp(expected.get(labels, -np.inf), score)
    best = sorted(expected, key=expected.get, reverse=True)[:3]
    found = TextModel(STATES, beam=300, most_answers=3).answers(scores)
    assert [tuple(labels) for labels, _ in found] == best
    np.testing.assert_allclose(
        [score for _, score in found], [expected[one] for one in best], rtol=1e-4
    )


def test_few_frames_have_few_texts():
    answers = TextModel(STATES, beam=32, most_answers=20).answers(path_of("a"))
    assert answers[0][0] == [2]
    assert len(answers) == len({tuple(labels) for labels, _ in answers}) == len(STATES)


def test_what_comes_in_pieces_is_what_comes_at_once():
    path = "_a_b_ " * 3000
    whole = TextModel(STATES, reduction=4)
    assert len(path) > 3 * whole.most_frames
    search = whole.search()
    scores = path_of(path)
    for start in range(0, len(path), 700):
        search.extend(scores[start : start + 700])
        assert sum(map(len, search._pending)) <= whole.most_frames
    words = search.finish()
    assert words == [Segment("ab", 4 * (6 * k + 1), 4 * (6 * k + 4)) for k in range(3000)]
    assert search.answers is None  # Only of a whole.


def test_without_a_space_it_is_cut_in_a_pause():
    model = TextModel(STATES, reduction=4)
    path = ("ab" * 600 + "_" * 200 + "ö" * 200)[: model.most_frames + 50]
    search = model.search()
    search.extend(path_of(path))
    assert [one.phone[-1] for one in search.finish()] == ["b", "ö"]


def test_spans_of_labels():
    scores = path_of("__aa_a_bb")
    assert label_spans(scores, [2, 2, 3]) == [(2, 4), (5, 6), (7, 9)]
    assert label_spans(scores, []) == []
    # Labels that are not the best path's.
    assert [end > start for start, end in label_spans(scores, [2, 4, 3])] == [True] * 3
