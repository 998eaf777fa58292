"""`examples/survive.py` goes on where it was killed, and ends as if it had not been."""

import importlib.util
import subprocess
import sys
import time
from pathlib import Path

import keras
import numpy as np
import pytest

from keras_bnrnn.fit import read_history
from keras_bnrnn.fit.checkpoints import newest_checkpoint

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "survive.py"


@pytest.mark.slow
def test_it_goes_on(tmp_path, monkeypatch, capsys):
    spec = importlib.util.spec_from_file_location("survive", EXAMPLE)
    survive = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(survive)
    for epochs in (1, 2):
        monkeypatch.setattr(survive, "EPOCHS", epochs)
        _, run = survive.main(tmp_path / "run")
    assert run.best_row["val_accuracy"] > 0.8
    printed = capsys.readouterr().out
    assert "Continuing" in printed and "Epoch 2/2: accuracy" in printed and "Next:" in printed


@pytest.mark.slow
def test_sigkill(tmp_path):
    """Twice, at whatever moment it is; with the same weights in the end."""
    command = [sys.executable, str(EXAMPLE)]
    folders = [tmp_path / name for name in ("killed", "whole")]
    for seen in (1, 4):
        with subprocess.Popen([*command, str(folders[0])], stdout=subprocess.PIPE) as process:
            deadline = time.monotonic() + 300
            while newest_checkpoint(folders[0]) < f"epoch-{seen:04d}":
                assert time.monotonic() < deadline
                time.sleep(0.01)
            process.kill()
    outputs = [subprocess.check_output([*command, str(folder)], text=True) for folder in folders]
    assert "Continuing" in outputs[0] and "Continuing" not in outputs[1]
    rows = [read_history(folder) for folder in folders]
    for row, same in zip(*rows, strict=True):
        assert row == pytest.approx(same, rel=1e-4)
    models = [keras.saving.load_model(folder / "final.keras") for folder in folders]
    for weight, same in zip(*(model.get_weights() for model in models), strict=True):
        np.testing.assert_allclose(weight, same, atol=1e-4)


def test_it_is_a_page_long():
    assert len(EXAMPLE.read_text(encoding="utf-8").splitlines()) <= 90
