"""What the commands say when the collector is not there, or is something else."""

from __future__ import annotations

import http.server
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

Call = Callable[..., Any]


@pytest.fixture
def free_address() -> str:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{listener.getsockname()[1]}"


@pytest.fixture
def web_server() -> Iterator[str]:
    server = http.server.HTTPServer(("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture
def silent_server() -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"127.0.0.1:{listener.getsockname()[1]}"


@pytest.mark.parametrize("command", ["replicas", "tail"])
def test_an_absent_collector_is_said_in_one_line(command: str, fulgurite: Call, free_address: str) -> None:
    result = fulgurite(command, "--collector", free_address)
    assert result.status == 1
    assert result.out == ""
    assert f"no collector at {free_address}: start one with `fulgurite collector`" in result.complaint


@pytest.mark.parametrize("command", ["replicas", "tail"])
@pytest.mark.parametrize("server", ["web_server", "silent_server"])
def test_something_else_at_the_port_is_said_in_one_line(
    command: str, server: str, fulgurite: Call, request: pytest.FixtureRequest
) -> None:
    address = request.getfixturevalue(server)
    result = fulgurite(command, "--collector", address)
    assert result.status == 1
    assert f"{address} answers, but not as a Fulgurite collector" in result.complaint


def test_another_grpc_service_at_the_port_is_said_in_one_line(fulgurite: Call) -> None:
    from concurrent.futures import ThreadPoolExecutor

    import grpc

    server = grpc.server(ThreadPoolExecutor(max_workers=1))
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    try:
        result = fulgurite("replicas", "--collector", address)
    finally:
        server.stop(None)
    assert result.status == 1
    assert "not as a Fulgurite collector" in result.complaint
