"""Tokens per second, of frames and of sketches over the same time. Pure.

A frame comes when it was made; a sketch comes at the end of the second or so that it is of. Counted where
they come, a second of tokens would be in the rate twice for a while after a viewer came, and the rate of a
replica that nobody watches would jump. So a sketch is spread evenly over its own length, up to when it came;
and while more sketches are to be expected, what is newer than the last one is not known, and not in the rate.

Kept are sums over `BIN_NS`, which is how far its ends are off.
"""

from __future__ import annotations

from typing import Final

BIN_NS: Final = 50_000_000
OVER_NS: Final = 5_000_000_000
LONGEST_NS: Final = 2 * OVER_NS
SECOND_NS: Final = 1_000_000_000


class Throughput:
    """How fast tokens come, over the last five whole seconds of this machine's clock and the open one."""

    def __init__(self) -> None:
        self._bins: dict[int, float] = {}
        self._newest = 0
        self._sketch_ns = 0

    def frames(self, tokens: int, now_ns: int) -> None:
        """So many tokens came as frames."""
        self._add(now_ns, tokens)

    def sketch(self, tokens: int, length_ns: int, now_ns: int) -> None:
        """A sketch came, of tokens that were made in `length_ns`."""
        bins = 1 + min(max(0, length_ns), OVER_NS) // BIN_NS
        for back in range(bins):
            self._add(now_ns - back * BIN_NS, tokens / bins)
        self._sketch_ns = now_ns

    def _add(self, at_ns: int, tokens: float) -> None:
        number = at_ns // BIN_NS
        if number > self._newest:
            self._newest = number
            for old in [one for one in self._bins if (number - one) * BIN_NS > LONGEST_NS]:
                del self._bins[old]
        elif (self._newest - number) * BIN_NS > LONGEST_NS:  # the clock was set back
            self._bins.clear()
            self._newest = number
        self._bins[number] = self._bins.get(number, 0.0) + tokens

    def per_s(self, now_ns: int, *, is_folding: bool) -> float:
        """Tokens per second. `is_folding`: whether another sketch is to be expected."""
        end_ns = self._sketch_ns if is_folding and self._sketch_ns <= now_ns else now_ns
        start_ns = end_ns - end_ns % SECOND_NS - OVER_NS
        inside = [number for number in self._bins if start_ns <= number * BIN_NS <= end_ns]
        if not inside:
            return 0.0
        span_ns = end_ns - min(inside) * BIN_NS
        return sum(self._bins[number] for number in inside) / max(span_ns / SECOND_NS, 1.0)
