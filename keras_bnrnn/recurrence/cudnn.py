"""The cuDNN kernels that Keras uses for its LSTM and GRU, with Keras's rules for masked frames.

cuDNN takes right-padded sequences without empty rows only, and gives zeros where Keras repeats the
last output. Which kernel runs is decided when the mask is known.
"""

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
    return functions is not None and functions.supports(
        cell.activation, cell.recurrent_activation, unroll, use_bias=True, **reset_after
    )


def kernel(cell, x, states, mask, weights, go_backwards):
    """Runs the kernel: x `[batch, time, features]`, weights as in `keras.layers`.

    Returns:
        Outputs `[batch, time, units]` in the order of the loop, zeros in masked frames; and the
        list of final states.
    """
    W, U, bias = weights
    functions = cudnn_functions()
    run, extra = (
        (functions.gru, {"reset_after": True})
        if hasattr(cell, "reset_after")
        else (functions.lstm, {})
    )
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


def run_or_else(cell, x, states, mask, weights, go_backwards, generic, refused):
    """Runs the kernel where the mask lets it, and `generic` otherwise.

    Args:
        generic: A function without arguments that returns h of every frame, repeated in masked
            frames, and the list of final states.
        refused: What to do instead, `generic` or an error, where TensorFlow has no kernel for the
            device that the call is on.

    Returns:
        What `generic` returns.
    """

    def fast():
        try:
            outputs, final = kernel(cell, x, states, mask, weights, go_backwards)
        except NotImplementedError:  # Keras's name for it.
            outputs, final = refused()
            return [outputs, *final]
        if mask is not None and not go_backwards:
            # Backwards the padding comes first, where Keras shows no state.
            outputs = tf.where(mask[..., tf.newaxis], outputs, final[0][:, tf.newaxis])
        return [outputs, *final]

    def slow():
        outputs, final = generic()
        return [outputs, *final]

    if mask is None:
        outputs, *final = fast()
        return outputs, final
    lengths = tf.reduce_sum(tf.cast(mask, tf.int32), axis=1)
    right_padded = tf.reduce_all(mask == tf.sequence_mask(lengths, tf.shape(mask)[1]))
    outputs, *final = tf.cond(tf.logical_and(right_padded, tf.reduce_all(lengths > 0)), fast, slow)
    return outputs, final
