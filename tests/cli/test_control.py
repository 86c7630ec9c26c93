"""`fulgurite control` reaches a real agent through a real collector, and says what it may not."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from fulgurite.agent.exporter import GrpcExporter
from fulgurite.cli.__main__ import main
from fulgurite.collector.config import Listen, Settings
from fulgurite.collector.server import Collector
from fulgurite.collector.stores.memory import MemoryStore
from fulgurite.wire.frame import FrameBlock, RequestRef
from fulgurite.wire.topology import Topology

TOPOLOGY = Topology(
    model_name="tiny", architecture="x", layers=2, heads=2, kv_heads=2, head_dim=4, hidden_size=8, ffn_size=8,
    vocab_size=9,
)  # fmt: skip


@pytest.fixture
def address() -> Iterator[str]:
    """A collector on a loop in a thread."""
    ready, over, found = threading.Event(), threading.Event(), []

    async def serve() -> None:
        async with Collector(MemoryStore(), Settings(listen=Listen("127.0.0.1", 0))) as collector:
            found.append(str(collector.address))
            ready.set()
            await asyncio.to_thread(over.wait)

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    assert ready.wait(30)
    yield found[0]
    over.set()
    thread.join(30)


@pytest.fixture
def exporter(address: str) -> Iterator[GrpcExporter]:
    """An agent whose ceiling is `heads`."""
    exporter = GrpcExporter(address)
    names = {"service.name": "chat", "service.instance.id": "one"}
    exporter.attach(TOPOLOGY, level="heads", ceiling="heads", tokens="off", resource=names)
    columns: dict[str, Any] = {
        name: np.zeros(1, dtype)
        for name, dtype in {
            "request_index": np.uint16, "sequence": np.uint16, "position": np.int32, "token_id": np.int32,
            "phase": np.uint8, "level": np.uint8, "step": np.int64, "started_ns": np.int64,
            "ended_ns": np.int64,
        }.items()
    }  # fmt: skip
    exporter.export(FrameBlock((RequestRef("r"),), columns))
    assert exporter.flush(20)
    yield exporter
    exporter.close(1.0)


def until(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_level_pause_and_kill_reach_the_agent(
    address: str, exporter: GrpcExporter, capsys: pytest.CaptureFixture[str]
) -> None:
    def control(*arguments: str) -> str:
        assert main(["control", "--collector", address, *arguments]) == 0
        return capsys.readouterr().out.strip()

    assert exporter.wanted_level() == "heads"  # of the history, while nobody watches
    assert control("chat", "--level", "pulse", "--deep-ratio", "0.5") == (
        "/chat/one: level pulse, deep ratio 0.5"
    )
    until(lambda: exporter.wanted_level() == "pulse")
    assert exporter.wanted_deep_ratio() == 0.5
    assert control("chat/one", "--pause") == "/chat/one: level pulse, deep ratio 0.5, paused"
    until(lambda: exporter.wanted_level() == "off")
    assert control("*", "--resume", "--level", "own", "--deep-ratio", "own") == "/chat/one: level its own"
    until(lambda: exporter.wanted_level() == "heads")
    assert "capture ended" in control("*", "--kill")
    until(lambda: exporter.wanted_level() == "off")


def test_what_cannot_be_done_is_one_line_and_a_status(
    address: str, exporter: GrpcExporter, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments, status, message in (
        (["chat", "--level", "deep"], 1, "refused: level deep is above heads"),
        (["chat"], 2, "nothing is asked for"),
        (["chat", "--deep-ratio", "2"], 2, "between 0 and 1"),
        (["nobody", "--pause"], 1, "no replica matches nobody"),
    ):
        assert main(["control", "--collector", address, *arguments]) == status
        said = capsys.readouterr().err.strip()
        assert message in said
        assert len(said.splitlines()) == 1
    assert exporter.wanted_level() == "heads"
