"""What the scripts share: flags, `--help`, errors of one line, and who stops with whom."""

import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import command_line
from keras_bnrnn.data.errors import attempt

TRAINING = Path(command_line.__file__).parent
SCRIPTS = sorted(
    path.name for path in TRAINING.glob("*.py") if "command_line.run(" in path.read_text()
)
SCRIPTS.remove("command_line.py")
WITH_ARGUMENTS = {"compare.py", "transcribe.py"}

CHILD = """
import time
from absl import flags
import command_line
def main(argv):
    print("running", flush=True)
    time.sleep(60)
command_line.run(main, flags.FlagValues())
"""
PARENT = """
import subprocess, sys
import command_line
child = subprocess.Popen(
    [sys.executable, "-c", sys.argv[1]], env=command_line.child_environment(), stderr=sys.stdout
)
child.wait()
"""


def failing(tmp_path, error):
    """A script whose `main` raises what is written."""
    script = tmp_path / "script.py"
    script.write_text(
        f"""
from absl import flags
import command_line
from keras_bnrnn.fit.errors import FitError
def main(argv):
    raise {error}
command_line.run(main, flags.FlagValues(), expected_errors=(FitError,))
"""
    )
    return script


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_names_every_flag(run_command, script):
    code, output, _ = run_command(script, "--help")
    assert code == 0
    flag_values = __import__(script.removesuffix(".py")).FLAGS
    for name in flag_values:
        assert f"--{name}" in output or f"--[no]{name}" in output
    assert script in output


@pytest.mark.parametrize("script", sorted({*SCRIPTS} - WITH_ARGUMENTS))
def test_an_argument_that_is_no_flag_is_refused(run_command, script):
    code, _, errors = run_command(script, "stray")
    assert code == 1
    assert errors == "error: unexpected argument 'stray'; every option is a --flag\n"


@pytest.mark.parametrize("script", sorted(SCRIPTS))
def test_paths_are_of_this_machine(run_command, script, parse_flags, monkeypatch):
    """Of every script; a URL would become a local folder."""
    module = __import__(script.removesuffix(".py"))
    parsers = {name: module.FLAGS[name].parser for name in module.FLAGS}
    paths = [name for name, one in parsers.items() if isinstance(one, command_line.PathParser)]
    named = [name for name in module.FLAGS if name.endswith("_dir")]
    assert paths and {*named} <= {*paths}
    monkeypatch.setenv("HOME", "/home/me")
    for name in paths:
        parse_flags(module, f"--{name}=~/a")
        assert module.FLAGS[name].value == "/home/me/a"
        if not parsers[name].remote:
            code, _, errors = run_command(script, f"--{name}=gs://bucket/a")
            assert code == 2 and errors.count("\n") == 1
            assert f"flag --{name}=gs://bucket/a: this is a URL" in errors
    parse_flags(module)


def test_flags_that_are_wrong_end_with_code_2(run_command):
    for flag in ("--layers=0", "--model=bogus", "--nonsense"):
        code, _, errors = run_command("train_speech.py", flag)
        assert code == 2
        [line] = errors.splitlines()
        assert line.startswith("error: ") and flag.strip("-").split("=")[0] in line


@pytest.mark.parametrize(
    ("error", "code", "printed"),
    [
        ("command_line.CommandError('a\\nb')", 1, "error: a b\n"),
        ("FitError('is a file', 'output_dir')", 1, "error: --output_dir: is a file\n"),
        ("FitError('nothing')", 1, "error: nothing\n"),
        ("FileNotFoundError('gone')", 1, "error: gone\n"),
        ("command_line.Stopped('at step 3')", 143, "stopped: at step 3\n"),
        ("KeyboardInterrupt", 130, "interrupted: the same command continues\n"),
    ],
)
def test_errors_are_one_line(run_command, tmp_path, error, code, printed):
    found, _, errors = run_command(failing(tmp_path, error))
    assert (found, errors) == (code, printed)


def test_a_signal_is_no_fault_of_the_file_that_is_being_read():
    with pytest.raises(command_line.Stopped):
        attempt(command_line.stop, signal.SIGTERM, None)


def test_other_errors_keep_their_traceback(tmp_path):
    with pytest.raises(ZeroDivisionError):
        command_line.call(failing(tmp_path, "ZeroDivisionError"), [])


def test_no_script_imports_another_or_reads_its_flags():
    names = [script.removesuffix(".py") for script in SCRIPTS]
    for path in TRAINING.rglob("*.py"):
        for name in names:
            if path.parent == TRAINING:  # paper.report is no script.
                assert f"import {name}\n" not in path.read_text().replace(
                    "from paper import report\n", ""
                ), path
        if path.name not in SCRIPTS and path.name != "command_line.py":
            assert not re.search(r"\bFLAGS\b", path.read_text()), path


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child")
def test_a_script_stops_with_what_had_started_it():
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, CHILD], cwd=TRAINING, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout.readline() == "running\n"
        parent.kill()
        began = time.monotonic()
        # The child inherited the pipe, so this lasts until it ends.
        assert "stopped: SIGTERM" in parent.stdout.read()
        assert time.monotonic() - began < 30.0


INTERRUPTED_AT_IMPORT = """
import os, signal, sys
class Slow:
    def find_spec(self, name, path=None, target=None):
        if name == sys.argv[1]:
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Slow())
import command_line
import keras_bnrnn
"""


@pytest.mark.slow
@pytest.mark.parametrize("module", ["ctypes", "absl", "keras_bnrnn"])
def test_ctrl_c_during_imports_has_no_traceback(module):
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED_AT_IMPORT, module],
        cwd=TRAINING,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == -signal.SIGINT
    assert done.stderr == "interrupted: the same command continues\n"


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_import_it_before_tensorflow(script):
    text = (TRAINING / script).read_text()
    for name in ("tensorflow", "keras", "keras_bnrnn", "recipes", "paper", "kaldiio"):
        for match in re.finditer(rf"^(import|from) {name}\b", text, re.MULTILINE):
            assert text.index("\nimport command_line") < match.start()
