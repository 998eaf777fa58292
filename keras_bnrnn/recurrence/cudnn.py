"""The cuDNN kernels that Keras uses for its LSTM and GRU, batch before time as Keras has it."""

import tensorflow as tf

from keras_bnrnn.keras_internals import cudnn_functions


def available(cell, unroll):
    """Whether Keras would choose cuDNN for a cell with these arguments, on this machine."""
    if hasattr(cell, "reset_after"):
        reset_after = {"reset_after": cell.reset_after}
    elif hasattr(cell, "recurrent_activation"):
        reset_after = {}
    else:
        return False
    functions = cudnn_functions()
    return functions is not None and functions[0](
        cell.activation, cell.recurrent_activation, unroll, use_bias=True, **reset_after
    )


def kernel(cell, x, states, mask, weights, go_backwards):
    """Runs the kernel: x `[batch, time, features]`, weights as in `keras.layers`.

    Returns:
        Outputs `[batch, time, units]` in the order of the loop, zeros in masked frames; and the
        list of final states.
    """
    W, U, bias = weights
    _, lstm, gru = cudnn_functions()
    run, extra = (gru, {"reset_after": True}) if hasattr(cell, "reset_after") else (lstm, {})
    _, outputs, final = run(
        x,
        *states,
        mask,
        kernel=W,
        recurrent_kernel=U,
        bias=bias,
        activation=cell.activation,
        recurrent_activation=cell.recurrent_activation,
        return_sequences=True,
        go_backwards=go_backwards,
        **extra,
    )
    return outputs, tf.nest.flatten(final)
