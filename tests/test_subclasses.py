"""What a user's cell overrides is what its layer does, on every route."""

import numpy as np
import pytest
import tensorflow as tf

import conformance
from conformance import BATCH, FEATURES, MAIN_CASES, TIME, UNITS
from keras_bnrnn import BatchNormLSTM, BatchNormLSTMCell
from keras_bnrnn.recurrence import cudnn


def doubled_step(cell_class):
    class Cell(cell_class):
        def step(self, z, states, context):
            output, (h, *rest), moments = super().step(z, states, context)
            return 2 * output, [2 * h, *rest], moments

    return Cell


def shifted_inputs(cell_class):
    class Cell(cell_class):
        def project_inputs(self, x, *args, **kwargs):
            return super().project_inputs(x, *args, **kwargs) + 0.5

    return Cell


def layer_with(case, cell, **arguments):
    class Layer(case.layer_class):
        cell_class = cell

    layer = Layer(
        UNITS,
        **{"dtype": "float64", "return_sequences": True, "return_state": True},
        **{**case.kwargs, **arguments},
    )
    layer.build((BATCH, TIME, FEATURES))
    return layer


@pytest.mark.by_route
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("override", [doubled_step, shifted_inputs])
@pytest.mark.parametrize("case", MAIN_CASES, ids=str)
def test_any_loop_takes_it(monkeypatch, case, override, training):
    def over_kernel(*_):
        raise AssertionError("cuDNN knows nothing of it")

    if override is doubled_step:  # The kernel would take projected inputs from anyone.
        monkeypatch.setattr(cudnn, "available", lambda cell, unroll: not unroll)
        monkeypatch.setattr(cudnn, "kernel", over_kernel)
    random = np.random.default_rng(0)
    x, weights = random.normal(size=(BATCH, TIME, FEATURES)), case.weights(random)
    mask = tf.constant(conformance.masks()["holey"])
    found = []
    for cell, unroll in (
        (override(case.cell_class), False),
        (override(case.cell_class), True),
        (case.cell_class, True),
    ):
        layer = layer_with(case, cell, unroll=unroll)
        conformance.set_weights(layer, weights)
        outputs, states, gradients = conformance.call_and_differentiate(
            layer, x, mask, training=training
        )
        found.append([outputs, *states, *gradients.values(), *layer.get_weights()])
    rolled, unrolled, plain = found
    for one, other in zip(rolled, unrolled, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-9)
    assert np.abs(rolled[0] - plain[0]).max() > 1e-3


def test_a_compiled_model_takes_it():
    case = conformance.find("lstm-sequence")
    layer = layer_with(case, doubled_step(case.cell_class), use_cudnn=False)
    x = np.random.default_rng(0).normal(size=(BATCH, TIME, FEATURES))
    compiled = tf.function(lambda x: layer(x)[0], jit_compile=True)
    np.testing.assert_allclose(compiled(x), layer(x)[0], rtol=1e-9)


def test_a_call_that_would_never_run_is_an_error():
    class Cell(BatchNormLSTMCell):
        def call(self, inputs, states, training=False):
            return super().call(2 * inputs, states, training)

    class Layer(BatchNormLSTM):
        cell_class = Cell

    Cell(2)
    with pytest.raises(ValueError, match="Override `step`"):
        Layer(2)
