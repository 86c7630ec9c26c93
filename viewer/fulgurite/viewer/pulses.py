"""The light of forward passes on its way along the layers: one after the other, a display of their order.

A pass lights layer l at ``at_s + spread_s * (l + offset) / L``: its heads a little before its FFN block. What
the passes under way reach in one picture is gathered, and hits the nodes at once. Pure numpy.

Shape letters: L layers, H heads, E plates.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fulgurite.viewer.glow import Glow

    Floats = NDArray[np.float32]

HEADS_AT, PLATES_AT = 0.25, 0.60  # of the way through a layer


@dataclass(slots=True)
class Pulse:
    """The display values of one pass.

    Attributes
    ----------
    heads, plates : ndarray of float32, shape (L, H) and (L, E); NaN: no value.
    head_hues, plate_hues : likewise, hues of the push; None: not captured.
    reached : first layer of the heads, and of the plates, that it has not lit yet.
    """

    at_s: float
    spread_s: float
    heads: Floats
    plates: Floats
    head_hues: Floats | None = None
    plate_hues: Floats | None = None
    heads_reached: int = 0
    plates_reached: int = 0

    def arrived(self, now_s: float, offset: float) -> int:
        """The first layer that the light has not reached at `now_s`."""
        layers = len(self.heads)
        if self.spread_s <= 0.0:
            return layers if now_s >= self.at_s else 0
        progress = (now_s - self.at_s) / self.spread_s * layers - offset
        return min(layers, max(0, math.floor(progress) + 1))


class Pulses:
    """The passes under way."""

    def __init__(self) -> None:
        self._under_way: deque[Pulse] = deque()

    def __len__(self) -> int:
        return len(self._under_way)

    def clear(self) -> None:
        """None is under way."""
        self._under_way.clear()

    def add(self, pulse: Pulse) -> None:
        """A pass begins."""
        self._under_way.append(pulse)

    def front(self, now_s: float) -> float | None:
        """How far the pass that is furthest on has come, 0 to 1; None: none is under way."""
        for pulse in self._under_way:
            if now_s >= pulse.at_s and pulse.spread_s > 0.0:
                return min(1.0, (now_s - pulse.at_s) / pulse.spread_s)
        return None

    def advance(self, now_s: float, heads: Glow, plates: Glow) -> None:
        """Light what is reached by `now_s`."""
        on_heads, on_plates = _Front(heads, HEADS_AT), _Front(plates, PLATES_AT)
        for pulse in self._under_way:
            end = max(pulse.heads_reached, pulse.arrived(now_s, HEADS_AT))
            on_heads.reach(pulse, pulse.heads, pulse.head_hues, pulse.heads_reached, end)
            pulse.heads_reached = end
            end = max(pulse.plates_reached, pulse.arrived(now_s, PLATES_AT))
            on_plates.reach(pulse, pulse.plates, pulse.plate_hues, pulse.plates_reached, end)
            pulse.plates_reached = end
        on_heads.strike()
        on_plates.strike()
        while self._under_way and self._under_way[0].plates_reached >= len(self._under_way[0].plates):
            self._under_way.popleft()


class _Front:
    """Gathers the layers that passes have reached, and hits their nodes together.

    A layer that several passes have reached is hit in several rounds; their order does not matter (`glow`).
    """

    def __init__(self, glow: Glow, offset: float) -> None:
        self._glow = glow
        self._offset = offset
        self._rounds: list[list[_Span]] = []

    def reach(self, pulse: Pulse, values: Floats, hues: Floats | None, begin: int, end: int) -> None:
        if end <= begin:
            return
        span = _Span(pulse, values, hues, begin, end)
        for spans in self._rounds:
            if end <= spans[-1].begin:  # passes come in order: a later one is behind
                spans.append(span)
                return
        self._rounds.append([span])

    def strike(self) -> None:
        for spans in self._rounds:
            self._hit(spans)

    def _hit(self, spans: list[_Span]) -> None:
        every = np.arange(len(self._glow.display))
        layers = np.concatenate([every[s.begin : s.end] for s in spans])
        long = [s.end - s.begin for s in spans]
        at_s = np.repeat([s.pulse.at_s for s in spans], long)
        spread_s = np.repeat([s.pulse.spread_s for s in spans], long)
        pushes: Floats | float = np.nan
        if any(s.hues is not None for s in spans):
            pushes = np.concatenate([s.pushes for s in spans])
        self._glow.hit(
            layers,
            np.concatenate([s.values[s.begin : s.end] for s in spans]),
            (at_s + spread_s * (layers + self._offset) / len(every))[:, None],
            pushes,
        )


class _Span(NamedTuple):
    """Layers `begin` to `end` of one pass."""

    pulse: Pulse
    values: Floats
    hues: Floats | None
    begin: int
    end: int

    @property
    def pushes(self) -> Floats:
        if self.hues is not None:
            return self.hues[self.begin : self.end]
        return np.full_like(self.values[self.begin : self.end], np.nan)
