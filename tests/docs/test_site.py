"""The reference has every public name once; the figures can be drawn anew."""

import inspect
import re
import runpy
from pathlib import Path

import pytest

import keras_bnrnn

DOCS = Path(__file__).resolve().parents[2] / "docs"


def public_names():
    """What a user may import, by its full name."""
    names = []
    for name in keras_bnrnn.__all__:
        module = getattr(keras_bnrnn, name)
        if not inspect.ismodule(module):
            names.append(f"keras_bnrnn.{name}")
            continue
        own = getattr(module, "__all__", None) or [
            name
            for name, value in vars(module).items()
            if inspect.isclass(value) and value.__module__ == module.__name__
        ]
        names += [f"{module.__name__}.{name}" for name in own if not name.startswith("_")]
    return names


def test_the_reference_has_every_public_name_once():
    pages = [page.read_text(encoding="utf-8") for page in (DOCS / "reference").glob("*.md")]
    described = [name for page in pages for name in re.findall(r"^::: (\S+)$", page, re.M)]
    assert sorted(described) == sorted(public_names())


@pytest.mark.slow
def test_the_figures_can_be_drawn(tmp_path):
    runpy.run_path(str(DOCS / "figures.py"))["main"](tmp_path)
    drawn = {path.name for path in tmp_path.iterdir()}
    assert drawn == {path.name for path in (DOCS / "figures").iterdir()}
