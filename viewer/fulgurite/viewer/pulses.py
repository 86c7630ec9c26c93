"""The light of forward passes on its way along the layers: one after the other, a display of their order.

A pass lights layer l at ``at_s + spread_s * (l + offset) / L``: its heads a little before its FFN block.
Heads and plates are columns of one grid, so what a pass reaches from one picture to the next is one run of
it. Where passes come closer upon each other than pictures do, those of one sixtieth of a second travel as
one, from its end on, each faded by the time that it waited: a node's light is the same as if it had come
alone, up to a sixtieth later. Pure numpy.

Shape letters: L layers, H heads, E plates, W = H + E.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import deque
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from fulgurite.viewer.contribution import NOT_CAPTURED, texel
from fulgurite.viewer.glow import FADE_S

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fulgurite.viewer.glow import Glow, Incoming

    Floats = NDArray[np.float32]

HEADS_AT, PLATES_AT = 0.25, 0.60  # of the way through a layer
JOINED_PER_S = 60.0  # passes that come more often than this travel together
_NO_HUE = np.float32(NOT_CAPTURED)


@dataclass(slots=True)
class Pulse:
    """The display values of one pass.

    Attributes
    ----------
    values : ndarray of float32, shape (L * W,): the flattened grid; NaN: no value.
    hues : likewise, hues of the push as they go into a texture; None: none was captured.
    reached : how many rows (of a `_Course`) its light has come to.
    incoming : as the nodes take it; None: it has not come to any, or another has joined since.
    """

    at_s: float
    spread_s: float
    values: Floats
    hues: Floats | None = None
    reached: int = 0
    incoming: Incoming | None = None

    @classmethod
    def of(
        cls,
        at_s: float,
        spread_s: float,
        heads: Floats,
        plates: Floats,
        head_hues: Floats | None = None,
        plate_hues: Floats | None = None,
    ) -> Pulse:
        """A pass by its parts, shape (L, H) and (L, E); NaN in hues, or None: not captured."""
        values = np.concatenate([heads, plates], axis=1).reshape(-1)
        if head_hues is None and plate_hues is None:
            return cls(at_s, spread_s, values)
        hues = [
            np.full_like(part, np.nan) if hue is None else hue
            for part, hue in ((heads, head_hues), (plates, plate_hues))
        ]
        return cls(at_s, spread_s, values, texel(np.concatenate(hues, axis=1).reshape(-1)))

    def faded(self, at_s: float) -> Pulse:
        """The same light, begun at a later time."""
        left = np.float32(math.exp((self.at_s - at_s) / FADE_S))
        return replace(self, at_s=at_s, values=self.values * left)

    def join(self, other: Pulse) -> None:
        """Another pass that begins at the same time: each node has the larger value, with its hue."""
        if self.hues is not None or other.hues is not None:
            mine, theirs = (_NO_HUE if pulse.hues is None else pulse.hues for pulse in (self, other))
            taken = (other.values >= self.values) | np.isnan(self.values)
            self.hues = np.where(taken, theirs, mine)
        np.fmax(self.values, other.values, out=self.values)
        self.incoming = None


class Pulses:
    """The passes under way.

    Parameters
    ----------
    layers, heads, plates : int
        Shape of the grid of nodes: (layers, heads + plates).
    """

    def __init__(self, layers: int, heads: int, plates: int) -> None:
        self._shape = layers, heads, plates
        self._under_way: deque[Pulse] = deque()
        self._courses: dict[float, _Course] = {}  # by the time that a pass spreads over
        self._last_s = -math.inf  # when the last pass came
        self._joined: Pulse | None = None  # what the last passes travel with

    def __len__(self) -> int:
        return len(self._under_way)

    def clear(self) -> None:
        """None is under way."""
        self._under_way.clear()
        self._last_s, self._joined = -math.inf, None

    def add(self, pulse: Pulse) -> None:
        """A pass begins."""
        since_s, self._last_s = pulse.at_s - self._last_s, pulse.at_s
        if not 0.0 < since_s < 1.0 / JOINED_PER_S:
            self._under_way.append(pulse)
            return
        # When they begin follows from when they came, and not from what was drawn in between.
        end_s = (math.floor(pulse.at_s * JOINED_PER_S) + 1) / JOINED_PER_S
        joined, pulse = self._joined, pulse.faded(end_s)
        if joined is None or joined.at_s != end_s or joined.spread_s != pulse.spread_s:
            self._joined = pulse
            self._under_way.append(pulse)
        else:
            joined.join(pulse)

    def front(self, now_s: float) -> float | None:
        """How far the pass that is furthest on has come, 0 to 1; None: none is under way."""
        for pulse in self._under_way:
            if now_s >= pulse.at_s and pulse.spread_s > 0.0:
                return min(1.0, (now_s - pulse.at_s) / pulse.spread_s)
        return None

    def advance(self, now_s: float, glow: Glow) -> None:
        """Light what is reached by `now_s`."""
        for pulse in self._under_way:
            self._travel(pulse, now_s, glow)
        while self._under_way and self._under_way[0].reached == 2 * self._shape[0]:
            self._under_way.popleft()

    def _travel(self, pulse: Pulse, now_s: float, glow: Glow) -> None:
        course = self._courses.get(pulse.spread_s)
        if course is None:
            course = self._courses[pulse.spread_s] = _Course(*self._shape, pulse.spread_s)
        begin, end = pulse.reached, course.reached(now_s - pulse.at_s)
        if end <= begin:
            return
        if pulse.incoming is None or pulse.incoming.epoch != glow.epoch:
            pulse.incoming = glow.ready(pulse.values, pulse.at_s, course.delay_s, course.gain, pulse.hues)
        glow.hit(slice(course.nodes[begin], course.nodes[end]), pulse.incoming)
        pulse.reached = end


class _Course:
    """When a pass that spreads over `spread_s` comes to each node.

    Its rows are what is lit at once: the heads of layer 0, its plates, the heads of layer 1, and so on.

    Attributes
    ----------
    nodes : the first node of each row in the flattened grid, and the number of all.
    delay_s, gain : ndarray of float32, shape (L * W,)
        As `Glow.ready` takes them.
    """

    def __init__(self, layers: int, heads: int, plates: int, spread_s: float) -> None:
        rows_s = (spread_s * (np.arange(layers)[:, None] + [HEADS_AT, PLATES_AT]) / max(1, layers)).ravel()
        wide = np.tile([heads, plates], layers)
        self.nodes: list[int] = [0, *np.cumsum(wide).tolist()]
        self.delay_s = np.repeat(rows_s, wide).astype(np.float32)
        self.gain = np.exp(self.delay_s / np.float32(FADE_S))
        self._rows_s: list[float] = rows_s.tolist()

    def reached(self, since_s: float) -> int:
        """How many rows it has come to, `since_s` after it began."""
        return bisect_right(self._rows_s, since_s)
