"""Spans, metric points and events as serialised OTLP export requests."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from fulgurite.telemetry.metrics import Exemplar, Histogram, Point
from fulgurite.telemetry.names import REPLICA_LABELS, SCOPE, Metric

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """The figures of one replica, or of a process, at one moment.

    Attributes
    ----------
    resource : OpenTelemetry resource attributes.
    started_ns, time_ns : UNIX time since which counters count, and of now.
    """

    resource: Mapping[str, str]
    points: Sequence[Point]
    started_ns: int
    time_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LogRecord:
    """One event of a request."""

    resource: Mapping[str, str]
    time_ns: int
    event_name: str
    body: str
    severity: int
    attributes: Mapping[str, str | int]
    trace_id: str = ""
    span_id: str = ""


def resource_for(attributes: Mapping[str, str]) -> Any:
    """An SDK resource with these attributes and no others."""
    from opentelemetry.sdk.resources import Resource

    return Resource(dict(attributes))


def spans_request(spans: Sequence[ReadableSpan]) -> bytes:
    """An ExportTraceServiceRequest."""
    from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans

    return bytes(encode_spans(spans).SerializeToString())


def metrics_data(snapshots: Iterable[Snapshot]) -> Any:
    """The SDK's `MetricsData` of some snapshots: cumulative."""
    from opentelemetry.sdk.metrics import export as sdk
    from opentelemetry.sdk.util.instrumentation import InstrumentationScope

    resources = []
    for snapshot in snapshots:
        families: dict[Metric, list[Point]] = {}
        for point in snapshot.points:
            families.setdefault(point.metric, []).append(point)
        metrics = [
            sdk.Metric(
                name=metric.name,
                description=metric.description,
                unit=metric.unit,
                data=_data(metric, points, snapshot, sdk),
            )
            for metric, points in families.items()
        ]
        scope = sdk.ScopeMetrics(scope=InstrumentationScope(SCOPE), metrics=metrics, schema_url="")
        resources.append(
            sdk.ResourceMetrics(
                resource=resource_for(snapshot.resource), scope_metrics=[scope], schema_url=""
            )
        )
    return sdk.MetricsData(resource_metrics=resources)


def metrics_request(snapshots: Sequence[Snapshot]) -> bytes:
    """An ExportMetricsServiceRequest."""
    from opentelemetry.exporter.otlp.proto.common.metrics_encoder import encode_metrics

    return bytes(encode_metrics(metrics_data(snapshots)).SerializeToString())


def _data(metric: Metric, points: list[Point], snapshot: Snapshot, sdk: Any) -> Any:
    cumulative = sdk.AggregationTemporality.CUMULATIVE
    if metric.kind in ("histogram", "moments"):
        made = [_histogram_point(point, snapshot, sdk) for point in points]
        return sdk.Histogram(data_points=made, aggregation_temporality=cumulative)
    numbers = [
        sdk.NumberDataPoint(
            attributes=_attributes(point, snapshot),
            start_time_unix_nano=snapshot.started_ns,
            time_unix_nano=snapshot.time_ns,
            value=point.value,
        )
        for point in points
    ]
    if metric.kind == "counter":
        return sdk.Sum(data_points=numbers, aggregation_temporality=cumulative, is_monotonic=True)
    return sdk.Gauge(data_points=numbers)


def _attributes(point: Point, snapshot: Snapshot) -> dict[str, str]:
    """Its labels; the GenAI conventions want provider, operation and model at each of their points."""
    attributes = dict(point.labels)
    if point.metric.name.startswith("gen_ai."):
        for name in ("gen_ai.operation.name", "gen_ai.provider.name", "gen_ai.request.model"):
            if snapshot.resource.get(name):
                attributes[name] = snapshot.resource[name]
    return attributes


def _histogram_point(point: Point, snapshot: Snapshot, sdk: Any) -> Any:
    value = point.value
    assert isinstance(value, Histogram)
    return sdk.HistogramDataPoint(
        attributes=_attributes(point, snapshot),
        start_time_unix_nano=snapshot.started_ns,
        time_unix_nano=snapshot.time_ns,
        count=value.count,
        sum=value.total,
        bucket_counts=value.counts,
        explicit_bounds=value.bounds,
        min=None,
        max=None,
        exemplars=[_exemplar(e) for _, e in sorted(value.exemplars.items())],
    )


def _exemplar(exemplar: Exemplar) -> Any:
    from opentelemetry.sdk.metrics._internal.exemplar import Exemplar as SdkExemplar

    return SdkExemplar(
        filtered_attributes={},
        value=exemplar.value,
        time_unix_nano=exemplar.time_ns,
        span_id=int(exemplar.span_id, 16),
        trace_id=int(exemplar.trace_id, 16),
    )


def logs_request(records: Sequence[LogRecord]) -> bytes:
    """An ExportLogsServiceRequest."""
    from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
    from opentelemetry.proto.common.v1.common_pb2 import InstrumentationScope
    from opentelemetry.proto.logs.v1 import logs_pb2

    request = ExportLogsServiceRequest()
    by_resource: dict[tuple[tuple[str, str], ...], Any] = {}
    for record in records:
        key = tuple(sorted(record.resource.items()))
        if key not in by_resource:
            logs = request.resource_logs.add()
            _fill(logs.resource.attributes, record.resource)
            by_resource[key] = logs.scope_logs.add(scope=InstrumentationScope(name=SCOPE))
        told = logs_pb2.LogRecord(
            time_unix_nano=record.time_ns,
            observed_time_unix_nano=record.time_ns,
            severity_number=cast(Any, record.severity),
            severity_text="INFO" if record.severity < 13 else "WARN",
            event_name=record.event_name,
            trace_id=bytes.fromhex(record.trace_id),
            span_id=bytes.fromhex(record.span_id),
        )
        told.body.string_value = record.body
        _fill(told.attributes, record.attributes)
        by_resource[key].log_records.append(told)
    return bytes(request.SerializeToString())


def _fill(attributes: Any, values: Mapping[str, str | int]) -> None:
    for name, value in values.items():
        attribute = attributes.add(key=name)
        if isinstance(value, str):
            attribute.value.string_value = value
        else:
            attribute.value.int_value = value


def replica_labels(resource: Mapping[str, str]) -> dict[str, str]:
    """The attributes that name a replica in a series; those that are not known are left out."""
    return {name: resource[name] for name in REPLICA_LABELS if resource.get(name)}
