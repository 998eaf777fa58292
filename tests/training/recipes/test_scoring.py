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


def test_words_of_a_script_without_spaces():
    heard = [Segment("你好", 0, 1), Segment("世界", 1, 2)]
    without = scoring.word_error_rates("你好世界", ["a.wav"], characters=set("你好世界"))
    assert without.add(0, heard).endswith("character error rate 0.0% (0 of 4)")
    spaced = scoring.word_error_rates("你好世界", ["a.wav"], characters=set("你好世界 "))
    assert spaced.add(0, heard).endswith("character error rate 25.0% (1 of 4)")
