"""`examples/streaming.py`: frame by frame equals all at once, with shared statistics only."""

import importlib.util
from pathlib import Path

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "streaming.py"


def test_a_stream_equals_the_whole_sequence(capsys):
    spec = importlib.util.spec_from_file_location("streaming", EXAMPLE)
    streaming = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(streaming)
    deviations = streaming.main()
    assert deviations["shared"] < 1e-5
    # The step index starts from 0 at each call, so these would be normalised as first frames.
    assert deviations["per-step"] > 1e-2
    assert capsys.readouterr().out.count("largest deviation") == 2
