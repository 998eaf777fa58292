"""Trains a task: all that the training scripts have in common."""

import contextlib
from types import SimpleNamespace

import keras
import numpy as np
import tensorflow as tf

import command_line
from command_line import CommandError
from keras_bnrnn.files import misfit
from keras_bnrnn.fit.distribution import (
    agree,
    check_batch_size,
    end_together,
    make_strategy,
    refusals_shared,
    rejoined_after_losing_a_worker,
    worker_of,
)
from keras_bnrnn.fit.errors import Stopped
from keras_bnrnn.fit.loop import Splits, evaluate, train, watchers
from keras_bnrnn.fit.precision import PRECISIONS
from keras_bnrnn.fit.run_folder import RunFolder, claim_in_turn
from keras_bnrnn.fit.tables import RESULTS_FILE
from keras_bnrnn.gap import is_gap
from recipes.measures import columns


class Task:
    """A kind of run: its data, its model and its measures. Reads the data when it is made.

    Args:
        settings: what decides a run's numbers, by the names in `setting_names`; a run's
            configuration will do.
        data_dir: the folder of the data, or what else `data_of` finds among the flags.

    Attributes:
        name: recorded in the run's folder (config.json).
        script: that trains it.
        measures: of an epoch; the validation of the first is the criterion.
        setting_names: of what decides the numbers of a run's epochs; how many epochs does not.
        optional_setting_names: of switches that are recorded only where they are on, so that runs
            from before there were any go on.
        exported: whether its models can be (`served`).
        setting_forms: of the settings that evaluate.py reads, `{name: form}` (see `misfit`).
        data: the key of a run's configuration that describes the data; `None`: they are always
            the same.
        valid: the name of the validation split.
        batch_size: rows of a batch over all devices.
        examples: rows of the training split.
        default_epochs: to train where the flag does not say.

    A subclass also defines:

        read_data(data_dir)
        describe_data(): what tells one data set from another: JSON values, with its `"sha256"`.
        batches(split, worker, epoch=None): a worker's batches `(inputs, labels, weights)` in the
            epoch's order, counted from 0, and with its augmentation; `None`: for scoring.
        describe_batch(worker, epoch, step): names what is in a training batch.
        build_model(replicas, **options): the compiled model; `options` are for `model.compile`.
        metrics(): fresh Keras metrics, one for each of `measures`.
        plan(): lines about the data and what will be made of them.
        model_title()
    """

    optional_setting_names = ("renorm",)
    exported = False
    setting_forms = {"batch_size": int, "seed": int}
    data = None
    valid = "valid"
    default_epochs = None

    def __init__(self, settings, data_dir=None):
        off = dict.fromkeys(self.optional_setting_names, False)
        self.settings = SimpleNamespace(**off | settings)
        self.read_data(data_dir)

    @classmethod
    def settings_of(cls, options):
        """The settings among a script's flags."""
        return cls._named(options)

    @staticmethod
    def data_of(options):
        """Where the data are, among a script's flags."""
        return getattr(options, "data_dir", None)

    @classmethod
    def _named(cls, options, **made):
        """The settings among attributes, and those that were `made` of several."""
        on = [name for name in cls.optional_setting_names if getattr(options, name)]
        names = [name for name in (*cls.setting_names, *on) if name not in made]
        return {name: getattr(options, name) for name in names} | made

    @property
    def config(self):
        """What is recorded of a run; one with another configuration is another run."""
        described = {} if self.data is None else {self.data: self.describe_data()}
        return self._named(self.settings) | described

    def splits(self, worker):
        """The `Splits` of a worker."""
        return Splits(
            train=lambda epoch: self.batches("train", worker, epoch),
            valid=self.batches(self.valid, worker),
            rows=self.batch_size // worker.count,
            describe=lambda epoch, step: self.describe_batch(worker, epoch, step),
        )

    def check_devices(self, strategy):
        """Raises a `FitError` or `CommandError` where the batches cannot be dealt out."""
        check_batch_size(self.batch_size, self.examples, strategy)

    def next_commands(self, folder):
        """Commands to try on a finished run."""
        return []

    def files(self):
        """`{name: function to the content}` of what is kept beside the results."""
        return {}

    def callbacks(self):
        """Keras callbacks, of training and of evaluation."""
        return []

    def has_test(self):
        return True

    def trivial_scores(self):
        """Scores of answering without looking, for results.json."""
        return {}

    def more_scores(self, infer):
        """What else evaluate.py finds out with a function from inputs to logits.

        Returns:
            `{title: {name: score}}`.
        """
        return {}

    @staticmethod
    def served(run_dir, results):
        """What a run's folder says of its model, as arguments of `keras_bnrnn.serving.export`.

        Args:
            run_dir: `Path` of the folder.
            results: its results.json.
        """
        raise CommandError(f"--run_dir={run_dir}: models of this task are not exported")

    @staticmethod
    def load_model(path):
        """A saved model of this task, not compiled."""
        return keras.models.load_model(path, compile=False)

    def damage_explained(self):
        """A context that turns the data's own errors into those that the caller understands."""
        return contextlib.nullcontext()


def run_task(kind, options):
    """Trains from the beginning, or from where the run's folder stands.

    Args:
        kind: a class of `Task`.
        options: the flags of `command_line.define_run_flags` and of the task, as attributes.
    """
    with contextlib.ExitStack() as stack:
        if options.strategy not in ("none", "mirrored"):
            stack.enter_context(rejoined_after_losing_a_worker(options.output_dir))
        strategy = make_strategy(options.strategy)
        agree(strategy, command_line.values(options))
        with refusals_shared(strategy):
            set_up_tensorflow(options, strategy)
            worker = worker_of(strategy)
            task = kind(kind.settings_of(options), kind.data_of(options))
            task.check_devices(strategy)
            # Before the run's folder is made: says what is wrong with the data.
            splits = task.splits(worker)
            splits.train(0)
        run = claim_in_turn(
            strategy,
            lambda: RunFolder(
                options.output_dir,
                task.config,
                columns(task.measures),
                task.measures[0].validation,
                worker,
                task=task.name,
                restart=options.restart,
            ),
        )
        stack.enter_context(task.damage_explained())
        with refusals_shared(strategy):
            for name, content in task.files().items():
                if worker.is_chief and not (run.path / name).exists():
                    run.keep_file(name, content())
        keras.utils.set_random_seed(options.seed)
        replicas = strategy.num_replicas_in_sync
        with strategy.scope():
            model = task.build_model(
                replicas,
                jit_compile=options.jit_compile,
                steps_per_execution=options.steps_per_execution,
            )
        for line in task.plan():
            print(line)
        print(
            f"Model: {task.model_title()}, {model.count_params():,} weights, on {replicas} "
            f"device{'s' if replicas > 1 else ''}.",
            flush=True,
        )
        try:
            train(
                model,
                strategy,
                run,
                splits,
                options.epochs or task.default_epochs,
                callbacks=[*task.callbacks(), *watchers(options.tensorboard, run, splits)],
                checkpoint_steps=options.checkpoint_steps,
                verbose=command_line.fit_verbosity(),
            )
        except Stopped as stopped:
            raise command_line.Stopped(str(stopped), stopped.signal) from None
        scores = task.trivial_scores()
        if task.has_test():
            with unchanged(model):
                model.load_weights(run.best_model_path)
                test = task.batches("test", worker)
                found = evaluate(model, strategy, test, splits.rows, task.callbacks())
            scores |= {one.test: found[one.key] for one in task.measures}
        run.finish(model, **scores)
        end_together(strategy)
        print_results(task, run, scores)


def set_up_tensorflow(options, strategy):
    """Applies the flags on precision and determinism, and refuses what Keras cannot do together.

    Raises:
        CommandError: with the reason.
    """
    if strategy.num_replicas_in_sync > 1:
        for name, harmless in (("jit_compile", False), ("steps_per_execution", 1)):
            if getattr(options, name) != harmless:
                raise CommandError(
                    f"--{name} cannot be combined with several devices: Keras's fit fails under "
                    "tf.distribute then (docs/SCALING.md); leave it away or use --strategy=none"
                )
        for name in ("normalize_recurrent", "normalize_cell_state"):
            asked = getattr(options, name, False)
            if asked and options.model == "batch_norm" and options.synchronized:
                raise CommandError(
                    f"--{name} cannot be synchronised over several devices: that would take "
                    "collectives inside the time loop; add --nosynchronized or use --strategy=none"
                )
    keras.mixed_precision.set_dtype_policy(PRECISIONS[options.mixed_precision])
    if options.deterministic:
        tf.config.experimental.enable_op_determinism()


def check_config(run_dir, config, form):
    """Raises a `CommandError` where the configuration of a run's results is not of a form."""
    wrong = misfit(config, form)
    if wrong:
        path = run_dir / RESULTS_FILE
        raise CommandError(f"{path}: the configuration {wrong}; put a copy of the file back")


def training_section(data, results):
    """What a model card says of the training: a paragraph on the data, and the best measures."""
    best = results["best"]
    unfinished = ["**The run was not finished yet**: later epochs may be better.", ""]
    return "\n".join(
        [
            data,
            "",
            *([] if results.get("finished", True) else unfinished),
            f"Weights of epoch {best['epoch']}, the best by {results['criterion']}:",
            "",
            "| measure | value |",
            "|---|---|",
            *(
                f"| {name} | {value:.4g} |"
                for name, value in best.items()
                if name != "epoch" and not is_gap(name)
            ),
        ]
    )


@contextlib.contextmanager
def unchanged(model):
    """Puts every variable of a model, and of its optimizer, back to what it was before."""
    optimizer = getattr(model, "optimizer", None)
    variables = [*model.variables, *(optimizer.variables if optimizer else ())]
    before = [(variable, np.array(variable)) for variable in variables]
    try:
        yield
    finally:
        for variable, value in before:
            variable.assign(value)


def print_results(task, run, scores):
    """Prints the best epoch, what was written, and what can be done with it."""
    best = run.best_row | scores
    splits = {"train": "training", task.valid: "validation", "test": "test"}
    parts = []
    for split, column in splits.items():
        figures = [
            f"{one.name} {one.text(best[getattr(one, column)])}"
            for one in task.measures
            if getattr(one, column) in best
        ]
        parts += [f"{split} {', '.join(figures)}"] if figures else []
    print(f"Best epoch {best['epoch']} of {run.completed_epochs}: {'; '.join(parts)}.")
    print(f"Written: {run.path}/results.json, history.csv, best.keras, final.keras")
    other = "baseline" if task.settings.model == "batch_norm" else "batch_norm"
    print(
        f"Next: the same command with --model={other} and another --output_dir, then",
        f"python training/compare.py {run.path} OTHER_OUTPUT_DIR",
        *task.next_commands(run.path),
        sep="\n  ",
    )
