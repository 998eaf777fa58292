"""Kills training runs at random moments and checks that they end as if nothing had happened.

    python benchmarks/kills.py --events=200
    python benchmarks/kills.py --kills=20
    python benchmarks/kills.py --script=train_speech --workers=2 --kills=3

Each script is run once undisturbed and once with SIGKILL at random moments (steps, checkpoints,
evaluations), started again with the same command after each. Both use deterministic operations, so
history.csv must be the same to the byte and the weights to the bit. With two workers one of them,
chosen by chance, is killed and started again; the other must come back by itself.

--events draws from all that a folder (mishaps.py) and two workers (worker_mishaps.py) can meet:
nothing may be lost or mixed, and each run must end with the history and the weights of an
undisturbed one. The same command on the same --folder goes on after the last event of events.log.
"""

import argparse
import contextlib
import io
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from workers import environments

TRAINING = Path(__file__).resolve().parent.parent / "training"
SCRIPTS = ("train_speech", "train_ptb")
LONGEST_RUN = 1800.0
DELAY = 1.5  # Longest wait between a new checkpoint and the kill, in seconds.


def make_corpus(folder):
    """A small corpus of random features."""
    from input_pipeline import RandomSource
    from keras_bnrnn.data.speech.preparation import prepare_corpus

    prepare_corpus(RandomSource(60), folder)


def flags_of(script, folder, kills):
    """A few minutes' work, long enough for so many kills, in which a checkpoint is never far."""
    epochs = 4 + kills // 2
    shared = ["--deterministic", "--checkpoint_steps=4", f"--epochs={epochs}", "--seed=3"]
    if script == "train_ptb":
        return [*shared, "--steps_per_epoch=24"]
    corpus = folder / "corpus"
    if not corpus.exists():
        make_corpus(corpus)
    model = ["--layers=2", "--units=16", "--batch_size=2", "--max_frames=1300"]
    return [*shared, *model, f"--data_dir={corpus}"]


class Job:
    """A training command in one process or in several workers."""

    def __init__(self, script, flags, output_dir, workers):
        self.output_dir = output_dir
        self.command = [
            sys.executable,
            str(TRAINING / f"{script}.py"),
            *flags,
            f"--output_dir={output_dir}",
        ]
        self.environments = environments(workers)
        self.log = open(f"{output_dir}.log", "ab")  # noqa: SIM115  its processes outlive this line
        self.processes = [self.start(index) for index in range(workers)]

    def start(self, index):
        return subprocess.Popen(
            self.command, env=self.environments[index], stdout=self.log, stderr=self.log
        )

    def kill_and_start_again(self, index):
        self.processes[index].send_signal(signal.SIGKILL)
        self.processes[index].wait()
        self.processes[index] = self.start(index)

    def running(self):
        codes = [process.poll() for process in self.processes]
        if any(code not in (None, 0) for code in codes):
            tail = Path(self.log.name).read_text(errors="replace")[-3000:]
            raise RuntimeError(f"a process ended with exit codes {codes}\n{tail}")
        return None in codes

    def newest_checkpoint(self):
        names = [path.parent.name for path in self.output_dir.glob("checkpoints/*/worker-0.npz")]
        return max(names, default="")

    def wait_for_checkpoint(self, after):
        """Until there is one after this one, or the job is done."""
        while self.running() and self.newest_checkpoint() <= after:
            time.sleep(0.01)


def finish(job, kills=0, rng=None):
    """Lets a job run to its end, with so many kills on the way; returns how many there were."""
    began = time.monotonic()
    done = 0
    while job.running():
        if time.monotonic() - began > LONGEST_RUN:
            raise RuntimeError(f"{job.output_dir} has not ended after {LONGEST_RUN:.0f} s")
        if done == kills:
            time.sleep(0.1)
            continue
        before = job.newest_checkpoint()
        job.wait_for_checkpoint(before)
        wait = rng.uniform(0, DELAY)
        time.sleep(wait)
        if job.running():
            index = rng.randrange(len(job.processes))
            job.kill_and_start_again(index)
            done += 1
            print(
                f"  kill {done}: worker {index}, {wait:.2f} s after {before or 'the start'}",
                flush=True,
            )
    return done


def differences(one, other):
    """What differs between two finished runs."""
    import keras
    import numpy as np

    import keras_bnrnn  # noqa: F401  registers the layers

    found = []
    if (one / "history.csv").read_bytes() != (other / "history.csv").read_bytes():
        found.append("history.csv")
    for name in ("best.keras", "final.keras"):
        models = [keras.saving.load_model(run / name, compile=False) for run in (one, other)]
        for weight, same in zip(models[0].weights, models[1].weights, strict=True):
            if not np.array_equal(weight, same):
                largest = np.abs(np.asarray(weight) - np.asarray(same)).max()
                found.append(f"{name}: {weight.path} by {largest:.1e}")
    return found


def disturb(script, flags, folder, kills, workers, rng):
    """Runs a script both ways; returns how many kills there were and what differs."""
    runs = [folder / f"{script}-{name}" for name in ("undisturbed", "killed")]
    finish(Job(script, flags, runs[0], workers))
    done = finish(Job(script, flags, runs[1], workers), kills, rng)
    return done, differences(*runs)


@contextlib.contextmanager
def quiet():
    """Keeps back what is printed, but where something fails."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            yield
    except BaseException:
        print(said.getvalue())
        raise


def meet(folder, count, seed):
    """Lets runs meet so many events, and come to their ends; goes on where it was stopped.

    Args:
        folder: for the runs, and for `events.log`, whose lines are the events that are done.
        count: of events, drawn like cards: each comes once before any comes again.
        seed: chooses them and their moments.
    """
    import mishaps
    import worker_mishaps
    from keras_bnrnn.files import unused

    of_one = (*mishaps.EVENTS, worker_mishaps.killed_anywhere)
    kinds = {
        "alone": (mishaps, mishaps.Run, of_one),
        "two": (worker_mishaps, worker_mishaps.RunOfWorkers, worker_mishaps.EVENTS),
    }
    cards = [(kind, event) for kind, (_, _, events) in kinds.items() for event in events]
    log = folder / "events.log"
    log.touch()
    undisturbed, runs = {}, {}
    for kind, (module, _, _) in kinds.items():
        with quiet():
            undisturbed[kind] = module.undisturbed(unused(folder / f"{kind}-undisturbed"))

    def say(line):
        print(line, flush=True)
        with log.open("a") as file:
            print(line, file=file)

    def end(run):
        with quiet():
            run.finish()
            run.check()
            run.check_end()
        say(f"{run.folder.name}: history.csv and weights are the same to the bit")

    done = sum(line.startswith(" ") for line in log.read_text().splitlines())
    for number in range(done, count):
        turn, place = divmod(number, len(cards))
        kind, event = random.Random(f"{seed}, {turn}").sample(cards, len(cards))[place]
        if kind not in runs:
            runs[kind] = kinds[kind][1](unused(folder / kind), *undisturbed[kind])
        run = runs[kind]
        with quiet():
            event(run, random.Random(f"{seed}, event {number}"))
            run.check()
        say(f"  {number + 1}: {run.folder.name}, {event.__name__}; {len(run.read())} epochs")
        if run.finished:
            end(runs.pop(kind))
    for run in runs.values():
        end(run)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--script", choices=SCRIPTS, help="one of them; not given: both")
    parser.add_argument("--kills", type=int, default=20, help="of each script's run")
    parser.add_argument("--events", type=int, help="instead, so many of all kinds on tiny runs")
    parser.add_argument("--workers", type=int, default=1, help="processes that train together")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--folder", help="keep the runs and their logs here")
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)
    failed = False
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(arguments.folder or temporary)
        folder.mkdir(parents=True, exist_ok=True)
        if arguments.events:
            meet(folder, arguments.events, arguments.seed)
            return
        for script in [arguments.script] if arguments.script else SCRIPTS:
            print(f"{script}, {arguments.workers} worker(s)", flush=True)
            flags = flags_of(script, folder, arguments.kills)
            kills, found = disturb(script, flags, folder, arguments.kills, arguments.workers, rng)
            failed |= bool(found)
            result = "; ".join(found) or "history.csv and weights are the same to the bit"
            print(f"{script}: {kills} kills; {result}", flush=True)
    sys.exit(failed)


if __name__ == "__main__":
    main()
