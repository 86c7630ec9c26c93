"""The playhead: even rhythm, exact pause, and a past that is bounded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fulgurite.viewer.timeline import Mode, Timeline
from fulgurite.wire.frame import FrameBlock, RequestRef

T0 = 1_700_000_000.0
DELAY_S = 0.15


def _block(ended_s: list[float], first: int = 0, floats: int = 1) -> FrameBlock:
    count = len(ended_s)
    columns: dict[str, Any] = {
        "request_index": np.zeros(count, np.uint16),
        "position": np.arange(first, first + count, dtype=np.int32),
        "ended_ns": np.array([round(second * 1e9) for second in ended_s], np.int64),
        "head_write": np.zeros((count, 1, floats), np.float32),
    }
    return FrameBlock((RequestRef("r"),), columns)


def _timeline(**settings: float) -> Timeline:
    return Timeline(delay_s=DELAY_S, **settings)  # type: ignore[arg-type]


def _drawn(timeline: Timeline, now_s: float) -> list[int]:
    return [int(p) for segment in timeline.tick(now_s).segments for p in segment.block.columns["position"]]


def test_a_burst_of_tokens_is_played_at_the_times_at_which_they_were_measured() -> None:
    timeline = _timeline()
    timeline.tick(T0)
    timeline.add("a", [_block([T0 + 0.00, T0 + 0.02, T0 + 0.04])], T0 + 0.05)
    assert _drawn(timeline, T0 + 0.149) == []
    assert _drawn(timeline, T0 + 0.151) == [0]
    assert _drawn(timeline, T0 + 0.171) == [1]
    assert _drawn(timeline, T0 + 0.191) == [2]
    assert _drawn(timeline, T0 + 5.0) == []


def test_each_token_is_played_once_whatever_the_frame_rate() -> None:
    timeline = _timeline()
    drawn: list[int] = []
    for index in range(100):
        now_s = T0 + index * 0.037
        timeline.add("a", [_block([now_s - 0.01 + row * 0.001 for row in range(3)], first=3 * index)], now_s)
        drawn += _drawn(timeline, now_s)
    drawn += _drawn(timeline, T0 + 60.0)
    assert drawn == list(range(300))


def test_pause_stands_exactly_there_and_resume_goes_on_from_there() -> None:
    timeline = _timeline()
    timeline.tick(T0)
    timeline.add("a", [_block([T0 + 0.1 * row for row in range(20)])], T0 + 2.0)
    timeline.tick(T0 + 1.0)
    at_s = timeline.playhead_s or 0.0
    timeline.pause()
    assert _drawn(timeline, T0 + 50.0) == []
    assert timeline.playhead_s == at_s
    timeline.resume()
    timeline.tick(T0 + 50.25)
    assert timeline.mode is Mode.PLAYING
    assert timeline.playhead_s == pytest.approx(at_s + 0.25)


def test_live_is_its_own_command_and_lights_the_scene_anew() -> None:
    timeline = _timeline(refill_s=0.45)
    timeline.tick(T0)
    timeline.pause()
    timeline.tick(T0 + 10.0)
    timeline.add("a", [_block([T0 + 9.0 + 0.1 * row for row in range(11)])], T0 + 10.0)
    timeline.go_live()
    played = timeline.tick(T0 + 10.15)
    assert (played.jumped, timeline.mode) == (True, Mode.LIVE)
    assert [int(p) for s in played.segments for p in s.block.columns["position"]] == [6, 7, 8, 9, 10]
    assert timeline.playhead_s == pytest.approx(T0 + 10.0)


def test_scrubbing_lights_what_was_lit_and_plays_what_follows() -> None:
    timeline = _timeline(refill_s=1.0)
    timeline.tick(T0)
    for second in range(20):
        timeline.add("a", [_block([T0 + second], first=second)], T0 + second + 0.01)
        timeline.tick(T0 + second + 0.01)
    timeline.seek(T0 + 10.5)
    played = timeline.tick(T0 + 20.0)
    assert played.jumped
    assert [int(s.block.columns["position"][0]) for s in played.segments] == [10]
    assert _drawn(timeline, T0 + 22.0) == [11, 12]
    assert timeline.mode is Mode.PLAYING


def test_a_seek_stays_within_what_is_kept() -> None:
    timeline = _timeline()
    timeline.tick(T0)
    timeline.add("a", [_block([T0, T0 + 1.0, T0 + 2.0])], T0 + 2.1)
    timeline.seek(0.0)
    assert timeline.playhead_s == T0
    timeline.seek(T0 + 99.0)
    assert timeline.playhead_s == T0 + 2.0


def test_steps_go_from_token_to_token_and_stay() -> None:
    timeline = _timeline()
    timeline.tick(T0)
    timeline.add("a", [_block([T0 + 1.0, T0 + 1.5, T0 + 4.0])], T0 + 4.1)
    timeline.tick(T0 + 4.2)
    timeline.step(-1)
    assert timeline.playhead_s == T0 + 1.5
    timeline.step(-1)
    assert timeline.playhead_s == T0 + 1.0
    timeline.step(1)
    timeline.tick(T0 + 9.0)
    assert timeline.playhead_s == T0 + 1.5
    timeline.step(1)
    assert timeline.playhead_s == T0 + 4.0
    timeline.step(1)
    assert timeline.playhead_s == T0 + 4.0
    assert timeline.mode is Mode.PAUSED


def test_tokens_of_one_moment_are_one_step() -> None:
    timeline = _timeline()
    timeline.tick(T0)
    timeline.add("a", [_block([T0 + 1.0, T0 + 1.0, T0 + 2.0])], T0 + 2.0)
    timeline.seek(T0)
    timeline.step(1)
    assert timeline.playhead_s == T0 + 2.0


def test_the_past_is_bounded_by_time() -> None:
    timeline = _timeline(keep_s=30.0)
    timeline.tick(T0)
    for second in range(100):
        timeline.add("a", [_block([T0 + second])], T0 + second)
        timeline.tick(T0 + second)
    span = timeline.span()
    assert span is not None
    assert 30.0 <= span[1] - span[0] <= 31.0


def test_the_past_is_bounded_by_bytes_and_what_was_not_played_is_counted() -> None:
    timeline = _timeline(keep_s=1e6, budget_bytes=100_000)
    timeline.tick(T0)
    timeline.pause()
    for index in range(100):
        timeline.add("a", [_block([T0 + 0.01 * index], floats=1_000)], T0 + 0.01 * index)
    assert timeline.nbytes("a") <= 100_000
    timeline.resume()
    played = timeline.tick(T0 + 5.0)
    assert played.skipped > 50
    assert (
        played.skipped
        + sum(len(segment.at_s) for segment in timeline.tick(T0 + 60.0).segments)
        + sum(len(segment.at_s) for segment in played.segments)
        == 100
    )


def test_a_clock_that_disagrees_changes_nothing_but_the_place_on_the_axis() -> None:
    for skew_s in (-3_600.0, 0.0, 12.0):
        timeline = _timeline()
        timeline.tick(T0)
        drawn_at: list[float] = []
        for index in range(200):
            now_s = T0 + 0.02 * index
            if index % 10 == 0:
                measured = [now_s + skew_s - 0.02 * back for back in range(10, 0, -1)]
                timeline.add("a", [_block(measured)], now_s)
            drawn_at += [now_s] * len(_drawn(timeline, now_s))
        spacing = np.diff([at for at in drawn_at if at > T0 + 1.0])
        assert spacing.max() < 0.1, f"tokens come in bursts with clocks {skew_s} s apart"


def test_a_backlog_after_an_outage_is_not_waited_for() -> None:
    timeline = _timeline()
    for index in range(20):
        timeline.add("a", [_block([T0 + 0.1 * index])], T0 + 0.1 * index + 0.01)
    timeline.tick(T0 + 2.0)
    backlog = [T0 + 2.0 + 0.1 * row for row in range(60)]
    timeline.add("a", [_block(backlog)], T0 + 8.0)
    timeline.add("a", [_block([T0 + 8.05], first=60)], T0 + 8.06)
    assert _drawn(timeline, T0 + 9.0)[-1] == 60


def test_the_past_of_a_late_joiner_is_kept_but_not_played_as_if_it_were_now() -> None:
    timeline = _timeline(refill_s=4.0)
    timeline.tick(T0)
    timeline.add("a", [_block([T0 - 50.0 + second]) for second in range(50)], T0 + 0.2, live=False)
    assert len(timeline.tick(T0 + 0.3).segments) <= 5
    span = timeline.span()
    assert span is not None
    assert span[1] - span[0] == pytest.approx(49.0)


def test_the_strip_shows_the_last_tokens_before_the_playhead() -> None:
    timeline = _timeline()
    timeline.tick(T0)
    timeline.add("a", [_block([T0 + 0.1 * row for row in range(10)]), _block([T0 + 1.0], first=10)], T0 + 1.0)
    timeline.seek(T0 + 0.55)
    strip = timeline.tokens("a", 4)
    assert [int(p) for segment in strip for p in segment.block.columns["position"]] == [2, 3, 4, 5]
    assert timeline.tokens("nobody", 4) == []


def test_a_speed_must_make_sense() -> None:
    with pytest.raises(ValueError, match="speed must be over 0"):
        _timeline().set_speed(0.0)


@given(st.lists(st.sampled_from(["add", "tick", "pause", "resume", "live", "back", "step"]), max_size=60))
def test_whatever_is_pressed_no_token_comes_before_its_time(keys: list[str]) -> None:
    timeline = _timeline()
    now_s, position = T0, 0
    for key in keys:
        now_s += 0.05
        if key == "add":
            timeline.add("a", [_block([now_s - 0.03, now_s - 0.01], first=position)], now_s)
            position += 2
        elif key == "tick":
            played = timeline.tick(now_s)
            assert played.playhead_s <= now_s
            for segment in played.segments:
                assert segment.at_s[-1] <= played.playhead_s
        else:
            presses: dict[str, Callable[[], None]] = {
                "pause": timeline.pause,
                "resume": timeline.resume,
                "live": timeline.go_live,
                "back": lambda: timeline.seek_by(-0.1),
                "step": lambda: timeline.step(1),
            }
            presses[key]()
