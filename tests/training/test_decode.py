"""decode.py: words of Kaldi archives by a recipe's graph."""

import numpy as np
import pytest

import kaldi_models
from command_line import CommandError
from keras_bnrnn.data.errors import UtteranceError

kaldiio = pytest.importorskip("kaldiio", reason="the extra 'speech' is not installed")
pytest.importorskip("kaldifst", reason="the extra 'decode' is not installed")
import decode  # noqa: E402


@pytest.fixture
def likelihoods(tmp_path):
    """Three utterances, in which one pdf after the other is the likeliest by far."""

    def scores_of(pdfs):
        return np.where(np.arange(2) == np.repeat(pdfs, 5)[:, np.newaxis], 0.0, -99.0)

    spoken = {"a-1": [0, 1, 0], "b-2": [1], "c-3": [0]}
    path = tmp_path / "test.scp"
    with kaldiio.WriteHelper(f"ark,scp:{tmp_path}/test.ark,{path}") as writer:
        for name, pdfs in spoken.items():
            writer(name, scores_of(pdfs).astype("float32"))
    return path


def test_words_and_their_error_rates(likelihoods, call_script, tmp_path, capsys):
    text = tmp_path / "text"
    text.write_text("c-3 W0 W1\na-1 W0 W1 W0\nb-2 w1\n")
    flags = [f"--likelihoods={likelihoods}", f"--graph={kaldi_models.write_recipe(tmp_path, 2)}"]
    call_script(decode, *flags, f"--transcript={text}")
    captured = capsys.readouterr()
    assert captured.out == "a-1 W0 W1 W0\nb-2 W1\nc-3 W0\n"
    assert "all: word error rate 16.7% (1 of 6)" in captured.err
    call_script(decode, *flags, "--format=ctm")
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [(row[0], row[4]) for row in rows[:3]] == [("a-1", w) for w in ("W0", "W1", "W0")]
    starts = [float(row[2]) for row in rows]
    np.testing.assert_allclose(starts, [0.0, 0.05, 0.10, 0.0, 0.0], atol=0.011)


def test_bad_likelihoods(likelihoods, call_script, tmp_path):
    graph = kaldi_models.write_recipe(tmp_path, 3)
    for index, message in (
        (likelihoods, "a model of the 3 pdf-ids of .* this one has 2 outputs"),
        (tmp_path / "no.scp", "no such file"),
    ):
        with pytest.raises(CommandError, match=message):
            call_script(decode, f"--likelihoods={index}", f"--graph={graph}")
    likelihoods.write_text(f"a-1 {tmp_path}/no.ark:5\n")
    with pytest.raises(UtteranceError, match="the archive is missing"):
        call_script(decode, f"--likelihoods={likelihoods}", f"--graph={graph}")
    likelihoods.write_text("")
    with pytest.raises(CommandError, match="is empty"):
        call_script(decode, f"--likelihoods={likelihoods}", f"--graph={graph}")
