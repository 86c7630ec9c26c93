"""The light of nodes over time: each shows its largest recent display value, fading exponentially.

A node's light at time t is ``max over its hits i of display_i * exp(-(t - t_i) / FADE_S)``. Exponentials with
one time constant never cross, so one stored hit per node gives this exactly, in whatever order the hits come.
The fading is display persistence, not a measurement, and the legend says so (`FADES_OVER_S`).

A node is *unmeasured*, and drawn hatched, until its first value, and again when frames keep coming without a
value for it after its light has faded. Pure numpy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from fulgurite.viewer.contribution import texel

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]

FADE_S = 0.28
FADES_OVER_S = 0.8  # the time after which 6 % is left
NEVER_S = -1e6  # the stamp of a node that was never hit, in a texture


class Glow:
    """The lights of a grid of nodes.

    Attributes
    ----------
    display : ndarray of float32
        Display value of the hit that is shown, 0 … 1.
    stamp_s : ndarray of float64
        When it hit.
    push : ndarray of float32
        Hue of the signed push of the same token's contribution, -1 … 1; NaN where it was not captured.
    revision : int
        Rises when something changed.
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.display = np.zeros(shape, np.float32)
        self.push = np.full(shape, np.nan, np.float32)
        self.stamp_s = np.full(shape, -np.inf)
        self.revision = 0
        self._measured_s = np.full(shape, -np.inf)
        self._missing_s = np.full(shape, -np.inf)
        self._hidden = np.zeros(shape, np.bool_)
        self._origin_s = 0.0
        self._texels = np.zeros((*shape, 4), np.float32)
        self._write(slice(None))

    def clear(self) -> None:
        """No light, nothing measured; what is hidden stays hidden."""
        self.display[:] = 0.0
        self.push[:] = np.nan
        for stamps in (self.stamp_s, self._measured_s, self._missing_s):
            stamps[:] = -np.inf
        self._write(slice(None))
        self.revision += 1

    def hide(self, hidden: NDArray[np.bool_] | None) -> None:
        """Leave these nodes out of what is looked at: they keep their light, and are drawn as bare glass."""
        self._hidden[:] = False if hidden is None else hidden
        self._write(slice(None))
        self.revision += 1

    def hit(
        self,
        where: slice | NDArray[np.intp],
        display: Floats,
        at_s: NDArray[np.float64] | float,
        push: Floats | float = np.nan,
    ) -> None:
        """Values arrive at the nodes `where` (of the first axis, each once). NaN: no value for this node.

        A hit brings its own `push` along, so that light and hue are those of one token.
        """
        known = np.isfinite(display)
        with np.errstate(over="ignore", invalid="ignore"):  # of a node that was never hit nothing is left
            left = self.display[where] * np.exp((self.stamp_s[where] - at_s) / FADE_S)
            taken = known & (display >= left)
        self.display[where] = np.where(taken, display, self.display[where])
        self.stamp_s[where] = np.where(taken, at_s, self.stamp_s[where])
        self.push[where] = np.where(taken, push, self.push[where])
        self._measured_s[where] = np.where(
            known, np.maximum(self._measured_s[where], at_s), self._measured_s[where]
        )
        if not known.all():
            missing_s = np.maximum(self._missing_s[where], at_s)
            self._missing_s[where] = np.where(known, self._missing_s[where], missing_s)
        self._write(where)
        self.revision += 1

    def unmeasured(self, where: slice | NDArray[np.intp] = slice(None)) -> NDArray[np.bool_]:
        """Nodes without a value: never measured, or missing in every frame since their light has faded."""
        measured_s = self._measured_s[where]
        with np.errstate(invalid="ignore"):
            gone = self._missing_s[where] > measured_s + FADES_OVER_S
        return np.asarray(gone | (measured_s == -np.inf), np.bool_)

    def light(self, now_s: float) -> Floats:
        """What is shown at `now_s`: the display value, faded."""
        with np.errstate(over="ignore"):
            left = np.exp(np.minimum(0.0, (self.stamp_s - now_s) / FADE_S))
        return np.where(np.isfinite(self.stamp_s), self.display * left, 0.0).astype(np.float32)

    def texture(self, origin_s: float) -> Floats:
        """RGBA texels: display, stamp relative to `origin_s`, state, push. Shape (*shape, 4).

        State is 0 for a measured node, 1 for an unmeasured one, 2 for a hidden one. The array is kept up
        to date in place: copy it to keep it.
        """
        if origin_s != self._origin_s:
            self._origin_s = origin_s
            self._write(slice(None))
        return self._texels

    def _write(self, where: slice | NDArray[np.intp]) -> None:
        texels = self._texels
        texels[where, ..., 0] = self.display[where]
        texels[where, ..., 1] = np.maximum(self.stamp_s[where] - self._origin_s, NEVER_S)
        texels[where, ..., 2] = np.where(self._hidden[where], 2.0, self.unmeasured(where))
        texels[where, ..., 3] = texel(self.push[where])
