"""docs/SERVING.md: its Python runs, and its requests get its answers."""

import contextlib
import io
import json
import re
import subprocess

import numpy as np
import pytest
import tensorflow as tf

from rest import predict
from script_fixtures import REPOSITORY
from untrained import noise, wav

PAGE = REPOSITORY / "docs/SERVING.md"
BLOCKS = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
NUMBER = re.compile(r"-?\d+\.\d*(?:e-?\d+)?")
# Prints the address and the body, each on a line of its own.
CURL = 'curl() { printf "%s\\n" "$1" "${3//$\'\\n\'/ }"; }; '


@pytest.mark.slow
def test_what_the_page_shows(speech, language, tmp_path, monkeypatch):
    for extra in ("onnxruntime", "tf2onnx", "ai_edge_litert"):
        pytest.importorskip(extra, reason="the extras 'onnx' and 'litert' are not installed")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "speech.wav").write_bytes(wav(noise(4000), tmp_path))
    blocks = BLOCKS.findall(PAGE.read_text(encoding="utf-8"))
    models, names, compared = {"speech": speech.signatures, "language": language.signatures}, {}, 0
    for (kind, block), (_, answer) in zip(blocks, [*blocks[1:], ("", "")], strict=True):
        if kind == "python":
            with contextlib.redirect_stdout(io.StringIO()) as printed:
                exec(block, names)
            assert NUMBER.sub("#", printed.getvalue()) == NUMBER.sub("#", answer)
            numbers = [NUMBER.findall(text) for text in (printed.getvalue(), answer)]
            np.testing.assert_allclose(*(np.array(one, float) for one in numbers), atol=2e-4)
        elif kind == "sh" and "curl" in block:
            bash = ["bash", "-ec", CURL + block]
            address, body = subprocess.run(
                bash, capture_output=True, text=True, check=True
            ).stdout.splitlines()
            model = re.fullmatch(r"http://localhost:8501/v1/models/(\w+):predict", address)[1]
            if model == "walk":
                models["walk"] = tf.saved_model.load("models/walk/1").signatures
            found, shown = json.loads(predict(models[model], body)), json.loads(quoted(answer))
            compare(found, shown, exactly=model == "walk")
            compared += 1
    assert compared == 6


def quoted(answer):
    return answer.replace("…", '"…"')


def compare(found, shown, exactly):
    """An answer, of other numbers and words where they depend on the model; `…` is more alike."""
    assert type(found) is type(shown)
    if isinstance(shown, dict):
        assert found.keys() == shown.keys()
        for key, value in shown.items():
            compare(found[key], value, exactly)
    elif isinstance(shown, list):
        assert len(found) == len(shown) or "…" in shown
        for value, other in zip(found, shown, strict=False):
            if other != "…":
                compare(value, other, exactly)
    elif exactly:
        assert found == pytest.approx(shown, abs=1e-5)
    elif isinstance(shown, str):
        assert found
