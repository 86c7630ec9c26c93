"""The token strip: rows that keep their place, chips that say only what was captured."""

from __future__ import annotations

import numpy as np
import pytest

from fulgurite.viewer.strip import Strip
from fulgurite.viewer.timeline import Segment
from fulgurite.wire.frame import FrameBlock, RequestRef

TINT = "#808080"


def _segment(
    requests: list[str], at_s: float, texts: tuple[str, ...] | None = None, **columns: object
) -> Segment:
    names = tuple(dict.fromkeys(requests))
    count = len(requests)
    base: dict[str, object] = {
        "request_index": [names.index(name) for name in requests],
        "position": list(range(count)),
        "phase": [1] * count,
    }
    arrays = {name: np.asarray(values) for name, values in (base | columns).items()}
    block = FrameBlock(tuple(RequestRef(name) for name in names), arrays, texts)
    return Segment("k", block, np.full(count, at_s))


def _shown(strip: Strip) -> list[str]:
    return [lane.request_id for lane in strip.rows("k")]


def test_each_sequence_has_its_row_in_the_order_in_which_they_came() -> None:
    strip = Strip(TINT)
    strip.feed(_segment(["b", "a", "b"], 1.0, texts=("x", "y", "z")))
    assert _shown(strip) == ["b", "a"]
    assert [chip.text for chip in strip.rows("k")[0].chips] == ["x", "z"]
    assert strip.rows("k")[0].tint == TINT


def test_rows_of_one_request_are_told_apart_by_their_sequence() -> None:
    strip = Strip(TINT)
    strip.feed(_segment(["a", "a"], 1.0, sequence=[0, 1]))
    assert [(lane.request_id, lane.sequence) for lane in strip.rows("k")] == [("a", 0), ("a", 1)]


def test_a_row_keeps_its_place_and_a_silent_one_makes_room() -> None:
    strip = Strip(TINT, lanes=2, hold_s=1.0)
    strip.feed(_segment(["a", "b"], 1.0))
    strip.feed(_segment(["c", "b"], 1.5))
    assert _shown(strip) == ["a", "b"]
    assert strip.unseen("k", 1.5) == 1
    strip.feed(_segment(["c", "b"], 2.5))
    assert _shown(strip) == ["c", "b"]
    assert strip.unseen("k", 2.5) == 0


def test_a_row_holds_its_newest_tokens_and_no_more() -> None:
    strip = Strip(TINT, chips=3)
    for position in range(10):
        strip.feed(_segment(["a"], float(position), position=[position]))
    assert [chip.position for chip in strip.rows("k")[0].chips] == [7, 8, 9]


def test_a_chip_knows_what_was_captured() -> None:
    strip = Strip(TINT)
    columns = {"logprob": [np.log(0.25)], "entropy": [1.5], "rank": [2], "token_id": [17]}
    strip.feed(_segment(["a"], 1.0, texts=("word",), started_ns=[0], ended_ns=[20_000_000], **columns))
    chip = strip.rows("k")[0].chips[0]
    assert chip.probability == pytest.approx(0.25)
    assert (chip.text, chip.token_id, chip.rank, chip.entropy) == ("word", 17, 2, 1.5)
    assert chip.step_s == pytest.approx(0.02)


def test_a_chip_invents_nothing_that_was_not_captured() -> None:
    strip = Strip(TINT)
    strip.feed(_segment(["a"], 1.0, token_id=[-1], logprob=[float("nan")]))
    chip = strip.rows("k")[0].chips[0]
    assert (chip.text, chip.token_id, chip.probability, chip.entropy, chip.rank) == (None,) * 5


def test_serials_are_never_given_twice() -> None:
    strip = Strip(TINT)
    strip.feed(_segment(["a"], 1.0))
    first = strip.rows("k")[0].chips[0].serial
    strip.clear()
    assert strip.rows("k") == ()
    strip.feed(_segment(["a"], 1.0))
    assert strip.rows("k")[0].chips[0].serial > first
