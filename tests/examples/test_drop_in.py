"""`examples/drop_in.py` runs and shows what its last lines say."""

import pytest


@pytest.mark.slow
def test_one_seed_shows_the_difference(example, monkeypatch, capsys):
    monkeypatch.setattr(example, "SEEDS", 1)
    monkeypatch.setattr(example, "EPOCHS", 3)
    table = example.main()
    printed = capsys.readouterr().out
    assert printed.count("BatchNormLSTM") == 2
    small_plain = table[0.1, example.plain_layer]
    small_normalized = table[0.1, example.normalized_layer]
    assert len(small_plain) == 3
    assert small_normalized[-1] > 0.75 > small_plain[-1]


@pytest.mark.exhaustive
@pytest.mark.slow
def test_the_whole_example(example):
    table = example.main()
    for scale in (1.0, 0.1):
        plain, normalized = (
            table[scale, make] for make in (example.plain_layer, example.normalized_layer)
        )
        assert normalized[0] > plain[0] + 0.1
        assert normalized[-1] > 0.9
        assert abs(plain[-1] - normalized[-1]) < 0.05 if scale == 1.0 else plain[-1] < 0.7
