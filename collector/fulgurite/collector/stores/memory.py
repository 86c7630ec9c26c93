"""The store that keeps everything in this process: the contract's reference, and for one collector alone."""

from __future__ import annotations

import asyncio
import time
from bisect import bisect_right
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice, takewhile

from fulgurite.collector.store import (
    ALIVE_S,
    Entry,
    EntryId,
    Outcome,
    Page,
    Position,
    Registration,
    ReplicaRow,
    Retention,
    StaleEpoch,
    Wish,
    windows_kept,
)
from fulgurite.wire.replica import ReplicaKey

FORGET_S = 60.0


@dataclass(frozen=True, slots=True)
class _Mark:
    """Where a replica's streams were at a time, and the bytes that had come by then."""

    at_s: float
    position: Position
    nbytes: int


@dataclass(slots=True)
class _Kept:
    """What is kept of one replica."""

    epoch_ms: int = 0
    newest: Position = field(default_factory=Position)
    entries: deque[Entry] = field(default_factory=deque)
    marks: list[_Mark] = field(default_factory=list)
    total_bytes: int = 0
    announced: dict[bytes, bytes] = field(default_factory=dict)
    announcement: bytes | None = None
    status: bytes = b""
    beat_s: float = float("-inf")
    touched_s: float = 0.0
    arrival: asyncio.Event = field(default_factory=asyncio.Event)
    watched_until_s: float = float("-inf")
    control: bytes = b""
    windows: dict[int, deque[tuple[float, bytes]]] = field(default_factory=dict)


class MemoryStore:
    """See `Store`. Lives and dies with the process.

    Parameters
    ----------
    retention : Retention
        What is kept of each replica.
    """

    def __init__(self, retention: Retention = Retention()) -> None:  # noqa: B008 - frozen
        self._retention = retention
        self._replicas: dict[ReplicaKey, _Kept] = {}
        self._spans: deque[tuple[float, bytes, bytes]] = deque()
        self._by_trace: dict[bytes, dict[bytes, float]] = {}

    @property
    def name(self) -> str:
        """See `Store.name`."""
        return "memory"

    async def open(self) -> None:
        """Nothing to connect to."""

    async def close(self) -> None:
        """Nothing to let go of."""

    def _of(self, key: ReplicaKey) -> _Kept:
        kept = self._replicas.get(key)
        return self._replicas.setdefault(key, _Kept(touched_s=time.monotonic())) if kept is None else kept

    async def register(self, key: ReplicaKey, *, asked_epoch_ms: int, now_ms: int) -> Registration:
        """See `Store.register`."""
        kept = self._of(key)
        kept.touched_s = time.monotonic()
        last = max(kept.epoch_ms, kept.newest.frames.epoch_ms)
        fresh = not asked_epoch_ms or asked_epoch_ms < last
        kept.epoch_ms = max(now_ms, last + 1) if fresh else asked_epoch_ms
        top = kept.newest.frames
        return Registration(kept.epoch_ms, top.sequence if top.epoch_ms == kept.epoch_ms else 0)

    async def announce(self, key: ReplicaKey, schema_hash: bytes, announcement: bytes) -> None:
        """See `Store.announce`."""
        kept = self._of(key)
        kept.announcement = kept.announced[schema_hash] = announcement
        kept.touched_s = time.monotonic()

    async def announcement(self, key: ReplicaKey, schema_hash: bytes) -> bytes | None:
        """See `Store.announcement`."""
        return self._of(key).announced.get(schema_hash)

    async def append(self, key: ReplicaKey, entries: Sequence[Entry]) -> list[Outcome]:
        """See `Store.append`."""
        kept = self._of(key)
        outcomes = [self._append(kept, entry) for entry in entries]
        kept.arrival.set()
        kept.arrival = asyncio.Event()
        return outcomes

    def _append(self, kept: _Kept, entry: Entry) -> Outcome:
        top = kept.newest
        if entry.count:
            if entry.id <= top.frames:
                if entry.id.epoch_ms < top.frames.epoch_ms:
                    raise StaleEpoch(
                        f"{entry.id.text} comes after {top.frames.text}, which is of a later epoch"
                    )
                return Outcome.DUPLICATE
            stored = replace(entry, at=entry.id)
        else:
            now = EntryId(time.time_ns() // 1_000_000)
            stored = replace(entry, at=max(now, top.events.next))
        kept.entries.append(stored)
        kept.newest = top.past(stored)
        kept.total_bytes += len(entry.batch)
        return Outcome.APPENDED

    async def read(self, key: ReplicaKey, after: Position, *, limit: int, wait_s: float = 0.0) -> Page:
        """See `Store.read`."""
        deadline = time.monotonic() + wait_s
        while True:
            kept = self._of(key)
            arrival = kept.arrival
            page = _page(kept, after, limit)
            left_s = deadline - time.monotonic()
            if page.entries or left_s <= 0:
                return page
            try:
                async with asyncio.timeout(left_s):  # which loses no cancellation, as `wait_for` may
                    await arrival.wait()
            except TimeoutError:
                return page

    async def newest(self, key: ReplicaKey) -> Position:
        """See `Store.newest`."""
        return self._of(key).newest

    async def back(self, key: ReplicaKey, seconds: float) -> Position:
        """See `Store.back`."""
        marks = self._of(key).marks
        index = bisect_right(marks, time.monotonic() - seconds, key=lambda mark: mark.at_s)
        return marks[index - 1].position if index else Position()

    async def oldest(self, key: ReplicaKey) -> EntryId | None:
        """See `Store.oldest`."""
        return next((entry.id for entry in self._of(key).entries if entry.count), None)

    async def beat(self, key: ReplicaKey, status: bytes) -> None:
        """See `Store.beat`."""
        kept = self._of(key)
        kept.status = status
        kept.beat_s = kept.touched_s = time.monotonic()
        if not kept.marks or kept.marks[-1].position != kept.newest:
            kept.marks.append(_Mark(kept.beat_s, kept.newest, kept.total_bytes))

    async def trim(self, key: ReplicaKey) -> None:
        """See `Store.trim`."""
        kept = self._of(key)
        too_old_s = time.monotonic() - self._retention.age_s
        too_many = kept.total_bytes - self._retention.nbytes
        cut = None
        while kept.marks and (kept.marks[0].at_s <= too_old_s or kept.marks[0].nbytes <= too_many):
            cut = kept.marks.pop(0).position
        while cut and kept.entries and cut.covers(kept.entries[0]):
            kept.entries.popleft()

    async def mark_watched(self, keys: Sequence[ReplicaKey], seconds: float) -> None:
        """See `Store.mark_watched`."""
        for key in keys:
            self._of(key).watched_until_s = time.monotonic() + seconds

    async def ask(self, key: ReplicaKey, control: bytes) -> None:
        """See `Store.ask`."""
        self._of(key).control = control

    async def wishes(self, keys: Sequence[ReplicaKey]) -> dict[ReplicaKey, Wish]:
        """See `Store.wishes`."""
        now_s = time.monotonic()
        known = [(key, self._replicas[key]) for key in keys if key in self._replicas]
        return {key: Wish(now_s < kept.watched_until_s, kept.control) for key, kept in known}

    async def keep_windows(self, key: ReplicaKey, windows: Sequence[tuple[int, bytes]]) -> None:
        """See `Store.keep_windows`."""
        kept = self._of(key).windows
        for width_s, window in windows:
            of_width = kept.setdefault(width_s, deque())
            of_width.append((time.monotonic(), window))
            while len(of_width) > windows_kept(width_s, len(window), self._retention):
                of_width.popleft()

    async def windows(self, key: ReplicaKey, width_s: int, *, seconds: float) -> list[bytes]:
        """See `Store.windows`."""
        oldest_s = time.monotonic() - seconds if seconds else float("-inf")
        kept = self._of(key).windows.get(width_s, ())
        return [window for at_s, window in kept if at_s >= oldest_s]

    async def keep_spans(self, parts: Sequence[tuple[bytes, bytes]]) -> None:
        """See `Store.keep_spans`."""
        now_s = time.monotonic()
        while self._spans and now_s - self._spans[0][0] > self._retention.age_s:
            _, trace_id, _ = self._spans.popleft()
            held = self._by_trace.get(trace_id)
            if held:
                held.pop(next(iter(held)))
                if not held:
                    del self._by_trace[trace_id]
        for trace_id, part in parts:
            held = self._by_trace.setdefault(trace_id, {})
            if part not in held:
                held[part] = now_s
                self._spans.append((now_s, trace_id, part))

    async def spans(self, trace_id: bytes) -> list[bytes]:
        """See `Store.spans`."""
        oldest_s = time.monotonic() - self._retention.age_s
        return [part for part, at_s in self._by_trace.get(trace_id, {}).items() if at_s >= oldest_s]

    async def replicas(self) -> list[ReplicaRow]:
        """See `Store.replicas`."""
        now_s = time.monotonic()
        for key, kept in list(self._replicas.items()):
            if now_s - kept.touched_s > self._retention.age_s + FORGET_S:
                del self._replicas[key]
        return [
            ReplicaRow(key, kept.announcement, kept.status, now_s - kept.beat_s < ALIVE_S)
            for key, kept in sorted(self._replicas.items())
            if kept.announcement is not None
        ]


def _from(kept: _Kept, after: Position) -> Iterable[Entry]:
    """Entries among which are all behind `after`: for who reads the newest, not all that there are."""
    frames_left, events_left = after.frames < kept.newest.frames, after.events < kept.newest.events
    if frames_left and events_left:
        return kept.entries
    tail = list(
        takewhile(lambda e: not after.covers(e) or bool(e.count) != frames_left, reversed(kept.entries))
    )
    return reversed(tail)


def _page(kept: _Kept, after: Position, limit: int) -> Page:
    if after.reaches(kept.newest):
        return Page((), after)
    entries = tuple(islice((entry for entry in _from(kept, after) if not after.covers(entry)), limit))
    position = after
    for entry in entries:
        position = position.past(entry)
    return Page(entries, position)
