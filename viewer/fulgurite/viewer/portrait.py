"""What a page is told once: shaders, palettes, controls and words (`hello`), and what a replica looks like.

Pure. Positions and drawings come from the same `layout` and `drawings` as every front-end's.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from fulgurite.viewer import hud
from fulgurite.viewer.bolts import LIFE_S
from fulgurite.viewer.camera import EASE_S, PRESETS
from fulgurite.viewer.carpet import SILENT_S
from fulgurite.viewer.colors import GLASS, push_colors
from fulgurite.viewer.contribution import LARGEST_LOGITS, LINEAR_LOGITS, residue_bound
from fulgurite.viewer.drawings import BOLT_PIXELS, FINE, PLAIN, SPINE_PIXELS, sketches
from fulgurite.viewer.glow import FADE_S, FADES_OVER_S
from fulgurite.viewer.layout import HEAD_GROWTH
from fulgurite.viewer.lettering import LABEL_COLORS
from fulgurite.viewer.message import pack
from fulgurite.viewer.pace import SHED
from fulgurite.viewer.page_controls import offers
from fulgurite.viewer.palettes import palettes
from fulgurite.viewer.panel import shown
from fulgurite.viewer.pulses import JOINED_PER_S
from fulgurite.viewer.scene import RATE_OVER_S, SPREAD_S, ReplicaScene
from fulgurite.viewer.shaders import source
from fulgurite.viewer.writing import formula
from fulgurite.wire.channels import CHANNELS, KV_HEAT_BUCKETS, KV_HEAT_RECENT, LEVELS, PHASES

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fulgurite.viewer.layout import Layout

PROTOCOL = 1
SHADERS = ("common", "carpet", "plates", "lines", "spine", "heads", "walls", "halos", "bolts", "labels")
LARGEST_STEP = 32767  # arcs travel as int16 multiples of `unit`


def hello(*, story: str, history_s: float, now_s: float, address: str) -> bytes:
    """The first message to every page; `story` names the stream, whose serials a page compares."""
    presets = [asdict(preset) for preset in PRESETS]
    table = offers(tuple((preset["label"], preset["tooltip"]) for preset in presets))
    header: dict[str, Any] = {
        "kind": "hello",
        "protocol": PROTOCOL,
        "story": story,
        "now_s": now_s,
        "address": address,
        "history_s": history_s,
        "shaders": {name: source(name) for name in SHADERS},
        "presets": presets,
        "commands": [{**asdict(offer), "keys": [shown(keys) for keys in offer.shortcut]} for offer in table],
        "channels": {
            c.name: {"unit": c.unit, "formula": formula(c.name), "level": c.level, "family": c.family}
            for c in CHANNELS
        },
        "levels": LEVELS,
        "phases": PHASES,
        "palettes": [
            {"name": palette.name, "requests": palette.requests, "is_safe": palette.is_safe}
            for palette in palettes()
        ],
        "constants": _constants(),
        "label_colors": LABEL_COLORS,
        "unverified": hud.UNVERIFIED,
    }
    tables = {f"palette:{palette.name}": palette.nodes for palette in palettes()}
    return pack(header, {**tables, "push_colors": push_colors()})


def _constants() -> dict[str, Any]:
    """Numbers that the page's own scene shares with this one."""
    return {
        "fade_s": FADE_S, "fades_over_s": FADES_OVER_S, "spread_s": SPREAD_S, "life_s": LIFE_S,
        "joined_per_s": JOINED_PER_S,
        "rate_over_s": RATE_OVER_S, "silent_s": SILENT_S, "ease_s": EASE_S,
        "linear_logits": LINEAR_LOGITS, "largest_logits": LARGEST_LOGITS,
        "segments": FINE.segments, "glow_segments": FINE.glow, "glow_from": FINE.glow_from,
        "plain_segments": PLAIN.segments, "shed": SHED,
        "bolt_pixels": BOLT_PIXELS, "spine_pixels": SPINE_PIXELS,
        "head_growth": HEAD_GROWTH, "glass": GLASS,
        "heat_buckets": KV_HEAT_BUCKETS, "heat_recent": KV_HEAT_RECENT,
    }  # fmt: skip


def unit(layout: Layout) -> float:
    """The step in which the ends of arcs are told, in the layout's unit."""
    return float(np.abs(layout.points).max()) * 1.1 / LARGEST_STEP


def portrait(scene: ReplicaScene, *, name: str, level: str) -> bytes:
    """What a replica looks like: its topology, the places of its nodes, its drawings and words."""
    layout, topology = scene.layout, scene.topology
    arrays: dict[str, NDArray[Any]] = {
        "heads": layout.heads,
        "plates": layout.plates,
        "cells": layout.cells,
        "spine": layout.spine,
        "points": layout.points,
    }
    if layout.walls is not None:
        arrays["walls"] = layout.walls
    drawn = []
    for index, sketch in enumerate(sketches(layout)):
        arrays[f"{index}:points"] = sketch.points.astype(np.float32)
        arrays[f"{index}:index"] = sketch.index
        for attribute, values in sketch.attributes.items():
            arrays[f"{index}:{attribute}"] = values.astype(np.float32)
        drawn.append(
            {
                "shader": sketch.shader,
                "primitive": sketch.primitive,
                "blend": sketch.blend,
                "attributes": list(sketch.attributes),
                "textures": dict(sketch.textures),
                "uniforms": dict(sketch.uniforms),
            }
        )
    header = {
        "kind": "replica",
        "key": scene.key,
        "name": name,
        "title": scene.title,
        "tokens_shown": scene.tokens_shown,
        "level": level,
        "topology": asdict(topology),
        "model_line": hud.model_line(topology),
        "residue_bound": residue_bound(topology.dtype),
        "head_radius": layout.head_radius,
        "ffn_kind": layout.ffn_kind,
        "expert_light": _ends(scene, "expert"),
        "unit": unit(layout),
        "labels": [asdict(label) for label in layout.labels],
        "drawings": drawn,
    }
    return pack(header, arrays)


def _ends(scene: ReplicaScene, kind: str) -> list[float] | None:
    """The two ends of a display function that needs no scale of the stream."""
    display = scene.display(kind)
    return None if display is None else [display.low, display.high]
