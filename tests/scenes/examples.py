"""The example scenes: made-up streams, one per level of detail and view, and when each picture is taken."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from tests.scenes.streams import SCALE, block, topology

from fulgurite.viewer.focus import Focus
from fulgurite.viewer.hud import Hud
from fulgurite.viewer.palettes import palettes
from fulgurite.viewer.scene import ReplicaScene, Storm
from fulgurite.wire.topology import Topology

T0 = 1000.0
SIZE = (480, 270)


def _storm(
    shape: Topology, *, replicas: int = 1, steps: int = 6, deep: bool = True, arcs: int = 300
) -> Storm:
    storm = Storm(
        [ReplicaScene(shape, key=f"replica {i}", tokens_shown="text") for i in range(replicas)], arcs=arcs
    )
    for index, scene in enumerate(storm.scenes):
        scene.set_scale(SCALE)
        scene.set_hud(
            Hud(replica=scene.key, tokens_per_s=9.0, running_requests=2, level="deep", gap_frames=0)
        )
        for step in range(steps):
            frames = block(shape, position=30 + step, requests=("a", "b"), seed=index, deep=deep)
            scene.apply(frames, T0 + 0.12 * step)
    return storm


def _with(storm: Storm, change: Callable[[Storm], object]) -> Storm:
    change(storm)
    return storm


def _focused() -> Storm:
    storm = _storm(topology(8, 8), steps=0)
    scene = storm.scenes[0]
    scene.set_focus(Focus(layers=(2, 4)))
    for step in range(6):
        scene.apply(
            block(topology(8, 8), position=30 + step, requests=("a", "b"), deep=True), T0 + 0.12 * step
        )
    return storm


EXAMPLES: dict[str, Callable[[], Storm]] = {
    "two-layers": lambda: _storm(topology(2, 4)),
    "balls": lambda: _storm(topology(12, 12)),
    "shelf": lambda: _storm(topology(32, 32)),
    "experts": lambda: _storm(topology(32, 32, experts=8)),
    "wall": lambda: _storm(topology(80, 64)),
    "largest": lambda: _storm(replace(topology(126, 128), kv_heads=8)),
    "many-experts": lambda: _storm(replace(topology(61, 128, experts=256), experts_per_token=8)),
    "four-replicas": lambda: _storm(topology(8, 8), replicas=4),
    "not-measured": lambda: _storm(topology(8, 8), steps=0),
    "contribution": lambda: _with(_storm(topology(8, 8)), lambda s: setattr(s, "shows_contribution", True)),
    "focus": _focused,
    "light": lambda: _with(_storm(topology(12, 12)), lambda s: setattr(s, "is_light", True)),
    "frost": lambda: _with(_storm(topology(12, 12), steps=0), lambda s: setattr(s, "palette", palettes()[1])),
    "panels": lambda: _with(_storm(topology(12, 12)), lambda s: setattr(s, "panels_visible", True)),
}
AT_S = T0 + 0.12 * 5 + 0.30
