"""Transcripts as they are given on a command line."""

import pytest

from command_line import CommandError
from recipes import scoring
from recipes.phone_model import Segment


def test_transcripts_of_any_length_and_name(tmp_path):
    assert scoring.read_transcripts(100 * "the ", ["a.wav"]) == [100 * "the "]
    words = tmp_path / "words.tsv"
    words.write_text("my file.wav\tone two\nother three\n")
    paths = ["my file.wav", "folder/other.wav"]
    assert scoring.read_transcripts(str(words), paths) == ["one two", "three"]
    words.write_bytes(b"\xef\xbb\xbfs1/a.wav\tone\ns2/a.wav\ttwo\nb\tthree\nfolder/b\tthree\n")
    paths = ["s2/a.wav", "s1/a.wav", "elsewhere/b.wav"]
    assert scoring.read_transcripts(str(words), paths) == ["two", "one", "three"]
    with pytest.raises(CommandError, match=r"several lines for x/a\.wav: s1/a\.wav, s2/a\.wav"):
        scoring.read_transcripts(str(words), ["x/a.wav"])
    words.write_text("a one\nb two\na three\n")
    with pytest.raises(CommandError, match="two different lines for a"):
        scoring.read_transcripts(str(words), ["b.wav"])
    words.write_bytes(b"a caf\xe9\n")
    with pytest.raises(CommandError, match="is not UTF-8"):
        scoring.read_transcripts(str(words), ["a.wav"])
    with pytest.raises(CommandError, match=r"word\.txt: no such file"):
        scoring.read_transcripts(str(tmp_path / "word.txt"), ["a.wav"])


def test_an_utterance_of_noise_among_others(tmp_path):
    words = tmp_path / "text"
    words.write_text("a one two\nb <NOISE>\n")
    rates = scoring.word_error_rates(str(words), ["a", "b"])
    assert rates.add(0, [Segment("one", 0, 1)]).startswith("word error rate 50.0% (1 of 2)")
    assert rates.add(1, [Segment("six", 0, 1)]).startswith("word error rate - (1 of 0)")
    assert rates.total().startswith("word error rate 100.0% (2 of 2)")
    with pytest.raises(CommandError, match="a transcript has no words"):
        scoring.word_error_rates("<NOISE>", ["b"])


def test_words_of_a_script_without_spaces():
    heard = [Segment("你好", 0, 1), Segment("世界", 1, 2)]
    without = scoring.word_error_rates("你好世界", ["a.wav"], characters=set("你好世界"))
    assert without.add(0, heard).endswith("character error rate 0.0% (0 of 4)")
    spaced = scoring.word_error_rates("你好世界", ["a.wav"], characters=set("你好世界 "))
    assert spaced.add(0, heard).endswith("character error rate 25.0% (1 of 4)")
