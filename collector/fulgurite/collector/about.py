"""What a collector process tells an administrator: itself, and every replica with its link and ledger."""

from __future__ import annotations

import os
import resource
import sys
import time
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from fulgurite.collector.fleet import Fleet, is_selected
from fulgurite.collector.gate import Gate
from fulgurite.collector.outage import Outage
from fulgurite.collector.replicas import Replicas
from fulgurite.collector.store import Store, StoreError
from fulgurite.v1 import viewer_pb2
from fulgurite.wire.refusals import STORE_AWAY


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Which process this is.

    Attributes
    ----------
    worker, workers : int
        Its number, from 0, among those on this port.
    """

    collector_id: str
    worker: int
    workers: int
    asks_for_credentials: bool
    encrypts: bool


class AboutService:
    """See `Describe` in `viewer.proto`."""

    def __init__(
        self, store: Store, place: Place, *, fleet: Fleet, replicas: Replicas, gate: Gate, outage: Outage
    ) -> None:
        self._store, self._place = store, place
        self._fleet, self._replicas, self._gate, self._outage = fleet, replicas, gate, outage
        self._started_ns = time.time_ns()

    @property
    def handler(self) -> Any:
        """What a server is given."""
        serialize = viewer_pb2.DescribeResponse.SerializeToString
        handlers = {"Describe": grpc.unary_unary_rpc_method_handler(self.describe, None, serialize)}
        return grpc.method_handlers_generic_handler("fulgurite.v1.AdminService", handlers)

    async def describe(self, data: bytes, context: Any) -> viewer_pb2.DescribeResponse:
        """This process, and the replicas that a selector names. Answers even where the store does not."""
        try:
            selectors = tuple(viewer_pb2.DescribeRequest.FromString(data).selectors)
        except DecodeError:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "not a request of an administrator")
        response = self._itself()
        try:
            await self._add_replicas(response, selectors)
        except StoreError as error:
            self._outage.failed("read", error)
            response.store_away = True
            response.store = f"{STORE_AWAY}: {error}"
        return response

    def _itself(self) -> viewer_pb2.DescribeResponse:
        place = self._place
        usage = resource.getrusage(resource.RUSAGE_SELF)
        response = viewer_pb2.DescribeResponse(
            collector_id=place.collector_id,
            version=_version(),
            pid=os.getpid(),
            worker=place.worker,
            workers=place.workers,
            started_ns=self._started_ns,
            resident_bytes=_resident_bytes(usage.ru_maxrss),
            cpu_s=usage.ru_utime + usage.ru_stime,
            store=self._store.name,
            store_away=self._outage.is_on,
            asks_for_credentials=place.asks_for_credentials,
            encrypts=place.encrypts,
        )
        for (credential, service), calls in sorted(self._gate.calls().items()):
            response.calls.add(credential=credential, service=service, calls=calls)
        return response

    async def _add_replicas(self, response: viewer_pb2.DescribeResponse, selectors: tuple[str, ...]) -> None:
        now_ns = time.time_ns()
        for key, row in (await self._fleet.rows()).items():
            if is_selected(key, selectors):
                replica = self._replicas.connected(key)
                response.replicas.append(replica.status(now_ns) if replica else row.status())


def _resident_bytes(most: int) -> int:
    """Memory that this process has now; the most that it had, where the system does not tell."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except (OSError, ValueError, IndexError):
        return most * (1 if sys.platform == "darwin" else 1024)
    return pages * os.sysconf("SC_PAGE_SIZE")


def _version() -> str:
    try:
        return version("fulgurite")
    except PackageNotFoundError:
        return "unknown"
