"""The graph of a model that writes text: words of a lexicon, and a grammar of what follows what.

It is what Kaldi calls T ∘ L ∘ G, with T ∘ L made at once: a tree of the words' characters, in which
a frame repeats its character, is blank, or goes on; two characters that are alike have a blank
between them. Between words there is a space, where the model knows one.
"""

import collections
import itertools
import math
import re
import struct
from pathlib import Path

import numpy as np

from command_line import CommandError
from recipes.text_model import BLANK, SPACE
from recipes.word_graph import MAGIC, WordGraph, wheels

NOTHING = "<eps>"
WORD_COST = 1e-3  # Of readings that score alike, the one of fewest words.


def word_graph(characters, normalized, lexicon=None, grammar=None, **options):
    """The `WordGraph` of a lexicon, a grammar or both.

    Args:
        characters: the model's outputs; the first is the blank.
        normalized: from words to how the model writes them.
        lexicon: file with a word in each line; what follows it is how it is written. Without one
            the grammar's words are written as they are.
        grammar: file of OpenFst's text form, an acceptor of words.
        **options: of the `WordGraph`.
    """
    kaldifst, _ = wheels()
    arcs = [] if grammar is None else read_grammar(grammar, normalized)
    used = {word: [word] for _, _, word, _ in arcs if word}
    spellings = used if lexicon is None else read_lexicon(lexicon, normalized)
    missing = [word for word in used if word not in spellings]
    if missing:
        raise CommandError(f"--lexicon={lexicon} lacks words of the grammar: {_listed(missing)}")
    spellings = {word: spellings[word] for word in used or spellings}
    foreign = set("".join(itertools.chain(*spellings.values()))) - set(characters[1 + BLANK :])
    if foreign:
        example = next(word for word, some in spellings.items() if foreign & set("".join(some)))
        source = f"--grammar={grammar}" if lexicon is None else f"--lexicon={lexicon}"
        raise CommandError(
            f"{source}: the model never writes {_listed(map(repr, foreign))}, as in {example!r}; "
            "put behind a word, in the lexicon, how the model would write it"
        )
    fst = kaldifst.compile(_tree(characters, spellings))
    if grammar is not None:
        kaldifst.arcsort(fst, "olabel")
        fst = kaldifst.compose(fst, _acceptor(kaldifst, arcs, spellings))
        if fst.start < 0:
            raise CommandError(f"--grammar={grammar} has no way from its first state to a last one")
    apart = [1 + BLANK, *(k for k, one in enumerate(characters, 1) if one == SPACE)]

    def spans(labels, ends):
        spoken = np.flatnonzero(~np.isin(labels, apart))
        starts = spoken[np.searchsorted(spoken, [0, *ends][: len(ends)])]
        return list(zip(starts, ends, strict=True))

    return WordGraph(
        fst, dict(enumerate(spellings, 1)), np.arange(len(characters)), spans, **options
    )


def _tree(characters, spellings):
    """The lexicon's transducer from labels (1 + output) to words, in OpenFst's text form."""
    blank, label = 1 + BLANK, {one: number for number, one in enumerate(characters, 1)}
    # Of each prefix: the words that it is, and by what it goes on. Dictionaries keep the order.
    words, following = collections.defaultdict(list), collections.defaultdict(dict)
    for number, some in enumerate(spellings.values(), 1):
        for spelling in some:
            words[spelling].append(number)
            for end in range(len(spelling)):
                following[spelling[:end]][spelling[: end + 1]] = None
    state, lines = collections.defaultdict(itertools.count().__next__), []

    def arc(source, target, label, word=0):
        lines.append(f"{state[source]} {state[target]} {label} {word}")

    def go_on(source, prefix, last):
        """To what may follow at once: no character that is like the last."""
        for longer in following[prefix]:
            if longer[-1] != last:
                arc(source, longer, label[longer[-1]])

    # Between words: the last character, none after a blank, and whether a word may begin.
    spaced = SPACE in label
    places = [("", True), *[(SPACE, True), ("", False)][: 2 * spaced]]
    for last, begin in dict.fromkeys([*places, *((one[-1], not spaced) for one in words)]):
        arc((last, begin), ("", begin), blank)
        if spaced:
            arc((last, begin), (SPACE, True), label[SPACE])
        if begin:
            go_on((last, begin), "", last)
        lines.append(f"{state[last, begin]}")
    # Within words, in the last character of a prefix and in the blanks after it.
    for prefix in dict.fromkeys(itertools.chain(*following.values())):
        last, rest = prefix[-1], (prefix, "blank")
        arc(prefix, prefix, label[last])
        for word in words.get(prefix, ()):
            arc(prefix, (last, not spaced), 0, f"{word} {WORD_COST}")
        if prefix in following:
            arc(prefix, rest, blank)
            arc(rest, rest, blank)
            go_on(prefix, prefix, last)
            go_on(rest, prefix, "")
    return "\n".join([*lines, ""])


def _acceptor(kaldifst, arcs, words):
    """A grammar's acceptor of words' numbers."""
    number = {"": 0, **{word: number for number, word in enumerate(words, 1)}}
    lines = [
        f"{source} {cost}" if target is None else f"{source} {target} {number[word]} {cost}"
        for source, target, word, cost in arcs
    ]
    fst = kaldifst.compile("\n".join([*lines, ""]), acceptor=True)
    kaldifst.arcsort(fst, "ilabel")
    return fst


def read_lexicon(path, normalized):
    """`{word: {how it is written: None, …}}`."""
    spellings = {}
    for number, (first, *others) in _lines("lexicon", path):
        word = normalized(first)
        spelling = normalized(" ".join(others)) if others else word
        if not word or not spelling:
            raise CommandError(f"--lexicon={path}, line {number}: no word is left of {first!r}")
        spellings.setdefault(word, {})[spelling] = None
    return spellings


def read_grammar(path, normalized):
    """`[(state, next state or None, word or "", cost)]`; where there is no next, it may end."""
    arcs = []
    for number, fields in _lines("grammar", path):
        wrong = f"--grammar={path}, line {number}"
        match = re.fullmatch(r"(\d+)(?: (\d+) (\S+))?(?: (\S+))?", " ".join(fields))
        try:
            source, target, name, cost = match.groups()
            cost = float(cost or 0.0)
        except (AttributeError, ValueError):
            raise CommandError(
                f"{wrong}: neither `STATE NEXT WORD [COST]` nor `STATE [COST]`, as fstprint "
                "--acceptor writes them"
            ) from None
        word = "" if name in (None, NOTHING) else normalized(name)
        if not word and name not in (None, NOTHING):
            raise CommandError(f"{wrong}: no word is left of {name!r}")
        if not math.isfinite(cost) or (name == NOTHING and cost < 0):
            raise CommandError(f"{wrong}: a cost of {cost}")
        arcs.append((source, target, word, cost))
    return arcs


def _lines(flag, path):
    """The numbers and fields of a file's lines that are not empty."""
    from keras_bnrnn.data.encodings import decoded

    try:
        contents = Path(path).read_bytes()
        if contents.startswith(struct.pack("<i", MAGIC)):
            raise CommandError(
                f"--{flag}={path} is a binary FST; fstprint --acceptor writes OpenFst's text form, "
                "with words if it has --isymbols=words.txt"
            )
        lines = decoded(contents).splitlines()
    except UnicodeDecodeError as error:
        raise CommandError(f"--{flag}={path} is not UTF-8: {error}") from None
    found = [(number, line.split()) for number, line in enumerate(lines, 1) if line.split()]
    if not found:
        raise CommandError(f"--{flag}={path} is empty")
    if found[0][1] == ["\\data\\"]:
        raise CommandError(f"--{flag}={path} is an n-gram model in ARPA's form, which is not read")
    return found


def _listed(words, most=5):
    words = sorted(words)
    return ", ".join(words[:most]) + ", …" * (len(words) > most)
