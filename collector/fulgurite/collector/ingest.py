"""Agents in: one bidirectional stream each. A batch is checked, stored as it came, then acknowledged.

While the store is away nothing is acknowledged and nothing more is read: the agent keeps what it has, and its
own bound decides what goes. That is back-pressure, not loss.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import grpc

from fulgurite.collector.config import Settings
from fulgurite.collector.replicas import Replica, Replicas
from fulgurite.collector.store import Entry, Place, Store, Stored, StoreUnavailable
from fulgurite.v1 import agent_pb2, agent_pb2_grpc, frame_pb2, viewer_pb2
from fulgurite.wire.codec import PROTOCOL, Codec, CodecError, check_schema, codec_for, topology_from_pb
from fulgurite.wire.replica import ReplicaKey

logger = logging.getLogger("fulgurite.collector")
_RETRY_S = 0.2
_IDLE_S = 20.0
_MOST_AT_ONCE = 64


class Refused(Exception):
    """The agent did something that a retry cannot mend."""


@dataclass(slots=True)
class Link:
    """One connected agent."""

    replica: Replica
    codec: Codec
    epoch_ms: int
    acknowledged: int
    told: int = 0
    replaced: asyncio.Event = field(default_factory=asyncio.Event)


class AgentService(agent_pb2_grpc.AgentServiceServicer):
    """See `agent.proto`."""

    def __init__(self, store: Store, replicas: Replicas, settings: Settings, collector_id: str) -> None:
        self._store = store
        self._replicas = replicas
        self._settings = settings
        self._collector_id = collector_id
        self._links: dict[str, Link] = {}

    async def Connect(  # noqa: N802 - the name is the protocol's
        self, request_iterator: AsyncIterator[agent_pb2.AgentMessage], context: Any
    ) -> AsyncIterator[agent_pb2.CollectorMessage]:
        """One agent, from its hello to its end."""
        messages = request_iterator.__aiter__()
        link: Link | None = None
        try:
            link = await self._welcome(messages)
            welcome = agent_pb2.Welcome(
                protocol=PROTOCOL,
                epoch_ms=link.epoch_ms,
                resume_after=link.acknowledged,
                credit=self._settings.credit,
                collector_id=self._collector_id,
            )
            yield agent_pb2.CollectorMessage(welcome=welcome)
            async for answer in self._serve(link, messages):
                yield answer
        except (Refused, CodecError) as refusal:
            logger.warning("refused an agent (%s): %s", context.peer(), refusal)
            yield agent_pb2.CollectorMessage(refusal=agent_pb2.Refusal(reason=str(refusal), final=True))
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(refusal))
        except StoreUnavailable as error:
            await context.abort(grpc.StatusCode.UNAVAILABLE, f"the store cannot be reached: {error}")
        finally:
            if link is not None:
                self._leave(link)

    async def _welcome(self, messages: AsyncIterator[agent_pb2.AgentMessage]) -> Link:
        try:
            first = await asyncio.wait_for(anext(messages), _IDLE_S)
        except (StopAsyncIteration, TimeoutError):
            raise Refused("no hello came") from None
        if first.WhichOneof("message") != "hello":
            raise Refused(f"the first message must be a hello, not {first.WhichOneof('message')}")
        hello = first.hello
        key, announcement = _introduction(hello)
        if key not in self._links and len(self._links) >= self._settings.max_replicas:
            raise Refused(f"there are {self._settings.max_replicas} replicas already, which is the limit")
        codec = codec_for(hello.schema)
        known = await self._store.get("announcement", key)
        if known is not None:
            announcement.scale.CopyFrom(viewer_pb2.ReplicaAnnouncement.FromString(known).scale)
        now_ns = time.time_ns()
        await self._store.enlist(key, now_ns)
        replica = await self._replicas.introduce(key, announcement)
        newest = await self._store.newest(key)
        epoch_ms = (
            hello.epoch_ms
            if _is_known_epoch(hello.epoch_ms, newest)
            else max(now_ns // 1_000_000, newest[0] + 1)
        )
        resume = newest[1] if newest[0] == epoch_ms else 0
        link = Link(replica, codec, epoch_ms, resume, told=resume)
        if (older := self._links.get(key)) is not None:
            older.replaced.set()
        self._links[key] = link
        replica.linked, replica.seen_ns = True, now_ns
        replica.agent.level = hello.level
        return link

    def _leave(self, link: Link) -> None:
        if self._links.get(link.replica.key) is link:
            del self._links[link.replica.key]
            link.replica.linked = False

    async def _serve(
        self, link: Link, messages: AsyncIterator[agent_pb2.AgentMessage]
    ) -> AsyncIterator[agent_pb2.CollectorMessage]:
        inbox: asyncio.Queue[agent_pb2.AgentMessage | None] = asyncio.Queue(self._settings.credit + 8)
        reader = asyncio.create_task(_pump(messages, inbox))
        acked_s = time.monotonic()
        try:
            while not link.replaced.is_set():
                taken, over = await self._take(inbox)
                await self._handle(link, taken)
                due = time.monotonic() - acked_s > self._settings.ack_ms / 1e3 or over or inbox.empty()
                if link.acknowledged > link.told and due:
                    link.told, acked_s = link.acknowledged, time.monotonic()
                    yield self._ack(link)
                if over:
                    return
            raise Refused("another process announced itself under this replica's name")
        finally:
            reader.cancel()

    async def _take(
        self, inbox: asyncio.Queue[agent_pb2.AgentMessage | None]
    ) -> tuple[list[agent_pb2.AgentMessage], bool]:
        """What has come, one message at least unless nothing comes; and whether the stream is over."""
        try:
            taken = [await asyncio.wait_for(inbox.get(), 1.0)]
        except TimeoutError:
            return [], False
        while len(taken) < _MOST_AT_ONCE and not inbox.empty():
            taken.append(inbox.get_nowait())
        return [message for message in taken if message is not None], None in taken

    def _ack(self, link: Link) -> agent_pb2.CollectorMessage:
        ack = agent_pb2.Ack(epoch_ms=link.epoch_ms, sequence=link.acknowledged, credit=self._settings.credit)
        return agent_pb2.CollectorMessage(ack=ack)

    async def _handle(self, link: Link, messages: list[agent_pb2.AgentMessage]) -> None:
        now_ns = time.time_ns()
        batches: list[frame_pb2.Batch] = []
        for message in messages:
            link.replica.seen_ns = now_ns
            kind = message.WhichOneof("message")
            if kind == "batch":
                batches.append(link.codec.validate(message.batch))
            elif kind == "stats":
                link.replica.agent.CopyFrom(message.stats)
            elif kind == "goodbye":
                link.replica.ended = True
            elif kind == "hello":
                raise Refused("a second hello on one stream")
        if batches:
            await self._keep(link, batches, now_ns)

    async def _keep(self, link: Link, batches: list[frame_pb2.Batch], now_ns: int) -> None:
        entries = [_entry(link, batch, now_ns) for batch in batches if batch.count]
        outcomes = await self._append(link, entries)
        if Stored.STALE in outcomes:
            raise Refused(
                f"epoch {link.epoch_ms} of this replica is over: another process has begun a newer one"
            )
        stored = {
            entry.place for entry, outcome in zip(entries, outcomes, strict=True) if outcome is Stored.NEW
        }
        if entries:
            link.acknowledged = max(link.acknowledged, entries[-1].place[1])
            link.replica.frames_ns = now_ns
        await self._fold(link, [b for b in batches if not b.count or _place(b) in stored], now_ns)
        for batch in batches:
            if not batch.count:
                link.replica.notice(batch.SerializeToString())
        link.replica.wake()

    async def _append(self, link: Link, entries: list[Entry]) -> list[Stored]:
        """Append, as often as it takes: the agent waits, and is not told that anything is kept."""
        complained = False
        while entries:
            try:
                found = await self._store.append(link.replica.key, entries)
            except StoreUnavailable as error:
                if not complained:
                    logger.warning("the store is away (%s): agents are kept waiting until it answers", error)
                complained = True
                if link.replaced.is_set():
                    raise
                await asyncio.sleep(_RETRY_S)
                continue
            if complained:
                logger.warning("the store answers again")
            return found
        return []

    async def _fold(self, link: Link, batches: list[frame_pb2.Batch], now_ns: int) -> None:
        scale: frame_pb2.Scale | None = None
        for batch in batches:
            link.replica.aggregate.fold(link.codec.decode(batch), now_ns)
            scale = batch.scales[-1] if batch.scales else scale
        if scale is not None:
            link.replica.announcement.scale.CopyFrom(scale)
            link.replica.revision += 1
            try:
                blob = link.replica.announcement.SerializeToString()
                await self._store.put("announcement", link.replica.key, blob)
            except StoreUnavailable:
                return  # the scale is in the batch as well


def _introduction(hello: agent_pb2.Hello) -> tuple[str, viewer_pb2.ReplicaAnnouncement]:
    if hello.protocol < 1 or hello.protocol > PROTOCOL:
        raise Refused(f"protocol {hello.protocol} is not spoken here, {PROTOCOL} is: update the older side")
    resource = hello.resource
    try:
        key = ReplicaKey(resource.service_namespace, resource.service_name, resource.service_instance_id).text
    except ValueError as error:
        raise Refused(str(error)) from None
    check_schema(hello.schema, topology_from_pb(hello.topology))
    return key, viewer_pb2.ReplicaAnnouncement(
        key=key,
        resource=resource,
        topology=hello.topology,
        schema=hello.schema,
        level=hello.level,
        tokens=hello.tokens,
    )


def _is_known_epoch(epoch_ms: int, newest: Place) -> bool:
    """Whether an agent may go on in the epoch that it names: the newest, and only that."""
    return epoch_ms != 0 and epoch_ms == newest[0]


def _place(batch: frame_pb2.Batch) -> Place:
    return batch.epoch_ms, batch.first_sequence + batch.count - 1


def _entry(link: Link, batch: frame_pb2.Batch, now_ns: int) -> Entry:
    if batch.epoch_ms != link.epoch_ms:
        raise Refused(f"a batch of epoch {batch.epoch_ms} where {link.epoch_ms} was agreed")
    if batch.first_sequence < 1:
        raise Refused("sequences begin at 1")
    return Entry(_place(batch), batch.SerializeToString(), now_ns)


async def _pump(
    messages: AsyncIterator[agent_pb2.AgentMessage], inbox: asyncio.Queue[agent_pb2.AgentMessage | None]
) -> None:
    """From the stream into a bounded queue: when that is full, nothing more is read."""
    try:
        async for message in messages:
            await inbox.put(message)
    finally:
        await inbox.put(None)
