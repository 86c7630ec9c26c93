"""The pace of a replica, and its traffic."""

from __future__ import annotations

from itertools import count, islice

import pytest

from fulgurite.cli.demo.pace import Pace
from fulgurite.cli.demo.traffic import NEW_TOKENS, ROWS, requests


def test_tokens_come_at_the_rate_that_was_asked_for_whatever_the_batch() -> None:
    pace, now_s, tokens = Pace(20.0), 100.0, 0
    for rows in (1, 3, 2, 1, 2, 3) * 10:
        tokens += rows
        now_s += 0.004  # what the step itself takes
        now_s += pace.wait_s(rows, now_s=now_s)
    assert tokens / (now_s - 100.0) == pytest.approx(20.0, rel=0.01)


def test_lost_time_is_not_made_up_for_by_a_burst() -> None:
    pace = Pace(10.0)
    pace.wait_s(1, now_s=0.0)
    assert pace.wait_s(1, now_s=50.0) == 0.0
    assert pace.wait_s(1, now_s=50.0) == pytest.approx(0.1)


def test_without_a_pace_nobody_waits() -> None:
    assert Pace(0.0).wait_s(3, now_s=1.0) == 0.0


def test_every_prompt_is_used_once_and_in_order() -> None:
    drawn = list(islice(requests((f"p{index}" for index in count()), seed=3), 40))
    used = [prompt for request in drawn for prompt in request.prompts]
    assert used == [f"p{index}" for index in range(len(used))]
    assert {len(request.prompts) for request in drawn} == set(ROWS)
    assert all(NEW_TOKENS[0] <= request.new_tokens <= NEW_TOKENS[1] for request in drawn)


def test_the_same_seed_is_the_same_traffic_and_another_is_not() -> None:
    def traffic(seed: int) -> list[object]:
        return list(islice(requests((str(index) for index in count()), seed=seed), 20))

    assert traffic(1) == traffic(1)
    assert traffic(1) != traffic(2)


def test_traffic_ends_with_its_prompts() -> None:
    assert sum(len(request.prompts) for request in requests(iter("abcdefghij"), seed=1)) >= 8
