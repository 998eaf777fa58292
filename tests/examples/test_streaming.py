"""`examples/streaming.py` runs, and its stream gives what the whole sequence gives."""

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "streaming.py"


@pytest.mark.slow
def test_shared_statistics_stream_and_per_step_statistics_do_not():
    finished = subprocess.run(
        [sys.executable, str(EXAMPLE)], check=True, capture_output=True, text=True
    )
    rows = {}
    for line in finished.stdout.splitlines():
        if "statistics:" in line:
            words = line.replace(",", "").split()
            rows[words[0]] = float(words[4]), float(words[-1])
    deviation, accuracy = rows["shared"]
    assert deviation < 1e-5
    # Better than always answering alike, so the states were carried and the model had learnt.
    assert accuracy > 0.85
    assert rows["per-step"][0] > 1e-3


def test_it_is_a_page_long():
    assert len(EXAMPLE.read_text(encoding="utf-8").splitlines()) <= 90
