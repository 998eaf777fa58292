"""The fast time loop: its gradient is derived by hand, per cell type, rather than by autodiff.

Autodiff of a time loop keeps every intermediate of every step and accumulates the gradient of the
recurrent kernel with one thin matrix product per step. Here the way forward keeps only what the
equations of the cell ask for, the way back computes the gradient of the pre-activations, and the
gradients of all weights are single products over all frames after the loop.

Kept for the backward pass, beside the inputs to the recurrence: the states before each step and
after the last, `(time + 1) * batch * units` each, and what the equations save (see each cell type:
4 * units per row for an LSTM and a GRU, nothing for a SimpleRNN). Nothing here knows about
normalisation.
"""

import tensorflow as tf

# Frames per turn of the loop. The turn itself (merging and switching each loop variable) costs as
# much as several elementwise operations of a step, and there is less to gain beyond four.
FRAMES_PER_TURN = 4

# The same at inference, where a turn also projects its frames, with one product. The first loop
# takes sixteen at a time, the second four of what is left, the third the rest.
FRAMES_PER_PROJECTION = (16, 4, 1)

# A CPU's product of few rows runs best as pieces of at most this many elements of the kernel: one
# thread takes each, and they run side by side. Threads that share a product wait for each other
# longer than they work: 24 x 250 by 250 x 1000 took 108 µs whole, 181 µs in halves and 95 µs in
# quarters where a thread does 70 GFLOP/s, and with faster threads the more.
PIECE = 2**16

# Outside these sizes of the kernel, and with fewer rows, there is nothing to gain.
DIVIDED_SIZES = range(2**15, 2**19)
FEWEST_DIVIDED_ROWS = 4


class RecurrentProduct:
    """`h U`, with Keras's recurrent dropout: a mask for all gates, or a list with one for each.

    Args:
        kernel: U, `[units, gates * units]`.
        sizes: Widths of the parts in which the product is wanted.
        masks: `None`, `[batch, units]`, or a list of such, one for each equal part of the columns.
        rows: The batch size, if it is known.
    """

    def __init__(self, kernel, sizes, masks=None, rows=None):
        self.masks = masks
        self.sizes = sizes
        # A product with a transposed operand takes up to twice the time, and this one is taken at
        # every step.
        if isinstance(masks, list):
            self.kernels = tf.split(kernel, len(masks), axis=1)
            self.transposed = [tf.transpose(part) for part in self.kernels]
            return
        divided = divides(kernel, rows)
        parts = tf.split(kernel, sizes, axis=1) if divided else [kernel]
        self.kernels = [_pieces(part, 1) if divided else [part] for part in parts]
        transposed = tf.transpose(kernel)
        self.transposed = _pieces(transposed, 2) if divided else [transposed]

    def forward(self, h):
        """`[batch, units]` to a list of arrays of the widths `sizes`."""
        parts = self._products(h)
        return parts if len(parts) == len(self.sizes) else _split(parts[0], self.sizes)

    def forward_onto(self, z, h):
        """`z + h U` in the same form."""
        parts = self._products(h)
        if len(parts) == 1:
            return _split(z + parts[0], self.sizes)
        return [z_k + u_k for z_k, u_k in zip(_split(z, self.sizes), parts, strict=True)]

    def _products(self, h):
        """`h U`, in the parts that are wanted or in one."""
        if isinstance(self.masks, list):
            products = zip(self.masks, self.kernels, strict=True)
            return [tf.concat([(h * mask) @ kernel for mask, kernel in products], -1)]
        h = self._masked(h)
        return [_side_by_side(h, pieces) for pieces in self.kernels]

    def backward(self, d):
        """The gradient for h of one step, from that for `h U`."""
        if not isinstance(self.masks, list):
            return self._masked(_side_by_side(d, self.transposed))
        parts = tf.split(d, len(self.masks), axis=-1)
        return tf.add_n(
            [
                (part @ kernel) * mask
                for part, kernel, mask in zip(parts, self.transposed, self.masks, strict=True)
            ]
        )

    def kernel_gradient(self, h, d):
        """The gradient for U, from all h `[time, batch, units]` and all gradients for `h U`."""
        if not isinstance(self.masks, list):
            return _outer(self._masked(h), d)
        parts = tf.split(d, len(self.masks), axis=-1)
        return tf.concat(
            [_outer(h * mask, part) for mask, part in zip(self.masks, parts, strict=True)], -1
        )

    def _masked(self, h):
        return h if self.masks is None else h * self.masks


def divides(kernel, rows):
    """Whether products of so many rows with the kernel are taken in pieces."""
    if rows is not None and rows < FEWEST_DIVIDED_ROWS:
        return False
    on_cpu = not tf.config.list_logical_devices("GPU")
    return on_cpu and kernel.shape.num_elements() in DIVIDED_SIZES


def _pieces(kernel, least):
    """The kernel's columns in pieces of nearly equal width."""
    count = max(least, -(-kernel.shape.num_elements() // PIECE))
    width = kernel.shape[1]
    return _split(kernel, [width * (k + 1) // count - width * k // count for k in range(count)])


def _split(x, sizes):
    return [x] if len(sizes) == 1 else tf.split(x, sizes, axis=-1)


def _side_by_side(x, kernels):
    """The products of x with each kernel, as one array."""
    products = [x @ kernel for kernel in kernels]
    return products[0] if len(products) == 1 else tf.concat(products, -1)


def _wide_rows(x):
    """`[time, batch, channels]` as rows, in a dtype in which the sum over them stays exact."""
    rows = tf.reshape(x, [-1, x.shape[-1]])
    return tf.cast(rows, tf.float32) if x.dtype.size < 4 else rows


def _outer(h, d):
    """The sum over all rows of `h^T d`."""
    return tf.cast(tf.matmul(_wide_rows(h), _wide_rows(d), transpose_a=True), d.dtype)


def bias_gradient(d):
    """The gradient for a bias, from that for what it was added to, `[time, batch, channels]`."""
    return tf.cast(tf.reduce_sum(_wide_rows(d), 0), d.dtype)


def recur(make_equations, parameters, z, states, mask=None):
    """Runs a cell over time, keeping what the derivative written by hand needs.

    Args:
        make_equations: Maps the list of parameters to the cell's equations, an object with
            `forward(z_t, states)`, giving the new states (h first) and what to save;
            `backward(saved, before, after, d_after)`, giving the gradient for z_t, further
            gradients that the parameters' need, and the gradients for the states before; and
            `parameter_gradients(h_before, dz, further)` over all frames.
        parameters: List of tensors that get a gradient.
        z: Projected inputs, `[time, batch, gates * units]`.
        states: List of `[batch, units]`.
        mask: Boolean `[time, batch]` or `None`; a masked row keeps its states.

    Returns:
        h of every frame `[time, batch, units]`, and the final states.
    """
    live = None if mask is None else mask[..., tf.newaxis]

    @tf.custom_gradient
    def differentiated(z, parameters, states):
        equations = make_equations(parameters)
        eager = tf.executing_eagerly()
        histories, final, saved = _run_and_save(equations, z, states, live)
        outputs = histories[0].stack()
        outputs.set_shape([None if z.shape[0] is None else z.shape[0] + 1, *states[0].shape])

        def gradient(d_outputs, *d_states):
            kept = histories, saved
            if eager and not tf.executing_eagerly():  # As in `tf.GradientTape.jacobian`.
                kept = tf.nest.map_structure(_in_graph, kept)
            dz, further, d_states = _run_back(equations, *kept, final, d_outputs, d_states, live)
            dz.set_shape(z.shape)
            d_parameters = equations.parameter_gradients(outputs[:-1], dz, further)
            return dz, d_parameters, d_states

        return (outputs[1:], *final), gradient

    outputs, *final = differentiated(z, list(parameters), list(states))
    # What passes through a custom gradient comes out without its static shape.
    outputs.set_shape([z.shape[0], *states[0].shape])
    for after, before in zip(final, states, strict=True):
        after.set_shape(before.shape)
    return outputs, final


def infer(make_equations, parameters, project, arrays, x, states, mask=None, *, all_outputs=True):
    """Projects the inputs and runs a cell over them, keeping nothing for a backward pass.

    The inputs are projected a few frames at a time within the loop: nothing of the size of all
    pre-activations is ever held, and the products run ahead of the recurrence on idle cores. A
    gradient is there all the same; it runs `recur` on the same inputs.

    Args:
        make_equations, parameters, states, mask: As in `recur`.
        project: Maps some frames of x, the index of their first, and `arrays`, to z.
        arrays: List of tensors that `project` uses and that get a gradient.
        x: `[time, batch, features]`.
        all_outputs: Whether h of every frame is wanted.

    Returns:
        h of every frame `[time, batch, units]` (`None` if not wanted), and the final states.
    """
    live = None if mask is None else mask[..., tf.newaxis]

    @tf.custom_gradient
    def inferred(*tensors):
        x, arrays, parameters, states = tf.nest.pack_sequence_as(structure, tensors)
        outputs, final = _run(
            make_equations(parameters), project, x, arrays, states, live, all_outputs
        )
        kept = [outputs] if all_outputs else []

        def gradient(*d_kept):
            with tf.GradientTape() as tape:
                tape.watch(tensors)
                z = project(x, 0, *arrays)
                outputs, final = recur(make_equations, parameters, z, states, mask)
                kept = [outputs, *final] if all_outputs else final
            return tape.gradient(kept, tensors, d_kept, unconnected_gradients="zero")

        return (*kept, *final), gradient

    structure = (x, list(arrays), list(parameters), list(states))
    kept = list(inferred(*tf.nest.flatten(structure)))
    final = kept[-len(states) :]
    for after, before in zip(final, states, strict=True):
        after.set_shape(before.shape)
    if not all_outputs:
        return None, final
    kept[0].set_shape([x.shape[0], *states[0].shape])
    return kept[0], final


def _select(live, new, old):
    """`new` where a row is live and `old` elsewhere, of the static shape of `old`.

    A batch of one row, known before, and one of unknown rows would give unknown rows.
    """
    if live is not None:
        new = [tf.where(live, n, o) for n, o in zip(new, old, strict=True)]
    for n, o in zip(new, old, strict=True):
        n.set_shape(o.shape)
    return list(new)


def _repeat(step, variables, steps_left):
    """Repeats `step` on the loop variables, several times a turn, until none are left."""

    def turn(*variables):
        for _ in range(FRAMES_PER_TURN):
            variables = step(*variables)
        return variables

    variables = tf.while_loop(lambda *v: steps_left(*v) >= FRAMES_PER_TURN, turn, variables)
    return tf.while_loop(lambda *v: steps_left(*v) > 0, step, variables)


def _array(size, like):
    return tf.TensorArray(like.dtype, size, element_shape=like.shape, clear_after_read=False)


def _in_graph(array):
    """A copy of an eager TensorArray that a graph's loop can read."""
    values = array.stack()
    return _array(tf.shape(values)[0], values[0]).unstack(values)


def _run(equations, project, x, arrays, states, live, all_outputs):
    """Each of the three loops keeps its own outputs, a turn's frames as one array.

    An ONNX loop returns what one write of each turn made of one array, and takes none.
    """
    timesteps = tf.shape(x)[0]
    first, pieces = 0, []
    for count in FRAMES_PER_PROJECTION:
        turns = (timesteps - first) // count

        def turn(k, states, *kept, first=first, count=count):
            time = first + k * count
            # Not a slice: where there are fewer frames XLA refuses it, though its turn never comes.
            z = project(tf.gather(x, time + tf.range(count)), time, *arrays)
            outputs = []
            for i, z_t in enumerate(tf.unstack(z, count)):
                new, _ = equations.forward(z_t, states)
                states = _select(None if live is None else tf.gather(live, time + i), new, states)
                outputs.append(states[0])
            return k + 1, states, *(array.write(k, tf.stack(outputs)) for array in kept)

        kept = []
        if all_outputs:
            shape = [count, *states[0].shape]
            # XLA has no empty array to write to, though its turn never comes.
            size = tf.maximum(turns, 1)
            kept = [tf.TensorArray(states[0].dtype, size, element_shape=shape)]
        _, states, *kept = tf.while_loop(
            lambda k, *_, turns=turns: k < turns, turn, (0, states, *kept)
        )
        first += turns * count
        if all_outputs:
            frames = tf.concat([[turns * count], tf.shape(states[0])], 0)
            pieces.append(tf.reshape(_stacked(kept[0], count, states[0])[:turns], frames))
    return tf.concat(pieces, 0) if all_outputs else None, states


def _stacked(array, count, like):
    """A TensorArray of `[count, batch, units]` as one tensor, also where nothing was written.

    TensorFlow then has to be told the shape, of which a graph may know the batch size only later.
    """
    if tf.executing_eagerly():
        return array.stack()
    shape = tf.concat([[count], tf.shape(like)], 0)
    return tf.raw_ops.TensorListStack(
        input_handle=array.flow, element_shape=shape, element_dtype=array.dtype
    )


def _run_and_save(equations, z, states, live):
    timesteps = tf.shape(z)[0]
    histories = [_array(timesteps + 1, state).write(0, state) for state in states]
    batch = z.shape[1]
    saved = [
        tf.TensorArray(z.dtype, timesteps, element_shape=[batch, channels], clear_after_read=False)
        for channels in equations.saved_channels
    ]

    def step(time, states, histories, saved):
        new, values = equations.forward(tf.gather(z, time), states)
        new = _select(None if live is None else tf.gather(live, time), new, states)
        saved = [array.write(time, v) for array, v in zip(saved, values, strict=True)]
        time += 1
        histories = [array.write(time, v) for array, v in zip(histories, new, strict=True)]
        return time, new, histories, saved

    _, states, histories, saved = _repeat(
        step, (0, list(states), histories, saved), lambda time, *_: timesteps - time
    )
    return histories, states, saved


def _run_back(equations, histories, saved, final, d_outputs, d_states, live):
    timesteps = tf.shape(d_outputs)[0]
    batch = final[0].shape[0]
    arrays = [
        tf.TensorArray(d_outputs.dtype, timesteps, element_shape=[batch, channels])
        for channels in equations.gradient_channels
    ]

    def step(time, after, d_after, arrays):
        before = [array.read(time) for array in histories]
        d_h, *d_rest = d_after
        d_after = [d_h + tf.gather(d_outputs, time), *d_rest]
        values = [array.read(time) for array in saved]
        gradients, d_before = equations.backward(values, before, after, d_after)
        live_t = None if live is None else tf.gather(live, time)
        if live is not None:
            gradients = [tf.where(live_t, value, tf.zeros_like(value)) for value in gradients]
        d_before = _select(live_t, d_before, d_after)
        arrays = [array.write(time, v) for array, v in zip(arrays, gradients, strict=True)]
        return time - 1, before, d_before, arrays

    _, _, d_states, arrays = _repeat(
        step,
        (timesteps - 1, list(final), list(d_states), arrays),
        lambda time, *_: time + 1,
    )
    dz, *further = (array.stack() for array in arrays)
    return dz, further, d_states


def sigmoid_gradient(y, dy):
    """The gradient before a sigmoid that gave y, as one operation."""
    return tf.raw_ops.SigmoidGrad(y=y, dy=dy)


def tanh_gradient(y, dy):
    """The gradient before a tanh that gave y, as one operation."""
    return tf.raw_ops.TanhGrad(y=y, dy=dy)
