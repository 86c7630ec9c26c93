"""The light of nodes over time: each shows its largest recent display value, fading exponentially.

A node's light at time t is ``max over its hits i of display_i * exp(-(t - t_i) / FADE_S)``. Exponentials with
one time constant never cross, so one stored hit per node gives this exactly, in whatever order the hits come.
The fading is display persistence, not a measurement, and the legend says so (`FADES_OVER_S`).

A node is *unmeasured*, and drawn hatched, until its first value, and again when frames keep coming without a
value for it after its light has faded. Pure numpy.

A hit changes the texels themselves, which are the memory that the GPU is sent; the fading is the shader's. So
a picture costs what arrived since the last one, and not what is lit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fulgurite.viewer.contribution import NOT_CAPTURED

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]

FADE_S = 0.28
FADES_OVER_S = 0.8  # the time after which 6 % is left
NEVER_S = -1e6  # the stamp of a node that was never hit, in a texture
_REACH_S = 20.0  # lights are compared as of one time, moved on so often that no exponential overflows
_MEASURED, _UNMEASURED, _HIDDEN = 0.0, 1.0, 2.0


@dataclass(frozen=True, slots=True)
class Incoming:
    """Values on their way to the nodes of a `Glow`, reckoned once for all of them.

    Attributes
    ----------
    epoch : of use as long as this is `Glow.epoch`.
    level : ndarray of float32, shape (n,)
        Their light, reckoned to the time as of which lights are compared.
    hits : ndarray of complex64, shape (n,)
        Display value and stamp, as they lie side by side in a texel: they are copied as one.
    hues : ndarray of float32, shape (n,), as in a texel; None: none was captured.
    known : ndarray of bool, shape (n,): which have a value; None: all.
    """

    epoch: int
    level: Floats
    hits: NDArray[np.complex64]
    hues: Floats | None
    known: NDArray[np.bool_] | None


class Glow:
    """The lights of a grid of nodes. Where nodes are named by a slice, it is one of the flattened grid.

    Attributes
    ----------
    texels : ndarray of float32, shape (*shape, 4)
        Display value of the hit that is shown (0 … 1), when it hit (seconds since the origin), state (0:
        measured, 1: unmeasured, 2: hidden), and the hue of the signed push of the same token's contribution
        (-1 … 1, or `contribution.NOT_CAPTURED`). Changed in place.
    revision : int
        Rises when something changed.
    epoch : int
        Rises when what is `Incoming` must be reckoned again.
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = shape
        self.texels = np.zeros((*shape, 4), np.float32)
        self._display, self._stamp, self._state, self._hue = self.texels.reshape(-1, 4).T
        self._hits = self.texels.reshape(-1, 4).view(np.complex64)[:, 0]  # display and stamp
        nodes = len(self._display)
        self._level = np.zeros(nodes, np.float32)  # the light of each node, reckoned to `_level_s`
        self._measured = np.zeros(nodes, np.float32)  # when it had a value last, since the origin
        self._missing = np.zeros(nodes, np.float32)  # when it had none
        self._hidden = np.zeros(nodes, np.bool_)
        self._origin_s = 0.0
        self.revision = self.epoch = 0
        self.clear()

    def clear(self) -> None:
        """No light, nothing measured; what is hidden stays hidden."""
        self._level[:], self._level_s = 0.0, 0.0
        self._display[:], self._stamp[:], self._hue[:] = 0.0, NEVER_S, NOT_CAPTURED
        self._measured[:] = self._missing[:] = -np.inf
        self._is_settled = self._has_missing = self._has_hues = False  # settled: every node had a value once
        self._tell(slice(None))
        self.epoch += 1
        self.revision += 1

    def hide(self, hidden: NDArray[np.bool_]) -> None:
        """Leave these nodes out of what is looked at: they keep their light, and are drawn as bare glass."""
        self._hidden[:] = hidden.ravel()
        self._tell(slice(None))
        self.revision += 1

    def move_origin(self, origin_s: float) -> None:
        """From now on stamps are relative to `origin_s`: float32 cannot tell UNIX times a minute apart."""
        if origin_s == self._origin_s:
            return
        later_s, self._origin_s = origin_s - self._origin_s, origin_s
        for stamps in (self._stamp, self._measured, self._missing):
            np.subtract(stamps, np.float32(later_s), out=stamps)
        np.maximum(self._stamp, NEVER_S, out=self._stamp)
        self.epoch += 1
        self.revision += 1

    def ready(
        self, values: Floats, at_s: float, delay_s: Floats, gain: Floats, hues: Floats | None = None
    ) -> Incoming:
        """Values that arrive at the nodes, each `delay_s` after `at_s`, as `hit` takes them.

        Parameters
        ----------
        values, delay_s : ndarray of float32, shape (n,), of the flattened grid
            Display values; NaN: no value for this node.
        gain : ndarray of float32, shape (n,)
            ``exp(delay_s / FADE_S)``, which is the same for many.
        hues : ndarray of float32, shape (n,)
            As in `texels`: a hit brings its own along, so that light and hue are those of one token.
        """
        if at_s - self._level_s > _REACH_S:
            self._move_level(at_s)
        hits = np.empty(len(values), np.complex64)
        hits.real, hits.imag = values, delay_s
        hits.imag += np.float32(at_s - self._origin_s)
        level = values * gain
        level *= np.float32(math.exp((at_s - self._level_s) / FADE_S))
        known = np.isfinite(values)
        return Incoming(self.epoch, level, hits, hues, None if known.all() else known)

    def hit(self, nodes: slice, incoming: Incoming) -> None:
        """Values arrive at some nodes."""
        level, before, hits = incoming.level[nodes], self._level[nodes], incoming.hits[nodes]
        taken = level >= before  # NaN is not
        np.copyto(before, level, where=taken)
        np.copyto(self._hits[nodes], hits, where=taken)
        if self._has_hues or incoming.hues is not None:
            self._has_hues = True
            hues = NOT_CAPTURED if incoming.hues is None else incoming.hues[nodes]
            np.copyto(self._hue[nodes], hues, where=taken)
        self._note(nodes, hits.imag, None if incoming.known is None else incoming.known[nodes])
        self.revision += 1

    def _move_level(self, at_s: float) -> None:
        """Compare lights as they were at `at_s`."""
        self._level *= np.float32(math.exp((self._level_s - at_s) / FADE_S))
        self._level_s = at_s
        self.epoch += 1

    def _note(self, nodes: slice, stamp: Floats, known: NDArray[np.bool_] | None) -> None:
        """Which nodes had a value (None: all of them), and which had none."""
        measured = self._measured[nodes]
        if known is None:
            np.maximum(measured, stamp, out=measured)
        else:
            missing = self._missing[nodes]
            np.maximum(measured, stamp, out=measured, where=known)
            np.maximum(missing, stamp, out=missing, where=~known)
            self._has_missing = True
        if self._has_missing or not self._is_settled:
            self._tell(nodes)
            self._is_settled = not self._has_missing and bool(np.isfinite(self._measured).all())

    def _tell(self, nodes: slice) -> None:
        """Write the state of these nodes."""
        unmeasured = np.where(self._is_unmeasured(nodes), _UNMEASURED, _MEASURED)
        self._state[nodes] = np.where(self._hidden[nodes], _HIDDEN, unmeasured)

    def _is_unmeasured(self, nodes: slice) -> NDArray[np.bool_]:
        measured = self._measured[nodes]
        return np.asarray((measured == -np.inf) | (self._missing[nodes] > measured + FADES_OVER_S), np.bool_)

    # for who looks

    def columns(self, first: int, last: int) -> Lights:
        """A part of the grid, to look at."""
        return Lights(self, slice(first, last))

    def unmeasured(self) -> NDArray[np.bool_]:
        """Nodes without a value: never measured, or missing in every frame since their light has faded."""
        return self._is_unmeasured(slice(None)).reshape(self.shape)

    def light(self, now_s: float) -> Floats:
        """What is shown at `now_s`: the display value, faded."""
        with np.errstate(over="ignore", invalid="ignore"):
            left = self._level * np.exp((self._level_s - now_s) / FADE_S)
        return np.asarray(np.fmin(left, self._display), np.float32).reshape(self.shape)


class Lights:
    """Some columns of a `Glow`, to look at.

    Attributes
    ----------
    texels, display, stamp, hue : ndarray of float32
        As `Glow.texels`, and three of its channels.
    """

    def __init__(self, glow: Glow, columns: slice) -> None:
        self._glow, self._columns = glow, columns
        self.texels = glow.texels[:, columns]
        self.display, self.stamp, _, self.hue = np.moveaxis(self.texels, -1, 0)

    def unmeasured(self) -> NDArray[np.bool_]:
        """Nodes without a value."""
        return self._glow.unmeasured()[:, self._columns]

    def light(self, now_s: float) -> Floats:
        """What is shown at `now_s`."""
        return self._glow.light(now_s)[:, self._columns]
