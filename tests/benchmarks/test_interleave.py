"""What pairs of measurements resolve, and what the agent's own sections took."""

from __future__ import annotations

import time

import pytest
from benchmarks.interleave import FEWEST, ratio
from benchmarks.overhead.sections import Spent

SAME = [1.0] * FEWEST


def test_an_effect_beyond_the_control_is_resolved() -> None:
    control = ratio([1.01, 0.99] * 3, SAME)
    assert ratio([1.2] * FEWEST, SAME).verdict(control) == "slower"
    assert ratio([0.8] * FEWEST, SAME).verdict(control) == "faster"
    assert ratio([1.005] * FEWEST, SAME).verdict(control) == "unresolved"
    assert ratio([1.2, 0.9] * 3, SAME).verdict(control) == "unresolved"


@pytest.mark.parametrize("pairs", [1, 2, FEWEST - 1])
def test_too_few_pairs_resolve_nothing(pairs: int) -> None:
    few, enough = ratio([1.2] * pairs, SAME[:pairs]), ratio([1.2] * FEWEST, SAME)
    control = ratio(SAME, SAME)
    assert few.verdict(control) == enough.verdict(ratio(SAME[:pairs], SAME[:pairs])) == "unresolved"


def test_what_the_clock_takes_is_no_part_of_a_section() -> None:
    at_ns = iter(range(0, 1000, 10))

    def clock() -> int:  # each look takes 10 ns
        return next(at_ns)

    spent = Spent(clocks=(clock,))
    section = spent.timed(lambda: [clock() for _ in range(4)], clock)
    before = spent.read()
    section()
    section()
    assert spent.between(before, spent.read()) == 2 * 4 * 10


def test_a_section_that_fails_is_counted_too() -> None:
    spent = Spent()

    def fails() -> None:
        time.sleep(0.002)
        raise ValueError

    section = spent.timed(fails, time.perf_counter_ns)
    before = spent.read()
    with pytest.raises(ValueError):
        section()
    assert spent.between(before, spent.read()) > 1e6
