"""Which level for which step, without a clock."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fulgurite.agent.sampling import Budget, Demand, is_sampled, level_of_step
from fulgurite.wire.channels import LEVELS


@given(ratio=st.floats(0, 1), steps=st.integers(1, 400))
def test_the_sampled_share_of_steps_is_the_ratio_to_within_one_step(ratio: float, steps: int) -> None:
    taken = sum(is_sampled(step, ratio) for step in range(steps))
    assert abs(taken - ratio * steps) <= 1


def test_only_deep_is_sampled() -> None:
    assert [level_of_step(step, "deep", 0.25) for step in range(4)] == ["heads", "heads", "heads", "deep"]
    assert {level_of_step(step, "heads", 0.0) for step in range(9)} == {"heads"}
    assert {level_of_step(step, "deep", 1.0) for step in range(9)} == {"deep"}


def level_of(demand: Demand) -> str:
    """The level as it is now."""
    return demand.level


def test_a_local_call_beats_the_remote_side_and_nobody_gets_above_the_ceiling() -> None:
    demand = Demand("heads")
    assert level_of(demand) == "heads"
    demand.hear("pulse")
    assert level_of(demand) == "pulse"
    demand.hear("deep")
    assert level_of(demand) == "heads"
    demand.hear("nonsense")
    assert level_of(demand) == "heads"
    demand.ask("pulse")
    demand.hear("heads")
    assert level_of(demand) == "pulse"
    with pytest.raises(ValueError, match="level 'deep' is above the ceiling 'heads'"):
        demand.ask("deep")


def test_the_budget_goes_down_level_by_level_and_never_below_pulse() -> None:
    demand = Demand("deep")
    assert [demand.degrade(), demand.degrade(), demand.degrade()] == ["heads", "pulse", None]
    assert level_of(demand) == "pulse"
    demand.hear("deep")
    assert level_of(demand) == "pulse"
    demand.ask("deep")
    assert level_of(demand) == "deep"


def test_a_pause_is_off_until_it_is_over() -> None:
    demand = Demand("heads")
    demand.pause()
    assert level_of(demand) == "off"
    demand.resume()
    assert level_of(demand) == "heads"


def test_our_share_is_told_once_a_window_and_judged_by_the_limit() -> None:
    budget = Budget(0.02)
    assert budget.verdict(1) is None
    for _ in range(10):
        budget.spend(5, 100)
    assert budget.verdict(500_000_000) is None
    assert budget.verdict(1_100_000_000) == (0.05, True)
    for _ in range(10):
        budget.spend(1, 100)
    assert budget.verdict(2_200_000_000) == (0.01, False)
    for _ in range(3):  # too few steps to judge by
        budget.spend(50, 100)
    assert budget.verdict(3_300_000_000) == (0.5, False)


def test_without_a_limit_nothing_is_over_it() -> None:
    budget = Budget(None)
    budget.verdict(1)
    for _ in range(10):
        budget.spend(90, 100)
    assert budget.verdict(2_000_000_000) == (0.9, False)


def test_levels_are_ordered_as_the_vocabulary_has_them() -> None:
    assert LEVELS == ("off", "pulse", "heads", "deep")
