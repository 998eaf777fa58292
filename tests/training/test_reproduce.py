"""reproduce.py, claims.py and report.py: what is run, what is skipped, and what the report says."""

import dataclasses
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from statistics import mean

import pytest

pytest.importorskip("sklearn", reason="the `experiments` extra is not installed")

import reproduce
import train_ptb
from command_line import EXIT_STOPPED, CommandError
from keras_bnrnn.fit.errors import FitError
from keras_bnrnn.fit.tables import read_history, read_results
from paper import claims, report
from paper.experiment_results import Results
from paper.experiments import EXPERIMENTS, POPULATION, Configuration
from recipes import measures
from recipes.pixel_task import PixelTask
from untrained import write_epochs

REPOSITORY = Path(__file__).resolve().parents[2]
RESULTS = REPOSITORY / "results"
SCRIPT = REPOSITORY / "training" / "reproduce.py"
PERPLEXITIES = ("train_perplexity", "valid_perplexity")


def write_run(folder, losses, errors, of=measures.PIXELS, **results):
    """A finished run of the experiments with two measures."""
    names = [name for one in of for name in (one.training, one.validation)]
    rows = [
        dict(zip(["epoch", *names], [epoch, loss, loss + 0.1, error, error + 0.01], strict=True))
        for epoch, (loss, error) in enumerate(zip(losses, errors, strict=True), 1)
    ]
    best = min(rows, key=lambda row: row[of[0].validation])
    tests = {of[0].test: best[of[0].validation], of[1].test: 0.5}
    write_rows(folder, rows, {**best, **tests}, **results)


def write_language_run(folder, valid, test):
    """A finished run of one epoch of a language model."""
    row = {"epoch": 1, "train_perplexity": 50.0, "valid_perplexity": valid}
    write_rows(folder, [row], {**row, "test_perplexity": test})


def write_rows(folder, rows, best, **results):
    key, _, seed = folder.name.rpartition("-")
    experiment = EXPERIMENTS.get(folder.parent.name)
    arguments = ()
    if experiment:
        arguments = experiment.arguments_of(experiment.configurations[key], seed)
    known = {
        "arguments": list(arguments),
        "task": (experiment or EXPERIMENTS["pixel-digits"]).task.name,
        "config": {},
        "hardware": "an abacus",
        "evaluation": {"moving_averages": {"loss": 1.0, "error": 0.5}},
    }
    write_epochs(folder, rows, best, **{**known, **results})


@pytest.fixture
def small_experiments(monkeypatch):
    """The pixel experiment with two seeds of three configurations, and no other."""
    configurations = {
        "baseline": Configuration("LSTM", ("--model=baseline",), 2),
        "frame_rate_1": Configuration("frame-wise", ("--learning_rate=1",), 2),
        "frame_rate_2": Configuration("frame-wise", ("--learning_rate=2",), 2),
    }
    pixels = EXPERIMENTS["pixel-digits"]._replace(configurations=configurations)
    for name in EXPERIMENTS:
        empty = EXPERIMENTS[name]._replace(configurations=pixels.configurations)
        monkeypatch.setitem(EXPERIMENTS, name, empty)
    monkeypatch.setitem(EXPERIMENTS, "pixel-digits", pixels)


def test_the_report_is_computed_from_the_runs(small_experiments, tmp_path):
    folder = tmp_path / "pixel-digits"
    for seed in range(2):
        write_run(folder / f"baseline-{seed}", [2.0, 1.0 + seed / 10], [0.9, 0.5])
        write_run(folder / f"frame_rate_1-{seed}", [1.5, 1.4], [0.9, 0.8])
        if seed == 0:
            write_run(
                folder / f"frame_rate_2-{seed}",
                [1.0, 0.5],
                [0.4, 0.2],
                evaluation={
                    name: {"loss": value, "error": value}
                    for name, value in zip(report.STATISTICS, (0.1, 0.2, 0.3), strict=True)
                },
            )
    report.write(tmp_path)
    text = (tmp_path / "README.md").read_text()
    lines = text.splitlines()
    assert (
        "| LSTM | 2 | 1.050 (1.000 to 1.100) | - | 1.150 (1.100 to 1.200) | 2, 2 | "
        "51.0% (51.0% to 51.0%) | 1.150 (1.100 to 1.200) | 50.0% (50.0% to 50.0%) | "
        "2.0 (2.0 to 2.0) |"
    ) in lines
    assert (
        "| frame-wise (so far) | 1 | 0.500 | 1 | 0.600 | 2 | 21.0% | 0.600 | 50.0% | 2.0 |" in lines
    )
    assert "| chosen from |  | best valid_loss |" in lines
    assert "| frame-wise | `--learning_rate=1` | 1.500 (1.500 to 1.500) |" in lines
    assert "| frame-wise | `--learning_rate=2` | **0.600** |" in lines
    assert "| pixel-digits | frame-wise, valid_error | 10.0% | 20.0% | 30.0% |" in lines
    assert "Not run to the end yet: 5 of 6 runs are finished." in lines
    assert "Times are of an abacus." in lines
    assert text.count("**not decided**") == 4
    assert (tmp_path / "pixel-digits.png").stat().st_size > 5000


def test_candidates_are_compared_with_the_lstm_that_differs_least(tmp_path):
    values = {"baseline_dropout_0.25": 100.0, "baseline_twice_the_rate": 200.0}
    values |= {"normalised_dropout_0.25": 98.0, "normalised_twice_the_rate": 150.0}
    for key, value in values.items():
        write_language_run(tmp_path / "ptb-small-regularised" / f"{key}-0", value, value)
    lines = report.leads(Results("ptb-small-regularised", tmp_path))
    assert lines[0] == "| valid_perplexity below the LSTM's, epoch | 1 |"
    flags = "--gamma=0.3 --normalization=sequence"
    assert lines[2:] == [
        f"| `--dropout=0.25 --decay=1.667 {flags}` | +2.0% |",
        f"| `--dropout=0.25 --decay=1.667 --learning_rate=2.0 {flags}` | +25.0% |",
        "",
    ]


def test_times_of_several_machines_are_told_apart(small_experiments, tmp_path):
    folder = tmp_path / "pixel-digits"
    write_run(folder / "baseline-0", [1.0, 1.0], [0.5, 0.5])
    write_run(folder / "baseline-1", [1.0, 1.0], [0.5, 0.5], seconds_per_epoch=[9.0, 4.0])
    slow = {"hardware": "beads", "seconds_per_epoch": [9.0, 7.0]}
    write_run(folder / "frame_rate_1-0", [1.0, 1.0], [0.5, 0.5], **slow)
    write_run(folder / "frame_rate_1-1", [1.0, 1.0], [0.5, 0.5])
    report.write(tmp_path)
    lines = (tmp_path / "README.md").read_text().splitlines()
    assert any(line.endswith("| 3.0 (2.0 to 4.0) [1] |") for line in lines)
    assert any(line.endswith("| 2.0 [1]; 7.0 [2] |") for line in lines)
    assert "Times are of an abacus [1]; beads [2]." in lines


def test_runs_with_other_flags_are_missing_and_other_data_is_told(
    small_experiments, tmp_path, monkeypatch
):
    monkeypatch.setattr(PixelTask, "data", "text")
    folder = tmp_path / "pixel-digits"
    data = [{"text": {"sha256": "abc"}}, {"text": {"sha256": "def"}}]
    write_run(folder / "baseline-0", [1.0], [0.5], config=data[0])
    write_run(folder / "baseline-1", [1.0], [0.5], config=data[0], arguments=["--units=9"])
    report.write(tmp_path)
    text = (tmp_path / "README.md").read_text()
    assert "| LSTM (so far) | 1 |" in text and "1 of 6 runs are finished" in text
    assert "different data" not in text
    write_run(folder / "frame_rate_1-0", [1.0], [0.5], config=data[1])
    report.write(tmp_path)
    assert "These runs are of different data (abc, def)." in (tmp_path / "README.md").read_text()


def test_runs_that_are_there_in_part_are_reported_by_epoch(small_experiments, tmp_path):
    for name, losses in (("baseline-0", [2.0, 1.0]), ("frame_rate_1-0", [1.5])):
        write_run(tmp_path / "pixel-digits" / name, losses, [0.5] * len(losses))
        (tmp_path / "pixel-digits" / name / "results.json").unlink()
    report.write(tmp_path)
    lines = (tmp_path / "README.md").read_text().splitlines()
    header = "| train_loss / valid_loss, epoch | LSTM, baseline-0 | frame-wise, frame_rate_1-0 |"
    start = lines.index(header)
    assert lines[start + 2 : start + 4] == [
        "| 1 | 2.000 / 2.100 | 1.500 / 1.600 |",
        "| 2 | 1.000 / 1.100 |  |",
    ]
    assert "Not run to the end yet: 0 of 6 runs are finished." in lines
    assert (tmp_path / "pixel-digits.png").stat().st_size > 5000


def test_the_commands_for_the_large_model_are_ones_that_the_script_takes(parse_flags):
    lines = report.LARGE.replace("\\\n", "")
    commands = re.findall(r"python training/train_ptb.py (.*)", lines)
    assert len(commands) == 2
    for command in commands:
        parse_flags(train_ptb, *command.split())


@pytest.mark.parametrize(
    ("errors", "expected"),
    [
        ({"recurrent_shared": 0.5, "recurrent_gamma_0.1": 0.2}, "**holds**"),
        ({"recurrent_shared": 0.1, "recurrent_gamma_0.1": 0.2}, "**holds in part**"),
        ({"recurrent_shared": 0.1, "recurrent_gamma_0.1": 0.5}, "**does not hold**"),
        ({"recurrent_shared": 0.5}, "**not decided**"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_claims_follow_the_numbers(tmp_path, errors, expected):
    for name in ("pixel-digits", "pixel-digits-permuted"):
        for key, error in {"baseline": 0.4, "frame": 0.3, **errors}.items():
            for seed in range(5):
                value = error + seed / 1000
                write_run(tmp_path / name / f"{key}-{seed}", [value], [value])
    found = {name: Results(name, tmp_path) for name in EXPERIMENTS}
    parts = []
    for name in ("pixel-digits", "pixel-digits-permuted"):
        parts.append(claims.recurrent_does_not_help(found[name], "there"))
        label = "recurrent, per step, gamma 0.1"
        parts.append(claims.per_step_helps(found[name], "there", label))
    assert expected in claims.verdict(*parts)
    assert "**not decided**" in list(claims.sentences(found))[2]  # Nothing was run in language.


def write_speech(folder, losses, errors):
    """All runs of `digits-speech`: the LSTM's training criterion is lowest in its last epoch."""
    for key, configuration in EXPERIMENTS["digits-speech"].configurations.items():
        rows = (losses, errors)
        if "--model=baseline" in configuration.arguments:
            rows = ([1.0, 0.9, 0.8], [0.7, 0.6, 0.5])
        for seed in range(configuration.seeds):
            write_run(folder / "digits-speech" / f"{key}-{seed}", *rows, measures.SPEECH)
    return Results("digits-speech", folder)


@pytest.mark.parametrize(
    ("losses", "passed", "holds"),
    [([0.9, 0.7, 0.6], "2, 2, 2", True), ([1.0, 0.9, 0.7], "3, 3, 3", False)],
)
def test_training_is_faster_if_the_lowest_is_passed_before_the_lstm_is_there(
    tmp_path, losses, passed, holds
):
    results = write_speech(tmp_path, losses, [0.5] * 3)
    part = claims.faster(results, "sequence-wise", "in speech")
    assert part.holds is holds
    assert part.words.count(f"{passed} (0.800, `--learning_rate=0.00") == 3


@pytest.mark.parametrize(
    ("loss", "error", "holds"), [(0.8, 0.5, True), (0.79, 0.5, False), (0.8, 0.49, False)]
)
def test_no_better_means_in_no_measure(tmp_path, loss, error, holds):
    results = write_speech(tmp_path, [loss], [error])
    assert claims.does_not_generalise(results, "sequence-wise", "in speech").holds is holds


@pytest.mark.parametrize(("perplexity", "expected"), [(98.0, "holds"), (98.1, "does not hold")])
def test_the_step_beyond_is_two_percent_on_validation(tmp_path, perplexity, expected):
    keys = EXPERIMENTS["ptb-small-regularised"].configurations
    for number, (key, configuration) in enumerate(keys.items()):
        plain = "--model=baseline" in configuration.arguments
        # The best of either model are the first ones.
        valid, test = (100.0, 90.0) if plain else (perplexity, 95.0)
        folder = tmp_path / "ptb-small-regularised" / f"{key}-0"
        write_language_run(folder, valid + number // 2, test + number // 2)
        found = Results("ptb-small-regularised", tmp_path)
        if number < len(keys) - 1:
            assert claims.generalises(found).holds is None
    assert claims.verdict(claims.generalises(found)) == (
        f"**{expected}**. In the search it {expected}: the best normalised model has "
        f"valid_perplexity {perplexity:.1f}, the best LSTM 100.0; test_perplexity 95.0 and 90.0."
    )


def test_committed_tables_are_those_of_the_committed_runs(tmp_path):
    """The text; pixels of figures differ between machines, but all are there."""
    if not (RESULTS / report.REPORT_FILE).is_file():
        pytest.skip("no results are in this checkout")
    found = {name: Results(name, RESULTS) for name in EXPERIMENTS}
    assert report.text(found) == (RESULTS / report.REPORT_FILE).read_text()
    figures = re.findall(r"\]\((\S+\.png)\)", report.text(found))
    assert figures and all((RESULTS / figure).is_file() for figure in figures)


def test_the_pages_quote_the_committed_runs():
    if not RESULTS.is_dir():
        pytest.skip("no results are in this checkout")
    readme = (REPOSITORY / "README.md").read_text()
    speech = Results("digits-speech", RESULTS)
    ours, plain = speech.model("sequence-wise"), speech.baseline
    rates = [f"{100 * mean(model.best('dev_fer')):.1f} %" for model in (ours, plain)]
    passed = sorted(set(ours.passed(mean(plain.training))))
    words = " ".join(readme.split())
    assert f"best training loss of ten epochs at epoch {passed[0]} or {passed[-1]}" in words
    assert f"errs in {rates[0]} of unseen frames, the plain one in {rates[1]}" in words

    page = (REPOSITORY / "docs" / "LANGUAGE.md").read_text()
    language = Results("ptb-small", RESULTS)
    models = {model.label: model for model in language.models}
    for name, label in (("LSTM", "LSTM"), ("BatchNormLSTM, frame-wise", "frame-wise")):
        model = models[label]
        epochs = [run.rows[0] for run in model.runs], [run.rows[1] for run in model.runs]
        cells = [[mean(row[key] for row in rows) for key in PERPLEXITIES] for rows in epochs]
        cells.append([mean(model.best(key)) for key in PERPLEXITIES])
        cells.append([mean(model.best("test_perplexity"))])
        cells = [" / ".join(f"{value:.1f}" for value in cell) for cell in cells]
        assert f"| {name} | {' | '.join(cells)} |" in page


def flags(tmp_path, *more):
    return ["--quick", "--only=pixel-digits", f"--work_dir={tmp_path}", *more]


# reproduce.py with three of the configurations.
SHORTENED = f"""
import runpy, sys
sys.path.insert(0, {str(SCRIPT.parent)!r})
from paper.experiments import EXPERIMENTS
configurations = EXPERIMENTS["pixel-digits"].configurations
for key in set(configurations) - {{"baseline", "frame", "recurrent_gamma_0.1"}}:
    del configurations[key]
runpy.run_path({str(SCRIPT)!r}, run_name="__main__")
"""


@pytest.mark.slow
def test_killed_and_started_again(tmp_path):
    command = [sys.executable, "-c", SHORTENED, *flags(tmp_path, "--jobs=1")]
    results = tmp_path / "quick" / "results" / "pixel-digits"
    for number, kill in enumerate((signal.SIGKILL, signal.SIGTERM), 1):
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        deadline = time.monotonic() + 300
        while len(list(results.glob("*/results.json"))) < number and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(kill)
        _, errors = process.communicate(timeout=120)
    assert process.returncode == EXIT_STOPPED, errors
    [first, *_] = results.glob("*/results.json")
    written = first.stat().st_mtime_ns
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    assert first.stat().st_mtime_ns == written
    names = ["baseline-0", "frame-0", "recurrent_gamma_0.1-0"]
    assert sorted(path.name for path in results.iterdir()) == names
    assert "run(s) left, about" in finished.stdout
    text = (results.parent / "README.md").read_text()
    assert "| recurrent, per step, gamma 0.1 (so far) | 1 |" in text
    one = read_results(results / "frame-0")
    assert {"moving_averages", "recalibrated", "batch_statistics"} == set(one["evaluation"])
    assert one["finished"] and "cores" in one["hardware"]


def test_a_run_that_fails_is_named_and_the_others_go_on(
    small_experiments, tmp_path, call_script, monkeypatch
):
    def commands(run):
        failing = "frame_rate_1" in run.name
        write = "raise SystemExit('out of paper')" if failing else ""
        return dataclasses.replace(run, commands=((sys.executable, "-c", write),))

    make, kept = reproduce.make, []
    monkeypatch.setattr(reproduce, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(reproduce, "keep", lambda run: kept.append(run.name))
    monkeypatch.setattr(
        reproduce, "make", lambda runs, total: make([commands(run) for run in runs], total)
    )
    with pytest.raises(CommandError, match=r"1 run\(s\) failed: \S+rate_1-0 \(out of paper\)"):
        call_script(reproduce, *flags(tmp_path))
    assert sorted(kept) == ["pixel-digits/baseline-0", "pixel-digits/frame_rate_2-0"]


@pytest.mark.parametrize("other_results", [False, True])
def test_a_stopped_run_leaves_its_epochs_but_not_beside_other_results(
    parse_flags, tmp_path, monkeypatch, other_results
):
    def stop(seconds):
        raise KeyboardInterrupt

    parse_flags(reproduce)
    run = reproduce.Run(
        *("frame-0", ("--units=9",), 2, tmp_path / "work", tmp_path / "results"),
        ((sys.executable, "-c", "import time; time.sleep(60)"),),
    )
    write_run(run.work_dir, [2.0], [0.5])
    if other_results:
        write_run(run.results_dir, [3.0, 1.0], [0.5, 0.4])
    monkeypatch.setattr(reproduce.time, "sleep", stop)
    with pytest.raises(KeyboardInterrupt):
        reproduce.make([run], 1)
    kept = len(read_history(run.results_dir))
    assert kept == (2 if other_results else 1)
    assert (run.results_dir / "results.json").is_file() == other_results


def test_only_the_same_arguments_are_done(parse_flags, small_experiments, tmp_path):
    parse_flags(reproduce)
    first, *rest = reproduce.runs_of("pixel-digits", None, tmp_path / "work", tmp_path)
    assert [run.name.rpartition("-")[2] for run in [first, *rest]] == ["0"] * 3 + ["1"] * 3
    assert not first.done
    write_run(first.results_dir, [1.0], [0.5], arguments=list(first.arguments))
    assert first.done
    assert not dataclasses.replace(first, arguments=("--units=9", *first.arguments)).done


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only=ptb-small"], "--data_dir is missing"),
        (["--only=ptb-small", "--data_dir=/nowhere"], "/nowhere has no folder ptb"),
    ],
)
def test_what_is_refused(call_script, tmp_path, arguments, message):
    with pytest.raises(CommandError, match=message):
        call_script(reproduce, *arguments, f"--work_dir={tmp_path}")


def test_a_model_of_each_kind_can_be_made_for_the_comparison_of_statistics(
    call_script, tmp_path, monkeypatch
):
    made, prepared = [], []
    monkeypatch.setattr(reproduce, "make", lambda runs, total: made.extend(runs))
    monkeypatch.setattr(reproduce, "data_of", lambda name: name)
    monkeypatch.setattr(reproduce, "prepare", lambda *made: prepared.append(made[1:]))
    arguments = ["--only=population", f"--work_dir={tmp_path}", "--quick"]
    call_script(reproduce, *arguments)
    assert {run.name for run in made} == set(POPULATION)
    assert not any("--model=baseline" in run.arguments for run in made)
    assert prepared == [("spoken-digits", tmp_path / "quick" / "digits-corpus")]
    call_script(reproduce, *arguments, "--only=pixel-digits")
    assert {run.name for run in made} > {*POPULATION, "pixel-digits/baseline-0"}
    call_script(reproduce, "--only=pixel-digits", f"--work_dir={tmp_path}", "--quick")
    assert len(prepared) == 2  # Not for pixels alone.


def test_what_would_fail_later_is_refused_before_the_first_run(call_script, tmp_path, monkeypatch):
    monkeypatch.setattr(reproduce, "make", lambda runs, total: pytest.fail("a run was begun"))
    (tmp_path / "ptb").mkdir()
    with pytest.raises(OSError, match=r"has no ptb\.train\.txt"):
        call_script(reproduce, "--only=ptb-small", f"--data_dir={tmp_path}", *flags(tmp_path))
    (tmp_path / "file").write_text("")
    for name in ("work_dir", "results_dir"):
        folders = {
            "work_dir": tmp_path,
            "results_dir": tmp_path,
            name: tmp_path / "file" / "folder",
        }
        arguments = [f"--{flag}={folder}" for flag, folder in folders.items()]
        with pytest.raises(CommandError, match="cannot be written to: Not a directory"):
            call_script(reproduce, "--only=pixel-digits", *arguments)


@pytest.mark.parametrize(
    "text", ["", "epoch,loss\n", "a,b\n1,2\n", "epoch,loss\n1\n", "epoch\nx\n"]
)
def test_a_damaged_history_is_named(tmp_path, text):
    (tmp_path / "history.csv").write_text(text)
    with pytest.raises(FitError, match=r"history\.csv (has no epoch|cannot be read)"):
        read_history(tmp_path)


def test_every_configuration_is_one_that_its_script_takes(parse_flags):
    """Each line of the table parses, names are folders', and seeds are counted."""
    for experiment in EXPERIMENTS.values():
        script = __import__(Path(experiment.task.script).stem)
        for key, configuration in experiment.configurations.items():
            assert re.fullmatch(r"[\w.]+", key)
            arguments = [*experiment.arguments, *configuration.arguments]
            parse_flags(script, *arguments)
            assert configuration.seeds >= 1
