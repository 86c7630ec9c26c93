"""The life of a collector: bind, serve, drain, stop."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from dataclasses import dataclass
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from fulgurite.collector.config import Settings
from fulgurite.collector.embedded import EmbeddedServer
from fulgurite.collector.ingest import AgentService
from fulgurite.collector.replicas import Replicas
from fulgurite.collector.store import Store, StoreUnavailable
from fulgurite.collector.stores.memory import MemoryStore
from fulgurite.collector.watch import ViewerService
from fulgurite.v1 import agent_pb2_grpc, viewer_pb2_grpc

logger = logging.getLogger("fulgurite.collector")
MAX_MESSAGE_BYTES = 16 << 20
_DRAIN_S = 2.0
_OPTIONS = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.so_reuseport", 0),  # a port that is taken is an error, not a second collector
)


class CannotStart(RuntimeError):
    """The collector cannot start; the message says why, in one line, and what to do."""

    def __init__(self, reason: str, status: int) -> None:
        super().__init__(reason)
        self.status = status


@dataclass(slots=True)
class Collector:
    """One collector.

    Parameters
    ----------
    settings : Settings

    Attributes
    ----------
    address : ``HOST:PORT`` that it listens on, once it is started.
    store_name : what it stores in.
    """

    settings: Settings
    address: str = ""
    store_name: str = ""
    _embedded: EmbeddedServer | None = None
    _store: Store | None = None
    _server: grpc.aio.Server | None = None
    _health: Any = None
    _viewers: ViewerService | None = None
    _keeper: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Open the store, bind, serve.

        Raises
        ------
        CannotStart
        EmbeddedUnavailable
        """
        self._store = await self._opened()
        replicas = Replicas(self._store)
        self._server = grpc.aio.server(options=_OPTIONS)
        agents = AgentService(self._store, replicas, self.settings, uuid.uuid4().hex[:8])
        self._viewers = ViewerService(self._store, replicas, self.settings, self.store_name)
        agent_pb2_grpc.add_AgentServiceServicer_to_server(agents, self._server)
        viewer_pb2_grpc.add_ViewerServiceServicer_to_server(self._viewers, self._server)
        self._health = health.aio.HealthServicer()  # type: ignore[attr-defined]
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        await self._bind(self._server)
        await self._server.start()
        await self._health.set("", health_pb2.HealthCheckResponse.SERVING)
        self._keeper = asyncio.create_task(self._keep(replicas))

    async def _opened(self) -> Store:
        if self.settings.redis == "memory":
            store: Store = MemoryStore()
            self.store_name = await store.open()
            return store
        from fulgurite.collector.stores.redis import RedisStore

        url = self.settings.redis
        if url is None:
            self._embedded = EmbeddedServer()
            await self._embedded.start()
            url = self._embedded.url
        try:
            store = RedisStore(url)
            self.store_name = await store.open() + (" (embedded)" if self._embedded else "")
        except (StoreUnavailable, ValueError) as error:
            await self.stop()
            raise CannotStart(
                f"no Redis-compatible server answers at {url} ({error}): start one, "
                "or leave --redis out for the embedded one",
                1,
            ) from None
        return store

    async def _bind(self, server: grpc.aio.Server) -> None:
        host, _, port = self.settings.listen.rpartition(":")
        try:
            bound = server.add_insecure_port(self.settings.listen)
        except RuntimeError:
            bound = 0
        if not bound:
            await self.stop()
            raise CannotStart(
                f"cannot listen on {self.settings.listen}: the port is in use, or the address is not ours; "
                f"choose another with --listen {host}:{int(port) + 1}",
                2,
            )
        self.address = f"{host}:{bound}"

    async def _keep(self, replicas: Replicas) -> None:
        while True:
            await asyncio.sleep(1.0)
            try:
                await replicas.keep(
                    time.time_ns(),
                    retention_s=self.settings.retention_s,
                    retention_bytes=self.settings.retention_bytes,
                    forget_s=self.settings.forget_s,
                )
            except StoreUnavailable as error:
                logger.debug("the store is away: %s", error)
            except Exception:
                logger.exception("keeping figures failed; it is tried again")

    async def stop(self) -> None:
        """Say that we go, let streams end, let go of everything. May be called again."""
        if self._health is not None:
            await self._health.enter_graceful_shutdown()
        if self._viewers is not None:
            self._viewers.closing.set()
        if self._server is not None:
            await self._server.stop(_DRAIN_S)
        if self._keeper is not None:
            self._keeper.cancel()
        if self._store is not None:
            await self._store.close()
        if self._embedded is not None:
            self._embedded.stop()
