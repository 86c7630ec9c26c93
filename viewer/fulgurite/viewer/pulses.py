"""The light of forward passes on its way along the layers: one after the other, a display of their order.

A pass lights layer l at ``at_s + spread_s * (l + offset) / L``: its heads a little before its FFN block. What
the passes under way reach in one picture is gathered, and hits the nodes at once. Where passes come closer
upon each other than pictures do, those of one sixtieth of a second travel as one, from its end on, each faded
by the time that it waited: a node's light is the same as if it had come alone, up to a sixtieth later. Pure
numpy.

Shape letters: L layers, H heads, E plates.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from fulgurite.viewer.glow import FADE_S

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fulgurite.viewer.glow import Glow

    Floats = NDArray[np.float32]

HEADS_AT, PLATES_AT = 0.25, 0.60  # of the way through a layer
JOINED_PER_S = 60.0  # passes that come more often than this travel together


@dataclass(slots=True)
class Pulse:
    """The display values of one pass.

    Attributes
    ----------
    heads, plates : ndarray of float32, shape (L, H) and (L, E); NaN: no value.
    head_hues, plate_hues : likewise, hues of the push; None: not captured.
    """

    at_s: float
    spread_s: float
    heads: Floats
    plates: Floats
    head_hues: Floats | None = None
    plate_hues: Floats | None = None

    def faded(self, at_s: float) -> Pulse:
        """The same light, begun at a later time."""
        left = np.float32(math.exp((self.at_s - at_s) / FADE_S))
        return replace(self, at_s=at_s, heads=self.heads * left, plates=self.plates * left)

    def join(self, other: Pulse) -> None:
        """Another pass that begins at the same time."""
        self.heads, self.head_hues = _brighter(self.heads, self.head_hues, other.heads, other.head_hues)
        self.plates, self.plate_hues = _brighter(self.plates, self.plate_hues, other.plates, other.plate_hues)


class Pulses:
    """The passes under way."""

    def __init__(self) -> None:
        self._under_way: deque[Pulse] = deque()
        self._times = np.zeros((2, 0))  # when each began, over how long it spreads
        self._reached = np.zeros(
            (2, 0), np.intp
        )  # the first layer of heads, of plates, that each has not lit yet
        self._last_s = -math.inf  # when the last pass came
        self._joined: Pulse | None = None  # what the last passes travel with

    def __len__(self) -> int:
        return len(self._under_way)

    def clear(self) -> None:
        """None is under way."""
        self._under_way.clear()
        self._times, self._reached = self._times[:, :0], self._reached[:, :0]
        self._last_s, self._joined = -math.inf, None

    def add(self, pulse: Pulse) -> None:
        """A pass begins."""
        since_s, self._last_s = pulse.at_s - self._last_s, pulse.at_s
        if not 0.0 < since_s < 1.0 / JOINED_PER_S:
            self._begin(pulse)
            return
        # When they begin follows from when they came, and not from what was drawn in between.
        end_s = (math.floor(pulse.at_s * JOINED_PER_S) + 1) / JOINED_PER_S
        joined, pulse = self._joined, pulse.faded(end_s)
        if joined is None or joined.at_s != end_s or joined.spread_s != pulse.spread_s:
            self._joined = pulse
            self._begin(pulse)
        else:
            joined.join(pulse)

    def _begin(self, pulse: Pulse) -> None:
        self._under_way.append(pulse)
        self._times = np.column_stack([self._times, (pulse.at_s, pulse.spread_s)])
        self._reached = np.column_stack([self._reached, (0, 0)])

    def front(self, now_s: float) -> float | None:
        """How far the pass that is furthest on has come, 0 to 1; None: none is under way."""
        for pulse in self._under_way:
            if now_s >= pulse.at_s and pulse.spread_s > 0.0:
                return min(1.0, (now_s - pulse.at_s) / pulse.spread_s)
        return None

    def advance(self, now_s: float, heads: Glow, plates: Glow) -> None:
        """Light what is reached by `now_s`."""
        if not self._under_way:
            return
        for kind, (glow, offset) in enumerate(((heads, HEADS_AT), (plates, PLATES_AT))):
            begin = self._reached[kind].copy()
            self._reached[kind] = np.maximum(begin, self._arrived(now_s, len(glow.display), offset))
            self._strike(glow, offset, begin, self._reached[kind], plates=kind == 1)
        done = 0
        while done < len(self._under_way) and self._reached[1, done] >= len(self._under_way[done].plates):
            done += 1
        for _ in range(done):
            self._under_way.popleft()
        self._times, self._reached = self._times[:, done:], self._reached[:, done:]

    def _arrived(self, now_s: float, layers: int, offset: float) -> NDArray[np.intp]:
        """The first layer of each pass that its light has not reached at `now_s`."""
        at_s, spread_s = self._times
        progress = (now_s - at_s) / np.where(spread_s > 0.0, spread_s, 1.0) * layers - offset
        reached = np.minimum(np.maximum(np.floor(progress) + 1, 0), layers)
        return np.where(spread_s > 0.0, reached, layers * (now_s >= at_s)).astype(np.intp)

    def _strike(
        self, glow: Glow, offset: float, begin: NDArray[np.intp], end: NDArray[np.intp], *, plates: bool
    ) -> None:
        """Hit the layers `begin` to `end` of each pass.

        A layer that several passes have reached is hit in several rounds; their order is all one (`glow`).
        """
        long = end - begin
        if not long.any():
            return
        who = np.repeat(np.arange(len(long)), long)
        layers = np.arange(len(who)) - np.repeat(np.cumsum(long) - long - begin, long)
        values, pushes = self._gathered(begin, end, plates=plates)
        at_s, spread_s = self._times[:, who]
        due_s = (at_s + spread_s * (layers + offset) / len(glow.display))[:, None]
        order = np.argsort(layers, kind="stable")
        for rows in _rounds(order, layers[order]):
            push = np.nan if pushes is None else pushes[rows]
            glow.hit(_run(layers[rows]), values[rows], due_s[rows], push)

    def _gathered(
        self, begin: NDArray[np.intp], end: NDArray[np.intp], *, plates: bool
    ) -> tuple[Floats, Floats | None]:
        """Values and hues of the layers that each pass has reached, one under the other."""
        spans = zip(self._under_way, begin.tolist(), end.tolist(), strict=True)
        parts = [
            (pulse.plates[low:high], pulse.plate_hues, low, high)
            if plates
            else (pulse.heads[low:high], pulse.head_hues, low, high)
            for pulse, low, high in spans
            if high > low
        ]
        values = np.concatenate([part[0] for part in parts])
        if all(hues is None for _, hues, _, _ in parts):
            return values, None
        pushes = [
            np.full_like(of, np.nan) if hues is None else hues[low:high] for of, hues, low, high in parts
        ]
        return values, np.concatenate(pushes)


def _brighter(
    values: Floats, hues: Floats | None, others: Floats, other_hues: Floats | None
) -> tuple[Floats, Floats | None]:
    """For each node the larger value, with its hue."""
    if hues is None and other_hues is None:
        return np.fmax(values, others), None
    before = np.full_like(values, np.nan) if hues is None else hues
    theirs = np.full_like(values, np.nan) if other_hues is None else other_hues
    taken = (others >= values) | np.isnan(values)
    return np.fmax(values, others), np.where(taken, theirs, before)


def _rounds(order: NDArray[np.intp], layers: NDArray[np.intp]) -> list[NDArray[np.intp]]:
    """`order`, whose `layers` never fall, in as many parts as it takes for each to have a layer once."""
    same = layers[1:] == layers[:-1]
    if not same.any():
        return [order]
    place = np.arange(len(order))
    begins = place.copy()
    begins[1:][same] = 0
    turn = place - np.maximum.accumulate(begins)
    return [order[turn == number] for number in range(int(turn.max()) + 1)]


def _run(layers: NDArray[np.intp]) -> slice | NDArray[np.intp]:
    """Rising layers, as a slice where none is left out: it costs no copy."""
    low, high = int(layers[0]), int(layers[-1]) + 1
    return slice(low, high) if high - low == len(layers) else layers
