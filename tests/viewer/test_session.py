"""From the feed to the storm: what was measured is what is lit, for the replicas that were chosen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from fulgurite.viewer.camera import Pick
from fulgurite.viewer.events import (
    Event,
    FeedDown,
    FeedTrouble,
    FeedUp,
    Frames,
    GapSeen,
    ReplicaSeen,
    ReplicaStatus,
    StatusSeen,
)
from fulgurite.viewer.facts import facts, marked, tint
from fulgurite.viewer.session import Session
from fulgurite.viewer.timeline import Mode, Timeline
from fulgurite.wire.frame import FrameBatch, FrameBlock, RequestEvent, RequestRef, Scale
from fulgurite.wire.topology import Topology

T0 = 1_700_000_000.0
SCALE = Scale(version=1, kinds={"head": (0.0, 1.0), "ffn": (0.0, 1.0)}, tokens=100)
TOPOLOGY = Topology(
    model_name="tiny",
    architecture="llama",
    layers=3,
    heads=4,
    kv_heads=2,
    head_dim=8,
    hidden_size=32,
    ffn_size=64,
    vocab_size=100,
)


def _seen(key: str, topology: Topology = TOPOLOGY, tokens: str = "text") -> ReplicaSeen:
    return ReplicaSeen(key=key, topology=topology, level="heads", tokens=tokens, scale=SCALE)


def _frames(
    key: str,
    ended_s: Sequence[float],
    *,
    write: float = 0.5,
    received_s: float | None = None,
    first: int = 1,
    live: bool = True,
    request: str = "req",
    events: tuple[RequestEvent, ...] = (),
) -> Frames:
    count = len(ended_s)
    ended_ns = np.array([round(second * 1e9) for second in ended_s], np.int64)
    columns: dict[str, Any] = {
        "request_index": np.zeros(count, np.uint16),
        "sequence": np.zeros(count, np.uint16),
        "position": np.arange(first, first + count, dtype=np.int32),
        "phase": np.ones(count, np.uint8),
        "level": np.full(count, 2, np.uint8),
        "started_ns": ended_ns - 10_000_000,
        "ended_ns": ended_ns,
        "logprob": np.full(count, -0.5, np.float32),
        "head_write": np.full((count, 3, 4), write, np.float32),
        "ffn_write": np.full((count, 3), write, np.float32),
        "kv_tokens": np.full((count, 3), 5, np.int32),
    }
    block = FrameBlock((RequestRef(request),), columns, tuple(f"w{index}" for index in range(count)))
    batch = FrameBatch(epoch_ms=1, first_sequence=first, blocks=(block,), events=events)
    received_ns = round((ended_s[-1] + 0.01 if received_s is None else received_s) * 1e9)
    return Frames(key=key, batch=batch, live=live, received_ns=received_ns)


def _session(*events: Event, now_s: float = T0) -> Session:
    session = Session(timeline=Timeline(delay_s=0.15), address="there:1")
    session.absorb([FeedUp(address="there:1"), *events], now_s)
    session.advance(now_s)
    return session


def _light(session: Session, key: str, at_s: float) -> float:
    scene = session.storm[key]
    scene.advance(at_s)
    return float(np.nanmax(scene.heads.light(at_s)))


def test_a_token_lights_its_replica_after_the_delay_and_no_other() -> None:
    session = _session(_seen("n/a/1"), _seen("n/b/1"))
    session.absorb([_frames("n/a/1", [T0 + 1.0])], T0 + 1.01)
    session.advance(T0 + 1.10)
    assert session.tokens == 0
    assert session.advance(T0 + 1.16)
    assert session.tokens == 1
    assert _light(session, "n/a/1", T0 + 1.5) > 0.1
    assert _light(session, "n/b/1", T0 + 1.5) == 0.0


def test_the_light_follows_the_measured_value() -> None:
    lights = []
    for write in (0.2, 0.4, 0.8):
        session = _session(_seen("n/a/1"))
        session.absorb([_frames("n/a/1", [T0 + 1.0], write=write)], T0 + 1.01)
        session.advance(T0 + 1.2)
        lights.append(_light(session, "n/a/1", T0 + 1.5))
    assert lights[0] < lights[1] < lights[2]


def test_a_token_that_comes_late_is_lit_when_it_comes() -> None:
    session = _session(_seen("n/a/1"))
    session.absorb([_frames("n/a/1", [T0 + 1.0])], T0 + 1.01)
    session.advance(T0 + 5.0)
    session.absorb([_frames("n/a/1", [T0 + 2.0], received_s=T0 + 5.1, first=2)], T0 + 5.1)
    session.advance(T0 + 5.2)
    assert _light(session, "n/a/1", T0 + 5.5) > 0.1


def test_the_past_of_a_late_joiner_is_not_lit_as_if_it_were_now() -> None:
    session = _session(_seen("n/a/1"))
    session.absorb([_frames("n/a/1", [T0 - 2.0], received_s=T0 + 0.1, live=False)], T0 + 0.1)
    session.advance(T0 + 0.2)
    assert _light(session, "n/a/1", T0 + 0.5) < 0.01
    assert session.latency_s("n/a/1") is None


def test_a_late_joiner_can_go_back_and_the_scene_is_lit_as_it_was() -> None:
    session = _session(_seen("n/a/1"))
    for second in range(50, 0, -5):
        first = 51 - second
        session.absorb(
            [_frames("n/a/1", [T0 - second], received_s=T0 + 0.1, live=False, first=first)], T0 + 0.1
        )
    session.advance(T0 + 0.2)
    for second in (45, 20, 5):
        session.timeline.seek(T0 - second + 0.2)
        session.advance(T0 + 0.3)
        assert _light(session, "n/a/1", T0 - second + 0.4) > 0.1
    session.timeline.seek(T0 - 22.0)
    session.advance(T0 + 0.4)
    assert _light(session, "n/a/1", T0 - 22.0) < 0.01  # nothing was lit then


def test_the_most_active_head_of_the_last_token_is_kept_with_its_token() -> None:
    session = _session(_seen("n/a/1"))
    session.absorb([_frames("n/a/1", [T0 + 1.0])], T0 + 1.01)
    session.advance(T0 + 1.2)
    session.choose_most_active()
    assert session.timeline.mode is Mode.PAUSED
    assert session.pinned is not None
    assert session.chosen is not None
    assert session.chosen.block.columns["position"][session.chosen.row] == 1


def test_the_latency_from_token_to_screen_is_measured() -> None:
    session = _session(_seen("n/a/1"))
    session.absorb([_frames("n/a/1", [T0 + 1.0])], T0 + 1.01)
    session.advance(T0 + 1.16)
    session.on_screen(T0 + 1.18)
    assert session.latency_s("n/a/1") == pytest.approx(0.18, abs=1e-3)
    session.advance(T0 + 1.2)
    assert session.storm["n/a/1"].hud.latency_s == pytest.approx(0.18, abs=1e-3)


def test_a_pause_changes_nothing_until_it_is_over() -> None:
    session = _session(_seen("n/a/1"))
    session.absorb([_frames("n/a/1", [T0 + 1.0 + 0.1 * row for row in range(10)])], T0 + 2.0)
    session.advance(T0 + 1.5)
    session.toggle_pause()
    session.advance(T0 + 1.6)
    at_s = session.scene_s
    assert not session.advance(T0 + 9.0)
    assert session.scene_s == at_s
    assert facts(session)["fg_mode"] == "paused"
    session.toggle_pause()
    session.advance(T0 + 9.05)
    assert session.scene_s == pytest.approx(at_s + 0.05)


def test_scrubbing_back_shows_the_same_light_again() -> None:
    session = _session(_seen("n/a/1"))
    for second in range(1, 9):
        write = 0.1 * second
        session.absorb([_frames("n/a/1", [T0 + second], write=write, first=second)], T0 + second + 0.01)
        session.advance(T0 + second + 0.2)
        if second == 3:
            then = _light(session, "n/a/1", T0 + 3.4)
    session.timeline.seek(T0 + 3.3)
    session.advance(T0 + 8.3)
    assert _light(session, "n/a/1", T0 + 3.4) == pytest.approx(then, rel=1e-5)
    assert [chip.position for chip in session.strip.rows("n/a/1")[0].chips] == [1, 2, 3]


def test_the_order_of_replicas_stays_and_each_can_be_chosen() -> None:
    session = _session(_seen("n/b/1"), _seen("n/a/1"), _seen("n/c/1"))
    assert list(session.shown) == ["n/b/1", "n/a/1", "n/c/1"]
    session.toggle_replica("n/b/1")
    assert list(session.shown) == ["n/a/1", "n/c/1"]
    assert [scene.key for scene in session.storm.shown] == ["n/a/1", "n/c/1"]
    session.toggle_replica("n/b/1")
    assert list(session.shown) == ["n/b/1", "n/a/1", "n/c/1"]


def test_the_last_replica_on_screen_stays() -> None:
    session = _session(_seen("n/a/1"), _seen("n/b/1"))
    session.toggle_replica("n/a/1")
    session.toggle_replica("n/b/1")
    assert session.shown == ("n/b/1",)


def test_tab_goes_through_the_replicas_one_by_one() -> None:
    session = _session(_seen("n/a/1"), _seen("n/b/1"))
    visited = []
    for _ in range(3):
        session.next_replica(1)
        visited.append(session.shown)
    assert visited == [("n/a/1",), ("n/b/1",), ("n/a/1",)]
    session.show_all()
    assert session.shown == ("n/a/1", "n/b/1")


def test_no_more_replicas_are_shown_at_once_than_can_be_read() -> None:
    session = _session(*(_seen(f"n/s{index}/1") for index in range(9)))
    assert len(session.shown) == 4
    assert len(facts(session)["fg_replicas"]) == 9


@pytest.mark.parametrize(
    ("keys", "names"),
    [
        (("n/chat/1", "n/code/1"), ("chat", "code")),
        (("n/demo/replica-0", "n/demo/replica-1"), ("replica-0", "replica-1")),
        (
            ("n/demo/11111111-aaaa-bbbb-cccc", "n/demo/22222222-aaaa-bbbb-cccc", "n/chat/1"),
            ("demo · 11111111", "demo · 22222222", "chat"),
        ),
        (
            ("n/d/11111111-aaaa-bbbb-x", "n/d/11111111-aaaa-bbbb-y"),
            ("11111111-aaaa-bbbb-x", "11111111-aaaa-bbbb-y"),
        ),
    ],
)
def test_names_are_as_short_as_they_can_be(keys: tuple[str, ...], names: tuple[str, ...]) -> None:
    session = _session(*(_seen(key) for key in keys))
    assert tuple(session.name(key) for key in keys) == names


def test_another_model_under_the_same_name_starts_anew() -> None:
    session = _session(_seen("n/a/1"))
    session.absorb([_frames("n/a/1", [T0 + 1.0])], T0 + 1.01)
    session.advance(T0 + 1.2)
    larger = Topology(**{**{name: getattr(TOPOLOGY, name) for name in (
        "model_name", "architecture", "heads", "kv_heads", "head_dim", "hidden_size", "ffn_size", "vocab_size"
    )}, "layers": 5})  # fmt: skip
    session.absorb([_seen("n/a/1", larger)], T0 + 2.0)
    session.advance(T0 + 2.1)
    assert session.storm["n/a/1"].topology.layers == 5
    assert session.timeline.keys == ()
    assert session.strip.rows("n/a/1") == ()


def test_frames_of_a_replica_that_nobody_announced_are_left_out() -> None:
    session = _session()
    session.absorb([_frames("n/a/1", [T0])], T0)
    session.advance(T0 + 1.0)
    assert session.tokens == 0


def test_gaps_are_counted_and_told() -> None:
    session = _session(_seen("n/a/1"))
    status = ReplicaStatus(key="n/a/1", state="live", dropped={"outbox_full": 3})
    gap = GapSeen(key="n/a/1", epoch_ms=1, first_sequence=5, last_sequence=8, frames=4, reason="slow_viewer")
    session.absorb([StatusSeen(status=status), gap], T0 + 1.0)
    session.advance(T0 + 1.0)
    assert session.storm["n/a/1"].hud.gap_frames == 7
    assert facts(session)["fg_strip"][0]["gap"] == "4 tokens not shown: skipped: this viewer was too slow"
    session.advance(T0 + 60.0)
    assert facts(session)["fg_strip"][0]["gap"] == ""


def test_what_the_replica_does_not_say_is_not_shown_as_zero() -> None:
    session = _session(_seen("n/a/1"))
    hud = session.storm["n/a/1"].hud
    assert (hud.tokens_per_s, hud.kv_bytes, hud.overhead_ratio, hud.gap_frames, hud.latency_s) == (None,) * 5


def test_the_strip_has_the_colour_of_the_scene() -> None:
    session = _session(_seen("n/a/1"))
    session.absorb(
        [_frames("n/a/1", [T0 + 1.0], request="one"), _frames("n/a/1", [T0 + 1.0], request="two")], T0 + 1.1
    )
    session.advance(T0 + 1.2)
    lanes = facts(session)["fg_strip"][0]["lanes"]
    assert [lane["request"] for lane in lanes] == ["one", "two"]
    assert [lane["tint"] for lane in lanes] == [tint(0), tint(1)]
    assert lanes[0]["chips"][0][1] == "w0"


def test_a_finished_request_gives_its_colour_back() -> None:
    session = _session(_seen("n/a/1"))
    over = RequestEvent(request_id="one", kind="finished", time_ns=round((T0 + 1.0) * 1e9))
    session.absorb([_frames("n/a/1", [T0 + 1.0], request="one", events=(over,))], T0 + 1.1)
    session.advance(T0 + 1.2)
    assert [name for name, _ in session.storm["n/a/1"].requests] == ["one"]
    session.advance(T0 + 2.3)
    assert session.storm["n/a/1"].requests == []


def test_an_absent_collector_is_said_with_what_to_do() -> None:
    session = Session(address="there:1")
    assert facts(session)["fg_waiting"] == "Looking for a collector at there:1"
    reason = "no collector answers at there:1: start one with `fulgurite collector --listen there:1`"
    session.absorb([FeedDown(address="there:1", reason=reason)], T0)
    shown = facts(session)
    assert shown["fg_waiting"] == "Waiting for a collector at there:1"
    assert "<code>fulgurite collector --listen there:1</code>" in shown["fg_advice"]


def test_a_collector_that_goes_while_something_is_shown_leaves_the_picture() -> None:
    session = _session(_seen("n/a/1"))
    session.absorb([FeedDown(address="there:1", reason="it broke")], T0 + 1.0)
    session.advance(T0 + 1.0)
    shown = facts(session)
    assert (shown["fg_waiting"], shown["fg_lost"]) == ("", "it broke")
    assert session.storm["n/a/1"].hud.state == "lost"


def test_a_collector_without_replicas_says_how_to_attach_one() -> None:
    shown = facts(_session())
    assert shown["fg_waiting"] == "Waiting for a model"
    assert "fulgurite.agent.instrument" in shown["fg_advice"]


def test_what_cannot_be_read_is_told_at_the_replica() -> None:
    session = _session(_seen("n/a/1"))
    session.absorb([FeedTrouble(key="n/a/1", reason="a batch cannot be read: rubbish")], T0)
    assert facts(session)["fg_strip"][0]["gap"] == "a batch cannot be read: rubbish"


def test_text_from_outside_cannot_become_markup() -> None:
    assert marked("<b>x</b> `<i>`") == "&lt;b&gt;x&lt;/b&gt; <code>&lt;i&gt;</code>"


def test_the_time_bar_counts_tokens_where_they_were_measured() -> None:
    session = _session(_seen("n/a/1"))
    session.absorb([_frames("n/a/1", [T0 + 1.0, T0 + 1.1, T0 + 1.2])], T0 + 1.3)
    session.advance(T0 + 5.0)
    time = facts(session)["fg_time"]
    assert max(time["bins"]) == 1.0
    assert sum(value > 0 for value in time["bins"]) == 1
    assert time["peak"] == 6
    assert time["at"] == 1.0


# pointing at nodes, and the contribution view


def test_a_pinned_card_stays_until_it_is_closed_and_wins_over_the_pointer() -> None:
    session = _session(_seen("a"), _seen("b"), _frames("a", [T0]), _frames("b", [T0]))
    session.advance(T0 + 1.0)
    one, other = ("a", Pick("head", 1, 2)), ("b", Pick("ffn", 0, -1))
    assert facts(session)["fg_card"] is None
    session.hover(one)
    assert facts(session)["fg_card"]["title"] == "layer 1 · head 2"
    assert not facts(session)["fg_card"]["pinned"]
    session.pin(one)
    session.hover(other)
    assert facts(session)["fg_card"]["title"] == "layer 1 · head 2"
    assert facts(session)["fg_card"]["pinned"]
    session.pin(None)
    assert facts(session)["fg_card"]["title"] == "layer 0 · FFN"
    session.pin(other)
    session.pin(other)  # a second click on the same node
    assert session.pinned is None


def test_a_replica_that_is_hidden_has_no_card() -> None:
    session = _session(_seen("a"), _seen("b"))
    session.pin(("b", Pick("head", 0, 0)))
    session.select(["a"])
    assert session.inspected is None
    session.show_all()
    assert session.inspected is not None


def test_the_contribution_view_is_switched_on_and_off() -> None:
    session = _session(_seen("a"))
    assert not facts(session)["fg_contribution"]
    session.toggle_contribution()
    assert facts(session)["fg_contribution"]
    assert session.storm.shows_contribution
    session.toggle_contribution()
    assert not session.storm.shows_contribution
