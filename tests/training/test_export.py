"""export.py: what a run's folder says goes into the SavedModel, its card and its assets."""

import json

import pytest
import tensorflow as tf

import export
import untrained
from command_line import CommandError
from keras_bnrnn.data.errors import CorpusError
from keras_bnrnn.fit.errors import FitError
from recipes.language_task import LanguageTask
from recipes.training import training_section


@pytest.fixture
def run(tiny_corpus, tmp_path):
    return untrained.speech_run(tmp_path / "run", tiny_corpus)


@pytest.mark.slow
def test_a_run_of_speech(run, tmp_path, call_script, capsys):
    call_script(export, f"--run_dir={run}", f"--output_dir={tmp_path}/exported")
    printed = capsys.readouterr().out
    assert "the batch_norm model after epoch 1 (dev_fer 0.500), signatures serve, f" in printed
    assert f"transcribe.py --model={tmp_path}/exported AUDIO" in printed
    description = json.loads((tmp_path / "exported/assets/speech_model.json").read_text())
    assert [state["phone"] for state in description["states"]] == ["SIL", "AH", "AH", "T", "OW"]
    assert description["sample_rate"] == 8000
    assert description["phone_counts"]["visits"] == [10] * 5
    assert description["signatures"] == ["serve", "features", "serve_waveform", "serve_audio"]
    card = (tmp_path / "exported/MODEL_CARD.md").read_text()
    assert card.startswith("# Acoustic model\n")
    assert "Trained on 26 utterances" in card and "5 states" in card
    assert "| dev_fer | 0.5 |" in card and '"max_frames": 1300' in card


@pytest.mark.slow
def test_a_run_of_language(tmp_path, call_script, capsys):
    pytest.importorskip("tensorflow_text", reason="the extra 'text' is not installed")
    run = untrained.language_run(tmp_path / "run")
    call_script(export, f"--run_dir={run}", f"--output_dir={tmp_path}/exported")
    assert "signatures score, next_token, step;" in capsys.readouterr().out
    names = tf.saved_model.load(str(tmp_path / "exported")).signatures.keys()
    assert set(names) == {"score", "next_token", "step", "serving_default"}
    description = json.loads((tmp_path / "exported/assets/language_model.json").read_text())
    assert description["words"] == untrained.WORDS
    card = (tmp_path / "exported/MODEL_CARD.md").read_text()
    assert card.startswith("# Language model\n") and "cut into words as running_text" in card


def test_what_is_damaged_is_said(run, tmp_path, call_script):
    output = f"--output_dir={tmp_path}/exported"
    for name, message in (
        ("phone_counts.json", r"phone_counts\.json"),
        ("best.keras", r"best\.keras"),
    ):
        path = run / name
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2])
        with pytest.raises((CommandError, FitError), match=f"{message}.* is damaged"):
            call_script(export, f"--run_dir={run}", output)
        path.unlink()
        with pytest.raises(
            (CommandError, FitError), match=f"{message} is missing|has no {message}"
        ):
            call_script(export, f"--run_dir={run}", output)
        path.write_bytes(content)
    assert not (tmp_path / "exported").exists()


def test_a_vocabulary_that_is_damaged_is_said(tmp_path):
    path = tmp_path / "vocabulary.json"
    for content, message in ((None, "is missing"), ("[", "is damaged"), ("{}", "lacks words")):
        if content is not None:
            path.write_text(content)
        with pytest.raises(CommandError, match=rf"vocabulary\.json {message}"):
            LanguageTask.served(tmp_path, {})


def test_a_card_says_that_a_run_is_not_finished():
    results = {"best": {"epoch": 2, "dev_fce": 1.5}, "criterion": "dev_fce", "finished": False}
    assert "**The run was not finished yet**" in training_section("Data.", results)
    assert "not finished" not in training_section("Data.", results | {"finished": True})


def test_what_is_refused(run, call_script, run_command, tmp_path):
    """Nothing is written then."""
    output = f"--output_dir={tmp_path}/exported"
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(FitError, match=r"no results\.json"):
        call_script(export, f"--run_dir={empty}", output)
    (empty / "results.json").write_text((run / "results.json").read_text())
    with pytest.raises(CorpusError, match=r"corpus\.json"):
        call_script(export, f"--run_dir={empty}", output)
    (empty / "results.json").write_text('{"task": "pixels", "config": {}}')
    with pytest.raises(CommandError, match="models of this task are not exported"):
        call_script(export, f"--run_dir={empty}", output)
    code, _, errors = run_command("export.py", f"--run_dir={run}", output, "--formats=coreml")
    assert code == 1 and "error: --formats: coreml is not of onnx, litert" in errors
    assert not (tmp_path / "exported").exists()
    code, _, errors = run_command("export.py", f"--run_dir={run}", f"--output_dir={run}")
    assert code == 1 and f"error: --output_dir: {run} exists already" in errors
