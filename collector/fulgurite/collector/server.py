"""The life of a collector: bind, open the store, serve; say that it ends, drain, let go."""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import uuid
from contextlib import AsyncExitStack
from typing import Any, Final

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from fulgurite.collector.about import AboutService, Place
from fulgurite.collector.admin import AdminService
from fulgurite.collector.config import Listen, Settings
from fulgurite.collector.demand import Demands
from fulgurite.collector.fanout import Fanout
from fulgurite.collector.fleet import Fleet
from fulgurite.collector.ingest import AgentService
from fulgurite.collector.keeper import Keeper
from fulgurite.collector.otlp.intake import SpanIntake
from fulgurite.collector.otlp.service import OtlpService
from fulgurite.collector.outage import Outage
from fulgurite.collector.replicas import Replicas
from fulgurite.collector.security import Security
from fulgurite.collector.store import Retention, Store
from fulgurite.collector.watch import ViewerService

log = logging.getLogger(__name__)

STREAMS_PER_CONNECTION: Final = 1024
WINDOW_BYTES: Final = 2 << 20
METADATA_BYTES: Final = 16 << 10
HANDSHAKE_MS: Final = 10_000
IDLE_MS: Final = 300_000


class CannotListen(Exception):
    """The address cannot be had. The message says why, and what to do."""


class Collector:
    """Serves what is in a store, for the length of an `async with`.

    Parameters
    ----------
    store : Store
        Open. It stays open.
    worker : int, optional
        Its number among several that listen on the same port.

    Attributes
    ----------
    address : Listen
        Where it listens; with the port that was found, once it is entered.

    Raises
    ------
    CannotListen
        On entering.
    Unsafe
        Where the certificates or the credentials cannot be used.
    """

    def __init__(self, store: Store, settings: Settings, *, worker: int | None = None) -> None:
        self.address = settings.listen
        self._worker = worker
        collector_id = uuid.uuid4().hex[:12]
        self._security = Security(settings)
        self._settings = settings
        self._stack = AsyncExitStack()
        self._outage = Outage(settings.retry_after_s)
        fleet = Fleet(store)
        replicas = Replicas(store, fleet)
        retention = Retention(age_s=settings.retention_s, nbytes=settings.retention_bytes)
        self._fanout = Fanout(store, max_bytes=settings.viewer_bytes, outage=self._outage)
        self._keeper = Keeper(store, replicas, retention=retention, outage=self._outage)
        self._demands = Demands(store, history=settings.history)
        self._agents = AgentService(
            store,
            replicas,
            demands=self._demands,
            settings=settings,
            outage=self._outage,
            collector_id=collector_id,
            # Where an acknowledgement waits for the disk, the store tells its readers before.
            fanout=self._fanout if settings.durability in ("none", "everysec") else None,
        )
        self._viewers = ViewerService(
            store,
            fleet=fleet,
            replicas=replicas,
            fanout=self._fanout,
            demands=self._demands,
            settings=settings,
            outage=self._outage,
        )
        place = Place(
            collector_id=collector_id,
            worker=worker or 0,
            workers=settings.workers,
            asks_for_credentials=settings.asks_for_credentials,
            encrypts=settings.tls is not None,
        )
        self._about = AboutService(
            store, place, fleet=fleet, replicas=replicas, gate=self._security.gate, outage=self._outage
        )
        self._admin = AdminService(store, fleet=fleet, demands=self._demands, outage=self._outage)
        self._spans = SpanIntake(store, outage=self._outage, budget_bytes=settings.otlp_bytes)
        self._otlp = OtlpService(store, intake=self._spans, outage=self._outage)
        self.otlp_http = settings.otlp_http
        self._health: Any = health.aio.HealthServicer()  # type: ignore[attr-defined]

    async def __aenter__(self) -> Collector:
        if self._worker is None:
            await check_is_free(self.address)
        self._server = grpc.aio.server(
            interceptors=(self._security.gate,),
            options=_options(self._settings, is_shared=self._worker is not None),
        )
        self._server.add_generic_rpc_handlers(
            (self._agents.handler, self._viewers.handler, self._admin.handler, self._about.handler)
        )
        self._server.add_generic_rpc_handlers(self._otlp.handlers)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        self.address = Listen(self.address.host, self._bind(self._server))
        if self.otlp_http is not None:
            from fulgurite.collector.otlp.http import CannotServeHttp, OtlpHttp

            try:
                http = await self._stack.enter_async_context(
                    OtlpHttp(self._spans, self.otlp_http, admit=self._security.gate.admit_spans)
                )
            except CannotServeHttp as error:
                raise CannotListen(str(error)) from None
            self.otlp_http = http.address
        await self._server.start()
        self._stack.push_async_callback(self._fanout.close)
        keeping = asyncio.create_task(self._keeper.run(), name="keeper")
        self._stack.push_async_callback(_cancelled, keeping)
        demanding = asyncio.create_task(self._demands.run(), name="demands")
        self._stack.push_async_callback(_cancelled, demanding)
        guarding = asyncio.create_task(self._security.gate.run(), name="gate")
        self._stack.push_async_callback(_cancelled, guarding)
        self._stack.push_async_callback(self._drain)
        await self._health.set("", health_pb2.HealthCheckResponse.SERVING)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    def _bind(self, server: grpc.aio.Server) -> int:
        credentials = self._security.port_credentials()
        try:
            if credentials is None:
                port = server.add_insecure_port(str(self.address))
            else:
                port = server.add_secure_port(str(self.address), credentials)
        except RuntimeError:
            port = 0
        if not port:
            raise CannotListen(
                f"cannot listen on {self.address}: choose another address with --listen HOST:PORT"
            )
        return int(port)

    async def _drain(self) -> None:
        """Say that it ends, end the streams when what came is stored, then hang up."""
        await self._health.enter_graceful_shutdown()
        self._viewers.close()
        await self._agents.drain(self._settings.drain_s)
        await self._server.stop(1.0)


async def check_is_free(listen: Listen) -> None:
    """See whether `listen` can be had, since grpc does not tell why it cannot.

    Raises
    ------
    CannotListen
        Where it cannot.
    """
    try:
        found = await asyncio.get_running_loop().getaddrinfo(
            listen.host, listen.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    except socket.gaierror as error:
        raise CannotListen(f"cannot listen on {listen}: no such host ({error.strerror})") from error
    refusals = [_refusal(family, address) for family, *_, address in found]
    errors = [refusal for refusal in refusals if refusal is not None]
    if any(refusal.errno == errno.EADDRINUSE for refusal in errors):
        raise CannotListen(
            f"cannot listen on {listen}: the port is in use, perhaps by another collector; "
            "end that one, or choose another port with --listen HOST:PORT"
        )
    if len(errors) == len(found):
        raise CannotListen(f"cannot listen on {listen}: {(errors[0].strerror or str(errors[0])).lower()}")


def _refusal(family: int, address: Any) -> OSError | None:
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            probe.bind(address)
    except OSError as error:
        return error
    return None


async def _cancelled(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def _options(settings: Settings, *, is_shared: bool) -> list[tuple[str, int]]:
    return [
        ("grpc.max_receive_message_length", settings.receive_limit_bytes),
        ("grpc.max_send_message_length", -1),
        ("grpc.max_concurrent_streams", STREAMS_PER_CONNECTION),
        # What may be on its way while nobody reads it. The window that is measured grows to 16 MiB.
        ("grpc.http2.bdp_probe", 0),
        ("grpc.http2.lookahead_bytes", WINDOW_BYTES),
        ("grpc.max_metadata_size", METADATA_BYTES),
        ("grpc.server_handshake_timeout_ms", HANDSHAKE_MS),
        ("grpc.max_connection_idle_ms", IDLE_MS),  # who opens connections and says nothing is hung up on
        ("grpc.keepalive_time_ms", 20_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.keepalive_permit_without_calls", 1),
        # Agents and viewers ping every 20 s, and must not be hung up on for it.
        ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
        # A port that is taken is an error, not a second collector beside the first; unless that is meant.
        ("grpc.so_reuseport", int(is_shared)),
    ]
