"""Each example is a page that one reads."""

from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_it_is_a_page_long(path):
    lines = path.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= (120 if path.stem == "recurrent_batch_norm" else 90)
