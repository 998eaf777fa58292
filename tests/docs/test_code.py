"""The code of README.md and of the pages in docs/ runs, block after block."""

import re
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
BLOCK = re.compile(r"^(<!-- not run: .+ -->\n)?```python\n(.*?)^```$", re.M | re.S)
PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
PAGES.remove(REPOSITORY / "docs/SERVING.md")  # tests/serving/test_page.py runs it.


def blocks(page):
    """`[(first line, code), …]` of the blocks that are not marked as not to be run."""
    text = page.read_text(encoding="utf-8")
    return [
        (text[: match.start(2)].count("\n"), match[2])
        for match in BLOCK.finditer(text)
        if not match[1]
    ]


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, id=page.name, marks=[] if page.name == "README.md" else pytest.mark.slow)
        for page in PAGES
        if blocks(page)
    ],
)
def test_the_code_of_a_page_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "__main__"}
    for line, code in blocks(page):
        # Line breaks in front, for a traceback to name the page's line.
        exec(compile("\n" * line + code, str(page), "exec"), namespace)
