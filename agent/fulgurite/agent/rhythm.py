"""When the next tokens are to be expected, so that whoever waits for them need not be woken.

To wake a sleeping thread costs the host's thread a call of the system in every step. A server that decodes
has a steady pace: the sender can sleep until its own time and find the tokens there. Pure: knows no clock.
"""

from __future__ import annotations

from collections import deque
from typing import Final

GAPS: Final = 4
JITTER_S: Final = 0.004
JITTER: Final = 0.25
"""Gaps that differ by more, in seconds and as a share of the longest, are no rhythm."""
LONGEST_S: Final = 0.25
"""Of a gap: a host that is slower pays for a wake, which is little to it."""


class Rhythm:
    """Of one stream of steps."""

    def __init__(self) -> None:
        self._came_s: float | None = None
        self._gaps_s: deque[float] = deque(maxlen=GAPS)

    def came(self, at_s: float) -> None:
        """Tokens came (monotonic, s). The times must not decrease."""
        if self._came_s is not None:
            self._gaps_s.append(at_s - self._came_s)
        self._came_s = at_s

    @property
    def next_s(self) -> tuple[float, float] | None:
        """When the next ones are to be expected, at the earliest and at the latest; None where nothing can be
        told."""
        if self._came_s is None or len(self._gaps_s) < GAPS:
            return None
        least, most = min(self._gaps_s), max(self._gaps_s)
        if most > LONGEST_S or most - least > max(JITTER_S, JITTER * most):
            return None
        return self._came_s + least, self._came_s + most
