"""What must hold after a run, whatever went wrong in it. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Final

from tests.chaos.plan import Plan

UNCERTAIN: Final = "unacknowledged"
"""Sent, and nobody said whether it is stored: it counts as dropped, and may be there."""
AT_THE_END: Final = frozenset({UNCERTAIN, "closed"})
IN_AN_OUTAGE: Final = frozenset({"outbox_full"})
LOST_S: Final = 1.0
"""What a store that writes to disk every second may lose of what was acknowledged, each time it is killed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """What an agent says of itself at its end, and how many frames it was really given."""

    made: int
    captured: int
    acknowledged: int
    pending: int
    dropped: Mapping[str, int] = field(default_factory=dict)
    errors: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, told: Mapping[str, Any]) -> Account:
        """From its own words."""
        return cls(**{name: told[name] for name in cls.__dataclass_fields__})


def broken_promises(plan: Plan, account: Account, stored: Sequence[int]) -> list[str]:
    """Everything that does not hold; nothing, after a good run.

    Parameters
    ----------
    stored : sequence of int
        Numbers of the frames that the store has of this replica, as they are read there.
    """
    return [
        *_ledger(plan, account),
        *_order(account, stored),
        *_sums(plan, account, stored),
    ]


def _ledger(plan: Plan, account: Account) -> list[str]:
    said = []
    if account.captured != account.made:
        said.append(f"{account.made} frames were handed over, {account.captured} counted")
    settled = account.acknowledged + sum(account.dropped.values())
    if account.captured != settled + account.pending:
        said.append(f"captured {account.captured} is not {settled} settled + {account.pending} pending")
    if account.pending:
        said.append(f"{account.pending} frames have no fate after the end")
    in_an_outage = IN_AN_OUTAGE | ({"spool_full"} if plan.spool_bytes else set())
    allowed = in_an_outage | (AT_THE_END if plan.ends_in_the_storm else frozenset())
    strange = {reason: n for reason, n in account.dropped.items() if reason not in allowed}
    if strange:
        said.append(f"frames were dropped for {strange}")
    return said


def _order(account: Account, stored: Sequence[int]) -> list[str]:
    said = []
    twice = len(stored) - len(set(stored))
    if twice:
        said.append(f"{twice} frames are stored twice")
    if any(after < before for before, after in pairwise(stored)):
        said.append("frames are stored out of order")
    if any(not 1 <= number <= account.made for number in stored):
        said.append("frames are stored that nobody made")
    return said


def _sums(plan: Plan, account: Account, stored: Sequence[int]) -> list[str]:
    said = []
    lost = account.acknowledged - len(stored)
    kills = sum((fault.where, fault.kind) in (("redis", "kill"), ("disk", "full")) for fault in plan.faults)
    most = LOST_S * plan.frames_per_s * kills if plan.fsync == "everysec" else 0
    if lost > most:
        said.append(f"{lost} of {account.acknowledged} acknowledged frames are not stored; at most {most:g}")
    unclaimed = len(stored) - account.acknowledged - account.dropped.get(UNCERTAIN, 0)
    if unclaimed > 0:
        said.append(f"{unclaimed} frames are stored that count as dropped before they were sent")
    return said
