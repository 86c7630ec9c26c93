"""Tokens that stand out are found, and looping and focusing play and light what was asked for."""

from __future__ import annotations

import itertools

import numpy as np
from tests.scenes.streams import block, topology

from fulgurite.viewer.highlights import least_probable
from fulgurite.viewer.timeline import Mode, Timeline
from fulgurite.wire.frame import FrameBlock

SHAPE = topology(2, 2)
T0 = 1_000_000.0


def _step(index: int, *, took_s: float = 0.01, logprob: float = -0.5, entropy: float = 1.0) -> FrameBlock:
    made = block(SHAPE, position=20 + index, requests=("a",))
    ended = int((T0 + 0.1 * index) * 1e9)
    made.columns["ended_ns"][:], made.columns["started_ns"][:] = ended, ended - int(took_s * 1e9)
    made.columns["logprob"][:] = logprob
    made.columns["entropy"] = np.full(1, entropy, np.float32)
    return made


def _timeline() -> Timeline:
    timeline = Timeline()
    steps = [_step(i) for i in range(40)]
    steps[7] = _step(7, took_s=0.05)
    steps[12] = _step(12, logprob=-4.0)
    steps[21] = _step(21, took_s=0.05, entropy=3.0)
    timeline.add("one", steps, T0 + 10.0, live=False)
    timeline.tick(T0 + 10.0)
    timeline.pause()
    timeline.seek(T0)
    timeline.tick(T0 + 10.0)
    return timeline


def test_the_next_slow_token_is_the_next_one_and_after_the_last_comes_the_first() -> None:
    timeline = _timeline()
    found = []
    for _ in range(3):
        spot = timeline.next_spot(["one"], "slow")
        timeline.tick(T0 + 10.0)
        assert spot is not None
        assert timeline.playhead_s == spot.at_s
        found.append(int(spot.block.columns["position"][spot.row]) - 20)
    assert found == [7, 21, 7]


def test_surprising_and_uncertain_tokens_are_found_by_their_own_channels() -> None:
    timeline = _timeline()
    spot = timeline.next_spot(["one"], "surprising")
    assert spot is not None
    assert int(spot.block.columns["position"][0]) - 20 == 12
    timeline.tick(T0 + 10.0)
    spot = timeline.next_spot(["one"], "uncertain")
    assert spot is not None
    assert float(spot.block.columns["entropy"][0]) >= 1.0
    least = least_probable(timeline.kept("one"))
    assert least is not None
    assert int(least.block.columns["position"][0]) == 32


def test_without_the_channel_nothing_is_found() -> None:
    timeline = Timeline()
    bare = _step(0)
    for name in ("logprob", "entropy"):
        bare.columns.pop(name)  # type: ignore[attr-defined]
    timeline.add("one", [bare], T0 + 1.0, live=False)
    timeline.tick(T0 + 1.0)
    assert timeline.next_spot(["one"], "surprising") is None
    assert least_probable(timeline.kept("one")) is None


def test_a_loop_begins_again_and_ends_when_asked() -> None:
    timeline = _timeline()
    timeline.loop((T0 + 1.0, T0 + 1.5))
    now_s, seen = T0 + 10.0, []
    for _ in range(30):
        now_s += 0.1
        seen.append(timeline.tick(now_s).playhead_s)
    assert max(seen) <= T0 + 1.5 + 0.1 + 1e-6
    assert sum(later < sooner for sooner, later in itertools.pairwise(seen)) >= 3
    timeline.loop(None)
    for _ in range(10):
        now_s += 0.1
        last = timeline.tick(now_s).playhead_s
    assert last > T0 + 1.7
    assert timeline.mode is Mode.PLAYING
