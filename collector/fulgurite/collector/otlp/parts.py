"""An OTLP export request, taken apart: what belongs to one trace, what is refused, and why. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans

MOST_SPAN_BYTES: Final = 256 << 10
TRACE_ID_BYTES: Final = 16
SPAN_ID_BYTES: Final = 8


class NotOtlp(ValueError):
    """Bytes that are no export request."""


@dataclass(frozen=True, slots=True)
class Parts:
    """What an export request holds.

    Attributes
    ----------
    parts : tuple of (bytes, bytes)
        Trace id, and a serialised ResourceSpans with spans of that trace alone.
    spans : how many are in `parts`.
    rejected : how many are not.
    message : why, for the peer; empty where none is.
    """

    parts: tuple[tuple[bytes, bytes], ...]
    spans: int
    rejected: int = 0
    message: str = ""

    @property
    def nbytes(self) -> int:
        """Bytes to be kept."""
        return sum(len(part) + TRACE_ID_BYTES for _, part in self.parts)


def taken_apart(data: bytes) -> Parts:
    """Take a serialised ExportTraceServiceRequest apart.

    Raises
    ------
    NotOtlp
        Where it is none.
    """
    try:
        request = ExportTraceServiceRequest.FromString(data)
    except DecodeError:
        raise NotOtlp("not an ExportTraceServiceRequest") from None
    parts: list[tuple[bytes, bytes]] = []
    spans = rejected = 0
    reasons: dict[str, int] = {}
    for resource in request.resource_spans:
        by_trace: dict[bytes, Any] = {}
        for scope in resource.scope_spans:
            places: dict[bytes, Any] = {}
            for span in scope.spans:
                reason = _fault(span)
                if reason:
                    rejected += 1
                    reasons[reason] = reasons.get(reason, 0) + 1
                    continue
                place = places.get(span.trace_id)
                if place is None:
                    whole = by_trace.get(span.trace_id)
                    if whole is None:
                        whole = by_trace[span.trace_id] = ResourceSpans(
                            resource=resource.resource, schema_url=resource.schema_url
                        )
                    place = whole.scope_spans.add(scope=scope.scope, schema_url=scope.schema_url).spans
                    places[span.trace_id] = place
                place.append(span)
                spans += 1
        parts += [(trace_id, whole.SerializeToString()) for trace_id, whole in by_trace.items()]
    message = "; ".join(f"{count} spans {reason}" for reason, count in reasons.items())
    return Parts(tuple(parts), spans, rejected, message)


def _fault(span: Any) -> str:
    """Why a span cannot be kept; empty where it can."""
    if len(span.trace_id) != TRACE_ID_BYTES or not any(span.trace_id):
        return f"without a trace id of {TRACE_ID_BYTES} bytes"
    if len(span.span_id) != SPAN_ID_BYTES or not any(span.span_id):
        return f"without a span id of {SPAN_ID_BYTES} bytes"
    if span.ByteSize() > MOST_SPAN_BYTES:
        return f"of more than {MOST_SPAN_BYTES} bytes"
    return ""
