"""When tokens are expected: a steady pace is followed, nothing else is."""

from __future__ import annotations

import pytest

from fulgurite.agent.rhythm import GAPS, JITTER, JITTER_S, LONGEST_S, Rhythm


def rhythm_of(gaps_s: list[float], began_s: float = 100.0) -> Rhythm:
    rhythm = Rhythm()
    rhythm.came(began_s)
    for gap_s in gaps_s:
        began_s += gap_s
        rhythm.came(began_s)
    return rhythm


def test_after_a_few_steady_steps_the_next_is_expected_between_their_shortest_and_longest_gap() -> None:
    assert rhythm_of([]).next_s is None
    assert rhythm_of([0.02] * (GAPS - 1)).next_s is None
    assert rhythm_of([0.02] * GAPS).next_s == pytest.approx((100.08 + 0.02, 100.08 + 0.02))
    assert rhythm_of([0.021, 0.02, 0.023, 0.022]).next_s == pytest.approx((100.086 + 0.02, 100.086 + 0.023))


def test_slow_steps_may_differ_by_more_than_fast_ones() -> None:
    fast = [0.01, 0.01, 0.01, 0.01 + 2 * JITTER_S]
    slow = [0.1, 0.1, 0.1, 0.1 + 2 * JITTER_S]
    assert rhythm_of(fast).next_s is None
    assert rhythm_of(slow).next_s == pytest.approx((100.408 + 0.1, 100.408 + 0.1 + 2 * JITTER_S))
    assert rhythm_of([0.1, 0.1, 0.1, 0.1 / (1 - JITTER) + 0.001]).next_s is None


def test_a_change_of_pace_is_no_rhythm_until_it_is_steady_again() -> None:
    assert rhythm_of([0.02, 0.02, 0.02, 0.02 + 2 * JITTER_S]).next_s is None
    assert rhythm_of([0.02, 0.02, 0.05, 0.05, 0.05]).next_s is None
    assert rhythm_of([0.02, 0.02, *[0.05] * GAPS]).next_s == pytest.approx((100.24 + 0.05, 100.24 + 0.05))


def test_a_slow_host_is_not_waited_for_in_vain() -> None:
    assert rhythm_of([2 * LONGEST_S] * GAPS).next_s is None
