"""The docstrings of layers and cells: what they share is written here once, and added at import.

`tests/stubs.py` writes the complete ones into the stubs, since editors run no code.
"""

import inspect

_ARGUMENTS = """\
    normalize_recurrent: Whether `h U` is normalised too, step by step, with a gamma of its own.
{cell_state}\
    max_timesteps: `None` for one pair of population statistics, or N for a pair for each of the
        first N time steps, of whatever is normalised step by step (Cooijmans et al. 2016). A
        later step is normalised with the last pair and updates none.
    renorm: Whether training normalises with the population's statistics, as inference does, and
        only the gradient is taken through the mini-batch's moments (batch renormalisation,
        Ioffe 2017). These statistics are plain averages until `momentum` is reached.
    renorm_clipping: `None`, or bounds of renormalisation's corrections, which draw it towards
        plain normalisation: a dictionary with any of `"rmin"`, `"rmax"`, `"dmax"`, as in
        `keras.layers.BatchNormalization` (whose second set of statistics there is not here).
    momentum: Share of the old value that a moving average keeps; one update per call.
    epsilon: Added to the variance.
    gamma_initializer, gamma_regularizer, gamma_constraint: Of the scales.
    moving_mean_initializer, moving_variance_initializer: Of the population statistics.
"""
_CELL_STATE = """\
    normalize_cell_state: Whether the cell state is normalised on its way to the output,
        `h_t = o_t * tanh(BN(c_t))`, step by step, with a gamma and a beta of its own.
"""
_PAPER = """\
Laurent et al., "Batch normalized recurrent neural networks", 2016, section 3.
"""
_RAISES = """\
Raises:
    ValueError: If arguments cannot work together; the message says why.
"""

LAYER = f"""\
{{own}}
{_PAPER}
A drop-in for `{{namesake}}`: same arguments, defaults, weights (gamma and the
population statistics follow them) and results but for the normalisation. Training takes mean
and variance of the mini-batch's live frames; masked frames never count, whatever they hold. At
inference, or frozen, the layer uses the population's, as Keras's `BatchNormalization` does.

Args:
    units: Size of the states and the output.
    activation, dropout, return_sequences, …: Every other argument of
        `{{namesake}}`, with its meaning and default.
    normalization: Over which frames mean and variance are taken in training: `"sequence"`, all
        live frames of the mini-batch together; `"frame"`, each time step by itself, so that no
        frame learns of later ones; `None`, no normalisation of the inputs' path.
    synchronized: Whether moments are taken over all replicas of a `tf.distribute` strategy.
{_ARGUMENTS}
Call arguments:
    sequences: `[batch, time, features]`.
    initial_state: List of {{states}} (optional).
    mask: Boolean `[batch, time]`, `True` for live frames (optional).
    training: Whether to normalise with the mini-batch's moments and apply dropout.

Returns:
    `[batch, units]`, or `[batch, time, units]` with `return_sequences=True`; followed by the
    final states with `return_state=True`.

A frame (`"frame"`) or a call (`"sequence"`) with fewer than two live rows is normalised with
the population statistics and leaves them alone. The time steps of `max_timesteps` are counted
from 0 at each call, and with `go_backwards` from each row's last live frame.

{_RAISES}
Example:

>>> import keras, keras_bnrnn
>>> layer = keras_bnrnn.{{name}}(4, return_sequences=True)
>>> layer(keras.ops.ones((2, 5, 3)), training=True).shape
TensorShape([2, 5, 4])
"""

CELL = f"""\
{{own}}
{_PAPER}
Args:
    units: Size of the states and the output.
    activation, use_bias, kernel_initializer, …: Every other argument of
        `{{namesake}}`, with its meaning and default.
    normalization: `"frame"` for the moments of each call's rows, or `None` for no
        normalisation of the inputs' path. `"sequence"` needs the layer, which sees all frames.
    synchronized: Must be `False`; replicas cannot exchange moments within a time loop.
{_ARGUMENTS}
Call arguments:
    inputs: `[batch, features]`.
    states: List of {{states}}; with `max_timesteps` followed by a step
        counter `[batch, 1]`.
    training: Whether to normalise with the batch's moments and update the population's.

Returns:
    The output `[batch, units]` and the new states.

In a bare `keras.layers.RNN` a cell does not see the mask, so every row of every call counts,
padding too; statistics are updated once per call of the cell; and Keras calls it once more than
there are frames (on the first frame it reads, discarding the value, unless `unroll=True`;
`StackedRNNCells` adds another), which counts as well. Prefer the layer.

{_RAISES}
Example:

>>> import keras, keras_bnrnn
>>> layer = keras.layers.RNN(keras_bnrnn.{{name}}(4))
>>> layer(keras.ops.ones((2, 5, 3))).shape
TensorShape([2, 4])
"""


def complete(cls, text, namesake, has_cell_state):
    """Puts the class's own docstring, its summary and equations, before what all have."""
    if cls.__doc__ is not None:  # `python -OO` has none.
        fields = {
            "own": inspect.cleandoc(cls.__doc__),
            "name": cls.__name__,
            "namesake": f"keras.layers.{namesake.__name__}",
            "cell_state": _CELL_STATE if has_cell_state else "",
            "states": "h and c, `[batch, units]` each" if has_cell_state else "h, `[batch, units]`",
        }
        cls.__doc__ = text.format(**fields)
