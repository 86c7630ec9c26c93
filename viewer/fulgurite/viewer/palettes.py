"""The page's palettes: colour tables of node light with colours for requests that go with them. Pure.

Every table rises in lightness all the way, so intensity is never told by hue alone; light also shows as size.
`storm` is the scene's own. `frost` and `sand` keep to blue, grey and yellow, which colour-blind eyes tell
apart.

References
----------
Viridis: S. van der Walt, N. Smith, 2015. Cividis: J. Nuñez, C. Anderton, R. Renslow, 2018. Requests: M.
Okabe, K. Ito, "Color Universal Design", 2008; P. Tol, "Colour Schemes", 2021 (bright).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fulgurite.viewer.colors import COLORS, REQUESTS, node_colors

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]

_VIRIDIS = ((72, 40, 120), (62, 74, 137), (49, 104, 142), (38, 130, 142), (31, 158, 137), (53, 183, 121),
            (110, 206, 88), (181, 222, 43), (253, 231, 37))  # fmt: skip
_CIVIDIS = ((18, 53, 112), (59, 73, 108), (87, 93, 109), (112, 113, 115), (138, 134, 120), (165, 156, 116),
            (195, 179, 105), (225, 204, 85), (254, 232, 56))  # fmt: skip
_TOL = ("#66ccee", "#ee6677", "#ccbb44", "#228833", "#4477aa", "#aa3377", "#bbbbbb")


@dataclass(frozen=True, slots=True)
class Palette:
    """Colours that go together.

    Attributes
    ----------
    nodes : ndarray of float32, shape (COLORS, 4)
        As `colors.node_colors`: RGB of a display value, and how much of it covers the glass.
    requests : of each request in turn, ``#rrggbb``.
    is_safe : whether it is meant for colour-blind eyes.
    """

    name: str
    nodes: Floats
    requests: tuple[str, ...]
    is_safe: bool


def palettes() -> tuple[Palette, ...]:
    """Every palette, the scene's own first."""
    okabe = tuple(_hex(color) for _, color in REQUESTS)
    return (
        Palette("storm", node_colors(), okabe, is_safe=False),
        Palette("frost", _table(_VIRIDIS), okabe, is_safe=True),
        Palette("sand", _table(_CIVIDIS), _TOL, is_safe=True),
    )


def _table(anchors: tuple[tuple[int, int, int], ...]) -> Floats:
    """Colours between `anchors`, with the cover of `colors.node_colors`."""
    at = np.linspace(0.0, 1.0, COLORS)
    places = np.linspace(0.0, 1.0, len(anchors))
    table = node_colors()
    for part in range(3):
        table[:, part] = np.interp(at, places, [anchor[part] / 255 for anchor in anchors])
    return table


def _hex(color: tuple[float, ...] | Any) -> str:
    return "#" + "".join(f"{round(255 * part):02x}" for part in color)
