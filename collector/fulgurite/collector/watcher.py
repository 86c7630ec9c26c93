"""What one viewer is sent: the past that it asked for, then live, and a message for every break.

It has no queue. It asks for the next page when the viewer took the last one: who is slow delays nobody else.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Final

from google.protobuf.message import DecodeError

from fulgurite.collector.cursor import BEFORE_ALL, Cursor, Missing
from fulgurite.collector.demand import Demands
from fulgurite.collector.fanout import Channel, Fanout
from fulgurite.collector.fleet import Fleet, Row, is_selected
from fulgurite.collector.outage import Outage
from fulgurite.collector.reduction import Reducer, Wanted
from fulgurite.collector.replicas import Replicas
from fulgurite.collector.store import Entry, EntryId, Position, Store, StoreError
from fulgurite.collector.waiting import wait_at_most
from fulgurite.v1 import frame_pb2, viewer_pb2
from fulgurite.wire.codec import content_hash
from fulgurite.wire.replica import ReplicaKey

LOOK_EVERY_S: Final = 0.25
"""With rows as old as a `Fleet` gives: a replica at another collector is seen within half a second."""
LEAST_LOOK_S: Final = 0.05
"""Between two looks, however many replicas come at once."""
PAGE: Final = 32

Response = viewer_pb2.WatchResponse


@dataclass(frozen=True, slots=True)
class Wish:
    """What a viewer asked for.

    Attributes
    ----------
    history_s : float
        Where to begin: so many seconds back; 0: at the newest.
    after : EntryId or None
        Or behind this entry.
    is_passive : bool
        It asks no agent for whole frames.
    from_ns : int
        Where to begin: at this UNIX time; 0: as `history_s` says.
    versions : tuple of str
        Patterns of the ``service.version`` of the replicas that are wanted; empty: any.
    wanted : Wanted
        What of the batches is wanted.
    """

    selectors: tuple[str, ...]
    history_s: float
    after: EntryId | None
    status_interval_s: float
    is_passive: bool = False
    from_ns: int = 0
    versions: tuple[str, ...] = ()
    wanted: Wanted = Wanted()  # noqa: RUF009 - frozen


class View:
    """One replica, as one viewer sees it.

    Attributes
    ----------
    cursor : Cursor or None
        None until it is known where to begin.
    number : int or None
        The next entry in the channel; None while it reads the store, to get there.
    """

    def __init__(self, channel: Channel, *, is_new: bool, wanted: Wanted) -> None:
        self.reducer = None if wanted.is_all else Reducer(wanted)
        self.left_out = 0  # frames of entries of which nothing was left to send
        self.schema = frame_pb2.Schema()
        self.channel = channel
        self.is_new = is_new  # it came after the viewer did: all of it is live
        self.cursor: Cursor | None = None
        self.number: int | None = None
        self.has_caught_up = False
        self.announced = b""
        self.schema_hash = b""

    @property
    def is_at_the_end(self) -> bool:
        """Whether it is live, and all that there is was told."""
        return self.has_caught_up and self.number is not None and self.number == self.channel.end


class Watcher:
    """One viewer's subscription."""

    def __init__(
        self,
        wish: Wish,
        *,
        store: Store,
        fleet: Fleet,
        replicas: Replicas,
        fanout: Fanout,
        demands: Demands,
        outage: Outage,
        closing: asyncio.Event,
    ) -> None:
        self._wish = wish
        self._store, self._fleet, self._replicas = store, fleet, replicas
        self._fanout, self._demands = fanout, demands
        self._outage, self._closing = outage, closing
        self._wake = asyncio.Event()
        self._views: dict[ReplicaKey, View] = {}
        self._has_looked = False
        self._look_s = self._looked_s = self._status_s = float("-inf")

    async def responses(self) -> AsyncIterator[Response]:
        """Everything that the viewer is told, until the collector ends."""
        self._fleet.listen(self._look_soon)
        try:
            while not self._closing.is_set():
                self._wake.clear()
                try:
                    async for response in self._turn():
                        yield response
                except StoreError as error:  # the viewer hears no news, which is the truth
                    self._outage.failed("read", error)
                    await self._rest(self._outage.retry_after_s)
                    continue
                await self._rest(self._look_s - time.monotonic())
        finally:
            self._fleet.ignore(self._look_soon)
            for key in list(self._views):
                self._drop(key)

    def _look_soon(self) -> None:
        """A replica came to this collector. Its first frames are not to wait for the next look."""
        self._look_s = min(self._look_s, self._looked_s + LEAST_LOOK_S)
        self._wake.set()

    async def _turn(self) -> AsyncIterator[Response]:
        now_s = time.monotonic()
        if now_s >= self._look_s:
            rows = await self._fleet.rows()
            self._outage.succeeded("read")
            self._looked_s, self._look_s = now_s, now_s + min(LOOK_EVERY_S, self._wish.status_interval_s)
            for response in self._look(rows, now_s):
                yield response
        for view in list(self._views.values()):
            left = PAGE
            while left and (batch := self._next_live(view)) is not None:
                left -= 1
                yield batch
            if not left:
                self._wake.set()  # there may be more, behind what others have
            elif not view.is_at_the_end:
                async for response in self._advance(view):
                    yield response

    async def _rest(self, timeout_s: float) -> None:
        await wait_at_most(self._wake, timeout_s)

    # --- who there is

    def _look(self, rows: dict[ReplicaKey, Row], now_s: float) -> Iterator[Response]:
        for key, row in rows.items():
            if not is_selected(key, self._wish.selectors) or not self._has_version(row):
                continue
            if key not in self._views:
                channel = self._fanout.join(key, self._wake)
                self._views[key] = View(channel, is_new=self._has_looked, wanted=self._wish.wanted)
                if not self._wish.is_passive:
                    self._demands.watch(key)
            yield from _announced(self._views[key], row.announcement)
        for key in [key for key in self._views if key not in rows]:
            self._drop(key)
        self._has_looked = True
        if now_s >= self._status_s:
            self._status_s = now_s + self._wish.status_interval_s
            for key in self._views:
                replica = self._replicas.connected(key)
                yield Response(status=replica.told_status(time.time_ns()) if replica else rows[key].status())

    def _has_version(self, row: Row) -> bool:
        if not self._wish.versions:
            return True
        try:
            told = viewer_pb2.ReplicaAnnouncement.FromString(row.announcement)
        except DecodeError:
            return False
        version = told.resource.attributes.get("service.version", "")
        return any(fnmatchcase(version, pattern) for pattern in self._wish.versions)

    def _drop(self, key: ReplicaKey) -> None:
        self._fanout.leave(self._views.pop(key).channel, self._wake)
        if not self._wish.is_passive:
            self._demands.unwatch(key)

    # --- what comes

    # Whatever asks the store does so before the cursor moves: where it fails, the same entry is next again.

    async def _advance(self, view: View) -> AsyncIterator[Response]:
        if not view.channel.is_ready:
            return
        if view.cursor is None:
            view.cursor = await self._begin(view)
        if view.number is None and view.cursor.position.reaches(view.channel.base):
            view.number = view.channel.first
        if view.number is None:
            told = self._read_past(view, view.cursor)
        elif view.number >= view.channel.first:
            told = self._read_live(view, view.cursor, view.number)
        elif view.has_caught_up:
            told = self._skip(view, view.cursor)
        else:  # it was overtaken on the way to live
            view.number = None
            told = self._read_past(view, view.cursor)
        async for response in told:
            yield response

    async def _begin(self, view: View) -> Cursor:
        key, channel = view.channel.key, view.channel
        if self._wish.after is not None:
            after = self._wish.after
            return Cursor(key.text, position=Position(after), expected=after.next, events_from=after)
        if view.is_new:
            return Cursor(key.text, position=Position(), expected=BEFORE_ALL)
        if (history_s := self._history_s) > 0:
            position = await self._store.back(key, history_s)
            expected = position.frames.next if position.frames != EntryId() else None
            return Cursor(key.text, position=position, expected=expected)
        view.number = channel.end
        return Cursor.at(key.text, channel.position)

    @property
    def _history_s(self) -> float:
        if not self._wish.from_ns:
            return self._wish.history_s
        return max(0.0, (time.time_ns() - self._wish.from_ns) / 1e9)

    async def _read_past(self, view: View, cursor: Cursor) -> AsyncIterator[Response]:
        page = await self._store.read(view.channel.key, cursor.position, limit=PAGE)
        for entry in page.entries:
            async for response in self._told(view, cursor, entry, is_past=True):
                yield response
        if not page.entries:  # what lies before the channel is gone
            view.number = view.channel.first
        self._wake.set()  # go on at once, also where none of it was wanted

    async def _read_live(self, view: View, cursor: Cursor, number: int) -> AsyncIterator[Response]:
        for entry in view.channel.after(number, PAGE):
            async for response in self._told(view, cursor, entry, is_past=False):
                yield response
            number = view.number = number + 1
        if number < view.channel.end:
            self._wake.set()
        elif not view.has_caught_up:
            view.has_caught_up = True
            yield Response(caught_up=viewer_pb2.CaughtUp(key=cursor.key))

    def _next_live(self, view: View) -> Response | None:
        """The next batch, where nothing has to be said or asked before it: as mostly, once it is live."""
        cursor, channel, number = view.cursor, view.channel, view.number
        if cursor is None or number is None or not view.has_caught_up or view.reducer is not None:
            return None
        entry = channel.at(number)
        if entry is None or entry.schema_hash != view.schema_hash or not cursor.expects(entry):
            return None
        cursor.pass_over(entry)
        view.number = number + 1
        return _batch(cursor, entry, entry.batch, 0)

    async def _skip(self, view: View, cursor: Cursor) -> AsyncIterator[Response]:
        gone = cursor.skip_to(view.channel.position, view.channel.ends)
        view.number = view.channel.end
        for missing in gone:
            yield _gap(cursor, missing, "slow_viewer")

    async def _told(
        self, view: View, cursor: Cursor, entry: Entry, *, is_past: bool
    ) -> AsyncIterator[Response]:
        """The batch, and what has to be said before it."""
        if cursor.position.covers(entry):
            return
        if not cursor.wants(entry):
            cursor.pass_over(entry)
            return
        if entry.schema_hash != view.schema_hash:
            blob = await self._store.announcement(view.channel.key, entry.schema_hash)
            for response in _announced(view, blob or b""):
                yield response
        gone = cursor.missing_before(entry, view.channel.ends)
        reason = await self._why(view, cursor, entry) if gone and is_past else "dropped_by_agent"
        for missing in gone:
            is_of_before = missing.epoch_ms != entry.id.epoch_ms
            yield _gap(cursor, missing, "lost" if is_of_before and reason != "trimmed" else reason)
        cursor.pass_over(entry)
        batch, left_out = _reduced(view, entry)
        if batch:
            yield _batch(cursor, entry, batch, left_out)

    async def _why(self, view: View, cursor: Cursor, entry: Entry) -> str:
        """Why there is nothing before `entry`: where it is the oldest, what was before it was trimmed."""
        is_oldest = not cursor.is_at_the_beginning and await self._store.oldest(view.channel.key) == entry.id
        return "trimmed" if is_oldest else "dropped_by_agent"


def _reduced(view: View, entry: Entry) -> tuple[bytes, int]:
    """What of an entry is sent, and how many frames were left out since the last one; empty for nothing."""
    if view.reducer is None:
        return entry.batch, 0
    if entry.schema_hash != view.schema_hash:  # it cannot be cut, and was not asked for as it is
        batch, left_out = b"", entry.count
    else:
        batch, left_out = view.reducer.reduce(entry.batch, view.schema)
    left_out += view.left_out
    view.left_out = 0 if batch else left_out
    return batch, min(left_out, (1 << 32) - 1)


def _batch(cursor: Cursor, entry: Entry, batch: bytes, left_out: int) -> Response:
    watched = viewer_pb2.WatchedBatch(
        key=cursor.key,
        entry_id=entry.id.text,
        batch=batch,
        ingested_ns=entry.ingested_ns,
        left_out=left_out,
    )
    return Response(batch=watched)


def _gap(cursor: Cursor, missing: Missing, reason: str) -> Response:
    gap = viewer_pb2.Gap(
        key=cursor.key,
        epoch_ms=missing.epoch_ms,
        first_sequence=missing.first,
        last_sequence=missing.last,
        reason=reason,
        frames=missing.last - missing.first + 1,
    )
    return Response(gap=gap)


def _announced(view: View, blob: bytes) -> Iterator[Response]:
    """An announcement, where it is not what the viewer was told last."""
    if not blob or blob == view.announced:
        return
    try:
        announcement = viewer_pb2.ReplicaAnnouncement.FromString(blob)
    except DecodeError:
        return
    view.announced = blob
    view.schema_hash = content_hash(announcement.schema)
    view.schema = announcement.schema
    yield Response(replica=announcement)
