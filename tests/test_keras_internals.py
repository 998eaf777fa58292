"""What the package takes from Keras without being promised it: these fail when Keras changes it."""

import inspect
import re
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_bnrnn
from keras_bnrnn import keras_internals
from keras_bnrnn.normalization import as_tensor


def test_flattened_layers():
    inner = keras.Sequential([keras.layers.Dense(1, name="a"), keras.layers.Dense(1, name="b")])
    model = keras.Sequential([keras.layers.Bidirectional(keras.layers.LSTM(1)), inner])
    outermost = keras_internals.flattened_layers(model, include_self=False, recursive=False)
    assert outermost == model.layers
    found = keras_internals.flattened_layers(model)
    assert found[0] is model and len(found) == len({id(layer) for layer in found})
    assert {"a", "b"} < {layer.name for layer in found}
    assert sum(isinstance(layer, keras.layers.LSTMCell) for layer in found) == 2


def test_flattened_layers_of_a_subclassed_model():
    class Model(keras.Model):
        def __init__(self):
            super().__init__()
            self.parts = {"encoder": [keras.layers.Dense(1)]}

    model = Model()
    assert keras_internals.flattened_layers(model) == [model, model.parts["encoder"][0]]


def test_autocast_scope():
    layer = keras.layers.Dense(1)
    kept = layer.add_weight(shape=(1,), name="kept", autocast=False)
    layer.build((None, 1))
    with keras_internals.autocast_scope("bfloat16"):
        assert as_tensor(layer.kernel).dtype == tf.bfloat16
        assert as_tensor(kept).dtype == tf.float32
    assert as_tensor(layer.kernel).dtype == tf.float32


def test_mask_of():
    masked = keras.layers.Masking()(np.array([[[1.0], [0.0]]], "float32"))
    np.testing.assert_array_equal(keras_internals.mask_of(masked), [[True, False]])
    assert keras_internals.mask_of(tf.ones([1])) is None


def test_cudnn_functions_take_what_they_are_given():
    supports, lstm, gru = keras_internals.cudnn_functions()
    inspect.signature(supports).bind("tanh", "sigmoid", False, use_bias=True, reset_after=True)
    names = dict.fromkeys(["kernel", "recurrent_kernel", "bias", "activation"])
    names |= dict.fromkeys(["recurrent_activation", "return_sequences", "go_backwards"])
    inspect.signature(lstm).bind("x", "h", "c", "mask", **names)
    inspect.signature(gru).bind("x", "h", "mask", reset_after=True, **names)
    if not tf.config.list_physical_devices("GPU"):
        assert not supports(keras.activations.tanh, keras.activations.sigmoid, False, use_bias=True)
        with pytest.raises(NotImplementedError):
            lstm("x", "h", "c", "mask", **names)
        with pytest.raises(NotImplementedError):
            gru("x", "h", "mask", reset_after=True, **names)


def test_without_the_functions_cudnn_is_not_available(monkeypatch):
    monkeypatch.delattr(keras.src.backend, "lstm")
    assert keras_internals.cudnn_functions() is None
    x = np.ones((2, 3, 4), "float32")
    assert keras_bnrnn.BatchNormLSTM(5)(x).shape == (2, 5)
    with pytest.raises(ValueError, match="cuDNN cannot run this layer"):
        keras_bnrnn.BatchNormLSTM(5, use_cudnn=True)(x)


def test_nothing_else_in_the_package_is_private_to_keras():
    private = re.compile(
        r"(from|import) (keras\.src|tensorflow\.python)|_flatten_layers|_keras_mask"
    )
    package = Path(keras_bnrnn.__file__).parent
    found = {
        str(f.relative_to(package)) for f in package.rglob("*.py") if private.search(f.read_text())
    }
    assert found == {"keras_internals.py"}
