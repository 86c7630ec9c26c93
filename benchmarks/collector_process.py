"""A real collector process with its embedded server, for the length of a `with`."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import grpc


def free_port() -> int:
    """A loopback port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def collector_process(*arguments: str) -> Iterator[str]:
    """Start a collector and give its address once it answers."""
    endpoint = f"127.0.0.1:{free_port()}"
    command = [sys.executable, "-m", "fulgurite.collector", "--listen", endpoint, *arguments]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        with grpc.insecure_channel(endpoint) as channel:
            grpc.channel_ready_future(channel).result(timeout=30)
        yield endpoint
    finally:
        process.terminate()
        process.wait(timeout=10)
