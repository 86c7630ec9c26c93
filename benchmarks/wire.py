"""What the way out of the host costs: hand-over, encoding, bytes, and the CPU of the sending thread.

    python benchmarks/wire.py [--seconds 4] [--json FILE]

Prints figures, asserts nothing. W1 is 64 samples a token at 2,000 tokens/s, W8B 1,100 samples a token at 500
tokens/s. The collector is a bare gRPC server in a process of its own that acknowledges and stores
nothing.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import platform
import resource
import sys
import time
from concurrent import futures
from dataclasses import dataclass
from typing import Any

import numpy as np

from fulgurite.agent.exporter import GrpcExporter
from fulgurite.agent.outbox import Outbox
from fulgurite.wire.codec import Codec, schema_for
from fulgurite.wire.frame import FrameBatch, FrameBlock, RequestRef
from fulgurite.wire.ledger import Ledger
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


LOADS = (Load("W1", 7, 8, 8, 2000), Load("W8B", 32, 32, 8, 500))


def percentiles(nanoseconds: list[int]) -> dict[str, float]:
    p50, p99 = np.percentile(nanoseconds, [50, 99]) / 1e3
    return {"p50_us": round(float(p50), 1), "p99_us": round(float(p99), 1)}


def hand_over(load: Load) -> dict[str, float]:
    """Time of `Outbox.put` on the host's thread, back to back, most of it into a full outbox."""
    outbox, block, taken = Outbox(Ledger()), load.block(0), []
    for _ in range(20_000):
        began = time.perf_counter_ns()
        outbox.put(block)
        taken.append(time.perf_counter_ns() - began)
    return percentiles(taken[10_000:])


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


def paced(load: Load, endpoint: str, seconds: float, encoding_name: str, *, send: bool) -> dict[str, Any]:
    """The load as it comes, with everything behind it. With `send` off: the same loop alone, to subtract."""
    exporter = GrpcExporter(endpoint, encoding=encoding_name)
    exporter.attach(
        load.topology, level="heads", ceiling="heads", tokens="off", resource={"service.name": load.name}
    )
    blocks = [load.block(step) for step in range(64)]
    if send:
        exporter.export(blocks[0])
        exporter.flush(5)
    taken = []
    period = load.rows / load.tokens_per_s
    cpu, began = process_cpu_s(), time.perf_counter()
    steps = int(seconds / period)
    for step in range(steps):
        left = began + step * period - time.perf_counter()
        if left > 0:
            time.sleep(left)
        at = time.perf_counter_ns()
        if send:
            exporter.export(blocks[step % 64])
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


def main() -> int:
    """Run all and print one table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--json", default="")
    options = parser.parse_args()
    mine, theirs = multiprocessing.get_context("spawn").Pipe()
    server = multiprocessing.get_context("spawn").Process(target=serve, args=(theirs,), daemon=True)
    server.start()
    endpoint = f"127.0.0.1:{mine.recv()}"
    found: dict[str, Any] = {"machine": platform.platform(), "python": platform.python_version()}
    for load in LOADS:
        found[load.name] = {"samples_per_token": load.samples, "hand_over_back_to_back": hand_over(load)}
        for name in ("exact", "compact"):
            found[load.name][name] = encoding(load, name)
            alone = paced(load, endpoint, options.seconds, name, send=False)
            sending = paced(load, endpoint, options.seconds, name, send=True)
            sending["agent_cpu_share"] = round(sending.pop("cpu_share") - alone["cpu_share"], 4)
            found[load.name][name]["paced"] = sending
    server.terminate()
    text = json.dumps(found, indent=1)
    print(text)
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            file.write(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
