"""LiteRT models: one sequence of any length, in loops over time that its interpreter runs.

TensorFlow's loops gather their outputs in lists. The converter turns a list of a known size into a
tensor only where the batch is known, and then each write copies the whole list. So the batch is one
row, and outputs are gathered in turns of a few frames, turns in chunks, and chunks in chunks of
these: time and memory grow with the length alone. What whole turns leave over is read frame by
frame.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import keras
import tensorflow as tf

from keras_bnrnn.layers import BatchNormGRU, BatchNormLSTM, BatchNormRNN, BatchNormSimpleRNN
from keras_bnrnn.recurrence.loop import StepContext

TURN = 4  # Frames of a turn of the inner loop; the file grows with it.
CHUNK = 8  # Turns that are gathered at once, and chunks; as many frames as a turn at least.
QUANTIZATIONS = ("dynamic", "float16")


class OneSequence(keras.layers.Layer):
    """A recurrent layer on one row, all of whose frames count.

    Args:
        layer: a `keras.layers.RNN`, of this package or not.

    Call arguments:
        sequences: `[1, time, features]`; with one frame at least.
        initial_state: list of `[1, units]`, zeros by default.
    """

    def __init__(self, layer: keras.layers.RNN):
        super().__init__(name=layer.name)
        self.layer = projecting(layer)
        self.built = True

    def compute_output_shape(self, sequences_shape, initial_state_shape=None):
        return self.layer.compute_output_shape(sequences_shape)

    def call(self, sequences, initial_state=None):
        layer, cell = self.layer, self.layer.cell
        x = tf.transpose(sequences, [1, 0, 2])
        x = tf.reverse(x, [0]) if layer.go_backwards else x
        if initial_state is None:
            initial_state = layer.get_initial_state(1)
        states = [tf.convert_to_tensor(state) for state in keras.tree.flatten(initial_state)]
        if isinstance(layer, BatchNormRNN):
            x = cell.project_inputs(x)

            def step(z_t, states, time):
                output, states, _ = cell.step(z_t, states, StepContext(time=time))
                return output, states
        else:

            def step(x_t, states, time):
                states = keras.tree.pack_sequence_as(cell.state_size, states)
                output, states = cell(x_t, states)
                return output, keras.tree.flatten(states)

        output, states = over_time(step, x, states, cell.output_size, layer.return_sequences)
        return [output, *states] if layer.return_state else output


def one_sequence(layer: keras.layers.Layer) -> keras.layers.Layer:
    """A layer that does what a recurrent or a `Bidirectional` one does, on one row."""
    if isinstance(layer, keras.layers.RNN):
        return OneSequence(layer)
    copy = type(layer).from_config(layer.get_config())
    copy.forward_layer = OneSequence(layer.forward_layer)
    copy.backward_layer = OneSequence(layer.backward_layer)
    copy.built = True
    return copy


def projecting(layer: keras.layers.RNN) -> keras.layers.RNN:
    """The layer, or for a plain one its namesake here, which projects all frames at once."""
    for kind in (BatchNormSimpleRNN, BatchNormLSTM, BatchNormGRU):
        if type(layer) is kind.plain_class:
            copy = kind.from_config({**layer.get_config(), "normalization": None})
            copy.build((1, None, layer.cell.kernel.shape[0]))
            copy.set_weights(layer.get_weights())
            return copy
    return layer


def over_time(
    step: Callable, inputs: tf.Tensor, states: Sequence, units: int, all_outputs: bool
) -> tuple:
    """Runs `step` over the frames of one row.

    Args:
        step: maps `(inputs_t, states, time)` to `(output, states)`.
        inputs: `[time, 1, channels]`.
        states: list of `[1, units]`.
        units: size of the output.
        all_outputs: whether every output is wanted, and not only the last.

    Returns:
        `[1, time, units]`, or `[1, units]` of the last frame; and the final states.
    """
    timesteps = tf.shape(inputs)[0]
    inputs = tf.reshape(inputs, [-1, 1, inputs.shape[-1]])  # As the loop else would not know.

    def one(x_t, states, time):
        output, after = step(x_t, states, time)
        output.set_shape([1, units])
        for new, old in zip(after, states, strict=True):
            new.set_shape(old.shape)
        return output, after

    def frame_by_frame(first, count, states, gathered):
        """`count` frames from `first` on; `gathered` is an array, or the last output."""

        def body(index, states, gathered):
            # A slice in the place of this makes LiteRT plan its memory anew in every turn.
            x_t = tf.gather(inputs, first + index)
            output, states = one(x_t, states, first + index)
            return index + 1, states, gathered.write(index, output) if all_outputs else output

        _, states, gathered = tf.while_loop(
            lambda index, *_: index < count, body, (0, list(states), gathered)
        )
        return gathered, states

    if not all_outputs:
        return frame_by_frame(0, timesteps, states, tf.zeros([1, units]))

    # As a size that only the run knows, for arrays of known ones are part of the file.
    chunk = tf.minimum(CHUNK, timesteps + CHUNK)

    def gather(size, first, end, states):
        """The outputs of the whole turns from `first` to `end`, of `size` frames at most.

        Returns:
            `[size, units]`, zeros beyond the end; and the states.
        """
        if size == TURN:
            outputs = []
            frames = tf.gather(inputs, first + tf.range(TURN))
            for index, x_t in enumerate(tf.unstack(frames, TURN)):
                output, states = one(x_t, states, first + index)
                outputs.append(output)
            return tf.concat(outputs, 0), states
        part = size // CHUNK if size else TURN * CHUNK**2
        parts = chunk if size else (end + (part - 1)) // part
        array = tf.TensorArray(tf.float32, parts, element_shape=[part, units])

        def body(index, states, array):
            outputs, states = gather(part, first + index * part, end, states)
            return index + 1, states, array.write(index, outputs)

        _, states, array = tf.while_loop(
            lambda index, *_: (index < parts) & (first + index * part < end),
            body,
            (0, list(states), array),
        )
        return tf.reshape(array.stack(), [size or -1, units]), states

    left = timesteps % TURN
    in_turns = timesteps - left
    outputs, states = gather(None, 0, in_turns, states)
    array = tf.TensorArray(tf.float32, chunk, element_shape=[1, units])
    array, states = frame_by_frame(in_turns, left, states, array)
    rest = tf.reshape(array.stack(), [CHUNK, units])
    outputs = tf.concat([outputs[:in_turns], rest[:left]], 0)
    return outputs[tf.newaxis], states


def convert(model: keras.Model, path: Path, quantize: str | None = None) -> None:
    """Writes a model of one row as a `.tflite` file.

    Its signature takes inputs by their names, and returns `output_0`, `output_1`, … in the order of
    the model's outputs.

    Args:
        model: from `one_sequence` layers and others that LiteRT runs.
        path: of the file.
        quantize: of `QUANTIZATIONS`: `"dynamic"`, weights of 8 bits, or `"float16"`.
    """
    signature = [tf.TensorSpec(one.shape, one.dtype, one.name) for one in model.inputs]

    @tf.function(input_signature=signature, autograph=False)
    def run(*inputs):
        outputs = keras.tree.flatten(model(list(inputs), training=False))
        return {f"output_{index}": output for index, output in enumerate(outputs)}

    function = run.get_concrete_function()
    module = tf.Module()  # A function without its variables has no signature.
    module.run, module.weights = run, list(function.variables)
    converter = tf.lite.TFLiteConverter.from_concrete_functions([function], module)
    if quantize is not None:
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        if quantize == "float16":
            converter.target_spec.supported_types = [tf.float16]
    path.write_bytes(_slim(converter.convert()))


def _slim(content):
    """The file less what nothing reads, about half of what is no weight.

    That is names within, empty buffers and empty quantisations, and how it was converted.
    """
    from tensorflow.lite.tools import flatbuffer_utils

    model = flatbuffer_utils.read_model_from_bytearray(bytearray(content))
    empty, *others = model.buffers  # The first one is empty by convention.
    kept = [index for index, one in enumerate(others, 1) if one.data is not None]
    places = {old: new for new, old in enumerate(kept, 1)}
    model.buffers = [empty, *(model.buffers[index] for index in kept)]
    model.metadata = [one for one in model.metadata if one.name != b"CONVERSION_METADATA"]
    for entry in model.metadata:
        entry.buffer = places[entry.buffer]
    for graph in model.subgraphs:
        graph.name = None
        for tensor in graph.tensors:
            tensor.name, tensor.buffer = None, places.get(tensor.buffer, 0)
            if tensor.quantization is not None and tensor.quantization.scale is None:
                tensor.quantization = None
    return bytes(flatbuffer_utils.convert_object_to_bytearray(model))
