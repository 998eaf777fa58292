"""`examples/survive.py` goes on where it was killed, and ends as if it had not been."""

import subprocess
import sys
import time

import keras
import numpy as np
import pytest

from keras_bnrnn.fit import read_history
from keras_bnrnn.fit.checkpoints import newest_checkpoint


@pytest.mark.slow
def test_sigkill(example, tmp_path, capsys):
    """At whatever moment it is; with the same weights in the end."""
    command = [sys.executable, example.__file__, str(tmp_path / "killed")]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        deadline = time.monotonic() + 300
        while newest_checkpoint(tmp_path / "killed") < "epoch-0004":
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.kill()
    output = subprocess.check_output(command, text=True)
    assert "Continuing" in output and "Epoch 12/12: accuracy" in output and "Next:" in output
    model, run = example.main(tmp_path / "whole")
    assert "Continuing" not in capsys.readouterr().out
    assert run.best_row["val_accuracy"] > 0.8
    for row, same in zip(read_history(tmp_path / "killed"), run.rows, strict=True):
        assert row == pytest.approx(same, rel=1e-4)
    killed = keras.saving.load_model(tmp_path / "killed" / "final.keras")
    for weight, same in zip(killed.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_allclose(weight, same, atol=1e-4)
