"""A primary is killed under writers: they wait, go on with its successor, and lose nothing acknowledged."""

from __future__ import annotations

import asyncio
import signal
from itertools import count
from pathlib import Path

import pytest
from tests.stores import machines
from tests.stores.writing import opened, reached, read_all, writing

from fulgurite.wire.replica import ReplicaKey

pytest.importorskip("redis", reason="the collector needs the extra: collector")

pytestmark = [pytest.mark.system, pytest.mark.timeout(120)]


@pytest.fixture
def binary() -> str:
    found = machines.BINARIES["redis"]()
    if found is None or not machines.has_cli():
        pytest.skip("no redis-server and redis-cli on this machine")
    return found


def name_of(key: ReplicaKey) -> str:
    """Of one of its keys."""
    return f"fulgurite:{{{key.text}}}:frames"


def serving(cluster: machines.Sharded, key: ReplicaKey) -> machines.Server:
    """The primary that holds a replica."""
    found = cluster.primary_of(name_of(key))
    assert found is not None
    return found


def on_every_shard(cluster: machines.Sharded) -> list[ReplicaKey]:
    """One replica on each of the three primaries."""
    found: dict[int, ReplicaKey] = {}
    for number in count():
        key = ReplicaKey("", "chaos", f"replica-{number}")
        found.setdefault(serving(cluster, key).port, key)
        if len(found) == 3:
            return list(found.values())
    raise AssertionError


def test_a_cluster_survives_the_death_of_a_primary(binary: str, tmp_path: Path) -> None:
    async def run(cluster: machines.Sharded) -> None:
        keys = on_every_shard(cluster)
        victim = serving(cluster, keys[0])
        async with opened(f"{cluster.url}?wait_replicas=1") as store:
            for key in keys:
                await store.announce(key, b"schema", b"announced")
            async with writing(store, *keys) as writers:
                await reached(lambda: all(writer.written >= 50 for writer in writers))
                victim.actor.signal(signal.SIGKILL)
                before = writers[0].written
                # Without a replica left, its shard takes no more that asks for one: hence the next test.
                await reached(lambda: cluster.primary_of(name_of(keys[0])) not in (victim, None))
                victim.actor.start()
                await reached(lambda: all(writer.written >= before + 50 for writer in writers))
            for writer in writers:
                stored = await read_all(store, writer.key)
                assert stored == list(range(1, len(stored) + 1))
                assert writer.written <= len(stored) <= writer.written + 1  # the last was not awaited
            assert [row.key for row in await store.replicas()] == sorted(keys)

    with machines.sharded(binary, tmp_path) as cluster:
        asyncio.run(run(cluster))


def test_a_cluster_that_need_not_wait_goes_on_with_the_replica_alone(binary: str, tmp_path: Path) -> None:
    async def run(cluster: machines.Sharded) -> None:
        key = on_every_shard(cluster)[0]
        victim = serving(cluster, key)
        async with opened(cluster.url) as store:
            async with writing(store, key) as (writer,):
                await reached(lambda: writer.written >= 50)
                known, offset = writer.written, machines.offset(victim)
                await reached(lambda: machines.heard(victim) >= offset)
                victim.actor.signal(signal.SIGKILL)
                before = writer.written
                await reached(lambda: writer.written >= before + 50)
            stored = await read_all(store, key)
            assert stored == sorted(set(stored))
            # Replication is asynchronous: what its successor had not heard of may be missing, and no more.
            assert set(range(1, writer.written + 1)) - set(stored) <= set(range(known + 1, before + 2))

    with machines.sharded(binary, tmp_path) as cluster:
        asyncio.run(run(cluster))


def test_sentinels_name_a_successor_and_nothing_acknowledged_is_lost(binary: str, tmp_path: Path) -> None:
    async def run(them: machines.Replicated) -> None:
        key = ReplicaKey("", "chaos", "replica")
        async with opened(f"{them.url}?wait_replicas=1") as store:
            async with writing(store, key) as (writer,):
                await reached(lambda: writer.written >= 50)
                them.primary.actor.signal(signal.SIGKILL)
                before = writer.written
                await reached(lambda: writer.written >= before + 50)
            stored = await read_all(store, key)
            assert stored == list(range(1, len(stored) + 1))
            assert writer.written <= len(stored) <= writer.written + 1

    with machines.replicated(binary, tmp_path) as them:
        asyncio.run(run(them))
