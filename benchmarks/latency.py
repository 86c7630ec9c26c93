"""Token to viewer: from a token's commitment in the serving process until a viewer has decoded its frame.

Real processes on one machine: a replica that generates with the bundled model as fast as it goes, a
collector with its embedded server, and this process as the viewer. One clock (the machine's), so that the
difference needs no correction. What it leaves out is drawing.
"""

from __future__ import annotations

import multiprocessing
import time
from typing import Any

import grpc
import numpy as np

from benchmarks.collector_process import collector_process
from fulgurite.v1 import viewer_pb2, viewer_pb2_grpc
from fulgurite.wire.codec import decode_batch


def _serve(endpoint: str, seconds: float, batch: int, path: str | None) -> None:
    """A replica: generate until the time is over."""
    import torch

    from fulgurite.agent import instrument
    from fulgurite.cli.demo.model import load

    torch.set_num_threads(1)
    model, tokenizer = load(path)
    encoded = tokenizer(["Once upon a time a storm came."] * batch, return_tensors="pt", padding=True)
    inputs = {name: encoded[name] for name in ("input_ids", "attention_mask")}
    until = time.monotonic() + seconds
    with instrument(model, level="heads", endpoint=endpoint, budget="none"):
        while time.monotonic() < until:
            model.generate(**inputs, do_sample=True, min_new_tokens=64, max_new_tokens=64)


def _watch(endpoint: str, seconds: float) -> tuple[np.ndarray[Any, Any], float]:
    """Latency of each frame in ms, and frames per second."""
    latencies: list[np.ndarray[Any, Any]] = []
    schemas: dict[str, Any] = {}
    first = last = 0
    with grpc.insecure_channel(endpoint) as channel:
        stream: Any = viewer_pb2_grpc.ViewerServiceStub(channel).Watch(
            viewer_pb2.WatchRequest(selectors=["*"]), timeout=seconds + 60
        )
        for response in stream:
            if response.HasField("replica"):
                schemas[response.replica.key] = response.replica.schema
            if response.HasField("batch"):
                frames = decode_batch(response.batch.batch, schemas[response.batch.key])
                now_ns = time.time_ns()
                latencies += [(now_ns - block.columns["ended_ns"]) / 1e6 for block in frames.blocks]
                first, last = first or now_ns, now_ns
                if now_ns - first > seconds * 1e9:
                    break
        stream.cancel()
    joined = np.concatenate(latencies)
    return joined, len(joined) / ((last - first) / 1e9)


def run(
    *, seconds: float = 15.0, model: str | None = None, batches: tuple[int, ...] = (1, 8)
) -> list[dict[str, Any]]:
    """One row per batch size: tokens/s, and p50/p99 of the latency in ms."""
    rows = []
    for batch in batches:
        with collector_process() as endpoint:
            context = multiprocessing.get_context("spawn")
            replica = context.Process(target=_serve, args=(endpoint, seconds + 10, batch, model), daemon=True)
            replica.start()
            latencies, rate = _watch(endpoint, seconds)
            replica.terminate()
            replica.join()
        p50, p99 = np.percentile(latencies, [50, 99])
        rows.append(
            {
                "batch": batch,
                "tokens": len(latencies),
                "tokens_per_s": round(rate, 1),
                "p50_ms": round(float(p50), 2),
                "p99_ms": round(float(p99), 2),
            }
        )
    return rows
