"""demo.py from beginning to end, with a corpus and models as small as they come."""

import re
import shlex
from pathlib import Path

import pytest

import demo
from command_line import CommandError


@pytest.mark.slow
def test_demo_and_its_repetition(run_command, call_script, tmp_path, monkeypatch):
    """The second time the same commands are run, which go on or have nothing to do."""
    pytest.importorskip("espeakng_loader")
    small = ["--utterances=24", "--layers=1", "--units=8", "--epochs=2"]
    small.append(f"--output_dir={tmp_path}/demo")
    code, output, errors = run_command("demo.py", *small)
    assert code == 0, errors
    assert re.search(r"word error rate \d+", output)
    assert re.search(r"(passed|did not pass) the best train_cer of baseline", output)
    listed = re.findall(r"^  (\S+)  ", output.partition("=== Done")[2], re.M)
    made = {"corpus", "baseline", "batch_norm", "compare.png", "exported", "dev-00000.wav"}
    assert {f"{tmp_path}/demo/{name}" for name in made} <= set(listed)
    assert all(Path(path).exists() for path in listed)
    again = []
    monkeypatch.setattr(demo, "run_script", lambda *command: again.append(shlex.join(command)))
    call_script(demo, *small)
    commands = [line for line in output.splitlines() if line.startswith("$ ")]
    assert commands == [f"$ python training/{command}" for command in again]
    assert not (tmp_path / "demo" / "exported").exists()  # export.py would refuse it.


def test_a_failed_step_is_named(call_script, tmp_path, capsys):
    (tmp_path / "corpus").write_text("in the way")
    with pytest.raises(CommandError, match=r"prepare_speech\.py ended with exit code 1"):
        call_script(demo, f"--output_dir={tmp_path}")
    captured = capsys.readouterr()
    assert "$ python training/prepare_speech.py --source=synthetic" in captured.out
    assert captured.err.startswith("error: ") and "Traceback" not in captured.err
