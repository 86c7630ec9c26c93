"""How often to draw, how much, and how finely: adapts to what a picture was measured to cost. Pure."""

from __future__ import annotations

FASTEST_FPS = 30.0
SLOWEST_FPS = 15.0
BUSY_SHARE = 0.8  # of the time, at most; the rest belongs to the feed, the page and the model beside us
SMALLEST_SCALE = 0.5
SETTLE = 12  # pictures between two changes, so that a change is judged by its own cost
ARCS = (100, 200, 400, 800, 1600)
"""Live arcs over all replicas, by level of detail."""
FIRST_DETAIL = 2


class Pace:
    """Time between pictures, the live arcs in one, and the share of the asked size at which it is drawn.

    Where a picture costs so much that fewer than `SLOWEST_FPS` fit, first fewer arcs live, then pictures get
    smaller; where there is plenty of time, larger again up to the size that was asked for, then richer.

    Attributes
    ----------
    scale : of the width and height that were asked for.
    detail : index into `ARCS`.
    """

    def __init__(self) -> None:
        self._cost_s = 1.0 / FASTEST_FPS * BUSY_SHARE
        self._since = 0
        self.scale = 1.0
        self.detail = FIRST_DETAIL
        self._too_rich = len(ARCS)  # a level of detail that was tried and cost too much

    @property
    def cost_s(self) -> float:
        """What a picture costs, over the last few."""
        return self._cost_s

    @property
    def arcs(self) -> int:
        """How many arcs may live."""
        return ARCS[self.detail]

    @property
    def period_s(self) -> float:
        """Time from one picture to the next."""
        return max(1.0 / FASTEST_FPS, self._cost_s / BUSY_SHARE)

    def learn(self, cost_s: float) -> bool:
        """One more picture was made; whether `scale` or `detail` changed."""
        self._cost_s += 0.2 * (min(cost_s, 1.0) - self._cost_s)
        self._since += 1
        if self._since < SETTLE:
            return False
        before = self.scale, self.detail
        if self._cost_s > BUSY_SHARE / SLOWEST_FPS:
            self._less()
        elif self._cost_s < 0.5 * BUSY_SHARE / FASTEST_FPS:
            self._more()
        if (self.scale, self.detail) == before:
            return False
        self._since = 0
        return True

    def _less(self) -> None:
        if self.detail:
            self._too_rich = self.detail  # not to be tried again: it would swing
            self.detail -= 1
        else:
            self.scale = max(SMALLEST_SCALE, self.scale * 0.85)

    def _more(self) -> None:
        if self.scale < 1.0:
            self.scale = min(1.0, self.scale / 0.85)
        elif self.detail + 1 < self._too_rich:
            self.detail += 1
