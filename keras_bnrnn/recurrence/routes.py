"""The routes through a recurrence, functions of one signature, and the one place that chooses.

    route(cell, x, states, mask, call) -> Result

Time comes first, and backwards calls come reversed. A cell projects inputs, takes a step, and says
which equations it has; what it normalises is its own affair.
"""

from typing import Any, NamedTuple

import tensorflow as tf

from keras_bnrnn.recurrence import cudnn
from keras_bnrnn.recurrence.differentiated import infer, recur
from keras_bnrnn.recurrence.loop import Result, StepContext, scan

CUDNN_REFUSED = (
    "use_cudnn=True, but cuDNN cannot run this layer: it needs a GPU, Keras's default "
    "activations, reset_after=True for a GRU, no unroll, no recurrent_dropout, no "
    "normalisation within the loop (normalize_recurrent, normalize_cell_state), and the step of "
    "this package's cells. Pass use_cudnn='auto' to fall back to the loop."
)


class Call(NamedTuple):
    """What a layer wants of one call.

    Attributes:
        training: Python boolean.
        all_outputs: Whether every output is wanted, and not only the last.
        zero_output_for_mask: Whether masked outputs are zeros, rather than the last live output.
        unroll: Whether to write the loop out.
        go_backwards: Whether the frames come reversed.
        use_cudnn: `"auto"`, or `True` where it is an error if cuDNN cannot run, or `False`.
    """

    training: bool
    all_outputs: bool
    zero_output_for_mask: bool
    unroll: bool
    go_backwards: bool
    use_cudnn: Any


def run(cell, x, states, mask, call):
    """Runs a cell over all frames, on the fastest route that can.

    Args:
        cell: A `BatchNormCell`.
        x: Inputs `[time, batch, features]`, zero where masked; or a list, one for each gate.
        states: List of `[batch, units]`.
        mask: Boolean `[time, batch]` or `None`.
        call: `Call`.

    Returns:
        A `Result`, its outputs as Keras shows them in masked frames.
    """
    fits_cudnn = cell.has_equations and not cell.recurrent_dropout
    if call.use_cudnn and fits_cudnn and cudnn.available(cell, call.unroll):
        return over_cudnn(cell, x, states, mask, call)
    if call.use_cudnn is True:
        raise ValueError(CUDNN_REFUSED)
    if call.unroll or not cell.has_equations:
        return general(cell, x, states, mask, call)
    if call.training or cell.takes_input_moments(call.training):
        return differentiated(cell, x, states, mask, call)
    return (inference if cell.projects_frames else general)(cell, x, states, mask, call)


def general(cell, x, states, mask, call):
    """Any cell, differentiated by TensorFlow."""
    statistics = cell.read_statistics(call.training)

    def step(z_t, states, mask_t, time):
        return cell.step(z_t, states, StepContext(mask_t, time, call.training))

    result = scan(
        step,
        cell.project_inputs(x, mask, call.training),
        states,
        mask,
        record_specs=cell.moments_specs(call.training),
        zero_output_for_mask=call.zero_output_for_mask,
        all_outputs=call.all_outputs,
        unroll=call.unroll,
    )
    cell.update_statistics(result.records, statistics)
    return result


def differentiated(cell, x, states, mask, call):
    """A cell with equations, whose derivative is written by hand."""
    z = cell.project_inputs(x, mask, call.training)
    equations = cell.equations_for(states, call.training)
    return _as_keras_shows(*recur(*equations, z, states, mask), mask, call)


def inference(cell, x, states, mask, call):
    """The same with nothing kept for a backward pass, the inputs projected within the loop."""
    equations = cell.equations_for(states, call.training)
    projection = cell.frame_projection()
    h_and_states = infer(*equations, *projection, x, states, mask, all_outputs=call.all_outputs)
    return _as_keras_shows(*h_and_states, mask, call)


def over_cudnn(cell, x, states, mask, call):
    """The cuDNN kernel where the mask lets it, and the loop of `differentiated` elsewhere.

    The kernel knows of no normalisation. Where that is one affine function for all frames, it is
    folded into the weights; else the kernel's inputs are z, projected and normalised already, and
    the identity its weights. It takes right-padded sequences without empty rows only, and gives
    zeros where Keras repeats the last output.
    """
    folded = cell.fold_inputs(x, mask, call.training)
    if folded is not None:
        x, project, (kernel, bias) = folded
    else:
        x = z = cell.project_inputs(x, mask, call.training)
        if mask is not None:  # The kernel leaves gradients of padded frames undefined.
            x = z = tf.where(mask[..., tf.newaxis], z, tf.zeros_like(z))
        kernel = tf.eye(z.shape[-1], dtype=z.dtype)
        bias = tf.zeros_like(kernel[0])
    _, (U, *_) = equations = cell.equations_for(states, training=False)
    weights = [kernel, U, cell.whole_bias(bias)]

    def batch_major(x):
        return swap_time_and_batch(tf.reverse(x, [0]) if call.go_backwards else x)

    def loop():
        projected = z if folded is None else project(x, 0, kernel, bias)
        outputs, final = recur(*equations, projected, states, mask)
        return [outputs, *final]

    kernel_mask = None if mask is None else batch_major(mask)

    def over_kernel():
        try:
            outputs, final = cudnn.kernel(
                cell, batch_major(x), states, kernel_mask, weights, call.go_backwards
            )
        except NotImplementedError:  # Keras's name for a device without the kernel.
            if call.use_cudnn is True:
                raise ValueError(CUDNN_REFUSED) from None
            return loop()
        outputs = swap_time_and_batch(outputs)
        if mask is not None and not call.go_backwards:
            # Backwards the padding comes first, where Keras shows no state.
            outputs = tf.where(mask[..., tf.newaxis], outputs, final[0])
        return [outputs, *final]

    if mask is None:
        outputs, *final = over_kernel()
    else:
        lengths = tf.reduce_sum(tf.cast(kernel_mask, tf.int32), axis=1)
        padding = tf.sequence_mask(lengths, tf.shape(kernel_mask)[1])
        right_padded = tf.reduce_all(kernel_mask == padding)
        outputs, *final = tf.cond(
            tf.logical_and(right_padded, tf.reduce_all(lengths > 0)), over_kernel, loop
        )
    return _as_keras_shows(outputs, final, mask, call)


def _as_keras_shows(h, states, mask, call):
    """A `Result` of h of all frames (or `None`) and the final states.

    In masked frames our loops repeat h. Keras repeats the output, which is zero before the first
    live frame whatever the initial state, or shows zeros in all masked frames.
    """
    outputs, last_output = h if call.all_outputs else None, states[0]
    if mask is not None:
        shown = mask
        if not call.zero_output_for_mask:
            shown = tf.cumsum(tf.cast(mask, tf.int32), axis=0) > 0
        last_shown = tf.gather(shown, tf.shape(mask)[0] - 1)[:, tf.newaxis]
        last_output = tf.where(last_shown, last_output, tf.zeros_like(last_output))
        if call.all_outputs:
            outputs = tf.where(shown[..., tf.newaxis], h, tf.zeros_like(h))
    return Result(outputs, last_output, states)


def swap_time_and_batch(x):
    """`[batch, time, …]` as `[time, batch, …]`, and the other way round."""
    return tf.transpose(x, [1, 0, *range(2, x.shape.rank)])
