"""`examples/recurrent_batch_norm.py` runs and shows what it says."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "recurrent_batch_norm.py"


@pytest.fixture
def example():
    spec = importlib.util.spec_from_file_location("recurrent_batch_norm", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_every_row_is_printed(example, monkeypatch, capsys):
    monkeypatch.setattr(example, "SEEDS", 1)
    monkeypatch.setattr(example, "EPOCHS", 1)
    monkeypatch.setattr(example, "IMAGES", 200)
    table = example.main()
    lines = capsys.readouterr().out.splitlines()
    assert list(table) == ["LSTM", "BatchNormLSTM, gamma 0.1", "BatchNormLSTM, gamma 1.0"]
    for name, row in table.items():
        printed = next(line for line in lines if line.startswith(f"{name}  "))
        assert printed.split()[-3:] == [f"{value:.2f}" for value in row]


def test_the_layer_is_the_papers(example):
    layer = example.normalized_layer(0.1)
    layer.build((None, example.ROWS, example.COLUMNS))
    weights = {variable.name: variable for variable in layer.cell.weights}
    for prefix in ("", "recurrent_", "cell_"):
        assert (weights[prefix + "gamma"].numpy() == weights["gamma"].numpy()[0]).all()
        assert weights[prefix + "moving_mean"].shape[0] == example.ROWS
    assert weights["gamma"].numpy()[0] == pytest.approx(0.1)


@pytest.mark.exhaustive
@pytest.mark.slow
def test_the_whole_example():
    finished = subprocess.run(
        [sys.executable, str(EXAMPLE)], check=True, capture_output=True, text=True
    )
    rows = {}
    for line in finished.stdout.splitlines():
        for name in ("LSTM", "BatchNormLSTM, gamma 0.1", "BatchNormLSTM, gamma 1.0"):
            if line.startswith(f"{name}  "):
                rows[name] = [float(value) for value in line[len(name) :].split()]
    small, large = rows["BatchNormLSTM, gamma 0.1"], rows["BatchNormLSTM, gamma 1.0"]
    *small_losses, _, small_accuracy = small
    *large_losses, _, large_accuracy = large
    assert all(a < b for a, b in zip(small_losses, large_losses, strict=True))
    assert small_accuracy > large_accuracy + 0.03
    # Guessing is 0.10; the plain LSTM's accuracy differs most from run to run.
    assert small_accuracy > 0.4
    assert rows["LSTM"][-1] > 0.25


def test_it_is_a_page_long():
    assert len(EXAMPLE.read_text(encoding="utf-8").splitlines()) <= 120
