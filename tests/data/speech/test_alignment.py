"""Forced alignment: states per frame, unknown words, lexica, mismatching transcripts."""

import itertools

import numpy as np
import pytest

from keras_bnrnn.data.errors import CorpusError, UtteranceError
from keras_bnrnn.data.speech import synthesis
from keras_bnrnn.data.speech.alignment import (
    Aligner,
    State,
    alignment_score,
    match_lengths,
    normalize_transcript,
    read_lexicon,
)

pytest.importorskip("pocketsphinx", reason="the extra 'speech' is not installed")
pytest.importorskip("espeakng_loader", reason="the extra 'speech' is not installed")

SENTENCE = "the old farmer found seven red apples in the garden"


@pytest.fixture(scope="module")
def aligner():
    return Aligner()


@pytest.fixture(scope="module")
def samples():
    return synthesis.synthesize(synthesis.Prompt(SENTENCE, "en-us", 160, 50))


def phones(states):
    return [name for name, _ in itertools.groupby(state.phone for state in states)]


def test_every_frame_has_a_state(aligner, samples):
    states = aligner.align(samples, SENTENCE)
    assert abs(len(states) - ((len(samples) - 400) // 160 + 1)) <= 2
    assert all(state.number >= 0 and state.position in (0, 1, 2) for state in states)
    spoken = [phone for phone in phones(states) if phone != "SIL"]
    assert spoken[-5:] == ["AA", "R", "D", "AH", "N"]
    assert "F AA R M ER F AW N D" in " ".join(spoken)


def test_alignment_does_not_depend_on_what_was_aligned_before(aligner, samples):
    other = synthesis.synthesize(synthesis.Prompt("seven cats today", "en-us+f4", 150, 40))
    # Noise, which the aligner estimates and remembers.
    noise = np.random.default_rng(0).normal(0, 0.03, samples.size)
    noisy, other = samples + noise, other + noise[: other.size]
    first = aligner.align(noisy, SENTENCE)
    aligner.align(other, "seven cats today")
    assert aligner.align(noisy, SENTENCE) == first
    assert Aligner().align(noisy, SENTENCE) == first


def test_every_word_of_the_grammar_is_known(aligner):
    assert aligner.unknown_words(" ".join(synthesis.vocabulary())) == []


def test_unknown_words_are_named(aligner, samples):
    with pytest.raises(UtteranceError, match="not in the dictionary: zyxgrub, qqfoo"):
        aligner.align(samples, "The zyxgrub and the qqfoo.")


@pytest.mark.parametrize("transcript", ["", " -- ", "..."])
def test_empty_transcript(aligner, samples, transcript):
    with pytest.raises(UtteranceError, match="empty"):
        aligner.align(samples, transcript)


def test_more_words_than_the_audio_has_room_for(aligner, samples):
    with pytest.raises(UtteranceError, match="do not align"):
        aligner.align(samples[:4000], " ".join([SENTENCE] * 3))


def test_lexicon_adds_words(samples, tmp_path):
    lexicon = tmp_path / "lexicon.dict"
    lexicon.write_text(
        ";;; farm words\nGARDUN  G AA1 R D AH0 N\nGARDUN(2)  Z IY Z\n\n", encoding="utf-8"
    )
    assert read_lexicon(lexicon) == [("gardun", "G AA R D AH N"), ("gardun", "Z IY Z")]
    transcript = SENTENCE.replace("garden", "gardun")
    states = Aligner(str(lexicon)).align(samples, transcript)
    assert phones(states) == phones(Aligner().align(samples, SENTENCE))


@pytest.mark.parametrize(
    "text, reason",
    [("WORD\n", "line 1"), ("GOOD  G UH D\nBAD  B QX D\n", "QX"), (None, "no such file")],
)
def test_bad_lexica_are_named(tmp_path, text, reason):
    lexicon = tmp_path / "lexicon.dict"
    if text is not None:
        lexicon.write_text(text, encoding="utf-8")
    with pytest.raises(CorpusError, match=reason):
        Aligner(str(lexicon))


def test_normalization_keeps_apostrophes_within_words():
    assert normalize_transcript("It’s “O'Neil”, isn't it? -- Yes… rock-n-roll!") == (
        "it's o'neil isn't it yes rock-n-roll"
    )


def test_states_round_trip_through_corpus_entries():
    states = [State(1421, "DH", 0), State(-1, "DH", 2), State(-1, "DH"), State(17)]
    assert [state.name for state in states] == ["DH.0.1421", "DH.2", "DH", "pdf-17"]
    assert [State.from_entry(state.entry()) for state in states] == states
    assert states[0].reduced("phones") == State(phone="DH")
    assert states[0].reduced("phone_states") == State(phone="DH", position=0)


def test_lengths_may_differ_by_two_frames():
    features = np.zeros((10, 3))
    assert [len(x) for x in match_lengths(features, list(range(12)))] == [10, 10]
    assert [len(x) for x in match_lengths(features, list(range(8)))] == [8, 8]
    with pytest.raises(UtteranceError, match="10 frames of features but 7"):
        match_lengths(features, list(range(7)))


def test_annotations_are_no_words(aligner):
    for text in ("[NOISE]", "(LAUGHTER)", "<unk>", "{laugh}", "++um++", "[background noise]"):
        assert aligner.words(f"one {text} two") == ["one", "two"]
    assert aligner.words("well(laughs), yes") == ["well", "yes"]
    # Half an annotation is a mistake that somebody has to look at.
    assert aligner.unknown_words("one [noise two") == ["[noise"]


def test_a_token_is_looked_up_as_it_stands_first(aligner):
    assert aligner.words("'EM at a.m. the(2)") == ["'em", "at", "a.m.", "the(2)"]
    assert aligner.pronunciations(*aligner.words("'EM")) == [["AH", "M"]]
    assert aligner.words("Rock-n-roll, twenty-one!") == ["rock", "n", "roll", "twenty-one"]
    assert aligner.unknown_words("zyxgrub-roll") == ["zyxgrub-roll"]


def test_annotations_do_not_disturb(aligner, samples):
    expected = aligner.align(samples, SENTENCE)
    assert aligner.align(samples, f"[NOISE] {SENTENCE.upper()} (coughs)") == expected
    with pytest.raises(UtteranceError, match="empty of words"):
        aligner.align(samples, "[NOISE] (coughs)")


def test_silence_is_refused(aligner, samples):
    click, offset = 0 * samples, np.full(len(samples), 0.1)
    click[8000:8002] = 0.9
    offset[:100] = offset[-100:] = 0.0  # As a resampler leaves it.
    for silence in (0 * samples, click, offset, samples / 32768):
        with pytest.raises(UtteranceError, match="silent"):
            aligner.align(silence, "one two three")


def test_wrong_words_score_less(aligner, samples):
    right = aligner.align(samples, SENTENCE).score
    words = SENTENCE.split()
    assert -8 < right < 0
    for wrong in (words[::-1], ["seven", *words[1:-1], "boat"]):
        try:
            assert aligner.align(samples, " ".join(wrong)).score < right - 0.3
        except UtteranceError as error:
            assert "do not align" in str(error)


def test_a_part_that_does_not_fit_tells():
    good = np.full(600, -1.0)
    bad = good.copy()
    bad[200:340] = -10.0
    assert alignment_score(good) == -1.0
    assert alignment_score(bad) < -3.5
    bad[:] = good
    bad[300] = -100.0
    assert alignment_score(bad) > -1.5
    assert alignment_score(np.array([-2.0])) == -2.0


def test_lexica_of_today(tmp_path):
    """CMUdict with comments, in whatever encoding."""
    lexicon = tmp_path / "lexicon.dict"
    text = "# all of it\naalborg AO1 L B AO0 R G # place, danish\nzyx(2) Z IH1 K S\n;;; old\n"
    for encoding in ("utf-8", "utf-8-sig", "utf-16", "utf-16-le"):
        lexicon.write_text(text, encoding=encoding)
        assert read_lexicon(lexicon) == [("aalborg", "AO L B AO R G"), ("zyx", "Z IH K S")]
    lexicon.write_text(
        "zyx 1.0 Z IH1 K S\nzyx\t0.99\t0.1\t1e-05\t0.9\tZ IH1 K\n"
    )  # Kaldi's, MFA's.
    assert read_lexicon(lexicon) == [("zyx", "Z IH K S"), ("zyx", "Z IH K")]
    lexicon.write_text("the  DH AH0\nthe  DH IY0\nthe  DH EH1\n")
    assert Aligner(str(lexicon)).pronunciations("the") == [["DH", "AH"], ["DH", "IY"], ["DH", "EH"]]
