"""`examples/serve.py` exports a model that gives the same numbers in another process."""

import sys

import pytest


@pytest.mark.slow
def test_the_numbers(example, monkeypatch, capsys):
    """The client runs in this process."""

    def call(command, check):
        monkeypatch.setattr(sys, "argv", ["client", *command[3:]])
        monkeypatch.delitem(sys.modules, "keras_bnrnn")
        exec(command[2], {})

    deviations = example.main(call)
    assert deviations.keys() == {"serve", "step"} and max(deviations.values()) < 1e-5
    assert "signatures serve and step" in capsys.readouterr().out


@pytest.mark.slow
def test_the_whole_example(example):
    deviations = example.main()
    assert deviations.keys() == {"serve", "step"} and max(deviations.values()) < 1e-5
