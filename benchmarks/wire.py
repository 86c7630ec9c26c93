"""What the way out of the host costs: bytes, encoding, hand-over, and the CPU of the sending thread.

W1 is 64 samples a token at 2,000 tokens/s, W8B about 1,100 samples a token at 500 tokens/s (the shape of an
8 B model), both with drawn values; the model's own frames are measured beside them. The collector is a bare
gRPC server in a process of its own that acknowledges and stores nothing.
"""

from __future__ import annotations

import multiprocessing
import resource
import time
from collections.abc import Iterator
from concurrent import futures
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from fulgurite.agent.exporter import GrpcExporter
from fulgurite.agent.late import LateBlock
from fulgurite.wire.codec import Codec, schema_for
from fulgurite.wire.frame import FrameBatch, FrameBlock, RequestRef
from fulgurite.wire.topology import Topology

SAMPLED = ("head_write", "ffn_write")


@dataclass(frozen=True)
class Load:
    """A model's shape, and how its tokens come."""

    name: str
    layers: int
    heads: int
    rows: int
    tokens_per_s: int

    @property
    def topology(self) -> Topology:
        return Topology(
            model_name=self.name, architecture="x", layers=self.layers, heads=self.heads, kv_heads=self.heads,
            head_dim=64, hidden_size=64 * self.heads, ffn_size=256 * self.heads, vocab_size=32_000,
        )  # fmt: skip

    @property
    def samples(self) -> int:
        return self.layers * (self.heads + 1)

    def block(self, step: int) -> FrameBlock:
        """One step: every row's token, as capture hands it over at level `heads`."""
        rng, n, layers = np.random.default_rng(step), self.rows, self.layers
        now = time.time_ns()
        columns: dict[str, Any] = {
            "request_index": np.arange(n, dtype=np.uint16),
            "sequence": np.zeros(n, np.uint16),
            "position": np.full(n, step, np.int32),
            "token_id": np.full(n, 7, np.int32),
            "phase": np.ones(n, np.uint8),
            "level": np.full(n, 2, np.uint8),
            "step": np.full(n, step, np.int64),
            "started_ns": np.full(n, now, np.int64),
            "ended_ns": np.full(n, now, np.int64),
            "batch_size": np.full(n, n, np.uint16),
            "logprob": rng.normal(size=n).astype(np.float32),
            "entropy": rng.normal(size=n).astype(np.float32),
            "head_write": rng.lognormal(0, 1, (n, layers, self.heads)).astype(np.float32),
            "ffn_write": rng.lognormal(0, 1, (n, layers)).astype(np.float32),
            "kv_tokens": np.full((n, layers), step, np.int32),
            "kv_bytes": np.full(n, 1000, np.int64),
        }
        return FrameBlock(tuple(RequestRef(f"request-{i}") for i in range(n)), columns)


def as_captured(block: FrameBlock) -> LateBlock:
    """The block as capture hands it over: whoever reads it first asks for its columns."""
    nbytes = sum(column.nbytes for column in block.columns.values())
    return LateBlock(block.requests, lambda: block.columns, rows=len(block), nbytes=nbytes)


LOADS = (Load("W1", 7, 8, 8, 2000), Load("W8B", 32, 32, 8, 500))


def percentiles(nanoseconds: list[int]) -> dict[str, float]:
    p50, p99 = np.percentile(nanoseconds, [50, 99]) / 1e3
    return {"p50_us": round(float(p50), 1), "p99_us": round(float(p99), 1)}


def encoding(load: Load, encoding_name: str) -> dict[str, float]:
    """Encoding and decoding of batches as they come in 4 ms, and of full ones."""
    codec = Codec(schema_for(load.topology, encoding_name))
    found: dict[str, float] = {}
    for name, steps in (
        ("small", max(1, load.tokens_per_s * 4 // 1000 // load.rows)),
        ("full", 256 // load.rows),
    ):
        blocks = tuple(load.block(step) for step in range(steps))
        batch = FrameBatch(epoch_ms=1, first_sequence=1, blocks=blocks)
        tokens, rounds = len(batch), max(20, 4000 // len(batch))
        began = time.perf_counter()
        for _ in range(rounds):
            data = codec.encode(batch).SerializeToString()
        middle = time.perf_counter()
        for _ in range(rounds):
            codec.decode(data)
        validated = time.perf_counter()
        for _ in range(rounds):
            codec.validate(data)
        ended = time.perf_counter()
        each = rounds * tokens * 1e-6
        found |= {
            f"{name}_encode_us_per_token": round((middle - began) / each, 1),
            f"{name}_decode_us_per_token": round((validated - middle) / each, 1),
            f"{name}_validate_us_per_token": round((ended - validated) / each, 1),
            f"{name}_bytes_per_token": round(len(data) / tokens, 1),
        }
        block = codec.encode(batch).blocks[0]
        written = zip(block.column_index, block.column_data, strict=True)
        sampled = sum(len(column) for i, column in written if codec.schema.columns[i].name in SAMPLED)
        found[f"{name}_bytes_per_sample"] = round(sampled / tokens / load.samples, 2)
    return found


def serve(port: Any) -> None:
    """A server that welcomes and acknowledges."""
    import grpc

    from fulgurite.v1 import agent_pb2, agent_pb2_grpc

    class Bare(agent_pb2_grpc.AgentServiceServicer):
        def Connect(self, requests: Any, context: Any) -> Any:  # noqa: ARG002, N802
            last, sequence = time.monotonic(), 0
            for message in requests:
                if message.HasField("hello"):
                    yield agent_pb2.CollectorMessage(welcome=agent_pb2.Welcome(epoch_ms=1, credit=64))
                elif message.HasField("batch"):
                    sequence = message.batch.first_sequence + message.batch.count - 1
                    if time.monotonic() - last > 0.05:
                        last = time.monotonic()
                        ack = agent_pb2.Ack(epoch_ms=1, sequence=sequence, credit=64)
                        yield agent_pb2.CollectorMessage(ack=ack)
                elif message.HasField("stats") and sequence:
                    yield agent_pb2.CollectorMessage(
                        ack=agent_pb2.Ack(epoch_ms=1, sequence=sequence, credit=64)
                    )
                elif message.HasField("goodbye"):
                    return

    server = grpc.server(futures.ThreadPoolExecutor(4))
    agent_pb2_grpc.add_AgentServiceServicer_to_server(Bare(), server)
    port.send(server.add_insecure_port("127.0.0.1:0"))
    server.start()
    server.wait_for_termination()


def process_cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def computing(until_s: float, matrix: Any) -> None:
    """What a host does between two tokens: multiply matrices, without the interpreter's lock, until then."""
    while time.perf_counter() < until_s:
        matrix @ matrix


def paced(
    load: Load, endpoint: str, seconds: float, encoding_name: str, *, send: bool, computes: bool = False
) -> dict[str, Any]:
    """The load as it comes, with everything behind it. With `send` off: the same loop alone, to subtract.

    `computes`: the thread works between its tokens, as a host's does, instead of sleeping, from which a
    processor wakes slowly and with cold caches.
    """
    matrix = np.random.default_rng(0).normal(size=(192, 192)).astype(np.float32)
    exporter = GrpcExporter(endpoint, encoding=encoding_name)
    exporter.attach(
        load.topology, level="heads", ceiling="heads", tokens="off", resource={"service.name": load.name}
    )
    blocks = [load.block(step) for step in range(64)]
    if send:
        exporter.export(as_captured(blocks[0]))
        exporter.flush(5)
    taken = []
    period = load.rows / load.tokens_per_s
    cpu, began = process_cpu_s(), time.perf_counter()
    steps = int(seconds / period)
    for step in range(steps):
        left = began + step * period - time.perf_counter()
        if left > 0 and computes:
            computing(began + step * period, matrix)
        elif left > 0:
            time.sleep(left)
        block = as_captured(blocks[step % 64])
        at = time.perf_counter_ns()
        if send:
            exporter.export(block)
        taken.append(time.perf_counter_ns() - at)
    wall = time.perf_counter() - began
    cpu = process_cpu_s() - cpu
    exporter.close()
    stats = exporter.stats()
    return {
        "cpu_share": cpu / wall,
        "tokens_per_s": round(steps * load.rows / wall),
        "hand_over": percentiles(taken),
        "dropped": dict(stats.dropped),
    }


def recorded(path: str | None, tokens: int = 64) -> tuple[Topology, tuple[FrameBlock, ...]]:
    """What the model itself gives: the blocks of one generation of two rows at level `heads`."""
    import torch

    from fulgurite.agent import InMemoryExporter, instrument
    from fulgurite.cli.demo.model import load

    model, tokenizer = load(path)
    encoded = tokenizer(["Once upon a time a storm came."] * 2, return_tensors="pt", padding=True)
    exporter = InMemoryExporter()
    torch.manual_seed(0)
    with instrument(model, level="heads", exporter=exporter):
        model.generate(
            input_ids=encoded["input_ids"], attention_mask=encoded["attention_mask"],
            do_sample=True, min_new_tokens=tokens, max_new_tokens=tokens,
        )  # fmt: skip
    return exporter.topology, exporter.blocks


def model_rows(path: str | None) -> list[dict[str, Any]]:
    """Bytes of the model's own frames, in batches of at most 256 tokens as the agent sends them."""
    topology, blocks = recorded(path)
    samples = topology.layers * (topology.heads + 1)
    rows = []
    for name in ("exact", "compact"):
        codec = Codec(schema_for(topology, name))
        message = codec.encode(FrameBatch(epoch_ms=1, first_sequence=1, blocks=blocks))
        tokens = sum(len(block) for block in blocks)
        written = [
            pair
            for block in message.blocks
            for pair in zip(block.column_index, block.column_data, strict=True)
        ]
        sampled = sum(len(column) for i, column in written if codec.schema.columns[i].name in SAMPLED)
        rows.append(
            {
                "load": "model's own frames",
                "encoding": name,
                "samples_per_token": samples,
                "bytes_per_token": round(len(message.SerializeToString()) / tokens, 1),
                "bytes_per_sample": round(sampled / tokens / samples, 2),
            }
        )
    return rows


def load_row(load: Load, name: str, endpoint: str, seconds: float) -> dict[str, Any]:
    """All figures of one load in one encoding."""
    cost = encoding(load, name)
    alone = paced(load, endpoint, seconds, name, send=False)
    sending = paced(load, endpoint, seconds, name, send=True)
    busy = paced(load, endpoint, seconds, name, send=True, computes=True)
    return {
        "load": f"{load.name}, {load.tokens_per_s} tokens/s",
        "encoding": name,
        "samples_per_token": load.samples,
        "bytes_per_token": cost["full_bytes_per_token"],
        "bytes_per_sample": cost["full_bytes_per_sample"],
        "encode_us_per_token": cost["full_encode_us_per_token"],
        "decode_us_per_token": cost["full_decode_us_per_token"],
        "validate_us_per_token": cost["full_validate_us_per_token"],
        "hand_over_p50_us": busy["hand_over"]["p50_us"],
        "hand_over_p99_us": busy["hand_over"]["p99_us"],
        "hand_over_after_sleep_p50_us": sending["hand_over"]["p50_us"],
        "hand_over_after_sleep_p99_us": sending["hand_over"]["p99_us"],
        "agent_cpu_share": round(sending["cpu_share"] - alone["cpu_share"], 4),
        "dropped": sum(sending["dropped"].values()),
    }


@contextmanager
def bare_server() -> Iterator[str]:
    """The address of a collector that only acknowledges, in a process of its own."""
    context = multiprocessing.get_context("spawn")
    mine, theirs = context.Pipe()
    server = context.Process(target=serve, args=(theirs,), daemon=True)
    server.start()
    try:
        yield f"127.0.0.1:{mine.recv()}"
    finally:
        server.terminate()
        server.join()


def run(*, seconds: float = 4.0, model: str | None = None) -> list[dict[str, Any]]:
    """One row per load and encoding."""
    with bare_server() as endpoint:
        rows = [load_row(load, name, endpoint, seconds) for load in LOADS for name in ("exact", "compact")]
    return [*model_rows(model), *rows]
