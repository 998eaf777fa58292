"""On which devices and machines a model is trained, and what each of them reads.

Every worker (machine) reads its own part of the data, and each of its devices (replicas) a part
of the worker's batches. Keras's `fit` sees a `tf.distribute.DistributedDataset` with the same
number of steps on every worker, in which every batch is full, as an empty one on any device fails:
rows that are missing at the end of an epoch are filled up with zeros, so of length 0 and weight
0, and a worker whose data ends sooner goes on with batches of them.
"""

import contextlib
import errno
import json
import os
import socket
import sys
import time
from collections.abc import Iterator
from typing import NamedTuple

import tensorflow as tf

from keras_bnrnn.files import every_ten_seconds
from keras_bnrnn.fit.checkpoints import newest_checkpoint
from keras_bnrnn.fit.errors import FitError
from keras_bnrnn.fit.waiting import answers, described, waiting_for

STRATEGIES = ("auto", "none", "mirrored", "multi_worker")
TF_CONFIG_EXAMPLE = (
    '{"cluster": {"worker": ["host0:9000", "host1:9000"]}, "task": {"type": "worker", "index": 0}}'
)
# The newest checkpoint, and how often the command has been started again with it.
REJOINED = "KERAS_BNRNN_REJOINED"
MOST_TIMES_REJOINED = 5
POLL_SECONDS = 0.2
# What the collectives of the others raise when a worker is gone.
LOST = (
    tf.errors.UnavailableError,
    tf.errors.AbortedError,
    tf.errors.InternalError,
    tf.errors.CancelledError,
    tf.errors.DeadlineExceededError,
    tf.errors.FailedPreconditionError,
)


class Worker(NamedTuple):
    """One of the processes that train together; the first (the chief) writes the results."""

    index: int = 0
    count: int = 1

    @property
    def is_chief(self) -> bool:
        return self.index == 0


def make_strategy(name: str = "auto") -> tf.distribute.Strategy:
    """Returns a `tf.distribute` strategy by its name.

    Call it before anything else of TensorFlow: several machines connect before there are devices.
    Of several workers all but the first print nothing from then on.

    Args:
        name: `"auto"` (`"multi_worker"` where `TF_CONFIG` names several workers, else
            `MirroredStrategy` where two or more GPUs are visible), `"none"` (TensorFlow chooses one
            device), `"mirrored"` (all visible GPUs, or all logical CPUs where there is no GPU) or
            `"multi_worker"` (`MultiWorkerMirroredStrategy` over the workers of `TF_CONFIG`).

    Returns:
        A `tf.distribute.Strategy`; build and compile the model inside its `scope()`.

    Raises:
        FitError: for another name, or a `TF_CONFIG` that is missing or wrong.

    Example:

    >>> make_strategy("none").num_replicas_in_sync
    1
    """
    if name not in STRATEGIES:
        raise FitError(f"{name!r} is not one of {', '.join(STRATEGIES)}", "strategy")
    several = name in ("auto", "multi_worker") and len(_workers_of_environment()) > 1
    if name == "multi_worker" or (name == "auto" and several):
        if not several:
            raise FitError(
                "'multi_worker' needs the environment variable TF_CONFIG with two or more "
                f"workers, for instance {TF_CONFIG_EXAMPLE}",
                "strategy",
            )
        own, others = _own_and_others()
        meet(own, others)
        try:
            with waiting_for(others):
                strategy = tf.distribute.MultiWorkerMirroredStrategy()
        except RuntimeError as error:
            raise FitError(
                "several machines connect before TensorFlow makes anything; make datasets and "
                f"tensors later, in functions ({error})"
            ) from None
        worker = worker_of(strategy)
        print(f"Worker {worker.index} of {worker.count} is connected.", flush=True)
        if not worker.is_chief:
            print("Worker 0 prints the progress.", flush=True)
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115  to the end of the process
        return strategy
    gpus = tf.config.list_logical_devices("GPU")
    if name == "mirrored" or (name == "auto" and len(gpus) > 1):
        devices = gpus or tf.config.list_logical_devices("CPU")
        return tf.distribute.MirroredStrategy([device.name for device in devices])
    return tf.distribute.get_strategy()


def _workers_of_environment():
    """The addresses in `TF_CONFIG`, the chief's first where there is one; `[]` without any."""
    text = os.environ.get("TF_CONFIG")
    if not text:
        return []
    try:
        config = json.loads(text)
        cluster, task = config["cluster"], config["task"]
        if not set(cluster) <= {"chief", "worker"}:
            raise ValueError(f"the cluster has {sorted(cluster)}; a chief and workers can train")
        if not all(isinstance(addresses, list) for addresses in cluster.values()):
            raise ValueError("addresses must be in lists")
        workers = [address for kind in sorted(cluster) for address in cluster[kind]]
        if not 0 <= int(task["index"]) < len(cluster.get(task["type"], [])):
            raise ValueError(f"task {task} is none of the workers {workers}")
        if len(set(workers)) < len(workers):
            raise ValueError(f"an address is twice among {workers}")
        return workers
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise FitError(
            f"TF_CONFIG={text} is not as in {TF_CONFIG_EXAMPLE}: {type(error).__name__} {error}"
        ) from None


def _own_and_others():
    """By `TF_CONFIG`, this worker's address and `{index: address}` of the others."""
    workers, config = _workers_of_environment(), json.loads(os.environ["TF_CONFIG"])
    own = config["cluster"][config["task"]["type"]][int(config["task"]["index"])]
    return own, {index: address for index, address in enumerate(workers) if address != own}


def meet(own: str, others: dict[int, str]) -> None:
    """Waits until all workers are up, and says every ten seconds who is not.

    TensorFlow would wait in silence, deaf to signals. Each worker listens where TensorFlow will,
    and goes on when all others do, or TensorFlow's servers of those that have gone on already.

    Args:
        own: this worker's address.
        others: of the others, by index.
    """
    say = every_ten_seconds()
    port = int(own.rpartition(":")[2])
    while True:
        try:
            server = _listening(port)
            break
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            say(f"Waiting for port {port}, which another process has.")
            time.sleep(POLL_SECONDS)
    with server:
        while not all(answers(address) for address in others.values()):
            say(described(others))
            with contextlib.suppress(BlockingIOError):
                while True:
                    server.accept()[0].close()
            time.sleep(POLL_SECONDS)


def _listening(port):
    """A server on all addresses; of IPv4 alone where there is no other."""
    try:
        server = socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
    except (OSError, ValueError) as error:
        if getattr(error, "errno", None) == errno.EADDRINUSE:
            raise
        server = socket.create_server(("", port))
    server.setblocking(False)
    return server


def worker_of(strategy: tf.distribute.Strategy) -> Worker:
    """Which `Worker` this process is.

    Example:

    >>> worker_of(make_strategy("none"))
    Worker(index=0, count=1)
    """
    resolver = strategy.cluster_resolver
    if not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy) or resolver is None:
        return Worker()
    cluster = resolver.cluster_spec().as_dict()
    before = len(cluster.get("chief", [])) if resolver.task_type == "worker" else 0
    return Worker(before + resolver.task_id, sum(map(len, cluster.values())))


@contextlib.contextmanager
def rejoined_after_losing_a_worker(output_dir: str | os.PathLike) -> Iterator[None]:
    """Starts this process's command again when another worker is gone.

    The collectives of the workers that are left have failed and cannot be mended. The command
    connects anew, waits until the lost worker is back, and goes on from the newest checkpoint. An
    error that comes back before there is a newer one is raised in the end: no worker is to blame.

    A worker can be lost at any moment, so all that a program does with TensorFlow belongs into this
    context.

    Args:
        output_dir: the run's folder.
    """
    try:
        yield
    except LOST as error:
        if len(_workers_of_environment()) < 2:
            raise
        newest = newest_checkpoint(output_dir)
        before, _, times = os.environ.get(REJOINED, "").rpartition(":")
        times = int(times) + 1 if before == newest and times else 1
        if times > MOST_TIMES_REJOINED:
            raise
        os.environ[REJOINED] = f"{newest}:{times}"
        reason = type(error).__name__
        print(f"Another worker is gone ({reason}); waiting for it.", file=sys.stderr, flush=True)
        os.execv(sys.executable, [sys.executable, *sys.argv])


def check_batch_size(batch_size: int, examples: int, strategy: tf.distribute.Strategy) -> None:
    """Raises a `FitError` unless every replica has something to do in every full batch.

    Args:
        batch_size: rows of a batch of all replicas together.
        examples: of the training split.
        strategy: that the model is trained with.
    """
    replicas = strategy.num_replicas_in_sync
    if batch_size % replicas:
        raise FitError(
            f"a batch of {batch_size} does not divide over {replicas} replicas; use a multiple of "
            f"{replicas}, or the strategy 'none'",
            "batch_size",
        )
    if examples < replicas:
        raise FitError(
            f"the training split has {examples} examples, too few for {replicas} replicas; use "
            "the strategy 'none'"
        )


def rows_of_worker(dataset: tf.data.Dataset, worker: Worker, rows: int) -> tf.data.Dataset:
    """A worker's share of batches that all workers read alike.

    Args:
        dataset: batches of all workers, nested tensors `[batch, …]`.
        worker: whose share it is.
        rows: of a full batch of one worker.

    Example:

    >>> import tensorflow as tf
    >>> batches = tf.data.Dataset.from_tensor_slices((tf.range(4), tf.range(4))).batch(4)
    >>> for inputs, _ in rows_of_worker(batches, Worker(1, 2), rows=2).as_numpy_iterator():
    ...     print(inputs)
    [2 3]
    """
    if worker.count == 1:
        return dataset
    mine = slice(worker.index * rows, (worker.index + 1) * rows)
    return dataset.map(lambda *batch: tf.nest.map_structure(lambda values: values[mine], batch))


def distribute(
    dataset: tf.data.Dataset, strategy: tf.distribute.Strategy, rows: int, skip: int = 0
) -> tuple:
    """Deals a worker's batches out to its devices.

    Args:
        dataset: batches of this worker, of known number and at most `rows` rows: `(inputs, targets,
            weights)`, nested tensors `[rows, …]`; weights are 0 for what does not count. Several
            replicas take batches without weights only where all are full.
        strategy: that the model is trained with.
        rows: of a full batch of this worker.
        skip: leave out this many steps at the beginning.

    Returns:
        What `model.fit` takes, and how many steps it has: as many as the worker with most batches.
    """
    steps = int(dataset.cardinality())
    if steps < 0:
        raise FitError(
            "the number of batches of a dataset must be known and finite; use "
            "tf.data.experimental.assert_cardinality or take"
        )
    if strategy.num_replicas_in_sync == 1:
        return dataset.skip(skip), steps - skip
    worker = worker_of(strategy)
    replicas = strategy.num_replicas_in_sync // worker.count
    of_all = gather(strategy, steps) if worker.count > 1 else [steps]
    steps = max(of_all)
    full = all(spec.shape[0] == rows for spec in tf.nest.flatten(dataset.element_spec))
    if len(dataset.element_spec) < 3 and (not full or min(of_all) < steps):
        raise FitError(
            "several replicas train on full batches or on (inputs, targets, weights), where rows "
            "of weight 0 can be added; use batch(…, drop_remainder=True), or yield weights, a loss "
            "that averages by them (keras_bnrnn.losses.FrameMeanCrossEntropy) and weighted_metrics"
        )
    empty = tf.data.Dataset.from_tensors(
        tf.nest.map_structure(
            lambda spec: tf.zeros([rows, *(size or 1 for size in spec.shape[1:])], spec.dtype),
            dataset.element_spec,
        )
    )

    def parts_of(values):
        missing = rows - tf.shape(values)[0]
        padded = tf.pad(values, [[0, missing]] + [[0, 0]] * (len(values.shape) - 1))
        shape = tf.concat([[replicas, rows // replicas], tf.shape(padded)[1:]], 0)
        part = tf.reshape(padded, shape)
        part.set_shape([replicas, rows // replicas, *values.shape[1:]])
        return part

    def dealt_out(*batch):
        return tf.data.Dataset.from_tensor_slices(tf.nest.map_structure(parts_of, batch))

    whole = dataset.concatenate(empty.repeat()).take(steps).skip(skip).flat_map(dealt_out)
    whole = whole.apply(tf.data.experimental.assert_cardinality((steps - skip) * replicas))
    return strategy.distribute_datasets_from_function(lambda context: whole), steps - skip


def gather(strategy, value):
    """An integer of each worker, in a list that all get. Also waits for all of them."""
    return [int(one) for [one] in _gathered(strategy, [value])]


def gather_texts(strategy, text):
    """A text of each worker, in a list that all get."""
    content = text.encode()
    longest = max(gather(strategy, len(content)))
    if not longest:
        return []
    rows = _gathered(strategy, list(content.ljust(longest, b"\0")))
    end_together(strategy)  # A worker may end because of a text, and not before all have it.
    return [bytes(map(int, row)).rstrip(b"\0").decode() for row in rows]


def _gathered(strategy, values):
    """Small integers of each worker, `[workers, values]`."""
    replicas, workers = strategy.num_replicas_in_sync, worker_of(strategy).count
    # Not `strategy.gather`, which traces anew at each call and warns of it.
    placed = strategy.experimental_distribute_values_from_function(
        lambda context: (
            tf.one_hot(context.replica_id_in_sync_group, replicas)[:, tf.newaxis]
            * tf.constant(values, tf.float32)
        )
    )
    with waiting_for(_own_and_others()[1] if workers > 1 else {}):
        total = strategy.reduce(tf.distribute.ReduceOp.SUM, placed, axis=None).numpy()
    return total[:: replicas // workers]


def agree(strategy: tf.distribute.Strategy, values: dict) -> None:
    """Raises a `FitError` on all workers where one has other values than the others.

    Args:
        strategy: that they share.
        values: JSON values by name.
    """
    if worker_of(strategy).count == 1:
        return
    of_all = [json.loads(text) for text in gather_texts(strategy, json.dumps(values))]
    differences = [
        f"{name}: " + ", ".join(f"{found[name]!r} on worker {k}" for k, found in enumerate(of_all))
        for name in values
        if any(found.get(name) != of_all[0].get(name) for found in of_all)
    ]
    if differences:
        raise FitError(f"the workers differ in {'; '.join(differences)}; start all alike")


@contextlib.contextmanager
def refusals_shared(strategy: tf.distribute.Strategy) -> Iterator[None]:
    """Ends this worker with a `FitError`, too, where another one fails within this context.

    Each worker must come to it. Without it the others would wait for one that has ended.
    """
    if worker_of(strategy).count == 1:
        yield
        return
    try:
        yield
    except LOST:
        raise
    except Exception as error:
        gather_texts(strategy, " ".join(str(error).split()) or type(error).__name__)
        raise
    refused = [
        f"worker {index}: {text}" for index, text in enumerate(gather_texts(strategy, "")) if text
    ]
    if refused:
        raise FitError(f"refused, {'; '.join(refused)}")


def end_together(strategy: tf.distribute.Strategy) -> None:
    """Waits for the other workers before all end; one that ends sooner would look lost to them.

    What all have to know they know already, so one that is gone by now is no harm.

    Args:
        strategy: that they share.
    """
    if worker_of(strategy).count > 1:
        with contextlib.suppress(*LOST):
            gather(strategy, 0)
