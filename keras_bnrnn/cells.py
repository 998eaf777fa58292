"""Batch-normalised cells: one time step each, in the symbols of the equations.

`BatchNormCell` is what a layer needs: weights, normalisers, and a `step` on inputs that have been
projected and normalised already. `StandaloneCell` is what a bare `keras.layers.RNN` needs besides:
states, a step counter, and a `call` that also projects and normalises one frame.
"""

import inspect

import keras
import tensorflow as tf

from keras_bnrnn import docstrings
from keras_bnrnn.moments import (
    OVER_FRAME,
    OVER_SEQUENCE,
    Clipping,
    Moments,
    side_by_side,
    statistics_dtype,
)
from keras_bnrnn.normalization import BatchNormalizer, as_tensor, statistics_config
from keras_bnrnn.projection import plain_projection, project
from keras_bnrnn.recurrence.gru import ResetAfterGRUEquations, ResetBeforeGRUEquations
from keras_bnrnn.recurrence.loop import StepContext
from keras_bnrnn.recurrence.lstm import LSTMEquations
from keras_bnrnn.recurrence.simple_rnn import SimpleRNNEquations

NORMALIZATIONS = ("sequence", "frame", None)


def named_parameters(function):
    """The parameters of a function or class that have a name, by name."""
    return {
        name: parameter
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    }


def joined_signature(namesake, own):
    """The arguments of a class in `keras.layers`, and our own by keyword, for `help` to show."""
    return inspect.Signature(
        [
            *named_parameters(namesake).values(),
            *(parameter.replace(kind=parameter.KEYWORD_ONLY) for parameter in own.values()),
            inspect.Parameter("kwargs", inspect.Parameter.VAR_KEYWORD),
        ]
    )


def _check_renorm(renorm, clipping):
    """Raises an error where the arguments are not what Keras's `BatchNormalization` takes."""
    if clipping is None:
        return
    if not renorm:
        raise ValueError(
            "renorm_clipping bounds the corrections of renorm=True. Pass that too, or leave "
            f"renorm_clipping at None. Received: {clipping!r}"
        )
    if not isinstance(clipping, dict) or set(clipping) - set(Clipping._fields):
        raise ValueError(
            f"renorm_clipping must be a dictionary with any of {Clipping._fields} as keys. "
            f"Received: {clipping!r}"
        )
    rmin, rmax, dmax = Clipping(**clipping)
    if (
        (rmin is not None and rmin < 0)
        or (rmax is not None and rmax <= 0)
        or (rmin is not None and rmax is not None and rmin > rmax)
        or (dmax is not None and dmax < 0)
    ):
        raise ValueError(
            "renorm_clipping needs 0 <= rmin <= rmax, rmax > 0 and dmax >= 0. "
            f"Received: {clipping!r}"
        )


class BatchNormCell:
    """What a layer needs of its cell; mixed into a `keras.layers` cell.

    Its signature is the normalisation's part of the signatures of all cells and layers.
    """

    gates = 1
    has_cell_state = False
    plain_class = None
    equations = None  # The class in `recurrence` that has the derivative by hand.
    recurrent_bias = None  # A GRU's, added to the recurrent term.

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        if cls.plain_class is not None:
            cls.__signature__ = joined_signature(cls.plain_class, cls.normalization_parameters())
        if "plain_class" in vars(cls):  # Not a user's subclass, which inherits it.
            docstrings.complete(cls, docstrings.CELL, cls.plain_class, cls.has_cell_state)

    @classmethod
    def normalization_parameters(cls):
        """The parameters that its namesake does not have, by name."""
        own = named_parameters(BatchNormCell)
        del own["units"]
        if not cls.has_cell_state:
            del own["normalize_cell_state"]
        return own

    def __init__(
        self,
        units,
        *args,
        normalization="frame",
        normalize_recurrent=False,
        normalize_cell_state=False,
        max_timesteps=None,
        renorm=False,
        renorm_clipping=None,
        synchronized=False,
        momentum=0.99,
        epsilon=1e-5,
        gamma_initializer="ones",
        gamma_regularizer=None,
        gamma_constraint=None,
        moving_mean_initializer="zeros",
        moving_variance_initializer="ones",
        **kwargs,
    ):
        if normalize_cell_state and not self.has_cell_state:
            raise ValueError(
                "normalize_cell_state=True needs a cell state, which "
                f"{type(self).__name__} does not have; it is for BatchNormLSTM and "
                "BatchNormLSTMCell. Leave it at False."
            )
        if normalization not in NORMALIZATIONS:
            raise ValueError(
                f"normalization must be one of {NORMALIZATIONS}. Received: {normalization!r}"
            )
        if not 0 <= momentum <= 1:
            raise ValueError(f"momentum must lie between 0 and 1. Received: {momentum!r}")
        if not epsilon > 0:
            raise ValueError(f"epsilon must be positive. Received: {epsilon!r}")
        if max_timesteps is not None and (int(max_timesteps) != max_timesteps or max_timesteps < 1):
            raise ValueError(
                "max_timesteps must be a positive integer, or None for statistics that all time "
                f"steps share. Received: {max_timesteps!r}"
            )
        if max_timesteps and not (
            normalization == "frame" or normalize_recurrent or normalize_cell_state
        ):
            raise ValueError(
                "max_timesteps keeps statistics for each time step, but nothing is normalised "
                f"step by step here (normalization={normalization!r}, no normalize_recurrent, no "
                'normalize_cell_state). Use normalization="frame", or leave max_timesteps at None.'
            )
        _check_renorm(renorm, renorm_clipping)
        if renorm and not (normalization or normalize_recurrent or normalize_cell_state):
            raise ValueError(
                "renorm=True changes how a layer normalises, but this one normalises nothing "
                "(normalization=None, no normalize_recurrent, no normalize_cell_state). Leave it "
                "at False."
            )
        if synchronized and (normalize_recurrent or normalize_cell_state):
            raise ValueError(
                "synchronized=True cannot be combined with normalize_recurrent or "
                "normalize_cell_state: their moments are taken inside the time loop, where the "
                "replicas of a tf.distribute strategy cannot exchange them."
            )
        super().__init__(units, *args, **kwargs)
        self.normalization = normalization
        self.normalize_recurrent = bool(normalize_recurrent)
        self.normalize_cell_state = bool(normalize_cell_state)
        self.max_timesteps = max_timesteps
        self.renorm = bool(renorm)
        self.renorm_clipping = None if renorm_clipping is None else dict(renorm_clipping)
        self.synchronized = bool(synchronized)
        self.momentum = momentum
        self.epsilon = epsilon
        self.gamma_initializer = keras.initializers.get(gamma_initializer)
        self.gamma_regularizer = keras.regularizers.get(gamma_regularizer)
        self.gamma_constraint = keras.constraints.get(gamma_constraint)
        self.moving_mean_initializer = keras.initializers.get(moving_mean_initializer)
        self.moving_variance_initializer = keras.initializers.get(moving_variance_initializer)
        # In the order in which their weights are listed, after the cell's own.
        self.normalizer = self.recurrent_normalizer = self.cell_normalizer = None
        if normalization:
            steps = None if normalization == "sequence" else max_timesteps
            self.normalizer = self._normalizer(steps, synchronized=self.synchronized)
        if normalize_recurrent:
            self.recurrent_normalizer = self._normalizer(max_timesteps, prefix="recurrent_")
        if normalize_cell_state:
            self.cell_normalizer = self._normalizer(max_timesteps, prefix="cell_", use_beta=True)

    def _normalizer(self, max_timesteps, **kwargs):
        return BatchNormalizer(
            max_timesteps=max_timesteps,
            renorm=self.renorm,
            renorm_clipping=self.renorm_clipping,
            momentum=self.momentum,
            epsilon=self.epsilon,
            gamma_initializer=keras.initializers.get(self.gamma_initializer),
            gamma_regularizer=self.gamma_regularizer,
            gamma_constraint=self.gamma_constraint,
            moving_mean_initializer=self.moving_mean_initializer,
            moving_variance_initializer=self.moving_variance_initializer,
            dtype=self.dtype_policy,
            trainable=self.trainable,
            **kwargs,
        )

    @property
    def loop_normalizers(self):
        """The normalisers whose moments depend on the states, in the order a step uses them."""
        both = (self.recurrent_normalizer, self.cell_normalizer)
        return [normalizer for normalizer in both if normalizer is not None]

    def build(self, input_shape):
        super().build(input_shape)
        for normalizer in (self.normalizer, self.recurrent_normalizer):
            if normalizer is not None:
                normalizer.build(self.gates * self.units)
        if self.cell_normalizer is not None:
            self.cell_normalizer.build(self.units)

    @property
    def input_bias(self):
        """The bias that is added to the projected inputs: a tensor `[gates * units]` or `None`."""
        return None if self.bias is None else as_tensor(self.bias)

    def whole_bias(self, input_bias):
        """The bias in the shape that `keras.layers` gives it, with another input bias."""
        return input_bias

    def drop_inputs(self, x, training):
        """Keras's input dropout: one mask for all frames, or one for each gate (a list then)."""
        # Only in training: a cell keeps its mask until its layer has been called.
        mask = self.get_dropout_mask(x[0] if len(x.shape) == 3 else x) if training else None
        return x if mask is None else _dropped(x, mask)

    def project_inputs(self, x, mask=None, training=False, first_time=0):
        """z: the projected, normalised and shifted inputs, `[time, batch, gates * units]`.

        Args:
            x: `[time, batch, features]`, or a list of such, one for each gate.
            mask: Boolean `[time, batch]` or `None`.
            training: Python boolean.
            first_time: The index of the first frame.
        """
        kernel, bias = as_tensor(self.kernel), self.input_bias
        if self.normalizer is None:
            return project(x, kernel, bias)
        return self.normalizer.project(
            x,
            kernel,
            bias,
            axes=OVER_SEQUENCE if self.normalization == "sequence" else OVER_FRAME,
            mask=mask,
            training=training,
            first_time=first_time,
        )

    def moments_specs(self, training):
        """The `tf.TensorSpec` of each of the moments that `step` takes."""
        dtype = statistics_dtype(self.compute_dtype)
        specs = []
        for normalizer in self.loop_normalizers:
            if normalizer.normalizes_by_batch(training):
                shape = normalizer.gamma.shape
                specs += [tf.TensorSpec(s, dtype) for s in (shape, shape, (1,))]
        return specs

    def read_statistics(self, training):
        """Those of the loop's normalisers that take moments, each with its `Statistics` so far."""
        return [
            (normalizer, normalizer.read())
            for normalizer in self.loop_normalizers
            if normalizer.normalizes_by_batch(training)
        ]

    def update_statistics(self, moments, read, first_time=0):
        """Updates what `read_statistics` gave with the moments that `step` took, over time."""
        for index, (normalizer, statistics) in enumerate(read):
            batch = Moments(*moments[3 * index : 3 * index + 3])
            normalizer.update(batch, statistics, first_time)

    @property
    def has_equations(self):
        """Whether `equations` are what `step` does: default activations, nothing normalised."""
        defaults = {"activation": "tanh", "recurrent_activation": "sigmoid"}
        return (
            self._has("step", beside="equations")
            and not self.loop_normalizers
            and all(
                getattr(self, name) is keras.activations.get(default)
                for name, default in defaults.items()
                if hasattr(self, name)
            )
        )

    def _has(self, method, beside):
        """Whether a method is that of the class which defines `beside`, the same made fast.

        It is not where a subclass overrides the method alone.
        """
        owner = next(cls for cls in type(self).__mro__ if beside in vars(cls))
        return getattr(getattr(self, method), "__func__", None) is getattr(owner, method)

    def equations_for(self, states, training):
        """A function that makes `equations` from tensors of their parameters; these tensors."""
        equations, rows = self.equations, states[0].shape[0]
        masks = self.get_recurrent_dropout_mask(states[0]) if training else None
        parameters = [as_tensor(self.recurrent_kernel), self.recurrent_bias]
        parameters = [parameter for parameter in parameters if parameter is not None]
        return lambda tensors: equations(tensors, masks, rows), parameters

    def takes_input_moments(self, training):
        """Whether the inputs are normalised with this call's moments, not the population's."""
        return self.normalizer is not None and self.normalizer.normalizes_by_batch(training)

    def takes_frame_moments(self, training):
        """Whether anything trained is normalised with the moments of each frame's rows."""
        normalizers = self.loop_normalizers
        if self.normalization == "frame":
            normalizers = [self.normalizer, *normalizers]
        return any(one.trainable and one.normalizes_by_batch(training) for one in normalizers)

    @property
    def projects_frames(self):
        """Whether `frame_projection` does what `project_inputs` does at inference."""
        return self._has("project_inputs", beside="frame_projection")

    def frame_projection(self):
        """`project_inputs` with the population's statistics, for any frames by themselves.

        Returns:
            A function of frames, the index of the first of them and some arrays; these arrays.
        """
        projection = plain_projection
        if self.normalizer is not None:
            projection = self.normalizer.population_projection
        return projection(as_tensor(self.kernel), self.input_bias)

    def fold_inputs(self, x, mask, training):
        """Inputs, kernel and bias whose plain projection is that of `project_inputs`.

        Returns:
            x, the plain projection as `frame_projection` returns it, kernel and bias being its
            arrays; `None` where normalisation is not one affine function for all frames.
        """
        if isinstance(x, list) or self.loop_normalizers or self.max_timesteps is not None:
            return None
        if not self._has("project_inputs", beside="fold_inputs"):
            return None
        kernel, bias = as_tensor(self.kernel), self.input_bias
        if self.normalizer is None:
            folded = kernel, tf.zeros(kernel.shape[1:], kernel.dtype) if bias is None else bias
        elif not self.takes_input_moments(training):
            folded = self.normalizer.fold(kernel, bias)
        elif self.normalization == "sequence":
            x, *folded = self.normalizer.fold_batch(x, kernel, bias, mask)
        else:
            return None
        return x, *plain_projection(*(tf.cast(array, kernel.dtype) for array in folded))

    def step(self, z, states, context):
        """One time step on projected inputs.

        Args:
            z: `[batch, gates * units]`.
            states: List of `[batch, units]`.
            context: `StepContext`.

        Returns:
            The output `[batch, units]`, the list of new states, and a list of the moments that the
            loop's normalisers took: mean, variance and count of each.
        """
        raise NotImplementedError

    def _recurrent(self, h, context, gates=slice(None)):
        """`h U` of some gates' columns, normalised where asked; and the moments of it."""
        channels = slice(
            *(None if end is None else end * self.units for end in (gates.start, gates.stop))
        )
        U = as_tensor(self.recurrent_kernel)[:, channels]
        mask = self.get_recurrent_dropout_mask(h) if context.training else None
        if isinstance(mask, list):
            mask = mask[gates]
        hU = project(h if mask is None else _dropped(h, mask), U, None)
        return self._normalize(self.recurrent_normalizer, hU, context, channels)

    def _normalize(self, normalizer, a, context, channels=slice(None)):
        if normalizer is None:
            return a, []
        y, batch = normalizer.normalize_frame(
            a, context.mask, context.time, context.training, channels=channels
        )
        return y, [] if batch is None else list(batch)

    def get_config(self):
        config = {
            **super().get_config(),
            **statistics_config(self),
            "normalization": self.normalization,
            "normalize_recurrent": self.normalize_recurrent,
            "synchronized": self.synchronized,
        }
        if self.has_cell_state:
            config["normalize_cell_state"] = self.normalize_cell_state
        if self.frozen_normalizers:
            config["frozen_normalizers"] = self.frozen_normalizers
        return config

    @classmethod
    def from_config(cls, config):
        config = dict(config)
        frozen = config.pop("frozen_normalizers", [])
        cell = cls(**config)
        cell.frozen_normalizers = frozen
        return cell

    @property
    def frozen_normalizers(self):
        """The names of the normalisers that were frozen by themselves; no argument of a cell."""
        names = ("normalizer", "recurrent_normalizer", "cell_normalizer")
        return [name for name in names if self.trainable and _is_frozen(getattr(self, name))]

    @frozen_normalizers.setter
    def frozen_normalizers(self, names):
        for name in names:
            getattr(self, name).trainable = False


class StandaloneCell(BatchNormCell):
    """What a bare `keras.layers.RNN` needs of a cell besides.

    Args:
        in_layer: Whether the cell belongs to a layer of this package. That sees whole sequences
            and counts time steps itself, so the cell has no counter among its states, and takes
            `normalization="sequence"` and `synchronized=True`.
    """

    def __init__(self, units, *args, in_layer=False, **kwargs):
        super().__init__(units, *args, **kwargs)
        name = type(self).__name__
        if self.normalization == "sequence" and not in_layer:
            raise ValueError(
                f'{name} sees one frame at a time, so normalization="sequence" cannot work in it. '
                f"Use the layer keras_bnrnn.{name.removesuffix('Cell')}, which sees the whole "
                'sequence, or normalization="frame".'
            )
        if self.synchronized and not in_layer:
            raise ValueError(
                f"{name} normalises inside the time loop, where replicas cannot exchange moments, "
                "so synchronized=True cannot work in it. Use the layer "
                f"keras_bnrnn.{name.removesuffix('Cell')}."
            )
        self.in_layer = in_layer
        if self.counts_steps:
            self.state_size = [*keras.tree.flatten(self.state_size), 1]

    @property
    def counts_steps(self):
        """Whether the last state is a step counter."""
        return self.max_timesteps is not None and not self.in_layer

    def build(self, input_shape):
        super().build(input_shape)
        exact = {"bfloat16": 2**8, "float16": 2**11}.get(self.compute_dtype, 2**24)
        if self.counts_steps and self.max_timesteps > exact:
            raise ValueError(
                f"A {type(self).__name__} in a bare keras.layers.RNN counts time steps in a "
                f"state of its compute dtype, and {self.compute_dtype} counts only to "
                f"{exact}, not to max_timesteps={self.max_timesteps}. Use the layer, or a "
                "wider compute dtype."
            )

    def get_initial_state(self, batch_size=None):
        return [
            tf.zeros((batch_size, size), dtype=self.compute_dtype)
            for size in keras.tree.flatten(self.state_size)
        ]

    def call(self, inputs, states, training=False):
        """One step, in which every row counts."""
        nested = isinstance(states, (list, tuple))
        states = list(states) if nested else [states]
        time = 0
        counter = []
        if self.counts_steps:
            # A masked row's counter stands still, as states do; a live row's has the time.
            counter = [states.pop()]
            time = tf.cast(tf.reduce_max(counter[0]), tf.int32)
        elif self.max_timesteps is not None:
            raise ValueError(
                f"{self.name!r} is the cell of a layer, which counts the time steps that "
                f"max_timesteps={self.max_timesteps} keeps statistics for. To call it step by step "
                f"make a {type(self).__name__} of its own, which counts them in its last state."
            )
        x = self.drop_inputs(tf.convert_to_tensor(inputs), training)
        x = [part[tf.newaxis] for part in x] if isinstance(x, list) else x[tf.newaxis]
        z = self.project_inputs(x, training=training, first_time=time)[0]
        statistics = self.read_statistics(training)
        output, states, moments = self.step(z, states, StepContext(None, time, training))
        self.update_statistics([value[tf.newaxis] for value in moments], statistics, time)
        states = states + [count + 1 for count in counter]
        return output, states if nested else states[0]

    def get_config(self):
        config = super().get_config()
        return {**config, "in_layer": True} if self.in_layer else config


def _is_frozen(normalizer):
    return normalizer is not None and not normalizer.trainable


def _dropped(x, mask):
    # Keras makes the mask in the dtype of the layer, which may be set to another than its cell's.
    dropped = [x * tf.cast(one, x.dtype) for one in tf.nest.flatten(mask)]
    return dropped if isinstance(mask, list) else dropped[0]


@keras.saving.register_keras_serializable(package="keras_bnrnn")
class BatchNormSimpleRNNCell(StandaloneCell, keras.layers.SimpleRNNCell):
    """One step of a simple RNN whose inputs' path is batch-normalised.

        h_t = tanh(BN(x_t W) + h_{t-1} U + bias)

    where BN(a) = gamma * (a - mean) / sqrt(variance + epsilon).
    """

    plain_class = keras.layers.SimpleRNNCell
    equations = SimpleRNNEquations

    def step(self, z, states, context):
        (h,) = states
        hU, moments = self._recurrent(h, context)
        h = self.activation(z + hU)
        return h, [h], moments


@keras.saving.register_keras_serializable(package="keras_bnrnn")
class BatchNormLSTMCell(StandaloneCell, keras.layers.LSTMCell):
    """One step of an LSTM whose inputs' path is batch-normalised.

        z_t = BN(x_t W) + h_{t-1} U + bias,   then the equations of `keras.layers.LSTM` on z_t

    where BN(a) = gamma * (a - mean) / sqrt(variance + epsilon).
    """

    plain_class = keras.layers.LSTMCell
    gates = 4
    has_cell_state = True
    equations = LSTMEquations

    def step(self, z, states, context):
        h, c = states
        hU, moments = self._recurrent(h, context)
        i, f, g, o = tf.split(z + hU, 4, axis=-1)
        c = self.recurrent_activation(f) * c + self.recurrent_activation(i) * self.activation(g)
        normalized_c, cell_moments = self._normalize(self.cell_normalizer, c, context)
        h = self.recurrent_activation(o) * self.activation(normalized_c)
        return h, [h, c], moments + cell_moments


@keras.saving.register_keras_serializable(package="keras_bnrnn")
class BatchNormGRUCell(StandaloneCell, keras.layers.GRUCell):
    """One step of a GRU whose inputs' path is batch-normalised.

        z_t = BN(x_t W) + input bias,   then the equations of `keras.layers.GRU` with z_t for x_t W

    where BN(a) = gamma * (a - mean) / sqrt(variance + epsilon). With
    `normalize_recurrent` and `reset_after=True` h U is normalised before the recurrent bias; with
    `reset_after=False` h U for both gates, and (r * h) U for the candidate.
    """

    plain_class = keras.layers.GRUCell
    gates = 3

    @property
    def input_bias(self):
        bias = super().input_bias
        return bias[0] if bias is not None and self.reset_after else bias

    def whole_bias(self, input_bias):
        if not self.reset_after:
            return input_bias
        recurrent_bias = self.recurrent_bias
        if recurrent_bias is None:
            recurrent_bias = tf.zeros_like(input_bias)
        return tf.stack([input_bias, tf.cast(recurrent_bias, input_bias.dtype)])

    @property
    def recurrent_bias(self):
        """The bias that is added to the recurrent term: a tensor `[3 * units]` or `None`."""
        return as_tensor(self.bias)[1] if self.use_bias and self.reset_after else None

    @property
    def equations(self):
        return ResetAfterGRUEquations if self.reset_after else ResetBeforeGRUEquations

    def step(self, z, states, context):
        (h,) = states
        z_update, z_reset, z_candidate = tf.split(z, 3, axis=-1)
        if self.reset_after:
            hU, moments = self._recurrent(h, context)
            if self.use_bias:
                hU += self.recurrent_bias
            u_update, u_reset, u_candidate = tf.split(hU, 3, axis=-1)
        else:
            hU, moments = self._recurrent(h, context, slice(0, 2))
            u_update, u_reset = tf.split(hU, 2, axis=-1)
        update = self.recurrent_activation(z_update + u_update)
        reset = self.recurrent_activation(z_reset + u_reset)
        if self.reset_after:
            u_candidate = reset * u_candidate
        else:
            u_candidate, candidate_moments = self._recurrent(reset * h, context, slice(2, 3))
            if moments:
                moments = list(side_by_side([moments, candidate_moments]))
        h = update * h + (1 - update) * self.activation(z_candidate + u_candidate)
        return h, [h], moments
