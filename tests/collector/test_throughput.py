"""Tokens per second, whether they come one by one or a second at a time."""

from __future__ import annotations

import pytest
from tests.collector.played import FOLDED, STEP_S, Played

from fulgurite.collector.throughput import SECOND_NS, Throughput

T0_NS = 1_700_000_000 * SECOND_NS


def at(seconds: float) -> int:
    return T0_NS + round(seconds * SECOND_NS)


def test_frames_count_over_five_whole_seconds_and_the_open_one() -> None:
    told = Throughput()
    for tenth in range(100):
        told.frames(3, at(tenth / 10))
    assert told.per_s(at(9.9), is_folding=False) == pytest.approx(3 * 60 / 5.9)
    assert told.per_s(at(12.0), is_folding=False) == pytest.approx(3 * 30 / 5.0)
    assert told.per_s(at(60), is_folding=False) == 0.0


def test_what_began_a_moment_ago_is_over_a_second_at_least() -> None:
    told = Throughput()
    told.frames(7, at(0.5))
    assert told.per_s(at(0.6), is_folding=False) == 7.0


def test_a_sketch_is_spread_over_the_time_that_it_is_of() -> None:
    told = Throughput()
    told.sketch(100, SECOND_NS, at(5.5))
    assert told.per_s(at(9.5), is_folding=False) == pytest.approx(100 / 5.0, rel=0.01)
    assert told.per_s(at(10.5), is_folding=False) == pytest.approx(100 * 11 / 21 / 5.5, rel=0.01)
    assert told.per_s(at(11.0), is_folding=False) == 0.0


def test_while_sketches_come_the_time_since_the_last_one_is_not_counted() -> None:
    told = Throughput()
    for second in range(1, 11):
        told.sketch(100, SECOND_NS, at(second))
    for later in (10.0, 10.5, 10.99):
        assert told.per_s(at(later), is_folding=True) == pytest.approx(100, rel=0.03)
    assert told.per_s(at(10.99), is_folding=False) < 90


def test_a_length_that_makes_no_sense_is_one_moment_or_the_longest() -> None:
    told = Throughput()
    told.sketch(10, -SECOND_NS, at(1))
    told.sketch(10, 1 << 62, at(1))
    assert told.per_s(at(1), is_folding=False) == pytest.approx((10 + 10) / 5)


def test_a_clock_that_is_set_back_begins_anew() -> None:
    told = Throughput()
    told.frames(1000, at(3600))
    told.frames(5, at(0))
    assert told.per_s(at(0), is_folding=False) == 5.0


@pytest.mark.parametrize("watched", [False, True])
def test_the_rate_stays_where_it_is_when_viewers_come_and_go(watched: bool) -> None:
    played = Played(watched=watched)
    for name in FOLDED[:4]:
        played.begin(name)
    played.turn(500)
    truth = 4 / STEP_S
    assert played.status().tokens_per_s == pytest.approx(truth, rel=0.03)
    played.watched = not watched
    for _ in range(100):
        played.turn(5)
        # What is under way at the change is missing until it comes: 1.3 s of the five or six at most.
        assert 0.73 * truth <= played.status().tokens_per_s <= 1.06 * truth
    assert played.status().tokens_per_s == pytest.approx(truth, rel=0.03)
