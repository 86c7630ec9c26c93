"""OTLP in: real clients send, what they sent is found by its trace, and refusals say what to do."""

from __future__ import annotations

import gzip
import json
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from tests.system.conftest import Stage
from tests.telemetry.fleet import port, store
from tests.telemetry.made import SPAN, TRACE
from tests.telemetry.receiver import attributes_of

from fulgurite.collector.otlp.parts import taken_apart
from fulgurite.v1 import spans_pb2, spans_pb2_grpc

pytestmark = pytest.mark.system
EXPORT = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"


@pytest.fixture
def stage() -> Iterator[Stage]:
    stage = Stage()
    yield stage
    stage.clear()


@pytest.fixture
def served(stage: Stage) -> tuple[str, str]:
    """Address of a collector, and where it takes OTLP over HTTP."""
    address, http = f"127.0.0.1:{port()}", f"127.0.0.1:{port()}"
    process = stage.fulgurite("collector", "--redis", "memory://", "--listen", address, "--otlp-http", http)
    process.says("listening on")
    return address, f"http://{http}"


def found(address: str, trace_id: str) -> list[Any]:
    """Every span of a trace with its resource."""
    with grpc.insecure_channel(address) as channel:
        request = spans_pb2.FindSpansRequest(trace_id=bytes.fromhex(trace_id))
        answer = spans_pb2_grpc.SpanServiceStub(channel).FindSpans(request, timeout=5.0)
    return [
        (attributes_of(resource.resource.attributes), span)
        for resource in map(ResourceSpans.FromString, answer.resource_spans)
        for scope in resource.scope_spans
        for span in scope.spans
    ]


def request_of(*ids: tuple[bytes, bytes], name: str = "a call") -> ExportTraceServiceRequest:
    request = ExportTraceServiceRequest()
    spans = request.resource_spans.add().scope_spans.add().spans
    for trace_id, span_id in ids:
        spans.add(trace_id=trace_id, span_id=span_id, name=name, start_time_unix_nano=1, end_time_unix_nano=2)
    return request


GOOD = (bytes.fromhex(TRACE), bytes.fromhex(SPAN))


def exporters(address: str, http: str) -> dict[str, Callable[[], Any]]:
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as Grpc
    from opentelemetry.exporter.otlp.proto.http import Compression
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as Http

    return {
        "grpc": lambda: Grpc(endpoint=f"http://{address}", insecure=True),
        "grpc gzip": lambda: Grpc(
            endpoint=f"http://{address}", insecure=True, compression=grpc.Compression.Gzip
        ),
        "http": lambda: Http(endpoint=f"{http}/v1/traces"),
        "http gzip": lambda: Http(endpoint=f"{http}/v1/traces", compression=Compression.Gzip),
    }


@pytest.mark.parametrize("way", ["grpc", "grpc gzip", "http", "http gzip"])
def test_what_the_sdk_sends_is_found_by_its_trace(served: tuple[str, str], way: str) -> None:
    exporter = exporters(*served)[way]()
    provider = TracerProvider(resource=Resource({"service.name": "shop-front"}))
    provider.add_span_processor(BatchSpanProcessor(exporter))
    tracer = provider.get_tracer("a.library", "1.0")
    start = tracer.start_as_current_span
    with start("GET /ask", attributes={"http.route": "/ask", "n": [1, 2]}) as outer, start("chat") as inner:
        inner.add_event("sent", {"bytes": 7})
    provider.shutdown()
    trace_id = f"{outer.get_span_context().trace_id:032x}"
    spans = {span.name: (resource, span) for resource, span in found(served[0], trace_id)}
    assert set(spans) == {"GET /ask", "chat"}
    resource, span = spans["GET /ask"]
    assert resource["service.name"] == "shop-front"
    assert attributes_of(span.attributes) == {"http.route": "/ask", "n": [1, 2]}
    assert spans["chat"][1].parent_span_id == span.span_id
    assert spans["chat"][1].events[0].name == "sent"
    assert found(served[0], "ff" * 16) == []


def test_a_request_of_many_traces_is_taken_apart_and_nothing_is_lost() -> None:
    ids = [(bytes([n + 1] * 16), bytes([m + 1] * 8)) for n in range(5) for m in range(7)]
    parts = taken_apart(request_of(*ids).SerializeToString())
    assert parts.spans == 35
    back = [
        (span.trace_id, span.span_id)
        for trace_id, part in parts.parts
        for scope in ResourceSpans.FromString(part).scope_spans
        for span in scope.spans
        if span.trace_id == trace_id
    ]
    assert sorted(back) == sorted(ids)


def test_spans_without_ids_are_refused_alone(served: tuple[str, str]) -> None:
    bad = [(b"", GOOD[1]), (bytes(16), GOOD[1]), (GOOD[0], b"short"), (b"x" * 17, GOOD[1])]
    with grpc.insecure_channel(served[0]) as channel:
        call = channel.unary_unary(EXPORT)
        answer = ExportTraceServiceResponse.FromString(
            call(request_of(GOOD, *bad).SerializeToString(), timeout=5.0)
        )
    assert answer.partial_success.rejected_spans == 4
    assert "3 spans without a trace id" in answer.partial_success.error_message
    assert len(found(served[0], TRACE)) == 1


def test_bytes_that_are_no_request_are_refused(served: tuple[str, str]) -> None:
    with grpc.insecure_channel(served[0]) as channel, pytest.raises(grpc.RpcError) as error:
        channel.unary_unary(EXPORT)(b"\xff\xff\xff", timeout=5.0)
    assert error.value.code() is grpc.StatusCode.INVALID_ARGUMENT  # type: ignore[attr-defined]


def post(url: str, body: bytes, **headers: str) -> tuple[int, bytes]:
    call = urllib.request.Request(url, data=body, method="POST")
    for name, value in headers.items():
        call.add_header(name.replace("_", "-"), value)
    try:
        with urllib.request.urlopen(call, timeout=10.0) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def test_json_is_taken_with_hexadecimal_ids(served: tuple[str, str]) -> None:
    span = {"traceId": TRACE, "spanId": SPAN, "name": "from a browser", "startTimeUnixNano": "1"}
    document = {"resourceSpans": [{"scopeSpans": [{"spans": [span]}]}]}
    status, body = post(
        f"{served[1]}/v1/traces", json.dumps(document).encode(), Content_Type="application/json"
    )
    assert (status, json.loads(body)) == (200, {})
    assert [span.name for _, span in found(served[0], TRACE)] == ["from a browser"]


PROTOBUF = "application/x-protobuf"


@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        (b"\xff\xff", {"Content_Type": PROTOBUF}, 400),
        (b"{", {"Content_Type": "application/json"}, 400),
        (b'{"resourceSpans": [{"scopeSpans": [{"spans": [{"traceId": "xy"}]}]}]}',
         {"Content_Type": "application/json"}, 400),
        (b"x", {"Content_Type": "text/plain"}, 415),
        (b"not gzip", {"Content_Type": PROTOBUF, "Content_Encoding": "gzip"}, 400),
        (b"x", {"Content_Type": PROTOBUF, "Content_Encoding": "br"}, 400),
        (gzip.compress(bytes(17 << 20)), {"Content_Type": PROTOBUF, "Content_Encoding": "gzip"}, 400),
        (bytes(17 << 20), {"Content_Type": PROTOBUF}, 413),
    ],
    ids=["no protobuf", "no json", "no hexadecimal", "other type", "no gzip", "coding", "a bomb", "long"],
)  # fmt: skip
def test_http_refuses_with_a_status_that_says_why(
    served: tuple[str, str], body: bytes, headers: dict[str, str], status: int
) -> None:
    got, _ = post(f"{served[1]}/v1/traces", body, **headers)
    assert got == status
    assert post(f"{served[1]}/v1/traces", b"", Content_Type=PROTOBUF)[0] == 200, "it lives on"


def test_a_store_that_is_away_throttles_and_loses_nothing(stage: Stage, tmp_path: Path) -> None:
    url = store(stage, tmp_path)
    address, http = f"127.0.0.1:{port()}", f"127.0.0.1:{port()}"
    stage.fulgurite("collector", "--redis", url, "--listen", address, "--otlp-http", http).says(
        "listening on"
    )
    server = stage._started[0]
    server.process.kill()
    server.wait()
    body = request_of(GOOD).SerializeToString()
    with grpc.insecure_channel(address) as channel, pytest.raises(grpc.RpcError) as error:
        channel.unary_unary(EXPORT)(body, timeout=20.0)
    assert error.value.code() is grpc.StatusCode.UNAVAILABLE  # type: ignore[attr-defined]
    keys = {key for key, _ in error.value.trailing_metadata()}  # type: ignore[attr-defined]
    assert {"grpc-status-details-bin", "google.rpc.retryinfo-bin"} <= keys
    assert post(f"http://{http}/v1/traces", body, Content_Type=PROTOBUF)[0] == 503
