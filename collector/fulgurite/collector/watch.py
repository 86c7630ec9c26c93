"""The port for viewers: who there is, and streams of what they do. Requests come as bytes, as in `ingest`."""

from __future__ import annotations

import asyncio
import math
import re
import time
from collections.abc import AsyncIterator
from typing import Any, Final

import grpc
from google.protobuf.message import DecodeError

from fulgurite.collector.config import Settings
from fulgurite.collector.demand import Demands
from fulgurite.collector.fanout import Fanout
from fulgurite.collector.fleet import Fleet, is_selected
from fulgurite.collector.outage import Outage
from fulgurite.collector.reduction import Wanted
from fulgurite.collector.replicas import Replicas
from fulgurite.collector.store import WINDOWS_KEPT, EntryId, Store, StoreError
from fulgurite.collector.watcher import Response, Watcher, Wish
from fulgurite.v1 import viewer_pb2
from fulgurite.wire.channels import BY_NAME
from fulgurite.wire.codec import MAX_LAYERS
from fulgurite.wire.refusals import STORE_AWAY
from fulgurite.wire.replica import ReplicaKey
from fulgurite.wire.sketch import FIRST_TOKEN_BOUNDS_S, INTER_TOKEN_BOUNDS_S

MAX_SELECTORS: Final = 64
MAX_SELECTOR_CHARS: Final = 1024
STATUS_EVERY_S: Final = 1.0
LEAST_STATUS_EVERY_S: Final = 0.1
LONGEST_S: Final = 1e7
MOST_FRAMES_PER_S: Final = 1e6
MAX_WINDOWS_BYTES: Final = 12 << 20
"""Of one answer: below what viewers accept."""


class ViewerService:
    """See `viewer.proto`."""

    def __init__(
        self,
        store: Store,
        *,
        fleet: Fleet,
        replicas: Replicas,
        fanout: Fanout,
        demands: Demands,
        settings: Settings,
        outage: Outage,
    ) -> None:
        self._demands = demands
        self._store, self._fleet, self._replicas, self._fanout = store, fleet, replicas, fanout
        self._settings, self._outage = settings, outage
        self._viewers = 0
        self._closing = asyncio.Event()

    @property
    def handler(self) -> Any:
        """What a server is given."""
        serialize = viewer_pb2.ListReplicasResponse.SerializeToString
        windows = viewer_pb2.ListWindowsResponse.SerializeToString
        handlers = {
            "ListReplicas": grpc.unary_unary_rpc_method_handler(self.list_replicas, None, serialize),
            "ListWindows": grpc.unary_unary_rpc_method_handler(self.list_windows, None, windows),
            "Watch": grpc.unary_stream_rpc_method_handler(self.watch, None, Response.SerializeToString),
        }
        return grpc.method_handlers_generic_handler("fulgurite.v1.ViewerService", handlers)

    def close(self) -> None:
        """End every stream."""
        self._closing.set()

    async def list_replicas(self, data: bytes, context: Any) -> viewer_pb2.ListReplicasResponse:
        """Every replica that a selector names, with its figures."""
        try:
            request = viewer_pb2.ListReplicasRequest.FromString(data)
            selectors = _selectors(request.selectors)
        except (DecodeError, ValueError) as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, _reason(error))
        try:
            rows = await self._fleet.rows()
        except StoreError as error:
            self._outage.failed("read", error)
            await context.abort(grpc.StatusCode.UNAVAILABLE, f"{STORE_AWAY}: {error}")
        self._outage.succeeded("read")
        now_ns = time.time_ns()
        response = viewer_pb2.ListReplicasResponse(store=self._store.name)
        for key, row in rows.items():
            if is_selected(key, selectors):
                replica = self._replicas.connected(key)
                response.replicas.append(replica.status(now_ns) if replica else row.status())
        return response

    async def list_windows(self, data: bytes, context: Any) -> viewer_pb2.ListWindowsResponse:
        """What replicas did, in windows; the oldest are left out where all are too much for a message."""
        try:
            request = viewer_pb2.ListWindowsRequest.FromString(data)
            selectors = _selectors(request.selectors)
            _check_windows(request)
        except (DecodeError, ValueError) as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, _reason(error))
        try:
            return await self._windows(request, selectors)
        except StoreError as error:
            self._outage.failed("read", error)
            await context.abort(grpc.StatusCode.UNAVAILABLE, f"{STORE_AWAY}: {error}")
            raise

    async def _windows(
        self, request: viewer_pb2.ListWindowsRequest, selectors: tuple[str, ...]
    ) -> viewer_pb2.ListWindowsResponse:
        keys = [key for key in await self._fleet.rows() if is_selected(key, selectors)]
        response = viewer_pb2.ListWindowsResponse(
            first_token_bounds_s=FIRST_TOKEN_BOUNDS_S, inter_token_bounds_s=INTER_TOKEN_BOUNDS_S
        )
        for key in keys:
            kept = await self._store.windows(key, request.width_s, seconds=request.history_s)
            told = response.replicas.add(key=key.text)
            for window in _newest(kept, MAX_WINDOWS_BYTES // len(keys)):
                told.windows.add().ParseFromString(window)
        self._outage.succeeded("read")
        return response

    async def watch(self, data: bytes, context: Any) -> AsyncIterator[Response]:
        """One viewer."""
        try:
            wish = _wish(viewer_pb2.WatchRequest.FromString(data))
        except (DecodeError, ValueError) as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, _reason(error))
        if self._viewers >= self._settings.max_viewers:
            most = self._settings.max_viewers
            text = f"{most} viewers are connected to this collector, which is its limit"
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, text)
        self._viewers += 1
        try:
            async for response in self._watcher(wish).responses():
                yield response
        finally:
            self._viewers -= 1

    def _watcher(self, wish: Wish) -> Watcher:
        return Watcher(
            wish,
            store=self._store,
            fleet=self._fleet,
            replicas=self._replicas,
            fanout=self._fanout,
            demands=self._demands,
            outage=self._outage,
            closing=self._closing,
        )


def _wish(request: viewer_pb2.WatchRequest) -> Wish:
    selectors = _selectors(request.selectors)
    after = EntryId.parse(request.after_id) if request.after_id else None
    if after is not None:
        _check_is_one(selectors)
    for name, value in (("history_s", request.history_s), ("status_interval_s", request.status_interval_s)):
        if not (math.isfinite(value) and 0 <= value <= LONGEST_S):
            raise ValueError(f"{name} must be 0 to {LONGEST_S:.0f} seconds, not {value:g}")
    interval_s = max(LEAST_STATUS_EVERY_S, request.status_interval_s or STATUS_EVERY_S)
    return Wish(
        selectors,
        request.history_s,
        after,
        interval_s,
        is_passive=request.passive,
        from_ns=min(request.from_ns, (1 << 63) - 1),
        versions=_selectors(request.versions),
        wanted=_wanted(request),
    )


def _wanted(request: viewer_pb2.WatchRequest) -> Wanted:
    """What of the batches a viewer can show."""
    rate = request.frames_per_s
    if not (math.isfinite(rate) and 0 <= rate <= MOST_FRAMES_PER_S):
        raise ValueError(f"frames_per_s must be 0 to {MOST_FRAMES_PER_S:.0f}, not {rate:g}")
    unknown = [name for name in request.channels if name not in BY_NAME]
    if unknown:
        raise ValueError(f"no such channel: {unknown[0][:40]!r}")
    if len(request.layers) > MAX_LAYERS or len(request.request_id) > MAX_SELECTOR_CHARS:
        raise ValueError("a request id, or a list of layers, that is too long")
    return Wanted(
        request_id=request.request_id,
        trace_id=_trace_id(request.trace_id),
        frames_per_s=rate,
        channels=frozenset(request.channels),
        layers=frozenset(request.layers),
    )


def _trace_id(text: str) -> bytes:
    if not text:
        return b""
    if not re.fullmatch(r"[0-9a-fA-F]{32}", text):
        raise ValueError(f"a trace id has 32 hexadecimal digits, not {text[:40]!r}")
    return bytes.fromhex(text)


def _check_windows(request: viewer_pb2.ListWindowsRequest) -> None:
    if request.width_s not in WINDOWS_KEPT:
        widths = ", ".join(map(str, WINDOWS_KEPT))
        raise ValueError(f"windows have a width of {widths} seconds, not {request.width_s}")
    if not (math.isfinite(request.history_s) and 0 <= request.history_s <= LONGEST_S):
        raise ValueError(f"history_s must be 0 to {LONGEST_S:.0f} seconds, not {request.history_s:g}")


def _newest(windows: list[bytes], nbytes: int) -> list[bytes]:
    """The newest of them, up to so many bytes, oldest first."""
    taken: list[bytes] = []
    for window in reversed(windows):
        nbytes -= len(window)
        if nbytes < 0:
            break
        taken.append(window)
    return taken[::-1]


def _check_is_one(selectors: tuple[str, ...]) -> None:
    if len(selectors) != 1:
        raise ValueError(
            "after_id names an entry of one replica: select that one, as namespace/service/instance"
        )
    ReplicaKey.parse(selectors[0])


def _selectors(selectors: Any) -> tuple[str, ...]:
    if len(selectors) > MAX_SELECTORS:
        raise ValueError(f"{len(selectors)} selectors; at most {MAX_SELECTORS}")
    if any(len(selector) > MAX_SELECTOR_CHARS for selector in selectors):
        raise ValueError(f"a selector of more than {MAX_SELECTOR_CHARS} characters")
    return tuple(selectors)


def _reason(error: Exception) -> str:
    return "not a request of a viewer" if isinstance(error, DecodeError) else str(error)
