"""Files that are whole or not there, and folders that one process at a time works in."""

import contextlib
import fcntl
import os
import time

PARTIAL = ".partial"
LOCK_FILE = ".lock"
SECONDS_TO_WAIT = 120


def lock_folder(folder, name=LOCK_FILE, seconds=SECONDS_TO_WAIT):
    """Waits for a former process to leave a folder, and keeps later ones out.

    Args:
        folder: `Path`; it exists.
        name: of the lock's file in it, for folders that several processes share by agreement.
        seconds: how long to wait. A killed process leaves at once, a stopped one when it has saved.

    Returns:
        A context manager to keep; the lock ends with it, or with this process. A folder that cannot
        be written, or is on a file system without locks, is not locked.

    Raises:
        TimeoutError: another process was at work all the time.
    """
    try:
        lock = (folder / name).open("a")
    except OSError:
        return contextlib.nullcontext()
    deadline, told = time.monotonic() + seconds, False
    while True:
        try:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return lock
        except (BlockingIOError, PermissionError):
            if time.monotonic() > deadline:
                raise TimeoutError(f"another process is at work in {folder}; stop it") from None
            if not told:
                print(f"Another process is at work in {folder}; waiting for it.", flush=True)
            told = True
            time.sleep(0.1)
        except OSError:
            return lock


def write_aside(path, content):
    """Writes bytes in such a way that `path` is whole or not there."""
    partial = path.with_name(path.name + PARTIAL)
    partial.write_bytes(content)
    flush(partial)
    os.replace(partial, path)


def flush(path):
    """Asks the system to put `path` on disk, so that a rename never outruns its content."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
