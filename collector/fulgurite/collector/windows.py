"""What one replica did in windows of 1 s, 10 s and 1 min of this machine's clock. Pure.

Frames and sketches are folded alike, once, into the window of a second; a longer window is merged from those
of seconds as they close. Quantiles per head are folded for the first `BUCKETED_TOKENS` frames of a second;
counts, means and variances for all of them. The window of a second has quantiles of plain numbers alone.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any, Final

import numpy as np

from fulgurite.v1 import viewer_pb2
from fulgurite.wire.frame import Array, FrameBlock, RequestEvent
from fulgurite.wire.sketch import (
    FIRST_TOKEN,
    FIRST_TOKEN_BOUNDS_S,
    FIRST_TOKEN_COUNTS,
    INTER_TOKEN,
    INTER_TOKEN_BOUNDS_S,
    INTER_TOKEN_COUNTS,
    Intervals,
    Moments,
    Sketch,
    SketchFold,
    buckets_of,
    measured,
)
from fulgurite.wire.sketch_codec import columns_to_pb

SECOND_NS: Final = 1_000_000_000
WIDTHS_S: Final = (1, 10, 60)
BUCKETED_TOKENS: Final = 256
MOST_BUCKETED_CELLS: Final = 4096
"""A quantity of more cells keeps moments alone."""
MOST_CELLS: Final = 1 << 19
"""Of a quantity: beyond the caps of a topology, and not folded."""
MOST_QUANTITIES: Final = 32
COUNTS: Final = (FIRST_TOKEN_COUNTS, INTER_TOKEN_COUNTS)
_EVENTS: Final = {"started": "started", "finished": "finished", "aborted": "aborted"}


@dataclass(slots=True)
class Window:
    """One window.

    Attributes
    ----------
    frames, folded : tokens that came as frames, and in sketches.
    gaps_s, firsts_s : what frames told of time, one array per fold; only of a second.
    """

    start_ns: int
    width_s: int
    fold: SketchFold
    frames: int = 0
    folded: int = 0
    started: int = 0
    finished: int = 0
    aborted: int = 0
    gaps_s: list[Array] = field(default_factory=list)
    firsts_s: list[Array] = field(default_factory=list)

    @property
    def end_ns(self) -> int:
        """When it closes."""
        return self.start_ns + self.width_s * SECOND_NS

    @property
    def tokens(self) -> int:
        """All of them."""
        return self.frames + self.folded

    def take(self, block: FrameBlock, told: Intervals) -> None:
        """Fold frames."""
        left = max(0, BUCKETED_TOKENS - self.frames)
        self.frames += len(block)
        places = {}
        for name, values in measured(block.columns).items():
            places[name] = buckets_of(values[:left]).reshape(len(values[:left]), prod(values.shape[1:]))
        self._settle_shapes(block.columns)
        self.fold.fold(block.columns, places)
        self.fold.time(FIRST_TOKEN, told.firsts_s)
        self.fold.time(INTER_TOKEN, told.gaps_s)
        self.firsts_s.append(told.firsts_s)
        self.gaps_s.append(told.gaps_s)

    def _settle_shapes(self, columns: Mapping[str, Array]) -> None:
        """A model of another shape replaces what was measured before."""
        for name, values in measured(columns).items():
            known = self.fold.columns.get(name)
            if known is not None and known.shape != values.shape[1:]:
                del self.fold.columns[name]

    def take_sketch(self, sketch: Sketch) -> None:
        """Fold what was folded in the agent."""
        self.folded += sketch.tokens
        fits = {name: one for name, one in sketch.columns.items() if one.cells <= MOST_CELLS}
        if len(self.fold.columns.keys() | fits.keys()) <= MOST_QUANTITIES:
            self.fold.merge(_with(sketch, fits))

    def count(self, event: RequestEvent) -> None:
        """Count what happened to a request."""
        if event.kind in _EVENTS:
            setattr(self, _EVENTS[event.kind], getattr(self, _EVENTS[event.kind]) + 1)

    def merge(self, other: Window) -> None:
        """Take in a shorter window."""
        self.frames += other.frames
        self.folded += other.folded
        self.started += other.started
        self.finished += other.finished
        self.aborted += other.aborted
        for name, moments in other.fold.columns.items():
            known = self.fold.columns.get(name)
            if known is not None and known.shape != moments.shape:
                del self.fold.columns[name]
        self.fold.merge(other.fold.sketch())

    def forget_buckets(self) -> None:
        """Keep quantiles of plain numbers alone."""
        for moments in self.fold.columns.values():
            if moments.cells > 1:
                moments.buckets = None

    def message(self, *, kv_tokens: int, kv_bytes: int, sequences: int) -> viewer_pb2.Window:
        """The window as it is kept."""
        columns = {name: one for name, one in self.fold.columns.items() if name not in COUNTS}
        message = viewer_pb2.Window(
            start_ns=self.start_ns,
            width_s=self.width_s,
            frames=self.frames,
            folded=self.folded,
            kv_tokens=kv_tokens,
            kv_bytes=kv_bytes,
            running_sequences=min(sequences, (1 << 32) - 1),
            requests_started=self.started,
            requests_finished=self.finished,
            requests_aborted=self.aborted,
            first_token=self.histogram(FIRST_TOKEN_COUNTS),
            inter_token=self.histogram(INTER_TOKEN_COUNTS),
        )
        message.columns.extend(columns_to_pb(columns.items()))
        return message

    def histogram(self, name: str) -> list[int]:
        """Counts within the prescribed bounds."""
        known = self.fold.columns.get(name)
        bounds = FIRST_TOKEN_BOUNDS_S if name == FIRST_TOKEN_COUNTS else INTER_TOKEN_BOUNDS_S
        return [0] * (len(bounds) + 1) if known is None else known.count.tolist()


def _with(sketch: Sketch, columns: Mapping[str, Moments]) -> Sketch:
    return Sketch(tokens=sketch.tokens, start_ns=sketch.start_ns, end_ns=sketch.end_ns, columns=columns)


class Windows:
    """The open windows of a replica, the last seconds, and what closed since it was asked.

    Parameters
    ----------
    experts : int
        Of the model.
    seconds : int
        How many closed windows of a second are remembered.
    """

    def __init__(self, experts: int = 0, *, seconds: int = 6) -> None:
        self.experts = experts
        self.last: deque[Window] = deque(maxlen=seconds)
        self._open: dict[int, Window] = {}
        self._closed: list[Window] = []

    def at(self, now_ns: int) -> Window:
        """The window of this second. What is over closes."""
        second = self._open.get(1)
        if second is not None and second.start_ns <= now_ns < second.end_ns:
            return second
        self.close(now_ns)
        window = self._new(1, now_ns)
        self._open[1] = window
        self.last.append(window)
        return window

    def close(self, now_ns: int) -> None:
        """Close what is over at `now_ns`; also where the clock was set back."""
        for width_s, longer_s in zip(WIDTHS_S, (*WIDTHS_S[1:], 0), strict=True):
            window = self._open.get(width_s)
            if window is None or window.start_ns <= now_ns < window.end_ns:
                continue
            del self._open[width_s]
            self._closed.append(window)
            if longer_s:
                self._merge_into(longer_s, window)
            if width_s == 1:
                window.forget_buckets()

    def _merge_into(self, width_s: int, window: Window) -> None:
        longer = self._open.get(width_s)
        if longer is not None and not longer.start_ns <= window.start_ns < longer.end_ns:
            self._closed.append(self._open.pop(width_s))
            longer = None
            # The next wider one has what closed here, whenever it did.
            if (at := WIDTHS_S.index(width_s) + 1) < len(WIDTHS_S):
                self._merge_into(WIDTHS_S[at], self._closed[-1])
        if longer is None:
            longer = self._open[width_s] = self._new(width_s, window.start_ns)
        longer.merge(window)

    def closed(self) -> list[Window]:
        """What closed since this was last asked, oldest first."""
        taken, self._closed = self._closed, []
        return taken

    def _new(self, width_s: int, now_ns: int) -> Window:
        start_ns = now_ns - now_ns % (width_s * SECOND_NS)
        return Window(start_ns, width_s, self._fold())

    def _fold(self) -> SketchFold:
        return SketchFold(experts=self.experts, most_bucketed_cells=MOST_BUCKETED_CELLS)


def quantiles_of(windows: list[Window], name: str, exact: list[Array]) -> viewer_pb2.Quantiles:
    """The middle and the tail of a time: of the values where frames told them all, else of the buckets."""
    folded = any(window.folded for window in windows)
    values: Any = np.concatenate(exact) if exact else np.zeros(0)
    if not folded:
        if not len(values):
            return viewer_pb2.Quantiles()
        p50, p99 = np.percentile(values, [50, 99])
        return viewer_pb2.Quantiles(p50_s=float(p50), p99_s=float(p99), count=len(values))
    known = [window.fold.columns[name] for window in windows if name in window.fold.columns]
    merged = Moments(())
    for one in known:
        if one.shape == ():
            merged.merge(one)
    if not merged.count[0]:
        return viewer_pb2.Quantiles()
    return viewer_pb2.Quantiles(
        p50_s=float(merged.quantile(0.5)), p99_s=float(merged.quantile(0.99)), count=int(merged.count[0])
    )
