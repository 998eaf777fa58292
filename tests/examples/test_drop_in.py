"""`examples/drop_in.py` runs and shows what its last lines say."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "drop_in.py"


@pytest.fixture
def drop_in():
    spec = importlib.util.spec_from_file_location("drop_in", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_one_seed_shows_the_difference(drop_in, monkeypatch, capsys):
    monkeypatch.setattr(drop_in, "SEEDS", 1)
    monkeypatch.setattr(drop_in, "EPOCHS", 3)
    table = drop_in.main()
    printed = capsys.readouterr().out
    assert printed.count("BatchNormLSTM") == 2
    small_plain = table[0.1, drop_in.plain_layer]
    small_normalized = table[0.1, drop_in.normalized_layer]
    assert len(small_plain) == 3
    assert small_normalized[-1] > 0.75 > small_plain[-1]


@pytest.mark.exhaustive
@pytest.mark.slow
def test_the_whole_example():
    finished = subprocess.run(
        [sys.executable, str(EXAMPLE)], check=True, capture_output=True, text=True
    )
    rows = {}
    for line in finished.stdout.splitlines():
        if line.startswith("inputs"):
            name, *values = line.rsplit(maxsplit=5)
            rows[name.strip()] = [float(value) for value in values]
    for scale in ("1.0", "0.1"):
        plain, normalized = (
            rows[f"inputs x {scale}, LSTM"],
            rows[f"inputs x {scale}, BatchNormLSTM"],
        )
        assert normalized[0] > plain[0] + 0.1
        assert normalized[-1] > 0.9
    assert abs(rows["inputs x 1.0, LSTM"][-1] - rows["inputs x 1.0, BatchNormLSTM"][-1]) < 0.05
    assert rows["inputs x 0.1, LSTM"][-1] < 0.7


def test_it_is_a_page_long():
    assert len(EXAMPLE.read_text(encoding="utf-8").splitlines()) <= 90
