"""Words of a lexicon and a grammar against every path of a few frames, tried one by one."""

import functools
import itertools
import random
import sys

import numpy as np
import pytest

from command_line import CommandError
from recipes.phone_model import Segment

pytest.importorskip("kaldi_decoder", reason="the extra 'decode' is not installed")
import kaldifst

from recipes.spelled_words import word_graph

CHARACTERS = ["<blank>", " ", "a", "b"]
WORDS = {"a": ["a"], "ab": ["ab"], "bb": ["bb"], "second": ["ba", "aab"]}
TIME = 7


@pytest.fixture
def file(tmp_path):
    def write(text, name="lexicon"):
        (tmp_path / name).write_text(text, encoding="utf-8")
        return tmp_path / name

    return write


def lexicon_of(words):
    return "".join(f"{word}\t{one}\n" for word, some in words.items() for one in some)


def parses(text, words, spaced=True):
    """All word sequences that a text can be read as."""

    @functools.cache
    def rest(text):
        text = text.lstrip(" ")
        if not text:
            return [()]
        return [
            (word, *more)
            for word, some in words.items()
            for one in some
            if text.startswith(one) and (not spaced or text[len(one) :][:1] in ("", " "))
            for more in rest(text[len(one) :])
        ]

    return rest(text)


def best_of_all(scores, words, cost, spaced=True):
    """The word sequences that the best of all paths reads as, of these the shortest."""
    best, found = -np.inf, []
    for path in itertools.product(range(len(CHARACTERS)), repeat=len(scores)):
        text = "".join(CHARACTERS[k] for k, _ in itertools.groupby(path) if k)
        acoustic = sum(scores[time, k] for time, k in enumerate(path))
        for sequence in parses(text, words, spaced) if acoustic > best else ():
            score = acoustic - cost(sequence)
            if score > best:
                best, found = score, []
            if score == best:
                found.append(sequence)
    return [one for one in found if len(one) == min(map(len, found))]


def random_scores(rng):
    scores = rng.normal(size=(TIME, len(CHARACTERS))) * 2.0
    return (scores - np.logaddexp.reduce(scores, axis=1, keepdims=True)).astype(np.float32)


def heard(graph, scores, cuts=()):
    search = graph.search()
    for piece in np.split(scores, cuts):
        search.extend(piece)
    return search.finish(), search


@pytest.mark.parametrize("characters", [CHARACTERS, ["<blank>", "#", "a", "b"]])
def test_any_words_of_the_lexicon(file, characters):
    rng = np.random.default_rng(0)
    graph = word_graph(characters, str, file(lexicon_of(WORDS)), beam=100.0)
    for _ in range(6):
        scores = random_scores(rng)
        if " " not in characters:
            scores[:, 1] = -1000.0  # In no word, and so on no path.
        expected = best_of_all(scores, WORDS, lambda words: 0.0, " " in characters)
        words, search = heard(graph, scores, cuts=[3])
        assert tuple(word for word, *_ in words) in expected
        assert search.complete


def test_costs_of_a_grammar(file):
    """Twice `ab` at no cost, else any but `ab` at a cost for each word."""
    grammar = file("0 1 ab\n1 2 ab\n2\n0 3 <eps> 0.25\n3 3 a 0.5\n3 3 bb 1\n3 .5\n", "grammar")
    prices = {"a": 0.5, "bb": 1.0}

    def cost(words):
        if words == ("ab", "ab"):
            return 0.0
        return 0.75 + sum(prices.get(word, np.inf) for word in words)

    rng = np.random.default_rng(1)
    graph = word_graph(CHARACTERS, str, file(lexicon_of(WORDS)), grammar, beam=100.0)
    alone = word_graph(CHARACTERS, str, None, grammar, beam=100.0)
    found = set()
    for number in range(12):
        scores = random_scores(rng)
        if number % 3 == 0:
            scores[[0, 2, 3, 4, 6], [2, 3, 1, 2, 3]] += 3.0
        expected = best_of_all(scores, WORDS, cost)
        for one in (graph, alone):
            words, _ = heard(one, scores)
            assert tuple(word for word, *_ in words) in expected
            found.update(word for word, *_ in words)
    assert found == {"a", "ab", "bb"}


def path_of(text):
    scores = np.full([len(text), len(CHARACTERS)], -9.0, np.float32)
    for time, one in enumerate(text):
        scores[time, "_ ab".index(one)] = -0.1
    return scores


def test_when_words_are_spoken(file):
    graph = word_graph(CHARACTERS, str, file(lexicon_of(WORDS)), reduction=4)
    words, _ = heard(graph, path_of("_aa_bb__  b_b aaa_ab_"))
    assert words == [Segment("ab", 4, 24), Segment("bb", 40, 52), Segment("second", 56, 80)]
    for nothing in ("", "___", " _ "):
        assert heard(graph, path_of(nothing))[0] == []


def test_a_word_that_is_written_with_a_space(file):
    graph = word_graph(CHARACTERS, str, file("x a b\nb\n"))
    assert heard(graph, path_of("_a _bb b"))[0] == [Segment("x", 1, 6), Segment("b", 7, 8)]


def test_a_word_of_words_is_one(file):
    graph = word_graph(["<blank>", "#", "a", "b"], str, file("a\nb\nab\n"))
    assert heard(graph, path_of("_ab_b"))[0] == [Segment("ab", 1, 3), Segment("b", 4, 5)]


def test_a_long_recording_in_pieces(file):
    graph = word_graph(CHARACTERS, str, file(lexicon_of(WORDS)))
    random.seed(0)
    expected = random.choices(["a", "ab", "bb"], k=4000)
    scores = path_of(" ".join("_".join(word) for word in expected))
    whole, _ = heard(graph, scores)
    pieces, _ = heard(graph, scores, cuts=range(0, len(scores), 700))
    assert whole == pieces
    assert [word for word, *_ in whole] == expected
    assert whole[-1].end == len(scores)


def test_what_is_said_of_an_end_within_a_grammar(file):
    graph = word_graph(CHARACTERS, str, grammar=file("0 1 ab\n1 2 bb\n2\n"))
    words, search = heard(graph, path_of("ab "))
    assert [word for word, *_ in words] == ["ab"] and not search.complete
    assert heard(graph, path_of("ab b_b"))[1].complete


@pytest.mark.parametrize(
    ("lexicon", "grammar", "message"),
    [
        ("", None, "--lexicon=.*lexicon is empty"),
        ("a\nöaß\n", None, "lexicon: the model never writes 'ß', 'ö', as in 'öaß'"),
        ("a\na !\n", None, "line 2: no word is left of 'a'"),
        ("a\n", "0 1 b\n1\n", "lacks words of the grammar: b"),
        (None, "0 1 c\n1\n", "grammar: the model never writes 'c', as"),
        (None, "0 1 a\n", "no way from its first state to a last one"),
        (None, "0 1 a b\n1\n", "line 1: neither `STATE NEXT WORD"),
        (None, "0 1 a a 0.5\n1\n", "line 1: neither `STATE NEXT WORD"),
        (None, "1\n1 1 a nan\n", "line 2: a cost of nan"),
        (None, "1\n1 1 <eps> -1\n", "line 2: a cost of -1"),
        (None, "1\n1 1 !\n", "line 2: no word is left of '!'"),
        (None, "\n\\data\\\nngram 1=3\n", "n-gram model in ARPA's form"),
    ],
)
def test_bad_files(file, lexicon, grammar, message):
    lexicon = lexicon if lexicon is None else file(lexicon)
    grammar = grammar if grammar is None else file(grammar, "grammar")
    with pytest.raises(CommandError, match=message):
        word_graph(CHARACTERS, lambda word: word.strip("!"), lexicon, grammar)


def test_a_binary_grammar(tmp_path):
    kaldifst.compile("0 0 1 1\n0\n").write(str(tmp_path / "G.fst"))
    with pytest.raises(CommandError, match="is a binary FST; fstprint --acceptor"):
        word_graph(CHARACTERS, str, grammar=tmp_path / "G.fst")


def test_a_missing_wheel(file, monkeypatch):
    monkeypatch.setitem(sys.modules, "kaldi_decoder", None)
    with pytest.raises(CommandError, match=r'pip install "keras-bnrnn\[decode\]"'):
        word_graph(CHARACTERS, str, file("a\n"))
