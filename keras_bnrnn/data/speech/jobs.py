"""The jobs of a preparation: in this process, in several, or on a cluster's workers."""

import concurrent.futures
import contextlib
import dataclasses
import itertools
import multiprocessing
import os
import platform
import signal
import threading
from importlib import metadata

import tensorflow as tf

from keras_bnrnn.data.errors import CorpusError, missing_extra

SECONDS_TO_CONNECT = 30
JOBS_AHEAD = 1000
PACKAGES = ("tensorflow", "keras", "numpy", "pocketsphinx", "espeakng-loader", "soxr", "kaldiio")
_ONE_JOB = threading.Lock()


@dataclasses.dataclass(frozen=True)
class Where:
    """Where jobs are done: by how many processes here, or by whose workers."""

    workers: int
    scheduler: str | None


def run(function, jobs, where):
    """Yields `(job, result)` as the jobs end: in this process, in several, or on a cluster."""
    if where.scheduler:
        yield from _run_on_cluster(function, jobs, where.scheduler)
        return
    if where.workers == 1 or len(jobs) < 2:
        for job in jobs:
            yield job, function(*job)
        return
    executor = concurrent.futures.ProcessPoolExecutor(
        max_workers=min(where.workers, len(jobs)),
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_start_worker,
    )
    try:
        futures = {executor.submit(function, *job): job for job in jobs}
        for future in concurrent.futures.as_completed(futures):
            yield futures[future], future.result()
    except concurrent.futures.process.BrokenProcessPool as error:
        raise CorpusError(
            f"a worker was killed, perhaps for want of memory: run the same command again with "
            f"fewer than workers={where.workers}, it continues"
        ) from error
    finally:
        executor.shutdown(wait=True, cancel_futures=True)


def _run_on_cluster(function, jobs, scheduler):
    """The same on the workers of a Dask cluster, which gives a lost worker's jobs to others."""
    try:
        import distributed
    except ImportError as error:
        raise missing_extra("distributed", "working on a cluster", "cluster") from error
    try:
        client = distributed.Client(scheduler, timeout=SECONDS_TO_CONNECT, set_as_default=False)
    except (OSError, ValueError) as error:
        raise CorpusError(f"scheduler={scheduler}: no Dask scheduler answers ({error})") from error
    waiting, job_of = iter(jobs), {}
    versions = installed_versions()

    def submit(count):
        for job in itertools.islice(waiting, count):
            future = client.submit(_on_a_worker, versions, function, *job, pure=False)
            job_of[future] = job
            yield future

    try:
        # A scheduler keeps what it has been given in memory.
        running = distributed.as_completed(list(submit(JOBS_AHEAD)), loop=client.loop)
        for future in running:
            job, result = job_of.pop(future), future.result()
            for another in submit(1):
                running.add(another)
            yield job, result
    except (distributed.scheduler.KilledWorker, concurrent.futures.CancelledError) as error:
        raise CorpusError(
            f"scheduler={scheduler}: workers died of the same part again and again, or the "
            f"scheduler is gone ({error}); run the same command again, it continues"
        ) from error
    finally:
        client.cancel(list(job_of))
        client.close()


def _on_a_worker(versions, function, *job):
    here = installed_versions()
    if here != versions:
        differences = ", ".join(
            f"{name} {here.get(name)} instead of {versions.get(name)}"
            for name in sorted({*here, *versions})
            if here.get(name) != versions.get(name)
        )
        raise CorpusError(
            f"the worker on {platform.node()} would make another corpus: it has {differences}"
        )
    # The aligner is one in a process, however many threads the worker has.
    with _ONE_JOB:
        return function(*job)


def _start_worker():
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    with contextlib.suppress(RuntimeError):
        tf.config.threading.set_intra_op_parallelism_threads(1)
        tf.config.threading.set_inter_op_parallelism_threads(1)
        tf.config.set_visible_devices([], "GPU")
    # An interrupt from the keyboard reaches the whole group; the parent ends its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()

    def leave_with_parent():
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    # A killed parent leaves its workers waiting for jobs for ever.
    threading.Thread(target=leave_with_parent, daemon=True).start()


def installed_versions():
    """`{package: version}` of what decides a corpus's bytes."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    return versions
