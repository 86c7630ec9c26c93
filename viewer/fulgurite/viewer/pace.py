"""How often to draw, and how finely: adapts to what a picture was measured to cost. Pure."""

from __future__ import annotations

FASTEST_FPS = 30.0
SLOWEST_FPS = 15.0
BUSY_SHARE = 0.8  # of the time, at most; the rest belongs to the feed, the page and the model beside us
SMALLEST_SCALE = 0.5
SETTLE = 12  # pictures between two changes of size, so that a change is judged by its own cost


class Pace:
    """Time between pictures, and the share of the asked size at which they are drawn.

    Where a picture costs so much that fewer than `SLOWEST_FPS` fit, pictures get smaller; where there is
    plenty of time, larger again, up to the size that was asked for.
    """

    def __init__(self) -> None:
        self._cost_s = 1.0 / FASTEST_FPS * BUSY_SHARE
        self._since = 0
        self.scale = 1.0

    @property
    def cost_s(self) -> float:
        """What a picture costs, over the last few."""
        return self._cost_s

    @property
    def period_s(self) -> float:
        """Time from one picture to the next."""
        return max(1.0 / FASTEST_FPS, self._cost_s / BUSY_SHARE)

    def learn(self, cost_s: float) -> bool:
        """One more picture was made; whether `scale` changed."""
        self._cost_s += 0.2 * (min(cost_s, 1.0) - self._cost_s)
        self._since += 1
        if self._since < SETTLE:
            return False
        before = self.scale
        if self._cost_s > BUSY_SHARE / SLOWEST_FPS:
            self.scale = max(SMALLEST_SCALE, self.scale * 0.85)
        elif self._cost_s < 0.5 * BUSY_SHARE / FASTEST_FPS:
            self.scale = min(1.0, self.scale / 0.85)
        if self.scale != before:
            self._since = 0
        return self.scale != before
