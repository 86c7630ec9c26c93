"""The host comes first: a collector or a store that is absent, killed or restarted never stops a model."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]

REQUESTS = 8
OURS = "fulgurite"


class Host:
    """The serving process of `host_program`, as its own account tells it."""

    def __init__(self, stage: Any, program: Path, endpoint: str) -> None:
        self.background = stage.python(str(program), endpoint)

    @property
    def accounts(self) -> list[dict[str, Any]]:
        """Every account so far."""
        return [json.loads(line) for line in list(self.background.out) if line.startswith("{")]

    @property
    def last(self) -> dict[str, Any]:
        """The latest account."""
        return (self.accounts or [{"tokens": 0, "acknowledged": 0}])[-1]

    @property
    def complaints(self) -> list[str]:
        """Lines on stderr that are about us."""
        return [line for line in self.background.err if OURS in line.lower()]

    def generates(self, requests: int = REQUESTS) -> None:
        """Wait for so many further requests."""
        goal = len(self.accounts) + requests
        self.background.until(lambda: len(self.accounts) >= goal)

    def is_acknowledged(self, frames: int = 1) -> None:
        """Wait until so many further frames are acknowledged."""
        goal = self.last["acknowledged"] + frames
        self.background.until(lambda: self.last["acknowledged"] >= goal)

    def leaves(self) -> dict[str, Any]:
        """End it; returns its last account."""
        self.background.signal(signal.SIGTERM)
        assert self.background.wait() == 0, self.background.err
        assert self.last["last"]
        return self.last


def balance(account: dict[str, Any]) -> int:
    """What the ledger does not explain: 0."""
    explained = account["pending"] + account["acknowledged"] + sum(account["dropped"].values())
    return int(account["captured"]) - int(explained)


def test_without_a_collector_the_model_generates_and_one_line_says_so(
    stage: Any, host_program: Path, free_port: Callable[[], int]
) -> None:
    endpoint = f"127.0.0.1:{free_port()}"
    host = Host(stage, host_program, endpoint)
    host.generates()
    host.background.until(lambda: host.complaints)
    host.generates()
    final = host.leaves()
    assert len(host.complaints) == 1, host.background.err
    assert endpoint in host.complaints[0]
    assert final["captured"] == final["tokens"]
    assert final["acknowledged"] == final["pending"] == balance(final) == 0
    assert sum(final["dropped"].values()) == final["captured"]
    assert final["closing_s"] < 4.0


def test_a_collector_that_is_killed_and_restarted_gets_the_stream_again(
    stage: Any, host_program: Path, free_port: Callable[[], int]
) -> None:
    endpoint = f"127.0.0.1:{free_port()}"
    collector = stage.fulgurite("collector", "--listen", endpoint)
    host = Host(stage, host_program, endpoint)
    host.is_acknowledged(50)
    collector.signal(signal.SIGKILL)
    collector.wait()
    host.generates()
    assert all(account["seconds"] < 5.0 for account in host.accounts)
    stage.fulgurite("collector", "--listen", endpoint)
    host.is_acknowledged(50)
    final = host.leaves()
    assert balance(final) == 0
    assert final["pending"] == 0
    assert final["captured"] == final["tokens"]
    assert len(host.complaints) <= 2, host.complaints


@pytest.mark.skipif(shutil.which("redis-server") is None, reason="no redis-server on this machine")
def test_a_store_that_is_killed_and_restarted_stops_nobody(
    stage: Any, host_program: Path, free_port: Callable[[], int], tmp_path: Path
) -> None:
    redis_port, endpoint = free_port(), f"127.0.0.1:{free_port()}"
    server = ("redis-server", "--port", str(redis_port), "--dir", str(tmp_path), "--appendonly", "yes")
    redis = stage.start(*server)
    redis.says("Ready to accept connections")
    collector = stage.fulgurite(
        "collector", "--listen", endpoint, "--redis", f"redis://127.0.0.1:{redis_port}"
    )
    host = Host(stage, host_program, endpoint)
    host.is_acknowledged(50)
    redis.signal(signal.SIGKILL)
    redis.wait()
    host.generates()
    assert collector.process.poll() is None, collector.err
    asked = stage.fulgurite("replicas", "--collector", endpoint)
    assert asked.wait() == 1
    assert any("waits for its store: the store is away" in line for line in asked.err), asked.err
    stage.start(*server).says("Ready to accept connections")
    host.is_acknowledged(50)
    final = host.leaves()
    assert balance(final) == 0
    assert final["pending"] == 0


def test_a_collector_without_its_store_says_so_and_leaves(stage: Any, free_port: Callable[[], int]) -> None:
    url = f"redis://127.0.0.1:{free_port()}"
    collector = stage.fulgurite("collector", "--listen", f"127.0.0.1:{free_port()}", "--redis", url)
    assert collector.wait() == 1
    assert "Traceback" not in "\n".join(collector.err)
    assert any(url.removeprefix("redis://") in line for line in collector.err), collector.err
    stage.nobody_is_left()


def test_an_occupied_port_is_said_in_a_line_and_no_process_is_left(
    stage: Any, free_port: Callable[[], int]
) -> None:
    endpoint = f"127.0.0.1:{free_port()}"
    first = stage.fulgurite("collector", "--listen", endpoint)
    first.until(lambda: _replicas(stage, endpoint) == 0)
    second = stage.fulgurite("collector", "--listen", endpoint)
    assert second.wait() in (1, 2)
    assert "Traceback" not in "\n".join(second.err)
    assert any(endpoint in line for line in second.err), second.err
    first.signal(signal.SIGTERM)
    assert first.wait() == 0
    stage.nobody_is_left()


def _replicas(stage: Any, endpoint: str) -> int:
    return int(stage.fulgurite("replicas", "--collector", endpoint).wait())
