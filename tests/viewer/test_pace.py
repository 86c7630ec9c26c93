"""The pace of drawing follows what a picture costs."""

from __future__ import annotations

import pytest

from fulgurite.viewer.pace import (
    ARCS,
    BUSY_SHARE,
    FIRST_DETAIL,
    SETTLE,
    SHED,
    SMALLEST_SCALE,
    WANTED_FPS,
    Pace,
)


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


def test_in_a_pause_no_arcs_come_or_go() -> None:
    for cost_s in (0.005, 0.09, 5.0):
        pace = Pace()
        for _ in range(300):
            pace.learn(cost_s * pace.scale**2, held=True)
            assert pace.arcs == ARCS[FIRST_DETAIL]
        assert (pace.scale < 1.0) == (cost_s > 1 / 15)


def _window() -> Pace:
    return Pace(fastest_fps=60.0, slowest_fps=24.0)


def _ornate(pace: Pace, plain_s: float, ornaments_s: float, rounds: int) -> list[tuple[int, int]]:
    """What was left out, and how many arcs lived, while each ornament costs so much."""
    seen = []
    for _ in range(rounds * SETTLE):
        pace.learn(plain_s + ornaments_s * (len(SHED) - 1 - pace.shed))
        seen.append((pace.shed, pace.arcs))
    return seen


def test_a_window_that_has_time_draws_everything_sixty_times_a_second() -> None:
    pace = _window()
    assert {shed for shed, _ in _ornate(pace, 0.004, 0.002, 40)} == {0}
    assert pace.period_s == pytest.approx(1 / 60)


def test_ornaments_are_left_out_step_by_step_and_no_more_of_them_than_it_takes() -> None:
    wanted_s = BUSY_SHARE / WANTED_FPS
    for steps in range(len(SHED)):
        plain_s = wanted_s - 0.003 - 0.004 * (len(SHED) - 1 - steps)
        seen = _ornate(_window(), plain_s, 0.004, 60)
        order = [shed for i, (shed, _) in enumerate(seen) if i == 0 or shed != seen[i - 1][0]]
        assert order == list(range(steps + 1))


def test_arcs_stay_until_all_ornaments_are_left_out() -> None:
    for shed, arcs in _ornate(_window(), 0.05, 0.004, 60):
        assert arcs == ARCS[FIRST_DETAIL] or shed == len(SHED) - 1
    assert _ornate(_window(), 0.05, 0.004, 60)[-1] == (len(SHED) - 1, ARCS[0])


def test_ornaments_come_back_when_there_is_time_for_them() -> None:
    pace = _window()
    assert _ornate(pace, 0.02, 0.004, 20)[-1][0] == len(SHED) - 1
    assert _ornate(pace, 0.004, 0.002, 40)[-1][0] == 0


def test_ornaments_that_do_not_fit_are_tried_ever_more_seldom() -> None:
    pace, plain_s = _window(), BUSY_SHARE / WANTED_FPS / 2
    seen = [shed for shed, _ in _ornate(pace, plain_s, 2 * plain_s, 1000)]
    tried = [i for i in range(1, len(seen)) if seen[i] < seen[i - 1]]
    assert 0 < len(tried) < 20
    assert seen.count(len(SHED) - 1) / len(seen) > 0.95


def test_the_words_say_what_is_left_out_and_nothing_of_a_whole_picture() -> None:
    assert SHED[0] == ""
    assert all(SHED[1:])
