"""Synthetic sentences: disjoint parts, known words, the same samples every time."""

import numpy as np
import pytest

from keras_bnrnn.data.errors import CorpusError, UtteranceError
from keras_bnrnn.data.speech import synthesis

pytest.importorskip("espeakng_loader", reason="the extra 'speech' is not installed")

ENGLISH = synthesis.GRAMMARS["en"]


def test_dev_has_other_sentences_and_other_voices():
    train, dev = synthesis.make_prompts(300, 60, seed=1)
    assert (len(train), len(dev)) == (300, 60)
    assert len({p.sentence for p in train + dev}) == 360
    assert not {p.voice for p in train} & {p.voice for p in dev}
    assert len({p.voice for p in train}) > 5 and len({p.words_per_minute for p in train}) > 10


def test_seed_decides_the_prompts():
    assert synthesis.make_prompts(20, 5, seed=3) == synthesis.make_prompts(20, 5, seed=3)
    assert synthesis.make_prompts(20, 5, seed=3) != synthesis.make_prompts(20, 5, seed=4)


def test_more_sentences_than_the_grammar_has(monkeypatch):
    short = ENGLISH._replace(sentences=("please sing",))
    monkeypatch.setitem(synthesis.GRAMMARS, "en", short)
    with pytest.raises(CorpusError, match="1 different"):
        synthesis.make_prompts(2, 1)


@pytest.mark.parametrize("voice", ENGLISH.training_voices + ENGLISH.held_out_voices)
def test_samples_do_not_depend_on_what_was_said_before(voice):
    prompt = synthesis.Prompt("the old dog found a letter", voice, 160, 50)
    first = synthesis.synthesize(prompt)
    synthesis.synthesize(synthesis.Prompt("seven cats", "en-us+m7", 180, 60))
    second = synthesis.synthesize(prompt)
    np.testing.assert_array_equal(first, second)
    assert 1.0 < len(first) / 16000 < 4.0 and np.abs(first).max() > 0.05


def test_unknown_voice_is_named():
    with pytest.raises(UtteranceError, match="xx-klingon"):
        synthesis.synthesize(synthesis.Prompt("hello", "xx-klingon", 160, 50))


def test_a_signal_within_the_library_is_not_lost(monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(np.ctypeslib, "as_array", interrupted)
    with pytest.raises(KeyboardInterrupt):
        synthesis.synthesize(synthesis.Prompt("hello", "en-us", 160, 50))
