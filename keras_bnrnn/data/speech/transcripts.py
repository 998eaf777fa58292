"""From what is said to the characters that a model writes: one rule for any script."""

import collections
import functools
import itertools
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

from keras_bnrnn.ctc import UNKNOWN
from keras_bnrnn.data.speech.alignment import ANNOTATION

CHARACTERS = "characters"  # The kind of labels that are text and not aligned.
APOSTROPHES = dict.fromkeys("\N{RIGHT SINGLE QUOTATION MARK}\N{MODIFIER LETTER APOSTROPHE}`´", "'")
JOINERS = "\N{ZERO WIDTH JOINER}\N{ZERO WIDTH NON-JOINER}"


@dataclass(frozen=True)
class TextRules:
    """What becomes of a transcript.

    Words are separated by one space. What stands in brackets is noise and no word. The form of
    Unicode is NFKC.

    Args:
        keep_case: tell capital letters from small ones; else all are small.
        keep_punctuation: keep punctuation and symbols; else a space takes their place, and those
            between two letters or digits, as in `don't`, stay if they are apostrophes.

    Example:

    >>> TextRules().normalized("“Don’t — [NOISE] STOP!”")
    "don't stop"
    """

    keep_case: bool = False
    keep_punctuation: bool = False

    def normalized(self, transcript: str) -> str:
        """The text of a transcript."""
        return self._rewritten(transcript, collections.Counter(), collections.Counter())

    def _rewritten(self, transcript, removed, replaced):
        # Before NFKC, which makes a space and an accent of one of them.
        straight = "".join(APOSTROPHES.get(one, one) for one in transcript)
        replaced.update(one for one in transcript if one in APOSTROPHES)
        removed.update(ANNOTATION.findall(straight))
        text = unicodedata.normalize("NFKC", ANNOTATION.sub(" ", straight))
        if not self.keep_case:
            text = unicodedata.normalize("NFKC", text.lower())
        kept = []
        for index, one in enumerate(text):
            category = unicodedata.category(one)
            nothing = category[0] == "C" and one not in JOINERS and not one.isspace()
            if nothing or one == UNKNOWN:
                removed[one] += 1
            elif self.keep_punctuation or category[0] not in "PS" or _within_word(text, index):
                kept.append(one)
            else:
                removed[one] += 1
                kept.append(" ")
        return " ".join("".join(kept).split())

    def changes(self, transcripts: Iterable[str]) -> dict:
        """What `normalized` does to transcripts, for `corpus.json`.

        Returns:
            The rules, and how often each character was `"removed"` or `"replaced"` by another.
        """
        removed, replaced = collections.Counter(), collections.Counter()
        for transcript in transcripts:
            self._rewritten(transcript, removed, replaced)
        return {
            **asdict(self),
            "unicode": "NFKC",
            "removed": dict(sorted(removed.items())),
            "replaced": {
                one: {"by": APOSTROPHES[one], "times": times}
                for one, times in sorted(replaced.items())
            },
        }

    def alphabet(self, transcripts: Iterable[str]) -> list[str]:
        """The characters of normalised transcripts, sorted."""
        return sorted({one for transcript in transcripts for one in self.normalized(transcript)})


def _within_word(text, index):
    """Whether the character is an apostrophe between two letters or digits."""
    around = text[index - 1 : index], text[index + 1 : index + 2]
    return text[index] == "'" and index > 0 and all(one.isalnum() for one in around)


@functools.lru_cache(maxsize=4)
def _numbers(alphabet):
    return {character: number for number, character in enumerate(alphabet, start=1)}


def encoded(text: str, alphabet: Sequence[str]) -> list[int]:
    """The labels of a text's characters, from 1; `len(alphabet) + 1` is an unknown one."""
    numbers = _numbers(tuple(alphabet))
    return [numbers.get(character, len(alphabet) + 1) for character in text]


def decoded(labels: Iterable[int], alphabet: Sequence[str]) -> str:
    """The text of labels; what is unknown is U+FFFD, and 0 and less is nothing."""
    names = ["", *alphabet, UNKNOWN]
    return "".join(names[label] for label in labels if label > 0)


def frames_needed(labels: Sequence[int]) -> int:
    """Fewest frames that a model can write labels in: between two alike there is a blank."""
    return len(labels) + sum(one == after for one, after in itertools.pairwise(labels))
