"""A real OTLP receiver over gRPC and HTTP, on loopback: keeps what it gets, and answers as a test wants."""

from __future__ import annotations

import gzip
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import grpc
from google.protobuf.duration_pb2 import Duration
from google.rpc.error_details_pb2 import RetryInfo
from opentelemetry.proto.collector.logs.v1 import logs_service_pb2 as logs
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2 as metrics
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as traces

REQUESTS: dict[str, Any] = {
    "traces": traces.ExportTraceServiceRequest,
    "metrics": metrics.ExportMetricsServiceRequest,
    "logs": logs.ExportLogsServiceRequest,
}
RESPONSES: dict[str, Any] = {
    "traces": traces.ExportTraceServiceResponse,
    "metrics": metrics.ExportMetricsServiceResponse,
    "logs": logs.ExportLogsServiceResponse,
}
SERVICES = {
    "traces": "opentelemetry.proto.collector.trace.v1.TraceService",
    "metrics": "opentelemetry.proto.collector.metrics.v1.MetricsService",
    "logs": "opentelemetry.proto.collector.logs.v1.LogsService",
}


@dataclass
class Answer:
    """How the next call is answered: a gRPC status name, or "" for yes."""

    code: str = ""
    retry_after_s: float | None = None
    rejected: int = 0


@dataclass
class Kept:
    """What came, and how the next calls are answered."""

    requests: dict[str, list[Any]] = field(default_factory=lambda: {name: [] for name in REQUESTS})
    answers: list[Answer] = field(default_factory=list)
    calls: int = 0
    headers: list[dict[str, str]] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def take(self, signal: str, request: Any) -> Answer:
        with self.lock:
            self.calls += 1
            answer = self.answers.pop(0) if self.answers else Answer()
            if not answer.code:
                self.requests[signal].append(request)
            return answer

    @property
    def spans(self) -> list[tuple[dict[str, Any], Any]]:
        """Every span with the attributes of its resource."""
        return [
            (attributes_of(resource.resource.attributes), span)
            for request in list(self.requests["traces"])
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]

    @property
    def metrics(self) -> list[tuple[dict[str, Any], Any]]:
        """Every metric of the newest request with the attributes of its resource."""
        return [
            (attributes_of(resource.resource.attributes), metric)
            for request in self.requests["metrics"][-1:]
            for resource in request.resource_metrics
            for scope in resource.scope_metrics
            for metric in scope.metrics
        ]

    @property
    def records(self) -> list[Any]:
        """Every log record."""
        return [
            record
            for request in list(self.requests["logs"])
            for resource in request.resource_logs
            for scope in resource.scope_logs
            for record in scope.log_records
        ]

    def until(self, condition: Callable[[], Any], timeout_s: float = 30.0) -> Any:
        limit_s = time.monotonic() + timeout_s
        while not (value := condition()):
            assert time.monotonic() < limit_s, "not in time"
            time.sleep(0.02)
        return value


def value_of(value: Any) -> Any:
    """An AnyValue as a Python value."""
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [value_of(item) for item in value.array_value.values]
    return getattr(value, kind) if kind else None


def attributes_of(attributes: Any) -> dict[str, Any]:
    """Attributes as a dictionary."""
    return {attribute.key: value_of(attribute.value) for attribute in attributes}


@contextmanager
def grpc_receiver() -> Iterator[tuple[str, Kept]]:
    """Serves OTLP over gRPC; gives its endpoint, and what it keeps."""
    kept = Kept()
    server = grpc.server(ThreadPoolExecutor(4), options=[("grpc.so_reuseport", 0)])

    def handler(signal: str) -> Any:
        def export(request: Any, context: grpc.ServicerContext) -> Any:
            kept.headers.append({k: v for k, v in context.invocation_metadata() if isinstance(v, str)})
            answer = kept.take(signal, request)
            if answer.code:
                if answer.retry_after_s is not None:
                    info = RetryInfo(retry_delay=Duration(nanos=int(answer.retry_after_s * 1e9)))
                    context.set_trailing_metadata((("google.rpc.retryinfo-bin", info.SerializeToString()),))
                context.abort(grpc.StatusCode[answer.code], "as the test wants")
            return _response(signal, answer)

        return grpc.unary_unary_rpc_method_handler(
            export,
            request_deserializer=REQUESTS[signal].FromString,
            response_serializer=RESPONSES[signal].SerializeToString,
        )

    for signal, service in SERVICES.items():
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(service, {"Export": handler(signal)}),)
        )
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"http://127.0.0.1:{port}", kept
    finally:
        server.stop(0.2).wait()


def _response(signal: str, answer: Answer) -> Any:
    response = RESPONSES[signal]()
    if answer.rejected:
        name = {"traces": "rejected_spans", "metrics": "rejected_data_points", "logs": "rejected_log_records"}
        setattr(response.partial_success, name[signal], answer.rejected)
        response.partial_success.error_message = "as the test wants"
    return response


@contextmanager
def http_receiver() -> Iterator[tuple[str, Kept]]:
    """Serves OTLP over HTTP; gives its endpoint, and what it keeps."""
    kept = Kept()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            signal = self.path.rsplit("/", 1)[-1]
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            kept.headers.append(dict(self.headers))
            answer = kept.take(signal, REQUESTS[signal].FromString(body))
            status = {"": 200, "UNAVAILABLE": 503, "INVALID_ARGUMENT": 400}[answer.code]
            reply = _response(signal, answer).SerializeToString() if status == 200 else b""
            self.send_response(status)
            if answer.retry_after_s is not None:
                self.send_header("Retry-After", str(int(answer.retry_after_s)))
            self.send_header("Content-Type", "application/x-protobuf")
            self.send_header("Content-Length", str(len(reply)))
            self.end_headers()
            self.wfile.write(reply)

        def log_message(self, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", kept
    finally:
        server.shutdown()
        server.server_close()
        thread.join(2.0)
