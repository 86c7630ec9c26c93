"""A server whose memory is full is back-pressure: nothing is lost, and what is too old makes room again."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.fuzz.seeds import hellos
from tests.stores import machines
from tests.stores.writing import EPOCH, HASH, entry, opened, reached, read_all, writing

from fulgurite.collector.fleet import Fleet
from fulgurite.collector.hello import introduction
from fulgurite.collector.keeper import Keeper
from fulgurite.collector.outage import Outage
from fulgurite.collector.replicas import Replicas
from fulgurite.collector.store import Registration, Retention, StoreUnavailable
from fulgurite.collector.stores.redis import RedisStore
from fulgurite.wire.replica import ReplicaKey

pytest.importorskip("redis", reason="the collector needs the extra: collector")

pytestmark = [pytest.mark.system]

KEY = ReplicaKey("", "chaos", "replica")


@pytest.fixture(params=sorted(machines.BINARIES))
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[machines.Server]:
    binary = machines.BINARIES[request.param]()
    if binary is None:
        pytest.skip(f"no {request.param} on this machine")
    with machines.server(binary, tmp_path) as started:
        yield started


def used(port: int) -> int:
    lines = machines.cli(port, "info", "memory").splitlines()
    return next(int(line.partition(":")[2]) for line in lines if line.startswith("used_memory:"))


async def is_full(store: RedisStore) -> None:
    """Wait until it refuses what is larger, as it says."""

    async def fill() -> None:
        for _ in range(1000):
            await store.beat(KEY, bytes(4096))

    with pytest.raises(StoreUnavailable, match=r"refuses: .*maxmemory"):
        await fill()


@pytest.mark.skipif(not machines.has_cli(), reason="no redis-cli on this machine")
def test_a_full_server_refuses_and_goes_on_where_it_was_when_there_is_room(server: machines.Server) -> None:
    async def run() -> None:
        async with opened(f"redis://127.0.0.1:{server.port}") as store:
            await store.announce(KEY, HASH, b"announced")
            async with writing(store, KEY) as (writer,):
                await reached(lambda: writer.written >= 20)
                machines.cli(server.port, "config", "set", "maxmemory", str(used(server.port)))
                await is_full(store)
                before = writer.written
                machines.cli(server.port, "config", "set", "maxmemory", "0")
                await reached(lambda: writer.written >= before + 20)
            stored = await read_all(store, KEY)
            assert stored == list(range(1, writer.written + 1))

    asyncio.run(run())


@pytest.mark.skipif(not machines.has_cli(), reason="no redis-cli on this machine")
def test_what_is_too_old_makes_room_in_a_full_server_though_nothing_can_be_written(
    server: machines.Server,
) -> None:
    async def run() -> None:
        retention = Retention(age_s=1.0)
        async with opened(f"redis://127.0.0.1:{server.port}", retention=retention) as store:
            replicas = Replicas(store, Fleet(store))
            replica = await replicas.introduce(introduction(hellos()[0]), Registration(EPOCH, 0))
            await store.append(replica.key, [entry(number) for number in range(1, 2001)])
            outage = Outage(0.1)
            keeper = Keeper(store, replicas, retention=retention, outage=outage)
            await keeper.keep()
            machines.cli(server.port, "config", "set", "maxmemory", str(used(server.port) - 100_000))
            with pytest.raises(StoreUnavailable):
                await store.append(replica.key, [entry(2001)])
            keeping = asyncio.create_task(keeper.run())
            try:
                await outage.outlast(
                    "write", lambda: store.append(replica.key, [entry(2001)]), asyncio.Event()
                )
            finally:
                keeping.cancel()
            assert await read_all(store, replica.key) == [2001]

    asyncio.run(run())
