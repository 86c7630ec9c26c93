"""Which level for which step, without a clock."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fulgurite.agent.sampling import Budget, DeepRate, Demand, is_sampled, level_of_step
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


def window(budget: Budget, now_s: float, *spent: tuple[int, int], deep: tuple[int, int] | None = None) -> Any:
    """The verdict on a window in which these steps (ours, all) were taken, and perhaps one at `deep`."""
    for own, step in spent:
        budget.spend(own, step)
    if deep is not None:
        budget.spend(*deep, is_deep=True)
    return budget.verdict(int(now_s * 1e9))


def test_our_share_is_told_once_a_window_and_judged_by_the_limit() -> None:
    budget = Budget(0.02)
    assert budget.verdict(1) is None
    assert window(budget, 0.5, *[(5, 100)] * 10) is None
    assert window(budget, 1.1) == (0.05, False)
    assert window(budget, 2.2, *[(5, 100)] * 10) == (0.05, False)
    assert window(budget, 3.3, *[(50, 100)] * 3) == (0.5, False)  # too few steps to judge by
    assert window(budget, 4.4, *[(4, 100)] * 10) == (0.04, True)  # three windows on end
    assert window(budget, 5.5, *[(4, 100)] * 10) == (0.04, False)  # which is judged anew
    assert window(budget, 6.6, *[(4, 100)] * 10) == (0.04, False)
    assert window(budget, 7.7, *[(1, 100)] * 10) == (0.01, False)
    assert window(budget, 8.8, *[(4, 100)] * 10) == (0.04, False)


def test_what_deep_takes_is_no_reason_to_go_down_a_level_but_to_come_less_often() -> None:
    budget = Budget(0.02)
    assert budget.affordable() == 1.0
    for second in range(1, 8):
        share, over = window(budget, 1.1 * second, *[(1, 101)] * 15, deep=(61, 161)) or (0.0, False)
        assert not over
    assert share > 0.02
    # 100 of a step are not ours: 2 % are 2.04, 1.04 more than a plain step takes; a deep one takes 60 more
    assert budget.affordable() == pytest.approx((100 * 0.02 / 0.98 - 1) / 60, rel=1e-6)


def test_deep_is_halved_until_it_fits_and_comes_back_where_there_is_room() -> None:
    rate = DeepRate(0.5)
    assert rate.fit(1.0)
    assert (rate.value, rate.is_lowered) == (0.5, False)
    assert rate.fit(0.1)
    assert (rate.value, rate.is_lowered) == (0.0625, True)
    assert rate.fit(0.14)  # enough for an eighth, but only just
    assert rate.value == 0.0625
    assert rate.fit(0.2)
    assert rate.value == 0.125
    rate.hear(0.25)
    assert rate.value == 0.0625
    rate.hear(None)
    assert rate.fit(0.9)
    assert rate.value == 0.5
    rate.hear(0.0)
    assert rate.fit(0.0)
    assert rate.value == 0.0


def test_deep_is_given_up_where_even_the_rarest_stays_too_much() -> None:
    rate = DeepRate(1.0)
    assert [rate.fit(0.0), rate.fit(0.0)] == [True, True]
    assert rate.value == 1 / 256
    assert rate.fit(0.01)  # an outlier
    assert [rate.fit(0.0), rate.fit(0.0), rate.fit(0.0)] == [True, True, False]
    rate.restore()
    assert (rate.value, rate.fit(0.0)) == (1.0, True)


def test_what_deep_took_is_no_reason_to_go_down_from_another_level() -> None:
    budget, rate = Budget(0.02), DeepRate(1 / 16)
    window(budget, 1.1, *[(1, 101)] * 15, deep=(10_000_000, 10_000_100))
    assert budget.affordable() < rate.value / (1 << DeepRate.MOST_HALVINGS)
    assert [rate.fits(budget, "heads") for _ in range(6)] == [True] * 6
    assert [rate.fits(budget, "deep") for _ in range(3)] == [True, True, False]
    assert rate.said(budget).startswith("the budget of 2.0 % of step time")


def test_without_a_limit_nothing_is_over_it() -> None:
    budget = Budget(None)
    budget.verdict(1)
    for _ in range(10):
        budget.spend(90, 100)
    assert budget.verdict(2_000_000_000) == (0.9, False)


def test_levels_are_ordered_as_the_vocabulary_has_them() -> None:
    assert LEVELS == ("off", "pulse", "heads", "deep")
