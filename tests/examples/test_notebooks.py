"""The notebooks run, and the pages of the site show what they are today."""

import re
from pathlib import Path

import matplotlib.pyplot
import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((REPOSITORY / "examples" / "notebooks").glob("*.py"))
SMALL = {"EPOCHS": 1, "SEEDS": 1, "UTTERANCES": 12, "WORDS": 200, "STEPS": 10, "UNITS": 8}


def cells(path):
    """The code of each cell, without the blank lines around it."""
    _, *parts = re.split(r"^# %%(.*)\n", path.read_text(encoding="utf-8"), flags=re.M)
    kinds, texts = parts[::2], parts[1::2]
    return [
        text.strip("\n") for kind, text in zip(kinds, texts, strict=True) if "markdown" not in kind
    ]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_page_shows_the_notebook(path):
    page = (REPOSITORY / "docs" / "notebooks" / f"{path.stem}.md").read_text(encoding="utf-8")
    missing = [cell for cell in cells(path) if f"```python\n{cell}\n```" not in page]
    assert missing == [], "run `make notebooks`"


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs(path, monkeypatch):
    pytest.importorskip("IPython")
    monkeypatch.setattr(matplotlib.pyplot, "show", matplotlib.pyplot.close)
    code = path.read_text(encoding="utf-8")
    for name, number in SMALL.items():
        code = re.sub(rf"^{name} = \d+", f"{name} = {number}", code, flags=re.M)
    with matplotlib.rc_context({"backend": "agg"}):
        exec(compile(code, str(path), "exec"), {"__name__": "__main__"})
