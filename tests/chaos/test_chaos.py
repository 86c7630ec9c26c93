"""The short form of the chaos suite: a run for each of the worst faults. `make chaos` makes hundreds."""

from __future__ import annotations

import pytest
from tests.chaos.machine import impossible
from tests.chaos.plan import FAULTS, Kind, Where, plan_of
from tests.chaos.run import carry_out

pytest.importorskip("redis", reason="the collector needs the extra: collector")

pytestmark = [pytest.mark.system, pytest.mark.timeout(180)]

WORST: tuple[tuple[Where, Kind], ...] = (
    ("link", "black_hole"),
    ("link", "half_close"),
    ("link", "corrupt"),
    ("store", "reset"),
    ("store", "corrupt"),
    ("collector", "kill"),
    ("redis", "kill"),
    ("disk", "full"),
    ("collector", "jump"),
)


@pytest.mark.parametrize("fault", WORST, ids="-".join)
def test_nothing_acknowledged_is_lost_and_every_frame_has_a_fate(fault: tuple[Where, Kind]) -> None:
    plan = plan_of(FAULTS.index(fault), seconds=2.0)
    if lack := impossible(plan):
        pytest.skip(lack)
    result = carry_out(plan)
    assert result.broken == [], f"{plan}: again with `python -m tests.chaos --seed {plan.seed} --seconds 2`"
    assert all(account["captured"] > 0 for account in result.accounts)
