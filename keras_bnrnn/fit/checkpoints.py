"""Checkpoints: everything that a training run needs to go on as if nothing had happened.

    checkpoints/epoch-0003/             after 3 epochs
    checkpoints/epoch-0003-step-000120/ after 3 epochs and 120 steps of the next
        worker-0.npz                    weights, optimizer, and what worker 0's replicas differ in
        worker-1.npz                    what worker 1's replicas differ in
    checkpoints/wanted-epoch-…          a worker that is told to stop wants this one
    checkpoints/damaged-epoch-…         could not be used any more; never deleted

Each worker writes its file aside and renames it, and a checkpoint is whole when all of them are
there and can be read (an npz file has checksums). Replicas differ in the states that a stateful
layer carries, in dropout's random states, in statistics that are not synchronised and in the
running sums of metrics. They are kept for each replica, and dealt out anew where a run goes on with
another number of them: states by rows, statistics as their mean.

Arrays are named `shared/`, `local/` or `metric/` and the variable's `path`. Keras numbers layers
without a name of their own (`dense_1`) anew in each process, so variables whose paths differ in
such numbers alone are found by their order. Arrays of older checkpoints are numbered.

`keras.callbacks.BackupAndRestore` writes weights and epoch one after the other, so a kill between
the two repeats or skips an epoch; it keeps one replica's states, and no metrics.
"""

import contextlib
import io
import json
import os
import re
import shutil
import sys
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from keras_bnrnn.files import flush, unused, write_aside
from keras_bnrnn.fit.errors import FitError

FOLDER = "checkpoints"
KEPT = 2
PROGRESS = "progress"
WANTED = "wanted-"
DAMAGED = "damaged-"
NAME = re.compile(r"epoch-(\d{4,})(?:-step-(\d{6,}))?")
PART = re.compile(r"worker-\d+\.npz")
COUNTER = re.compile(r"_\d+(?=[_/#]|$)")
MOST_DIFFERENCES_SHOWN = 3
VERSIONS = {"keras": keras.__version__, "tensorflow": tf.__version__}


class Restored(NamedTuple):
    """What a checkpoint says besides the model's values.

    Attributes:
        epochs, steps: finished epochs, and steps of the one after them.
        progress: what `Checkpoints.save` was given.
        metrics: for `add_metrics` when the epoch goes on.
    """

    epochs: int
    steps: int
    progress: dict
    metrics: dict


class _Damaged(Exception):
    """A checkpoint's files are not what was written."""


class Checkpoints:
    """The checkpoints of a run.

    Args:
        run_path: the run's folder, which has that of the checkpoints.
        worker: the `Worker` that this process is.
        identity: what tells this run from others, `{name: text or None}`. A checkpoint in which one
            of them is another is refused; older ones have none.
    """

    def __init__(self, run_path, worker, identity=None):
        self.folder = Path(run_path) / FOLDER
        self.worker = worker
        self.identity = identity or {}
        self.damaged = []
        self._restored = None

    def save(self, model, epochs, steps, progress):
        """Writes a checkpoint; keeps it and the newest before it.

        Args:
            model: compiled; its optimizer built.
            epochs, steps: finished epochs, and steps of the one after them.
            progress: JSON values to be returned by `restore`.
        """
        checkpoint = self.folder / name_of(epochs, steps)
        self.folder.mkdir(exist_ok=True)
        checkpoint.mkdir(exist_ok=True)
        arrays = {}
        if self.worker.is_chief:
            for path, variable in by_path(shared_variables(model)).items():
                arrays[f"shared/{path}"] = storable(np.asarray(variable))
        for kind, variables in (
            ("local", local_variables(model)),
            ("metric", metric_variables(model)),
        ):
            for path, variable in by_path(variables).items():
                arrays[f"{kind}/{path}"] = storable(values_of(model, variable))
        document = {
            "epochs": epochs,
            "steps": steps,
            "workers": self.worker.count,
            "progress": progress,
            "identity": self.identity,
            "versions": VERSIONS,
        }
        arrays[PROGRESS] = np.array(json.dumps(document))
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)
        write_aside(checkpoint / f"worker-{self.worker.index}.npz", buffer.getvalue())
        flush(checkpoint)
        flush(self.folder)
        if self.worker.is_chief:
            # Newer ones are leftovers of an attempt that this one has overtaken, or will.
            before = [one for one in ours(self.folder) if order(one) < (epochs, steps)]
            for old in before[: 1 - KEPT]:
                shutil.rmtree(old)
            for wanted in self.folder.glob(f"{WANTED}*"):
                asked_for = parse(wanted.name.removeprefix(WANTED))
                if asked_for and asked_for < (epochs, steps):
                    wanted.unlink()

    def want(self, epochs, steps):
        """Asks all workers for a checkpoint."""
        self.folder.mkdir(exist_ok=True)
        (self.folder / (WANTED + name_of(epochs, steps))).touch()

    def is_wanted(self, epochs, steps):
        """Whether a worker has asked for this checkpoint."""
        return (self.folder / (WANTED + name_of(epochs, steps))).exists()

    def restore(self, model):
        """Puts the newest whole checkpoint into the model; reports damaged ones on stderr.

        Returns:
            A `Restored`, or `None` if there is no whole checkpoint.

        Raises:
            FitError: the newest whole one is not of this run, or does not fit the model, which then
                is as it was.
            OSError: a file cannot be read, which does not mean that it is damaged.
        """
        self.damaged = []
        for checkpoint in reversed(ours(self.folder)):
            try:
                found = self._put(checkpoint, model)
            except _Damaged as damage:
                print(f"warning: skipping damaged {checkpoint}: {damage}", file=sys.stderr)
                self.damaged.append(checkpoint)
                continue
            if found is not None:
                self._restored = checkpoint
                return found
            print(f"warning: skipping unfinished {checkpoint}", file=sys.stderr)
        return None

    def restore_again(self, model):
        """Puts the checkpoint that `restore` found into the model once more."""
        self._put(self._restored, model)

    def set_damaged_aside(self):
        """Renames the checkpoints that `restore` could not use."""
        for checkpoint in self.damaged:
            checkpoint.rename(unused(checkpoint.with_name(DAMAGED + checkpoint.name)))

    def _put(self, checkpoint, model):
        """A `Restored`; `None` where a kill came before any worker's file."""
        if not any(PART.fullmatch(name) for name in os.listdir(checkpoint)):
            return None
        document, shared, local, metrics = read(checkpoint)
        for name, mine in self.identity.items():
            theirs = document.get("identity", {}).get(name)
            if None not in (mine, theirs) and mine != theirs:
                raise FitError(
                    f"{checkpoint} is of another run ({name} {theirs} there, {mine} here); move "
                    "it back, or name another folder",
                    "output_dir",
                )
        shared, differences = pair(shared, shared_variables(model))
        local, more = pair(local, local_variables(model), model.distribute_strategy)
        refuse(differences + more, checkpoint, document.get("versions", VERSIONS))
        for variable, value in shared:
            variable.assign(value)
        for variable, values in local:
            assign(model, variable, values, self.worker)
        return Restored(document["epochs"], document["steps"], document["progress"], metrics)


def newest_identity(run_path):
    """The identity in a run's newest checkpoint that can be read; `{}` without any."""
    for checkpoint in reversed(ours(Path(run_path) / FOLDER)):
        with contextlib.suppress(_Damaged):
            document = json.loads(str(read_part(checkpoint / "worker-0.npz")[PROGRESS]))
            return document.get("identity", {})
    return {}


def newest_checkpoint(run_path):
    """The name of a run's newest checkpoint, whole or not; `""` without one."""
    return max(ours(Path(run_path) / FOLDER), key=order, default=Path()).name


def add_metrics(model, metrics, worker):
    """Adds a restored checkpoint's sums to those of the steps since."""
    pairs, differences = pair(metrics, metric_variables(model), model.distribute_strategy)
    refuse(differences, "the checkpoint")
    for variable, values in pairs:
        now = values_of(model, variable)
        values = deal_out(values, len(now) * worker.count, variable, np.sum)
        mine = values[worker.index * len(now) :][: len(now)]
        for component, value, more in zip(components(model, variable), now, mine, strict=True):
            component.assign(value + more)


def shared_variables(model):
    """What is the same on all replicas: the trainable weights and the optimizer's variables."""
    return [*model.trainable_variables, *model.optimizer.variables]


def local_variables(model):
    """The rest of the model: statistics, dropout's random states, carried states.

    Keras does not count the last among a model's variables.
    """
    shared = {id(variable) for variable in model.trainable_variables}
    rest = [variable for variable in model.variables if id(variable) not in shared]
    stateful = [layer for layer in model.layers if getattr(layer, "stateful", False)]
    return rest + [state for layer in stateful for state in keras.tree.flatten(layer.states)]


def metric_variables(model):
    return [variable for metric in model.metrics for variable in metric.variables]


def by_path(variables):
    """`{path: variable}`; what shares its path with one before is numbered: `path#2`."""
    found = {}
    for variable in variables:
        path, number = variable.path, 1
        while path in found:
            number += 1
            path = f"{variable.path}#{number}"
        found[path] = variable
    return found


def pair(saved, variables, strategy=None):
    """Finds the array that was saved for each variable.

    Args:
        saved: arrays by path, or numbered in the variables' order.
        variables: Keras variables.
        strategy: where each array has a value for each replica, the replicas of now.

    Returns:
        `[(variable, array), …]` and a list of texts, one for each difference.
    """
    own = by_path(variables)
    if list(saved) == [str(index) for index in range(len(saved))]:
        if len(saved) != len(own):
            return [], [f"it has {len(saved)} values for the model's {len(own)} variables"]
        saved = dict(zip(own, saved.values(), strict=True))
    there, here = by_form(saved), by_form(own)
    pairs, differences = [], []
    for form in {**there, **here}:
        names, paths = there.get(form, []), here.get(form, [])
        if set(names) == set(paths):
            names = paths
        if len(names) != len(paths):
            differences += [f"{one} is in the checkpoint only" for one in names if one not in own]
            differences += [f"{one} is in the model only" for one in paths if one not in saved]
            continue
        for name, path in zip(names, paths, strict=True):
            value, shape = saved[name], tuple(own[path].shape)
            saved_shape = value.shape[1:] if strategy else value.shape
            if saved_shape == shape or (strategy and can_be_dealt_out(strategy, value, shape)):
                pairs.append((own[path], value))
            else:
                differences.append(f"{path} is {list(saved_shape)} there and {list(shape)} here")
    return pairs, differences


def by_form(paths):
    """Paths that differ in Keras's counters alone, together and in order."""
    found = defaultdict(list)
    for path in paths:
        found[COUNTER.sub("", path)].append(path)
    return found


def refuse(differences, checkpoint, versions=VERSIONS):
    """Raises a `FitError` that names some of the differences, if there are any."""
    if not differences:
        return
    shown = "; ".join(differences[:MOST_DIFFERENCES_SHOWN])
    if len(differences) > MOST_DIFFERENCES_SHOWN:
        shown += f"; and {len(differences) - MOST_DIFFERENCES_SHOWN} more"
    if versions != VERSIONS:
        shown += f" (saved with {versions}, this is {VERSIONS})"
    raise FitError(
        f"{checkpoint} does not fit the model: {shown}. Continue with the model and the versions "
        "that saved it, or name another folder",
        "output_dir",
    )


def components(model, variable):
    """A variable's values on this worker's replicas, as `tf.Variable`s."""
    return model.distribute_strategy.experimental_local_results(variable.value)


def values_of(model, variable):
    """`[replicas of this worker, …]`."""
    return np.stack([np.asarray(component) for component in components(model, variable)])


def assign(model, variable, values, worker):
    """Gives this worker's replicas their parts of `[replicas of all workers, …]`."""
    mine = components(model, variable)
    values = deal_out(values, len(mine) * worker.count, variable, np.mean)
    for component, value in zip(mine, values[worker.index * len(mine) :], strict=False):
        component.assign(tf.cast(value, component.dtype))


def can_be_dealt_out(strategy, values, shape):
    """Whether a state's `[replicas then, rows, …]` are as many rows as the replicas of now have."""
    if len(shape) < 2 or values.shape[2:] != shape[1:]:
        return False
    return values.shape[0] * values.shape[1] == strategy.num_replicas_in_sync * shape[0]


def deal_out(values, replicas, variable, merge):
    """`[replicas then, …]` to `[replicas now, …]`.

    Args:
        values: one for each replica of the run that saved them.
        replicas: how many there are now.
        variable: that they are for.
        merge: `np.mean` or `np.sum`, for values that rows do not belong to.
    """
    shape = tuple(variable.shape)
    if len(values) == replicas and values.shape[1:] == shape:
        return values
    if values.shape[1:] != shape:  # A state's rows, spread over more replicas or fewer.
        return values.reshape(replicas, *shape)
    if np.issubdtype(values.dtype, np.floating):
        merged = merge(values, axis=0, dtype=np.float64).astype(values.dtype)
        if merge is np.sum:
            return np.stack([merged, *[np.zeros_like(merged)] * (replicas - 1)])
        return np.stack([merged] * replicas)
    return np.stack([values[0]] * replicas)


def storable(array):
    """The array; bfloat16, which npz files do not know, as float32."""
    return array.astype("float32") if array.dtype.kind == "V" else array


def of_kind(kind, arrays):
    """`{name: array}` of one kind, in the order in which they were saved."""
    prefix = f"{kind}/"
    return {
        name.removeprefix(prefix): array
        for name, array in arrays.items()
        if name.startswith(prefix)
    }


def merged(kind, parts):
    """The same for the replicas of all workers, `[replicas, …]`."""
    values = zip(*(of_kind(kind, part).values() for part in parts), strict=True)
    return dict(zip(of_kind(kind, parts[0]), map(np.concatenate, values), strict=True))


def read(checkpoint):
    """What the checkpoint says of itself, and its shared, local and metrics' values by name."""
    parts = [read_part(checkpoint / "worker-0.npz")]
    document = json.loads(str(parts[0][PROGRESS]))
    for index in range(1, document["workers"]):
        parts.append(read_part(checkpoint / f"worker-{index}.npz"))
        if json.loads(str(parts[-1][PROGRESS]))["steps"] != document["steps"]:
            raise _Damaged(f"worker-{index}.npz is of another step")
    try:
        local, metrics = merged("local", parts), merged("metric", parts)
    except ValueError as error:
        raise _Damaged(f"the workers' files differ: {error}") from None
    return document, of_kind("shared", parts[0]), local, metrics


def read_part(path):
    """All arrays of a worker's file; reading them compares their checksums."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise _Damaged(f"{path.name} is missing") from None
    try:
        with np.load(io.BytesIO(content)) as arrays:
            found = {name: arrays[name] for name in arrays.files}
    except Exception as error:  # The bytes were read: whatever is wrong is wrong with them.
        raise _Damaged(f"{path.name}: {' '.join(str(error).split())}") from None
    if PROGRESS not in found:
        raise _Damaged(f"{path.name} says nothing of its progress")
    return found


def ours(folder):
    """The checkpoints, the oldest first: folders that have exactly the names that we give."""
    try:
        with os.scandir(folder) as entries:
            names = [entry.name for entry in entries if parse(entry.name) and entry.is_dir()]
    except FileNotFoundError:
        return []
    return sorted((Path(folder) / name for name in names), key=order)


def name_of(epochs, steps):
    """The name of a checkpoint's folder."""
    return f"epoch-{epochs:04d}" + (f"-step-{steps:06d}" if steps else "")


def parse(name):
    """Epochs and steps of a name that `name_of` gives; `None` for any other."""
    match = NAME.fullmatch(name)
    found = tuple(int(number or 0) for number in match.groups()) if match else None
    return found if found and name_of(*found) == name else None


def order(checkpoint):
    """Epochs and steps of a checkpoint."""
    return parse(checkpoint.name)
