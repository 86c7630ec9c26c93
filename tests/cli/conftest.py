"""The program as a person calls it: a process of its own, with its status and what it said."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest

from fulgurite.v1 import viewer_pb2, viewer_pb2_grpc

TIMEOUT_S = 120.0

BLOCKER = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Blocker())
"""


@dataclass(frozen=True)
class Result:
    """How a call ended."""

    status: int
    out: str
    err: str

    @property
    def complaint(self) -> str:
        """What it said on stderr, which must be one line."""
        assert len(self.err.splitlines()) == 1, self.err
        return self.err.strip()


def call(*arguments: str, environment: Mapping[str, str] | None = None) -> Result:
    """Run `fulgurite ARGUMENTS`."""
    done = subprocess.run(
        [sys.executable, "-P", "-m", "fulgurite.cli", *arguments],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        env={**os.environ, **(environment or {})},
        check=False,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return Result(done.returncode, done.stdout, done.stderr)


def without(folder: Path, *modules: str) -> dict[str, str]:
    """Variables under which Python finds none of `modules`: as if their extra were not installed."""
    (folder / "sitecustomize.py").write_text(BLOCKER.format(blocked=set(modules)))
    before = os.environ.get("PYTHONPATH")
    return {"PYTHONPATH": os.pathsep.join([str(folder), *([before] if before else [])])}


@pytest.fixture
def fulgurite() -> Callable[..., Result]:
    """The program: `fulgurite("replicas", "--json")`."""
    return call


@pytest.fixture
def without_modules(tmp_path: Path) -> Callable[..., dict[str, str]]:
    """Variables that hide modules from a process."""
    return lambda *modules: without(tmp_path, *modules)


class Script(viewer_pb2_grpc.ViewerServiceServicer):
    """A viewer service that tells what it was given: the wire is real, the content is the test's."""

    def __init__(
        self, replicas: list[viewer_pb2.ReplicaStatus], messages: list[viewer_pb2.WatchResponse]
    ) -> None:
        self._replicas = replicas
        self._messages = messages

    def ListReplicas(  # noqa: N802 (the name is the wire's)
        self, request: viewer_pb2.ListReplicasRequest, context: grpc.ServicerContext
    ) -> viewer_pb2.ListReplicasResponse:
        return viewer_pb2.ListReplicasResponse(replicas=self._replicas, store="memory")

    def Watch(  # noqa: N802
        self, request: viewer_pb2.WatchRequest, context: grpc.ServicerContext
    ) -> Iterator[viewer_pb2.WatchResponse]:
        yield from self._messages
        context.abort(grpc.StatusCode.UNAVAILABLE, "going down")


@pytest.fixture
def scripted() -> Iterator[Callable[..., str]]:
    """Start a scripted collector on a free port; returns its address."""
    servers: list[grpc.Server] = []

    def start(
        replicas: list[viewer_pb2.ReplicaStatus], messages: list[viewer_pb2.WatchResponse] | None = None
    ) -> str:
        server = grpc.server(ThreadPoolExecutor(max_workers=2))
        viewer_pb2_grpc.add_ViewerServiceServicer_to_server(Script(replicas, messages or []), server)
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        servers.append(server)
        return f"127.0.0.1:{port}"

    yield start
    for server in servers:
        server.stop(None)
