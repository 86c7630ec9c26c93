"""OTLP over HTTP, on a port of its own: protobuf or its JSON form, plain or gzip."""

from __future__ import annotations

import gzip
import io
import math
from collections.abc import Callable
from typing import Final

import grpc
from aiohttp import web
from google.protobuf import json_format
from google.rpc.status_pb2 import Status
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

from fulgurite.collector.config import Listen
from fulgurite.collector.gate import Denied
from fulgurite.collector.otlp.intake import SpanIntake, Throttled
from fulgurite.collector.otlp.parts import NotOtlp
from fulgurite.collector.otlp.service import answer

MOST_BYTES: Final = 16 << 20
PROTOBUF: Final = "application/x-protobuf"
JSON: Final = "application/json"
STATUS_OF: Final = {
    grpc.StatusCode.UNAUTHENTICATED: 401,
    grpc.StatusCode.PERMISSION_DENIED: 403,
    grpc.StatusCode.RESOURCE_EXHAUSTED: 429,
}
_IDS: Final = ("traceId", "spanId", "parentSpanId")


class CannotServeHttp(Exception):
    """The address cannot be had. The message says what to do."""


class OtlpHttp:
    """Serves ``/v1/traces`` for the length of an `async with`.

    Parameters
    ----------
    admit : callable
        Is given the header Authorization, and raises `Denied`.

    Attributes
    ----------
    address : Listen
        Where; with the port that was found, once it is entered.
    """

    def __init__(
        self, intake: SpanIntake, listen: Listen, *, admit: Callable[[str | None], None] = lambda _: None
    ) -> None:
        self.address = listen
        self._intake, self._admit = intake, admit
        application = web.Application(client_max_size=MOST_BYTES)
        application.router.add_post("/v1/traces", self._traces)
        # Bodies are unpacked here: what a few bytes of gzip may grow to is for us to bound.
        self._runner = web.AppRunner(application, access_log=None, auto_decompress=False)

    async def __aenter__(self) -> OtlpHttp:
        await self._runner.setup()
        try:
            await web.TCPSite(self._runner, self.address.host, self.address.port).start()
        except OSError as error:
            await self._runner.cleanup()
            raise CannotServeHttp(
                f"cannot listen on {self.address}: {error.strerror or error}; "
                "choose another address with --otlp-http HOST:PORT"
            ) from None
        self.address = Listen(self.address.host, int(self._runner.addresses[0][1]))
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()

    async def _traces(self, request: web.Request) -> web.Response:
        kind = request.content_type
        if kind not in (PROTOBUF, JSON):
            return _refusal(kind, 415, f"send {PROTOBUF} or {JSON}")
        try:
            self._admit(request.headers.get("Authorization"))
            body = _unpacked(await request.read(), request.headers.get("Content-Encoding", ""))
            data = _from_json(body) if kind == JSON else body
            response = answer(await self._intake.take(data))
        except Denied as denied:
            return _refusal(kind, STATUS_OF.get(denied.code, 403), denied.reason)
        except web.HTTPRequestEntityTooLarge:
            return _refusal(kind, 413, f"more than {MOST_BYTES} bytes")
        except (NotOtlp, ValueError) as error:
            return _refusal(kind, 400, str(error))
        except Throttled as throttled:
            status = 503 if throttled.is_ours else 429
            after = {"Retry-After": str(max(1, math.ceil(throttled.retry_s)))}
            return _refusal(kind, status, str(throttled), after)
        return _response(kind, 200, response)


def _unpacked(body: bytes, encoding: str) -> bytes:
    if encoding in ("", "identity"):
        return body
    if encoding != "gzip":
        raise ValueError(f"cannot read content encoding {encoding[:40]!r}: send gzip, or none")
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(body)) as file:
            unpacked = file.read(MOST_BYTES + 1)
    except (OSError, EOFError) as error:
        raise ValueError("the body is not gzip") from error
    if len(unpacked) > MOST_BYTES:
        raise ValueError(f"more than {MOST_BYTES} bytes when unpacked")
    return unpacked


def _from_json(body: bytes) -> bytes:
    """OTLP's JSON: ids are hexadecimal there, where protobuf's JSON has base64."""
    import json

    try:
        document = json.loads(body)
        _ids_to_base64(document)
        request = json_format.ParseDict(document, ExportTraceServiceRequest(), ignore_unknown_fields=True)
    except (ValueError, RecursionError, json_format.ParseError):
        raise NotOtlp("not an ExportTraceServiceRequest in JSON") from None
    return bytes(request.SerializeToString())


def _ids_to_base64(node: object) -> None:
    import base64

    if isinstance(node, list):
        for item in node:
            _ids_to_base64(item)
    elif isinstance(node, dict):
        for name, value in node.items():
            if name in _IDS and isinstance(value, str):
                node[name] = base64.b64encode(bytes.fromhex(value)).decode()
            else:
                _ids_to_base64(value)


def _response(kind: str, status: int, message: ExportTraceServiceResponse | Status) -> web.Response:
    body = (
        json_format.MessageToJson(message, indent=None).encode()
        if kind == JSON
        else message.SerializeToString()
    )
    return web.Response(status=status, body=body, content_type=kind if kind == JSON else PROTOBUF)


def _refusal(kind: str, status: int, text: str, headers: dict[str, str] | None = None) -> web.Response:
    response = _response(kind, status, Status(message=text))
    response.headers.update(headers or {})
    return response
