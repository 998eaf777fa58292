"""`examples/recurrent_batch_norm.py` runs and shows what it says."""

import pytest


@pytest.mark.slow
def test_every_row_is_printed(example, monkeypatch, capsys):
    monkeypatch.setattr(example, "SEEDS", 1)
    monkeypatch.setattr(example, "EPOCHS", 1)
    monkeypatch.setattr(example, "IMAGES", 200)
    table = example.main()
    lines = capsys.readouterr().out.splitlines()
    assert list(table) == ["LSTM", "BatchNormLSTM, gamma 0.1", "BatchNormLSTM, gamma 1.0"]
    for name, row in table.items():
        printed = next(line for line in lines if line.startswith(f"{name}  "))
        assert printed.split()[-3:] == [f"{value:.2f}" for value in row]


def test_the_layer_is_the_papers(example):
    layer = example.normalized_layer(0.1)
    layer.build((None, example.ROWS, example.COLUMNS))
    weights = {variable.name: variable for variable in layer.cell.weights}
    for prefix in ("", "recurrent_", "cell_"):
        assert (weights[prefix + "gamma"].numpy() == weights["gamma"].numpy()[0]).all()
        assert weights[prefix + "moving_mean"].shape[0] == example.ROWS
    assert weights["gamma"].numpy()[0] == pytest.approx(0.1)


@pytest.mark.exhaustive
@pytest.mark.slow
def test_the_whole_example(example):
    rows = example.main()
    *small_losses, _, small_accuracy = rows["BatchNormLSTM, gamma 0.1"]
    *large_losses, _, large_accuracy = rows["BatchNormLSTM, gamma 1.0"]
    assert all(a < b for a, b in zip(small_losses, large_losses, strict=True))
    assert small_accuracy > large_accuracy + 0.03
    # Guessing is 0.10; the plain LSTM's accuracy differs most from run to run.
    assert small_accuracy > 0.4
    assert rows["LSTM"][-1] > 0.25
