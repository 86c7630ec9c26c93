"""Viewers in a process of their own: how old each frame is when it is decoded. Prints one JSON object.

``python -m benchmarks.pipeline.audience ADDRESS --viewers N --seconds S [--stalled]``. The seconds begin when
every viewer has had its first frames, and a second more: how an agent connects and a viewer finds it is no
part of a token's way. With ``--stalled`` one more viewer reads until then, then nothing until three seconds
before the end, and then goes on. One clock (the machine's) on both sides, so the difference needs no
correction. One viewer decodes, and takes a frame's age from its commitment; several only count, and take a
batch's age from its arrival at the collector.
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
FIRST_S: Final = 60.0
"""The most that anybody waits for a first frame."""
SETTLE_S: Final = 1.0
"""What comes before is not counted."""
LIVE_MS: Final = 1000.0
AWAKE_S: Final = 3.0
FAR: Final = float("inf")


@dataclass(slots=True)
class Show:
    """When it is counted: from `begin_s` to `end_s`; whoever sleeps does so from `begin_s` to `wake_s`."""

    begin_s: float = FAR
    end_s: float = FAR
    wake_s: float = FAR


@dataclass(slots=True)
class Seat:
    """One viewer.

    Attributes
    ----------
    ages_ms : list of float
        Of each frame since its commitment, or of each batch since the collector had it.
    held_ms : list of float
        Of each batch since the collector had it, where `ages_ms` are those of frames.
    gaps : int
        Frames that it was told it does not get.
    """

    address: str
    show: Show
    decodes: bool = False
    sleeps: bool = False
    ages_ms: list[float] = field(default_factory=list)
    held_ms: list[float] = field(default_factory=list)
    frames: int = 0
    gaps: int = 0
    slow_gaps: int = 0
    schemas: dict[str, Any] = field(default_factory=dict)
    lively_after_s: float | None = None
    has_begun: asyncio.Event = field(default_factory=asyncio.Event)

    async def watch(self) -> None:
        """Read until cancelled."""
        async with grpc.aio.insecure_channel(self.address, options=OPTIONS) as channel:
            stub: Any = viewer_pb2_grpc.ViewerServiceStub(channel)
            call = stub.Watch(viewer_pb2.WatchRequest(selectors=["*"]))
            try:
                async for response in call:
                    self._take(response)
                    if self.sleeps and self.show.begin_s <= (now_s := time.monotonic()) < self.show.wake_s:
                        await asyncio.sleep(self.show.wake_s - now_s)
            finally:
                call.cancel()

    def _take(self, response: viewer_pb2.WatchResponse) -> None:
        if response.HasField("replica"):
            self.schemas[response.replica.key] = response.replica.schema
        elif response.HasField("gap"):
            self.gaps += response.gap.frames
            self.slow_gaps += response.gap.reason == "slow_viewer"
        elif response.HasField("batch"):
            self._look(response.batch)

    def _look(self, watched: viewer_pb2.WatchedBatch) -> None:
        frames, ages = self._ages(watched)
        if not frames:
            return
        self.has_begun.set()
        show, newest, now_s = self.show, min(ages), time.monotonic()
        if self.sleeps and now_s >= show.wake_s and newest < LIVE_MS and self.lively_after_s is None:
            self.lively_after_s = now_s - show.wake_s
        if show.begin_s <= now_s < show.end_s:
            self.frames += frames
            self.ages_ms += ages
            self.held_ms.append((time.time_ns() - watched.ingested_ns) / 1e6)

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
    show = Show()
    seats = [Seat(address, show, decodes=viewers == 1) for _ in range(viewers)]
    sleeper = Seat(address, show, sleeps=True)
    everybody = [*seats, sleeper] if stalled else seats
    watching = [asyncio.create_task(seat.watch()) for seat in everybody]
    try:
        await _begun(everybody, watching)
        show.begin_s = time.monotonic() + SETTLE_S
        show.end_s = show.begin_s + seconds
        show.wake_s = show.end_s - AWAKE_S
        await asyncio.sleep(show.end_s - time.monotonic())
    finally:
        for task in watching:
            task.cancel()
        ended = await asyncio.gather(*watching, return_exceptions=True)
    for error in ended:
        if isinstance(error, Exception):
            raise error
    return _told(seats, sleeper if stalled else None)


async def _begun(seats: list[Seat], watching: list[asyncio.Task[None]]) -> None:
    """Return when everybody has had frames."""
    having = asyncio.ensure_future(asyncio.gather(*(seat.has_begun.wait() for seat in seats)))
    first: list[asyncio.Future[Any]] = [having, *watching]
    await asyncio.wait(first, timeout=FIRST_S, return_when=asyncio.FIRST_COMPLETED)
    if not having.done():
        having.cancel()
        without = sum(not seat.has_begun.is_set() for seat in seats)
        await asyncio.gather(*(task for task in watching if task.done()))  # raises what ended one of them
        raise RuntimeError(f"{without} of {len(seats)} viewers had no frame within {FIRST_S:g} s")


def _told(seats: list[Seat], sleeper: Seat | None) -> dict[str, Any]:
    found: dict[str, Any] = {
        "frames": sum(seat.frames for seat in seats),
        "gaps": sum(seat.gaps for seat in seats),
        **_percentiles("", [age for seat in seats for age in seat.ages_ms]),
        **_percentiles("from_collector_", [age for seat in seats for age in seat.held_ms]),
    }
    if sleeper is not None:
        live = sleeper.lively_after_s
        found |= {
            "stalled_live_after_s": None if live is None else round(live, 3),
            "stalled_gaps": sleeper.slow_gaps,
            "stalled_gap_frames": sleeper.gaps,
        }
    return found


def _percentiles(what: str, ages_ms: list[float]) -> dict[str, float | None]:
    if not ages_ms:
        return {f"{what}p50_ms": None, f"{what}p99_ms": None}
    p50, p99 = np.percentile(ages_ms, [50, 99])
    return {f"{what}p50_ms": round(float(p50), 2), f"{what}p99_ms": round(float(p99), 2)}


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
