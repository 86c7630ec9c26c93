"""Viewers out: the past that was asked for, then live, without a gap; every break is a message.

A viewer has a place in each stream and no queue: who is slow stays behind, in its own time, and whoever is
too far behind skips to live and is told what it missed. Nobody else waits.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import grpc

from fulgurite.collector.config import Settings
from fulgurite.collector.replicas import Replica, Replicas
from fulgurite.collector.store import BEGINNING, Entry, Place, Store, StoreUnavailable, parse_id
from fulgurite.v1 import viewer_pb2, viewer_pb2_grpc
from fulgurite.wire.codec import CodecError, peek

_LOOK_S = 0.5
_RETRY_S = 0.5

Response = viewer_pb2.WatchResponse


@dataclass(slots=True)
class Cursor:
    """How far one viewer has come in one replica's stream.

    Attributes
    ----------
    told : revision of the announcement that the viewer has.
    live : whether it has caught up once; only then lag makes it skip.
    """

    replica: Replica
    place: Place
    expected: Place | None = None
    told: int = 0
    live: bool = False
    notice: int = 0


class ViewerService(viewer_pb2_grpc.ViewerServiceServicer):
    """See `viewer.proto`."""

    def __init__(self, store: Store, replicas: Replicas, settings: Settings, store_name: str) -> None:
        self._store = store
        self._replicas = replicas
        self._settings = settings
        self._store_name = store_name
        self._viewers = 0
        self.closing = asyncio.Event()

    async def ListReplicas(  # noqa: N802
        self, request: viewer_pb2.ListReplicasRequest, context: Any
    ) -> viewer_pb2.ListReplicasResponse:
        """Every replica that a selector names, with its figures."""
        now_ns = time.time_ns()
        try:
            found = await self._replicas.matching(list(request.selectors))
            statuses = [await self._replicas.status(replica, now_ns) for replica in found]
        except StoreUnavailable as error:
            await context.abort(grpc.StatusCode.UNAVAILABLE, f"the store cannot be reached: {error}")
            raise
        return viewer_pb2.ListReplicasResponse(replicas=statuses, store=self._store_name)

    async def Watch(  # noqa: N802
        self, request: viewer_pb2.WatchRequest, context: Any
    ) -> AsyncIterator[Response]:
        """One viewer, until it leaves."""
        if self._viewers >= self._settings.max_viewers:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, f"{self._viewers} viewers watch already")
        begin = await _checked(request, context)
        self._viewers += 1
        try:
            async for response in Watcher(
                self._store, self._replicas, self._settings, request, begin, self.closing
            ):
                yield response
        finally:
            self._viewers -= 1
            if not self._viewers:
                for replica in self._replicas.known():
                    replica.drop_recent()


async def _checked(request: viewer_pb2.WatchRequest, context: Any) -> Place | None:
    if not 0 <= request.history_s < 1e7 or not 0 <= request.status_interval_s < 1e7:
        await context.abort(
            grpc.StatusCode.INVALID_ARGUMENT, "history_s and status_interval_s are seconds, 0 or more"
        )
    if not request.after_id:
        return None
    try:
        return parse_id(request.after_id)
    except ValueError as error:
        await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        raise


class Watcher:
    """What one viewer is sent, as an asynchronous iterator."""

    def __init__(
        self,
        store: Store,
        replicas: Replicas,
        settings: Settings,
        request: viewer_pb2.WatchRequest,
        begin: Place | None,
        closing: asyncio.Event,
    ) -> None:
        self._store = store
        self._replicas = replicas
        self._settings = settings
        self._request = request
        self._begin = begin
        self._closing = closing
        self._began_ns = time.time_ns()
        self._cursors: dict[str, Cursor] = {}
        self._interval_s = request.status_interval_s or 1.0

    async def __aiter__(self) -> AsyncIterator[Response]:
        look_s = status_s = 0.0
        while not self._closing.is_set():
            try:
                now_s = time.monotonic()
                if now_s >= look_s:
                    await self._look()
                    look_s = now_s + _LOOK_S
                if now_s >= status_s:
                    for cursor in self._cursors.values():
                        yield Response(status=await self._replicas.status(cursor.replica, time.time_ns()))
                    status_s = now_s + self._interval_s
                moved = False
                for cursor in list(self._cursors.values()):
                    async for response in self._advance(cursor):
                        moved = True
                        yield response
                if not moved:
                    await self._wait()
            except StoreUnavailable:
                await asyncio.sleep(_RETRY_S)  # the viewer sees no news, which is the truth

    async def _look(self) -> None:
        """Replicas that have come since."""
        for replica in await self._replicas.matching(list(self._request.selectors)):
            if replica.key not in self._cursors:
                place = await self._first_place(replica)
                self._cursors[replica.key] = Cursor(replica, place, notice=replica.last_notice)

    async def _first_place(self, replica: Replica) -> Place:
        if self._begin is not None:
            return self._begin
        if self._request.history_s > 0:
            return await self._store.since(replica.key, self._began_ns - int(self._request.history_s * 1e9))
        if replica.started_ns > self._began_ns:
            return BEGINNING  # it came after the viewer did: everything of it is live
        return await self._store.newest(replica.key)

    async def _advance(self, cursor: Cursor) -> AsyncIterator[Response]:
        replica = cursor.replica
        if cursor.told != replica.revision:
            cursor.told = replica.revision
            yield Response(replica=replica.announcement)
        entries = await replica.after(self._store, cursor.place)
        if entries and cursor.live and self._lags(entries[0]):
            skipped = await self._skip(cursor)
            if skipped is not None:
                yield skipped
            entries = await replica.after(self._store, cursor.place)
        for entry in entries:
            gap = _gap(cursor, entry)
            if gap is not None:
                yield gap
            cursor.place = entry.place
            cursor.expected = (entry.place[0], entry.place[1] + 1)
            watched = viewer_pb2.WatchedBatch(
                key=replica.key, entry_id=entry.id, batch=entry.data, ingested_ns=entry.ingested_ns
            )
            yield Response(batch=watched)
            if cursor.live and self._lags(entry):
                break
        for serial, data in replica.notices_after(cursor.notice):
            cursor.notice = serial
            yield Response(
                batch=viewer_pb2.WatchedBatch(key=replica.key, batch=data, ingested_ns=time.time_ns())
            )
        if not entries and not cursor.live:
            cursor.live = True
            yield Response(caught_up=viewer_pb2.CaughtUp(key=replica.key))

    def _lags(self, entry: Entry) -> bool:
        return time.time_ns() - entry.ingested_ns > self._settings.max_lag_s * 1e9

    async def _skip(self, cursor: Cursor) -> Response | None:
        """To the newest entry; says what is missing."""
        newest = await self._store.newest(cursor.replica.key)
        before = cursor.place
        if newest <= before:
            return None
        cursor.place, cursor.expected = newest, (newest[0], newest[1] + 1)
        first = before[1] + 1 if before[0] == newest[0] else 1
        return _gap_message(cursor.replica.key, newest[0], first, newest[1], "slow_viewer")

    async def _wait(self) -> None:
        waits = [asyncio.ensure_future(cursor.replica.news()) for cursor in self._cursors.values()]
        waits.append(asyncio.ensure_future(asyncio.sleep(min(0.25, self._interval_s))))
        _, pending = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for task in pending:
            task.cancel()


def _gap(cursor: Cursor, entry: Entry) -> Response | None:
    """What is missing between the last entry and this one."""
    try:
        epoch_ms, first, _, _ = peek(entry.data)
    except CodecError:
        return None
    expected = cursor.expected
    if expected is None or expected[0] != epoch_ms or first <= expected[1]:
        return None
    return _gap_message(cursor.replica.key, epoch_ms, expected[1], first - 1, "dropped_by_agent")


def _gap_message(key: str, epoch_ms: int, first: int, last: int, reason: str) -> Response:
    gap = viewer_pb2.Gap(
        key=key,
        epoch_ms=epoch_ms,
        first_sequence=first,
        last_sequence=last,
        reason=reason,
        frames=last - first + 1,
    )
    return Response(gap=gap)
