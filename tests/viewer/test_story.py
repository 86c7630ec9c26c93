"""What pages are told of a stream: every token, as it was captured, and the arcs that the scene draws."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tests.scenes.streams import SCALE, block, topology
from tests.viewer.site import ended

from fulgurite.viewer.events import Event, Frames, ReplicaSeen
from fulgurite.viewer.layout import Layout
from fulgurite.viewer.message import unpack
from fulgurite.viewer.portrait import unit
from fulgurite.viewer.retelling import NO_ROW
from fulgurite.viewer.story import Story
from fulgurite.wire.frame import FrameBatch, RequestEvent

SHAPE = topology(8, 8)
KEY = "test/model/one"
NOW_S = 2_000_000_000.0


def _seen(shape: Any = SHAPE) -> ReplicaSeen:
    return ReplicaSeen(key=KEY, topology=shape, level="deep", tokens="text", scale=SCALE)


def _frames(first: int, *frames: Any, events: tuple[RequestEvent, ...] = ()) -> Frames:
    batch = FrameBatch(epoch_ms=1, first_sequence=first, blocks=frames, events=events)
    ended_ns = max((int(frame.columns["ended_ns"].max()) for frame in frames), default=int(NOW_S * 1e9))
    return Frames(key=KEY, batch=batch, live=True, received_ns=ended_ns + 10**7, nbytes=1000)


def _told(story: Story, *events: Event, now_s: float = NOW_S) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    return [unpack(message.data) for message in story.turn(events, now_s)]


def test_a_new_replica_is_portrayed_before_its_scale_and_its_tokens() -> None:
    story = Story()
    frame = ended(block(SHAPE, deep=True), NOW_S - 0.02)
    kinds = [header["kind"] for header, _ in _told(story, _seen(), _frames(1, frame))]
    assert kinds == ["replica", "scale", "tokens", "state"]


def test_a_latecomer_knows_a_replica_before_its_scale_also_where_it_was_renamed() -> None:
    story = Story()
    _told(story, _seen())
    other = ReplicaSeen(key="test/model/two", topology=SHAPE, level="deep", tokens="text", scale=SCALE)
    renamed = _told(story, other)  # a second of the same service: the first is named by its instance now
    assert KEY in {header["key"] for header, _ in renamed if header["kind"] == "replica"}
    known = [unpack(data)[0] for data in story.welcome(NOW_S)]
    for key in (KEY, "test/model/two"):
        kinds = [header["kind"] for header in known if header.get("key") == key]
        assert kinds == ["replica", "scale"]


def test_a_token_is_told_as_it_was_captured() -> None:
    story = Story()
    frame = ended(block(SHAPE, deep=True), NOW_S - 0.02)
    header, arrays = next(
        pair for pair in _told(story, _seen(), _frames(1, frame)) if pair[0]["kind"] == "tokens"
    )
    assert header["texts"] == list(frame.texts or ())
    assert header["requests"] == [["request-1", "", ""]]
    assert arrays["at"].tolist() == pytest.approx([NOW_S - 0.02], abs=1e-5)
    assert arrays["step_s"].tolist() == pytest.approx([0.01])
    for name in ("head_write", "ffn_write", "attended_weights"):
        np.testing.assert_allclose(arrays[f"c:{name}"], frame.columns[name], rtol=5e-4, atol=1e-7)
    for name in ("head_contribution", "attended_positions", "kv_tokens"):
        np.testing.assert_array_equal(arrays[f"c:{name}"], frame.columns[name])


def test_the_arcs_are_those_of_the_scene() -> None:
    story = Story()
    frame = ended(block(SHAPE, deep=True), NOW_S - 0.02)
    _, arrays = next(pair for pair in _told(story, _seen(), _frames(1, frame)) if pair[0]["kind"] == "tokens")
    scene = story.session.storm[KEY]
    for later_s in (0.2, 0.45):
        scene.advance(NOW_S + later_s)
    drawn = scene.bolts.slots[scene.bolts.slots[:, 1, 3] > 0]
    assert len(arrays["a:row"]) == len(drawn) > 20
    step = unit(Layout.for_topology(SHAPE))
    for name, texel in (("a:start", 0), ("a:end", 1)):
        told = np.sort(np.asarray(arrays[name] * step), axis=0)
        np.testing.assert_allclose(told, np.sort(drawn[:, texel, :3], axis=0), atol=step)
    np.testing.assert_allclose(np.sort(arrays["a:display"]), np.sort(drawn[:, 2, 3]), atol=1e-3)


def test_what_is_too_much_is_folded_and_no_token_is_lost() -> None:
    story = Story(bytes_per_s=4000.0)
    names = tuple(f"request-{index}" for index in range(40))
    frame = ended(block(SHAPE, deep=True, requests=names), NOW_S - 0.02)
    _, arrays = next(pair for pair in _told(story, _seen(), _frames(1, frame)) if pair[0]["kind"] == "tokens")
    assert len(arrays["at"]) == len(arrays["logprob"]) == 40
    kept = arrays["row"] != NO_ROW
    assert 0 < kept.sum() < 10
    np.testing.assert_allclose(arrays["c:head_write"], frame.columns["head_write"][kept], rtol=5e-4)
    display = story.session.storm[KEY].display("head")
    assert display is not None
    wanted = display(frame.columns["head_write"].max(axis=0))
    np.testing.assert_allclose(arrays["fold:head"] / 254, wanted, atol=0.003)


def test_who_comes_late_is_told_what_the_others_know() -> None:
    story = Story(history_s=60.0)
    _told(story, _seen())
    for index in range(5):
        frame = ended(block(SHAPE, position=40 + index), NOW_S + index)
        _told(story, _frames(1 + index, frame), now_s=NOW_S + index + 0.1)
    kinds = [unpack(data)[0]["kind"] for data in story.welcome(NOW_S + 5)]
    assert kinds[0] == "hello"
    assert sorted(kinds) == ["hello", "replica", "scale", "state"]
    assert len([message for message in story.past() if message.kind == "tokens"]) == 5
    _told(story, now_s=NOW_S + 62.5)
    assert len([message for message in story.past() if message.kind == "tokens"]) == 2


def test_the_kept_past_stays_within_its_bytes() -> None:
    story = Story(kept_bytes=40_000)
    _told(story, _seen())
    for index in range(30):
        _told(
            story,
            _frames(1 + index, ended(block(SHAPE, position=40 + index, deep=True), NOW_S + index / 10)),
            now_s=NOW_S + index / 10,
        )
    assert 0 < sum(len(message.data) for message in story.past()) <= 40_000


def test_a_request_that_begins_is_told_with_its_prompt() -> None:
    story = Story()
    started = RequestEvent(request_id="r", kind="started", time_ns=int(NOW_S * 1e9), prompt_tokens=7)
    header = next(h for h, _ in _told(story, _seen(), _frames(1, events=(started,))) if h["kind"] == "event")
    assert (header["what"], header["request"], header["prompt_tokens"]) == ("started", "r", [7])


def test_hello_carries_every_shader_command_and_channel() -> None:
    header, arrays = unpack(Story().welcome(NOW_S)[0])
    assert "vertex main" in header["shaders"]["bolts"]
    assert {"pause", "next_slow", "help"} <= {command["name"] for command in header["commands"]}
    assert header["channels"]["head_write"]["unit"] == "1"
    assert sum(palette["is_safe"] for palette in header["palettes"]) >= 2
    for palette in header["palettes"]:
        rgb = arrays[f"palette:{palette['name']}"][:, :3].astype(np.float64)
        lightness = rgb @ [0.2126, 0.7152, 0.0722]
        assert (np.diff(lightness) > -2e-3).all(), f"{palette['name']} does not rise in lightness"
