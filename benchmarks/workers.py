"""Several workers on this machine: the environments that their processes need."""

import json
import os
import socket


def environments(count):
    """One environment per process, each with the `TF_CONFIG` of a worker; one has none."""
    if count == 1:
        return [os.environ.copy()]
    cluster = {"worker": [f"localhost:{port}" for port in free_ports(count)]}
    return [
        {
            **os.environ,
            "TF_CONFIG": json.dumps(
                {"cluster": cluster, "task": {"type": "worker", "index": index}}
            ),
        }
        for index in range(count)
    ]


def free_ports(count):
    """Ports of this machine that nobody listens on now."""
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("localhost", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports
