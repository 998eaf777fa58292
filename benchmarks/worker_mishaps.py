"""What two workers can meet together: events for kills.py, each in processes of its own.

A server that has imported TensorFlow forks them, so that they start in no time. They really train
together and are really killed. One that has lost another would start its command again; here it
ends with `REJOINING` instead, and the next event or the run's end starts both.
"""

import multiprocessing
import os
import pickle
import signal
import sys
import time
import traceback
from pathlib import Path

import keras
import tensorflow as tf

import mishaps
from keras_bnrnn.fit import FitError, Stopped, fit
from keras_bnrnn.fit.waiting import SIGNALS
from workers import environments

COUNT = 2
REFUSED, REJOINING = 1, 77
LONGEST = 300.0  # Seconds that the processes may take.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["tensorflow", "keras_bnrnn.fit"])


def work(folder, environment, log, options):
    """What a process does: trains, and ends as a script would."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.update(environment)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (sys.stdout, sys.stderr):
        os.dup2(descriptor, stream.fileno())
    os.execv = lambda *arguments: os._exit(REJOINING)
    tf.config.experimental.enable_op_determinism()
    code = 0
    try:
        train(Path(folder), **options)
    except Stopped as stopped:
        code = 128 + stopped.signal
    except (FitError, OSError) as error:
        print("error:", error, file=sys.stderr)
        code = REFUSED
    except BaseException:
        traceback.print_exc()
        code = 2
    sys.stderr.flush()
    os._exit(code)


def build_model():
    """Compiled, and with few variables: each costs an exchange of its own where that is eager."""
    keras.utils.set_random_seed(1)
    model = keras.Sequential(
        [
            keras.Input((3, 2)),
            keras.layers.Flatten(),
            keras.layers.Dense(3),
            keras.layers.BatchNormalization(name="norm"),
            keras.layers.Dropout(0.5),
            keras.layers.Dense(1),
        ]
    )
    model.compile(keras.optimizers.SGD(0.01, momentum=0.9), "mse", jit_compile=False)
    return model


def train(
    folder, seed=1, epochs=mishaps.EPOCHS, data=True, after=None, number=None, keep=None, build=None
):
    """`fit`; sends itself a signal after so many batches, keeps each epoch's weights in a file."""

    def of_train(epoch):
        if not data:
            raise FitError("there are no data here", "data_dir")
        return mishaps.batches(epoch)

    kept = mishaps.WeightsOfEpochs()
    callbacks = [kept] if keep else []
    if number:
        callbacks += [mishaps.After(after, lambda: os.kill(os.getpid(), number))]
    fit(
        build or build_model,
        of_train,
        lambda: mishaps.batches(99, 2),
        epochs,
        folder,
        callbacks=callbacks,
        config={"seed": seed},
        checkpoint_steps=2,
        verbose=0,
    )
    if keep:
        Path(keep).write_bytes(pickle.dumps(kept.found))


class RunOfWorkers(mishaps.Run):
    """A `Run` of two processes; `train` returns their exit codes and what they printed."""

    count = COUNT

    def log(self, index):
        return self.folder.with_name(f"{self.folder.name}.{index}.log")

    def processes(self, of_each=None, **options):
        """Not started yet; `{index: options}` of some differ."""
        found = []
        for index, environment in enumerate(environments(self.count)):
            config = {"TF_CONFIG": environment.get("TF_CONFIG", "")}
            mine = {**options, **(of_each or {}).get(index, {})}
            arguments = (str(self.folder), config, str(self.log(index)), mine)
            found.append(FORKS.Process(target=work, args=arguments))
        return found

    def train(self, of_each=None, **options):
        processes = self.processes(of_each, **options)
        for process in processes:
            process.start()
        deadline = time.monotonic() + LONGEST
        for process in processes:
            process.join(max(deadline - time.monotonic(), 0.0))
        slow = [process for process in processes if process.is_alive()]
        for process in slow:
            process.kill()
            process.join()
        texts = [self.log(index).read_text(errors="replace") for index in range(self.count)]
        codes = [process.exitcode for process in processes]
        assert not slow, f"still at work after {LONGEST:.0f} s; {codes}\n" + "\n".join(texts)
        return codes, texts

    def finish(self):
        codes, texts = self.train()
        assert codes == [0] * self.count, f"{codes}\n" + "\n".join(texts)


def moment(rng):
    return rng.randint(1, mishaps.MOST_BATCHES)


def one_killed(run, rng):
    """The other one notices, and would start again."""
    victim = rng.randrange(COUNT)
    codes, texts = run.train({victim: {"after": moment(rng), "number": signal.SIGKILL}})
    if codes != [0, 0]:
        assert codes[victim] == -signal.SIGKILL and codes[1 - victim] == REJOINING, (codes, texts)
        assert "Another worker is gone" in texts[1 - victim], texts


def both_killed(run, rng):
    """As in a power cut, each at a moment of its own."""
    codes, texts = run.train(
        {index: {"after": moment(rng), "number": signal.SIGKILL} for index in range(COUNT)}
    )
    assert set(codes) <= {0, -signal.SIGKILL, REJOINING}, (codes, texts)


def one_told_to_stop(run, rng):
    """Both save, and the other one waits for it."""
    victim, number = rng.randrange(COUNT), rng.choice(SIGNALS)
    codes, texts = run.train({victim: {"after": moment(rng), "number": int(number)}})
    assert codes[victim] in (0, 128 + number), (codes, texts)
    assert codes[1 - victim] == (REJOINING if codes[victim] else 0), (codes, texts)


def one_never_up(run, rng):
    """The other one says whom it waits for, until it is told to end."""
    index = rng.randrange(COUNT)
    process, log = run.processes()[index], run.log(index)
    log.unlink(missing_ok=True)
    with run.unchanged():
        process.start()
        deadline = time.monotonic() + LONGEST
        expected = f"Waiting for worker {1 - index} (localhost:"
        while not (log.exists() and expected in log.read_text()):
            assert process.is_alive() and time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
        number = rng.choice(SIGNALS)
        os.kill(process.pid, number)
        process.join(LONGEST)
    assert process.exitcode is not None and process.exitcode != 0, log.read_text()


def all_refused(run, reason, of_each=None):
    """All end with the reason, and nothing is changed."""
    with run.unchanged():
        codes, texts = run.train(of_each)
    assert codes == [REFUSED] * COUNT, (codes, texts)
    assert all(reason in text for text in texts), texts


def one_with_other_flags(run, rng):
    changed = rng.choice([{"seed": 2}, {"epochs": mishaps.EPOCHS + 1}])
    name = "config" if "seed" in changed else "epochs"
    all_refused(run, f"the workers differ in {name}", {rng.randrange(COUNT): changed})


def one_without_data(run, rng):
    all_refused(run, "there are no data here", {rng.randrange(COUNT): {"data": False}})


def all_with_another_corpus(run, rng):
    if (run.folder / "config.json").exists():
        other = {"seed": 2}
        all_refused(run, "another configuration", dict.fromkeys(range(COUNT), other))


def parts(run, index):
    """A worker's file of the newest checkpoint, where it has come to write one."""
    found = (part.with_name(f"worker-{index}.npz") for part in run.parts()[-1:])
    return [path for path in found if path.exists()]


def ones_part_damaged(run, rng):
    """All go on from the checkpoint before it."""
    for victim in parts(run, rng.randrange(COUNT)):
        content = bytearray(victim.read_bytes())
        del content[rng.randrange(len(content)) :]
        victim.write_bytes(content)
    one_killed(run, rng)


def ones_parts_unreadable(run, rng):
    """By one worker alone, as where a share is away; a folder of the file's name stands for it."""
    for victim in parts(run, 1):
        aside = victim.rename(victim.with_suffix(".aside"))
        victim.mkdir()
        all_refused(run, "Is a directory")
        victim.rmdir()
        aside.rename(victim)


def all_parts_damaged(run, rng):
    before = {part: part.read_bytes() for part in run.folder.glob("checkpoints/epoch-*/*.npz")}
    if not run.read():
        return
    for part in before:
        part.write_bytes(b"PK")
    all_refused(run, "no whole checkpoint")
    for part, content in before.items():
        part.write_bytes(content)


EVENTS = (
    *(one_killed, both_killed, one_told_to_stop, one_never_up, one_with_other_flags),
    *(one_without_data, all_with_another_corpus, ones_part_damaged, ones_parts_unreadable),
    all_parts_damaged,
)


def killed_anywhere(run, rng):
    """For a `mishaps.Run`: SIGKILL, wherever its process is."""
    alone = RunOfWorkers(run.folder, run.rows, run.weights)
    alone.count = 1
    [process] = alone.processes(build=mishaps.build_model)
    process.start()
    before = run.parts()
    while process.is_alive() and run.parts() == before:
        time.sleep(0.01)
    process.join(rng.uniform(0.0, 2.0))
    process.kill()
    process.join()
    assert process.exitcode in (0, -signal.SIGKILL), alone.log(0).read_text()


def undisturbed(folder):
    """A run that meets nothing: its rows, and its weights after each epoch."""
    run, keep = RunOfWorkers(folder, None, None), folder.with_suffix(".weights")
    codes, texts = run.train({0: {"keep": f"{keep}.0"}, 1: {"keep": f"{keep}.1"}})
    assert codes == [0] * COUNT, (codes, texts)
    return run.read(), pickle.loads(Path(f"{keep}.0").read_bytes())
