"""Figures are in the store about once a second, and the past stays within its bounds."""

from __future__ import annotations

from tests.collector.stage import Agent, asynchronous, collecting, until

from fulgurite.collector.store import Position, Retention
from fulgurite.collector.stores.memory import MemoryStore
from fulgurite.v1 import viewer_pb2
from fulgurite.wire.replica import ReplicaKey

KEY = ReplicaKey("", "served", "a")


@asynchronous
async def test_the_figures_are_in_the_store_for_any_collector() -> None:
    store = MemoryStore()
    async with collecting(store) as collector:
        agent = await Agent(collector.address).hello()
        await agent.send(1, 40)
        await agent.acknowledged(40)

        async def written() -> viewer_pb2.ReplicaStatus | None:
            (row,) = await store.replicas()
            status = viewer_pb2.ReplicaStatus.FromString(row.status)
            return status if row.alive and status.tokens_total == 40 else None

        status = await until(written)
        assert (status.state, status.model_name, status.layers, status.heads) == ("live", "tiny", 2, 4)
        assert status.inter_token.count == 39
        assert abs(status.inter_token.p50_s - 0.010) < 1e-9
        assert status.tokens_per_s > 0
        await agent.hang_up()


@asynchronous
async def test_what_is_older_than_the_retention_goes_while_the_agent_is_connected_and_after() -> None:
    store = MemoryStore(Retention(age_s=1.0))
    async with collecting(store, retention_s=1.0) as collector:
        agent = await Agent(collector.address).hello()

        async def is_empty() -> bool:
            return not (await store.read(KEY, Position(), limit=10)).entries

        await agent.send(1)
        await agent.acknowledged(4)
        assert not await is_empty()
        await until(is_empty)
        await agent.send(5)
        await agent.acknowledged(8)
        await agent.hang_up()
        await until(is_empty)
