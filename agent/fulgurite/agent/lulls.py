"""Lulls of the host's thread: when what is sent can be made ready without holding it up.

Python runs one thread at a time. While the sending thread reduces and encodes, the host's thread waits for
its turn after each call that it makes, hundreds of times a step. In the unembedding, mostly the largest
product of a step, it is outside of Python for long, and behind it waits for its device: that is when the
sender works. Pure: knows no clock.
"""

from __future__ import annotations

from collections import deque
from math import inf
from typing import Final

from fulgurite.agent.rhythm import Rhythm

MOST_S: Final = 0.12
"""So long does what came wait for a lull: viewers play 150 ms behind, and see nothing of it."""
LAST_S: Final = 0.25
"""A host that had a lull within this time is expected to have another."""
LATE_S: Final = 0.001
"""So long after the soonest moment for a lull it is looked whether one has begun: then none has to wake."""
TOGETHER_S: Final = 0.1
"""So old may be what waits for one more step to go with it."""
SLACK: Final = 1.25
SLACK_S: Final = 0.004
SEEN: Final = 4


class Lulls:
    """Of one stream of steps."""

    def __init__(self) -> None:
        self._waits_s: deque[float] = deque(maxlen=SEEN)
        self._rhythm = Rhythm()
        self._last_s = -inf

    def heard(self, lull_s: float) -> None:
        """The last lull began then (monotonic, s)."""
        if lull_s > self._last_s:
            self._last_s = lull_s
            self._rhythm.came(lull_s)

    @property
    def next_s(self) -> float | None:
        """When to look for the next one; None where that cannot be told."""
        expected = self._rhythm.next_s
        return None if expected is None else min(expected[1], expected[0] + LATE_S)

    def joins_by_s(self, came_s: float) -> float | None:
        """When the next lull is to be expected at the latest, where what came at `came_s` may wait for it."""
        expected = self._rhythm.next_s
        return None if expected is None or expected[1] > came_s + TOGETHER_S else expected[1]

    def see(self, lull_s: float, came_s: tuple[float, float]) -> None:
        """The last lull was then, what waits came first at `came_s[0]`, and what was sent before at
        `came_s[1]`: so it is known how long a lull lets itself be waited for, in time or too late."""
        for at_s in came_s:
            if lull_s >= at_s:
                self._waits_s.append(lull_s - at_s)
                return

    @property
    def longest_s(self) -> float:
        """How long to wait for one: somewhat longer than it took of late; 0 where it always took too long."""
        if len(self._waits_s) < SEEN:
            return MOST_S
        if min(self._waits_s) > MOST_S:
            return 0.0
        return min(MOST_S, SLACK * max(self._waits_s) + SLACK_S)
