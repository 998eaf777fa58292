"""ONNX models of layers that are not folded: onnxruntime gives the Keras model's numbers."""

import keras
import numpy as np
import pytest

from conformance import CASES, FEATURES, TIME, find
from keras_bnrnn import Bidirectional

onnxruntime = pytest.importorskip("onnxruntime", reason="the extra 'onnx' is not installed")
pytest.importorskip("tf2onnx", reason="the extra 'onnx' is not installed")


def stacked(case):
    """Two layers of a case, masked, the first one's states handed to the second."""
    time = TIME if case.kwargs.get("unroll") else None
    inputs = keras.Input((time, FEATURES), name="values")
    x = keras.layers.Masking(0.0)(inputs)
    x, *states = case.layer(dtype=None)(x)
    last = case.layer(dtype=None, return_sequences=False)(x, initial_state=states)
    return keras.Model(inputs, [x, *states, *last])


def bidirectional(case):
    inputs = keras.Input((None, FEATURES), name="values")
    x = keras.layers.Masking(0.0)(inputs)
    layer = case.layer(dtype=None, return_state=False)
    return keras.Model(inputs, Bidirectional(layer)(x))


def agrees(model, path, lengths):
    """Whether the exported model gives the same for batches of sequences of such lengths."""
    random = np.random.default_rng(0)
    weights = [w + random.uniform(0.1, 0.4, w.shape) for w in model.get_weights()]
    model.set_weights(weights)
    model(np.zeros((2, TIME, FEATURES), "float32"))  # Keras exports no model before its first call.
    model.export(str(path), format="onnx", verbose=False)
    session = onnxruntime.InferenceSession(path)
    for batch in lengths:
        x = random.normal(size=(len(batch), max(batch), FEATURES)).astype("float32")
        for row, length in zip(x, batch, strict=True):
            row[length:] = 0.0
        expected = keras.tree.flatten(model(x))
        for actual, wanted in zip(session.run(None, {"values": x}), expected, strict=True):
            np.testing.assert_allclose(actual, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("container", "name"),
    [
        # A pair of statistics for each step: no folding helps.
        pytest.param(bidirectional, "gru-frame_steps", marks=pytest.mark.slow),
        *(pytest.param(stacked, case.name, marks=pytest.mark.exhaustive) for case in CASES),
        *(
            pytest.param(bidirectional, name, marks=pytest.mark.exhaustive)
            for name in ("simple_rnn-none", "lstm-sequence", "lstm-frame_recurrent_cell_steps")
        ),
    ],
)
def test_any_batch_and_length(container, name, tmp_path):
    case = find(name)
    # As many frames as a turn of any loop takes, fewer, and some of each.
    lengths = [(TIME, 2)] if case.kwargs.get("unroll") else [(37, 20, 1), (3,)]
    agrees(container(case), tmp_path / "model.onnx", lengths)
