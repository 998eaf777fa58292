"""`examples/recurrent_batch_norm.py`: gamma 0.1 learns what gamma 1.0 and a plain LSTM do not."""

import importlib.util
from pathlib import Path

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "recurrent_batch_norm.py"


def test_small_gamma_learns_faster(capsys):
    spec = importlib.util.spec_from_file_location("recurrent_batch_norm", EXAMPLE)
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    table = example.main()
    printed = capsys.readouterr().out
    losses = {name: history[-1] for name, (history, _) in table.items()}
    assert losses["BatchNormLSTM, gamma 0.1"] < losses["LSTM"] - 0.2
    assert losses["BatchNormLSTM, gamma 0.1"] < losses["BatchNormLSTM, gamma 1.0"] - 0.2
    assert all(name in printed for name in table)
