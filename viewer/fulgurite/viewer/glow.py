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
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.display = np.zeros(shape, np.float32)
        self.push = np.full(shape, np.nan, np.float32)
        self.stamp_s = np.full(shape, -np.inf)
        self._measured_s = np.full(shape, -np.inf)
        self._missing_s = np.full(shape, -np.inf)
        self.revision = 0

    def clear(self) -> None:
        """No light, nothing measured."""
        self.display[:] = 0.0
        self.push[:] = np.nan
        for stamps in (self.stamp_s, self._measured_s, self._missing_s):
            stamps[:] = -np.inf
        self.revision += 1

    def hit(
        self,
        where: slice,
        display: Floats,
        at_s: NDArray[np.float64] | float,
        push: Floats | float = np.nan,
    ) -> None:
        """Values arrive at the nodes `where` (of the first axis). NaN: there is no value for this node.

        A hit brings its own `push` along, so that light and hue are those of one token.
        """
        at = np.broadcast_to(np.asarray(at_s, np.float64), display.shape)
        known = np.isfinite(display)
        shown, stamps = self.display[where], self.stamp_s[where]
        with np.errstate(over="ignore", invalid="ignore"):
            left = np.where(np.isfinite(stamps), shown * np.exp((stamps - at) / FADE_S), -1.0)
        taken = known & (display >= left)
        shown[taken], stamps[taken] = display[taken], at[taken]
        self.push[where][taken] = np.broadcast_to(np.asarray(push, np.float32), display.shape)[taken]
        np.maximum(self._measured_s[where], at, out=self._measured_s[where], where=known)
        np.maximum(self._missing_s[where], at, out=self._missing_s[where], where=~known)
        self.revision += 1

    def unmeasured(self) -> NDArray[np.bool_]:
        """Nodes without a value: never measured, or missing in every frame since their light has faded."""
        never = ~np.isfinite(self._measured_s)
        with np.errstate(invalid="ignore"):
            return np.asarray(never | (self._missing_s > self._measured_s + FADES_OVER_S), np.bool_)

    def light(self, now_s: float) -> Floats:
        """What is shown at `now_s`: the display value, faded."""
        with np.errstate(over="ignore"):
            left = np.exp(np.minimum(0.0, (self.stamp_s - now_s) / FADE_S))
        return np.where(np.isfinite(self.stamp_s), self.display * left, 0.0).astype(np.float32)

    def texture(self, origin_s: float) -> Floats:
        """RGBA texels: display, stamp relative to `origin_s`, 1 where unmeasured, push. Shape (*shape, 4)."""
        texels = np.zeros((*self.display.shape, 4), np.float32)
        texels[..., 0] = self.display
        texels[..., 1] = np.where(np.isfinite(self.stamp_s), self.stamp_s - origin_s, -1e6)
        texels[..., 2] = self.unmeasured()
        texels[..., 3] = texel(self.push)
        return texels
