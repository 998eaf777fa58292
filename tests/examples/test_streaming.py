"""`examples/streaming.py` runs, and its stream gives what the whole sequence gives."""

import pytest


@pytest.mark.slow
def test_shared_statistics_stream_and_per_step_statistics_do_not(example, capsys):
    deviations = example.main()
    assert deviations["shared"] < 1e-5 and deviations["per-step"] > 1e-3
    # Better than always answering alike, so the states were carried and the model had learnt.
    lines = [line for line in capsys.readouterr().out.splitlines() if "shared" in line]
    assert float(lines[0].split()[-1]) > 0.85
