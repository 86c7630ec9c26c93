"""The drawings of one replica: a handful of actors, however large the model, fed by textures and one time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fulgurite.viewer.colors import node_colors, push_colors
from fulgurite.viewer.layout import HEAD_GROWTH
from fulgurite.viewer.lettering import Atlas, paint_labels
from fulgurite.viewer.vtk.drawing import DataTexture, Drawing

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fulgurite.viewer.scene import ReplicaScene

SEGMENTS = 13  # of a bolt's ribbon; fewer is the lever where drawing is slow
RIB_COLOR = (0.055, 0.085, 0.21)
BOLT_PIXELS = 8.5  # half the width of the brightest ribbon with its glow, in a viewport 720 pixels high
SPINE_PIXELS = 12.0
HALOS_FROM = 0.35  # heads of a smaller display value have no halo
WALL_HALOS_FROM = 0.45  # in a wall of heads only those of such a display value have a halo

_CORNERS = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]], np.float32)


@dataclass(frozen=True, slots=True)
class Frame:
    """What the drawings of a viewport must know of it.

    Attributes
    ----------
    time_s : since the textures' origin.
    width, height : of the viewport, in pixels.
    pixels : per unit of length at unit depth.
    shows_contribution : whether hue is the signed push.
    """

    time_s: float
    width: int
    height: int
    pixels: float
    shows_contribution: bool = False


class ReplicaActors:
    """The actors of one replica, in the order in which they are drawn.

    Parameters
    ----------
    scene : ReplicaScene
    scale : float
        Size of the words, 1 for 720 lines.
    """

    def __init__(self, scene: ReplicaScene, scale: float) -> None:
        self._scene = scene
        self._colors = DataTexture(node_colors()[None], smooth=True)
        self._push_colors = DataTexture(push_colors()[None], smooth=True)
        self._heads = DataTexture(scene.heads.texture(0.0).swapaxes(0, 1))
        self._plates = DataTexture(scene.plates.texture(0.0).swapaxes(0, 1))
        self._cells = DataTexture(scene.carpet.texture(0.0).swapaxes(0, 1))
        self._arcs = DataTexture(scene.bolts.slots)
        self._written: dict[str, tuple[Any, ...]] = {}
        self._atlas = paint_labels(scene.layout.labels, scale)
        self._sprites = self._head_drawings()
        self._flats = self._flat_drawings()
        self._pushed = self._flats[1:]  # not the carpet: it has no push
        self._spine = self._spine_drawing()
        self._bolts = self._bolt_drawing()
        self._labels = self._label_drawing(self._atlas)

    @property
    def drawings(self) -> list[Drawing]:
        """Everything, opaque things first."""
        lines = [self._ribs] if self._ribs is not None else []
        return [*self._flats, *lines, self._spine, *self._sprites, self._bolts, self._labels]

    def update(self, frame: Frame, origin_s: float) -> None:
        """Bring textures and uniforms to this picture."""
        scene = self._scene
        self._write("heads", self._heads, scene.heads, origin_s)
        self._write("plates", self._plates, scene.plates, origin_s)
        self._write("cells", self._cells, scene.carpet, origin_s)
        if self._written.get("arcs") != (scene.bolts.revision,):
            self._arcs.write(scene.bolts.slots)
            self._written["arcs"] = (scene.bolts.revision,)
        for drawing in (*self._sprites, *self._flats, self._bolts):
            drawing.set_vertex(uTime=frame.time_s)
        push = float(frame.shows_contribution)
        for drawing in (*self._sprites, *self._pushed):
            drawing.set_fragment(uPush=push)
        self._bolts.set_vertex(uPush=push)
        for drawing in self._sprites:
            drawing.set_vertex(uPixels=frame.pixels)
        viewport = (float(frame.width), float(frame.height))
        lines = min(frame.height, 0.75 * frame.width) / 720.0
        self._bolts.set_vertex(uViewport=viewport, uWidth=max(3.0, BOLT_PIXELS * lines**0.6))
        self._spine.set_vertex(uViewport=viewport, uWidth=max(4.0, SPINE_PIXELS * lines**0.6))
        self._labels.set_vertex(uViewport=viewport)

    def show_labels(self, shown: bool) -> None:
        """Show or hide the words in the scene."""
        self._labels.actor.SetVisibility(shown)

    def _write(self, name: str, texture: DataTexture, part: Any, origin_s: float) -> None:
        """Send a texture again only where it changed."""
        state = (part.revision, origin_s)
        if self._written.get(name) != state:
            texture.write(part.texture(origin_s).swapaxes(0, 1))
            self._written[name] = state

    def _head_drawings(self) -> list[Drawing]:
        layout = self._scene.layout
        here = np.argwhere(~np.isnan(layout.heads[..., 0])).astype(np.float32)  # (n, 2): layer, head
        places = layout.heads[~np.isnan(layout.heads[..., 0])]
        self._ribs: Drawing | None = None
        if not len(places):
            return []
        textures = {"uNodes": self._heads, "uColors": self._colors, "uPushColors": self._push_colors}
        uniforms = {"uTime": 0.0, "uPixels": 1.0, "uRadius": layout.head_radius}
        halos = Drawing(
            "halos",
            places,
            primitive="points",
            blend="screen",
            attributes={"nodeAt": here},
            textures=textures,
            vertex_uniforms={**uniforms, "uLeast": HALOS_FROM if layout.walls is None else WALL_HALOS_FROM},
            fragment_uniforms={"uPush": 0.0},
        )
        if layout.walls is not None:
            return [self._wall_drawing(layout.walls), halos]
        lines = layout.ribs().reshape(-1, 3)
        if len(lines):
            index = np.arange(len(lines)).reshape(-1, 2)
            self._ribs = Drawing(
                "lines",
                lines,
                primitive="lines",
                blend="screen",
                index=index,
                fragment_uniforms={"uColor": RIB_COLOR},
            )
        spheres = Drawing(
            "heads",
            places,
            primitive="points",
            blend="opaque",
            attributes={"nodeAt": here},
            textures=textures,
            vertex_uniforms={**uniforms, "uGrowth": HEAD_GROWTH - 1.0},
            fragment_uniforms={"uPush": 0.0},
        )
        return [spheres, halos]

    def _wall_drawing(self, walls: NDArray[np.float32]) -> Drawing:
        cells = _quads(walls)
        here = ~np.isnan(cells.points[:, 0])
        number = np.cumsum(here) - 1  # of each corner among those that are there
        return Drawing(
            "walls",
            cells.points[here],
            primitive="triangles",
            blend="opaque",
            index=number[cells.index[here[cells.index].all(axis=1)]],
            attributes={"nodeAt": cells.node[here], "corner": cells.corner[here]},
            textures={
                "uNodes": self._heads,
                "uColors": self._colors,
                "uPushColors": self._push_colors,
            },
            vertex_uniforms={"uTime": 0.0, "uPixels": 1.0},
            fragment_uniforms={"uPush": 0.0},
        )

    def _flat_drawings(self) -> list[Drawing]:
        layout = self._scene.layout
        carpet = _quads(layout.cells)
        plates = _quads(layout.plates)
        return [
            Drawing(
                "carpet",
                carpet.points,
                primitive="triangles",
                blend="over",
                index=carpet.index,
                attributes={"nodeAt": carpet.node, "corner": carpet.corner},
                textures={"uNodes": self._cells},
                vertex_uniforms={"uTime": 0.0},
            ),
            Drawing(
                "plates",
                plates.points,
                primitive="triangles",
                blend="over",
                index=plates.index,
                attributes={"nodeAt": plates.node, "corner": plates.corner},
                textures={
                    "uNodes": self._plates,
                    "uColors": self._colors,
                    "uPushColors": self._push_colors,
                },
                vertex_uniforms={"uTime": 0.0},
                fragment_uniforms={"uDisc": float(layout.ffn_kind == "disc"), "uFade": 1.0, "uPush": 0.0},
            ),
        ]

    def _spine_drawing(self) -> Drawing:
        spine = self._scene.layout.spine
        start = spine[0] - np.array([0.35, 0.0, 0.0], np.float32)
        t = np.linspace(0.0, 1.0, 9, dtype=np.float32)
        line = start + t[:, None] * (spine[-1] + np.array([0.25, 0.0, 0.0], np.float32) - start)
        points = np.repeat(line, 2, axis=0)
        at = np.stack([np.repeat(t, 2), np.tile([-1.0, 1.0], len(t))], axis=-1)
        ahead = points + np.array([0.5, 0.0, 0.0], np.float32)
        return Drawing(
            "spine",
            points,
            primitive="triangles",
            blend="screen",
            index=_strip(1, len(t)),
            attributes={"ribbonTo": ahead, "ribbonAt": at},
            vertex_uniforms={"uViewport": (1280.0, 720.0), "uWidth": SPINE_PIXELS},
        )

    def _bolt_drawing(self) -> Drawing:
        slots, layout = len(self._scene.bolts), self._scene.layout
        at = np.zeros((slots, SEGMENTS, 4, 4), np.float32)
        at[..., 0] = np.arange(slots)[:, None, None]
        at[..., 1] = (np.arange(SEGMENTS) / SEGMENTS)[:, None]
        at[..., 2:] = [(0.0, -1.0), (1.0, -1.0), (1.0, 1.0), (0.0, 1.0)]
        bounds = layout.points
        corners = np.stack([bounds.min(axis=0), bounds.max(axis=0)])  # the shader places the vertices itself
        return Drawing(
            "bolts",
            corners[np.arange(4 * SEGMENTS * slots) % 2],
            primitive="triangles",
            blend="brightest",
            index=_quad_index(slots * SEGMENTS),
            attributes={"arcAt": at.reshape(-1, 4)},
            textures={"uArcs": self._arcs, "uPushColors": self._push_colors},
            vertex_uniforms={
                "uPush": 0.0,
                "uTime": 0.0,
                "uViewport": (1280.0, 720.0),
                "uWidth": BOLT_PIXELS,
                "uStep": 1.0 / SEGMENTS,
            },
        )

    def _label_drawing(self, atlas: Atlas) -> Drawing:
        labels = self._scene.layout.labels
        anchors = np.repeat(np.array([label.anchor for label in labels], np.float32), 4, axis=0)
        self._atlas_texture = DataTexture(atlas.pixels)
        return Drawing(
            "labels",
            anchors,
            primitive="triangles",
            blend="premultiplied",
            index=_quad_index(len(labels)),
            attributes={
                "pixelOff": atlas.offsets.reshape(-1, 2),
                "atlasAt": atlas.places.reshape(-1, 2),
                "wordSpan": atlas.spans.reshape(-1, 2),
            },
            textures={"uAtlas": self._atlas_texture},
            vertex_uniforms={"uViewport": (1280.0, 720.0)},
        )


@dataclass(frozen=True, slots=True)
class _Quads:
    """Quadrilaterals as triangles: points (n, 3), index (m, 3), node (n, 2) and corner (n, 2) of each."""

    points: NDArray[np.float32]
    index: NDArray[np.int64]
    node: NDArray[np.float32]
    corner: NDArray[np.float32]


def _quads(corners: NDArray[np.float32]) -> _Quads:
    rows, columns = corners.shape[:2]
    node = np.stack(np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij"), axis=-1).reshape(-1, 2)
    return _Quads(
        points=corners.reshape(-1, 3),
        index=_quad_index(rows * columns),
        node=np.repeat(node, 4, axis=0).astype(np.float32),
        corner=np.tile(_CORNERS, (rows * columns, 1)),
    )


def _quad_index(count: int) -> NDArray[np.int64]:
    first = 4 * np.arange(count)[:, None, None]
    return np.asarray(first + np.array([[0, 1, 2], [0, 2, 3]]), np.int64).reshape(-1, 3)


def _strip(strips: int, length: int) -> NDArray[np.int64]:
    """Triangles of ribbons whose points lie as (strip, along, side)."""
    along = 2 * np.arange(length - 1)[:, None, None]
    quads = (along + np.array([[0, 1, 2], [2, 1, 3]])).reshape(-1, 3)
    return np.asarray(2 * length * np.arange(strips)[:, None, None] + quads, np.int64).reshape(-1, 3)
