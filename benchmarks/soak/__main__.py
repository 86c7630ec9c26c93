"""`make soak`: an agent at W1, a collector and Redis for half an hour, with random faults all along.

    python -m benchmarks.soak --minutes 30 --tokens-per-s 2000 --out benchmarks/results

The collector is killed and ended only within the first third; after that it lives to the end, so that what
grows in it would show.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Final

from tests.chaos.plan import FAULTS, Fault, Plan, plan_of
from tests.chaos.rig import Rig
from tests.chaos.stored import stored_numbers
from tests.chaos.verdict import Account, broken_promises

from benchmarks.conditions import conditions
from benchmarks.soak.plot import draw
from benchmarks.soak.vitals import Trend, Vitals, look, trend

LOOK_EVERY_S: Final = 5.0
OF_CALLS: Final = ("p50_ms", "p999_ms", "max_ms", "over_1_ms")
WARM_S: Final = 120.0
LEFT_OUT: Final = frozenset({"corrupt", "jump"})
"""They need TLS, or another library, in the processes that are looked at. The chaos suite has them."""

RANGES: Final = ("mib_per_h_interval", "threads", "files")
ENDS: Final = (("collector", "kill"), ("collector", "term"))


def main() -> int:
    """Run it. 1 where a promise was broken."""
    given = _parser().parse_args()
    seconds = given.minutes * 60
    plan = _plan(given.seed, seconds, given.tokens_per_s)
    plan, name = (replace(plan, faults=()), "soak_calm") if given.calm else (plan, "soak")
    with tempfile.TemporaryDirectory(prefix="fulgurite-soak-") as folder:
        before = conditions()
        record = {"benchmark": name, "conditions": before, **shown(soak(plan, Path(folder)), name)}
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / f"{name}.json").write_text(json.dumps(record, indent=1))
    looks = [Vitals(**one) for one in record["looks"]]
    title = (
        f"{given.minutes:g} min, {record['tokens_per_s']:.0f} tokens/s of 63 samples, "
        f"{len(record['faults'])} faults"
    )
    draw(looks, record["faults"], given.plot or given.out / f"{name}.png", title=title)
    for one in record["trends"]:
        print(json.dumps(one))
    print(json.dumps({key: record[key] for key in ("tokens_per_s", "account", "ours", "control", "broken")}))
    return int(bool(record["broken"]))


def shown(found: dict[str, Any], name: str) -> dict[str, Any]:
    """What was found, with what the page of all benchmarks shows of it."""
    account, minutes, faults = found["account"] or {}, found["seconds"] / 60, len(found["faults"])
    about = (
        f"One agent at {found['tokens_per_s']:.0f} tokens/s of 63 samples, a collector and Redis for "
        f"{minutes:.0f} minutes, with {faults} faults. "
        f"{account.get('captured')} frames captured, {account.get('acknowledged')} acknowledged, "
        f"{account.get('pending')} pending, dropped: {account.get('dropped') or 'none'}. "
        f"Promises broken: {'; '.join(found['broken']) or 'none'}. A row is a life of a process, its first "
        f"{WARM_S:.0f} s left out; `calls` are those of the host's thread beside as many that do nothing of "
        "ours. `mib_per_h` is the slope of a line, its interval that of lines through minutes drawn again "
        "and again"
    ) + (": outages fill buffers, and hide a growth of a few MiB/h from half an hour." if faults else ".")
    rows = [
        {
            **{name: _rounded(value) for name, value in one.items() if name not in RANGES},
            **{name: " to ".join(map(str, one[name])) for name in RANGES},
        }
        for one in found["trends"]
    ]
    calls = [
        {
            "calls": name,
            **{key: _rounded(found[of][key]) for key in ("p50_ms", "p999_ms", "max_ms", "over_1_ms")},
        }
        for name, of in (("ours", "ours"), ("control", "control"))
        if found[of]
    ]
    groups = {"processes": rows, "calls": calls}
    return {
        "about": about, "model": "none: synthetic frames", "rows": [*rows, *calls], "groups": groups,
        "plots": [f"{name}.png"], **found,
    }  # fmt: skip


def _rounded(value: Any) -> Any:
    return round(value, 3) if isinstance(value, float) else value


def soak(plan: Plan, folder: Path) -> dict[str, Any]:
    """Carry it out."""
    looks: list[Vitals] = []
    told: dict[str, Any] = {}
    made_s = plan.seconds
    with Rig(plan, folder, is_impatient=False, mounts=False) as rig:
        began_s = time.monotonic()
        rig.host.tell("go")
        for at_s, act, fault in _moments(rig, plan):
            _look_until(rig, began_s, at_s, looks)
            act(fault)
        _look_until(rig, began_s, plan.seconds, looks)
        seen = {
            "seconds": plan.seconds,
            "faults": [asdict(fault) for fault in plan.faults],
            "trends": [asdict(one) for one in _trends(looks)],
            "looks": [asdict(one) for one in looks],
        }
        try:
            rig.calm()
            told = rig.ask("stop")
            made_s = time.monotonic() - began_s - told["flushed_s"]
            rig.collector.kill()
            (stored,) = stored_numbers(rig.url, rig.keys, plan.encoding).values()
        except Exception as error:  # what was seen is worth keeping
            nothing: dict[str, Any] = dict.fromkeys(("account", "ours", "control"))
            return {**seen, **nothing, "tokens_per_s": 0.0, "broken": [f"it did not end well: {error}"]}
    account = Account.of(told["replicas"][0])
    broken = broken_promises(plan, account, stored)
    return {
        **seen,
        "tokens_per_s": account.made / made_s,
        "account": asdict(account),
        # What is older than the retention is gone by then, so only the order of what is left can be judged.
        "broken": [line for line in broken if "acknowledged frames are not stored" not in line],
        "stored_at_the_end": len(stored),
        "ours": told["ours"],
        "control": told["control"],
    }


def _plan(seed: int, seconds: float, tokens_per_s: int) -> Plan:
    rng = random.Random(seed)
    faults: list[Fault] = []
    at_s = 30.0
    while at_s < seconds - 30:
        may_end_it = at_s < seconds / 3
        kinds = [
            one for one in FAULTS
            if one[1] not in LEFT_OUT and (may_end_it or one not in ENDS)
        ]  # fmt: skip
        where, kind = rng.choice(kinds)
        amount = {"delay": rng.uniform(0.01, 0.2), "throttle": rng.uniform(5e4, 5e5)}.get(kind, 0.0)
        faults.append(Fault(where=where, kind=kind, at_s=at_s, for_s=rng.uniform(0.5, 8.0), amount=amount))
        at_s += rng.uniform(10.0, 40.0)
    return replace(
        plan_of(seed),
        server="redis",
        fsync="everysec",
        replicas=1,
        frames_per_s=tokens_per_s,
        rows=16,
        budget_bytes=16 << 20,
        encoding="exact",
        seconds=seconds,
        ends_in_the_storm=False,
        faults=tuple(faults),
    )


def _moments(rig: Rig, plan: Plan) -> list[tuple[float, Any, Fault]]:
    moments = [(fault.at_s, rig.begin, fault) for fault in plan.faults]
    moments += [(fault.at_s + fault.for_s, rig.end, fault) for fault in plan.faults]
    return sorted(moments, key=lambda moment: moment[0])


def _look_until(rig: Rig, began_s: float, at_s: float, looks: list[Vitals]) -> None:
    """Look at both, every now and then, until it is time."""
    while (now_s := time.monotonic() - began_s) < at_s:
        if not looks or now_s >= looks[-1].at_s + LOOK_EVERY_S:
            looks.extend(_both(rig, now_s))
        time.sleep(min(0.2, max(0.0, at_s - now_s)))


def _both(rig: Rig, now_s: float) -> Iterator[Vitals]:
    for who, actor in (("agent", rig.host), ("collector", rig.collector)):
        seen = look(actor.pid, at_s=now_s, who=who, life=actor.starts)
        if seen is not None:
            yield seen


def _trends(looks: list[Vitals]) -> list[Trend]:
    lives = sorted({(one.who, one.life) for one in looks})
    found = [trend([one for one in looks if (one.who, one.life) == life], warm_s=WARM_S) for life in lives]
    return [one for one in found if one is not None]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__.split("\n")[0])
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--tokens-per-s", type=int, default=2000)
    parser.add_argument("--calm", action="store_true", help="no faults, so that a smaller growth shows")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "results")
    parser.add_argument("--plot", type=Path, help="where the plot goes; by default beside the results")
    return parser


if __name__ == "__main__":
    sys.exit(main())
