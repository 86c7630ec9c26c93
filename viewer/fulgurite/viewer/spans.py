"""The spans that others sent of a trace: asked of the collector when somebody looks at its request."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import grpc

from fulgurite.v1 import spans_pb2, spans_pb2_grpc
from fulgurite.viewer.feed import CHANNEL_OPTIONS
from fulgurite.wire.access import Access, AccessError

TRACE_ID_HEX = 32
MOST_SPANS = 400
TIMEOUT_S = 5.0
STATUS_ERROR = 2  # of OTLP


class SpansUnavailableError(RuntimeError):
    """Spans could not be had; the text says why."""


@dataclass(frozen=True, slots=True)
class Span:
    """One span of somebody else.

    Attributes
    ----------
    start_s, end_s : UNIX time in seconds, by the clock of the host that wrote it.
    """

    span_id: str
    parent_id: str
    name: str
    service: str
    start_s: float
    end_s: float
    is_error: bool


class Spans:
    """Asks one collector.

    Parameters
    ----------
    address : ``HOST:PORT`` of the collector.
    """

    def __init__(self, address: str) -> None:
        self._address = address
        self._lock = threading.Lock()
        self._channel: grpc.Channel | None = None

    def find(self, trace_id: str) -> list[Span]:
        """The spans of a trace in the order in which they began, the first `MOST_SPANS`.

        Raises
        ------
        ValueError
            Where `trace_id` is not 32 hexadecimal digits.
        SpansUnavailableError
            Where the collector gives none.
        """
        if len(trace_id) != TRACE_ID_HEX:
            raise ValueError(f"a trace id has {TRACE_ID_HEX} hexadecimal digits")
        request = spans_pb2.FindSpansRequest(trace_id=bytes.fromhex(trace_id))
        try:
            stub = spans_pb2_grpc.SpanServiceStub(self._open())
            blobs = stub.FindSpans(request, timeout=TIMEOUT_S).resource_spans
        except grpc.RpcError as error:
            call: Any = error  # what is raised is a call as well, which the types do not say
            raise SpansUnavailableError(f"the collector gives no spans: {call.details()}") from None
        except AccessError as error:
            raise SpansUnavailableError(str(error)) from None
        try:
            found = [span for blob in blobs for span in _read(blob)]
        except ImportError:
            raise SpansUnavailableError(
                "spans of others need `pip install opentelemetry-proto` beside the viewer"
            ) from None
        unique = {span.span_id: span for span in found}
        return sorted(unique.values(), key=lambda span: (span.start_s, span.span_id))[:MOST_SPANS]

    def close(self) -> None:
        """Hang up."""
        with self._lock:
            if self._channel is not None:
                self._channel.close()
                self._channel = None

    def _open(self) -> grpc.Channel:
        with self._lock:
            if self._channel is None:
                self._channel = Access.from_environment().channel(self._address, CHANNEL_OPTIONS)
            return self._channel


def _read(blob: bytes) -> Iterator[Span]:
    from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans

    resource = ResourceSpans.FromString(blob)
    named = {attribute.key: attribute.value.string_value for attribute in resource.resource.attributes}
    for scope in resource.scope_spans:
        for span in scope.spans:
            yield Span(
                span_id=span.span_id.hex(),
                parent_id=span.parent_span_id.hex(),
                name=span.name,
                service=named.get("service.name", "unknown_service"),
                start_s=span.start_time_unix_nano / 1e9,
                end_s=max(span.start_time_unix_nano, span.end_time_unix_nano) / 1e9,
                is_error=span.status.code == STATUS_ERROR,
            )
