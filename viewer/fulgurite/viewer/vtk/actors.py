"""The drawings of one replica: a handful of actors, however large the model, fed by textures and one time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fulgurite.viewer.colors import node_colors, push_colors
from fulgurite.viewer.drawings import (
    BOLT_PIXELS,
    SPINE_PIXELS,
    Sketch,
    bolt_detail,
    bolt_ribbons,
    sketches,
)
from fulgurite.viewer.lettering import Atlas, paint_labels
from fulgurite.viewer.vtk.drawing import DataTexture, Drawing

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fulgurite.viewer.scene import ReplicaScene


@dataclass(frozen=True, slots=True)
class Frame:
    """What the drawings of a viewport must know of it, but for the time: it seldom changes.

    Attributes
    ----------
    width, height : of the viewport, in pixels.
    pixels : per unit of length at unit depth.
    shows_contribution : whether hue is the signed push.
    is_still : reduced motion: bolts neither grow nor flicker.
    shed : which ornaments are left out: index into `pace.SHED`.
    """

    width: int
    height: int
    pixels: float
    shows_contribution: bool = False
    is_still: bool = False
    shed: int = 0


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
        nodes = DataTexture(scene.nodes.texels)  # these three are the scene's own memory
        self._textures = {
            "colors": DataTexture(node_colors()[None], smooth=True),
            "push_colors": DataTexture(push_colors()[None], smooth=True),
            "heads": nodes,
            "plates": nodes,
            "cells": DataTexture(scene.carpet.texture(0.0)),
            "arcs": DataTexture(scene.bolts.slots),
        }
        self._sent: dict[str, tuple[int, float]] = {}  # the revision and the origin of each
        self._frame: Frame | None = None
        self._timed: list[Drawing] = []
        self._static = [self._drawing(sketch) for sketch in sketches(scene.layout)]
        self._bolts, self._plain_bolts = self._bolt_drawing(), self._bolt_drawing(plain=True)
        self._labels = self._label_drawing(paint_labels(scene.layout.labels, scale))

    @property
    def drawings(self) -> list[Drawing]:
        """Everything, in the order in which it is drawn."""
        return [*self._static, self._bolts, self._plain_bolts, self._labels]

    def update(self, frame: Frame, now_s: float, origin_s: float) -> None:
        """Bring textures and uniforms to the picture of `now_s`."""
        scene = self._scene
        self._send("heads", scene.nodes.revision, origin_s)
        if self._send("cells", scene.carpet.revision, origin_s):
            scene.carpet.texture(origin_s)
        self._send("arcs", scene.bolts.revision, origin_s)
        if frame != self._frame:
            self._frame = frame
            self._fit(frame)
        for drawing in self._timed:
            drawing.set_time(now_s - origin_s)

    def _send(self, name: str, revision: int, origin_s: float) -> bool:
        """Send a texture again where it is another than before; whether it is."""
        if self._sent.get(name) == (revision, origin_s):
            return False
        self._sent[name] = revision, origin_s
        self._textures[name].changed()
        return True

    def _fit(self, frame: Frame) -> None:
        """Bring everything but the time to another frame."""
        self._adorn(frame.shed)
        lines = min(frame.height, 0.75 * frame.width) / 720.0
        wide = {"bolts": max(1.4, BOLT_PIXELS * lines**0.6), "spine": max(4.0, SPINE_PIXELS * lines**0.6)}
        for drawing in self.drawings:
            drawing.set(
                uPixels=frame.pixels,
                uPush=float(frame.shows_contribution),
                uViewport=(float(frame.width), float(frame.height)),
                uStill=float(frame.is_still),
                uWidth=wide.get(drawing.name, 1.0),
            )

    def _adorn(self, shed: int) -> None:
        """Show the ornaments that are not left out; what is not shown is not told the time either."""
        for drawing in self._static:
            if drawing.name == "halos":
                drawing.actor.SetVisibility(shed < 1)
        self._bolts.actor.SetVisibility(shed < 2)
        self._plain_bolts.actor.SetVisibility(shed >= 2)
        self._timed = [drawing for drawing in self.drawings if drawing.actor.GetVisibility()]

    def recolor(self, nodes: NDArray[np.float32]) -> None:
        """Another palette for the light of nodes: `colors.node_colors` or a table like it."""
        self._textures["colors"].write(nodes[None])

    def show_labels(self, shown: bool) -> None:
        """Show or hide the words in the scene."""
        self._labels.actor.SetVisibility(shown)

    def _drawing(self, sketch: Sketch) -> Drawing:
        return Drawing(
            sketch.shader,
            sketch.points,
            primitive=sketch.primitive,
            blend=sketch.blend,
            index=sketch.index,
            attributes=sketch.attributes,
            textures={of: self._textures[name] for of, name in sketch.textures.items()},
            uniforms=sketch.uniforms,
        )

    def _bolt_drawing(self, *, plain: bool = False) -> Drawing:
        slots, bounds = len(self._scene.bolts), self._scene.layout.points
        corners = np.stack([bounds.min(axis=0), bounds.max(axis=0)])  # the shader places the vertices itself
        detail = bolt_detail(slots, plain=plain)
        at, index = bolt_ribbons(slots, detail)
        return Drawing(
            "bolts",
            corners[np.arange(len(at)) % 2],
            primitive="triangles",
            blend="brightest",
            index=index,
            attributes={"arcAt": at},
            textures={"uArcs": self._textures["arcs"], "uPushColors": self._textures["push_colors"]},
            uniforms={
                "uStep": 1.0 / detail.segments,
                "uGlowStep": 1.0 / max(1, detail.glow),
                "uGlowFrom": detail.glow_from,
            },
        )

    def _label_drawing(self, atlas: Atlas) -> Drawing:
        labels = self._scene.layout.labels
        anchors = np.repeat(np.array([label.anchor for label in labels], np.float32), 4, axis=0)
        first = 4 * np.arange(len(labels))[:, None, None]
        return Drawing(
            "labels",
            anchors,
            primitive="triangles",
            blend="premultiplied",
            index=(first + np.array([[0, 1, 2], [0, 2, 3]])).reshape(-1, 3),
            attributes={
                "pixelOff": atlas.offsets.reshape(-1, 2),
                "atlasAt": atlas.places.reshape(-1, 2),
                "wordSpan": atlas.spans.reshape(-1, 2),
            },
            textures={"uAtlas": DataTexture(atlas.pixels)},
        )
