"""What is drawn of one replica, as plain arrays: points, attributes, textures, uniforms, a shader, a blend.

A front-end that draws for itself (the page) is handed these; the shaders are the `.glsl` files. Static: what
changes is in textures and in the uniforms of a picture.

Shape letters: n points, m primitives.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from fulgurite.viewer.layout import HEAD_GROWTH, WALL_CELL

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fulgurite.viewer.layout import Layout

    Floats = NDArray[np.float32]

Primitive = Literal["points", "lines", "triangles"]
Blend = Literal["opaque", "over", "premultiplied", "screen", "brightest"]

FINE_UP_TO = 600  # slots; where more bolts may live, each is drawn leaner
RIB_COLOR = (0.055, 0.085, 0.21)
BOLT_PIXELS = 2.9  # half the width of the brightest core, in a viewport 720 pixels high
SPINE_PIXELS = 12.0
HALOS_FROM = 0.42  # heads of a smaller display value have no halo
WALL_HALOS_FROM = 0.60

MOST_PLATES = 2048  # over so many, plates are a pixel high: they become cells of one sheet
SHEET_TURNS = 32  # facets of a wall of heads across its rib

_CORNERS = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]], np.float32)


@dataclass(frozen=True, slots=True)
class BoltDetail:
    """How finely bolts are drawn.

    Attributes
    ----------
    segments, glow : how many pieces the core of a bolt and the glow around it have; 0: no glow.
    glow_from : an arc that is less bright has no glow.
    """

    segments: int
    glow: int
    glow_from: float


FINE, LEAN = BoltDetail(12, 4, 0.34), BoltDetail(7, 2, 0.68)
PLAIN, PLAINEST = BoltDetail(7, 0, 1.0), BoltDetail(4, 0, 1.0)


def bolt_detail(slots: int, *, plain: bool = False) -> BoltDetail:
    """The detail of bolts where so many may live; `plain`: without ornaments."""
    if plain:
        return PLAIN if slots <= FINE_UP_TO else PLAINEST
    return FINE if slots <= FINE_UP_TO else LEAN


@dataclass(frozen=True, slots=True)
class Sketch:
    """One drawn thing.

    Attributes
    ----------
    shader : the file's name.
    points : ndarray of float32, shape (n, 3)
    index : ndarray of uint32, shape (m, 1), (m, 2) or (m, 3)
        Which points make up each primitive.
    attributes : arrays of float32, shape (n, k), by their names in the shader.
    textures : the scene's texture for each sampler of the shader: `heads`, `plates` (those two are one:
        `Glow.texels`), `cells`, `colors`, `push_colors`.
    uniforms : those that never change.
    """

    shader: str
    primitive: Primitive
    blend: Blend
    points: Floats
    index: NDArray[np.uint32]
    attributes: Mapping[str, Floats] = field(default_factory=dict)
    textures: Mapping[str, str] = field(default_factory=dict)
    uniforms: Mapping[str, Any] = field(default_factory=dict)


def sketches(layout: Layout) -> list[Sketch]:
    """Everything of a replica but its bolts and its words, in the order in which it is drawn."""
    return [*_flats(layout), *_ribs(layout), _spine(layout), *_heads(layout)]


def bolt_ribbons(slots: int, detail: BoltDetail = FINE) -> tuple[Floats, NDArray[np.uint32]]:
    """The ribbons of every slot of `Bolts.slots`: `arcAt` of each vertex (n, 3), and the triangles (m, 3).

    `arcAt` is (slot, u along the arc from 0 to 1, side): side -2 and 2 are the two edges of the glow, -1 and
    1 those of the core. The shader's `uStep` is 1 / `segments`, its `uGlowStep` 1 / `glow`.
    """
    segments, glow = detail.segments, detail.glow
    edges = [(u / glow, side) for u in range(glow + 1) for side in (-2.0, 2.0)] if glow else []
    edges += [(u / segments, side) for u in range(segments + 1) for side in (-1.0, 1.0)]
    at = np.zeros((slots, len(edges), 3), np.float32)
    at[..., 0] = np.arange(slots)[:, None]
    at[..., 1:] = edges
    core = len(edges) - 2 * (segments + 1)
    first = np.array([*range(0, 2 * glow, 2), *range(core, len(edges) - 2, 2)])
    quads = (first[:, None, None] + np.array([[0, 1, 2], [2, 1, 3]])).reshape(-1, 3)
    index = len(edges) * np.arange(slots)[:, None, None] + quads
    return at.reshape(-1, 3), index.reshape(-1, 3).astype(np.uint32)


_TINTED = {"uColors": "colors", "uPushColors": "push_colors"}


def _flats(layout: Layout) -> list[Sketch]:
    plates = _quads(layout.plates)
    disc = {"uDisc": float(layout.ffn_kind == "disc"), "uFade": 1.0}
    return [
        _carpet(layout),
        Sketch("plates", "triangles", "over", *plates, {"uNodes": "plates", **_TINTED}, disc | _first(layout))
        if plates_are_drawn(layout)
        else _sheet_of_experts(layout),
    ]


def _first(layout: Layout) -> dict[str, float]:
    """Plates stand behind the heads of their layer."""
    return {"uFirst": float(layout.heads.shape[1])}


def _carpet(layout: Layout) -> Sketch:
    """A strip per layer: the outer corners of its first and last cell."""
    cells = layout.cells.shape[1]
    strips = np.concatenate([layout.cells[:, -1, :2], layout.cells[:, 0, 2:]], axis=1)[:, None]
    points, index, attributes = _quads(strips)
    layer, (side, along) = attributes["nodeAt"][:, 0], attributes["corner"].T
    places = {"stripAt": np.stack([layer, side, cells * 0.5 * (1.0 - along)], axis=-1)}
    uniforms = {"uCells": float(cells)}
    return Sketch("carpet", "triangles", "over", points, index, places, {"uNodes": "cells"}, uniforms)


def plates_are_drawn(layout: Layout) -> bool:
    """Whether every plate is drawn; else they are cells of one sheet."""
    return int(layout.plates.shape[0] * layout.plates.shape[1]) <= MOST_PLATES


def _sheet_of_experts(layout: Layout) -> Sketch:
    layers, experts = layout.plates.shape[:2]
    a, b, d = layout.plates[0, 0], layout.plates[-1, 0], layout.plates[0, -1]
    # the outer edges of the shelf: plates are parallel, and keep their margins to the cells of the sheet
    along = (b.mean(axis=0) - a.mean(axis=0)) / max(1, layers - 1)
    down = (d.mean(axis=0) - a.mean(axis=0)) / max(1, experts - 1)
    corner = a.mean(axis=0) - 0.5 * along - 0.5 * down
    ends = [(0.0, 0.0), (float(layers), 0.0), (float(layers), float(experts)), (0.0, float(experts))]
    points = np.stack([corner + layer * along + expert * down for layer, expert in ends]).astype(np.float32)
    index = np.array([[0, 1, 2], [0, 2, 3]], np.uint32)
    textures = {"uNodes": "plates", **_TINTED}
    uniforms = {"uGroup": 1.0, "uEvery": float(max(1, layers // 8)), "uRows": float(experts)}
    uniforms |= _first(layout)
    places = {"cellAt": np.array(ends, np.float32)}
    return Sketch("walls", "triangles", "opaque", points, index, places, textures, uniforms)


def _ribs(layout: Layout) -> list[Sketch]:
    lines = layout.ribs().reshape(-1, 3)
    if not len(lines) or layout.walls is not None:
        return []
    index = np.arange(len(lines), dtype=np.uint32).reshape(-1, 2)
    return [Sketch("lines", "lines", "screen", lines, index, uniforms={"uColor": RIB_COLOR})]


def _heads(layout: Layout) -> list[Sketch]:
    here = ~np.isnan(layout.heads[..., 0])
    places = layout.heads[here]
    if not len(places):
        return []
    textures = {"uNodes": "heads", **_TINTED}
    at = {"nodeAt": np.argwhere(here).astype(np.float32)}
    index = np.arange(len(places), dtype=np.uint32)[:, None]
    radius = {"uRadius": layout.head_radius}
    least = {"uLeast": HALOS_FROM if layout.walls is None else WALL_HALOS_FROM}
    halos = Sketch("halos", "points", "screen", places, index, at, textures, radius | least)
    if layout.walls is not None:
        group = {"uGroup": float(layout.group), "uEvery": float(max(1, layout.heads.shape[0] // 8))}
        group |= {"uRows": float(layout.heads.shape[1]), "uFirst": 0.0}
        return [Sketch("walls", "triangles", "opaque", *_wall(layout), textures, group), halos]
    growth = {"uGrowth": HEAD_GROWTH - 1.0}
    return [Sketch("heads", "points", "opaque", places, index, at, textures, radius | growth), halos]


def _spine(layout: Layout) -> Sketch:
    spine = layout.spine
    start = spine[0] - np.array([0.35, 0.0, 0.0], np.float32)
    t = np.linspace(0.0, 1.0, 9, dtype=np.float32)
    line = start + t[:, None] * (spine[-1] + np.array([0.25, 0.0, 0.0], np.float32) - start)
    points = np.repeat(line, 2, axis=0).astype(np.float32)
    at = np.stack([np.repeat(t, 2), np.tile(np.array([-1.0, 1.0], np.float32), len(t))], axis=-1)
    ahead = points + np.array([0.5, 0.0, 0.0], np.float32)
    along = 2 * np.arange(len(t) - 1)[:, None, None]
    index = (along + np.array([[0, 1, 2], [2, 1, 3]])).reshape(-1, 3).astype(np.uint32)
    return Sketch("spine", "triangles", "screen", points, index, {"ribbonTo": ahead, "ribbonAt": at})


def _quads(corners: Floats) -> tuple[Floats, NDArray[np.uint32], dict[str, Floats]]:
    """Quadrilaterals (rows, columns, 4, 3) as triangles: points, index, and the node and corner of each."""
    rows, columns = corners.shape[:2]
    node = np.stack(np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij"), axis=-1).reshape(-1, 2)
    attributes = {
        "nodeAt": np.repeat(node, 4, axis=0).astype(np.float32),
        "corner": np.tile(_CORNERS, (rows * columns, 1)),
    }
    first = 4 * np.arange(rows * columns)[:, None, None]
    index = (first + np.array([[0, 1, 2], [0, 2, 3]])).reshape(-1, 3).astype(np.uint32)
    return corners.reshape(-1, 3), index, attributes


def _wall(layout: Layout) -> tuple[Floats, NDArray[np.uint32], dict[str, Floats]]:
    """The wall of heads: `cellAt` (layer, head) of each vertex, where the middle of a cell is at a half.

    One sheet where every layer has as many heads; else a patch per head.
    """
    assert layout.walls is not None
    layers, heads = layout.walls.shape[:2]
    if np.isfinite(layout.walls).all():
        turns = np.linspace(0, heads, min(heads, SHEET_TURNS) + 1)
        points = np.stack([layout.wall_at(turns, edge) for edge in (0.0, float(layers))])  # (2, t, 3)
        at = np.stack(np.meshgrid([0.0, float(layers)], turns, indexing="ij"), axis=-1)
        low, high = np.arange(len(turns) - 1), len(turns) + np.arange(len(turns) - 1)
        facets = np.stack([low, high, high + 1, low, high + 1, low + 1], axis=-1).reshape(-1, 3)
        places = {"cellAt": at.reshape(-1, 2).astype(np.float32)}
        return points.reshape(-1, 3).astype(np.float32), facets.astype(np.uint32), places
    patches, index, attributes = _quads(layout.walls)
    here = ~np.isnan(patches[:, 0])
    number = np.cumsum(here) - 1  # of each corner among those that are there
    kept = number[index[here[index].all(axis=1)]].astype(np.uint32)
    inside = attributes["nodeAt"] + 0.5 + 0.5 * WALL_CELL * attributes["corner"]
    return patches[here], kept, {"cellAt": inside[here].astype(np.float32)}
