"""Folds tokens whose frames nobody wants into sketches: one per request, and one of about every second.

Runs on the sending thread. Blocks are gathered for a moment and folded together, since folding costs by the
call more than by the token. Bounded: beyond its budget no further request gets a sketch of its own, and what
waits to be sent loses its oldest; both are counted.
"""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from fulgurite.wire.frame import Array, FrameBlock, RequestEvent, RequestRef
from fulgurite.wire.sketch import (
    FIRST_TOKEN,
    INTER_TOKEN,
    Intervals,
    Pace,
    Sketch,
    SketchFold,
    buckets_of,
    foldable,
    joined,
    measured,
)

GATHER_S: Final = 0.25
SECOND_S: Final = 1.0
SILENT_S: Final = 30.0
"""A request without a token for so long gets its sketch; what comes later makes another."""
BUDGET_BYTES: Final = 4 << 20
BUCKETED_CELLS: Final = 4096
"""Of a request's quantity: one with more cells keeps moments alone."""
PARCEL_BYTES: Final = 512 << 10
_MOST_TOKENS: Final = 60_000  # of a request in one sketch: its bucket counts have 16 bits


@dataclass(slots=True)
class _Request:
    fold: SketchFold
    seen_s: float


@dataclass(slots=True)
class Folding:
    """Folds blocks, and says when a sketch is due.

    Parameters
    ----------
    experts : int
        Of the model.
    """

    experts: int = 0
    lost: Counter[str] = field(default_factory=Counter)
    _gathered: list[FrameBlock] = field(default_factory=list)
    _gathered_s: float = 0.0
    _second: SketchFold | None = None
    _second_s: float = 0.0
    _requests: dict[RequestRef, _Request] = field(default_factory=dict)
    _ready: deque[Sketch] = field(default_factory=deque)
    _ready_bytes: int = 0
    _open_bytes: int = 0
    _pace: Pace = field(default_factory=Pace)

    def take(self, block: FrameBlock, now_s: float) -> None:
        """Take in a block, all of whose tokens are folded."""
        if not self._gathered:
            self._gathered_s = now_s
        self._gathered.append(foldable(block))

    def event(self, event: RequestEvent, now_s: float) -> None:
        """What happened to a request."""
        if event.kind == "started":
            self._pace.started(event.request_id, event.time_ns)
        elif event.kind in ("finished", "aborted"):
            self._fold(now_s)
            self._pace.ended(event.request_id)
            for request in [one for one in self._requests if one.request_id == event.request_id]:
                self._finish(request)

    def due(self, now_s: float, *, at_once: bool = False) -> list[Sketch]:
        """The sketches to send now, in one batch; `at_once`: also those that are not full."""
        if at_once or (self._gathered and now_s >= self._gathered_s + GATHER_S):
            self._fold(now_s)
        silent = [name for name, one in self._requests.items() if now_s > one.seen_s + SILENT_S]
        for request in list(self._requests) if at_once else silent:
            self._finish(request)
        if self._second is not None and (at_once or now_s >= self._second_s + SECOND_S):
            self._close_second(now_s)
        taken: list[Sketch] = []
        nbytes = 0
        while self._ready and (not taken or nbytes + _nbytes(self._ready[0]) <= PARCEL_BYTES):
            taken.append(self._ready.popleft())
            nbytes += _nbytes(taken[-1])
        self._ready_bytes -= nbytes
        return taken

    @property
    def is_idle(self) -> bool:
        """Whether nothing waits to be folded or sent."""
        return not (self._gathered or self._second or self._requests or self._ready)

    @property
    def nbytes(self) -> int:
        """What is held, but for the blocks of this moment."""
        return self._open_bytes + self._ready_bytes

    # --- folding

    def _fold(self, now_s: float) -> None:
        blocks, self._gathered = self._gathered, []
        for block in joined(blocks):
            self._fold_block(block, now_s)

    def _fold_block(self, block: FrameBlock, now_s: float) -> None:
        columns = block.columns
        places = {name: buckets_of(values) for name, values in measured(columns).items()}
        flat = {name: found.reshape(len(found), -1) for name, found in places.items()}
        told = self._pace.see(block, int(now_s * 1e9))
        if self._second is None:
            self._second, self._second_s = SketchFold(experts=self.experts), now_s
        self._second.fold(columns, flat)
        self._second.time(FIRST_TOKEN, told.firsts_s)
        self._second.time(INTER_TOKEN, told.gaps_s)
        index = columns["request_index"]
        for number, request in enumerate(block.requests):
            rows = np.flatnonzero(index == number)
            if len(rows):
                self._fold_request(request, number, columns, flat, rows, told, now_s)

    def _fold_request(
        self,
        request: RequestRef,
        number: int,
        columns: Any,
        places: dict[str, Array],
        rows: Array,
        told: Intervals,
        now_s: float,
    ) -> None:
        known = self._requests.get(request)
        if known is None:
            if self.nbytes >= BUDGET_BYTES:
                self.lost["requests_not_sketched"] += 1
                return
            fold = SketchFold(
                experts=self.experts, bucket_dtype=np.uint16, most_bucketed_cells=BUCKETED_CELLS
            )
            known = self._requests[request] = _Request(fold, now_s)
        known.seen_s = now_s
        before = known.fold.nbytes
        every = len(rows) == len(columns["ended_ns"])
        known.fold.fold(
            columns if every else {name: column[rows] for name, column in columns.items()},
            places if every else {name: found[rows] for name, found in places.items()},
        )
        known.fold.time(FIRST_TOKEN, told.firsts_s[told.first_requests == number])
        known.fold.time(INTER_TOKEN, told.gaps_s[told.gap_requests == number])
        self._open_bytes += known.fold.nbytes - before
        if known.fold.tokens >= _MOST_TOKENS:
            self._finish(request)

    def _finish(self, request: RequestRef) -> None:
        fold = self._requests.pop(request).fold
        self._open_bytes -= fold.nbytes
        self._queue(fold.sketch(request=request))

    def _close_second(self, now_s: float) -> None:
        assert self._second is not None
        self._pace.forget(int(now_s * 1e9))
        pace = self._pace
        second, self._second = self._second, None
        self._queue(second.sketch(kv_tokens=pace.kv_tokens, kv_bytes=pace.kv_bytes, sequences=pace.sequences))

    def _queue(self, sketch: Sketch) -> None:
        self._ready.append(sketch)
        self._ready_bytes += _nbytes(sketch)
        while self._ready_bytes > BUDGET_BYTES and len(self._ready) > 1:
            self._ready_bytes -= _nbytes(self._ready.popleft())
            self.lost["sketches_not_sent"] += 1


def _nbytes(sketch: Sketch) -> int:
    return sum(moments.nbytes for moments in sketch.columns.values())
