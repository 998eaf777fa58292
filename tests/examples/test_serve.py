"""`examples/serve.py` exports a model that gives the same numbers in another process."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "serve.py"


def test_the_numbers(monkeypatch, capsys):
    """The client runs in this process."""
    spec = importlib.util.spec_from_file_location("serve", EXAMPLE)
    serve = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(serve)

    def call(command, check):
        monkeypatch.setattr(sys, "argv", ["client", *command[3:]])
        monkeypatch.delitem(sys.modules, "keras_bnrnn")
        exec(command[2], {})

    deviations = serve.main(call)
    assert deviations.keys() == {"serve", "step"} and max(deviations.values()) < 1e-5
    assert "signatures serve and step" in capsys.readouterr().out


@pytest.mark.slow
def test_the_whole_example():
    done = subprocess.run(
        [sys.executable, str(EXAMPLE)], check=True, capture_output=True, text=True
    )
    assert done.stdout.count("largest deviation") == 2


def test_it_is_a_page_long():
    assert len(EXAMPLE.read_text(encoding="utf-8").splitlines()) <= 90
