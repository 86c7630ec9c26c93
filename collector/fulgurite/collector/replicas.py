"""The replicas of this collector: what each one is, what it does, and who waits for its next entry."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from dataclasses import dataclass, field

from fulgurite.collector.aggregate import Aggregate
from fulgurite.collector.store import BEGINNING, Entry, Place, Store, StoreUnavailable
from fulgurite.v1 import agent_pb2, viewer_pb2
from fulgurite.wire.replica import ReplicaKey

RECENT_BYTES = 16 << 20
PAGE = 128
POLL_S = 0.25
IDLE_S = 3.0
LOST_S = 5.0


@dataclass(slots=True)
class Recent:
    """The newest entries of one replica, in memory: one read of the store serves all who watch."""

    entries: deque[Entry] = field(default_factory=deque)
    held: int = 0
    behind: Place = BEGINNING  # every entry after this place, up to the newest, is in `entries`

    def extend(self, entries: list[Entry]) -> None:
        """Take entries in order."""
        for entry in entries:
            self.entries.append(entry)
            self.held += len(entry.data)
        while self.held > RECENT_BYTES and len(self.entries) > 1:
            gone = self.entries.popleft()
            self.held -= len(gone.data)
            self.behind = gone.place

    @property
    def newest(self) -> Place:
        """The newest place that is known."""
        return self.entries[-1].place if self.entries else self.behind

    def after(self, place: Place, limit: int) -> list[Entry] | None:
        """At most `limit` entries behind `place`; None where memory does not reach back so far."""
        if place < self.behind:
            return None
        found: list[Entry] = []
        for entry in reversed(self.entries):
            if entry.place <= place:
                break
            found.append(entry)
        return found[::-1][:limit]


class Replica:
    """One replica as this collector knows it.

    Attributes
    ----------
    announcement : what viewers are told first.
    linked : whether its agent is connected here.
    revision : rises when the announcement changed.
    """

    def __init__(self, key: str, announcement: viewer_pb2.ReplicaAnnouncement) -> None:
        self.key = key
        self.announcement = announcement
        self.revision = 1
        self.aggregate = Aggregate()
        self.agent = agent_pb2.AgentStats()
        self.linked = False
        self.ended = False
        self.seen_ns = 0
        self.frames_ns = 0
        self.started_ns = time.time_ns()
        self._recent: Recent | None = None
        self._news = asyncio.Event()
        self._reading = asyncio.Lock()
        self._notices: deque[tuple[int, bytes]] = deque(maxlen=64)
        self._serial = 0

    def notice(self, batch: bytes) -> None:
        """A batch of events alone: it has no place in the stream, and goes to whoever watches now."""
        self._serial += 1
        self._notices.append((self._serial, batch))

    def notices_after(self, serial: int) -> list[tuple[int, bytes]]:
        """What was noticed since; nothing for who has only just come."""
        return [notice for notice in self._notices if notice[0] > serial]

    @property
    def last_notice(self) -> int:
        """Serial of the newest notice."""
        return self._serial

    def wake(self) -> None:
        """There are new entries."""
        self._news.set()
        self._news = asyncio.Event()

    async def after(self, store: Store, place: Place) -> list[Entry]:
        """The next entries behind `place`, from memory where it reaches, else from the store."""
        await self._refresh(store)
        assert self._recent is not None
        found = self._recent.after(place, PAGE)
        return found if found is not None else await store.read(self.key, place, PAGE)

    async def _refresh(self, store: Store) -> None:
        async with self._reading:
            if self._recent is None:
                self._recent = Recent(behind=await store.newest(self.key))
            while entries := await store.read(self.key, self._recent.newest, PAGE):
                self._recent.extend(entries)
                if len(entries) < PAGE:
                    break

    async def news(self, timeout_s: float = POLL_S) -> None:
        """Wait for new entries; entries that another collector wrote show after `timeout_s` at the latest."""
        try:
            await asyncio.wait_for(self._news.wait(), timeout_s)
        except TimeoutError:
            return

    def drop_recent(self) -> None:
        """Nobody watches: give the memory back."""
        self._recent = None

    def state(self, now_ns: int) -> str:
        """``live``, ``idle``, ``lost`` or ``ended``."""
        if self.ended:
            return "ended"
        if not self.linked and now_ns - self.seen_ns > LOST_S * 1e9:
            return "lost"
        return "live" if now_ns - self.frames_ns < IDLE_S * 1e9 else "idle"

    def status(self, now_ns: int) -> viewer_pb2.ReplicaStatus:
        """Its figures as of now."""
        told, topology = self.announcement, self.announcement.topology
        status = self.aggregate.status(now_ns)
        status.key = self.key
        status.resource.CopyFrom(told.resource)
        status.topology_hash = told.schema.topology_hash
        status.model_name, status.layers, status.heads = topology.model_name, topology.layers, topology.heads
        status.state = self.state(now_ns)
        status.last_seen_ns, status.started_ns = self.seen_ns, self.started_ns
        status.level = self.agent.level or told.level
        status.agent.CopyFrom(self.agent)
        return status


class Replicas:
    """All of them: those linked here, and those that the store knows from elsewhere or from before."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._known: dict[str, Replica] = {}

    def linked(self) -> list[Replica]:
        """Those whose agent is connected here."""
        return [replica for replica in self._known.values() if replica.linked]

    def known(self) -> list[Replica]:
        """Those in memory."""
        return list(self._known.values())

    async def introduce(self, key: str, announcement: viewer_pb2.ReplicaAnnouncement) -> Replica:
        """An agent says what it is: remembered here and in the store."""
        await self._store.put("announcement", key, announcement.SerializeToString())
        replica = self._known.get(key)
        if replica is None:
            replica = self._known[key] = Replica(key, announcement)
        elif replica.announcement != announcement:
            replica.announcement = announcement
            replica.revision += 1
        replica.ended = False
        return replica

    async def matching(self, selectors: list[str]) -> list[Replica]:
        """Every replica that a selector names, in the order of their keys."""
        keys = await self._store.keys()
        wanted = [key for key in keys if _matches(key, selectors)]
        return [replica for key in wanted if (replica := await self._find(key)) is not None]

    async def _find(self, key: str) -> Replica | None:
        if key not in self._known:
            blob = await self._store.get("announcement", key)
            if blob is None:
                return None
            self._known.setdefault(key, Replica(key, viewer_pb2.ReplicaAnnouncement.FromString(blob)))
        return self._known[key]

    async def status(self, replica: Replica, now_ns: int) -> viewer_pb2.ReplicaStatus:
        """Its figures: from memory where its agent is linked here, else as the store has them."""
        if replica.linked or replica.seen_ns:
            return replica.status(now_ns)
        blob = await self._store.get("status", replica.key)
        if blob is None:
            return replica.status(now_ns)
        status = viewer_pb2.ReplicaStatus.FromString(blob)
        if status.state in ("live", "idle") and now_ns - status.last_seen_ns > LOST_S * 1e9:
            status.state = "lost"
        return status

    async def keep(self, now_ns: int, *, retention_s: float, retention_bytes: int, forget_s: float) -> None:
        """Once a second: write the figures down, trim what is too much, forget who is long gone."""
        for replica in self.known():
            if not replica.seen_ns:
                continue
            try:
                await self._store.put("status", replica.key, replica.status(now_ns).SerializeToString())
                if replica.linked:
                    await self._store.enlist(replica.key, now_ns)
                await self._store.trim(
                    replica.key, before_ns=now_ns - int(retention_s * 1e9), max_bytes=retention_bytes
                )
            except StoreUnavailable:
                return
        for key in await self._store.forget(seen_before_ns=now_ns - int(forget_s * 1e9)):
            self._known.pop(key, None)


def _matches(key: str, selectors: list[str]) -> bool:
    name = ReplicaKey.parse(key)
    return not selectors or any(name.matches(selector) for selector in selectors)
