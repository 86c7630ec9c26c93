"""Where things sit: the positions of heads, FFN blocks, residual spine and key-value cells of one topology.

The half-pipe: x runs along the layers, the residual stream is the axis. The heads of a layer sit on a concave
rib that is open to the camera, so no head hides another; the FFN blocks are discs on the axis, or (over
`DISC_LAYERS` layers, or with experts) plates on a shelf below it; the key-value cache is a carpet on the
floor, its first token at the back. Everything is sheared along x with z, so that ribs and discs turn their
faces to the camera.

Pure numpy. Lengths are in radii of a rib. Shape letters: L layers, H heads, C key-value cells, E experts (1
if dense).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fulgurite.wire.topology import Topology

    Floats = NDArray[np.float32]

CELLS = 48  # key-value cells per layer; one stands for more tokens as sequences grow
DISC_LAYERS = 16
WALL_CELL = 0.84  # share of its place, each way, that the cell of a head fills in a wall
WALL_HEADS = 4000  # over so many the heads of a picture are cells of a wall: spheres would be a pixel wide

SHEAR = 0.42
RIB_FROM, RIB_TO = math.radians(-60.0), math.radians(122.0)
LARGEST_HEAD = 0.105
HEAD_SHARE = 0.34  # radius of an unlit head, of the least distance of two heads
HEAD_GROWTH = 1.45  # a fully lit head is so much larger
DISC_RADIUS = 0.36
FLOOR_Y = -1.12
CARPET_Z = (-0.55, 1.25)
SHELF_TOP, SHELF_FRONT = (-0.34, 0.30), (-0.80, 0.92)  # (y, z) of the shelf's upper and lower edge
SHELF_FLOOR_Y = -1.16  # under a shelf the carpet lies lower and further in front, to be seen
SHELF_CARPET_Z = (0.62, 2.25)
MANY_EXPERTS = 48  # the shelf of so many reaches further down, and the carpet makes room
DEEP_SHELF_FRONT, DEEP_FLOOR_Y, DEEP_CARPET_Z = (-1.16, 1.40), -1.44, (1.00, 2.45)

LabelKind = Literal["layer", "heads", "ffn", "residual", "kv"]


@dataclass(frozen=True, slots=True)
class Label:
    """A word at the place `anchor` (x, y, z); `align` -1: ends there, 0: centred, 1: begins there."""

    text: str
    anchor: tuple[float, float, float]
    kind: LabelKind
    align: int = 0


@dataclass(frozen=True, slots=True)
class Layout:
    """Positions of every node of one topology.

    Attributes
    ----------
    pitch : float
        Distance of two layers along x.
    heads : ndarray of float32, shape (L, H, 3)
        NaN where a layer has fewer heads.
    head_radius : float
        Of an unlit head. Two heads are at least ``2 * head_radius * HEAD_GROWTH`` apart.
    walls : ndarray of float32, shape (L, H, 4, 3), or None
        Where there are over `WALL_HEADS` heads: the corners of the cell of each, NaN where there is none.
    ffn : ndarray of float32, shape (L, 3)
        Centre of each FFN block.
    ffn_kind : ``disc`` or ``shelf``
    plates : ndarray of float32, shape (L, E, 4, 3)
        Corners of the FFN's plates, counter-clockwise; one per expert. For discs: the square around the disc.
    spine : ndarray of float32, shape (L + 1, 3)
        Where the residual stream enters each layer, and where it leaves the last one.
    cells : ndarray of float32, shape (L, C, 4, 3)
        Corners of the key-value cells, counter-clockwise; cell 0 holds the first tokens.
    labels : tuple of Label
    group : int
        Heads that share a key-value head, side by side on the rib.
    """

    pitch: float
    heads: Floats
    head_radius: float
    walls: Floats | None
    ffn: Floats
    ffn_kind: Literal["disc", "shelf"]
    plates: Floats
    spine: Floats
    cells: Floats
    labels: tuple[Label, ...]
    group: int = 1

    @classmethod
    def for_topology(cls, topology: Topology, *, cells: int = CELLS) -> Layout:
        """The layout of a topology: the same for equal topologies.

        Raises
        ------
        ValueError
            Where the topology has no layer.
        """
        if topology.layers < 1:
            raise ValueError(
                f"{topology.model_name or 'the model'} has no layer: there is nothing to lay out"
            )
        pitch = length(topology.layers) / max(1, topology.layers - 1)
        x = (np.arange(topology.layers) - (topology.layers - 1) / 2) * pitch
        heads = _heads(topology, x)
        kind: Literal["disc", "shelf"] = (
            "disc" if topology.layers <= DISC_LAYERS and topology.experts == 0 else "shelf"
        )
        plates = _discs(x, pitch) if kind == "disc" else _shelf(x, pitch, max(1, topology.experts))
        layout = cls(
            pitch=pitch,
            heads=heads,
            head_radius=_head_radius(heads, pitch),
            walls=_walls(topology, x, pitch) if sum(topology.layer_heads) > WALL_HEADS else None,
            ffn=plates.mean(axis=(1, 2)),
            ffn_kind=kind,
            plates=plates,
            spine=_spine(x, pitch),
            cells=_cells(x, pitch, cells, kind, topology.experts),
            labels=(),
            group=max(1, topology.heads // max(1, topology.kv_heads)),
        )
        object.__setattr__(layout, "labels", _labels(layout, topology))
        return layout

    @property
    def points(self) -> Floats:
        """Every corner that a camera must keep in view, shape (n, 3)."""
        heads = self.heads[~np.isnan(self.heads[..., 0])]
        grown = self.head_radius * HEAD_GROWTH * np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]], np.float32)
        heads = np.concatenate([heads + way for way in (*grown, *-grown)])
        edges = self.cells[:, [0, -1]].reshape(-1, 3)
        plates = self.plates.reshape(-1, 3)
        return np.concatenate([heads, edges, plates, self.spine]).astype(np.float32)

    def wall_at(self, heads: NDArray[Any], layer: float) -> Floats:
        """Places on the wall of heads where every layer has as many: head h is centred at h + 0.5.

        So is layer l; shape (*heads.shape, 3).
        """
        count = self.heads.shape[1]
        angle = RIB_FROM + (RIB_TO - RIB_FROM) * (np.asarray(heads, np.float64) - 0.5) / max(1, count - 1)
        middle = (self.heads.shape[0] - 1) / 2
        return _placed(np.asarray((layer - 0.5 - middle) * self.pitch), np.sin(angle), -np.cos(angle))

    def ribs(self) -> Floats:
        """The lines that join the heads of a layer, shape (n, 2, 3), cut so that none crosses a head."""
        pairs = np.stack([self.heads[:, :-1], self.heads[:, 1:]], axis=2).reshape(-1, 2, 3)
        pairs = pairs[~np.isnan(pairs).any(axis=(1, 2))]
        if not len(pairs):
            return np.zeros((0, 2, 3), np.float32)
        gap = np.linalg.norm(pairs[:, 1] - pairs[:, 0], axis=-1, keepdims=True)
        cut = np.minimum(0.48, self.head_radius * HEAD_GROWTH / gap)
        along = pairs[:, 1] - pairs[:, 0]
        return np.stack([pairs[:, 0] + cut * along, pairs[:, 1] - cut * along], axis=1).astype(np.float32)


def length(layers: int) -> float:
    """Length of the half-pipe: proportional for few layers, nearly constant for many: heads stay visible."""
    if layers <= 12:
        return 0.80 * max(1, layers - 1)
    return 8.8 + 0.3 * math.log2(layers / 12)


def _placed(x: NDArray[Any], y: NDArray[Any], z: NDArray[Any]) -> Floats:
    return np.stack(np.broadcast_arrays(x + SHEAR * z, y, z), axis=-1).astype(np.float32)


def _heads(topology: Topology, x: NDArray[Any]) -> Floats:
    heads = np.full((topology.layers, topology.heads, 3), np.nan, np.float32)
    for layer, count in enumerate(topology.layer_heads):
        angle = np.linspace(RIB_FROM, RIB_TO, count) if count > 1 else np.array([math.pi / 4])
        heads[layer, :count] = _placed(x[layer], np.sin(angle), -np.cos(angle))[:count]
    return heads


def _walls(topology: Topology, x: NDArray[Any], pitch: float) -> Floats:
    """A cell around the place of each head, as wide as its share of the rib."""
    walls = np.full((topology.layers, topology.heads, 4, 3), np.nan, np.float32)
    for layer, count in enumerate(topology.layer_heads):
        angle = np.linspace(RIB_FROM, RIB_TO, count)[:, None] if count > 1 else np.array([[math.pi / 4]])
        half = 0.5 * WALL_CELL * (RIB_TO - RIB_FROM) / max(1, count - 1)
        side = half * np.array([-1.0, -1.0, 1.0, 1.0])
        along = 0.5 * WALL_CELL * pitch * np.array([-1.0, 1.0, 1.0, -1.0])
        walls[layer, :count] = _placed(x[layer] + along, np.sin(angle + side), -np.cos(angle + side))
    return walls


def _head_radius(heads: Floats, pitch: float) -> float:
    """From the least distance of two heads, within a rib and over to the next ones."""
    counts = np.sum(~np.isnan(heads[..., 0]), axis=1)
    if not counts.max():
        return LARGEST_HEAD
    least = LARGEST_HEAD / HEAD_SHARE
    for layer in {int(np.argmax(counts == count)) for count in np.unique(counts) if count}:
        rib = heads[layer, : counts[layer]].astype(np.float64)
        for other in {int(np.argmax(counts == count)) for count in np.unique(counts) if count}:
            near = heads[other, : counts[other]].astype(np.float64)
            near = near - near[0] + rib[0] if counts[layer] == counts[other] else _moved(near, rib)
            for step in (-3, -2, -1, 0, 1, 2, 3):
                gap = np.linalg.norm(rib[:, None] - near[None] - [step * pitch, 0.0, 0.0], axis=-1)
                if step == 0:
                    np.fill_diagonal(gap, np.inf)
                    if counts[layer] != counts[other]:
                        continue  # two counts cannot share a rib
                least = min(least, float(gap.min()))
    return min(LARGEST_HEAD, HEAD_SHARE * least)


def _moved(rib: NDArray[np.float64], onto: NDArray[np.float64]) -> NDArray[np.float64]:
    """A rib at the layer of another one: x without the shear tells the layer."""
    by = (onto[0, 0] - SHEAR * onto[0, 2]) - (rib[0, 0] - SHEAR * rib[0, 2])
    return np.asarray(rib + np.array([by, 0.0, 0.0]), np.float64)


def _discs(x: NDArray[Any], pitch: float) -> Floats:
    radius = min(DISC_RADIUS, 0.46 * pitch / SHEAR)
    y = np.array([-1.0, -1.0, 1.0, 1.0]) * radius
    z = np.array([-1.0, 1.0, 1.0, -1.0]) * radius
    return _placed(x[:, None] + 0.5 * pitch, y, z)[:, None]


def _shelf(x: NDArray[Any], pitch: float, rows: int) -> Floats:
    edge = np.linspace(0.0, 1.0, rows + 1)
    margin = 0.10 / rows
    top, bottom = edge[:-1] + margin, edge[1:] - margin
    t = np.stack([bottom, bottom, top, top], axis=-1)  # (E, 4)
    front = DEEP_SHELF_FRONT if rows >= MANY_EXPERTS else SHELF_FRONT
    y = SHELF_TOP[0] + t * (front[0] - SHELF_TOP[0])
    z = SHELF_TOP[1] + t * (front[1] - SHELF_TOP[1])
    side = np.array([-0.38, 0.38, 0.38, -0.38]) * pitch
    return _placed(x[:, None, None] + 0.5 * pitch + side, y, z)


def _spine(x: NDArray[Any], pitch: float) -> Floats:
    ahead = np.append(x - 0.25 * pitch, x[-1] + 1.05 * pitch)
    zero = np.zeros_like(ahead)
    return _placed(ahead, zero, zero)


def _cells(x: NDArray[Any], pitch: float, cells: int, kind: str, rows: int) -> Floats:
    floor, reach = (FLOOR_Y, CARPET_Z) if kind == "disc" else (SHELF_FLOOR_Y, SHELF_CARPET_Z)
    if rows >= MANY_EXPERTS:
        floor, reach = DEEP_FLOOR_Y, DEEP_CARPET_Z
    edge = np.linspace(*reach, cells + 1)
    z = np.stack([edge[1:], edge[1:], edge[:-1], edge[:-1]], axis=-1)  # (C, 4)
    side = np.array([-0.36, 0.36, 0.36, -0.36]) * pitch
    return _placed(x[:, None, None] + 0.25 * pitch + side, np.full_like(z, floor), z)


def _labels(layout: Layout, topology: Topology) -> tuple[Label, ...]:
    if topology.is_black_box:  # one block stands for all of it
        x, y, _ = layout.ffn[0]
        return (Label("the whole model: not measured", (float(x) + 0.35, float(y), DISC_RADIUS), "ffn", 1),)
    step = 1 if topology.layers <= 16 else max(1, topology.layers // 8)
    front = layout.cells[:, -1, :2].mean(axis=1)
    labels = [
        Label(f"layer {i}" if i == 0 else str(i), (float(p[0]), float(p[1]), float(p[2]) + 0.24), "layer")
        for i, p in enumerate(front)
        if i % step == 0
    ]
    back = layout.cells[0, 0, 3]
    corner = layout.plates[0, -1, 0]
    labels.append(Label("KV cache", (float(back[0]) - 0.12, float(back[1]), float(back[2]) + 0.35), "kv", -1))
    name = "experts" if topology.experts else "FFN"
    if layout.ffn_kind == "shelf":
        labels.append(
            Label(
                name,
                (float(corner[0]) - 0.12, float(corner[1]) - 0.04, float(corner[2])),
                "ffn",
                -1,
            )
        )
    end = layout.spine[-1]
    labels.append(Label("residual stream", (float(end[0]) + 0.14, 0.0, 0.0), "residual", 1))
    present = layout.heads[0][~np.isnan(layout.heads[0, :, 0])]
    if len(present):
        top = present[np.argmax(present[:, 1])]
        labels.append(
            Label("attention heads", (float(top[0]) - 0.2, float(top[1]) + 0.28, float(top[2])), "heads", -1)
        )
    return tuple(labels)
