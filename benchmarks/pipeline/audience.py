"""Viewers in a process of their own: how old each frame is when it is decoded. Prints one JSON object.

``python -m benchmarks.pipeline.audience ADDRESS --viewers N --seconds S [--stalled]``. With ``--stalled`` one
more viewer reads for a second, then nothing until three seconds before the end, and then goes on. One clock
(the machine's) on both sides, so the difference needs no correction. One viewer decodes, and takes a frame's
age from its commitment; several only count, and take a batch's age from its arrival at the collector.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from dataclasses import dataclass, field
from typing import Any, Final

import grpc
import numpy as np

from fulgurite.v1 import viewer_pb2, viewer_pb2_grpc
from fulgurite.wire.codec import decode_batch, peek

OPTIONS: Final = (
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_http_proxy", 0),
    ("grpc.max_receive_message_length", 16 << 20),
)
SETTLE_S: Final = 1.0
"""What comes before is not counted."""
LIVE_MS: Final = 1000.0
AWAKE_S: Final = 3.0


@dataclass(slots=True)
class Seat:
    """One viewer.

    Attributes
    ----------
    ages_ms : list of float
        Of each frame since its commitment, or of each batch since the collector had it.
    gaps : int
        Frames that it was told it does not get.
    """

    address: str
    decodes: bool
    ages_ms: list[float] = field(default_factory=list)
    frames: int = 0
    gaps: int = 0
    slow_gaps: int = 0
    schemas: dict[str, Any] = field(default_factory=dict)
    lively_after_s: float | None = None

    async def watch(self, begin_s: float, end_s: float, stall: tuple[float, float] | None = None) -> None:
        """Read until `end_s`; not at all within `stall`."""
        async with grpc.aio.insecure_channel(self.address, options=OPTIONS) as channel:
            stub: Any = viewer_pb2_grpc.ViewerServiceStub(channel)
            call = stub.Watch(viewer_pb2.WatchRequest(selectors=["*"]))
            try:
                async with asyncio.timeout(end_s - time.monotonic()):
                    await self._read(call, begin_s, stall)
            except TimeoutError:
                pass
            call.cancel()

    async def _read(self, call: Any, begin_s: float, stall: tuple[float, float] | None) -> None:
        async for response in call:
            now_s = time.monotonic()
            self._take(response, now_s >= begin_s, stall[1] if stall else None)
            if stall is not None and stall[0] <= now_s < stall[1]:
                await asyncio.sleep(stall[1] - now_s)

    def _take(self, response: viewer_pb2.WatchResponse, counts: bool, woke_s: float | None) -> None:
        if response.HasField("replica"):
            self.schemas[response.replica.key] = response.replica.schema
        elif response.HasField("gap"):
            self.gaps += response.gap.frames
            self.slow_gaps += response.gap.reason == "slow_viewer"
        elif response.HasField("batch"):
            self._look(response.batch, counts, woke_s)

    def _look(self, watched: viewer_pb2.WatchedBatch, counts: bool, woke_s: float | None) -> None:
        frames, ages = self._ages(watched)
        if not frames:
            return
        newest, now_s = min(ages), time.monotonic()
        if woke_s is not None and now_s >= woke_s and newest < LIVE_MS and self.lively_after_s is None:
            self.lively_after_s = now_s - woke_s
        if counts:
            self.frames += frames
            self.ages_ms += ages

    def _ages(self, watched: viewer_pb2.WatchedBatch) -> tuple[int, list[float]]:
        """Frames of a batch, and how old they are in ms."""
        if not self.decodes:
            return peek(watched.batch)[2], [(time.time_ns() - watched.ingested_ns) / 1e6]
        batch = decode_batch(watched.batch, self.schemas[watched.key])
        now_ns = time.time_ns()
        ages = [(now_ns - block.columns["ended_ns"]) / 1e6 for block in batch.blocks]
        return len(batch), np.concatenate(ages).tolist() if ages else []


async def attend(address: str, *, viewers: int, seconds: float, stalled: bool) -> dict[str, Any]:
    """Seat everybody; what they saw."""
    began_s = time.monotonic()
    begin_s, end_s = began_s + SETTLE_S, began_s + SETTLE_S + seconds
    seats = [Seat(address, decodes=viewers == 1) for _ in range(viewers)]
    watching = [seat.watch(begin_s, end_s) for seat in seats]
    sleeper = Seat(address, decodes=False)
    if stalled:
        watching.append(sleeper.watch(begin_s, end_s, (begin_s, end_s - AWAKE_S)))
    await asyncio.gather(*watching)
    ages = np.concatenate([np.asarray(seat.ages_ms) for seat in seats] or [np.zeros(0)])
    found: dict[str, Any] = {
        "frames": sum(seat.frames for seat in seats),
        "gaps": sum(seat.gaps for seat in seats),
        "p50_ms": round(float(np.percentile(ages, 50)), 2) if len(ages) else None,
        "p99_ms": round(float(np.percentile(ages, 99)), 2) if len(ages) else None,
    }
    if stalled:
        live = sleeper.lively_after_s
        found |= {
            "stalled_live_after_s": None if live is None else round(live, 3),
            "stalled_gaps": sleeper.slow_gaps,
            "stalled_gap_frames": sleeper.gaps,
        }
    return found


def main() -> None:
    """Watch what was asked for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pipeline.audience", description=__doc__)
    parser.add_argument("address")
    parser.add_argument("--viewers", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--stalled", action="store_true")
    options = parser.parse_args()
    seen = attend(options.address, viewers=options.viewers, seconds=options.seconds, stalled=options.stalled)
    print(json.dumps(asyncio.run(seen)))


if __name__ == "__main__":
    main()
