"""Which level for which step: demand, rate and budget. Pure: knows no clock, thread or tensor."""

from __future__ import annotations

from dataclasses import dataclass
from math import floor, nan

from fulgurite.wire.channels import LEVELS, Level


def lower(first: Level, second: Level) -> Level:
    """The lower of two levels."""
    return first if LEVELS.index(first) <= LEVELS.index(second) else second


def is_sampled(step: int, ratio: float) -> bool:
    """Whether `step` is one of the evenly spread share `ratio` of all steps; 1.0 takes every one, 0.0
    none."""
    return floor((step + 1) * ratio) > floor(step * ratio)


def level_of_step(step: int, level: Level, deep_ratio: float) -> Level:
    """The level at which this step is captured: `deep` only for the sampled share, `heads` for the rest."""
    if level == "deep" and not is_sampled(step, deep_ratio):
        return "heads"
    return level


class Demand:
    """The level in force: what was asked for locally, else remotely, never above the ceiling or the budget's
    cap.

    Parameters
    ----------
    ceiling : Level
        The level at attachment; its probes are what exists.
    """

    def __init__(self, ceiling: Level) -> None:
        self.ceiling: Level = ceiling
        self._local: Level | None = None
        self._remote: Level | None = None
        self._cap: Level = ceiling
        self._paused = False
        self._heard: str | None = None
        self._level: Level = ceiling

    def ask(self, level: Level) -> None:
        """A local call: from now on it beats the remote side, and lifts what the budget took away."""
        if LEVELS.index(level) > LEVELS.index(self.ceiling):
            raise ValueError(
                f"level {level!r} is above the ceiling {self.ceiling!r} of this attachment: "
                f"instrument it with level={level!r}"
            )
        self._local = level
        self._cap = self.ceiling
        self._settle()

    def hear(self, wanted: str | None) -> None:
        """What the remote side asks for; above the ceiling it is refused, which leaves the ceiling."""
        if wanted == self._heard:
            return
        self._heard = wanted
        known: Level | None = next((level for level in LEVELS if level == wanted), None)
        self._remote = None if known is None else lower(known, self.ceiling)
        self._settle()

    def pause(self) -> None:
        """Nothing until `resume`."""
        self._paused = True
        self._settle()

    def resume(self) -> None:
        """Undo `pause`."""
        self._paused = False
        self._settle()

    def degrade(self) -> Level | None:
        """Go down one level for the budget's sake, never below ``pulse``; the new level, None where there is
        none."""
        now = self.level
        if LEVELS.index(now) <= LEVELS.index("pulse"):
            return None
        self._cap = LEVELS[LEVELS.index(now) - 1]
        self._settle()
        return self._cap

    @property
    def level(self) -> Level:
        """The level in force."""
        return self._level

    def _settle(self) -> None:
        asked = self._local if self._local is not None else self._remote
        wanted = lower(self._cap, asked if asked is not None else self.ceiling)
        self._level = "off" if self._paused else wanted


@dataclass(slots=True)
class Budget:
    """Our own share of step time over a window, and whether it is over what was allowed.

    Parameters
    ----------
    limit : float or None
        Allowed share of step time; None never objects.
    window_s : float
        Length of a window, seconds of wall clock.
    """

    limit: float | None
    window_s: float = 1.0
    _own_ns: int = 0
    _step_ns: int = 0
    _since_ns: int = 0
    _steps: int = 0

    def spend(self, own_ns: int, step_ns: int) -> None:
        """One step took `step_ns` in all, of which `own_ns` were ours."""
        self._own_ns += own_ns
        self._step_ns += step_ns
        self._steps += 1

    def verdict(self, now_ns: int) -> tuple[float, bool] | None:
        """(our share, whether it is over the limit) when a window has passed, else None. Opens the next
        window."""
        if self._since_ns == 0:
            self._since_ns = now_ns
        if now_ns - self._since_ns < self.window_s * 1e9:
            return None
        ratio = self._own_ns / self._step_ns if self._step_ns else nan
        over = self.limit is not None and self._steps >= 8 and ratio > self.limit
        self._own_ns = self._step_ns = self._steps = 0
        self._since_ns = now_ns
        return ratio, over
