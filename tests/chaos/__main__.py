"""The chaos suite: many seeded runs, several at once, and a table of what came of them.

python -m tests.chaos --runs 240 --jobs 3 --out results.json
python -m tests.chaos --seed 17          # one run again, with its plan
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path

from tests.chaos.machine import impossible
from tests.chaos.plan import plan_of
from tests.chaos.run import Result, carry_out


def main() -> int:
    """Run it. 1 where a promise was broken."""
    given = _parser().parse_args()
    seeds = given.seed or range(given.first_seed, given.first_seed + given.runs)
    drawn = [plan_of(seed, seconds=given.seconds) for seed in seeds]
    plans = [plan for plan in drawn if not impossible(plan)]
    for plan in drawn:
        if what := impossible(plan):
            print(f"{plan.seed:5d} left out: {what}")
    for plan in drawn if given.seed else ():
        print(plan)
    began_s = time.monotonic()
    results: list[Result] = []
    with ProcessPoolExecutor(given.jobs, mp_context=get_context("spawn")) as pool:
        for done in as_completed([pool.submit(carry_out, plan, keep=given.keep) for plan in plans]):
            results.append(done.result())
            _say(results[-1])
    results.sort(key=lambda result: result.seed)
    _sum_up(results, time.monotonic() - began_s)
    if given.out:
        given.out.parent.mkdir(parents=True, exist_ok=True)
        given.out.write_text(json.dumps([asdict(result) for result in results], indent=1))
    return int(any(result.broken for result in results))


def _say(result: Result) -> None:
    state = "BROKEN" if result.broken else "kept"
    print(f"{result.seed:5d} {state:6s} {result.seconds:5.1f} s  {result.faults}", flush=True)
    if result.ours.get("at"):
        print(f"      calls of ours over 1 ms: {result.ours['at']}")
    for line in result.broken:
        print(f"      {line}", flush=True)


def _sum_up(results: list[Result], seconds: float) -> None:
    runs: Counter[str] = Counter()
    broken: Counter[str] = Counter()
    for result in results:
        for name in {f"{fault['where']} {fault['kind']}" for fault in result.plan["faults"]}:
            runs[name] += 1
            broken[name] += bool(result.broken)
    print(f"\n{'fault':24s} runs  with a broken promise")
    for name in sorted(runs):
        print(f"{name:24s} {runs[name]:4d}  {broken[name]:4d}")
    accounts = [account for result in results for account in result.accounts]
    captured, acknowledged = (sum(one[name] for one in accounts) for name in ("captured", "acknowledged"))
    dropped: Counter[str] = Counter()
    for one in accounts:
        dropped.update(one["dropped"])
    print(
        f"\n{len(results)} runs in {seconds:.0f} s, {sum(bool(result.broken) for result in results)} with a "
        f"broken promise; {captured} frames captured, {acknowledged} acknowledged, "
        f"{sum(result.stored for result in results)} stored, dropped {dict(dropped)}, "
        f"{sum(result.lost for result in results)} acknowledged and lost"
    )
    for name in ("ours", "control"):
        costs = [getattr(result, name) for result in results if getattr(result, name)]
        if not costs:
            continue
        print(
            f"CPU of the host's thread per call, {name}: {sum(cost['calls'] for cost in costs):.0f} calls, "
            f"median {sorted(cost['p50_ms'] for cost in costs)[len(costs) // 2] * 1e3:.1f} us, "
            f"longest {max(cost['max_ms'] for cost in costs):.3f} ms, "
            f"{sum(cost['over_1_ms'] for cost in costs):.0f} over 1 ms"
        )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__.split("\n")[0])
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--seed", type=int, nargs="+", help="only these, with their plans")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each run, while frames are made")
    parser.add_argument("--out", type=Path, help="results, as JSON")
    parser.add_argument("--keep", type=Path, help="logs of runs that broke a promise")
    return parser


if __name__ == "__main__":
    sys.exit(main())
