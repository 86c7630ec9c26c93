"""A model that can only be asked is drawn as a stream of tokens beside an inside that is hatched."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from tests.scenes.streams import SCALE, block

from fulgurite.viewer.hud import Hud, model_line
from fulgurite.viewer.scene import ReplicaScene, Storm
from fulgurite.wire.frame import FrameBlock
from fulgurite.wire.topology import BLACK_BOX, Topology

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fulgurite.viewer.vtk.renderer import Renderer

    Window = Callable[[Storm], Renderer]

T0 = 1000.0
BOX = Topology(
    model_name="somebody-else's", architecture=BLACK_BOX, layers=1, heads=0, kv_heads=0, head_dim=0,
    hidden_size=0, ffn_size=0, vocab_size=0, layer_kinds=("none",),
)  # fmt: skip
OUTSIDE = ("request_index", "sequence", "position", "token_id", "phase", "level", "step",
           "started_ns", "ended_ns", "logprob")  # fmt: skip


def _frames(position: int) -> FrameBlock:
    """What a wrapped client gives: who, when, and how probable."""
    whole = block(BOX, position=position)
    return FrameBlock(whole.requests, {name: whole.columns[name] for name in OUTSIDE}, whole.texts)


def _scene(steps: int) -> ReplicaScene:
    scene = ReplicaScene(BOX, key="box", tokens_shown="text")
    scene.set_scale(SCALE)
    scene.set_hud(Hud(state="live", tokens_per_s=9.0))
    for step in range(steps):
        scene.apply(_frames(step), T0 + 0.1 * step)
    return scene


def test_its_tokens_flow_and_nothing_inside_is_lit() -> None:
    scene = _scene(6)
    assert len(scene.strip) == 6
    assert (scene.plates.display == 0).all()
    assert np.isnan(scene.ffn_values).all()


def test_its_words_claim_no_shape() -> None:
    assert model_line(BOX) == "its inside is not measured"
    (label,) = _scene(0).layout.labels
    assert label.text == "the whole model: not measured"
    assert all(math.isfinite(x) for x in label.anchor)


def test_its_inside_stays_hatched_while_tokens_come(window: Window) -> None:
    pictures = []
    for steps in (0, 6):
        storm = Storm([_scene(steps)])
        storm.hud_visible = storm.tokens_visible = False
        pictures.append(window(storm).render(T0 + 3.0).astype(int))
    silent, streaming = pictures
    assert _stripes(streaming, window) > 10
    disc = _around_disc(window)
    assert np.abs(streaming[disc] - silent[disc]).max() < 3


def _around_disc(window: Window) -> tuple[slice, slice]:
    """Rows and columns of the lower half of the block that stands for the model."""
    storm = Storm([_scene(0)])
    renderer = window(storm)
    renderer.render(T0)
    corners = renderer.project("box", storm.scenes[0].layout.plates)[0, 0, :, :2]
    (left, top), (right, bottom) = corners.min(axis=0), corners.max(axis=0)
    return slice(int((top + bottom) / 2) + 12, int(bottom)), slice(int(left), int(right))


def _stripes(image: NDArray[Any], window: Window) -> float:
    """The largest difference of neighbouring pixels along a row."""
    return float(np.abs(np.diff(image[_around_disc(window)].sum(axis=-1), axis=1)).max())
