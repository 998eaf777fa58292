"""Files that are whole or not there, and folders that one process at a time works in."""

import contextlib
import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows, where folders are not locked.
    fcntl = None

PARTIAL = ".partial"
LOCK_FILE = ".lock"
SECONDS_TO_WAIT = 120
NUMBER = (int, float)
URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")  # One letter is a drive of Windows.


def local_path(path: str | os.PathLike) -> Path:
    """The path, with `~` expanded.

    Raises:
        ValueError: it is a URL, which would become a folder of that name here, or `~` is of nobody.
    """
    text = os.path.expanduser(path)
    if URL.match(text):
        raise ValueError(
            f"{text} is a URL; name a folder of this machine, which may be a mounted one"
        )
    if text.startswith("~"):
        raise ValueError(f"{text} is in the home of nobody here; give the whole path")
    return Path(text)


def misfit(value: object, form: object, name: str = "") -> str | None:
    """Where JSON that was read is not what it should be.

    Args:
        value: what was read.
        form: a type, or a tuple of types; `{key: form}`, an object with at least these keys;
            `[form]`, a list of such values.
        name: of the value.

    Returns:
        A text on the first place that is not of the form, to follow the name of the file; `None`
        where all is.

    Example:

    >>> misfit({"best": {"epoch": "2"}}, {"best": {"epoch": int}})
    "has best.epoch='2'"
    >>> misfit({"best": {}}, {"best": {"epoch": int}})
    'lacks best.epoch'
    """
    kinds = type(form) if isinstance(form, dict | list) else form
    if not isinstance(value, kinds) or (isinstance(value, bool) and kinds not in (bool, object)):
        shown = repr(value) if len(repr(value)) < 40 else f"{repr(value)[:36]} ..."
        return f"has {name}={shown}" if name else f"is {shown}"
    if isinstance(form, dict):
        of = f"{name}." if name else ""
        missing = [f"{of}{key}" for key in form if key not in value]
        if missing:
            return f"lacks {', '.join(missing)}"
        parts = ((value[key], form[key], f"{of}{key}") for key in form)
    elif isinstance(form, list):
        parts = ((part, form[0], f"{name}[{index}]") for index, part in enumerate(value))
    else:
        return None
    return next(filter(None, (misfit(*part) for part in parts)), None)


def lock_folder(
    folder: Path, name: str = LOCK_FILE, seconds: float = SECONDS_TO_WAIT
) -> contextlib.AbstractContextManager:
    """Waits for a former process to leave a folder, and keeps later ones out.

    Args:
        folder: that exists.
        name: of the lock's file in it, for folders that several processes share by agreement.
        seconds: how long to wait. A killed process leaves at once, a stopped one when it has saved.

    Returns:
        A context manager to keep; the lock ends with it, or with this process. A folder that cannot
        be written, or is on a file system without locks, is not locked: then it is a
        `contextlib.nullcontext`. This process itself is never locked out.

    Raises:
        TimeoutError: another process was at work all the time.
    """
    try:
        lock = (folder / name).open("a")
    except OSError:
        return contextlib.nullcontext()
    if fcntl is None:
        return lock
    deadline = time.monotonic() + seconds
    say = every_ten_seconds()
    while True:
        try:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return lock
        except (BlockingIOError, PermissionError):
            if time.monotonic() > deadline:
                raise TimeoutError(f"another process is at work in {folder}; stop it") from None
            say(f"Another process is at work in {folder}; waiting for it.")
            time.sleep(0.1)
        except OSError:
            lock.close()
            return contextlib.nullcontext()


def every_ten_seconds() -> Callable[[str], None]:
    """A function that prints a line when it is called first, and ten seconds after it has last."""
    due = time.monotonic()

    def say(line):
        nonlocal due
        if time.monotonic() >= due:
            print(line, flush=True)
            due = time.monotonic() + 10.0

    return say


@contextlib.contextmanager
def written_aside(path: Path, writer: str = "") -> Iterator[Path]:
    """A path to write a file to; the file becomes `path` when the context ends without an error.

    Its suffix is that of `path`, for writers that choose a format by it.

    Args:
        path: of the file.
        writer: tells apart who may write it at the same time.

    Raises:
        OSError: as the writer did, with the name of the file (a full disk names none).
    """
    partial = path.with_name(f"{path.stem}{writer}{PARTIAL}{path.suffix}")
    try:
        yield partial
        flush(partial)
        os.replace(partial, path)
    except BaseException as error:
        partial.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:
            # HDF5 has the reason in its text alone.
            reason = error.strerror or " ".join(str(error).split())
            raise OSError(error.errno, reason, str(path)) from error
        raise


def write_aside(path: Path, content: bytes) -> None:
    """Writes bytes in such a way that `path` is whole or not there."""
    with written_aside(path) as partial:
        partial.write_bytes(content)


def unused(path: Path) -> Path:
    """The first of `path-1`, `path-2`, … that does not exist."""
    number = 1
    while (found := path.with_name(f"{path.name}-{number}")).exists():
        number += 1
    return found


def flush(path: Path) -> None:
    """Asks the system to put `path` on disk, so that a rename never outruns its content."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
