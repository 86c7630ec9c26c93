"""OTLP over gRPC on the collector's own port, and what is found again by trace id."""

from __future__ import annotations

from typing import Any, Final

import grpc
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import DecodeError
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

from fulgurite.collector.otlp.intake import SpanIntake, Throttled
from fulgurite.collector.otlp.parts import TRACE_ID_BYTES, NotOtlp, Parts
from fulgurite.collector.outage import Outage
from fulgurite.collector.store import Store, StoreError
from fulgurite.v1 import spans_pb2
from fulgurite.wire.refusals import STORE_AWAY

SERVICE: Final = "opentelemetry.proto.collector.trace.v1.TraceService"


class OtlpService:
    """The receiver, and the calls of `spans.proto`."""

    def __init__(self, store: Store, *, intake: SpanIntake, outage: Outage) -> None:
        self._store, self._intake, self._outage = store, intake, outage

    @property
    def handlers(self) -> tuple[Any, ...]:
        """What a server is given."""
        export = grpc.unary_unary_rpc_method_handler(
            self.export, None, ExportTraceServiceResponse.SerializeToString
        )
        find = grpc.unary_unary_rpc_method_handler(
            self.find_spans, None, spans_pb2.FindSpansResponse.SerializeToString
        )
        return (
            grpc.method_handlers_generic_handler(SERVICE, {"Export": export}),
            grpc.method_handlers_generic_handler("fulgurite.v1.SpanService", {"FindSpans": find}),
        )

    async def export(self, data: bytes, context: Any) -> ExportTraceServiceResponse:
        """One export request."""
        try:
            return answer(await self._intake.take(data))
        except NotOtlp as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        except Throttled as throttled:
            code = grpc.StatusCode.UNAVAILABLE if throttled.is_ours else grpc.StatusCode.RESOURCE_EXHAUSTED
            await context.abort(code, str(throttled), retry_info(code, throttled))
        raise AssertionError("abort raises")

    async def find_spans(self, data: bytes, context: Any) -> spans_pb2.FindSpansResponse:
        """The spans of a trace."""
        try:
            trace_id = spans_pb2.FindSpansRequest.FromString(data).trace_id
            if len(trace_id) != TRACE_ID_BYTES:
                raise ValueError(f"a trace id has {TRACE_ID_BYTES} bytes, not {len(trace_id)}")
        except (DecodeError, ValueError) as error:
            said = "not a request for spans" if isinstance(error, DecodeError) else str(error)
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, said)
        try:
            return spans_pb2.FindSpansResponse(resource_spans=await self._store.spans(trace_id))
        except StoreError as error:
            self._outage.failed("read", error)
            await context.abort(grpc.StatusCode.UNAVAILABLE, f"{STORE_AWAY}: {error}")
        raise AssertionError("abort raises")


def answer(parts: Parts) -> ExportTraceServiceResponse:
    """What a client is told of a request that was taken, in part or whole."""
    response = ExportTraceServiceResponse()
    if parts.rejected:
        response.partial_success.rejected_spans = parts.rejected
        response.partial_success.error_message = parts.message
    return response


def retry_info(code: grpc.StatusCode, throttled: Throttled) -> tuple[tuple[str, bytes], ...]:
    """How long to wait, in both forms that clients read."""
    seconds = int(throttled.retry_s)
    delay = Duration(seconds=seconds, nanos=int((throttled.retry_s - seconds) * 1e9))
    info = RetryInfo(retry_delay=delay)
    status = Status(code=code.value[0], message=str(throttled))
    status.details.add().Pack(info)
    return (
        ("grpc-status-details-bin", status.SerializeToString()),
        ("google.rpc.retryinfo-bin", info.SerializeToString()),
    )
