"""demo.py from beginning to end, with a corpus and models as small as they come."""

import re

import pytest


@pytest.mark.slow
def test_demo_and_its_repetition(run_script, tmp_path):
    pytest.importorskip("pocketsphinx")
    pytest.importorskip("espeakng_loader")
    small = ["--utterances=24", "--layers=1", "--units=8", "--epochs=2"]
    outputs = []
    for _ in range(2):
        done = run_script("demo.py", f"--output_dir={tmp_path}/demo", *small)
        assert done.returncode == 0, done.stderr
        outputs.append(done.stdout)
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


def test_a_failed_step_is_named(run_script, tmp_path):
    (tmp_path / "corpus").write_text("in the way")
    done = run_script("demo.py", f"--output_dir={tmp_path}")
    assert done.returncode == 1
    assert "error: prepare_speech.py ended with exit code 1" in done.stderr
    assert "Traceback" not in done.stderr
