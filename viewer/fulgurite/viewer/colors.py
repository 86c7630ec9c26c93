"""From values to colours: one monotone display function per node kind, one colour map, one palette.

The display function maps a measured value to 0 (unlit) … 1 (fully lit): logarithmic between the two ends of
the stream's own `Scale`, clipped, since write norms spread over decades. Nodes and the colour bar look up the
same table (`node_colors`), which is inferno from 0.25 to 0.97, laid over the cold blue of unlit glass at the
low end; its lightness rises all the way.

Requests are told apart by the colours of Okabe and Ito, chosen to stay apart for colour-blind eyes.

References
----------
M. Okabe, K. Ito, "Color Universal Design", 2008. Inferno: S. van der Walt, N. Smith, 2015 (polynomial fit).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from fulgurite.wire.frame import Scale

    Floats = NDArray[np.float32]

COLORS = 256
INFERNO_FROM, INFERNO_TO = 0.25, 0.97
GLASS = (0.030, 0.052, 0.125)  # an unlit node
AGAINST, NEUTRAL, TOWARDS = (0.10, 0.46, 1.00), (0.70, 0.70, 0.72), (1.00, 0.52, 0.02)

REQUESTS: tuple[tuple[str, tuple[float, float, float]], ...] = (
    ("sky blue", (86 / 255, 180 / 255, 233 / 255)),
    ("reddish purple", (204 / 255, 121 / 255, 167 / 255)),
    ("bluish green", (0.0, 158 / 255, 115 / 255)),
    ("yellow", (240 / 255, 228 / 255, 66 / 255)),
    ("vermillion", (213 / 255, 94 / 255, 0.0)),
    ("blue", (0.0, 114 / 255, 178 / 255)),
    ("orange", (230 / 255, 159 / 255, 0.0)),
)
"""Okabe and Ito's palette without black, in the order in which requests get them."""

_INFERNO = np.array(
    [
        [0.0002189403691192265, 0.001651004631001012, -0.01948089843709184],
        [0.1065134194856116, 0.5639564367884091, 3.932712388889277],
        [11.60249308247187, -3.972853965665698, -15.9423941062914],
        [-41.70399613139459, 17.43639888205313, 44.35414519872813],
        [77.162935699427, -33.40235894210092, -81.80730925738993],
        [-71.31942824499214, 32.62606426397723, 73.20951985803202],
        [25.13112622477341, -12.24266895238567, -23.07032500287172],
    ]
)


def inferno(t: ArrayLike) -> Floats:
    """The inferno colour map at `t` in [0, 1]: RGB in [0, 1], shape (*t.shape, 3)."""
    at = np.clip(np.asarray(t, np.float64), 0.0, 1.0)[..., None]
    color = np.zeros((*at.shape[:-1], 3))
    for coefficients in _INFERNO[::-1]:
        color = color * at + coefficients
    return np.clip(color, 0.0, 1.0).astype(np.float32)


def node_colors() -> Floats:
    """The colour of a node by its display value: RGB and how much of it covers the glass, shape (COLORS, 4).

    Index 0 is display value 0, the last is 1. Shaders and the colour bar both read this table.
    """
    d = np.linspace(0.0, 1.0, COLORS, dtype=np.float32)
    rgb = inferno(INFERNO_FROM + (INFERNO_TO - INFERNO_FROM) * d)
    cover = np.clip(d / 0.40, 0.0, 1.0)
    cover = np.sqrt(cover) * (0.35 + 0.65 * cover)
    return np.concatenate([rgb, cover[:, None]], axis=1).astype(np.float32)


def bar_colors(table: Floats | None = None) -> Floats:
    """`node_colors`, or a table like it, over the glass: what the colour bar shows, shape (COLORS, 3)."""
    table = node_colors() if table is None else table
    cover = table[:, 3:]
    return np.asarray(table[:, :3] * cover + np.array(GLASS, np.float32) * (1.0 - cover), np.float32)


def push_colors() -> Floats:
    """The hue of a signed push: blue against the token, light grey at 0, orange towards it, (COLORS, 4) RGBA.

    Index 0 is -1, the last is +1 of `contribution.hue`. Bolts, rings and the legend all read this table.
    Blue and orange stay apart for colour-blind eyes, and so do both from grey.
    """
    t = np.linspace(-1.0, 1.0, COLORS, dtype=np.float32)[:, None]
    strength = np.sqrt(np.abs(t))  # a weak push is told from none
    end = np.where(t < 0, np.array(AGAINST, np.float32), np.array(TOWARDS, np.float32))
    rgb = np.array(NEUTRAL, np.float32) * (1.0 - strength) + end * strength
    return np.concatenate([rgb, np.ones_like(t)], axis=1).astype(np.float32)


@dataclass(frozen=True, slots=True)
class Display:
    """The display function of one node kind.

    Attributes
    ----------
    low, high : float
        The value drawn unlit, and the value drawn fully lit, in the unit of the channel.
    is_log : bool
        Equal ratios are equal steps of light; else equal differences are. Needs `low` over 0.
    """

    low: float
    high: float
    is_log: bool = False

    def __call__(self, values: ArrayLike) -> Floats:
        """Display values in [0, 1] of measured `values`; NaN stays NaN, larger than `high` is 1."""
        if self.is_log:  # in float32: a step of a deep model has 16,000 values, and a screen shows 256
            low, whole = np.float32(self.low), np.float32(max(math.log(self.high / self.low), 1e-9))
            share = np.log(np.maximum(np.asarray(values, np.float32), low) / low) / whole  # NaN stays NaN
            return np.asarray(np.minimum(np.maximum(share, 0.0), 1.0), np.float32)
        span = max(self.high - self.low, float(np.finfo(np.float32).tiny))
        share = (np.asarray(values, np.float64) - self.low) / span
        return np.asarray(np.clip(share, 0.0, 1.0), np.float32)


def display_of(scale: Scale | None, kind: str) -> Display | None:
    """The display function of a node kind (`head`, `ffn`); None while the stream has no scale for it."""
    ends = scale.kinds.get(kind) if scale is not None else None
    if ends is None or not (math.isfinite(ends[0]) and math.isfinite(ends[1]) and ends[1] > ends[0]):
        return None
    return Display(float(ends[0]), float(ends[1]), is_log=ends[0] > 0)


def expert_display(experts_per_token: int) -> Display:
    """The display function of gate weights: fully lit at three times an even share, at most at 1."""
    return Display(0.0, min(1.0, 3.0 / max(1, experts_per_token)))


def on_paper(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A picture for print, shape (…, 3): light becomes ink, black becomes paper, hues stay.

    What was brighter is darker by as much: r, g and b are moved together by 255 − 2 × their luma.
    """
    wide = picture.astype(np.int32)
    luma = (77 * wide[..., 0] + 150 * wide[..., 1] + 29 * wide[..., 2]) >> 8
    return np.clip(wide + (255 - 2 * luma[..., None]), 0, 255).astype(np.uint8)


class RequestColors:
    """Which request has which colour: of those that fewest hold, the one given out longest ago."""

    def __init__(self) -> None:
        self._held: dict[str, int] = {}
        self._given = [0] * len(REQUESTS)
        self._serial = 0

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._held

    def of(self, request_id: str) -> int:
        """Index into `REQUESTS` of this request's colour; a new request is given one."""
        if request_id not in self._held:
            held = list(self._held.values())
            index = min(range(len(REQUESTS)), key=lambda i: (held.count(i), self._given[i], i))
            self._serial += 1
            self._given[index] = self._serial
            self._held[request_id] = index
        return self._held[request_id]

    def release(self, request_id: str) -> None:
        """The request is over: its colour is free."""
        self._held.pop(request_id, None)
