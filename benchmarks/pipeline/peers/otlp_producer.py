"""One span per token with the token's arrays, by the OpenTelemetry SDK and its OTLP exporter.

Runs in an environment of its own: ``otlp_producer.py PORT LAYERS HEADS TOKENS_PER_S SECONDS``. The batch
processor has its default queue. Prints one JSON object.
"""

from __future__ import annotations

import json
import resource
import sys
import time

import numpy as np
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor


def cpu_s() -> float:
    """CPU time of this process."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def main() -> None:
    """Send a token's arrays at a pace."""
    port, layers, heads = map(int, sys.argv[1:4])
    per_s, seconds = map(float, sys.argv[4:6])
    rng = np.random.default_rng(0)
    provider = TracerProvider(resource=Resource({"service.name": "peer"}))
    exporter = OTLPSpanExporter(endpoint=f"http://127.0.0.1:{port}", insecure=True)
    provider.add_span_processor(BatchSpanProcessor(exporter))
    tracer = provider.get_tracer("peer")
    tables = [(rng.random((layers, heads), np.float32), rng.random(layers, np.float32)) for _ in range(64)]
    tokens = int(per_s * seconds)
    spent = 0.0
    began = time.perf_counter()
    before = cpu_s()
    for token in range(tokens):
        wait = began + token / per_s - time.perf_counter()
        if wait > 0:
            time.sleep(wait)
        write, ffn = tables[token % 64]
        span = tracer.start_span("token")
        span.set_attributes(
            {"head_write": write.ravel().tolist(), "ffn_write": ffn.tolist(), "position": token, "kv": token}
        )
        span.end()
    provider.force_flush()
    spent = cpu_s() - before
    wall = time.perf_counter() - began
    provider.shutdown()
    print(json.dumps({"tokens": tokens, "cpu_s": spent, "wall_s": wall}))


if __name__ == "__main__":
    main()
