"""What every training script shares on its command line: flags, `--help`, one-line errors.

Each script keeps its flags in a `flags.FlagValues` of its own instead of absl's global one, so
that several scripts can be imported into one process (tests do) though all of them have `--seed`:

```python
FLAGS = flags.FlagValues()
command_line.define_run_flags(FLAGS)
flags.DEFINE_integer("layers", 5, "Number of recurrent layers.", lower_bound=1, flag_values=FLAGS)

def main(argv):
    ...

if __name__ == "__main__":
    command_line.run(main, FLAGS, __doc__)
```
"""

from interrupts import INTERRUPTED  # isort: skip  First, for Ctrl-C from then on.
import ctypes
import importlib.util
import json
import logging
import math
import os
import runpy
import signal
import sys
from pathlib import Path

import absl.logging
from absl import app, flags

MODELS = ("baseline", "batch_norm")
# As a shell has them for a process that a signal ended.
EXIT_BY_SIGNAL = 128
EXIT_STOPPED, EXIT_INTERRUPTED = 143, 130
STOPPING = [
    getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)
]  # Ctrl-C is Python's.
PARENT = "KERAS_BNRNN_PARENT"
PR_SET_PDEATHSIG = 1  # of <linux/prctl.h>


def module_by_file(name):
    """A module of keras_bnrnn that needs no Keras, by its file, for its package imports Keras."""
    path = Path(__file__).resolve().parent.parent / "keras_bnrnn" / name
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


files = module_by_file("files.py")


class CommandError(Exception):
    """Something the caller of a script can put right; printed as one line, without a traceback."""


class Stopped(BaseException):
    """The script was told by a signal to stop and has; printed as one line.

    As KeyboardInterrupt no `Exception`: what goes on after any error of a file must not go on now.
    """

    def __init__(self, message, number=signal.SIGTERM):
        super().__init__(message)
        self.number = number


class PathParser(flags.ArgumentParser):
    """Expands `~`; refuses URLs, which would become local folders, unless they may be `remote`.

    `several` may be separated by commas.
    """

    def __init__(self, remote=False, several=False):
        super().__init__()
        self.remote, self.several = remote, several

    def parse(self, argument):
        parts = argument.split(",") if self.several else [argument]
        return ",".join(map(self._parse_one, parts))

    def _parse_one(self, argument):
        path = os.path.expanduser(argument)
        if files.URL.match(path) and not self.remote:
            raise ValueError(
                "this is a URL; name a path of this machine, which may be a mounted one"
            )
        if path.startswith("~"):
            raise ValueError("this is the home of nobody here; give the whole path")
        return path


def path_argument(text):
    """A positional argument that is a path, as a `PathParser` makes it."""
    try:
        return PathParser().parse(text)
    except ValueError as error:
        raise CommandError(f"{text}: {error}") from None


def define_path(name, default, help_text, flag_values, **kinds):
    """Defines a flag that is a path.

    Args:
        name, default, help_text, flag_values: as absl's `flags.DEFINE_string` has them.
        **kinds: `remote=True`: URLs will do, since the path is read by way of `tf.io.gfile` alone;
            `several=True`: there may be several, separated by commas.
    """
    flags.DEFINE(PathParser(**kinds), name, default, help_text, flag_values=flag_values)


def define_run_flags(flag_values):
    """Defines the flags that every training script has."""
    # Here, because not every script needs keras_bnrnn.
    from keras_bnrnn.fit.distribution import STRATEGIES
    from keras_bnrnn.fit.precision import PRECISIONS

    define_path(
        "output_dir",
        None,
        "Folder of the run: checkpoints, history.csv, results.json and the models. The same "
        "command on the same folder continues an interrupted run.",
        flag_values,
    )
    flags.DEFINE_enum(
        "model",
        "batch_norm",
        MODELS,
        "baseline: keras.layers.LSTM; batch_norm: BatchNormLSTM.",
        flag_values=flag_values,
    )
    flags.DEFINE_enum(
        "strategy",
        "auto",
        STRATEGIES,
        "none: one device. mirrored: all devices of this machine. multi_worker: the machines that "
        "TF_CONFIG names; start the same command on each, with a shared --output_dir. auto: "
        "multi_worker with such a TF_CONFIG, mirrored with two GPUs or more, else none.",
        flag_values=flag_values,
    )
    flags.DEFINE_bool(
        "synchronized",
        True,
        "Several devices normalise over all their rows together, and the result is that of one "
        "device. false: each normalises its own share, without waiting.",
        flag_values=flag_values,
    )
    flags.DEFINE_enum(
        "mixed_precision",
        "none",
        list(PRECISIONS),
        "Compute in half precision and keep the weights in float32 (float16 scales the loss).",
        flag_values=flag_values,
    )
    flags.DEFINE_bool(
        "jit_compile",
        False,
        "Compile the step with XLA. Not with several devices.",
        flag_values=flag_values,
    )
    flags.DEFINE_integer(
        "steps_per_execution",
        1,
        "Steps between two returns to Python. With several devices it must be 1.",
        lower_bound=1,
        flag_values=flag_values,
    )
    flags.DEFINE_bool(
        "deterministic",
        False,
        "Use deterministic operations only: two runs, killed or not, end with the same bits.",
        flag_values=flag_values,
    )
    flags.DEFINE_integer(
        "checkpoint_steps",
        1000,
        "Write a checkpoint after every so many steps of an epoch, and before its evaluation. 0: "
        "only at the end of an epoch.",
        lower_bound=0,
        flag_values=flag_values,
    )
    flags.DEFINE_bool(
        "tensorboard",
        False,
        "Write files for TensorBoard into OUTPUT_DIR/tensorboard: losses, metrics, the gaps "
        "between batch and population statistics, learning rate, gradient norm, histograms of "
        "gamma and moving variances, and the input pipeline's share of the time.",
        flag_values=flag_values,
    )
    flags.DEFINE_bool(
        "restart",
        False,
        "Start again if every checkpoint of a run is damaged or gone. Its models and tables move "
        "to OUTPUT_DIR/damaged-1 first. If one checkpoint is whole, the run goes on from there.",
        flag_values=flag_values,
    )
    flags.DEFINE_bool(
        "renorm",
        False,
        "Of batch_norm: batch renormalisation. Training then normalises with the population's "
        "statistics, as inference does. Only the gradient is the mini-batch's.",
        flag_values=flag_values,
    )
    flags.DEFINE_float(
        "momentum",
        0.9,
        "Momentum of the batch-normalised layers' population statistics.",
        lower_bound=0.0,
        upper_bound=1.0,
        flag_values=flag_values,
    )
    flags.DEFINE_integer(
        "seed",
        0,
        "Seed of the initial weights, of dropout and of the data's order.",
        lower_bound=0,
        upper_bound=2**32 - 1,
        flag_values=flag_values,
    )


def values(flag_values):
    """`{--name: value}` of all flags that must be alike on several machines: all but paths."""
    return {
        f"--{name}": flag_values[name].value
        for name in flag_values
        if not isinstance(flag_values[name].parser, PathParser)
    }


def define_normalization_flags(flag_values):
    """Defines how `--model=batch_norm` normalises, for scripts that leave the choice."""
    flags.DEFINE_enum(
        "normalization",
        "frame",
        ["frame", "sequence"],
        "Of batch_norm. frame: each time step over the rows of the batch. sequence: all time steps "
        "at once; an output then knows of later steps, so the training figures of a language model "
        "mean nothing.",
        flag_values=flag_values,
    )
    flags.DEFINE_bool(
        "normalize_recurrent",
        False,
        "Of batch_norm: normalise the recurrent term too.",
        flag_values=flag_values,
    )
    flags.DEFINE_float(
        "gamma", 1.0, "Of batch_norm: initial value of every gamma.", flag_values=flag_values
    )


def require_flag(flag_values, name):
    """Returns the flag's value, or raises a `CommandError` where it was not given."""
    value = flag_values[name].value
    if value in (None, ""):
        raise CommandError(f"--{name} is missing: {flag_values[name].help}")
    return value


def parse(flag_values, argv, description=""):
    """Parses `argv` (program name first) and returns the positional arguments after it.

    Raises:
        SystemExit: with code 0 after `--help`, with code 2 after a flag that is wrong.
    """
    if any(argument in ("--help", "-help", "-h", "--helpfull") for argument in argv[1:]):
        print(f"{(description or '').strip()}\n\nflags:\n{flag_values.get_help()}")
        raise SystemExit(0)
    try:
        positional = flag_values(argv)[1:]
        for name in flag_values:
            value = flag_values[name].value
            if isinstance(value, float) and not math.isfinite(value):  # Bounds let nan through.
                raise flags.IllegalFlagValueError(f"flag --{name}={value}: not a finite number")
        return positional
    except flags.Error as error:
        print(f"error: {_one_line(error)} (--help lists the flags)", file=sys.stderr)
        raise SystemExit(2) from None


def run(main, flag_values, description="", expected_errors=(), positional=False):
    """Runs `main(argv)` under absl's `app.run`; expected errors end as one line and code 1.

    Args:
        main: a function of `argv`: the program's name and the positional arguments.
        flag_values: the script's `flags.FlagValues`.
        description: what `--help` prints above the flags, usually the script's `__doc__`.
        expected_errors: exception classes that are the caller's to put right, besides
            `CommandError`, `OSError` and the missing of an optional package. Where one has an
            `argument`, the flag of that name (`--output_dir` for a `folder`) is put in front of
            its message.
        positional: whether the script takes arguments that are no flags.
    """

    def parse_flags(argv):
        positional = parse(flag_values, argv, description)
        flags.FLAGS([argv[0]])
        return [argv[0], *positional]

    def guarded_main(argv):
        # TensorFlow tells each asset it writes and each variable it reduces, by both loggers.
        absl.logging.set_verbosity(absl.logging.WARNING)
        logging.getLogger("tensorflow").setLevel(logging.WARNING)
        for number in STOPPING:
            if signal.getsignal(number) != signal.SIG_IGN:  # As under nohup.
                signal.signal(number, stop)
        try:
            stop_with_parent()
            if argv[1:] and not positional:
                raise CommandError(f"unexpected argument {argv[1]!r}; every option is a --flag")
            return main(argv)
        except (CommandError, OSError, ModuleNotFoundError, *expected_errors) as error:
            argument = getattr(error, "argument", None)
            flag = "output_dir" if argument == "folder" else argument
            print(f"error: {f'--{flag}: ' if flag else ''}{_one_line(error)}", file=sys.stderr)
            return 1
        except Stopped as stopped:
            print(f"stopped: {_one_line(stopped)}", file=sys.stderr)
            return EXIT_BY_SIGNAL + stopped.number
        except KeyboardInterrupt:
            print(INTERRUPTED, file=sys.stderr)
            return EXIT_INTERRUPTED

    app.run(guarded_main, flags_parser=parse_flags)


def call(script, arguments):
    """Runs a script in this process as its command would, so that TensorFlow starts once for many.

    Args:
        script: its path.
        arguments: of its command line.

    Returns:
        The exit code.
    """
    argv, handlers = sys.argv, {number: signal.getsignal(number) for number in STOPPING}
    sys.argv = [str(script), *map(str, arguments)]
    try:
        runpy.run_path(str(script), run_name="__main__")
    except SystemExit as ended:
        return ended.code or 0
    finally:
        sys.argv = argv
        for number, handler in handlers.items():
            signal.signal(number, handler)


def stop(number, frame):
    """What such a signal does where there is nothing to save."""
    raise Stopped(f"{signal.Signals(number).name}; the same command continues", number)


def read_json(path, form):
    """What a file of JSON holds; a `CommandError` where it is not of this form (see `misfit`)."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CommandError(f"{path} is missing; put a copy of it back") from None
    except ValueError as error:
        raise CommandError(f"{path} is damaged ({error}); put a copy of it back") from None
    wrong = files.misfit(found, form)
    if wrong:
        raise CommandError(f"{path} {wrong}; put a copy of it back")
    return found


def child_environment():
    """The environment of a script that is to stop when this process is gone, however it ended."""
    return {**os.environ, PARENT: str(os.getpid())}


def stop_with_parent():
    """Asks Linux for a SIGTERM at the parent's death, where `child_environment` says so."""
    parent = os.environ.pop(PARENT, None)
    if parent is None or sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != int(parent):
        raise Stopped("what had started it is gone")


def fit_verbosity():
    """Keras's `verbose`: a progress bar on a terminal, else one line per epoch."""
    return 1 if sys.stdout.isatty() else 2


def _one_line(error):
    return " ".join(str(error).split()) or type(error).__name__
