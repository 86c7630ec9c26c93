"""The agent in an OpenTelemetry set-up that exists: parts of the standard SDK, and OTLP without a collector.

``RequestTelemetry`` is an exporter of the agent that makes request spans and metrics in this process, on a
thread of its own. It hands spans to the host's `TracerProvider`, or sends them by OTLP; `RequestMetricReader`
puts its metrics beside those of the host's `MeterProvider`. ``CollectorSpanExporter`` goes the other way: it
sends the host's own spans to a Fulgurite collector, to be shown with the tokens.

Examples
--------
>>> from fulgurite.agent import instrument  # doctest: +SKIP
>>> from fulgurite.agent.otel import RequestTelemetry, Several  # doctest: +SKIP
>>> telemetry = RequestTelemetry(tracer_provider=provider)  # doctest: +SKIP
>>> agent = instrument(model, exporter=telemetry)  # doctest: +SKIP
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from opentelemetry.sdk.metrics.export import MetricExporter, MetricsData, PeriodicExportingMetricReader
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from fulgurite.agent.exporter import Exporter, ExporterStats
from fulgurite.agent.figures import Figures
from fulgurite.agent.shield import Shield
from fulgurite.telemetry import encode
from fulgurite.telemetry.delivery import Delivery
from fulgurite.telemetry.encode import Snapshot, metrics_request, resource_for, spans_request
from fulgurite.telemetry.metrics import AgentAccount, ReplicaMeter
from fulgurite.telemetry.otlp import Target, sender_for, target_for
from fulgurite.telemetry.requests import RequestRecord, Requests
from fulgurite.telemetry.sampling import Sampling, TailSampler
from fulgurite.telemetry.spans import request_attributes, spans_of, token_arrays
from fulgurite.wire.frame import FrameBatch, FrameBlock, RequestEvent
from fulgurite.wire.ledger import Ledger
from fulgurite.wire.replica import ReplicaKey
from fulgurite.wire.topology import Topology

if TYPE_CHECKING:
    from opentelemetry.trace import TracerProvider

PROVIDER: Final = "transformers"
MOST_FRAMES: Final = 16_384
LOOK_EVERY_S: Final = 0.05
METRICS_EVERY_S: Final = 10.0
COLLECTOR: Final = "127.0.0.1:4747"


class RequestTelemetry:
    """An exporter of the agent (see `fulgurite.agent.exporter.Exporter`) that speaks OpenTelemetry.

    The host's thread appends to a bounded queue and goes on; a daemon thread folds. When the queue is full
    the oldest frames go and are counted.

    Parameters
    ----------
    tracer_provider : TracerProvider, optional
        Gets a span per request. Without one, spans go by OTLP to `endpoint`.
    endpoint : str, optional
        Of an OTLP receiver, for spans and metrics; by default what ``OTEL_EXPORTER_OTLP_*`` say; where
        neither names one, only `RequestMetricReader` and the tracer provider get anything.
    sampling : Sampling, optional
        Which requests carry per-token arrays.

    Raises
    ------
    ValueError
        For an endpoint that means nothing.
    """

    def __init__(
        self,
        *,
        tracer_provider: TracerProvider | None = None,
        endpoint: str | None = None,
        sampling: Sampling | None = None,
        env: Mapping[str, str] = os.environ,
    ) -> None:
        self._tracer = tracer_provider.get_tracer("fulgurite") if tracer_provider is not None else None
        self._targets: dict[str, Target] = {}
        for signal in ("traces", "metrics"):
            target = target_for(signal, endpoint=endpoint, env=env)
            if target is not None and not (signal == "traces" and self._tracer is not None):
                self._targets[signal] = target
        self._sampling = sampling or Sampling()
        self._topology: Topology | None = None
        self._resource: dict[str, str] = {}
        self._closed = False
        self._begin()

    @property
    def has_targets(self) -> bool:
        """Whether anything is sent by OTLP."""
        return bool(self._targets)

    def _begin(self) -> None:
        """Empty, and without a thread: at the start, and in the child of a fork."""
        self._pid = os.getpid()
        self._queue: deque[FrameBlock | RequestEvent] = deque()
        self._ledger = Ledger()
        self._shield = Shield()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._deliveries: dict[str, Delivery] = {}
        self._started_ns = time.time_ns()
        self._overhead, self._running, self._kv_bytes = float("nan"), -1, -1
        self._meet()

    def _meet(self) -> None:
        replica = ReplicaKey.from_resource(self._resource).text if self._resource else ""
        self._requests = Requests(replica)
        self._sampler = TailSampler(self._sampling)
        self._meter = ReplicaMeter(self._topology.experts if self._topology is not None else 0)

    # --- on the host's thread

    def attach(
        self, topology: Topology, *, level: str, ceiling: str, tokens: str, resource: Mapping[str, str]
    ) -> None:
        """See `Exporter.attach`. No id and no text is ever part of a span, whatever `tokens` says."""
        del level, ceiling, tokens
        import uuid

        self._topology = topology
        self._resource = {"service.instance.id": str(uuid.uuid4()), **resource}
        self._meet()

    def export(self, block: FrameBlock) -> None:
        """See `Exporter.export`."""
        self._put(block, len(block))

    def event(self, event: RequestEvent) -> None:
        """See `Exporter.event`."""
        self._put(event, 0)

    def _put(self, item: FrameBlock | RequestEvent, frames: int) -> None:
        try:
            if self._pid != os.getpid():
                self._begin()
            self._ledger.capture(frames)
            if self._closed:
                self._ledger.drop(frames, "closed")
                return
            self._queue.append(item)
            while len(self._queue) > MOST_FRAMES:  # a block has at least one frame
                gone = self._queue.popleft()
                if isinstance(gone, FrameBlock):
                    self._ledger.drop(len(gone), "outbox_full")
            if self._thread is None:
                self._start()
        except Exception as error:  # nothing of ours is the host's trouble
            self._shield.caught("telemetry", error)

    def _start(self) -> None:
        if not self._lock.acquire(blocking=False):
            return  # another thread is at it
        try:
            if self._thread is None:
                encoders: dict[str, Any] = {"traces": spans_request, "metrics": metrics_request}
                self._deliveries = {
                    signal: Delivery(signal, sender_for(signal, target), encoders[signal])  # type: ignore[arg-type]
                    for signal, target in self._targets.items()
                }
                self._thread = threading.Thread(target=self._run, name="fulgurite-telemetry", daemon=True)
                self._thread.start()
        finally:
            self._lock.release()

    def wanted_level(self) -> str | None:
        """None: there is no remote side that asks."""
        return None

    def report(
        self,
        *,
        overhead_ratio: float,
        level: str,
        running_requests: int,
        kv_bytes: int,
        figures: Figures | None = None,
    ) -> None:
        """See `Exporter.report`."""
        del level, figures
        self._overhead, self._running, self._kv_bytes = overhead_ratio, running_requests, kv_bytes

    def stats(self) -> ExporterStats:
        """The account: what was folded is acknowledged."""
        account = self._ledger.account()
        return ExporterStats(
            captured=account.captured,
            acknowledged=account.acknowledged,
            pending=account.pending,
            dropped=account.dropped,
        )

    def flush(self, timeout_s: float) -> bool:
        """See `Exporter.flush`: everything is folded, and what is sent by OTLP is taken."""
        limit_s = time.monotonic() + timeout_s
        while self._queue or self._ledger.account().pending:
            if time.monotonic() > limit_s or self._thread is None:
                return not self._queue
            time.sleep(0.01)
        return all(d.flush(max(0.0, limit_s - time.monotonic())) for d in self._deliveries.values())

    def close(self, timeout_s: float = 2.0) -> None:
        """See `Exporter.close`."""
        if self._closed or self._pid != os.getpid():
            return
        self.flush(timeout_s / 2)
        self._closed = True
        if self._thread is not None:
            self._thread.join(timeout_s / 4)
        if "metrics" in self._deliveries:
            self._deliveries["metrics"].put(self.snapshots())
        for delivery in self._deliveries.values():
            delivery.close(timeout_s / 4)
        while self._queue:
            gone = self._queue.popleft()
            if isinstance(gone, FrameBlock):
                self._ledger.drop(len(gone), "closed")

    # --- on the thread that folds

    def _run(self) -> None:
        pushed_s = time.monotonic()
        while not self._closed or self._queue:
            try:
                self._fold()
                for record in self._requests.give_up(time.time_ns()):
                    self._emit(record)
                if "metrics" in self._deliveries and time.monotonic() - pushed_s > METRICS_EVERY_S:
                    pushed_s = time.monotonic()
                    self._deliveries["metrics"].put(self.snapshots())
            except Exception as error:
                self._shield.caught("telemetry", error)
            time.sleep(LOOK_EVERY_S)

    def _fold(self) -> None:
        while self._queue:
            item = self._queue.popleft()
            try:
                block = (item,) if isinstance(item, FrameBlock) else ()
                event = (item,) if isinstance(item, RequestEvent) else ()
                batch = FrameBatch(epoch_ms=1, first_sequence=1, blocks=block, events=event)
                with self._lock:
                    self._meter.fold(batch)
                    records = self._requests.fold(batch, time.time_ns())
                    for record in records:
                        self._meter.end(record)
                for record in records:
                    self._emit(record)
            finally:
                if isinstance(item, FrameBlock):
                    self._ledger.acknowledge(len(item))

    def _emit(self, record: RequestRecord) -> None:
        because = self._sampler.because(record)
        model = self._topology.model_name if self._topology is not None else "unknown"
        if self._tracer is not None:
            self._emit_to_provider(record, model or "unknown", because)
        elif "traces" in self._deliveries:
            spans = spans_of(
                record,
                resource_for(self._resource),
                model=model or "unknown",
                provider=PROVIDER,
                because=because,
                with_tokens=self._sampler.with_tokens(record),
            )
            self._deliveries["traces"].put(spans)

    def _emit_to_provider(self, record: RequestRecord, model: str, because: str) -> None:
        """A span of the host's own provider, whose sampler and processors decide what becomes of it."""
        from opentelemetry import trace

        assert self._tracer is not None
        parent = None
        if record.trace_id and record.span_id:
            above = trace.SpanContext(
                int(record.trace_id, 16), int(record.span_id, 16), True, trace.TraceFlags(1)
            )
            parent = trace.set_span_in_context(trace.NonRecordingSpan(above))
        attributes = request_attributes(record, model, PROVIDER)
        span = self._tracer.start_span(
            f"{attributes['gen_ai.operation.name']} {model}",
            context=parent,
            kind=trace.SpanKind.INTERNAL,
            attributes=attributes,
            start_time=record.started_ns,
        )
        if because and span.is_recording():
            span.set_attributes({"fulgurite.sampled.because": because, **token_arrays(record)})
        if record.outcome != "finished":
            span.set_status(trace.Status(trace.StatusCode.ERROR, record.reason or record.outcome))
        span.end(end_time=max(record.started_ns, record.ended_ns))

    def snapshots(self) -> list[Snapshot]:
        """The figures as of now."""
        account, now_ns = self._ledger.account(), time.time_ns()
        named = {
            "gen_ai.operation.name": "text_completion",
            "gen_ai.provider.name": PROVIDER,
            "gen_ai.request.model": self._topology.model_name if self._topology is not None else "unknown",
        }
        with self._lock:
            self._meter.account = AgentAccount(
                captured=account.captured,
                acknowledged=account.acknowledged,
                pending=account.pending,
                dropped=dict(account.dropped),
                overhead=self._overhead,
                running=self._running,
                kv_bytes=self._kv_bytes,
            )
            points = self._meter.points(now_ns)
        return [
            Snapshot(
                resource={**self._resource, **named},
                points=points,
                started_ns=self._started_ns,
                time_ns=now_ns,
            )
        ]


class Several:
    """Several exporters as one: each gets everything. The first one's wishes and account are told.

    Parameters
    ----------
    exporters : Exporter
        At least one.
    """

    def __init__(self, *exporters: Exporter) -> None:
        if not exporters:
            raise ValueError("Several() needs at least one exporter")
        self._exporters = exporters

    def attach(
        self, topology: Topology, *, level: str, ceiling: str, tokens: str, resource: Mapping[str, str]
    ) -> None:
        """See `Exporter.attach`. All of them name the same instance."""
        import uuid

        named = {"service.instance.id": str(uuid.uuid4()), **resource}
        for exporter in self._exporters:
            exporter.attach(topology, level=level, ceiling=ceiling, tokens=tokens, resource=named)

    def export(self, block: FrameBlock) -> None:
        """See `Exporter.export`."""
        for exporter in self._exporters:
            exporter.export(block)

    def event(self, event: RequestEvent) -> None:
        """See `Exporter.event`."""
        for exporter in self._exporters:
            exporter.event(event)

    def report(
        self,
        *,
        overhead_ratio: float,
        level: str,
        running_requests: int,
        kv_bytes: int,
        figures: Figures | None = None,
    ) -> None:
        """See `Exporter.report`."""
        for exporter in self._exporters:
            exporter.report(
                overhead_ratio=overhead_ratio,
                level=level,
                running_requests=running_requests,
                kv_bytes=kv_bytes,
                figures=figures,
            )

    def wanted_level(self) -> str | None:
        """What the first one wants that wants anything."""
        wanted = (exporter.wanted_level() for exporter in self._exporters)
        return next((level for level in wanted if level is not None), None)

    def stats(self) -> ExporterStats:
        """The account of the first one."""
        return self._exporters[0].stats()

    def flush(self, timeout_s: float) -> bool:
        """See `Exporter.flush`."""
        limit_s = time.monotonic() + timeout_s
        done = [e.flush(max(0.0, limit_s - time.monotonic())) for e in self._exporters]
        return all(done)

    def close(self, timeout_s: float = 2.0) -> None:
        """See `Exporter.close`."""
        for exporter in self._exporters:
            exporter.close(timeout_s / len(self._exporters))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._exporters[0], name)


class RequestMetricReader(PeriodicExportingMetricReader):
    """A metric reader that exports the figures of a `RequestTelemetry` with those of the host's own meters.

    Parameters
    ----------
    exporter : MetricExporter
        Any of the SDK's.
    telemetry : RequestTelemetry
        Whose figures.
    """

    def __init__(self, exporter: MetricExporter, telemetry: RequestTelemetry, **options: Any) -> None:
        self._telemetry = telemetry
        super().__init__(exporter, **options)

    # The SDK hands nothing on where the host has no instruments; ours are told all the same.
    @property
    def _collect(self) -> Any:
        return self._with_ours if self._collected is not None else None

    @_collect.setter
    def _collect(self, callback: Any) -> None:
        self._collected = callback

    def _with_ours(self, *args: Any, **kwargs: Any) -> MetricsData:
        return self._collected(*args, **kwargs) or MetricsData(resource_metrics=[])

    def _receive_metrics(
        self, metrics_data: MetricsData, timeout_millis: float = 10_000, **kwargs: Any
    ) -> None:
        ours = encode.metrics_data(self._telemetry.snapshots()).resource_metrics
        joined = MetricsData(resource_metrics=[*metrics_data.resource_metrics, *ours])
        super()._receive_metrics(joined, timeout_millis, **kwargs)


class CollectorSpanExporter(SpanExporter):
    """A span exporter that sends the host's spans to a Fulgurite collector, which shows them with the tokens.

    It has a queue, a thread and an account of its own and never blocks: a `SimpleSpanProcessor` will do.

    Parameters
    ----------
    collector : str
        ``HOST:PORT``; default ``FULGURITE_ENDPOINT``, else 127.0.0.1:4747.
    """

    def __init__(self, collector: str | None = None, *, env: Mapping[str, str] = os.environ) -> None:
        place = collector or env.get("FULGURITE_ENDPOINT") or COLLECTOR
        target = target_for("traces", endpoint=place, env={"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"})
        assert target is not None
        self._delivery = Delivery("traces", sender_for("traces", target), spans_request)

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Take them. What becomes of them is in `account`."""
        self._delivery.put(spans)
        return SpanExportResult.SUCCESS

    def account(self) -> Any:
        """``captured == pending + acknowledged + sum(dropped.values())``, in spans."""
        return self._delivery.account()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Wait until all were sent; False where it was not in time."""
        return self._delivery.flush(timeout_millis / 1e3)

    def shutdown(self) -> None:
        """Flush for at most 2 s, then stop."""
        self._delivery.close(2.0)
