"""demo.py from beginning to end, with a corpus and models as small as they come."""

import re

import pytest

import demo
from command_line import CommandError


@pytest.mark.slow
def test_demo_and_its_repetition(run_command, tmp_path):
    pytest.importorskip("pocketsphinx")
    pytest.importorskip("espeakng_loader")
    small = ["--utterances=24", "--layers=1", "--units=8", "--epochs=2"]
    outputs = []
    for _ in range(2):
        code, output, errors = run_command("demo.py", f"--output_dir={tmp_path}/demo", *small)
        assert code == 0, errors
        outputs.append(output)
    for output in outputs:
        assert re.search(r"phone error rate \d+", output)
        assert re.search(r"(passed|did not pass) the best train_fce of baseline", output)
        for name in (
            "corpus",
            "baseline",
            "batch_norm",
            "compare.png",
            "exported",
            "transcription.png",
        ):
            assert (tmp_path / "demo" / name).exists()
            assert str(tmp_path / "demo" / name) in output
    assert "2 epochs are done already" in outputs[1]
    decoded = [re.search(r"\.wav: .*", output).group() for output in outputs]
    assert decoded[0] == decoded[1]


def test_a_failed_step_is_named(call_script, tmp_path, capsys):
    (tmp_path / "corpus").write_text("in the way")
    with pytest.raises(CommandError, match=r"prepare_speech\.py ended with exit code 1"):
        call_script(demo, f"--output_dir={tmp_path}")
    captured = capsys.readouterr()
    assert "$ python training/prepare_speech.py --source=synthetic" in captured.out
    assert captured.err.startswith("error: ") and "Traceback" not in captured.err
