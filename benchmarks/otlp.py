"""OTLP: spans per second and core that come in, and what sending out does to the live path.

*In*: a collector process takes export requests of 512 spans (GenAI attributes on each, 8 spans a trace) over
gRPC, eight calls under way, each span a new one, stored in memory or in Redis, whose CPU is counted.
The peer, in the same round: a minimal receiver of the OpenTelemetry packages that parses the same requests
and keeps nothing. *Out*: age of frames at a viewer at 2,000 tokens/s, with and without a telemetry process
that folds the same stream and sends to a receiver; interleaved, with the A/A control.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import grpc
import numpy as np

from benchmarks.pipeline.meter import Meter, micros
from benchmarks.pipeline.programs import collector, program, result, start_module, store

SPANS = 512
SPANS_OF_A_TRACE = 8
CALLS = 8
BOUNDS = ("--retention-s", "60", "--otlp-bytes", str(8 << 30))
EXPORT = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"


class Request:
    """An export request as an instrumented server sends it, with spans of their own each time it is sent.

    To encode each anew would measure the generator: the ids are found in the bytes once and written in place.
    """

    def __init__(self, instance: int) -> None:
        body = _encoded(instance)
        at, traces, spans = 0, [], []
        for span in range(SPANS):
            traces.append(at := body.index(_id(span, 16), at))
            spans.append(at := body.index(_id(span, 8), at + 16))
        self._bytes = np.frombuffer(bytearray(body), np.uint8)
        octets = np.arange(8)
        self._traces = np.array(traces)[:, None] + 8 + octets  # the lower half of an id tells them apart
        self._spans = np.array(spans)[:, None] + octets

    def fresh(self, number: int) -> bytes:
        """The request with the spans of this number, which no other number has."""
        spans = np.arange(number * SPANS, (number + 1) * SPANS, dtype=np.uint64) + np.uint64(1)
        self._bytes[self._spans] = _octets(spans)
        self._bytes[self._traces] = _octets((spans - np.uint64(1)) // np.uint64(SPANS_OF_A_TRACE))
        return self._bytes.tobytes()


def _octets(numbers: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return numbers.astype(">u8").view(np.uint8).reshape(-1, 8)


def _id(span: int, length: int) -> bytes:
    """One that stands nowhere else in a request."""
    return (0xF19A << 8 * (length - 2) | length << 32 | span).to_bytes(length, "big")


def _encoded(instance: int) -> bytes:
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    request = ExportTraceServiceRequest()
    resource = request.resource_spans.add()
    for key, value in {"service.name": "chat", "service.instance.id": f"pod-{instance}"}.items():
        resource.resource.attributes.add(key=key).value.string_value = value
    spans = resource.scope_spans.add().spans
    for m in range(SPANS):
        span = spans.add(
            trace_id=_id(m, 16),
            span_id=_id(m, 8),
            name="chat some-model",
            kind=2,
            start_time_unix_nano=1_700_000_000_000_000_000 + m,
            end_time_unix_nano=1_700_000_001_000_000_000 + m,
        )
        for key in ("gen_ai.operation.name", "gen_ai.provider.name", "gen_ai.request.model"):
            span.attributes.add(key=key).value.string_value = "some-value"
        for key in ("gen_ai.usage.input_tokens", "gen_ai.usage.output_tokens"):
            span.attributes.add(key=key).value.int_value = m
    return request.SerializeToString()


async def _send(address: str, requests: list[Request], seconds: float) -> int:
    """Spans that were taken within `seconds`."""
    sent = 0
    numbers = itertools.count()
    until_s = time.monotonic() + seconds
    async with grpc.aio.insecure_channel(address) as channel:
        call = channel.unary_unary(EXPORT, request_serializer=None, response_deserializer=None)

        async def one() -> None:
            nonlocal sent
            while time.monotonic() < until_s:
                number = next(numbers)
                await call(requests[number % len(requests)].fresh(number), timeout=60)
                sent += SPANS

        await asyncio.gather(*(one() for _ in range(CALLS)))
    return sent


def _measured(who: str, address: str, pid: int, requests: list[Request], seconds: float) -> dict[str, Any]:
    began_s = time.monotonic()
    with Meter(pid) as meter:
        sent = asyncio.run(_send(address, requests, seconds))
        took_s = time.monotonic() - began_s
    cost = meter.cost
    cpu_s = cost.cpu_s + cost.store_cpu_s
    return {
        "what": "in",
        "variant": who,
        "spans_per_s": round(sent / took_s),
        "spans_per_core_s": round(sent / cpu_s) if cpu_s else None,
        "server_us": micros(cost.cpu_s, sent),
        "store_us": micros(cost.store_cpu_s, sent),
        "memory_mib": cost.rss_mib,
    }


def spans_in(seconds: float, rounds: int) -> list[dict[str, Any]]:
    """Rows of medians over rounds, each variant once a round."""
    requests = [Request(n) for n in range(8)]
    found: dict[str, list[dict[str, Any]]] = {}
    for _ in range(rounds):
        for who, arguments in (("ours, in memory", ("--redis", "memory://")), ("ours, in Redis", ())):
            with collector(*arguments, *BOUNDS) as (address, pid):
                row = _measured(who, address, pid, requests, seconds)
            found.setdefault(who, []).append(row)
        with program(sys.executable, "-m", "benchmarks.otlp", "--receiver") as receiver:
            assert receiver.stdout is not None
            address = receiver.stdout.readline().strip()
            who = "minimal receiver, keeps nothing"
            found.setdefault(who, []).append(_measured(who, address, receiver.pid, requests, seconds))
    return [_median(rows) for rows in found.values()]


def _median(rows: list[dict[str, Any]]) -> dict[str, Any]:
    named = {name: rows[0][name] for name in ("what", "variant")}
    figures = {
        name: round(statistics.median(row[name] for row in rows), 2)
        for name in rows[0]
        if name not in named and all(row[name] is not None for row in rows)
    }
    spread = sorted(row["spans_per_core_s"] for row in rows if row.get("spans_per_core_s"))
    if spread:
        figures["spans_per_core_s_range"] = f"{spread[0]} to {spread[-1]}"
    return {**named, **figures, "rounds": len(rows)}


def live_path(seconds: float, rounds: int) -> list[dict[str, Any]]:
    """Age of frames at a viewer without, again without, and with a telemetry process."""
    ages: dict[str, list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as folder, store(Path(folder)) as url:
        for round_ in range(rounds):
            order = ["without", "without again", "with"]
            for who in order[round_ % 3 :] + order[: round_ % 3]:
                with collector("--redis", url, "--history", "all") as (address, _):
                    ages.setdefault(who, []).append(_ages(who, url, address, seconds))
    base = ages["without"]
    rows = []
    for who, found in ages.items():
        ratios = [one["p99"] / other["p99"] for one, other in zip(found, base, strict=True)]
        rows.append(
            {
                "what": "out",
                "variant": f"{who} telemetry" if who == "with" else who,
                "p50_ms": round(statistics.median(one["p50"] for one in found), 2),
                "p99_ms": round(statistics.median(one["p99"] for one in found), 2),
                "p99_ratio": round(statistics.median(ratios), 3),
                "p99_ratio_range": f"{min(ratios):.2f} to {max(ratios):.2f}",
                "rounds": rounds,
            }
        )
    return rows


def _ages(who: str, url: str, address: str, seconds: float) -> dict[str, float]:
    if who != "with":
        return _seen(address, seconds)
    with program(sys.executable, "-m", "benchmarks.otlp", "--receiver") as receiver:
        assert receiver.stdout is not None
        endpoint = f"http://{receiver.stdout.readline().strip()}"
        telemetry = ("-m", "fulgurite.collector.telemetry", "--redis", url, "--otlp-export", endpoint)
        with program(sys.executable, *telemetry, "--otlp-arrays", "1"):
            time.sleep(2.0)
            return _seen(address, seconds)


def _seen(address: str, seconds: float) -> dict[str, float]:
    agent = start_module("benchmarks.pipeline.agent_load", address, "--seconds", seconds + 8)
    told = result(start_module("benchmarks.pipeline.audience", address, "--seconds", seconds), timeout_s=120)
    result(agent, timeout_s=120)
    return {"p50": float(told["p50_ms"]), "p99": float(told["p99_ms"])}


def run(*, seconds: float = 5.0, model: str | None = None) -> list[dict[str, Any]]:
    """Rows of both tables."""
    del model
    rounds = 2 if seconds < 4 else 4
    return [*spans_in(seconds, rounds), *live_path(max(4.0, seconds), rounds)]


async def _receive() -> None:
    """A receiver that parses and keeps nothing; prints its address."""
    from opentelemetry.proto.collector.logs.v1 import logs_service_pb2 as logs
    from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2 as metrics
    from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as traces

    server = grpc.aio.server(options=[("grpc.max_receive_message_length", 16 << 20)])
    kinds: tuple[tuple[str, str, Any], ...] = (
        ("trace", "Trace", traces),
        ("metrics", "Metrics", metrics),
        ("logs", "Logs", logs),
    )
    for package, name, module in kinds:
        taken = getattr(module, f"Export{name}ServiceRequest")
        given = getattr(module, f"Export{name}ServiceResponse")

        async def export(_: Any, __: Any, given: Any = given) -> Any:
            return given()

        handler = grpc.unary_unary_rpc_method_handler(export, taken.FromString, given.SerializeToString)
        service = f"opentelemetry.proto.collector.{package}.v1.{name}Service"
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {"Export": handler}),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(f"127.0.0.1:{port}", flush=True)
    await server.wait_for_termination()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m benchmarks.otlp")
    parser.add_argument("--receiver", action="store_true", required=True)
    parser.parse_args()
    asyncio.run(_receive())
