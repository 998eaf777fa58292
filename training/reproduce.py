"""Runs the experiments of results/README.md, and writes that report.

    python training/reproduce.py --data_dir=DIR
    python training/reproduce.py --only=pixel-digits
    python training/reproduce.py --quick --only=pixel-digits

DIR holds ptb/ (Mikolov's ptb.train.txt, ptb.valid.txt and ptb.test.txt) and spoken-digits/ (audio
with transcripts in LibriSpeech's layout). Every run is a training script in a process of its own,
then evaluate.py. A finished run is copied to results/ and never made again. After a kill the same
command goes on from the runs' checkpoints in --work_dir. After Ctrl-C or SIGTERM the epochs of
unfinished runs are in results/ too, where the next report finds them.
"""

import command_line  # isort: skip  First, for Ctrl-C while the others are imported.
import hashlib
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import tensorflow as tf
from absl import flags
from tqdm import tqdm

from command_line import CommandError
from keras_bnrnn.files import write_aside
from keras_bnrnn.fit.errors import FitError
from keras_bnrnn.fit.tables import read_history, read_results
from paper import report
from paper.experiments import CORPORA, EXPERIMENTS, POPULATION, QUICK_EPOCHS
from recipes.language_task import read_text
from recipes.tasks import EVALUATION_FILE

SCRIPTS = Path(__file__).resolve().parent
REPOSITORY = SCRIPTS.parent
POLL_SECONDS = 2.0

FLAGS = flags.FlagValues()
command_line.define_path(
    "data_dir", None, "Folder with ptb/ and spoken-digits/; pixels and German need none.", FLAGS
)
command_line.define_path(
    "work_dir",
    str(REPOSITORY / "runs" / "reproduce"),
    "Folder of the runs in progress: checkpoints, models, logs.",
    FLAGS,
)
command_line.define_path(
    "results_dir", str(REPOSITORY / "results"), "Folder of the finished ones.", FLAGS
)
flags.DEFINE_multi_enum(
    "only",
    None,
    [*EXPERIMENTS, "population"],
    "Make these experiments alone; population: those runs of the others that show a normalised "
    "model of each kind with three kinds of statistics.",
    flag_values=FLAGS,
)
flags.DEFINE_integer("jobs", 2, "Runs side by side.", lower_bound=1, flag_values=FLAGS)
flags.DEFINE_bool(
    "quick",
    False,
    "Small models, one seed and two epochs, to see that all of it runs; the figures mean nothing "
    "and go to WORK_DIR/quick.",
    flag_values=FLAGS,
)


@dataclass(frozen=True)
class Run:
    """One training: where it works, where its results go, and the commands that make it."""

    name: str
    arguments: tuple
    epochs: int
    work_dir: Path
    results_dir: Path
    commands: tuple

    @property
    def experiment(self):
        return self.name.partition("/")[0]

    @property
    def done(self):
        """Whether these very arguments have been run."""
        if not (self.results_dir / "results.json").is_file():
            return False
        return read_results(self.results_dir).get("arguments") == list(self.arguments)

    @property
    def finished_epochs(self):
        history = self.work_dir / "history.csv"
        return len(read_history(self.work_dir)) if history.is_file() else 0

    @property
    def seconds_per_epoch(self):
        """Of a run that has ended an epoch, else `None`."""
        for folder in (self.results_dir, self.work_dir):
            if (folder / "results.json").is_file():
                return statistics.median(read_results(folder).get("seconds_per_epoch") or [0.0])
        return None


def main(argv):
    work_dir, results_dir = Path(FLAGS.work_dir), Path(FLAGS.results_dir)
    if FLAGS.quick:
        work_dir = work_dir / "quick"
        results_dir = work_dir / "results"
    names = FLAGS.only or list(EXPERIMENTS)
    chosen = POPULATION if "population" in names else ()
    experiments = [
        name
        for name in EXPERIMENTS
        if name in names or any(run.startswith(f"{name}/") for run in chosen)
    ]
    needed = dict.fromkeys(EXPERIMENTS[name].data for name in experiments)
    sources = {name: data_of(CORPORA[name].data if name in CORPORA else name) for name in needed}
    for folder in (work_dir, results_dir):
        check_writable(folder)
    runs = []
    for name in experiments:
        data = EXPERIMENTS[name].data
        data = work_dir / data if data in CORPORA else sources[data]
        of_experiment = runs_of(name, data, work_dir, results_dir)
        runs += [run for run in of_experiment if name in names or run.name in chosen]
    left = [run for run in runs if not run.done]
    for name in dict.fromkeys(EXPERIMENTS[run.experiment].data for run in left):
        if name in CORPORA:
            prepare(CORPORA[name], sources[name], work_dir / name)
    failed = make(left, len(runs))
    report.write(results_dir, FLAGS.quick)
    print(f"Written: {results_dir}/README.md, its figures, and a folder for each run.")
    if failed:
        raise CommandError(
            f"{len(failed)} run(s) failed: {', '.join(failed)}; their logs are in {work_dir}. "
            "The same command tries them again"
        )


def check_writable(folder):
    """Makes a folder, so that what is wrong with it is known before the first run has ended."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise CommandError(f"{folder} cannot be written to: {error.strerror}") from None


def data_of(name):
    """A folder of `--data_dir`, `None` where none is needed."""
    if name is None:
        return None
    folder = Path(command_line.require_flag(FLAGS, "data_dir")) / name
    if not folder.is_dir():
        raise CommandError(f"--data_dir={FLAGS.data_dir} has no folder {name}")
    if name == "ptb":
        read_text(folder)  # The audio is judged by its preparation.
    return folder


def prepare(corpus, source, folder):
    """Makes one of `CORPORA`, at the first time, from the folder of its recordings."""
    command = [
        *(sys.executable, str(SCRIPTS / "prepare_speech.py"), *corpus.arguments),
        *(f"--output_dir={folder}", f"--workers={FLAGS.jobs}"),
        *([f"--input_dir={source}"] if source else []),
    ]
    environment = command_line.child_environment()
    if subprocess.run(command, env=environment, check=False).returncode:
        raise CommandError(f"{folder} could not be prepared; the reason is above")


def runs_of(name, data, work_dir, results_dir):
    """The `Run`s of an experiment."""
    experiment = EXPERIMENTS[name]
    runs = []
    most_seeds = max(one.seeds for one in experiment.configurations.values())
    # All models with one seed before any with the next, so that there is soon something to compare.
    for seed in range(1 if FLAGS.quick else most_seeds):
        for key, configuration in experiment.configurations.items():
            if seed >= configuration.seeds:
                continue
            arguments = experiment.arguments_of(configuration, seed, FLAGS.quick)
            # A changed configuration does not meet the checkpoints of the former one.
            digest = hashlib.sha256(" ".join(arguments).encode()).hexdigest()[:6]
            folder = Path(name) / f"{key}-{seed}"
            run_dir = work_dir / f"{folder}-{digest}"
            # Runs side by side have one device each; a run over several is another experiment.
            train = [*arguments, "--strategy=none", f"--output_dir={run_dir}"]
            evaluate = [f"--run_dir={run_dir}"]
            if data is not None:
                train.append(f"--data_dir={data}")
                evaluate.append(f"--data_dir={data}")
            commands = (
                (sys.executable, str(SCRIPTS / experiment.task.script), *train),
                (sys.executable, str(SCRIPTS / "evaluate.py"), *evaluate),
            )
            epochs = QUICK_EPOCHS if FLAGS.quick else experiment.epochs
            places = run_dir, results_dir / folder
            runs.append(Run(str(folder), arguments, epochs, *places, commands))
    return runs


class Process:
    """A run's commands, one after the other, in the background."""

    def __init__(self, run):
        self.run = run
        self.commands = list(run.commands)
        run.work_dir.parent.mkdir(parents=True, exist_ok=True)
        self.log = open(f"{run.work_dir}.log", "ab")  # noqa: SIM115  outlives this line
        self.start()

    def start(self):
        # Two runs side by side are faster than one after the other only with a thread each.
        threads = str(max(os.cpu_count() // FLAGS.jobs, 1))
        environment = {
            "TF_CPP_MIN_LOG_LEVEL": "3",
            "TF_NUM_INTRAOP_THREADS": threads,
            "OMP_NUM_THREADS": threads,
            "TF_FORCE_GPU_ALLOW_GROWTH": "true",  # A GPU is shared.
            **command_line.child_environment(),
        }
        self.process = subprocess.Popen(
            self.commands.pop(0), stdout=self.log, stderr=self.log, env=environment
        )

    def poll(self):
        """`None` while it runs, then whether it came to its end."""
        code = self.process.poll()
        if code == 0 and self.commands:
            self.start()
            return None
        return None if code is None else code == 0

    @property
    def last_words(self):
        """What it said last: the reason, if it failed."""
        lines = Path(self.log.name).read_text(errors="replace").split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), "without a word")


def make(runs, total):
    """Makes the runs that are not done; returns the names of those that failed, with reasons."""
    waiting, active, failed = list(runs), [], []
    bar = tqdm(total=total, initial=total - len(runs), unit="run", disable=not sys.stderr.isatty())
    try:
        while waiting or active:
            while waiting and len(active) < FLAGS.jobs:
                active.append(Process(waiting.pop(0)))
            for process in list(active):
                succeeded = process.poll()
                if succeeded is None:
                    continue
                active.remove(process)
                if succeeded:
                    keep(process.run)
                else:
                    failed.append(f"{process.run.name} ({process.last_words})")
                bar.update()
                if bar.disable:
                    state = "done" if succeeded else f"FAILED ({process.last_words})"
                    left = left_over([*waiting, *(one.run for one in active)], runs)
                    print(f"{process.run.name} {state}; {left}", flush=True)
            bar.set_postfix_str(left_over([*waiting, *(one.run for one in active)], runs))
            time.sleep(POLL_SECONDS)
    finally:
        for process in active:
            process.process.terminate()  # Training scripts save and exit.
        for process in active:
            process.process.wait()
            # Never beside the results.json of a run with other arguments.
            run = process.run
            if run.finished_epochs and not (run.results_dir / "results.json").is_file():
                keep_history(run)
        bar.close()
    return failed


def keep(run):
    """Copies what a finished run has found to its results; results.json last, and whole."""
    results = read_results(run.work_dir)
    results["arguments"] = list(run.arguments)
    results["evaluation"] = command_line.read_json(run.work_dir / EVALUATION_FILE, {})
    results["hardware"] = hardware()
    keep_history(run)
    text = json.dumps(results, indent=2, sort_keys=True) + "\n"
    write_aside(run.results_dir / "results.json", text.encode())


def keep_history(run):
    """Copies a run's epochs; without results.json beside them they are those of a part of it."""
    run.results_dir.mkdir(parents=True, exist_ok=True)
    write_aside(run.results_dir / "history.csv", (run.work_dir / "history.csv").read_bytes())


def left_over(left, runs):
    """How many runs are left, and for how long, as far as an epoch has been timed."""
    paces = {}
    for run in runs:
        if run.seconds_per_epoch is not None:
            configuration = run.name.rpartition("-")[0]
            paces.setdefault(configuration, []).append(run.seconds_per_epoch)
            paces.setdefault(run.experiment, []).append(run.seconds_per_epoch)
    seconds, unknown = 0.0, 0
    for run in left:
        pace = paces.get(run.name.rpartition("-")[0]) or paces.get(run.experiment)
        if pace is None:
            unknown += 1
        else:
            seconds += statistics.mean(pace) * (run.epochs - run.finished_epochs)
    minutes = round(seconds / FLAGS.jobs / 60)
    text = f"{len(left)} run(s) left, about {minutes // 60} h {minutes % 60:02d} min"
    return text + (f" and {unknown} run(s) not timed yet" if unknown else "")


def hardware():
    """What the times of a run depend on."""
    gpus = tf.config.list_physical_devices("GPU")
    names = [tf.config.experimental.get_device_details(gpu)["device_name"] for gpu in gpus]
    parts = [processor(), f"{os.cpu_count()} cores", *names, f"{FLAGS.jobs} runs side by side"]
    return ", ".join(parts)


def processor():
    """The processor's name and, where it is known, its widest vector instructions."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        known = dict(line.replace("\t", "").split(": ", 1) for line in lines if ": " in line)
        name, instructions = known["model name"], known["flags"].split()
    except (OSError, KeyError):
        return platform.processor() or platform.machine()
    widest = [one for one in ("avx512f", "avx2") if one in instructions][:1]
    return " with ".join([name, *(one.upper() for one in widest)])


if __name__ == "__main__":
    command_line.run(main, FLAGS, __doc__, expected_errors=(FitError,))
