"""A trace, put together from the spans of others and from our frames, as text and as JSON."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from fulgurite.telemetry.requests import RequestRecord, Requests
from fulgurite.telemetry.spans import generation_times, request_attributes
from fulgurite.wire.codec import Codec, CodecError, codec_for
from fulgurite.wire.frame import FrameBatch, FrameBlock, RequestEvent

if TYPE_CHECKING:
    from fulgurite.cli.client import Collector

KINDS: Final = ("unspecified", "internal", "server", "client", "producer", "consumer")
OURS: Final = "fulgurite"


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """One span.

    Attributes
    ----------
    service : of the resource; for our own the replica.
    tokens : seconds that each token took; empty for spans of others.
    """

    span_id: str
    parent_id: str
    name: str
    kind: str
    service: str
    start_ns: int
    end_ns: int
    attributes: Mapping[str, Any] = field(default_factory=dict)
    tokens: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Trace:
    """All that is known of one trace."""

    trace_id: str
    spans: tuple[Span, ...]


def find(collector: Collector, trace_id: str, *, history_s: float) -> Trace:
    """Ask for everything that belongs to a trace."""
    spans = [span for blob in collector.spans(bytes.fromhex(trace_id)) for span in _foreign(blob)]
    spans += [_own(record, model) for record, model in _records(collector, trace_id, history_s)]
    # A request span of ours that came back by OTLP has the same id: the frames know more than it does.
    unique = {span.span_id: span for span in spans}
    return Trace(trace_id, tuple(sorted(unique.values(), key=lambda span: (span.start_ns, span.span_id))))


def _foreign(blob: bytes) -> Iterator[Span]:
    from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans

    resource = ResourceSpans.FromString(blob)
    named = _attributes(resource.resource.attributes)
    for scope in resource.scope_spans:
        for span in scope.spans:
            yield Span(
                span_id=span.span_id.hex(),
                parent_id=span.parent_span_id.hex(),
                name=span.name,
                kind=KINDS[span.kind] if span.kind < len(KINDS) else KINDS[0],
                service=str(named.get("service.name", "unknown_service")),
                start_ns=span.start_time_unix_nano,
                end_ns=span.end_time_unix_nano,
                attributes=_attributes(span.attributes),
            )


def _attributes(attributes: Any) -> dict[str, Any]:
    return {attribute.key: _value(attribute.value) for attribute in attributes}


def _value(value: Any) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_value(item) for item in value.array_value.values]
    if kind == "kvlist_value":
        return _attributes(value.kvlist_value.values)
    if kind == "bytes_value":
        return bytes(value.bytes_value).hex()
    return getattr(value, kind) if kind else None


def _records(collector: Collector, trace_id: str, history_s: float) -> Iterator[tuple[RequestRecord, str]]:
    """The requests of a trace, from the frames that are stored."""
    codecs: dict[str, Codec] = {}
    models: dict[str, str] = {}
    requests: dict[str, Requests] = {}
    waiting = {status.key for status in collector.replicas().replicas}
    if not waiting:
        return
    for message in collector.watch(history_s=history_s):
        kind = message.WhichOneof("message")
        if kind == "replica":
            try:
                codecs[message.replica.key] = codec_for(message.replica.schema)
            except CodecError:
                continue
            models[message.replica.key] = message.replica.topology.model_name
        elif kind == "batch" and message.batch.key in codecs:
            key = message.batch.key
            try:
                batch = codecs[key].decode(message.batch.batch)
            except CodecError:
                continue
            known = requests.setdefault(key, Requests(key))
            for record in known.fold(_of_trace(batch, trace_id)):
                if record.trace_id == trace_id:
                    yield record, models[key]
        elif kind == "caught_up":
            waiting.discard(message.caught_up.key)
            if not waiting:
                break
    for key, known in requests.items():
        for record in known.give_up(1 << 63):
            if record.trace_id == trace_id:
                yield record, models[key]


def _of_trace(batch: FrameBatch, trace_id: str) -> FrameBatch:
    """The batch with the tokens of one trace alone; events stay, since they do not name one."""
    blocks: list[FrameBlock] = []
    for block in batch.blocks:
        wanted = [n for n, ref in enumerate(block.requests) if ref.trace_id == trace_id]
        rows = [row for row, n in enumerate(block.columns["request_index"].tolist()) if n in wanted]
        if rows:
            blocks.append(block.select(rows))
    events: tuple[RequestEvent, ...] = batch.events
    return FrameBatch(
        epoch_ms=batch.epoch_ms, first_sequence=batch.first_sequence, blocks=tuple(blocks), events=events
    )


def _own(record: RequestRecord, model: str) -> Span:
    return Span(
        span_id=record.own_span_id,
        parent_id=record.span_id,
        name=f"text_completion {model}",
        kind="internal",
        service=record.replica,
        start_ns=record.started_ns,
        end_ns=record.ended_ns,
        attributes=request_attributes(record, model, OURS),
        tokens=tuple(generation_times(record).tolist()) if record.columns else (),
    )


def document(trace: Trace) -> dict[str, Any]:
    """The trace as a JSON document."""
    return {
        "trace_id": trace.trace_id,
        "spans": [
            {
                "span_id": span.span_id,
                "parent_id": span.parent_id,
                "name": span.name,
                "kind": span.kind,
                "service": span.service,
                "start_ns": span.start_ns,
                "end_ns": span.end_ns,
                "attributes": dict(span.attributes),
                **({"token_seconds": list(span.tokens)} if span.tokens else {}),
            }
            for span in trace.spans
        ],
    }


def tree(trace: Trace) -> str:
    """The trace as indented lines: when, how long, what, where."""
    children: dict[str, list[Span]] = {}
    known = {span.span_id for span in trace.spans}
    for span in trace.spans:
        children.setdefault(span.parent_id if span.parent_id in known else "", []).append(span)
    start_ns = min(span.start_ns for span in trace.spans)
    lines = [f"trace {trace.trace_id}"]

    def add(parent: str, depth: int) -> None:
        for span in children.get(parent, ()):
            at_ms, took_ms = (span.start_ns - start_ns) / 1e6, (span.end_ns - span.start_ns) / 1e6
            lines.append(f"{at_ms:9.1f} ms {took_ms:9.1f} ms  {'  ' * depth}{span.name}  [{span.service}]")
            if span.tokens:
                slowest = max(range(len(span.tokens)), key=span.tokens.__getitem__)
                worst = f"the slowest, number {slowest + 1}, took {span.tokens[slowest] * 1e3:.1f} ms"
                lines.append(f"{'':26}{'  ' * depth}{len(span.tokens)} tokens; {worst}")
            add(span.span_id, depth + 1)

    add("", 0)
    return "\n".join(lines)
