"""The general time loop: any step function, masks, and what each step puts on record."""

from typing import Any, NamedTuple

import tensorflow as tf


class StepContext(NamedTuple):
    """Where and how a step is taken.

    Attributes:
        mask: Boolean `[batch]`, or `None` when all rows are live.
        time: Index of the frame, an integer tensor.
        training: Python boolean.
    """

    mask: Any = None
    time: Any = 0
    training: bool = False


class Result(NamedTuple):
    """What a run over all frames returns.

    Attributes:
        outputs: `[time, batch, units]`, or `None` when only the last output was asked for.
        last_output: `[batch, units]`.
        states: List of the final states.
        records: List of what the steps put on record, each stacked over time.
    """

    outputs: Any
    last_output: Any
    states: list
    records: Any = ()


def scan(
    step,
    inputs,
    states,
    mask=None,
    *,
    record_specs=(),
    zero_output_for_mask=False,
    all_outputs=True,
    unroll=False,
):
    """Runs `step` over time with Keras's rules for masked frames.

    A masked frame keeps the states and repeats the last output (zeros before the first live
    frame, and everywhere under `zero_output_for_mask`). Unlike Keras's own loop this one does not
    call `step` an extra time.

    Args:
        step: Maps `(inputs_t, states, mask_t, time)` to `(output, states, records)`; `records` is
            a list of tensors.
        inputs: `[time, batch, channels]`.
        states: List of `[batch, units]`.
        mask: Boolean `[time, batch]` or `None`.
        record_specs: The `tf.TensorSpec` of each tensor in `records`.
        zero_output_for_mask: Whether masked outputs are zeros.
        all_outputs: Whether to keep every output.
        unroll: Whether to write the loop out; needs a static number of frames.

    Returns:
        A `Result`.
    """

    def masked_step(time, previous_output, states):
        mask_t = None if mask is None else mask[time]
        output, new_states, records = step(inputs[time], states, mask_t, time)
        if mask is not None:
            live = mask_t[:, tf.newaxis]
            output = tf.where(
                live, output, tf.zeros_like(output) if zero_output_for_mask else previous_output
            )
            new_states = [
                tf.where(live, new, old) for new, old in zip(new_states, states, strict=True)
            ]
        # A batch of one row, known before, and one of unknown rows would give unknown rows.
        for new, old in zip([output, *new_states], [previous_output, *states], strict=True):
            new.set_shape(old.shape)
        return output, list(new_states), records

    output = tf.zeros_like(states[0])
    if unroll:
        outputs, histories = [], []
        for time in range(inputs.shape[0]):
            output, states, records = masked_step(time, output, states)
            outputs.append(output)
            histories.append(records)
        records = [tf.stack(values) for values in zip(*histories, strict=True)]
        return Result(tf.stack(outputs) if all_outputs else None, output, states, records)

    timesteps = tf.shape(inputs)[0]

    def array(dtype, shape):
        return tf.TensorArray(dtype, timesteps, element_shape=shape)

    def body(time, output, states, kept, records):
        output, states, values = masked_step(time, output, states)
        kept = [array.write(time, output) for array in kept]
        records = [held.write(time, value) for held, value in zip(records, values, strict=True)]
        return time + 1, output, states, kept, records

    _, output, states, kept, records = tf.while_loop(
        lambda time, *_: time < timesteps,
        body,
        (
            0,
            output,
            list(states),
            [array(output.dtype, output.shape)] if all_outputs else [],
            [array(spec.dtype, spec.shape) for spec in record_specs],
        ),
        maximum_iterations=timesteps,
    )
    outputs = None
    if all_outputs:
        outputs = kept[0].stack()
        outputs.set_shape([inputs.shape[0], *output.shape])
    return Result(outputs, output, states, [held.stack() for held in records])
