"""The card of a node: the values that were measured, of which token, and in words what was not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tests.scenes.streams import SCALE, block, topology

from fulgurite.viewer.camera import Pick
from fulgurite.viewer.inspection import card
from fulgurite.viewer.scene import ReplicaScene
from fulgurite.wire.frame import FrameBlock, RequestEvent

SHAPE = topology(4, 6)
HEAD, FFN = Pick("head", 2, 3), Pick("ffn", 1, -1)
T0 = 50.0


def _scene(*frames: FrameBlock, shape: Any = SHAPE) -> ReplicaScene:
    scene = ReplicaScene(shape)
    scene.set_scale(SCALE)
    for index, frame in enumerate(frames):
        scene.apply(frame, T0 + 0.1 * index)
    return scene


def _rows(said: dict[str, Any]) -> dict[str, tuple[str, str]]:
    return {label: (value, what) for label, value, what in said["rows"]}


def test_a_head_shows_its_own_values_with_formula_and_unit() -> None:
    frames = block(SHAPE, deep=True)
    rows = _rows(card(_scene(frames), HEAD, T0 + 0.5))
    at, columns = (0, 2, 3), frames.columns
    assert rows["write norm"][0] == f"{float(columns['head_write'][at]):.3g}"
    assert rows["write norm"][1].startswith("‖oₕ‖ / ‖r⁺‖")
    pushed = f"{float(columns['head_contribution'][at]):+.3g} logits".replace("-", "−")
    assert rows["contribution"] == (pushed, "oₕ · g (u_y − ū) / s")
    assert rows["attention entropy"][0] == f"{float(columns['attention_entropy'][at]):.3g} nats"
    assert rows["sink mass"][0] == f"{float(columns['sink_mass'][at]):.3g}"
    assert rows["level"] == ("deep", "deep: every token")
    assert rows["when"][0] == "0.5 s ago"
    assert rows["token"][0].endswith("position 40")


def test_the_write_norm_says_where_it_lies_on_the_scale_of_its_light() -> None:
    frames = block(SHAPE)
    scene = _scene(frames)
    share = 100 * float(
        scene.heads.display[2, 3] or scene.display("head")(frames.columns["head_write"][0, 2, 3])
    )  # type: ignore[misc]
    assert (
        f"light {share:.0f} % between 0.01 and 0.4, logarithmic"
        in _rows(card(scene, HEAD, T0))["write norm"][1]
    )


def test_an_ffn_block_shows_its_write_its_push_and_its_neurons() -> None:
    frames = block(SHAPE, deep=True)
    frames.columns["neuron_ids"] = np.tile(np.arange(8, dtype=np.int32), (1, 4, 1)) + 100
    frames.columns["neuron_values"] = np.tile(np.linspace(4, 0.5, 8, dtype=np.float32), (1, 4, 1))
    said = card(_scene(frames), FFN, T0)
    assert said["title"] == "layer 1 · FFN"
    rows = _rows(said)
    assert rows["write norm"][0] == f"{float(frames.columns['ffn_write'][0, 1]):.3g}"
    assert rows["contribution"][0].startswith(
        f"{float(frames.columns['ffn_contribution'][0, 1]):+.3g}".replace("-", "−")
    )
    assert said["list"][0] == ["4", "neuron 100", ""]


def test_attended_positions_are_named_by_their_tokens_and_the_prompt() -> None:
    frames = [block(SHAPE, position=position, deep=True) for position in (40, 41, 42)]
    last = frames[-1].columns
    last["attended_positions"][0, 2, 3, :3] = (40, 7, 41)
    last["attended_weights"][0, 2, 3, :3] = (0.6, 0.3, 0.1)
    scene = _scene(*frames)
    scene.event(RequestEvent(kind="started", request_id="request-1", time_ns=0, prompt_tokens=40), T0)
    said = card(scene, HEAD, T0)
    texts = [frame.texts[0].strip() for frame in frames if frame.texts]
    assert said["list"][:3] == [
        ["60 %", "40", f"“{texts[0]}”"],
        ["30 %", "7", "of the prompt"],
        ["10 %", "41", f"“{texts[1]}”"],
    ]
    assert "routing" in said["list_title"]


def test_without_text_positions_stand_alone() -> None:
    said = card(_scene(block(SHAPE, deep=True, texts=False)), HEAD, T0)
    assert all(token == "" for _, _, token in said["list"])
    assert _rows(said)["token"][0] == "position 40"


def test_what_was_not_captured_is_said_and_never_zero() -> None:
    said = card(_scene(block(SHAPE)), HEAD, T0)
    rows = _rows(said)
    for label in ("contribution", "attention entropy", "sink mass"):
        assert rows[label][0] == "not captured"
    assert (said["list_title"], said["list"]) == ("attended positions: not captured", [])
    assert _rows(card(_scene(), HEAD, T0)) == {"": ("no frame yet", "")}


def test_deep_values_name_their_token_where_the_newest_one_has_none() -> None:
    frames = block(SHAPE, position=40, deep=True)
    rows = _rows(card(_scene(frames, block(SHAPE, position=41)), HEAD, T0 + 1.0))
    assert rows["token"][0].endswith("position 41")
    assert rows["deep values of"][0].endswith("position 40")
    assert rows["deep values of"][1].startswith("1.0 s")
    assert rows["level"] == ("heads", "deep: 1 token in 2")


def test_a_layer_that_was_not_looked_at_has_no_routing_on_its_card() -> None:
    frames = block(SHAPE, deep=True)
    frames.columns["measured_layers"][0, 2] = 0
    said = card(_scene(frames), HEAD, T0)
    assert _rows(said)["attention entropy"][0] == "not captured"
    assert said["list"] == []
    assert card(_scene(frames), Pick("head", 1, 3), T0)["list"]


def test_a_contribution_that_does_not_add_up_is_unverified() -> None:
    frames = block(SHAPE, deep=True)
    frames.columns["residue"][0] = 0.1
    assert _rows(card(_scene(frames), HEAD, T0))["contribution"][1].startswith("unverified")


@pytest.mark.parametrize("missing", [(), ("expert_weights",)])
def test_experts_are_listed_with_their_gate_weights(missing: tuple[str, ...]) -> None:
    shape = topology(4, 6, experts=5)
    frames = block(shape, without=missing)
    said = card(_scene(frames, shape=shape), FFN, T0)
    if missing:
        assert said["list"] == []
        return
    ids, weights = frames.columns["expert_ids"][0, 1], frames.columns["expert_weights"][0, 1]
    assert said["list"] == [
        [f"{float(w):.3f}", f"expert {int(i)}", ""] for i, w in zip(ids, weights, strict=True)
    ]
