"""The life of the telemetry process: read, send by OTLP, be scraped; then flush and let go."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Mapping
from typing import Any, Final

from fulgurite.collector.config import Listen
from fulgurite.collector.store import Store
from fulgurite.collector.telemetry.config import TelemetrySettings
from fulgurite.collector.telemetry.folder import Gathered
from fulgurite.collector.telemetry.reader import Reader
from fulgurite.telemetry.delivery import Delivery
from fulgurite.telemetry.encode import Snapshot, logs_request, metrics_request, spans_request
from fulgurite.telemetry.metrics import Point
from fulgurite.telemetry.names import OWN_METRICS
from fulgurite.telemetry.otlp import SIGNALS, Signal, sender_for, target_for
from fulgurite.telemetry.prometheus import Scrape

log = logging.getLogger(__name__)

SCRAPE_TIMEOUT_S: Final = 5.0
_OWN: Final = {metric.name: metric for metric in OWN_METRICS}
_ENCODERS: Final[dict[str, Any]] = {
    "traces": spans_request,
    "metrics": metrics_request,
    "logs": logs_request,
}


class CannotServe(Exception):
    """The address of the metrics page cannot be had. The message says what to do."""


class Telemetry:
    """Serves a store's telemetry for the length of an `async with`.

    Raises
    ------
    CannotServe
        On entering, where the address of the metrics page cannot be had.
    ValueError
        On making it, where an endpoint means nothing.
    """

    def __init__(
        self, store: Store, settings: TelemetrySettings, env: Mapping[str, str] = os.environ
    ) -> None:
        self._settings = settings
        self._reader = Reader(store, sampling=settings.sampling, take=self._take)
        self._deliveries: dict[str, Delivery] = {}
        self._started_ns = time.time_ns()
        for signal in SIGNALS:
            if signal in settings.signals:
                self._open(signal, env)
        self._tasks: list[asyncio.Task[None]] = []
        self._page: tuple[Any, Any] | None = None
        self.prometheus = settings.prometheus

    def _open(self, signal: Signal, env: Mapping[str, str]) -> None:
        target = target_for(signal, endpoint=self._settings.otlp_export, env=env)
        if target is not None:
            self._deliveries[signal] = Delivery(
                signal,
                sender_for(signal, target),
                _ENCODERS[signal],
                weigh=_points if signal == "metrics" else _one,
                first_retry_s=self._settings.first_retry_s,
            )

    async def __aenter__(self) -> Telemetry:
        if self._settings.prometheus is not None:
            self.prometheus = self._serve(self._settings.prometheus)
        self._tasks.append(asyncio.create_task(self._reader.run(), name="reader"))
        if "metrics" in self._deliveries:
            self._tasks.append(asyncio.create_task(self._push(), name="metrics"))
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if "metrics" in self._deliveries:
            self._deliveries["metrics"].put(self.snapshots())
        closing = [asyncio.to_thread(delivery.close, 2.0) for delivery in self._deliveries.values()]
        await asyncio.gather(*closing)
        if self._page is not None:
            server, thread = self._page
            await asyncio.to_thread(server.shutdown)
            server.server_close()
            thread.join(1.0)

    def snapshots(self) -> list[Snapshot]:
        """The figures of every replica, and those of this process."""
        now_ns = time.time_ns()
        replicas = [folder.snapshot(now_ns) for folder in list(self._reader.folders.values())]
        return [*replicas, self._own(now_ns)]

    def _take(self, gathered: Gathered) -> None:
        if gathered.spans and "traces" in self._deliveries:
            self._deliveries["traces"].put(gathered.spans)
        if gathered.logs and "logs" in self._deliveries:
            self._deliveries["logs"].put(gathered.logs)

    async def _push(self) -> None:
        while True:
            await asyncio.sleep(self._settings.metrics_every_s)
            self._deliveries["metrics"].put(self.snapshots())

    def _own(self, now_ns: int) -> Snapshot:
        points = [
            Point(_OWN["fulgurite.telemetry.lag"], {}, self._reader.lag_s),
            Point(_OWN["fulgurite.telemetry.undecodable"], {}, self._undecodable()),
        ]
        for signal, delivery in self._deliveries.items():
            account = delivery.account()
            label = {"fulgurite.signal": signal}
            outcomes = {"acknowledged": account.acknowledged, **account.dropped}
            points.append(Point(_OWN["fulgurite.telemetry.pending"], label, account.pending))
            points += [
                Point(_OWN["fulgurite.telemetry.items"], {**label, "fulgurite.outcome": outcome}, count)
                for outcome, count in outcomes.items()
            ]
        resource = {"service.name": "fulgurite-telemetry", "service.namespace": "fulgurite"}
        return Snapshot(resource=resource, points=points, started_ns=self._started_ns, time_ns=now_ns)

    def _asked(self, loop: asyncio.AbstractEventLoop) -> list[Snapshot]:
        """The figures for a scrape, taken on the loop, which alone changes them."""

        async def taken() -> list[Snapshot]:
            return self.snapshots()

        return asyncio.run_coroutine_threadsafe(taken(), loop).result(SCRAPE_TIMEOUT_S)

    def _undecodable(self) -> int:
        return self._reader.undecodable + sum(f.undecodable for f in list(self._reader.folders.values()))

    def _serve(self, listen: Listen) -> Listen:
        """Serve ``/metrics`` on a thread of its own."""
        from prometheus_client import CollectorRegistry, start_http_server

        loop = asyncio.get_running_loop()
        registry = CollectorRegistry(auto_describe=False)
        registry.register(Scrape(lambda: self._asked(loop)))
        try:
            self._page = start_http_server(listen.port, addr=listen.host, registry=registry)
        except OSError as error:
            raise CannotServe(
                f"cannot serve metrics on {listen}: {error.strerror or error}; "
                "choose another address with --prometheus HOST:PORT"
            ) from None
        return Listen(listen.host, self._page[0].server_port)


def _points(snapshot: Snapshot) -> int:
    return len(snapshot.points)


def _one(_: object) -> int:
    return 1
