"""From transcripts to characters, in several scripts."""

import pytest

from keras_bnrnn.ctc import UNKNOWN
from keras_bnrnn.data.speech.transcripts import TextRules, decoded, encoded, frames_needed


@pytest.mark.parametrize(
    ("transcript", "text"),
    [
        ("Don’t — stop, “please”!", "don't stop please"),
        ("ONE  two\tthree ", "one two three"),
        ("[NOISE] so <unk> what (laughs)", "so what"),
        ("'twas rock 'n' roll", "twas rock n roll"),
        ("Grüße aus Köln: ẞ", "grüße aus köln ß"),
        ("Gru\u0308n", "grün"),  # decomposed
        ("ﬁne ２ｍ", "fine 2m"),
        ("Привет, мир…", "привет мир"),
        ("今天，天气。", "今天 天气"),
        ("नमस्ते!", "नमस्ते"),
        ("می\u200cخواهم", "می\u200cخواهم"),
        ("soft\u00adware\ufeff", "software"),
        (" ?! ", ""),
        (f"a{UNKNOWN}b", "ab"),
    ],
)
def test_texts(transcript, text):
    assert TextRules().normalized(transcript) == text
    assert TextRules().normalized(text) == text


def test_case_and_punctuation_can_be_kept():
    assert TextRules(keep_case=True).normalized("Hallo, Du!") == "Hallo Du"
    assert TextRules(keep_punctuation=True).normalized("Hallo,  Du!") == "hallo, du!"


def test_what_is_changed_is_counted():
    found = TextRules().changes(["a, b, c!", "don’t", "[NOISE] a"])
    assert found["removed"] == {"!": 1, ",": 2, "[NOISE]": 1}
    assert found["replaced"] == {"’": {"by": "'", "times": 1}}
    assert not found["keep_case"] and found["unicode"] == "NFKC"


def test_labels_and_back():
    alphabet = TextRules().alphabet(["Öl", "ab a"])
    assert alphabet == [" ", "a", "b", "l", "ö"]
    labels = encoded("bla öx", alphabet)
    assert labels == [3, 4, 2, 1, 5, 6]
    assert decoded([*labels, 0, -1], alphabet) == f"bla ö{UNKNOWN}"


def test_a_blank_is_needed_between_two_alike():
    assert frames_needed([1, 2, 3]) == 3
    assert frames_needed([1, 1, 2, 2, 2]) == 8
    assert frames_needed("aab") == 4
