"""The offset between an agent's clock and ours, from pings: of the last ones the quickest is believed. Pure.

A word that came back quickly was held up little on either way, so the middle of its journey is when it was
answered, to within half of the journey. A journey that took long says little, and is not averaged in.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Final

REMEMBERED: Final = 16


@dataclass(frozen=True, slots=True)
class Reading:
    """One ping that came back.

    Attributes
    ----------
    round_trip_ns : the offset is off by at most half of it.
    offset_ns : the agent's clock less ours.
    """

    round_trip_ns: int
    offset_ns: int


class ClockGauge:
    """Takes in pings and their answers."""

    def __init__(self) -> None:
        self._under_way: deque[int] = deque(maxlen=REMEMBERED)
        self._readings: deque[Reading] = deque(maxlen=REMEMBERED)

    def sent(self, ping_ns: int) -> None:
        """A ping left at this monotonic time."""
        self._under_way.append(ping_ns)

    def answered(self, ping_ns: int, agent_wall_ns: int, *, now_ns: int, wall_ns: int) -> None:
        """It came back at `now_ns`, which is `wall_ns` here. One that nobody sent says nothing."""
        if ping_ns not in self._under_way:
            return
        self._under_way.remove(ping_ns)
        round_trip_ns = max(0, now_ns - ping_ns)
        self._readings.append(Reading(round_trip_ns, agent_wall_ns - (wall_ns - round_trip_ns // 2)))

    @property
    def best(self) -> Reading | None:
        """The quickest of the last ones; None before the first."""
        return min(self._readings, key=lambda reading: reading.round_trip_ns, default=None)
