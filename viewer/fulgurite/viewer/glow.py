"""The light of nodes over time: each shows its largest recent display value, fading exponentially.

A node's light at time t is ``max over its hits i of display_i * exp(-(t - t_i) / FADE_S)``. Exponentials with
one time constant never cross, so one stored hit per node gives this exactly, in whatever order the hits come.
The fading is display persistence, not a measurement, and the legend says so (`FADES_OVER_S`).

A node is *unmeasured*, and drawn hatched, until its first value, and again when frames keep coming without a
value for it after its light has faded. Pure numpy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from fulgurite.viewer.contribution import texel

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]

FADE_S = 0.28
FADES_OVER_S = 0.8  # the time after which 6 % is left
NEVER_S = -1e6  # the stamp of a node that was never hit, in a texture
_REACH_S = 20.0  # lights are compared as of one time, moved on so often that no exponential overflows
_LIGHT, _STATE, _PUSH = 1, 2, 4
_EVERY = _LIGHT | _STATE | _PUSH


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
        self._level = np.zeros(shape, np.float32)  # the light of each node, reckoned to `_level_s`
        self._level_s = 0.0
        self._measured_s = np.full(shape, -np.inf)
        row = (shape[0], *(1,) * (len(shape) - 1))
        self._whole_s = np.full(row, -np.inf)  # when all of a row had a value
        self._missing_s = np.full(shape, -np.inf)
        self._has_missing = self._has_push = False  # since it was cleared
        self._hidden = np.zeros(shape, np.bool_)
        self._origin_s = 0.0
        self._texels = np.zeros((*shape, 4), np.float32)
        self._stale = _EVERY  # channels of the texels that are to be written

    def clear(self) -> None:
        """No light, nothing measured; what is hidden stays hidden."""
        self.display[:] = 0.0
        self.push[:] = np.nan
        self._level[:], self._level_s = 0.0, 0.0
        for stamps in (self.stamp_s, self._measured_s, self._whole_s, self._missing_s):
            stamps[:] = -np.inf
        self._has_missing = self._has_push = False
        self._stale = _EVERY
        self.revision += 1

    def hide(self, hidden: NDArray[np.bool_] | None) -> None:
        """Leave these nodes out of what is looked at: they keep their light, and are drawn as bare glass."""
        self._hidden[:] = False if hidden is None else hidden
        self._stale |= _STATE
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
        self._move_level(float(np.max(at_s)))
        level = display * np.exp((at_s - self._level_s) / FADE_S, dtype=np.float64).astype(np.float32)
        taken = level >= self._level[where]  # NaN is not
        _put(self._level, where, level, taken)
        _put(self.display, where, display, taken)
        _put(self.stamp_s, where, at_s, taken)
        if self._has_push or not isinstance(push, float):
            _put(self.push, where, push, taken)
            self._has_push = True
            self._stale |= _PUSH
        self._note(where, np.isfinite(display), at_s)
        self._stale |= _LIGHT
        self.revision += 1

    def _move_level(self, at_s: float) -> None:
        """Compare lights as they were at a time close to `at_s`."""
        late_s = at_s - self._level_s
        if late_s > _REACH_S:
            with np.errstate(under="ignore"):
                self._level *= np.float32(np.exp(-late_s / FADE_S))
            self._level_s = at_s

    def _note(
        self, where: slice | NDArray[np.intp], known: NDArray[np.bool_], at_s: NDArray[np.float64] | float
    ) -> None:
        """Which nodes had a value, and which had none."""
        before = self._whole_s[where]
        if known.all():
            if self._has_missing or not np.isfinite(before).all():
                self._stale |= _STATE
            self._whole_s[where] = np.maximum(before, at_s)
            return
        _put(self._measured_s, where, np.maximum(self._measured_s[where], at_s), known)
        _put(self._missing_s, where, np.maximum(self._missing_s[where], at_s), ~known)
        self._has_missing = True
        self._stale |= _STATE

    def unmeasured(self, where: slice | NDArray[np.intp] = slice(None)) -> NDArray[np.bool_]:
        """Nodes without a value: never measured, or missing in every frame since their light has faded."""
        measured_s = np.maximum(self._measured_s[where], self._whole_s[where])
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

        State is 0 for a measured node, 1 for an unmeasured one, 2 for a hidden one. The array is filled
        in place: copy it to keep it.
        """
        texels, stale = self._texels, self._stale
        if stale & _LIGHT or origin_s != self._origin_s:
            texels[..., 0] = self.display
            np.maximum(self.stamp_s - origin_s, NEVER_S, out=texels[..., 1], casting="same_kind")
        if stale & _STATE:
            texels[..., 2] = np.where(self._hidden, 2.0, self.unmeasured())
        if stale & _PUSH:
            texels[..., 3] = texel(self.push)
        self._origin_s, self._stale = origin_s, 0
        return texels


def _put(array: NDArray[Any], where: slice | NDArray[np.intp], values: Any, taken: NDArray[np.bool_]) -> None:
    """New `values` for those of the rows `where` that are `taken`."""
    array[where] = np.where(taken, values, array[where])  # a masked copy takes four times as long
