"""Which level for which step: demand, rate and budget. Pure: knows no clock, thread or tensor."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, floor, log2, nan

from fulgurite.wire.channels import LEVELS, Level

_FEWEST_STEPS = 8  # of a window that is judged
_WINDOWS_OVER = 3  # on end, before it is more than an outlier
_KEPT = 0.8  # of what was spent, from window to window
_ROOM = 1.5  # that must be left before `deep` comes more often again


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

    Attributes
    ----------
    level : the level in force.
    """

    def __init__(self, ceiling: Level) -> None:
        self.ceiling: Level = ceiling
        self._local: Level | None = None
        self._remote: Level | None = None
        self._cap: Level = ceiling
        self._paused = False
        self._heard: str | None = None
        self.level: Level = ceiling

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

    def _settle(self) -> None:
        asked = self._local if self._local is not None else self._remote
        wanted = lower(self._cap, asked if asked is not None else self.ceiling)
        self.level = "off" if self._paused else wanted


class DeepRate:
    """The share of steps at `deep`: what was asked for locally, else remotely, halved as often as the budget
    makes it.

    Parameters
    ----------
    own : what was asked for locally.
    """

    MOST_HALVINGS = 8

    def __init__(self, own: float) -> None:
        self._own = self._asked = own
        self._halvings = self._times_too_much = 0

    @property
    def value(self) -> float:
        """In force."""
        return self._asked / (1 << self._halvings)

    @property
    def is_lowered(self) -> bool:
        """Whether the budget made it less than what was asked for."""
        return self._halvings > 0

    def hear(self, asked: float | None) -> None:
        """What the remote side asks for; None: nothing."""
        self._asked = self._own if asked is None else asked

    def restore(self) -> None:
        """As often as it was asked for, until the budget is asked again."""
        self._halvings = self._times_too_much = 0

    def fits(self, budget: Budget, level: Level) -> bool:
        """As `fit`, of what a budget allows, asked while `level` is in force: what `deep` took once is no
        reason to go down from another level."""
        return level != "deep" or self.fit(budget.affordable())

    def said(self, budget: Budget) -> str:
        """A line for the log, where it is lowered."""
        limit, every = 100 * (budget.limit or 0.0), 1 / self.value
        return (
            f"the budget of {limit:.1f} % of step time does not bear all that was asked for at deep: "
            f"1 step in {every:.0f} is captured at deep, more or less as steps allow"
        )

    def fit(self, affordable: float) -> bool:
        """Go down to what the budget allows, or up again where that leaves room; False where even the rarest
        stays too much."""
        wanted = self._fewest(affordable)
        if wanted < self._halvings:
            wanted = min(self._halvings, self._fewest(affordable / _ROOM))
        self._times_too_much = self._times_too_much + 1 if wanted > self.MOST_HALVINGS else 0
        self._halvings = min(wanted, self.MOST_HALVINGS)
        return self._times_too_much < _WINDOWS_OVER

    def _fewest(self, affordable: float) -> int:
        """Halvings after which the rate is at most that."""
        if affordable >= self._asked:
            return 0
        most = self.MOST_HALVINGS + 1
        return most if affordable <= 0.0 else min(most, ceil(log2(self._asked / affordable)))


@dataclass(slots=True)
class _Spent:
    """Time and number of steps; `own_ns` of it was ours."""

    steps: float = 0
    own_ns: float = 0
    step_ns: float = 0

    def with_(self, other: _Spent) -> _Spent:
        return _Spent(self.steps + other.steps, self.own_ns + other.own_ns, self.step_ns + other.step_ns)

    def fade(self) -> None:
        self.steps *= _KEPT
        self.own_ns *= _KEPT
        self.step_ns *= _KEPT

    @property
    def own_of_step(self) -> float:
        return self.own_ns / self.steps if self.steps else 0.0


class Budget:
    """Our own share of step time over a window, and whether it stays over what was allowed.

    Parameters
    ----------
    limit : float or None
        Allowed share of step time; None never objects.
    window_s : float
        Length of a window, seconds of wall clock.
    """

    def __init__(self, limit: float | None, window_s: float = 1.0) -> None:
        self.limit = limit
        self.window_s = window_s
        self._since_ns = 0
        self._windows_over = 0
        self._now, self._now_deep = _Spent(), _Spent()  # of this window: all but `deep`, and `deep`
        self._usual, self._deep = _Spent(), _Spent()  # of those before it, which count less and less

    def spend(self, own_ns: int, step_ns: int, *, is_deep: bool = False) -> None:
        """One step took `step_ns` in all, of which `own_ns` were ours."""
        of = self._now_deep if is_deep else self._now
        of.steps += step_ns > 0  # what is spent besides belongs to a step that is counted
        of.own_ns += own_ns
        of.step_ns += step_ns

    def is_due(self, now_ns: int) -> bool:
        """Whether a window has passed, or the first one is to begin."""
        return not self._since_ns or now_ns - self._since_ns >= self.window_s * 1e9

    def verdict(self, now_ns: int) -> tuple[float, bool] | None:
        """(our share, whether it was over the limit in several windows on end, steps at `deep` left out) when
        a window has passed, else None. Opens the next window."""
        if self._since_ns == 0:
            self._since_ns = now_ns
        if not self.is_due(now_ns):
            return None
        plain = self._now
        spent = plain.with_(self._now_deep)
        ratio = spent.own_ns / spent.step_ns if spent.step_ns else nan
        own = plain.own_of_step * spent.steps
        if spent.steps >= _FEWEST_STEPS:
            is_over = self.limit is not None and own > self.limit * spent.step_ns
            self._windows_over = self._windows_over + 1 if is_over else 0
        over = self._windows_over >= _WINDOWS_OVER
        self._windows_over %= _WINDOWS_OVER
        self._usual, self._deep = self._usual.with_(plain), self._deep.with_(self._now_deep)
        self._now, self._now_deep = _Spent(), _Spent()
        self._usual.fade()
        self._deep.fade()
        self._since_ns = now_ns
        return ratio, over

    def affordable(self) -> float:
        """The share of steps that may be at `deep`, 0 to 1, by what steps took of late."""
        usual, deep = self._usual.with_(self._now), self._deep.with_(self._now_deep)
        more = deep.own_of_step - usual.own_of_step
        if self.limit is None or more <= 0.0 or self.limit >= 1.0:
            return 1.0
        others_ns = usual.step_ns + deep.step_ns - usual.own_ns - deep.own_ns
        bearable = others_ns / (usual.steps + deep.steps) * self.limit / (1.0 - self.limit)
        return min(1.0, max(0.0, (bearable - usual.own_of_step) / more))
