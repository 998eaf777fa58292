"""Processes of their own: without Keras, and from a shell as the model card says."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from untrained import noise, wav

pytestmark = pytest.mark.slow

CALL = """
import numpy as np
import tensorflow as tf
{imports}
model = tf.saved_model.load(sys.argv[1])
given = np.load(sys.argv[2], allow_pickle=True)
results = {{}}
for name, signature in model.signatures.items():
    arguments = {{}}
    for key, spec in signature.structured_input_signature[1].items():
        value = given[key] if key in given else np.zeros([len(given["states_for"]), spec.shape[1]])
        arguments[key] = tf.constant(value.tolist(), spec.dtype)
    for key, value in signature(**arguments).items():
        results[name + "." + key] = value.numpy()
np.savez(sys.argv[3], **results)
"""


@pytest.mark.parametrize("kind", ["speech", "language"])
def test_every_signature_in_a_process_without_keras(request, kind, tmp_path, run_without):
    exported = request.getfixturevalue(kind)
    inputs = {
        "features": np.ones((2, 5, 123)),
        "lengths": np.array([5, 3]),
        "waveform": np.stack([noise(4000), noise(4000, 1)]),
        "audio": np.array([wav(noise(4000), tmp_path), wav(noise(3000), tmp_path)], object),
        "sentences": np.array(["the statement", "an error"], object),
        "prefix": np.array(["the", "an error"], object),
        "k": np.array(3),
        "tokens": np.ones((2, 4), np.int32),
        "states_for": np.zeros(2),
    }
    np.savez(tmp_path / "inputs.npz", **inputs)
    imports = "import tensorflow_text" if kind == "language" else ""
    done = run_without(
        ["keras_bnrnn"] if kind == "language" else ["keras_bnrnn", "keras"],
        CALL.format(imports=imports),
        exported.folder,
        tmp_path / "inputs.npz",
        tmp_path / "outputs.npz",
    )
    assert done.returncode == 0, done.stderr
    outputs = np.load(tmp_path / "outputs.npz", allow_pickle=True)
    assert {name.partition(".")[0] for name in outputs} == set(exported.signatures)
    card = (exported.folder / "MODEL_CARD.md").read_text()
    for name in outputs:
        assert f"| output | `{name.partition('.')[2]}` |" in card
        assert len(outputs[name]) == 2  # A server deals rows out.
        if outputs[name].dtype != object:
            assert np.isfinite(outputs[name]).all()
    for name, signature in exported.signatures.items():
        assert name == "serving_default" or f"### `{name}`" in card
        for one in signature.structured_input_signature[1]:
            assert f"| input | `{one}` |" in card


@pytest.mark.parametrize("kind", ["speech", "language"])
def test_the_commands_of_the_model_card(request, kind, tmp_path):
    """They run as they stand, and find `python` and `saved_model_cli` where these belong."""
    folder = tmp_path / "copy"
    shutil.copytree(request.getfixturevalue(kind).folder, folder)
    (folder / "speech.wav").write_bytes(wav(noise(4000), tmp_path))
    blocks = re.findall("```sh\n(.*?)```", (folder / "MODEL_CARD.md").read_text(), re.DOTALL)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-e", "-c", "\n".join(blocks)],
        cwd=folder,
        capture_output=True,
        text=True,
        env={**os.environ, "PATH": path, "TF_CPP_MIN_LOG_LEVEL": "3"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    outputs = re.findall("Result for output key (.*):", done.stdout)
    expected = {
        "speech": ["log_posteriors", "frames", "log_posteriors", "times"],
        "language": ["log_probability", "perplexity", "tokens", "probabilities", "words"],
    }
    assert outputs == expected[kind]


def test_saved_model_cli_steps(speech, tmp_path):
    given = {
        "features": np.ones((1, 5, 123), np.float32),
        "lengths": np.array([5], np.int32),
        **{name: value.numpy() for name, value in speech.zero_states(1).items()},
    }
    for name, value in given.items():
        np.save(tmp_path / f"{name}.npy", value)
    cli = "from tensorflow.python.tools.saved_model_cli import main; main()"
    command = [sys.executable, "-c", cli, "run", f"--dir={speech.folder}", "--tag_set=serve"]
    command += ["--signature_def=step", f"--outdir={tmp_path}", "--overwrite"]
    command += ["--inputs=" + ";".join(f"{name}={tmp_path / name}.npy" for name in given)]
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    scores = np.load(tmp_path / "log_posteriors.npy")
    np.testing.assert_allclose(np.exp(scores).sum(-1), 1.0, atol=1e-5)
