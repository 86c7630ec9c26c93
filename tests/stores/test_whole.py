"""Agent, collector, and a cluster whose primary is killed: every frame has a fate and is stored once."""

from __future__ import annotations

import asyncio
import json
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.chaos.numbered import numbers_in
from tests.chaos.plan import plan_of
from tests.chaos.processes import Actor, Host, free_port, listens, python
from tests.chaos.verdict import Account, broken_promises
from tests.stores import machines

from fulgurite.collector.store import Position
from fulgurite.wire.replica import ReplicaKey

redis_store = pytest.importorskip("fulgurite.collector.stores.redis", reason="needs the extra: collector")

pytestmark = [pytest.mark.system, pytest.mark.timeout(180)]

PLAN = replace(
    plan_of(0), fsync="always", replicas=1, frames_per_s=1000, rows=4, encoding="exact", faults=(),
    ends_in_the_storm=False, spool_bytes=0, budget_bytes=16 << 20,
)  # fmt: skip
KEY = ReplicaKey("", "chaos", "cluster-0")


def orders(port: int) -> str:
    return json.dumps(
        {
            "endpoint": f"127.0.0.1:{port}", "ca": "", "run": "cluster", "replicas": 1, "rows": PLAN.rows,
            "frames_per_s": PLAN.frames_per_s, "budget_bytes": PLAN.budget_bytes, "encoding": PLAN.encoding,
            "is_impatient": True, "flush_s": 60.0, "waits": False, "spool": "", "spool_bytes": 0,
        }
    )  # fmt: skip


class Told:
    """A host process and what it says of itself."""

    def __init__(self, port: int, folder: Path) -> None:
        self.host = Host(
            python("-m", "tests.chaos.host", orders(port)), log=folder / "host.log", is_ready=lambda: True
        )
        self.host.start(wait=False)
        assert self.host.line() == "ready\n", self.host.last_words

    def says(self, word: str) -> Any:
        self.host.tell(word)
        line = self.host.line()
        assert line, self.host.last_words
        return json.loads(line)

    @property
    def acknowledged(self) -> int:
        return int(self.says("tell")[0]["acknowledged"])


def until(condition: Callable[[], Any], timeout_s: float = 60.0) -> None:
    limit_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < limit_s, "not in time"
        time.sleep(0.1)


async def stored(url: str) -> list[int]:
    store = redis_store.RedisStore(url)
    await store.open()
    try:
        batches: list[bytes] = []
        after = Position()
        while (page := await store.read(KEY, after, limit=256)).entries:
            batches += [entry.batch for entry in page.entries if entry.count]
            after = page.position
        return numbers_in(batches, PLAN.encoding)
    finally:
        await store.close()


def test_the_death_of_a_primary_loses_nothing_from_end_to_end(tmp_path: Path) -> None:
    binary = machines.BINARIES["redis"]()
    if binary is None or not machines.has_cli():
        pytest.skip("no redis-server and redis-cli on this machine")
    with machines.sharded(binary, tmp_path / "cluster") as cluster:
        port, url = free_port(), f"{cluster.url}?wait_replicas=1"
        collector = Actor(
            python(
                "-m",
                "fulgurite.collector",
                "--listen",
                f"127.0.0.1:{port}",
                "--redis",
                url,
                "--history",
                "all",
            ),
            log=tmp_path / "collector.log",
            is_ready=lambda: listens(port),
        )
        told = None
        try:
            collector.start()
            told = Told(port, tmp_path)
            until(lambda: told.acknowledged > 200)
            name = f"fulgurite:{{{KEY.text}}}:frames"
            victim = cluster.primary_of(name)
            assert victim is not None
            victim.actor.signal(signal.SIGKILL)
            before = told.acknowledged
            until(lambda: cluster.primary_of(name) not in (victim, None))
            victim.actor.start()
            until(lambda: told.acknowledged > before + 1000)
            end = told.says("stop")
            assert end["flushed"]
            assert broken_promises(PLAN, Account.of(end["replicas"][0]), asyncio.run(stored(url))) == []
            assert "Traceback" not in collector.last_words
        finally:
            collector.kill()
            if told is not None:
                told.host.kill()
