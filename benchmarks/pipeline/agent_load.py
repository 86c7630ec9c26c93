"""The agent's own way out under a paced load, in a process of its own. Prints one JSON object.

``python -m benchmarks.pipeline.agent_load ADDRESS --shape W1 --seconds S``: blocks as capture hands them over
go to the exporter that `instrument` uses. The same loop without sending is measured first, to be subtracted.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.load.shape import SHAPES, Shape
from benchmarks.wire import as_captured
from fulgurite.agent.exporter import GrpcExporter
from fulgurite.wire.frame import FrameBlock

VARIANTS = 64
SAMPLED_STEPS = 64
FLUSH_S = 30.0
ALONE_S = 5.0
"""The loop runs so long without sending, to be subtracted."""


@dataclass(frozen=True, slots=True)
class Ready:
    """Blocks that only need the time of now."""

    blocks: tuple[FrameBlock, ...]

    def at(self, step: int, now_ns: int) -> FrameBlock:
        """One of them, as of now."""
        block = self.blocks[step % len(self.blocks)]
        now = np.full(len(block), now_ns, np.int64)
        return FrameBlock(block.requests, {**block.columns, "ended_ns": now, "started_ns": now - 1_000_000})


def cpu_s() -> float:
    """CPU time of this process."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def resident_mib() -> float:
    """Of this process, now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def paced(shape: Shape, ready: Ready, exporter: GrpcExporter | None, seconds: float) -> dict[str, Any]:
    """Hand steps over when they are due. Without an exporter: the loop alone."""
    period_s = shape.rows / shape.tokens_per_s
    steps = int(seconds / period_s)
    took_ns: list[int] = []
    used_ns: list[int] = []
    first_mib = most_mib = resident_mib()
    spooled = 0
    cpu, began_s = cpu_s(), time.perf_counter()
    for step in range(steps):
        wait_s = began_s + step * period_s - time.perf_counter()
        if wait_s > 0:
            time.sleep(wait_s)
        block = as_captured(ready.at(step, time.time_ns()))
        cpu_ns, at = time.thread_time_ns(), time.perf_counter_ns()
        if exporter is not None:
            exporter.export(block)
        took_ns.append(time.perf_counter_ns() - at)
        used_ns.append(time.thread_time_ns() - cpu_ns)
        if exporter is not None and step % SAMPLED_STEPS == 0:
            most_mib = max(most_mib, resident_mib())
            spooled = max(spooled, exporter.stats().spooled_bytes)
    wall_s = time.perf_counter() - began_s
    if exporter is not None:
        exporter.flush(FLUSH_S)
    return {
        "cpu_s": cpu_s() - cpu,
        "wall_s": wall_s,
        "tokens": steps * shape.rows,
        "took_ns": took_ns,
        "used_ns": used_ns,
        "grew_mib": most_mib - first_mib,
        "spooled": spooled,
    }


def measure(
    address: str, shape: Shape, seconds: float, encoding: str, spool: Path | None = None
) -> dict[str, Any]:
    """The load, and what its sender used for it."""
    ready = Ready(shape.blocks(VARIANTS * shape.rows))
    alone = paced(shape, ready, None, min(seconds, ALONE_S))
    exporter = GrpcExporter(address, encoding=encoding, spool=spool)
    names = {"service.name": shape.name, "service.namespace": "bench"}
    exporter.attach(shape.topology, level="heads", ceiling="heads", tokens="off", resource=names)
    sending = paced(shape, ready, exporter, seconds)
    stats = exporter.stats()
    exporter.close()
    each = sending["cpu_s"] / sending["tokens"] - alone["cpu_s"] / alone["tokens"]
    return {
        "tokens": sending["tokens"],
        "tokens_per_s": round(sending["tokens"] / sending["wall_s"], 1),
        "producer_us_per_token": round(each * 1e6, 2),
        "hand_over_p50_us": round(float(np.percentile(sending["took_ns"], 50)) / 1e3, 1),
        "hand_over_p99_us": round(float(np.percentile(sending["took_ns"], 99)) / 1e3, 1),
        "calls": len(sending["took_ns"]),
        "calls_cpu_over_1_ms": _over_1_ms(sending["used_ns"]),
        "calls_over_1_ms": _over_1_ms(sending["took_ns"]),
        "control_over_1_ms": round(
            _over_1_ms(alone["took_ns"]) * len(sending["took_ns"]) / len(alone["took_ns"]), 1
        ),
        "grew_mib": round(sending["grew_mib"], 1),
        "spooled_mib": round(sending["spooled"] / 2**20, 1),
        "captured": stats.captured,
        "pending": stats.pending,
        "acknowledged": stats.acknowledged,
        "folded": stats.folded,
        "dropped": sum(stats.dropped.values()),
    }


def _over_1_ms(took_ns: list[int]) -> int:
    return int(np.count_nonzero(np.array(took_ns) > 1_000_000))


def main() -> None:
    """Send what was asked for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pipeline.agent_load", description=__doc__)
    parser.add_argument("address")
    parser.add_argument("--shape", default="W1", choices=[*SHAPES])
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--encoding", default="exact")
    parser.add_argument("--spool", type=Path)
    options = parser.parse_args()
    shape = SHAPES[options.shape]
    print(json.dumps(measure(options.address, shape, options.seconds, options.encoding, options.spool)))


if __name__ == "__main__":
    main()
