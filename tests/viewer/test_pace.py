"""The pace of drawing follows what a picture costs."""

from __future__ import annotations

import pytest

from fulgurite.viewer.pace import ARCS, FIRST_DETAIL, SMALLEST_SCALE, Pace


def _after(pace: Pace, cost_at_full_size_s: float, pictures: int) -> Pace:
    for _ in range(pictures):
        pace.learn(cost_at_full_size_s * pace.scale**2)
    return pace


def test_cheap_pictures_come_at_thirty_per_second_and_at_full_size() -> None:
    pace = _after(Pace(), 0.005, 200)
    assert pace.period_s == pytest.approx(1 / 30)
    assert pace.scale == 1.0


def test_pictures_that_cost_too_much_get_smaller_until_fifteen_per_second_fit() -> None:
    pace = _after(Pace(), 0.09, 300)
    assert SMALLEST_SCALE <= pace.scale < 1.0
    assert pace.period_s <= 1 / 15 + 1e-9


def test_pictures_never_get_smaller_than_half() -> None:
    pace = _after(Pace(), 5.0, 500)
    assert pace.scale == SMALLEST_SCALE
    assert pace.period_s > 1 / 15


def test_the_size_comes_back_when_there_is_time_again() -> None:
    pace = _after(Pace(), 0.2, 300)
    assert pace.scale < 1.0
    assert _after(pace, 0.004, 500).scale == 1.0


def test_the_size_does_not_swing_at_a_constant_cost() -> None:
    for cost_s in (0.01, 0.03, 0.05, 0.08, 0.12):
        pace = _after(Pace(), cost_s, 500)
        sizes = set()
        for _ in range(200):
            _after(pace, cost_s, 1)
            sizes.add(pace.scale)
        assert len(sizes) == 1, f"the size swings between {sizes} at {cost_s} s a picture"


def test_fewer_arcs_live_before_a_picture_gets_smaller() -> None:
    pace = Pace()
    while pace.detail:
        assert pace.scale == 1.0
        _after(pace, 0.09, 1)
    assert pace.arcs == ARCS[0]


def test_where_there_is_time_more_arcs_live() -> None:
    assert _after(Pace(), 0.005, 300).arcs == ARCS[-1]
    assert _after(Pace(), 0.02, 300).arcs == ARCS[FIRST_DETAIL]


def test_a_level_of_detail_that_cost_too_much_is_not_tried_again() -> None:
    pace, seen = Pace(), []
    for _ in range(600):
        pace.learn(0.005 if pace.arcs <= 800 else 0.1)
        seen.append(pace.arcs)
    assert 1600 in seen
    assert set(seen[-300:]) == {800}
