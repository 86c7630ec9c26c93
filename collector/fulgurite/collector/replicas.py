"""The replicas whose agents are connected to this collector, and the figures that are kept of them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from google.protobuf.message import DecodeError

from fulgurite.collector.aggregate import Aggregate
from fulgurite.collector.fleet import Fleet
from fulgurite.collector.gauges import is_kept_whole
from fulgurite.collector.hello import Introduction
from fulgurite.collector.inbox import Inbox
from fulgurite.collector.link import Link
from fulgurite.collector.store import EntryId, Registration, Store
from fulgurite.v1 import agent_pb2, viewer_pb2
from fulgurite.wire.codec import scale_to_pb
from fulgurite.wire.frame import FrameBatch, RequestRef
from fulgurite.wire.replica import ReplicaKey

IDLE_S: Final = 3.0
"""A replica without a frame for so long is idle."""
TOLD_AGAIN_S: Final = 0.2


@dataclass(frozen=True, slots=True)
class Line:
    """The stream of an agent that is connected here."""

    link: Link
    inbox: Inbox
    collector_id: str
    since_s: float

    def status(self, *, ceiling: str, newest_ns: int, ingested_ns: int) -> viewer_pb2.LinkStatus:
        """How it is. `newest_ns`: when the newest frame ended, by the agent's clock; 0 before the first."""
        link, best, demand = self.link, self.link.clock.best, self.link.wanted.demand
        status = viewer_pb2.LinkStatus(
            collector_id=self.collector_id,
            epoch_ms=link.epoch_ms,
            stored_sequence=link.stored,
            connected_s=time.monotonic() - self.since_s,
            held_bytes=self.inbox.nbytes,
            watched=demand.watched,
            history_one_in=demand.one_in,
            control=link.wanted,
            level_ceiling=ceiling,
        )
        if best is not None:
            status.clock_offset_ns, status.round_trip_ns = best.offset_ns, best.round_trip_ns
        if newest_ns:
            status.lag_s = (ingested_ns - newest_ns + (best.offset_ns if best else 0)) / 1e9
        return status


class Replica:
    """One replica that writes here.

    Attributes
    ----------
    announcement : ReplicaAnnouncement
        What viewers are told of it.
    unannounced : bool
        Whether the announcement changed and the store does not have it yet.
    left_s : float or None
        Monotonic time at which its agent left; None while it is connected.
    has_ended : bool
        Whether the agent said goodbye.
    """

    def __init__(self, introduction: Introduction, *, before: viewer_pb2.ReplicaStatus | None) -> None:
        self.key = introduction.key
        self.aggregate = Aggregate(
            before.tokens_total if before else 0,
            frames_total=before.frames_total if before else 0,
            experts=introduction.announcement.topology.experts,
            is_kept_whole=self._is_kept_whole,
        )
        self.started_ns = (before.started_ns if before else 0) or time.time_ns()
        self.agent = agent_pb2.AgentStats()
        self.seen_ns = time.time_ns()
        self.unannounced = True
        self.left_s: float | None = None
        self.has_ended = False
        self._frames_ns = 0
        self._folded = EntryId()
        self._told: viewer_pb2.ReplicaStatus | None = None
        self._told_ns = 0
        self._line: Line | None = None
        self._ingested_ns = 0
        self.meet(introduction, None)

    def meet(self, introduction: Introduction, scale: bytes | None) -> None:
        """Its agent said hello, for the first time or again; `scale` is what was announced before."""
        self.schema_hash = introduction.codec.schema_hash
        self.announcement = viewer_pb2.ReplicaAnnouncement()
        self.announcement.CopyFrom(introduction.announcement)
        if scale is not None:
            self.announcement.scale.ParseFromString(scale)
        self.unannounced, self.left_s, self.has_ended = True, None, False

    def connect(self, link: Link, inbox: Inbox, collector_id: str) -> None:
        """Its agent's stream is here."""
        self._line = Line(link, inbox, collector_id, time.monotonic())

    def resume(self, registration: Registration) -> None:
        """What is stored was folded, here or by another collector."""
        self._folded = max(self._folded, EntryId(registration.epoch_ms, registration.resume_after))

    def fold(self, batch: FrameBatch, now_ns: int) -> None:
        """Take a batch that is stored into the figures, unless it was taken before."""
        last = EntryId(batch.epoch_ms, batch.last_sequence)
        if len(batch):
            if last <= self._folded:
                return
            self._folded = last
            self._frames_ns = self._ingested_ns = now_ns
        if batch.sketches:
            self._frames_ns = now_ns
        self.aggregate.fold(batch, now_ns)
        if batch.scales:
            self.announcement.scale.CopyFrom(scale_to_pb(batch.scales[-1]))
            self.unannounced = True

    def _is_kept_whole(self, request: RequestRef) -> bool:
        return self._line is not None and is_kept_whole(request, self._line.link.wanted.demand.one_in)

    def hear(self, stats: agent_pb2.AgentStats) -> None:
        """The agent's own account."""
        self.agent = stats
        if stats.level and stats.level != self.announcement.level:
            self.announcement.level = stats.level
            self.unannounced = True

    def state(self, now_ns: int) -> str:
        """``live``, ``idle`` or ``ended``. That one is ``lost`` is for others to say: it has no beat."""
        if self.has_ended:
            return "ended"
        return "live" if now_ns - self._frames_ns < IDLE_S * 1e9 else "idle"

    def status(self, now_ns: int) -> viewer_pb2.ReplicaStatus:
        """Its figures as of now."""
        told, topology = self.announcement, self.announcement.topology
        status = self.aggregate.status(now_ns)
        status.key = told.key
        status.resource.CopyFrom(told.resource)
        status.topology_hash = told.schema.topology_hash
        status.model_name, status.layers, status.heads = topology.model_name, topology.layers, topology.heads
        status.state, status.level = self.state(now_ns), told.level
        status.last_seen_ns, status.started_ns = self.seen_ns, self.started_ns
        status.agent.CopyFrom(self.agent)
        if self._line is not None and self.left_s is None:
            newest_ns, ceiling = self.aggregate.newest_ended_ns, told.level_ceiling
            line = self._line.status(ceiling=ceiling, newest_ns=newest_ns, ingested_ns=self._ingested_ns)
            status.link.CopyFrom(line)
        return status

    def told_status(self, now_ns: int) -> viewer_pb2.ReplicaStatus:
        """Its figures as of now or shortly before: the same ones for many viewers. Not to be changed."""
        if self._told is None or not 0 <= now_ns - self._told_ns < TOLD_AGAIN_S * 1e9:
            self._told, self._told_ns = self.status(now_ns), now_ns
        return self._told


class Replicas:
    """All of them, by key; those that left stay for a while, since their past is still to be trimmed."""

    def __init__(self, store: Store, fleet: Fleet) -> None:
        self._store = store
        self._fleet = fleet
        self._here: dict[ReplicaKey, Replica] = {}
        self._announcing = asyncio.Lock()

    def __iter__(self) -> Iterator[Replica]:
        return iter(list(self._here.values()))

    def connected(self, key: ReplicaKey) -> Replica | None:
        """The replica, where its agent is connected here."""
        replica = self._here.get(key)
        return replica if replica is not None and replica.left_s is None else None

    def forget(self, key: ReplicaKey) -> None:
        """It left long ago."""
        self._here.pop(key, None)

    async def introduce(self, introduction: Introduction, registration: Registration) -> Replica:
        """An agent said hello: remember it, here and in the store.

        Raises
        ------
        StoreError
            As the store does.
        """
        key = introduction.key
        replica = self._here.get(key)
        if replica is None:
            row = (await self._fleet.rows()).get(key)
            replica = Replica(introduction, before=row.figures if row else None)
        before = await self._store.announcement(key, introduction.codec.schema_hash)
        replica.meet(introduction, _scale_in(before))
        replica.resume(registration)
        await self.announce(replica)
        await self.beat(replica)
        self._here[key] = replica
        self._fleet.expire()
        return replica

    async def announce(self, replica: Replica) -> None:
        """Write the announcement where it changed.

        Raises
        ------
        StoreError
            As the store does; it is then still to be announced.
        """
        async with self._announcing:
            if not replica.unannounced:
                return
            replica.unannounced = False
            try:
                blob = replica.announcement.SerializeToString()
                await self._store.announce(replica.key, replica.schema_hash, blob)
            except BaseException:
                replica.unannounced = True
                raise

    async def beat(self, replica: Replica) -> None:
        """Write its figures.

        Raises
        ------
        StoreError
            As the store does.
        """
        now_ns = time.time_ns()
        status = replica.status(now_ns)
        await self._store.beat(replica.key, status.SerializeToString())
        closed = replica.aggregate.closed(now_ns)
        if closed:
            windows = [(window.width_s, window.SerializeToString()) for window in closed]
            await self._store.keep_windows(replica.key, windows)


def _scale_in(announcement: bytes | None) -> bytes | None:
    """The display scale in an announcement, serialised."""
    if announcement is None:
        return None
    try:
        message = viewer_pb2.ReplicaAnnouncement.FromString(announcement)
    except DecodeError:
        return None
    return message.scale.SerializeToString() if message.HasField("scale") else None
