"""NumPy models of the batch-normalised recurrent layers, to hold the TensorFlow ones against.

Written from the equations alone:

    a_t = x_t W
    BN(a) = gamma * (a - mean) / sqrt(variance + epsilon)

    SimpleRNN  h_t = act(BN(a_t) + R(h_{t-1} U) + bias)
    LSTM       z_t = BN(a_t) + R(h_{t-1} U) + bias;  i, f, g, o = split(z_t)
               c_t = sigma(f) * c_{t-1} + sigma(i) * act(g);  h_t = sigma(o) * act(C(c_t))
    GRU        a'_t = BN(a_t) + input_bias
      reset_after        u = R(h_{t-1} U) + recurrent_bias
                         z, r = sigma(a'_zr + u_zr);  hh = act(a'_h + r * u_h)
      not reset_after    z, r = sigma(a'_zr + R(h_{t-1} U_zr))
                         hh = act(a'_h + R((r * h_{t-1}) U_h))
               h_t = z * h_{t-1} + (1 - z) * hh

or, renormalised, with mean and variance of the mini-batch and r and d held fixed,

    RN(a) = gamma * ((a - mean) / sqrt(variance + epsilon) * r + d)

R and C are the identity, or batch normalisation of the recurrent term and of the cell state.
`layer` runs a layer, which sees the mask and updates its population statistics once per call;
`bare_cell` runs a cell inside `keras.layers.RNN`, which shows it no mask, calls it once more than
there are frames, and updates once per call of the cell.

Everything is float64 and analytic, so a complex input runs through unharmed and `gradients` can
differentiate by complex steps: exact to rounding, with no step size to choose.
"""

import dataclasses

import numpy as np

# How the names of population statistics end.
STATISTICS = ("moving_mean", "moving_variance", "updates")
SETTLED = 2.0**24  # updates, after which statistics move by `momentum` alone
GATES = {"simple_rnn": 1, "lstm": 4, "gru": 3}
ACTIVATIONS = {
    "tanh": np.tanh,
    "sigmoid": lambda a: 1 / (1 + np.exp(-a)),
    "relu": lambda a: np.where(a.real > 0, a, 0),
    "linear": lambda a: a,
}


@dataclasses.dataclass(frozen=True)
class Options:
    """What of a layer's arguments changes its numbers."""

    kind: str  # "simple_rnn", "lstm" or "gru"
    normalization: str | None = "sequence"
    normalize_recurrent: bool = False
    normalize_cell_state: bool = False
    max_timesteps: int | None = None
    renorm: bool = False
    renorm_clipping: dict | None = None
    momentum: float = 0.99
    epsilon: float = 1e-5
    activation: str = "tanh"
    recurrent_activation: str = "sigmoid"
    use_bias: bool = True
    reset_after: bool = True
    go_backwards: bool = False
    zero_output_for_mask: bool = False
    recalibrating: bool = False

    @classmethod
    def of(cls, kind, **kwargs):
        """Options from a layer's constructor arguments; those without effect here are left out."""
        names = {field.name for field in dataclasses.fields(cls)}
        return cls(kind, **{name: value for name, value in kwargs.items() if name in names})

    @property
    def state_count(self):
        return 2 if self.kind == "lstm" else 1

    def weight_shapes(self, features, units):
        """Names and shapes of the weights, in the order of `get_weights()`."""
        width = GATES[self.kind] * units
        shapes = {"kernel": (features, width), "recurrent_kernel": (units, width)}
        if self.use_bias:
            two_biases = self.kind == "gru" and self.reset_after
            shapes["bias"] = (2, width) if two_biases else (width,)
        if self.normalization is not None:
            steps = self.max_timesteps if self.normalization == "frame" else None
            shapes |= self._statistics_shapes("", width, steps)
        if self.normalize_recurrent:
            shapes |= self._statistics_shapes("recurrent_", width, self.max_timesteps)
        if self.normalize_cell_state:
            shapes |= self._statistics_shapes("cell_", units, self.max_timesteps, shift=True)
        return shapes

    def statistics(self):
        """Names of the population statistics, in the order of `get_weights()`."""
        return [name for name in self.weight_shapes(1, 1) if name.endswith(STATISTICS)]

    def _statistics_shapes(self, prefix, width, steps, shift=False):
        shapes = {f"{prefix}gamma": (width,)}
        if shift:
            shapes[f"{prefix}beta"] = (width,)
        kept = () if steps is None else (steps,)
        shapes |= {f"{prefix}{name}": (*kept, width) for name in STATISTICS[:2]}
        return shapes | ({f"{prefix}updates": (*kept, 1)} if self.renorm else {})


def random_weights(options, features, units, rng):
    """Weights by name, far enough from their initial values for every one of them to matter."""
    weights = {}
    for name, shape in options.weight_shapes(features, units).items():
        if name.endswith("gamma"):
            weights[name] = rng.uniform(0.5, 1.5, shape)
        elif name.endswith("moving_variance"):
            weights[name] = rng.uniform(0.5, 2.0, shape)
        elif name.endswith("updates"):
            weights[name] = rng.integers(0, 4, shape).astype(float)
        else:
            weights[name] = rng.normal(0, 0.6, shape)
    return weights


@dataclasses.dataclass
class Result:
    outputs: np.ndarray  # [batch, time, units], in the order of the loop
    states: list  # of [batch, units]
    statistics: dict  # the population statistics after the call, by name

    @property
    def last_output(self):
        return self.outputs[:, -1]


class Normalizer:
    """One normalised quantity: its gamma and beta, its population statistics, what it counted."""

    def __init__(self, options, weights, prefix=""):
        self.options = options
        self.prefix = prefix
        self.gamma = weights[f"{prefix}gamma"]
        self.beta = weights.get(f"{prefix}beta", 0.0)
        self.moving_mean = weights[f"{prefix}moving_mean"]
        self.moving_variance = weights[f"{prefix}moving_variance"]
        self.updates = weights.get(f"{prefix}updates", np.inf + 0 * self.moving_mean[..., :1])
        self.counted = []  # (step, rows [n, width]) of every frame that had a batch statistic
        self.live = []  # the same of every frame with a live row

    def frame(self, values, live, step, training, count=True):
        """Normalises one frame [batch, width] over its live rows."""
        if count and live.any():
            self.live.append((step, values[live]))
        if training and live.sum() >= 2:
            if count:
                self.counted.append((step, values[live]))
            return self._scale(values, self._population(step), values[live])
        return self._scale(values, self._population(step))

    def sequence(self, values, live, training):
        """Normalises [batch, time, width] over all live frames together."""
        if live.any():
            self.live.append((0, values[live]))
        if training and live.sum() >= 2:
            self.counted.append((0, values[live]))
            return self._scale(values, self._population(0), values[live])
        return self._scale(values, self._population(0))

    def statistics(self):
        """The population statistics after one update with everything counted so far."""
        old = (self.moving_mean, self.moving_variance, self.updates)
        new = [np.array(value.real) for value in old]
        for kept in range(len(self.moving_mean)) if self._per_step else [...]:
            # A pair is its own step's alone: later steps use the last one but do not count.
            rows = [rows for step, rows in self.counted if kept in (..., step)]
            if rows:
                for value, moved in zip(
                    new,
                    self._moved(*(value[kept] for value in new), np.concatenate(rows)),
                    strict=True,
                ):
                    value[kept] = moved
        names = STATISTICS if self.options.renorm else STATISTICS[:2]
        return {f"{self.prefix}{name}": value for name, value in zip(names, new, strict=False)}

    def update(self):
        """Makes that update and forgets what was counted: a cell does so at every call."""
        updated = self.statistics()
        self.moving_mean = updated[f"{self.prefix}moving_mean"]
        self.moving_variance = updated[f"{self.prefix}moving_variance"]
        self.updates = updated.get(f"{self.prefix}updates", self.updates)
        self.counted = []

    @property
    def _per_step(self):
        return self.moving_mean.ndim == 2

    def _population(self, step):
        if not self._per_step:
            return self.moving_mean, self.moving_variance
        kept = min(step, len(self.moving_mean) - 1)
        return self.moving_mean[kept], self.moving_variance[kept]

    def _moved(self, mean, variance, updates, rows):
        batch_mean, batch_variance = _moments(rows)
        momentum = np.minimum(self.options.momentum, 1 - 1 / (updates + 1))
        return (
            momentum * mean + (1 - momentum) * batch_mean.real,
            momentum * variance + (1 - momentum) * batch_variance.real,
            updates + 1,
        )

    def _scale(self, values, population, rows=None):
        mean, deviation = self._mean_and_deviation(*population)
        r, d = 1.0, 0.0
        if rows is not None:
            batch_mean, batch_deviation = self._mean_and_deviation(*_moments(rows))
            trained = self.updates.any() or not self.options.recalibrating
            if self.options.renorm and trained:
                bounds = self.options.renorm_clipping or {}
                # Of the real parts, which a complex step does not move.
                r = (batch_deviation / deviation).real
                r = np.clip(r, bounds.get("rmin", 0.0), bounds.get("rmax", np.inf))
                dmax = bounds.get("dmax", np.inf)
                d = np.clip(((batch_mean - mean) / deviation).real, -dmax, dmax)
            mean, deviation = batch_mean, batch_deviation
        return self.gamma * ((values - mean) / deviation * r + d) + self.beta

    def _mean_and_deviation(self, mean, variance):
        return mean, np.sqrt(variance + self.options.epsilon)


def _moments(rows):
    mean = rows.mean(axis=0)
    return mean, ((rows - mean) ** 2).mean(axis=0)  # not |.|: it must stay analytic


class _Model:
    """The weights of one layer or cell and its step; layer and bare cell differ in the loop."""

    def __init__(self, options, weights):
        self.options = options
        self.weights = weights
        self.units = weights["recurrent_kernel"].shape[0]
        self.input_norm = Normalizer(options, weights) if options.normalization else None
        self.recurrent_norm = (
            Normalizer(options, weights, "recurrent_") if options.normalize_recurrent else None
        )
        self.cell_norm = (
            Normalizer(options, weights, "cell_") if options.normalize_cell_state else None
        )
        self.act = ACTIVATIONS[options.activation]
        self.sigma = ACTIVATIONS[options.recurrent_activation]
        self.bias = weights.get("bias")

    @property
    def norms(self):
        return [n for n in (self.input_norm, self.recurrent_norm, self.cell_norm) if n is not None]

    def initial_state(self, batch):
        return [np.zeros((batch, self.units))] * self.options.state_count

    def statistics(self):
        return {name: value for norm in self.norms for name, value in norm.statistics().items()}

    def step(self, z, states, live, index, training):
        """One step from z_t = BN(a_t), [batch, gates * units]; returns the new states, h first."""

        def normalize(norm):
            if norm is None:
                return lambda values, count=True: values
            return lambda values, count=True: norm.frame(values, live, index, training, count)

        step = {"simple_rnn": self._simple_rnn, "lstm": self._lstm, "gru": self._gru}
        return step[self.options.kind](
            z, states, normalize(self.recurrent_norm), normalize(self.cell_norm)
        )

    def _simple_rnn(self, z, states, recurrent, _):
        z = z + recurrent(states[0] @ self.weights["recurrent_kernel"])
        return [self.act(z if self.bias is None else z + self.bias)]

    def _lstm(self, z, states, recurrent, normalize_cell):
        h, c = states
        z = z + recurrent(h @ self.weights["recurrent_kernel"])
        if self.bias is not None:
            z = z + self.bias
        i, f, g, o = np.split(z, 4, axis=-1)
        c = self.sigma(f) * c + self.sigma(i) * self.act(g)
        return [self.sigma(o) * self.act(normalize_cell(c)), c]

    def _gru(self, z, states, recurrent, _):
        (h,) = states
        units, kernel = self.units, self.weights["recurrent_kernel"]
        if self.options.reset_after:
            input_bias, recurrent_bias = self.bias if self.bias is not None else (0.0, 0.0)
            u = recurrent(h @ kernel) + recurrent_bias
            z_gate, r, x_h = np.split(z + input_bias, 3, axis=-1)
            z_gate = self.sigma(z_gate + u[:, :units])
            r = self.sigma(r + u[:, units : 2 * units])
            candidate = self.act(x_h + r * u[:, 2 * units :])
        else:
            # One normaliser serves all three gates, column by column, though the candidate's
            # product waits for r: normalise without it for r's sake, then count the whole.
            z_gate, r, x_h = np.split(z if self.bias is None else z + self.bias, 3, axis=-1)
            gates = h @ kernel[:, : 2 * units]
            u = recurrent(np.concatenate([gates, 0 * h], axis=-1), count=False)
            z_gate = self.sigma(z_gate + u[:, :units])
            r = self.sigma(r + u[:, units : 2 * units])
            candidate = (r * h) @ kernel[:, 2 * units :]
            u = recurrent(np.concatenate([gates, candidate], axis=-1))
            candidate = self.act(x_h + u[:, 2 * units :])
        return [z_gate * h + (1 - z_gate) * candidate]


def layer(options, weights, x, mask=None, initial_state=None, training=False):
    """Runs a layer on x [batch, time, features] with mask [batch, time]."""
    model, outputs, states = _run(options, weights, x, mask, initial_state, training)
    return Result(outputs, states, model.statistics())


def _run(options, weights, x, mask, initial_state, training):
    model = _Model(options, weights)
    batch, time = x.shape[:2]
    live = np.ones((batch, time), bool) if mask is None else np.asarray(mask, bool)
    # Padding may hold anything, and 0 * nan is nan.
    x = np.where(live[..., None], x, 0.0)
    if options.go_backwards:
        x, live = x[:, ::-1], live[:, ::-1]
    # Per-step statistics count from the first frame that a row reads backwards.
    aligned = options.go_backwards and options.max_timesteps is not None
    passed = live.argmax(axis=1) if aligned else np.zeros(batch, int)
    order = (np.arange(time) + passed[:, None]) % time
    x, live = (np.take_along_axis(v, o, 1) for v, o in ((x, order[..., None]), (live, order)))
    a = x @ weights["kernel"]
    if options.normalization == "sequence":
        a = model.input_norm.sequence(a, live, training)
    states = model.initial_state(batch) if initial_state is None else list(initial_state)
    output = np.zeros((batch, model.units))
    outputs = []
    for t in range(time):
        z = a[:, t]
        if options.normalization == "frame":
            z = model.input_norm.frame(z, live[:, t], t, training)
        new_states = model.step(z, states, live[:, t], t, training)
        shown = live[:, t, None]
        output = np.where(shown, new_states[0], 0.0 if options.zero_output_for_mask else output)
        states = [np.where(shown, new, old) for new, old in zip(new_states, states, strict=True)]
        outputs.append(output)
    shown = np.zeros((batch, time, model.units), outputs[0].dtype)
    for row, skip in enumerate(passed):
        shown[row, skip:] = np.stack(outputs, axis=1)[row, : time - skip]
    return model, shown, states


def exact_statistics(options, weights, batches):
    """What `recalibrate` assigns: pooled moments of every live frame of (x, mask) batches.

    The batches are seen with batch statistics; frames too few to normalise by themselves are
    live all the same, and count. Renormalisation is as in training, once there are statistics.
    """
    norms = {}
    recalibrating = dataclasses.replace(options, recalibrating=True)
    for x, mask in batches:
        model = _run(recalibrating, weights, x, mask, None, training=True)[0]
        for norm in model.norms:
            norms.setdefault(norm.prefix, []).append(norm)
    result = {}
    for prefix, calls in norms.items():
        pooled = Normalizer(dataclasses.replace(options, momentum=0.0), weights, prefix)
        pooled.counted = [seen for call in calls for seen in call.live]
        found = pooled.statistics()
        if options.renorm:
            updates = found[f"{prefix}updates"]
            updates[updates > pooled.updates] = SETTLED
        result |= found
    return result


def gaps(options, weights, batches):
    """What `StatisticsGap` finds over (x, mask) batches: `{prefix: [variance's, mean's]}`."""
    found = {}
    for x, mask in batches:
        for norm in _run(options, weights, x, mask, None, training=True)[0].norms:
            for step, rows in norm.counted:
                mean, deviation = norm._mean_and_deviation(*norm._population(step))
                batch_mean, batch_deviation = norm._mean_and_deviation(*_moments(rows))
                of_rows = (
                    np.abs(np.log(batch_deviation / deviation)).mean(),
                    np.abs((batch_mean - mean) / deviation).mean(),
                )
                found.setdefault(norm.prefix, []).extend([of_rows] * len(rows))
    return {prefix: np.mean(of_rows, axis=0) for prefix, of_rows in found.items()}


def bare_cell(options, weights, x, initial_state=None, training=False, extra_calls=1):
    """Runs a cell in a bare `keras.layers.RNN`, which shows it no mask.

    The loop calls the cell once on frame 0 before it starts and discards all but the update of
    the statistics (not with `unroll`: then `extra_calls=0`; `StackedRNNCells` makes it 2). Under
    `go_backwards` it is frame 0 all the same, the last to be processed.
    """
    model = _Model(options, weights)
    batch, time = x.shape[:2]
    everything = np.ones(batch, bool)

    def call(x_t, states, step):
        z = x_t @ weights["kernel"]
        if model.input_norm is not None:
            z = model.input_norm.frame(z, everything, step, training)
        states = model.step(z, states, everything, step, training)
        for norm in model.norms:
            norm.update()
        return states

    states = model.initial_state(batch) if initial_state is None else list(initial_state)
    for _ in range(extra_calls):
        call(x[:, 0], states, 0)
    outputs = []
    for step, t in enumerate(reversed(range(time)) if options.go_backwards else range(time)):
        states = call(x[:, t], states, step)
        outputs.append(states[0])
    return Result(np.stack(outputs, axis=1), states, model.statistics())


def gradients(function, arguments, step=1e-30):
    """d function / d arguments by complex steps.

    Args:
        function: maps a dict of arrays to a scalar, analytically.
        arguments: the dict of float64 arrays.

    Returns:
        A dict of arrays of the same shapes.
    """
    result = {}
    for name, value in arguments.items():
        gradient = np.zeros(value.shape)
        for index in np.ndindex(value.shape):
            moved = value.astype(complex)
            moved[index] += 1j * step
            gradient[index] = function(arguments | {name: moved}).imag / step
        result[name] = gradient
    return result
