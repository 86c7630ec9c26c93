"""Panels beside the picture, since exact comparison is poor in space: numbers of one token and of the stream.

The layer × head matrix of the newest token, what the chosen head attended to, the logit lens, the heat of the
cache and the latency. What was not captured says so. Pure; RGBA bytes as `lettering.Canvas` makes them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fulgurite.viewer.colors import bar_colors
from fulgurite.viewer.inspection import deep_of, positions_of
from fulgurite.viewer.lettering import Canvas, fitted, width_of
from fulgurite.viewer.sheets import DIM, FRAME, INK, TEXT, WARN, sheet
from fulgurite.viewer.writing import formula, ink_of, printed

if TYPE_CHECKING:
    from collections.abc import Hashable

    from numpy.typing import NDArray

    from fulgurite.viewer.camera import Pick
    from fulgurite.viewer.lettering import Bytes
    from fulgurite.viewer.scene import ReplicaScene

WIDTH = 258.0
HATCH: tuple[int, int, int] = (70, 72, 80)
PADDING = 12.0


def key(scene: ReplicaScene, chosen: Pick | None) -> Hashable:
    """Changes when the panels must be painted again."""
    return scene.strip_revision, scene.scale, scene.palette.name, chosen


@dataclass(slots=True)
class _Column:
    """A sheet that is filled from the top."""

    canvas: Canvas
    scale: float
    y: float

    @property
    def left(self) -> float:
        return PADDING * self.scale

    @property
    def room(self) -> float:
        return float(self.canvas.pixels.shape[1] - 2 * self.left)

    def title(self, text: str, note: str = "") -> None:
        self.canvas.text(self.left, self.y, text, 12 * self.scale, INK, weight="bold")
        note = fitted(
            note, self.room - width_of(text, 12 * self.scale, "bold") - 8 * self.scale, 10 * self.scale
        )
        self.canvas.text(self.left + self.room, self.y + 2 * self.scale, note, 10 * self.scale, DIM, align=1)
        self.y += 18 * self.scale

    def missing(self, text: str) -> None:
        self.canvas.text(self.left, self.y, text, 11 * self.scale, WARN)
        self.y += 24 * self.scale


def paint(scene: ReplicaScene, chosen: Pick | None, height: int, scale: float) -> Bytes:
    """All panels of one replica: `WIDTH * scale` wide."""
    column = _Column(sheet(round(WIDTH * scale), height, 0.80), scale, 10 * scale)
    for part in (_matrix, _attention, _lens, _heat, _steps):
        if column.y < height - 70 * scale:
            part(column, scene, chosen)
            column.y += 8 * scale
    return column.canvas.pixels


def _matrix(column: _Column, scene: ReplicaScene, chosen: Pick | None) -> None:
    """Layer × head: the light of the newest token's heads, one cell each."""
    column.title("heads of the newest token", "layer →, head ↓")
    display = scene.display("head")
    if display is None or not np.isfinite(scene.head_values).any():
        column.missing("head_write: not captured")
        return
    table = (bar_colors(scene.palette.nodes) * 255.0 + 0.5).astype(np.uint8)
    shown = display(scene.head_values).T  # (H, L)
    known = np.isfinite(shown)
    rgb = np.where(
        known[..., None], table[(np.nan_to_num(shown) * 255).astype(np.intp)], np.array(HATCH, np.uint8)
    )
    high = min(108 * column.scale, 14 * column.scale * len(shown))
    image = _resized(rgb.astype(np.uint8), round(high), round(column.room))
    column.canvas.picture(column.left, column.y, image)
    if chosen is not None and chosen.kind == "head":
        w, h = column.room / shown.shape[1], high / shown.shape[0]
        x, y = column.left + chosen.layer * w, column.y + chosen.head * h
        for bx, by, bw, bh in ((x, y, w, 1), (x, y + h, w, 1), (x, y, 1, h), (x + w, y, 1, h)):
            column.canvas.box(bx, by, bw, bh, INK)
    column.y += high + 6 * column.scale


def _resized(rgb: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """The nearest cell for every pixel."""
    rows = (np.arange(height) * rgb.shape[0] // height).astype(np.intp)
    columns = (np.arange(width) * rgb.shape[1] // width).astype(np.intp)
    return np.asarray(rgb[rows][:, columns], np.uint8)


def _attention(column: _Column, scene: ReplicaScene, chosen: Pick | None) -> None:
    """Where the chosen head looked: routing, as bars."""
    if chosen is None or chosen.kind != "head":
        column.title("attention", "choose a head")
        column.y += 2 * column.scale
        return
    column.title(f"L{chosen.layer} H{chosen.head} attends to", "routing, not importance")
    found = positions_of(scene, chosen)
    if found is None:
        column.missing("attention: not captured here")
        return
    for weight, position, text in found:
        column.canvas.box(
            column.left,
            column.y + 3 * column.scale,
            0.40 * column.room * weight,
            8 * column.scale,
            (92, 186, 206),
        )
        x = column.left + 0.42 * column.room
        column.canvas.text(x, column.y, f"{100 * weight:.0f} %  {position}  {text}", 11 * column.scale, TEXT)
        column.y += 15 * column.scale


def _lens(column: _Column, scene: ReplicaScene, _chosen: Pick | None) -> None:
    """The logit lens: probability of the emitted token among the final candidates, after each layer."""
    column.title("logit lens", formula("lens_prob"))
    deep = deep_of(scene)
    if deep is None or "lens_prob" not in deep[0].columns:
        column.missing("lens_prob: not captured")
        return
    values = np.asarray(deep[0].columns["lens_prob"][deep[1]], np.float64)
    values = values[:, 0] if values.ndim > 1 else values
    _bars(column, values, 40.0)


def _bars(column: _Column, values: NDArray[np.float64], high: float, most: float = 1.0) -> None:
    pitch = column.room / max(1, len(values))
    tall = high * column.scale
    for index, value in enumerate(values.tolist()):
        x = column.left + index * pitch
        if np.isfinite(value):
            part = tall * min(1.0, value / most) if most > 0 else 0.0
            column.canvas.box(x, column.y + tall - part, max(1.0, pitch - 1), max(1.0, part), (124, 148, 238))
        else:
            column.canvas.box(x, column.y + tall / 2, max(1.0, pitch - 1), 1, HATCH)
    column.canvas.box(column.left, column.y + tall, column.room, 1, FRAME)
    column.y += tall + 6 * column.scale


def _heat(column: _Column, scene: ReplicaScene, _chosen: Pick | None) -> None:
    """The cache: how full, and where the attention of the newest deep token went, sink first."""
    hud = scene.hud
    words = [f"{hud.kv_tokens:,} tokens"] if hud.kv_tokens is not None else []
    words += [f"{hud.kv_bytes / 1e6:.2f} MB"] if hud.kv_bytes is not None else []
    column.title("KV cache", "  ·  ".join(words))
    deep = deep_of(scene)
    if deep is None or "kv_heat" not in deep[0].columns:
        column.missing("kv_heat: not captured")
        return
    values = np.asarray(deep[0].columns["kv_heat"][deep[1]], np.float64)
    rows = values.reshape(-1, values.shape[-1])
    known = np.isfinite(rows).sum(axis=0)
    total = np.where(known > 0, np.nansum(rows, axis=0) / np.maximum(1, known), np.nan)
    _bars(column, total, 34.0, most=max(1e-9, float(np.nanmax(total, initial=0.0))))
    note = "attention mass: sink, log-spaced past, recent →"
    column.canvas.text(column.left, column.y - 3 * column.scale, note, 10 * column.scale, DIM)
    column.y += 12 * column.scale


def _steps(column: _Column, scene: ReplicaScene, _chosen: Pick | None) -> None:
    """The last tokens: probability as a bar in the colour of the request."""
    column.title("newest tokens", "probability")
    tokens = [token for token in scene.strip if token.probability is not None][-24:]
    if not tokens:
        column.missing("logprob: not captured")
        return
    rows = int((column.canvas.pixels.shape[0] - column.y - 8 * column.scale) // (15 * column.scale))
    for token in list(reversed(tokens))[: max(0, rows)]:
        assert token.probability is not None
        ink = ink_of(scene, token.color)
        column.canvas.box(
            column.left,
            column.y + 3 * column.scale,
            0.40 * column.room * token.probability,
            8 * column.scale,
            ink,
        )
        word = printed(token.text) if token.text is not None else f"position {token.position}"
        x = column.left + 0.42 * column.room
        text = fitted(f"{100 * token.probability:.0f} %  {word}", 0.56 * column.room, 11 * column.scale)
        column.canvas.text(x, column.y, text, 11 * column.scale, TEXT)
        column.y += 15 * column.scale
