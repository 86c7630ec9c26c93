"""To an OTLP receiver: where it is, and one call to it, with the whole answer.

The exporters of the SDK drop what the receiver answers: how many items it refused, and whether a retry makes
sense. A ledger needs both, so the calls are ours; the encoders and the variables are OpenTelemetry's.
"""

from __future__ import annotations

import gzip
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal, Protocol
from urllib.parse import urlsplit

Signal = Literal["traces", "metrics", "logs"]
SIGNALS: Final = ("traces", "metrics", "logs")
GRPC_PORT: Final = 4317
HTTP_PORT: Final = 4318
_SERVICES: Final[dict[str, str]] = {
    "traces": "/opentelemetry.proto.collector.trace.v1.TraceService/Export",
    "metrics": "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export",
    "logs": "/opentelemetry.proto.collector.logs.v1.LogsService/Export",
}
_RETRYABLE: Final = frozenset(
    {"CANCELLED", "DEADLINE_EXCEEDED", "ABORTED", "OUT_OF_RANGE", "UNAVAILABLE", "DATA_LOSS"}
)


class NotSent(Exception):
    """The receiver did not take it.

    Attributes
    ----------
    is_final : whether sending the same again cannot help.
    retry_after_s : how long the receiver asks to wait; None where it does not say.
    """

    def __init__(self, message: str, *, is_final: bool, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.is_final = is_final
        self.retry_after_s = retry_after_s


@dataclass(frozen=True, slots=True)
class Taken:
    """The receiver's answer: how many of the items it refused for good, and why."""

    rejected: int = 0
    message: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Where a signal goes.

    Attributes
    ----------
    endpoint : str
        For grpc ``HOST:PORT``; for http/protobuf the whole URL of the signal.
    protocol : ``grpc`` or ``http/protobuf``.
    certificate, client_certificate, client_key : paths of PEM files, or empty.
    """

    endpoint: str
    protocol: str = "grpc"
    secure: bool = False
    headers: Mapping[str, str] = field(default_factory=dict)
    timeout_s: float = 10.0
    compression: str = ""
    certificate: str = ""
    client_certificate: str = ""
    client_key: str = ""


def target_for(
    signal: Signal, *, endpoint: str | None = None, env: Mapping[str, str] = os.environ
) -> Target | None:
    """Where `signal` goes: `endpoint` over ``OTEL_EXPORTER_OTLP_*``; None where neither names a receiver.

    Raises
    ------
    ValueError
        For an endpoint or a protocol that means nothing.
    """
    base = endpoint or env.get("OTEL_EXPORTER_OTLP_ENDPOINT", "")
    own = "" if endpoint else env.get(f"OTEL_EXPORTER_OTLP_{signal.upper()}_ENDPOINT", "")
    if env.get("OTEL_SDK_DISABLED", "").lower() == "true" or not (base or own):
        return None
    protocol = _setting(env, signal, "PROTOCOL") or _guessed_protocol(own or base)
    if protocol not in ("grpc", "http/protobuf"):
        raise ValueError(f"no such OTLP protocol: {protocol!r}; write grpc or http/protobuf")
    address = own or base
    url = urlsplit(address if "://" in address else f"http://{address}")
    if url.scheme not in ("http", "https") or not url.hostname:
        raise ValueError(f"not an OTLP endpoint: {address!r}; write http://HOST:PORT")
    try:
        port = url.port or (GRPC_PORT if protocol == "grpc" else HTTP_PORT)
    except ValueError:
        raise ValueError(f"not an OTLP endpoint: {address!r}; write http://HOST:PORT") from None
    host = f"[{url.hostname}]" if ":" in url.hostname else url.hostname
    if protocol == "grpc":
        place = f"{host}:{port}"
    else:
        path = url.path if own else f"{url.path.rstrip('/')}/v1/{signal}"
        place = f"{url.scheme}://{host}:{port}{path or '/'}"
    insecure = _setting(env, signal, "INSECURE").lower()
    secure = url.scheme == "https" if "://" in address else insecure == "false"
    return Target(
        endpoint=place,
        protocol=protocol,
        secure=secure,
        headers=_headers(_setting(env, signal, "HEADERS")),
        timeout_s=_timeout(_setting(env, signal, "TIMEOUT")),
        compression=_setting(env, signal, "COMPRESSION").lower(),
        certificate=_setting(env, signal, "CERTIFICATE"),
        client_certificate=_setting(env, signal, "CLIENT_CERTIFICATE"),
        client_key=_setting(env, signal, "CLIENT_KEY"),
    )


def _setting(env: Mapping[str, str], signal: str, name: str) -> str:
    return env.get(f"OTEL_EXPORTER_OTLP_{signal.upper()}_{name}") or env.get(f"OTEL_EXPORTER_OTLP_{name}", "")


def _guessed_protocol(address: str) -> str:
    return "http/protobuf" if f":{HTTP_PORT}" in address else "grpc"


def _headers(text: str) -> dict[str, str]:
    from opentelemetry.util.re import parse_env_headers

    return dict(parse_env_headers(text, liberal=True)) if text else {}


def _timeout(text: str) -> float:
    try:
        seconds = float(text or 10)
    except ValueError:
        raise ValueError(f"OTEL_EXPORTER_OTLP_TIMEOUT is a number of seconds, not {text!r}") from None
    if not seconds > 0:
        raise ValueError(f"OTEL_EXPORTER_OTLP_TIMEOUT must be more than 0, not {text!r}")
    return seconds


class Sender(Protocol):
    """Sends one serialised export request."""

    def send(self, request: bytes) -> Taken:
        """Send it.

        Raises
        ------
        NotSent
            Where the receiver did not take it, or nobody answered in time.
        """

    def close(self) -> None:
        """Hang up."""


def sender_for(signal: Signal, target: Target) -> Sender:
    """What sends `signal` to `target`. It connects with the first call."""
    return (GrpcSender if target.protocol == "grpc" else HttpSender)(signal, target)


def _answer(signal: Signal) -> Any:
    from importlib import import_module

    service = {"traces": "trace", "metrics": "metrics", "logs": "logs"}[signal]
    module = import_module(f"opentelemetry.proto.collector.{service}.v1.{service}_service_pb2")
    return getattr(module, f"Export{service.capitalize()}ServiceResponse")


def _taken(signal: Signal, data: bytes) -> Taken:
    partial = _answer(signal).FromString(data).partial_success
    rejected = {"traces": "rejected_spans", "metrics": "rejected_data_points", "logs": "rejected_log_records"}
    return Taken(int(getattr(partial, rejected[signal])), partial.error_message)


class GrpcSender:
    """OTLP over gRPC."""

    def __init__(self, signal: Signal, target: Target) -> None:
        self._signal, self._target = signal, target
        self._channel: Any = None

    def send(self, request: bytes) -> Taken:
        """See `Sender.send`."""
        import grpc

        if self._channel is None:
            self._channel = self._connect()
        call = self._channel.unary_unary(_SERVICES[self._signal])
        headers = tuple((name.lower(), value) for name, value in self._target.headers.items())
        try:
            answer = call(request, timeout=self._target.timeout_s, metadata=headers)
        except grpc.RpcError as error:
            raise _refused(error) from None
        return _taken(self._signal, answer)

    def close(self) -> None:
        """See `Sender.close`."""
        if self._channel is not None:
            self._channel.close()
            self._channel = None

    def _connect(self) -> Any:
        import grpc

        target = self._target
        gzipped = grpc.Compression.Gzip if target.compression == "gzip" else grpc.Compression.NoCompression
        options = [("grpc.enable_http_proxy", 0), ("grpc.max_reconnect_backoff_ms", 10_000)]
        if not target.secure:
            return grpc.insecure_channel(target.endpoint, options=options, compression=gzipped)
        try:
            pem = [_read(path) for path in (target.certificate, target.client_key, target.client_certificate)]
        except OSError as error:
            raise NotSent(f"cannot read {error.filename}: {error.strerror}", is_final=False) from None
        credentials = grpc.ssl_channel_credentials(*pem)
        return grpc.secure_channel(target.endpoint, credentials, options=options, compression=gzipped)


def _read(path: str) -> bytes | None:
    if not path:
        return None
    with open(path, "rb") as file:
        return file.read()


def _refused(error: Any) -> NotSent:
    """A failed call: final or not, and how long the receiver asks to wait (RetryInfo)."""
    code = error.code().name
    retry_after_s = _retry_after(error.trailing_metadata() or ())
    final = code not in _RETRYABLE and not (code == "RESOURCE_EXHAUSTED" and retry_after_s is not None)
    return NotSent(f"{code}: {error.details()}", is_final=final, retry_after_s=retry_after_s)


def _retry_after(trailing: Any) -> float | None:
    from google.rpc.error_details_pb2 import RetryInfo
    from google.rpc.status_pb2 import Status

    for key, value in trailing:
        info = RetryInfo()
        if key == "google.rpc.retryinfo-bin":
            info.ParseFromString(value)
        elif key == "grpc-status-details-bin":
            details = Status.FromString(value).details
            if not any(detail.Unpack(info) for detail in details):
                continue
        else:
            continue
        return float(info.retry_delay.seconds + info.retry_delay.nanos / 1e9)
    return None


class HttpSender:
    """OTLP over HTTP, in protobuf."""

    def __init__(self, signal: Signal, target: Target) -> None:
        self._signal, self._target = signal, target

    def send(self, request: bytes) -> Taken:
        """See `Sender.send`."""
        import http.client
        import ssl
        import urllib.error
        import urllib.request

        headers = {**self._target.headers, "Content-Type": "application/x-protobuf"}
        body = request
        if self._target.compression == "gzip":
            headers["Content-Encoding"] = "gzip"
            body = gzip.compress(request, compresslevel=4)
        call = urllib.request.Request(self._target.endpoint, data=body, headers=headers, method="POST")
        try:
            context = self._context() if self._target.endpoint.startswith("https:") else None
            with urllib.request.urlopen(call, timeout=self._target.timeout_s, context=context) as answer:
                return _taken(self._signal, answer.read())
        except urllib.error.HTTPError as error:
            after = error.headers.get("Retry-After", "")
            raise NotSent(
                f"HTTP {error.code} {error.reason}",
                is_final=error.code not in (429, 502, 503, 504),
                retry_after_s=float(after) if after.isdecimal() else None,
            ) from None
        except (OSError, http.client.HTTPException, ssl.SSLError) as error:
            raise NotSent(str(error) or type(error).__name__, is_final=False) from None

    def close(self) -> None:
        """See `Sender.close`: nothing is kept open."""

    def _context(self) -> Any:
        import ssl

        context = ssl.create_default_context(cafile=self._target.certificate or None)
        if self._target.client_certificate:
            context.load_cert_chain(self._target.client_certificate, self._target.client_key or None)
        return context
