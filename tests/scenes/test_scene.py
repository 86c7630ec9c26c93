"""The scene as arrays: each light is one captured value, and what is missing stays missing."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from tests.scenes.streams import SCALE, block, topology

from fulgurite.viewer.bolts import Arcs, Bolts, Kind, frame_seed
from fulgurite.viewer.colors import Display
from fulgurite.viewer.contribution import NOT_CAPTURED, hue
from fulgurite.viewer.glow import NEVER_S
from fulgurite.viewer.scene import RATE_OVER_S, SPREAD_S, ReplicaScene, Storm
from fulgurite.wire.frame import FrameBlock, RequestEvent
from fulgurite.wire.topology import Topology

T0 = 1000.0
SHAPE = topology(4, 6)
HEAD, FFN = (Display(*SCALE.kinds[kind], is_log=True) for kind in ("head", "ffn"))


def _scene(frames: FrameBlock | None = None, shape: object = SHAPE, **how: float) -> ReplicaScene:
    scene = ReplicaScene(shape)  # type: ignore[arg-type]
    scene.set_scale(SCALE)
    if frames is not None:
        scene.apply(frames, T0, **how)
        scene.advance(T0 + 1.0)
    return scene


def _with(frames: FrameBlock, **columns: np.ndarray) -> FrameBlock:
    return replace(frames, columns={**frames.columns, **columns})


# one value, one light


@settings(max_examples=40, deadline=None)
@given(arrays(np.float32, (1, 4, 6), elements=st.floats(0, 2, width=32)))
def test_every_head_shows_its_own_value(values: np.ndarray) -> None:
    scene = _scene(_with(block(SHAPE), head_write=values))
    assert np.array_equal(scene.heads.display, HEAD(values[0]))
    assert np.array_equal(scene.head_values, values[0])


def test_heads_that_change_places_change_lights_and_nothing_else() -> None:
    frames, order = block(SHAPE), np.array([4, 2, 0, 5, 1, 3])
    before = _scene(frames)
    after = _scene(_with(frames, head_write=frames.columns["head_write"][..., order]))
    assert np.array_equal(after.heads.display, before.heads.display[:, order])
    assert np.array_equal(after.plates.texels, before.plates.texels)
    assert np.array_equal(after.carpet.texture(0.0), before.carpet.texture(0.0))


def test_one_value_changes_one_texel() -> None:
    frames = block(SHAPE)
    values = frames.columns["head_write"].copy()
    values[0, 2, 3] *= 1.5
    one, other = (_scene(f).heads.texels for f in (frames, _with(frames, head_write=values)))
    assert np.argwhere((one != other).any(axis=-1)).tolist() == [[2, 3]]


def test_every_head_of_a_replica_has_the_same_display_function() -> None:
    scene = _scene(_with(block(SHAPE), head_write=np.full((1, 4, 6), 0.123, np.float32)))
    assert len(np.unique(scene.heads.display)) == 1


def test_rows_of_one_step_show_their_largest_value() -> None:
    frames = block(SHAPE, requests=("a", "b", "c"))
    scene = _scene(frames)
    assert np.allclose(scene.heads.display, HEAD(frames.columns["head_write"]).max(axis=0))


def test_experts_show_their_gate_weights_and_those_not_chosen_are_dark() -> None:
    shape = topology(3, 4, experts=5)
    frames = block(shape)
    scene = _scene(frames, shape)
    wanted = np.zeros((3, 5), np.float32)
    for layer in range(3):
        wanted[layer, frames.columns["expert_ids"][0, layer]] = frames.columns["expert_weights"][0, layer]
    assert np.allclose(scene.plates.display, wanted)
    assert not scene.plates.unmeasured().any()


# what is missing


def test_without_frames_everything_is_unmeasured() -> None:
    scene = _scene()
    scene.advance(T0)
    assert (scene.heads.texels[..., 2] == 1.0).all()
    assert (scene.plates.texels[..., 2] == 1.0).all()
    assert (scene.carpet.texture(0.0)[..., 0] == -1.0).all()
    assert scene.tokens_per_chain is None


@pytest.mark.parametrize("channel", ["head_write", "ffn_write", "kv_tokens"])
def test_a_missing_channel_hatches_its_own_nodes_only(channel: str) -> None:
    scene = _scene(block(SHAPE, without=(channel,)))
    assert scene.heads.unmeasured().all() == (channel == "head_write")
    assert scene.heads.unmeasured().any() == (channel == "head_write")
    assert scene.plates.unmeasured().all() == (channel == "ffn_write")
    assert (scene.carpet.texture(0.0)[..., 0] < 0).all() == (channel == "kv_tokens")


def test_a_zero_is_dark_and_measured() -> None:
    scene = _scene(_with(block(SHAPE), head_write=np.zeros((1, 4, 6), np.float32)))
    assert not scene.heads.unmeasured().any()
    assert not scene.heads.display.any()


def test_without_a_scale_nothing_can_be_drawn_to_scale() -> None:
    scene = ReplicaScene(SHAPE)
    scene.apply(block(SHAPE), T0)
    scene.advance(T0 + 1.0)
    assert scene.heads.unmeasured().all()
    assert scene.bolts.live(T0 + 0.2) == 0
    assert np.array_equal(scene.head_values, block(SHAPE).columns["head_write"][0])  # it can still be read


def test_layers_with_fewer_heads_have_no_light_beyond_them() -> None:
    shape = replace(SHAPE, layer_heads=(6, 0, 3, 6))
    scene = _scene(_with(block(shape), head_write=np.full((1, 4, 6), 0.3, np.float32)), shape)
    assert scene.heads.unmeasured().sum(axis=1).tolist() == [0, 6, 3, 0]
    assert not scene.heads.display[1].any()


def test_where_attention_was_not_captured_no_strike_comes_from_the_cache() -> None:
    flat, deep = (_scene() for _ in range(2))
    flat.apply(block(SHAPE), T0)
    deep.apply(block(SHAPE, deep=True), T0)
    for scene in (flat, deep):
        scene.advance(T0 + 0.40)
    assert not (flat.bolts.slots[:, 3, 1] == Kind.READ).any()
    assert (deep.bolts.slots[:, 3, 1] == Kind.READ).any()
    assert (flat.reads_captured, deep.reads_captured) == (False, True)
    assert not np.isfinite(flat.carpet.read_s).any()


def test_layers_that_were_not_looked_at_send_no_strikes() -> None:
    scene, frames = _scene(), block(SHAPE, deep=True)
    turns = np.zeros((1, 4), np.uint8)
    turns[0, 2] = 1
    scene.apply(_with(frames, measured_layers=turns), T0)
    scene.advance(T0 + 0.44)
    assert np.isfinite(scene.carpet.read_s).any(axis=1).tolist() == [False, False, True, False]
    assert (scene.reads.tokens, scene.reads.of, scene.reads.layers) == (1, 1, 1.0)


def test_attention_lights_no_node_and_strikes_reach_the_cells_of_the_largest_weights() -> None:
    frames = block(SHAPE, deep=True)
    other = _with(frames, attended_weights=frames.columns["attended_weights"][..., ::-1].copy())
    one, two = (_scene(f) for f in (frames, other))
    assert np.array_equal(one.heads.texels, two.heads.texels)
    assert not np.array_equal(one.carpet.read_s, two.carpet.read_s)


def test_what_was_captured_is_counted_over_the_last_seconds() -> None:
    scene = _scene()
    for step in range(12):
        scene.apply(block(SHAPE, position=30 + step, deep=step % 3 == 0), T0 + 0.5 * step)
        scene.advance(T0 + 0.5 * step)
    recent = [step % 3 == 0 for step in range(12) if 0.5 * step >= 5.5 - RATE_OVER_S]
    for captured in (scene.reads, scene.contributions):
        assert (captured.tokens, captured.of) == (sum(recent), len(recent))
    scene.clear()
    assert (scene.reads.tokens, scene.reads.of, scene.contributions.tokens) == (0, 0, 0)


# the signed push


def test_a_node_has_the_hue_of_its_own_contribution_and_its_light_stays_its_write() -> None:
    frames = block(SHAPE, deep=True)
    scene, plain = _scene(frames), _scene(block(SHAPE))
    assert np.allclose(scene.heads.hue, hue(frames.columns["head_contribution"][0]))
    assert np.allclose(scene.plates.hue[:, 0], hue(frames.columns["ffn_contribution"][0]))
    assert np.array_equal(scene.heads.display, HEAD(frames.columns["head_write"][0]))
    assert (plain.heads.hue == NOT_CAPTURED).all()
    assert (plain.heads.texels[..., 3] == NOT_CAPTURED).all()


def test_light_and_hue_of_a_node_are_those_of_one_token() -> None:
    frames = block(SHAPE, requests=("a", "b", "c"), deep=True)
    scene = _scene(frames)
    largest = HEAD(frames.columns["head_write"]).argmax(axis=0)
    hues = hue(frames.columns["head_contribution"])
    assert np.allclose(scene.heads.hue, np.take_along_axis(hues, largest[None], axis=0)[0])
    scene.apply(_with(block(SHAPE), head_write=np.full((1, 4, 6), 9.0, np.float32)), T0 + 1.0)
    scene.advance(T0 + 2.0)
    assert (scene.heads.hue == NOT_CAPTURED).all()  # a brighter hit whose contribution was not captured


def test_an_unverified_token_has_no_hue_and_says_so() -> None:
    frames = _with(block(SHAPE, deep=True), residue=np.array([0.5], np.float32))
    scene = _scene(frames)
    assert (scene.heads.hue == NOT_CAPTURED).all()
    assert scene.shares is not None
    assert not scene.shares.is_verified
    assert scene.contributions.tokens == 0


# time


def test_layers_light_up_one_after_the_other() -> None:
    scene = _scene()
    scene.apply(block(SHAPE), T0)
    lit = []
    for share in (0.0, 0.2, 0.5, 0.8, 1.0):
        scene.advance(T0 + share * SPREAD_S)
        lit.append(int((scene.heads.stamp > NEVER_S).any(axis=1).sum()))
    assert lit == [0, 1, 2, 3, 4]


@settings(max_examples=20, deadline=None)
@given(st.lists(st.floats(0.001, 0.2), min_size=1, max_size=20))
def test_what_is_lit_does_not_depend_on_when_it_was_looked_at(looks: list[float]) -> None:
    often, once = _scene(), _scene()
    for scene in (often, once):
        for step in range(5):
            scene.apply(block(SHAPE, position=30 + step, deep=True), T0 + 0.1 * step)
    end_s = T0 + 1.0
    now_s = T0
    for look in looks:
        now_s = min(end_s, now_s + look)
        often.advance(now_s)
    for scene in (often, once):
        scene.advance(end_s)
    assert np.array_equal(often.nodes.texels, once.nodes.texels)
    assert np.array_equal(often.carpet.texture(0.0), once.carpet.texture(0.0))
    assert often.bolts.live(end_s) == once.bolts.live(end_s)


def test_after_clear_the_same_past_gives_the_same_scene() -> None:
    fresh, used = _scene(), _scene(block(SHAPE, position=99, seed=7, requests=("x", "y")))
    used.clear()
    for scene in (fresh, used):
        scene.apply(block(SHAPE), T0)
        scene.advance(T0 + 0.3)
    assert np.array_equal(fresh.nodes.texels, used.nodes.texels)
    assert np.array_equal(fresh.carpet.texture(0.0), used.carpet.texture(0.0))
    assert list(fresh.strip) == list(used.strip)


# tokens and requests


def test_the_strip_says_what_was_emitted_and_how_probable_it_was() -> None:
    frames = block(SHAPE, requests=("a", "b"))
    scene = _scene(frames)
    assert [token.text for token in scene.strip] == list(frames.texts or ())
    wanted = np.exp(frames.columns["logprob"]).tolist()
    assert [token.probability for token in scene.strip] == pytest.approx(wanted)
    assert [token.request_id for token in scene.strip] == ["a", "b"]


def test_without_log_probabilities_the_strip_has_none_and_without_text_no_text() -> None:
    scene = _scene(block(SHAPE, texts=False, without=("logprob", "token_id")))
    (token,) = scene.strip
    assert (token.text, token.token_id, token.probability) == (None, -1, None)


def test_a_request_that_finished_gives_its_colour_back() -> None:
    scene = _scene()
    scene.apply(block(SHAPE, requests=("a", "b")), T0)
    assert [name for name, _ in scene.requests] == ["a", "b"]
    scene.event(RequestEvent(kind="finished", request_id="a", time_ns=0), T0)
    assert [name for name, _ in scene.requests] == ["b"]


def test_one_chain_stands_for_so_many_tokens_as_were_not_drawn() -> None:
    scene = _scene()
    scene.set_slots(72)
    names = tuple(f"r{i}" for i in range(24))
    scene.apply(block(SHAPE, requests=names), T0)
    assert 1 <= scene.chains < 24
    assert scene.tokens_per_chain == pytest.approx(24 / scene.chains)
    scene.advance(T0 + SPREAD_S)
    trunk = (scene.bolts.slots[:, 3, 1] == Kind.TRUNK) & (scene.bolts.slots[:, 1, 3] > 0)
    assert len(np.unique(scene.bolts.slots[trunk, 2, :3], axis=0)) == scene.chains  # a colour each


@pytest.mark.parametrize("shape", [topology(8, 8), topology(32, 32, experts=4), topology(126, 8)])
@pytest.mark.parametrize("replicas", [1, 2, 4])
def test_a_chain_with_its_strikes_finds_room_however_many_replicas_are_shown(
    shape: Topology, replicas: int
) -> None:
    storm = Storm([ReplicaScene(shape, key=str(index)) for index in range(replicas)])
    scene = storm.scenes[0]
    scene.set_scale(SCALE)
    scene.apply(block(shape, deep=True), T0)
    storm.advance(T0 + 0.4)
    assert scene.strip[0].has_chain
    kinds = scene.bolts.slots[scene.bolts.slots[:, 1, 3] > 0, 3, 1]
    assert {Kind.HEAD, Kind.READ, Kind.TRUNK} <= set(kinds.tolist())


def test_who_waited_longest_for_a_chain_goes_first() -> None:
    class Telling(Bolts):
        seeds: ClassVar[list[int]] = []

        def add(self, arcs: Arcs, at_s: float, spread_s: float, *, color: Any, seed: int) -> None:
            self.seeds.append(seed)

    scene = _scene()
    scene.bolts = Telling(72)
    names = tuple(f"r{i}" for i in range(12))
    for step in range(24):
        scene.apply(block(SHAPE, position=30 + step, requests=names), T0 + 0.25 * step)
    whose = {frame_seed(name, 0, 30 + step): name for name in names for step in range(24)}
    turns = [whose[seed] for seed in Telling.seeds]
    assert len(turns) >= 12
    assert all(len(set(turns[i : i + 12])) == 12 for i in range(len(turns) - 11))


# the storm


def test_replicas_are_shown_in_the_order_in_which_they_came_and_can_be_chosen() -> None:
    storm = Storm([ReplicaScene(SHAPE, key=key) for key in "abc"])
    assert [scene.key for scene in storm.shown] == ["a", "b", "c"]
    storm.show(["c", "a"])
    assert [scene.key for scene in storm.shown] == ["a", "c"]
    storm.remove("a")
    storm.remove("c")
    assert [scene.key for scene in storm.shown] == ["b"]


def test_the_arcs_are_shared_out_between_the_replicas_that_are_shown() -> None:
    storm = Storm([ReplicaScene(SHAPE, key=key) for key in "abcd"], arcs=400)
    assert [len(scene.bolts) for scene in storm.scenes] == [100] * 4
    storm.show(["a"])
    assert len(storm["a"].bolts) == 400


def test_time_stays_exact_far_from_the_epoch() -> None:
    storm = Storm([_scene()])
    at_s = 1.9e9
    storm.scenes[0].apply(block(SHAPE), at_s)
    storm.advance(at_s + 0.5)
    stamps = storm.scenes[0].heads.texels[..., 1]
    assert math.isclose(float(stamps.min()) + storm.origin_s, at_s + SPREAD_S * 0.25 / 4, abs_tol=1e-3)
