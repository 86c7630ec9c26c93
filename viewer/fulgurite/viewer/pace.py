"""How often to draw, how much, and how finely: adapts to what a picture was measured to cost. Pure."""

from __future__ import annotations

BUSY_SHARE = 0.8  # of the time, at most; the rest belongs to the feed, the page and the model beside us
WANTED_FPS = 45.0  # pictures that come more seldom leave ornaments out
SMALLEST_SCALE = 0.5
SETTLE = 12  # pictures between two changes, so that a change is judged by its own cost
MOST_PATIENCE = 64
FORGOTTEN = 0.98  # of what a step was measured to save, per round: other load may have been in it
ARCS = (100, 200, 400, 800, 1600)
"""Live arcs over all replicas, by level of detail."""
FIRST_DETAIL = 2

SHED = ("", "no glow around heads", "no glow, plain bolts")
"""What is left out, step by step, before anything that says something: words for the picture."""


class Pace:
    """Time between pictures, what is drawn in one, and the share of the asked size at which it is drawn.

    Where fewer pictures fit than are wanted, there are no more arcs than at first, and ornaments are left out
    (`SHED`). Where even then fewer than `slowest_fps` fit, fewer arcs live, then pictures get smaller. Where
    there is plenty of time, the size that was asked for comes back, then ornaments, then more arcs live.

    Parameters
    ----------
    fastest_fps, slowest_fps : most pictures per second, and how many there are to be at least.

    Attributes
    ----------
    scale : of the width and height that were asked for.
    shed : index into `SHED`.
    detail : index into `ARCS`.
    """

    def __init__(self, *, fastest_fps: float = 30.0, slowest_fps: float = 15.0) -> None:
        self._fastest_fps, self._slowest_fps = fastest_fps, slowest_fps
        self._wanted_s = BUSY_SHARE / min(WANTED_FPS, fastest_fps)
        self._cost_s = 1.0 / fastest_fps * BUSY_SHARE
        self._since = 0
        self.scale = 1.0
        self.shed = 0
        self.detail = FIRST_DETAIL
        self._too_rich = len(ARCS)  # a level of detail that was tried and cost too much
        self._saved_s = [0.0] * len(SHED)  # by each step, as it was measured
        self._before_s: float | None = None  # what a picture cost when the last step was taken
        self._patience = 1  # rounds for which ornaments stay away: longer each time that they did not fit
        self._waited = 0
        self._has_tried = False  # ornaments came back in the last round

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
        return max(1.0 / self._fastest_fps, self._cost_s / BUSY_SHARE)

    def learn(self, cost_s: float, *, held: bool = False) -> bool:
        """One more picture was made; whether `scale`, `shed` or `detail` changed.

        `held`: what is seen is to stay, as in a pause; so no arcs come or go.
        """
        self._cost_s += 0.2 * (min(cost_s, 1.0) - self._cost_s)
        self._since += 1
        if self._since < SETTLE:
            return False
        self._since = 0
        before = self.scale, self.shed, self.detail
        self._judge(held)
        return (self.scale, self.shed, self.detail) != before

    def _judge(self, held: bool) -> None:
        """Whether what was changed last was enough, or too much."""
        if self._before_s is not None:
            self._saved_s[self.shed] = max(0.0, self._before_s - self._cost_s)
            self._before_s = None
        if self._cost_s > self._wanted_s and self.detail > FIRST_DETAIL and not held:
            self._less()
        elif self._cost_s > self._wanted_s and self.shed + 1 < len(SHED):
            self._shed()
        elif self._cost_s > BUSY_SHARE / self._slowest_fps:
            self._coarser() if held else self._less()
        elif self.scale < 1.0 or self.shed:
            self._restore()
        elif self._cost_s < 0.5 * self._wanted_s and self.detail + 1 < self._too_rich and not held:
            self.detail += 1
        else:
            self._has_tried = False

    def _shed(self) -> None:
        self._patience = min(MOST_PATIENCE, 2 * self._patience) if self._has_tried else self._patience
        self._waited, self._has_tried = 0, False
        self._before_s = self._cost_s
        self.shed += 1

    def _less(self) -> None:
        if self.detail:
            self._too_rich = self.detail  # not to be tried again: it would swing
            self.detail -= 1
        else:
            self._coarser()

    def _coarser(self) -> None:
        self.scale = max(SMALLEST_SCALE, self.scale * 0.85)

    def _restore(self) -> None:
        self._waited += 1
        if self.scale < 1.0:
            if self._cost_s < 0.5 * BUSY_SHARE / self._slowest_fps:
                self.scale = min(1.0, self.scale / 0.85)
            return
        self._saved_s[self.shed] *= FORGOTTEN
        whole_s = self._cost_s + self._saved_s[self.shed]
        if self._waited >= self._patience and whole_s < 0.85 * self._wanted_s:
            self._waited, self._has_tried = 0, True
            self.shed -= 1
