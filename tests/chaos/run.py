"""One run: the plan, carried out on a rig, and what came of it."""

from __future__ import annotations

import shutil
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tests.chaos.plan import Fault, Plan
from tests.chaos.rig import Rig
from tests.chaos.stored import stored_numbers
from tests.chaos.verdict import Account, broken_promises


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What came of a run.

    Attributes
    ----------
    broken : list of str
        Promises that were not kept; empty after a good run.
    ours, control : dict
        CPU time of the host's thread in calls of ours, and in a control, in ms.
    lost, stored : int
        Frames acknowledged and not stored; stored.
    """

    seed: int
    faults: str
    broken: list[str]
    plan: dict[str, Any] = field(default_factory=dict)
    accounts: list[dict[str, Any]] = field(default_factory=list)
    stored: int = 0
    lost: int = 0
    ours: dict[str, Any] = field(default_factory=dict)
    control: dict[str, Any] = field(default_factory=dict)
    flushed_s: float = 0.0
    seconds: float = 0.0
    disk: str = ""


def carry_out(plan: Plan, *, keep: Path | None = None) -> Result:
    """Do what the plan says, and judge it.

    Parameters
    ----------
    keep : Path, optional
        Where the logs of a run that broke a promise go.
    """
    began_s = time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="fulgurite-chaos-"))
    try:
        result = _on_a_rig(plan, folder, began_s)
    except Exception as error:
        result = Result(
            seed=plan.seed,
            faults=plan.names,
            plan=asdict(plan),
            broken=[f"the run itself failed: {type(error).__name__}: {error}"],
            seconds=time.monotonic() - began_s,
        )
    if result.broken and keep is not None:
        shutil.copytree(folder, keep / f"seed-{plan.seed}", dirs_exist_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
    return result


def _on_a_rig(plan: Plan, folder: Path, began_s: float) -> Result:
    with Rig(plan, folder) as rig:
        rig.host.tell("go")
        play(rig, plan.faults, plan.seconds)
        if not plan.ends_in_the_storm:
            rig.calm()
        told = rig.ask("leave" if plan.ends_in_the_storm else "stop")
        rig.calm()
        rig.collector.kill()  # nobody writes any more
        stored = stored_numbers(rig.url, rig.keys, plan.encoding)
        disk = rig.disk.kind
    accounts = [Account.of(one) for one in told["replicas"]]
    broken = [
        f"{key.instance}: {said}"
        for key, account in zip(rig.keys, accounts, strict=True)
        for said in broken_promises(plan, account, stored[key])
    ]
    if not plan.ends_in_the_storm and not told["flushed"]:
        broken.append("what was captured was not settled in time, although all was well")
    return Result(
        seed=plan.seed,
        faults=plan.names,
        broken=broken,
        plan=asdict(plan),
        accounts=[asdict(account) for account in accounts],
        stored=sum(map(len, stored.values())),
        lost=sum(
            max(0, account.acknowledged - len(stored[key]))
            for key, account in zip(rig.keys, accounts, strict=True)
        ),
        ours=told["ours"],
        control=told["control"],
        flushed_s=told["flushed_s"],
        seconds=time.monotonic() - began_s,
        disk=disk,
    )


def play(rig: Rig, faults: tuple[Fault, ...], seconds: float) -> None:
    """Let everything go wrong at its time, for `seconds`; what should end later is still on after it."""
    began_s = time.monotonic()
    moments = [(fault.at_s, rig.begin, fault) for fault in faults]
    moments += [(fault.at_s + fault.for_s, rig.end, fault) for fault in faults]
    for at_s, act, fault in sorted(moments, key=lambda moment: moment[0]):
        if at_s > seconds:
            break
        time.sleep(max(0.0, began_s + at_s - time.monotonic()))
        act(fault)
    time.sleep(max(0.0, began_s + seconds - time.monotonic()))
