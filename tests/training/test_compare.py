"""compare.py: the table, the sentence and the picture, from run folders written here."""

import numpy as np
import pytest
from matplotlib.image import imread

import compare
from command_line import CommandError
from keras_bnrnn.fit.errors import FitError
from paper import curves
from recipes import measures
from untrained import write_epochs

SPEECH = ("train_fce", "train_fer", "dev_fce", "dev_fer")
LANGUAGE = ("train_perplexity", "valid_perplexity")


def write_run(folder, model, columns, values, **best):
    """A run whose every column falls through `values`."""
    rows = [
        {"epoch": epoch, **dict.fromkeys(columns, value), "learning_rate": 0.1}
        for epoch, value in enumerate(values, 1)
    ]
    best = {**min(rows, key=lambda row: row[columns[0]]), **best}
    task = "speech" if columns == SPEECH else "language"
    write_epochs(folder, rows, best, model=model, config={"model": model}, task=task)
    return folder


def test_speech_runs(call_script, tmp_path, capsys):
    plain = write_run(tmp_path / "plain", "baseline", SPEECH, [0.9, 0.6, 0.5, 0.55])
    normalised = write_run(tmp_path / "bn", "batch_norm", SPEECH, [0.7, 0.45, 0.3], test_fer=0.25)
    call_script(compare, f"--output_dir={tmp_path}/out", plain, normalised)
    lines = capsys.readouterr().out.splitlines()
    header = ["run", "epochs", "best", "epoch", "train_fce", "dev_fce", "train_fer", "dev_fer"]
    assert lines[0].split() == [*header, "test_fer", "s/epoch"]
    assert " ".join(lines[2].split()) == "baseline 4 3 0.500 0.500 50.0% 50.0% - 2.0"
    assert " ".join(lines[3].split()) == "batch_norm 3 3 0.300 0.300 30.0% 30.0% 25.0% 2.0"
    assert (
        "batch_norm passed the best train_fce of baseline (0.500 after epoch 3) at epoch 2, "
        "with 0.450." in lines
    )
    picture = imread(tmp_path / "out" / "compare.png")
    assert picture.shape[1] > picture.shape[0]
    assert np.unique(picture.reshape(-1, picture.shape[-1]), axis=0).shape[0] > 10


def test_language_runs_and_a_baseline_that_was_not_passed(call_script, tmp_path, capsys):
    plain = write_run(tmp_path / "plain", "baseline", LANGUAGE, [300.0, 120.0], test_perplexity=99)
    normalised = write_run(tmp_path / "bn", "batch_norm", LANGUAGE, [250.0])
    call_script(compare, f"--output_dir={tmp_path}", plain, normalised)
    output = capsys.readouterr().out
    assert "test_perplexity" in output
    assert (
        "batch_norm did not pass the best train_perplexity of baseline (120.0 after epoch 2): it "
        "reached 250.0 in 1 epoch." in output
    )


def test_runs_of_one_model_are_called_by_their_folders(call_script, tmp_path, capsys):
    runs = [write_run(tmp_path / name, "baseline", LANGUAGE, [9.0]) for name in ("a", "b")]
    call_script(compare, f"--output_dir={tmp_path}", *runs)
    output = capsys.readouterr().out
    assert str(runs[0]) in output and str(runs[1]) in output
    assert "No verdict" in output


def test_curves_are_dashed_for_training_and_solid_for_validation(tmp_path, monkeypatch):
    runs = compare.read_runs(
        [
            write_run(tmp_path / "plain", "baseline", SPEECH, [0.9, 0.6]),
            write_run(tmp_path / "bn", "batch_norm", SPEECH, [0.7, 0.45]),
        ]
    )
    figures = []

    class Recorded(curves.Figure):
        def __init__(self, *arguments, **kwargs):
            super().__init__(*arguments, **kwargs)
            figures.append(self)

    monkeypatch.setattr(curves, "Figure", Recorded)
    compare.draw(runs, measures.SPEECH, tmp_path / "x.png")
    panels = figures[0].axes
    assert [panel.get_xlabel() for panel in panels] == ["epoch", "epoch"]
    assert [line.get_linestyle() for line in panels[0].lines] == ["--", "-"] * 2
    texts = [text.get_text() for text in figures[0].legends[0].get_texts()]
    assert texts == ["baseline", "batch_norm", "training", "validation"]


def test_speech_beside_language_is_refused(call_script, tmp_path):
    plain = write_run(tmp_path / "plain", "baseline", SPEECH, [0.9])
    normalised = write_run(tmp_path / "bn", "batch_norm", LANGUAGE, [250.0])
    message = r"cannot be compared: .*plain is of train_speech\.py, .*bn is of train_ptb\.py"
    with pytest.raises(CommandError, match=message):
        call_script(compare, f"--output_dir={tmp_path}", plain, normalised)


def test_what_is_no_run_is_named(call_script, tmp_path):
    with pytest.raises(FitError, match=r"no results\.json"):
        call_script(compare, tmp_path)
    with pytest.raises(CommandError, match="gs://bucket/run: this is a URL"):
        call_script(compare, "gs://bucket/run")
    with pytest.raises(CommandError, match="no run is named"):
        call_script(compare)
    run = write_run(tmp_path / "run", "baseline", LANGUAGE, [9.0])
    with pytest.raises(CommandError, match="named twice"):
        call_script(compare, run, run)
