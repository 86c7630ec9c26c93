"""Agents in: what is acknowledged is stored, once, as it was written; whoever breaks a rule hears which."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, suppress
from typing import Any

import grpc
import pytest
from tests.collector.stage import (
    TOPOLOGY,
    Agent,
    StoreServer,
    Viewer,
    asynchronous,
    batch_of,
    block_of,
    collecting,
    hello_of,
    listed,
    until,
)

from fulgurite.agent.exporter import GrpcExporter
from fulgurite.collector.store import Entry, Position, Store
from fulgurite.collector.stores.memory import MemoryStore
from fulgurite.v1 import agent_pb2, frame_pb2
from fulgurite.wire.codec import schema_for, topology_to_pb
from fulgurite.wire.frame import RequestEvent
from fulgurite.wire.replica import ReplicaKey

KEY = ReplicaKey("", "served", "a")

Serve = Callable[[], AbstractAsyncContextManager[StoreServer]]


async def stored(store: Store, key: ReplicaKey = KEY) -> list[Entry]:
    found: list[Entry] = []
    position = Position()
    while (page := await store.read(key, position, limit=100)).entries:
        found += page.entries
        position = page.position
    return found


def spans(entries: list[Entry]) -> list[tuple[int, int]]:
    return [(entry.first_sequence, entry.id.sequence) for entry in entries if entry.count]


@asynchronous
async def test_a_batch_is_stored_byte_for_byte_under_its_own_id_then_acknowledged() -> None:
    store = MemoryStore()
    async with collecting(store) as collector:
        agent = await Agent(collector.address).hello()
        assert agent.epoch_ms > 0
        assert agent.resume_after == 0
        # Fields in an order in which no serialiser writes them.
        batch = frame_pb2.Batch(sent_ns=7).SerializeToString() + batch_of(agent.epoch_ms, 1)
        assert frame_pb2.Batch.FromString(batch).SerializeToString() != batch
        await agent.write(b"\x12" + _length(batch) + batch)
        await agent.acknowledged(4)
        (entry,) = await stored(store)
        assert (entry.batch, entry.id.text, entry.count) == (batch, f"{agent.epoch_ms}-4", 4)
        assert agent.acks[-1].epoch_ms == agent.epoch_ms
        await agent.hang_up()


def _length(data: bytes) -> bytes:
    assert 128 <= len(data) < 128 * 128
    return bytes([len(data) & 0x7F | 0x80, len(data) >> 7])


@asynchronous
async def test_many_batches_need_few_acknowledgements() -> None:
    async with collecting() as collector:
        agent = await Agent(collector.address).hello()
        for first in range(1, 401, 4):
            await agent.send(first)
        await agent.acknowledged(400)
        assert len(agent.acks) <= 20
        assert [ack.sequence for ack in agent.acks] == sorted({ack.sequence for ack in agent.acks})
        await agent.hang_up()


@asynchronous
async def test_events_alone_are_stored_and_need_no_acknowledgement() -> None:
    store = MemoryStore()
    async with collecting(store) as collector:
        agent = await Agent(collector.address).hello()
        await agent.send(1)
        await agent.acknowledged(4)
        sent = await agent.send(5, 0, events=(RequestEvent(request_id="r", kind="finished", time_ns=1),))
        await until(lambda: _has_entries(store, 2))
        event = (await stored(store))[1]
        assert (event.batch, event.count, event.id.sequence) == (sent, 0, 4)
        assert len(agent.acks) == 1
        await agent.hang_up()


async def _has_entries(store: Store, count: int) -> bool:
    return len(await stored(store)) >= count


@asynchronous
async def test_after_a_break_the_agent_goes_on_where_the_store_is_and_nothing_counts_twice() -> None:
    store = MemoryStore()
    async with collecting(store) as collector:
        viewer = Viewer(collector.address, history_s=60.0)
        first = await Agent(collector.address).hello()
        await first.send(1)
        await first.send(5)
        await first.acknowledged(8)
        await first.hang_up()
        second = await Agent(collector.address).hello(epoch_ms=first.epoch_ms)
        assert (second.epoch_ms, second.resume_after) == (first.epoch_ms, 8)
        await second.send(5)  # as an agent does whose acknowledgement was lost
        await second.send(9)
        await second.acknowledged(12)
        assert spans(await stored(store)) == [(1, 4), (5, 8), (9, 12)]
        await viewer.seen(12)
        assert viewer.spans == [(1, 4), (5, 8), (9, 12)]
        (status,) = await listed(collector.address)
        assert status.tokens_total == 12
        await second.hang_up()
        await viewer.close()


@asynchronous
async def test_the_count_of_tokens_goes_on_with_another_collector() -> None:
    store = MemoryStore()
    async with collecting(store) as one:
        agent = await Agent(one.address).hello()
        await agent.send(1, 10)
        await agent.acknowledged(10)
        await agent.say(goodbye=agent_pb2.Goodbye(reason="closed"))
        await agent.call.done_writing()
        await until(agent.call.done)
        epoch_ms = agent.epoch_ms
    async with collecting(store) as two:
        agent = await Agent(two.address).hello(epoch_ms=epoch_ms)
        assert agent.resume_after == 10
        await agent.send(11, 5)
        await agent.acknowledged(15)
        (status,) = await listed(two.address)
        assert status.tokens_total == 15
        await agent.hang_up()


@asynchronous
async def test_an_epoch_that_no_collector_gave_is_not_taken_up() -> None:
    async with collecting() as collector:
        agent = await Agent(collector.address).hello(epoch_ms=1 << 60)
        assert agent.epoch_ms < 1 << 60
        await agent.send(1)
        await agent.acknowledged(4)
        await agent.hang_up()


OTHER_SCHEMA = schema_for(TOPOLOGY, "compact")

REFUSALS: list[tuple[str, Callable[[], list[bytes]], str, bool]] = [
    ("garbage", lambda: [b"\xff\xfe\x00garbage"], "10 bytes came that are not a message of an agent", True),
    (
        "no hello",
        lambda: [_message(stats=agent_pb2.AgentStats())],
        "the first message must be a hello, not stats",
        True,
    ),
    (
        "nothing",
        lambda: [b""],
        "the first message must be a hello, not one of a kind that is not known here",
        True,
    ),
    (
        "the future",
        lambda: [_message(hello=hello_of(protocol=9))],
        "the agent speaks protocol 9, this collector up to 1: update the collector",
        False,
    ),
    ("no protocol", lambda: [_message(hello=hello_of(protocol=0))], "the hello names no protocol", True),
    (
        "no name",
        lambda: [_message(hello=hello_of(service=""))],
        "a replica needs a service name: set OTEL_SERVICE_NAME",
        True,
    ),
    (
        "no instance",
        lambda: [_message(hello=hello_of(""))],
        "a replica needs a service.instance.id: set it in OTEL_RESOURCE_ATTRIBUTES",
        True,
    ),
    (
        "level",
        lambda: [_message(hello=hello_of(level="loud"))],
        "no such level: 'loud'; it is one of off, pulse, heads, deep",
        True,
    ),
    (
        "topology",
        lambda: [_message(hello=hello_of(topology=frame_pb2.Topology()))],
        "a topology without layers",
        True,
    ),
    (
        "another topology",
        lambda: [_message(hello=hello_of(topology=_renamed()))],
        "the schema belongs to another topology: their hashes differ",
        True,
    ),
    (
        "large hello",
        lambda: [_message(hello=hello_of(agent_version="x" * (1 << 20)))],
        "a first message of 1049744 bytes; a hello has at most 1048576",
        True,
    ),
    (
        "two hellos",
        lambda: [_message(hello=hello_of()), _message(hello=hello_of())],
        "a second hello came on one stream",
        True,
    ),
    (
        "half a batch",
        lambda: [_message(hello=hello_of()), b"\x12\x05\x08\x01\x10\x01\x18"],
        "not a batch: Error parsing message",
        True,
    ),
    (
        "another schema",
        lambda: [_message(hello=hello_of()), _batch(batch_of(1, 1, schema=OTHER_SCHEMA))],
        "the batch was written for another schema: their hashes differ",
        True,
    ),
    (
        "another epoch",
        lambda: [_message(hello=hello_of(epoch_ms=5)), _batch(batch_of(4, 1))],
        "a batch of epoch 4 where 5 was agreed",
        True,
    ),
    (
        "again in part",
        lambda: [_message(hello=hello_of(epoch_ms=5)), _batch(batch_of(5, 1)), _batch(batch_of(5, 3))],
        "a batch of frames 3 to 6: up to 4 they came before",
        True,
    ),
    (
        "large word",
        lambda: [_message(hello=hello_of()), _message(goodbye=agent_pb2.Goodbye(reason="x" * (64 << 10)))],
        "a message of 65544 bytes that is no batch; at most 65536",
        True,
    ),
]


def _message(**fields: Any) -> bytes:
    return agent_pb2.AgentMessage(**fields).SerializeToString()


def _batch(data: bytes) -> bytes:
    return _message(batch=frame_pb2.Batch.FromString(data))


def _renamed() -> frame_pb2.Topology:
    topology = topology_to_pb(TOPOLOGY)
    topology.model_name = "another"
    return topology


@pytest.mark.parametrize(
    ("sent", "reason", "final"), [row[1:] for row in REFUSALS], ids=[row[0] for row in REFUSALS]
)
@asynchronous
async def test_who_breaks_a_rule_is_told_which(
    sent: Callable[[], list[bytes]], reason: str, final: bool
) -> None:
    async with collecting() as collector:
        agent = Agent(collector.address)
        for data in sent():
            await agent.write(data)
        refusal = await agent.refusal()
        assert (
            refusal.reason.startswith(reason)
            if reason.startswith("not a batch")
            else refusal.reason == reason
        )
        assert refusal.final is final
        await agent.hang_up()


@asynchronous
async def test_what_came_before_a_broken_message_is_kept_and_acknowledged() -> None:
    store = MemoryStore()
    async with collecting(store) as collector:
        agent = await Agent(collector.address).hello()
        await agent.send(1)
        await agent.write(b"\xff")
        refusal = await agent.refusal()
        assert refusal.reason == "1 bytes came that are not a message of an agent"
        assert [ack.sequence for ack in agent.acks] == [4]
        assert spans(await stored(store)) == [(1, 4)]
        await agent.hang_up()


@asynchronous
async def test_a_broken_agent_disturbs_nobody_else(caplog: pytest.LogCaptureFixture) -> None:
    async with collecting() as collector:
        good = await Agent(collector.address).hello("good")
        bad = Agent(collector.address)
        await bad.write(b"\xff\xff\xff")
        await bad.refusal()
        await good.send(1)
        await good.acknowledged(4)
        await good.hang_up()
        await bad.hang_up()
    assert not [record for record in caplog.records if record.exc_info]


@asynchronous
async def test_more_replicas_than_the_limit_are_asked_to_come_later() -> None:
    async with collecting(max_replicas=1) as collector:
        first = await Agent(collector.address).hello("a")
        second = Agent(collector.address)
        await second.say(hello=hello_of("b"))
        refusal = await second.refusal()
        assert refusal.reason == "1 replicas are connected to this collector, which is its limit"
        assert not refusal.final
        await first.hang_up()
        third = await until(lambda: _is_let_in(collector.address))
        await third.hang_up()


async def _is_let_in(address: object) -> Agent | None:
    agent = Agent(address)
    await agent.say(hello=hello_of("b"))
    message = await agent.hear("welcome", "refusal")
    if message.HasField("welcome"):
        return agent
    await agent.hang_up()
    return None


@asynchronous
async def test_two_processes_of_one_name_are_told_to_take_two() -> None:
    reason = (
        "another process announced itself as /served/a: give each process a service.instance.id of its own"
    )
    store = MemoryStore()
    async with collecting(store) as one, collecting(store) as two:
        first = await Agent(one.address).hello()
        second = await Agent(one.address).hello()
        assert second.epoch_ms > first.epoch_ms
        refusal = await first.refusal()
        assert (refusal.reason, refusal.final) == (reason, True)
        third = await Agent(two.address).hello()  # the other collector shares nothing but the store
        await third.send(1)
        await third.acknowledged(4)
        await second.send(1)
        refusal = await second.refusal()
        assert (refusal.reason, refusal.final) == (reason, True)
        for agent in (first, second, third):
            await agent.hang_up()


@asynchronous
async def test_the_same_process_that_comes_again_replaces_its_old_stream_quietly() -> None:
    store = MemoryStore()
    async with collecting(store) as collector:
        first = await Agent(collector.address).hello()
        await first.send(1)
        await first.acknowledged(4)
        second = await Agent(collector.address).hello(epoch_ms=first.epoch_ms)
        assert second.resume_after == 4
        await second.send(5)
        await second.acknowledged(8)
        assert (await listed(collector.address))[0].state == "live"
        assert spans(await stored(store)) == [(1, 4), (5, 8)]
        for agent in (first, second):
            await agent.hang_up()


async def _opened(stack: AsyncExitStack, server: Any, **settings: Any) -> Any:
    """A store on a server, closed by `stack`."""
    from fulgurite.collector.stores.redis import RedisStore

    store = RedisStore(server.url, **settings)
    stack.push_async_callback(store.close)
    await store.open()
    return store


@asynchronous
async def test_while_the_store_is_away_nothing_is_acknowledged_and_then_everything_is(
    store_server: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "fulgurite")
    async with store_server() as server, AsyncExitStack() as stack:
        store = await _opened(stack, server, durability="always", label="the server of the test")
        collector = await stack.enter_async_context(collecting(store))
        agent = await Agent(collector.address).hello()
        await agent.send(1)
        await agent.acknowledged(4)
        await server.kill()
        for first in range(5, 45, 4):
            await agent.send(first)
        await until(lambda: any("the store is away" in line for line in caplog.messages))
        assert [ack.sequence for ack in agent.acks] == [4]
        newcomer = Agent(collector.address)
        await newcomer.say(hello=hello_of("newcomer"))
        refusal = await newcomer.refusal()
        assert refusal.reason.startswith("the store is away: the server of the test does not answer")
        assert not refusal.final
        await server.start()
        await agent.acknowledged(44)
        assert spans(await stored(store)) == [(first, first + 3) for first in range(1, 45, 4)]
        await until(lambda: any("the store answers again" in line for line in caplog.messages))
        assert len([line for line in caplog.messages if "the store is away" in line]) == 1
        await agent.hang_up()
        await newcomer.hang_up()


@asynchronous
async def test_a_collector_that_ends_does_not_take_its_own_end_for_an_outage(
    store_server: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    """What the store has not taken by the end is cut off before the store is let go of, and comes again."""
    caplog.set_level(logging.WARNING, "fulgurite")
    async with store_server() as server, AsyncExitStack() as stack:
        store = await _opened(stack, server)
        collector = await stack.enter_async_context(collecting(store, drain_s=0.05))
        agent = await Agent(collector.address).hello()
        await agent.send(1)
        await agent.acknowledged(4)
        server.stop()  # it takes longer than the collector has left
        for first in range(5, 45, 4):
            await agent.send(first)
        (intake,) = collector._agents._running
        await until(lambda: intake.link._seen > 4)
        await stack.aclose()
        assert not collector._agents._running
        await until(
            lambda: not [task for task in asyncio.all_tasks() if task.get_name().startswith("intake")]
        )
        assert [line for line in caplog.messages if "away" in line] == []
        await agent.hang_up()


@asynchronous
async def test_an_agent_that_was_about_to_be_let_in_is_not_when_the_collector_ends(
    store_server: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "fulgurite")
    async with store_server() as server, AsyncExitStack() as stack:
        store = await _opened(stack, server)
        collector = await stack.enter_async_context(collecting(store))
        agent = Agent(collector.address)
        server.stop()
        await agent.say(hello=hello_of())
        await until(lambda: KEY in collector._agents._doors)
        ending = asyncio.create_task(stack.aclose())
        await until(lambda: collector._agents._closing)
        server.go_on()
        with suppress(grpc.aio.AioRpcError):  # where the store is slower than the collector's last second
            refusal = await agent.refusal()
            assert (refusal.reason, refusal.final) == ("this collector is about to end", False)
        await ending
        assert not collector._agents._running
        assert [line for line in caplog.messages if "away" in line] == []
        await agent.hang_up()


@asynchronous
async def test_while_the_store_is_away_no_more_than_the_bound_is_held(store_server: Serve) -> None:
    padding, batches = 30_000, 200
    async with store_server() as server, AsyncExitStack() as stack:
        store = await _opened(stack, server, durability="always")
        collector = await stack.enter_async_context(collecting(store, held_bytes=1 << 20))
        agent = await Agent(collector.address).hello()
        await agent.send(1, 1)
        await agent.acknowledged(1)
        await server.kill()
        writing = asyncio.create_task(_write(agent, batches, padding))
        intake = collector._agents._intakes[KEY]
        await until(lambda: intake.inbox.nbytes > (1 << 20) - 2 * padding)
        assert intake.inbox.nbytes <= 1 << 20
        assert not writing.done()
        await server.start()
        await agent.acknowledged(1 + batches)
        await writing
        assert len(await stored(store)) == 1 + batches
        await agent.hang_up()


async def _write(agent: Agent, batches: int, padding: int) -> None:
    for sequence in range(2, 2 + batches):
        await agent.send(sequence, 1, padding=padding)


@asynchronous
async def test_a_goodbye_ends_the_replica_and_silence_loses_it() -> None:
    async with collecting() as collector:
        one, two = await Agent(collector.address).hello("one"), await Agent(collector.address).hello("two")
        await one.send(1)
        await one.say(goodbye=agent_pb2.Goodbye(reason="closed"))
        await one.call.done_writing()
        await one.acknowledged(4)
        await two.send(1)
        await two.acknowledged(4)
        assert await until(lambda: _states(collector.address, one="ended"))
        await two.hang_up()
        assert await until(lambda: _states(collector.address, one="ended", two="lost"))
        lost = (await listed(collector.address, "served/two"))[0]
        assert (lost.tokens_per_s, lost.running_sequences, lost.tokens_total) == (0.0, 0, 4)


async def _states(address: object, **wanted: str) -> bool:
    states = {status.resource.service_instance_id: status.state for status in await listed(address)}
    return wanted.items() <= states.items()


@asynchronous
async def test_a_call_that_is_cancelled_while_it_ends_leaves_all_the_same() -> None:
    async with collecting() as collector:
        service, fed = collector._agents, asyncio.Event()
        call = asyncio.create_task(service.connect(_Lingering(fed), _Deaf()))
        assert await until(lambda: service._intakes)
        replica = next(iter(service._intakes.values())).replica
        call.cancel()
        await fed.wait()  # its reader was told to end, and it waits for it
        call.cancel()
        with suppress(asyncio.CancelledError):
            await call
        assert not service._intakes
        assert replica.left_s is not None


class _Lingering:
    """What an agent sends: a hello, and then nothing. Whoever ends the reading waits a while."""

    def __init__(self, ending: asyncio.Event) -> None:
        self._ending = ending
        self._hello: list[bytes] = [agent_pb2.AgentMessage(hello=hello_of()).SerializeToString()]

    def __aiter__(self) -> _Lingering:
        return self

    async def __anext__(self) -> bytes:
        if self._hello:
            return self._hello.pop()
        try:
            await asyncio.Event().wait()
        finally:
            self._ending.set()
            await asyncio.sleep(0.1)
        raise StopAsyncIteration


class _Deaf:
    """A call to which nothing that is written matters."""

    async def write(self, message: object) -> None:
        """Take it."""


@asynchronous
async def test_a_collector_that_ends_stores_and_acknowledges_what_came() -> None:
    store = MemoryStore()
    async with collecting(store, ack_delay_s=30.0) as collector:
        agent = await Agent(collector.address).hello()
        await agent.send(1)
        await until(lambda: _has_entries(store, 1))
    await agent.acknowledged(4)
    await agent.hang_up()


@asynchronous
async def test_whoever_waits_for_all_to_be_stored_does_not_wait_for_company() -> None:
    async with collecting(ack_delay_s=30.0) as collector:
        exporter = GrpcExporter(str(collector.address))
        named = {"service.name": "served"}
        exporter.attach(TOPOLOGY, level="heads", ceiling="heads", tokens="off", resource=named)
        for step in range(3):
            exporter.export(block_of(2, position=2 * step))
            assert await asyncio.to_thread(exporter.flush, 10.0)
        assert exporter.stats().acknowledged == exporter.stats().captured > 0
        await asyncio.to_thread(exporter.close)


@asynchronous
async def test_the_agents_own_account_and_level_are_told() -> None:
    async with collecting() as collector:
        agent = await Agent(collector.address).hello()
        stats = agent_pb2.AgentStats(
            captured=9, acknowledged=5, pending=4, dropped={"full": 3}, level="pulse"
        )
        await agent.say(stats=stats)
        status = await until(lambda: _with_captured(collector.address, 9))
        assert status.agent == stats
        assert status.level == "pulse"
        await agent.hang_up()


async def _with_captured(address: object, captured: int) -> Any:
    (status,) = await listed(address)
    return status if status.agent.captured == captured else None
