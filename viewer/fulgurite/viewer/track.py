"""The kept past of one replica: its blocks, a cursor, and how late its tokens get here. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fulgurite.wire.frame import FrameBlock

LAG_WINDOW_S = 10
JITTER_S = 0.5
LAG_FREE_S = (
    0.1  # a lag that the playhead's delay swallows anyway: machines that share a clock keep exact times
)


@dataclass(frozen=True, slots=True)
class Segment:
    """Tokens of one replica that are due.

    Attributes
    ----------
    block : the frames.
    at_s : ndarray of float64, shape (n,)
        When each is played, on the timeline's axis; never decreasing.
    live : False for the past that was sent before the present.
    """

    key: str
    block: FrameBlock
    at_s: NDArray[np.float64]
    live: bool = True


@dataclass(frozen=True, slots=True)
class Kept:
    """One block of the past. `first_s` and `last_s` are those of its tokens; `live` as in `Segment`."""

    serial: int
    block: FrameBlock
    at_s: NDArray[np.float64]
    nbytes: int
    live: bool

    @property
    def first_s(self) -> float:
        return float(self.at_s[0])

    @property
    def last_s(self) -> float:
        return float(self.at_s[-1])


class Lag:
    """How much later than measured a replica's tokens get here, by the extremes of the last seconds.

    The smallest lag is the path and the difference of the clocks; what comes on top is unevenness, which is
    played out up to `JITTER_S`. A backlog after an outage is more than that, and is not waited for.
    """

    def __init__(self) -> None:
        self.value_s = 0.0
        self._seconds: deque[tuple[int, float, float]] = deque()  # (second, smallest, largest)

    def learn(self, lag_s: float, now_s: float) -> None:
        """A message came at `now_s`, `lag_s` after its newest token was measured."""
        second, low, high = int(now_s), lag_s, lag_s
        if self._seconds and self._seconds[-1][0] == second:
            _, low, high = self._seconds.pop()
        self._seconds.append((second, min(low, lag_s), max(high, lag_s)))
        while self._seconds[0][0] < second - LAG_WINDOW_S:
            self._seconds.popleft()
        smallest = min(low for _, low, _ in self._seconds)
        largest = max(high for _, _, high in self._seconds)
        lag_s = min(largest, smallest + JITTER_S)
        self.value_s = 0.0 if 0.0 <= lag_s <= LAG_FREE_S else lag_s


class Track:
    """The kept past of one replica in stream order, and a cursor: the first token that was not played yet."""

    def __init__(self, key: str) -> None:
        self.key = key
        self.kept: deque[Kept] = deque()
        self.nbytes = 0
        self.lag = Lag()
        self._serial = 0
        self._cursor = (0, 0)  # (serial, row)

    def add(self, block: FrameBlock, at_s: NDArray[np.float64], *, live: bool = True) -> None:
        """Keep a block whose tokens are played at `at_s` (never decreasing, also against the last block)."""
        kept = Kept(self._serial, block, at_s, _nbytes(block), live)
        self._serial += 1
        self.kept.append(kept)
        self.nbytes += kept.nbytes

    def forget(self) -> int:
        """Drop the oldest block; how many of its tokens had not been played."""
        gone = self.kept.popleft()
        self.nbytes -= gone.nbytes
        serial, row = self._cursor
        if serial > gone.serial:
            return 0
        self._cursor = (gone.serial + 1, 0)
        return len(gone.at_s) - row

    def played_all(self) -> bool:
        """Whether the cursor stands behind everything kept."""
        return self._cursor[0] >= self._serial

    def move_to(self, playhead_s: float) -> None:
        """Put the cursor behind the last token at or before the playhead."""
        self._cursor = (self._serial, 0)
        for kept in reversed(self.kept):
            row = int(np.searchsorted(kept.at_s, playhead_s, side="right"))
            self._cursor = (kept.serial, row) if row < len(kept.at_s) else (kept.serial + 1, 0)
            if row:
                break

    def due(self, playhead_s: float) -> Iterable[Segment]:
        """Tokens from the cursor up to the playhead; the cursor moves on."""
        while self._cursor[0] < self._serial:
            serial, row = self._cursor
            kept = self.kept[serial - self.kept[0].serial]
            high = int(np.searchsorted(kept.at_s, playhead_s, side="right"))
            if high > row:
                yield self._rows(kept, row, high)
            if high < len(kept.at_s):
                self._cursor = (serial, max(row, high))
                return
            self._cursor = (serial + 1, 0)

    def between(self, after_s: float, to_s: float) -> list[Segment]:
        """Blocks with after_s < at_s <= to_s, cut to those rows, in stream order."""
        found: list[Segment] = []
        for kept in reversed(self.kept):
            if kept.last_s <= after_s:
                break
            low, high = np.searchsorted(kept.at_s, [after_s, to_s], side="right")
            if high > low:
                found.append(self._rows(kept, int(low), int(high)))
        return found[::-1]

    def last(self, limit: int, to_s: float) -> list[Segment]:
        """The last tokens at or before `to_s`, at most `limit`, in stream order."""
        found: list[Segment] = []
        for kept in reversed(self.kept):
            high = int(np.searchsorted(kept.at_s, to_s, side="right"))
            low = max(0, high - limit)
            if high > low:
                found.append(self._rows(kept, low, high))
                limit -= high - low
            if limit <= 0:
                break
        return found[::-1]

    def _rows(self, kept: Kept, low: int, high: int) -> Segment:
        if low == 0 and high == len(kept.at_s):
            return Segment(self.key, kept.block, kept.at_s, kept.live)
        return Segment(self.key, kept.block.select(np.arange(low, high)), kept.at_s[low:high], kept.live)


def _nbytes(block: FrameBlock) -> int:
    return sum(int(column.nbytes) for column in block.columns.values()) + 64 * len(block)
