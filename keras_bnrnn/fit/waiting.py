"""Says every ten seconds which workers are awaited; signals end the wait.

TensorFlow waits for other machines in C++, where no signal's handler of Python runs, and where it
connects not even a thread. So another process speaks: this file as a program, which needs nothing
but Python. And signals get the effect that the system gives them.
"""

import contextlib
import functools
import json
import queue
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator

SECONDS = 10.0
SIGNALS = [
    getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP") if hasattr(signal, name)
]


@contextlib.contextmanager
def waiting_for(workers: dict[int, str]) -> Iterator[None]:
    """A context in which this process waits for other workers; none: does nothing.

    Args:
        workers: their addresses by index.
    """
    if not workers:
        yield
        return
    before = {}
    if threading.current_thread() is threading.main_thread():
        before = {one: signal.signal(one, signal.SIG_DFL) for one in heeded()}
    _tell(workers)
    try:
        yield
    finally:
        _tell({})
        for one, handler in before.items():
            signal.signal(one, handler)


def heeded() -> list[signal.Signals]:
    """The signals that ask a process to end, but those that it was started to ignore (nohup)."""
    return [one for one in SIGNALS if signal.getsignal(one) not in (signal.SIG_IGN, None)]


def _tell(workers):
    """Tells the speaker who is awaited from now on."""
    with contextlib.suppress(OSError):  # It only speaks.
        pipe = _speaker().stdin
        pipe.write(json.dumps(workers).encode() + b"\n")
        pipe.flush()


@functools.cache
def _speaker():
    """The other process. It ends with this one; Ctrl-C does not reach it."""
    command = [sys.executable, "-S", "-E", __file__]
    return subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)


def speak(lines) -> None:
    """Speaks until the lines end, each of them the workers that are awaited from then on.

    Args:
        lines: JSON texts.
    """
    told = queue.SimpleQueue()

    def listen():
        for line in lines:
            told.put(json.loads(line))
        told.put(None)

    threading.Thread(target=listen, daemon=True).start()
    awaited = {}
    while True:
        try:
            found = told.get(timeout=SECONDS if awaited else None)
        except queue.Empty:
            print(described(awaited), file=sys.stderr, flush=True)
            continue
        if found is None:
            break
        awaited = found
    if awaited:
        print("stopped: it was waiting for other workers", file=sys.stderr, flush=True)


def described(workers: dict[str, str]) -> str:
    """A line on who of them is awaited."""
    absent = {index: address for index, address in workers.items() if not answers(address)}
    why = "not to be reached yet" if absent else "up, but not as far as this one"
    named = (f"worker {index} ({address})" for index, address in (absent or workers).items())
    return f"Waiting for {', '.join(named)}: {why}."


def answers(address: str) -> bool:
    """Whether anybody listens there."""
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=1.0):
            return True
    except (OSError, ValueError):
        return False


if __name__ == "__main__":
    speak(sys.stdin)
