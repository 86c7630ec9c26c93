"""The judge sees every kind of broken promise, and none where there is none; a seed is a run."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.chaos.plan import FAULTS, Fault, Plan, plan_of
from tests.chaos.verdict import Account, broken_promises

KILLED = Fault(where="redis", kind="kill", at_s=1.0, for_s=0.5)
CALM = replace(
    plan_of(0), faults=(), ends_in_the_storm=False, fsync="everysec", frames_per_s=5, spool_bytes=0
)
STORMY = replace(CALM, ends_in_the_storm=True)
GOOD = Account(made=10, captured=10, acknowledged=10, pending=0)
ALL = list(range(1, 11))


def test_a_good_run_keeps_every_promise() -> None:
    assert broken_promises(CALM, GOOD, ALL) == []
    shed = replace(GOOD, acknowledged=7, dropped={"outbox_full": 3})
    assert broken_promises(CALM, shed, ALL[3:]) == []
    uncertain = replace(GOOD, acknowledged=7, dropped={"unacknowledged": 2, "closed": 1})
    assert broken_promises(STORMY, uncertain, ALL[:7]) == []
    assert broken_promises(STORMY, uncertain, ALL[:9]) == []


@pytest.mark.parametrize(
    ("plan", "account", "stored", "said"),
    [
        (CALM, replace(GOOD, captured=9, acknowledged=9), ALL[:9], "10 frames were handed over, 9 counted"),
        (CALM, replace(GOOD, acknowledged=9), ALL, "captured 10 is not 9 settled"),
        (CALM, replace(GOOD, acknowledged=9, pending=1), ALL[:9], "1 frames have no fate"),
        (CALM, replace(GOOD, acknowledged=9, dropped={"refused": 1}), ALL[:9], "dropped for {'refused': 1}"),
        (CALM, replace(GOOD, acknowledged=9, dropped={"closed": 1}), ALL[:9], "dropped for {'closed': 1}"),
        (CALM, replace(GOOD, acknowledged=9, dropped={"spool_full": 1}), ALL[:9], "{'spool_full': 1}"),
        (CALM, GOOD, [*ALL, 10], "1 frames are stored twice"),
        (CALM, GOOD, [2, 1, *ALL[2:]], "out of order"),
        (CALM, GOOD, [*ALL[:9], 11], "nobody made"),
        (CALM, GOOD, ALL[:9], "1 of 10 acknowledged frames are not stored; at most 0"),
        (CALM, replace(GOOD, acknowledged=7, dropped={"outbox_full": 3}), ALL, "3 frames are stored that"),
        (STORMY, replace(GOOD, acknowledged=7, dropped={"unacknowledged": 2, "closed": 1}), ALL, "1 frames"),
    ],
)
def test_a_broken_promise_is_named(plan: Plan, account: Account, stored: list[int], said: str) -> None:
    assert any(said in line for line in broken_promises(plan, account, stored))


def test_a_killed_store_may_lose_a_second_where_it_writes_once_a_second() -> None:
    killed = replace(CALM, faults=(KILLED,))
    assert broken_promises(killed, GOOD, ALL[:5]) == []
    assert broken_promises(killed, GOOD, ALL[:4]) != []
    assert broken_promises(replace(killed, fsync="always"), GOOD, ALL[:9]) != []


def test_a_seed_is_a_plan_and_so_many_seeds_as_faults_show_every_one() -> None:
    assert [plan_of(seed) for seed in range(50)] == [plan_of(seed) for seed in range(50)]
    assert len({plan_of(seed) for seed in range(50)}) == 50
    shown = {(fault.where, fault.kind) for seed in range(len(FAULTS)) for fault in plan_of(seed).faults}
    assert shown == {*FAULTS, ("host", "full")}
