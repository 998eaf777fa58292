"""Who is awaited is said, and signals end the wait."""

import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from keras_bnrnn.fit import distribution, waiting
from workers import free_ports

ALONE = "from keras_bnrnn.fit import make_strategy; make_strategy()"


@pytest.fixture
def listening():
    """The address of somebody who listens."""
    with socket.create_server(("localhost", 0)) as server:
        yield f"localhost:{server.getsockname()[1]}"


@pytest.fixture
def silent():
    """An address where nobody does."""
    with socket.socket() as one:
        one.bind(("localhost", 0))
        yield f"localhost:{one.getsockname()[1]}"


def test_who_is_awaited(listening, silent):
    assert waiting.described({"1": listening, "2": silent}) == (
        f"Waiting for worker 2 ({silent}): not to be reached yet."
    )
    assert waiting.described({"1": listening}) == (
        f"Waiting for worker 1 ({listening}): up, but not as far as this one."
    )
    assert not waiting.answers("no port")


def test_it_is_said_again_and_again(silent, monkeypatch, capsys):
    monkeypatch.setattr(waiting, "SECONDS", 0.05)
    said = threading.Semaphore(0)
    describe = waiting.described
    monkeypatch.setattr(
        waiting, "described", lambda workers: [describe(workers), said.release()][0]
    )

    def lines():
        yield "{}"
        yield json.dumps({"1": silent})
        said.acquire()
        said.acquire()

    waiting.speak(lines())
    errors = capsys.readouterr().err
    assert errors.count(f"Waiting for worker 1 ({silent})") >= 2
    assert errors.endswith("stopped: it was waiting for other workers\n")


def test_nothing_is_said_where_nobody_waits(capsys):
    waiting.speak(io.StringIO('{"1": "a:1"}\n{}\n'))
    assert capsys.readouterr().err == ""


def test_signals_have_the_systems_effect_meanwhile(monkeypatch):
    told = []
    monkeypatch.setattr(waiting, "_tell", told.append)
    before = {number: signal.getsignal(number) for number in waiting.SIGNALS}
    with waiting.waiting_for({}):
        assert not told
    with waiting.waiting_for({1: "a:1"}):
        assert {signal.getsignal(number) for number in waiting.SIGNALS} == {signal.SIG_DFL}
    assert told == [{1: "a:1"}, {}]
    assert {number: signal.getsignal(number) for number in waiting.SIGNALS} == before


def test_workers_meet(capsys):
    """Also one that has gone on to TensorFlow, and one that comes late."""
    ports = free_ports(3)
    addresses = {index: f"localhost:{port}" for index, port in enumerate(ports)}
    met = []

    def work(index):
        others = {other: address for other, address in addresses.items() if other != index}
        distribution.meet(addresses[index], others)
        met.append(index)
        with socket.create_server(("localhost", ports[index])):  # Stands for TensorFlow's.
            gone.wait()

    gone = threading.Event()
    threads = [threading.Thread(target=work, args=(index,), daemon=True) for index in range(3)]
    for thread in threads[:2]:
        thread.start()
    while "worker 2" not in capsys.readouterr().out:
        time.sleep(0.01)
    assert not met
    threads[2].start()
    deadline = time.monotonic() + 30
    while len(met) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    gone.set()
    assert sorted(met) == [0, 1, 2]


def test_a_port_that_another_process_has_is_waited_for(capsys):
    [port] = free_ports(1)
    with socket.create_server(("", port)):
        thread = threading.Thread(target=distribution.meet, args=(f"localhost:{port}", {}))
        thread.start()
        while f"Waiting for port {port}" not in capsys.readouterr().out:
            time.sleep(0.01)
        assert thread.is_alive()
    thread.join(timeout=30)
    assert not thread.is_alive()


@pytest.mark.slow
def test_a_worker_that_waits_can_be_ended(silent):
    config = {
        "cluster": {"worker": [silent, f"localhost:{free_ports(1)[0]}"]},
        "task": {"type": "worker", "index": 1},
    }
    environment = {**os.environ, "TF_CONFIG": json.dumps(config), "TF_CPP_MIN_LOG_LEVEL": "3"}
    with subprocess.Popen(
        [sys.executable, "-c", ALONE], env=environment, stdout=subprocess.PIPE, text=True
    ) as process:
        line = process.stdout.readline()
        assert line == f"Waiting for worker 0 ({silent}): not to be reached yet.\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=20) == -signal.SIGTERM
