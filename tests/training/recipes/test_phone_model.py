"""The phone recogniser: its counts, its search against brute force, and its errors."""

import itertools

import numpy as np
import pytest

from recipes.phone_model import (
    BOUNDARY,
    PhoneModel,
    Search,
    comparison,
    is_speech,
    log_priors,
    phone_counts,
    phone_errors,
    phone_segments,
)

STATES = [
    {"name": "A.0", "phone": "A", "position": 0},
    {"name": "A.1", "phone": "A", "position": 1},
    {"name": "B.0.7", "phone": "B", "position": 0},
    {"name": "B.0.8", "phone": "B", "position": 0},
    {"name": "B.1", "phone": "B", "position": 1},
]
ALIGNMENTS = [[0, 0, 1, 2, 4, 4], [3, 3, 3, 4, 0, 1, 0, 1, 1]]


def model(**arguments):
    arguments = {"min_frames": 2, "prior_scale": 0.5, "bigram_weight": 2.0, **arguments}
    return PhoneModel(STATES, phone_counts(STATES, map(np.array, ALIGNMENTS)), **arguments)


def test_segments_of_an_alignment():
    assert phone_segments(STATES, [0, 1, 0, 0, 1, 2, 3, 4]) == [
        ("A", 0, 2),
        ("A", 2, 5),
        ("B", 5, 8),
    ]
    assert phone_segments(STATES, []) == []
    pdfs = [{"name": "pdf-0", "pdf": 0}, {"name": "pdf-1", "pdf": 1}]
    assert phone_segments(pdfs, [0, 0, 1]) == [("pdf-0", 0, 2), ("pdf-1", 2, 3)]


def test_counts():
    counts = phone_counts(STATES, map(np.array, ALIGNMENTS))
    assert counts["state_frames"] == [4, 4, 1, 3, 3]
    # Units: A.0 three times, A.1 three times, B.0 (two states) twice, B.1 twice.
    assert counts["visits"] == [3, 3, 2, 2, 2]
    assert counts["bigram"] == [
        [BOUNDARY, "A", 1],
        [BOUNDARY, "B", 1],
        ["A", BOUNDARY, 1],
        ["A", "A", 1],
        ["A", "B", 1],
        ["B", BOUNDARY, 1],
        ["B", "A", 1],
    ]


def test_priors_are_finite_for_states_never_seen():
    np.testing.assert_allclose(np.exp(log_priors([3, 0, 4])), [3 / 8, 1 / 8, 4 / 8])


def path_score(scores, segments):
    """What `PhoneModel.decode` maximises, written from its definition for one segmentation."""
    units = {"A": ([0], [1]), "B": ([2, 3], [4])}
    frames = np.array([4.0, 4.0, 1.0, 3.0, 3.0])
    visits = {"A": (3, 3), "B": (2, 2)}
    counts = {(a, b): c for a, b, c in phone_counts(STATES, map(np.array, ALIGNMENTS))["bigram"]}
    names = ["A", "B", BOUNDARY]
    unigram = np.array([sum(counts.get((a, b), 0) for a in names) for b in names]) + 1.0
    unigram /= unigram.sum()

    def bigram(a, b):
        smoothed = [counts.get((a, x), 0) + 2.0 * p for x, p in zip(names, unigram, strict=True)]
        return 2.0 * np.log(smoothed[names.index(b)] / sum(smoothed))

    total, before = 0.0, BOUNDARY
    for phone, start, end in segments:
        total += bigram(before, phone)
        before = phone
        best = -np.inf
        for change in range(start + 1, end):
            score = 0.0
            for k, (first, last) in enumerate(((start, change), (change, end))):
                states = units[phone][k]
                share = frames[states].sum() / frames.sum()
                emissions = np.logaddexp.reduce(scores[first:last][:, states], axis=1)
                score += (emissions - 0.5 * np.log(share)).sum()
                leave = 1.0 / max(frames[states].sum() / visits[phone][k], 1.0)
                stay = min(1.0 - leave, 0.99)
                if last - first > 1 and stay == 0.0:
                    score = -np.inf
                    break
                score += (last - first - 1) * np.log(stay) if stay else 0.0
                score += np.log1p(-stay)
            best = max(best, score)
        total += best
    return total + bigram(before, BOUNDARY)


def segmentations(time):
    if not time:
        yield []
    for start in range(time - 1):
        if start == 0 or start >= 2:
            for rest in segmentations(start):
                for phone in "AB":
                    yield [*rest, (phone, start, time)]


@pytest.mark.parametrize("seed", range(6))
def test_the_best_path_is_the_best_of_all(seed):
    scores = np.log(np.random.default_rng(seed).dirichlet(np.full(5, 0.5), size=7))
    every = list(segmentations(7))
    values = [path_score(scores, one) for one in every]
    found = model().decode(scores)
    assert [tuple(one) for one in found] == every[int(np.argmax(values))]


def test_minimum_duration():
    labels = np.array([0, 1, 2, 4, 0, 1, 2, 4, 0, 1, 2, 4])
    scores = np.log(np.full((12, 5), 0.01) + 0.95 * np.eye(5)[labels])
    assert all(end - start == 2 for _, start, end in model().decode(scores))
    for frames in (3, 4, 6):
        segments = model(min_frames=frames).decode(scores)
        assert all(end - start >= frames for _, start, end in segments)
        assert [start for _, start, _ in segments] == [0] + [end for *_, end in segments[:-1]]


def test_short_and_empty_utterances():
    scores = np.log([[0.05, 0.05, 0.4, 0.4, 0.1]])
    assert model(min_frames=4).decode(scores) == [("B", 0, 1)]
    assert model().decode(np.zeros((0, 5))) == []


def brute_force_errors(reference, hypothesis):
    row = list(range(len(hypothesis) + 1))
    for expected in reference:
        new = [row[0] + 1]
        for j, found in enumerate(hypothesis, 1):
            new.append(min(row[j - 1] + (expected != found), row[j] + 1, new[-1] + 1))
        row = new
    return row[-1]


@pytest.mark.parametrize(
    ("reference", "hypothesis", "errors"),
    [("", "", 0), ("abc", "abc", 0), ("kitten", "sitting", 3), ("", "ab", 2), ("abc", "b", 2)],
)
def test_phone_errors(reference, hypothesis, errors):
    assert phone_errors([[list(reference)]], list(hypothesis)) == (errors, len(reference))


def test_the_pronunciation_that_fits_best_counts():
    words = [[list("ab"), list("xyz")], [list("c"), list("cd"), list("d")]]
    for hypothesis in itertools.product("abcdx", repeat=3):
        found = phone_errors(words, list(hypothesis))
        ways = [
            (brute_force_errors(one + two, hypothesis), len(one + two))
            for one in words[0]
            for two in words[1]
        ]
        assert found[0] == min(ways)[0]
        assert found in ways


def test_an_utterance_in_pieces_is_the_same_utterance():
    rng = np.random.default_rng(0)
    for time in (1, 3, 400):
        scores = np.log(rng.dirichlet(np.full(5, 0.3), size=time) + 1e-9)
        search, longest = Search(model()), 0
        for piece in np.split(scores, sorted(rng.integers(time + 1, size=9))):
            search.extend(piece)
            longest = max(longest, len(search._back))
        assert search.finish() == model().decode(scores)
    assert longest < 100  # What is settled is not kept.


@pytest.mark.parametrize(
    ("phone", "speech"),
    [("AH0", True), ("T_B", True), ("ə", True), ("s", True)]
    + [(name, False) for name in ("SIL", "sil", "sp", "spn", "SPN_S", "+NSN+", "<eps>", "h#", "")],
)
def test_silence_and_noise_are_no_speech(phone, speech):
    assert is_speech(phone) == speech


def test_marks_that_the_dictionary_lacks_are_left_out_and_it_is_said():
    dictionary = {"AH", "T", "OW", "SIL"}
    rule, note = comparison(["AH", "T", "SIL", "+NSN+"], dictionary)
    assert rule("AH") == "AH" and note == ""
    rule, note = comparison(["AH0", "AH1", "T", "sil", "sp", "spn"], dictionary)
    assert [rule(phone) for phone in ("AH0", "AH1", "T")] == ["AH", "AH", "T"]
    assert "AH0 as AH" in note
    rule, _ = comparison(["ah_B", "t_I", "ow1_E", "SIL"], dictionary)
    assert [rule(phone) for phone in ("ah_B", "t_I", "ow1_E")] == ["AH", "T", "OW"]
    for phones in (["ə", "t"], ["pdf-3", "AH"]):
        with pytest.raises(ValueError, match="not the dictionary's"):
            comparison(phones, dictionary)
