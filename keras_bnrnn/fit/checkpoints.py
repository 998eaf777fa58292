"""Checkpoints: everything that a training run needs to go on as if nothing had happened.

    checkpoints/epoch-0003/             after 3 epochs
    checkpoints/epoch-0003-step-000120/ after 3 epochs and 120 steps of the next
        worker-0.npz                    weights, optimizer, and what worker 0's replicas differ in
        worker-1.npz                    what worker 1's replicas differ in
    checkpoints/wanted-epoch-…          a worker that is told to stop wants this one

Each worker writes its file aside and renames it, and a checkpoint is whole when all of them are
there and can be read (an npz file has checksums). Replicas differ in the states that a stateful
layer carries, in dropout's random states, in statistics that are not synchronised and in the
running sums of metrics. They are kept for each replica, and dealt out anew where a run goes on with
another number of them: states by rows, statistics as their mean.

`keras.callbacks.BackupAndRestore` writes weights and epoch one after the other, so a kill between
the two repeats or skips an epoch; it keeps one replica's states, and no metrics.
"""

import io
import json
import shutil
import sys
import zipfile
from pathlib import Path

import keras
import numpy as np

from keras_bnrnn.files import flush, write_aside

FOLDER = "checkpoints"
KEPT = 2
PROGRESS = "progress"
WANTED = "wanted-"


class Checkpoints:
    """The checkpoints of a run.

    Args:
        run_path: the run's folder, which has that of the checkpoints.
        worker: the `Worker` that this process is.
    """

    def __init__(self, run_path, worker):
        self.folder = Path(run_path) / FOLDER
        self.worker = worker

    def save(self, model, epochs, steps, progress):
        """Writes a checkpoint and removes all but the newest two.

        Args:
            model: compiled; its optimizer built.
            epochs, steps: finished epochs, and steps of the one after them.
            progress: JSON values to be returned by `restore`.
        """
        checkpoint = self.folder / name_of(epochs, steps)
        checkpoint.mkdir(parents=True, exist_ok=True)
        arrays = {}
        if self.worker.is_chief:
            arrays |= numbered("shared", [np.asarray(v) for v in shared_variables(model)])
        arrays |= numbered("local", [values_of(model, v) for v in local_variables(model)])
        arrays |= numbered("metric", [values_of(model, v) for v in metric_variables(model)])
        document = {
            "epochs": epochs,
            "steps": steps,
            "workers": self.worker.count,
            "progress": progress,
        }
        arrays[PROGRESS] = np.array(json.dumps(document))
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)
        write_aside(checkpoint / f"worker-{self.worker.index}.npz", buffer.getvalue())
        flush(checkpoint)
        flush(self.folder)
        if self.worker.is_chief:
            for old in sorted(self.folder.glob("epoch-*"), key=order)[:-KEPT]:
                shutil.rmtree(old)
            for wanted in self.folder.glob(f"{WANTED}*"):
                if order(Path(wanted.name.removeprefix(WANTED))) < (epochs, steps):
                    wanted.unlink()

    def want(self, epochs, steps):
        """Asks all workers for a checkpoint."""
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / (WANTED + name_of(epochs, steps))).touch()

    def is_wanted(self, epochs, steps):
        """Whether a worker has asked for this checkpoint."""
        return (self.folder / (WANTED + name_of(epochs, steps))).exists()

    def restore(self, model):
        """Puts the newest whole checkpoint into the model; reports damaged ones on stderr.

        Returns:
            `(epochs, steps, progress, metrics)`, or `None` if there is no whole checkpoint. The
            metrics are for `add_metrics` when the epoch goes on.
        """
        newest_first = sorted(self.folder.glob("epoch-*"), key=order, reverse=True)
        for checkpoint in newest_first:
            try:
                document, parts = self._read(checkpoint)
                found = self._assign(model, parts)
            except (OSError, ValueError, KeyError, zipfile.BadZipFile, EOFError) as error:
                reason = " ".join(str(error).split())
                print(f"warning: skipping damaged {checkpoint}: {reason}", file=sys.stderr)
                continue
            return document["epochs"], document["steps"], document["progress"], found
        if newest_first:
            print("warning: no whole checkpoint is left; starting again", file=sys.stderr)
        return None

    def _read(self, checkpoint):
        """The progress, and the arrays of all workers."""
        parts = [read_part(checkpoint / "worker-0.npz")]
        document = json.loads(str(parts[0][PROGRESS]))
        for index in range(1, document["workers"]):
            parts.append(read_part(checkpoint / f"worker-{index}.npz"))
            if json.loads(str(parts[-1][PROGRESS]))["steps"] != document["steps"]:
                raise ValueError(f"worker-{index}.npz is of another step")
        return document, parts

    def _assign(self, model, parts):
        shared = of_kind("shared", parts[0])
        variables = shared_variables(model)
        if [v.shape for v in variables] != [v.shape for v in shared]:
            raise ValueError("its weights have other shapes than the model's")
        for variable, value in zip(variables, shared, strict=True):
            variable.assign(value)
        local = [np.concatenate(values) for values in zip(*map(of_local, parts), strict=True)]
        for variable, values in zip(local_variables(model), local, strict=True):
            assign(model, variable, values, self.worker)
        return [
            np.concatenate(values)
            for values in zip(*(of_kind("metric", part) for part in parts), strict=True)
        ]


def newest_checkpoint(run_path):
    """The name of a run's newest checkpoint, whole or not; `""` without one."""
    return max((Path(run_path) / FOLDER).glob("epoch-*"), key=order, default=Path()).name


def add_metrics(model, metrics, worker):
    """Adds a restored checkpoint's sums to those of the steps since."""
    for variable, values in zip(metric_variables(model), metrics, strict=True):
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
        component.assign(value)


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


def numbered(kind, values):
    return {f"{kind}/{index}": value for index, value in enumerate(values)}


def of_kind(kind, arrays):
    """The arrays that `numbered` numbered, in order."""
    found = []
    while f"{kind}/{len(found)}" in arrays:
        found.append(arrays[f"{kind}/{len(found)}"])
    return found


def of_local(arrays):
    return of_kind("local", arrays)


def read_part(path):
    """All arrays of a worker's file; reading them compares their checksums."""
    with np.load(path) as arrays:
        return {name: arrays[name] for name in arrays.files}


def name_of(epochs, steps):
    """The name of a checkpoint's folder."""
    return f"epoch-{epochs:04d}" + (f"-step-{steps:06d}" if steps else "")


def order(checkpoint):
    """Epochs and steps of a checkpoint's name."""
    parts = checkpoint.name.split("-")
    return int(parts[1]), int(parts[3]) if len(parts) > 3 else 0
