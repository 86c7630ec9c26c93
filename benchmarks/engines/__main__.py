"""What observing vLLM costs its users, over HTTP: with and without us, interleaved.

Five servers of the same model are up side by side and asked in turn, in changing order: without us, without
us again (the control: what differs there is noise), without us but with the model runner and the scheduling
that our plugin chooses, observed at `heads` with a collector that somebody watches, and observed alike with
one that nobody watches, which is how a server stands most of its time: it keeps whole frames of 1 request in
16, and sketches of all. So what the scheduling costs, what the agent costs and what it costs to deliver are
told apart. Streamed completions of 48 tokens, so many at once. Collectors and viewer are processes of their
own on the same machine; vLLM's processes wait for one another busily. vLLM binds its workers to processors as
it does by itself: on two of them the model computes on one.

``python -m benchmarks engines`` runs it in the environment that `make test-engines` builds: about a quarter
of an hour, on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.conditions import conditions
from benchmarks.engines import load, parts
from benchmarks.page import table
from fulgurite.cli.address import Address
from fulgurite.cli.client import Collector

ALIKE = "without, scheduled as we need it"
WATCHED, UNWATCHED = OBSERVED = ("heads, watched", "heads, nobody watches")
AS_WE_NEED_IT = ({"VLLM_USE_V2_MODEL_RUNNER": "0"}, ("--no-async-scheduling",))  # as `choosing` sets them
ABOUT = (__doc__ or "").partition("\n\n``")[0].strip()


@dataclass(frozen=True, slots=True)
class Plan:
    """What is measured.

    Attributes
    ----------
    at_once : requests under way.
    arguments : of every server.
    shape : of the model, beside what `tiny_model` has.
    """

    rounds: int
    at_once: tuple[int, ...]
    arguments: tuple[str, ...]
    dtype: str
    shape: dict[str, Any]


def row(name: str, at_once: int, found: dict[str, dict[int, list[load.Load]]]) -> dict[str, Any]:
    """Of one variant at one concurrency: the median round, quantiles over all, and how much longer its rounds
    took than those without us beside them, and than those scheduled alike.
    """
    loads, base, alike = (found[one][at_once] for one in (name, "without", ALIKE))
    first = [v for one in loads for v in one.first_s]
    between = [v for one in loads for v in one.between_s]
    rate = statistics.median(one.requests / one.wall_s for one in loads)
    return {
        "server": name,
        "at once": at_once,
        "requests/s": round(rate, 2),
        "first token p50 ms": parts.quantile(first, 0.5),
        "first token p99 ms": parts.quantile(first, 0.99),
        "between tokens p50 ms": parts.quantile(between, 0.5),
        "between tokens p99 ms": parts.quantile(between, 0.99),
        "rounds longer, median [quartiles]": None if loads is base else longer(base, loads),
        "than scheduled alike": longer(alike, loads) if name in OBSERVED else None,
    }


def longer(base: list[load.Load], other: list[load.Load]) -> str:
    """How much longer rounds of `other` took than those beside them, in percent."""
    gains = sorted(100 * (b.wall_s / a.wall_s - 1) for a, b in zip(base, other, strict=True))
    low, middle, high = statistics.quantiles(gains, n=4) if len(gains) > 1 else gains * 3
    return f"{middle:+.1f} % [{low:+.1f}, {high:+.1f}]"


def measure(plan: Plan, log: Any) -> dict[str, Any]:
    """Start the servers and run the rounds."""
    serving, tiny_model = parts.of_the_tests("serving"), parts.of_the_tests("tiny_model")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fulgurite-engines-")))
        model = tiny_model.make(folder / "model", **plan.shape)
        shared = ("--dtype", plan.dtype, *plan.arguments)
        collector, port = stack.enter_context(serving.collector(folder))
        viewer = stack.enter_context(parts.viewing(folder, port))
        unwatched = folder / "unwatched"
        unwatched.mkdir()
        _, quiet_port = stack.enter_context(serving.collector(unwatched, history="heads/16"))
        urls = {}
        for name, (env, more) in {
            "without": ({}, ()), "without again": ({}, ()), ALIKE: AS_WE_NEED_IT,
            WATCHED: (parts.observing(port), ()), UNWATCHED: (parts.observing(quiet_port), ()),
        }.items():  # fmt: skip
            place = folder / name.replace(" ", "-").replace(",", "")
            place.mkdir()
            chosen = {**env, **parts.AS_PEOPLE_RUN_IT}
            urls[name] = stack.enter_context(serving.vllm(place, model, *shared, *more, env=chosen)).url
            log(f"the server {name!r} is up")
        beside = {"collector": collector, "viewer": viewer}
        before = {name: parts.cpu_s(process) for name, process in beside.items()}
        found = rounds(plan, urls, log)
        assert viewer.is_alive, viewer.said
        spent = {name: parts.cpu_s(process) - before[name] for name, process in beside.items()}
        with Collector(Address("127.0.0.1", port)) as line:
            (replica,) = line.replicas().replicas
            account = replica.agent
    rows = [row(name, at_once, found) for at_once in plan.at_once for name in found]
    agent = {"captured": account.captured, "acknowledged": account.acknowledged,
             "dropped": dict(account.dropped), "folded": account.folded,
             "share of step time": account.overhead_ratio,
             **{f"{name}: CPU ms per token": round(1e3 * s / max(1, account.captured), 3)
                for name, s in spent.items()}}  # fmt: skip
    return {"rows": rows, "agent": agent}


def rounds(plan: Plan, urls: dict[str, str], log: Any) -> dict[str, dict[int, list[load.Load]]]:
    """Every server in turn, in changing order; the first round warms them up and is not kept."""
    found: dict[str, dict[int, list[load.Load]]] = {
        name: {level: [] for level in plan.at_once} for name in urls
    }
    for number in range(-1, plan.rounds):
        for at_once in plan.at_once:
            for name in list(urls) if number % 2 else list(reversed(urls)):
                seed = 1000 * (number + 1) + 100 * at_once
                one = load.run(
                    urls[name], requests=max(4, 2 * at_once), at_once=at_once, tokens=parts.TOKENS, seed=seed
                )
                if number >= 0:
                    found[name][at_once].append(one)
        log(f"round {number + 1} of {plan.rounds}")
    return found


def main() -> None:
    """Run it, print the table, and keep what it found."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.engines", description=__doc__)
    parser.add_argument("--rounds", type=int, help="default 8; 1 with --quick")
    parser.add_argument("--at-once", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument(
        "--dtype", default="bfloat16", choices=("bfloat16", "float32"),
        help="float32 where the processor has no AVX-512: bfloat16 is not up in four minutes there",
    )  # fmt: skip
    parser.add_argument("--quick", action="store_true", help="a small model, not compiled, few rounds")
    parser.add_argument("--out", type=Path, help="where to keep the record")
    options = parser.parse_args()
    quick = bool(options.quick)
    plan = Plan(
        rounds=options.rounds or (1 if quick else 8),
        at_once=tuple(options.at_once),
        arguments=("--enforce-eager",) if quick else (),
        dtype=options.dtype,
        shape={},
    )
    before = conditions()
    shapes = {"3 M": {}} if quick else parts.SHAPES
    found = {
        name: measure(replace(plan, shape=shape), lambda line: print(line, flush=True))
        for name, shape in shapes.items()
    }
    told = "not compiled" if quick else "compiled"
    record: dict[str, Any] = {
        "benchmark": "engines", "quick": quick, "about": ABOUT, "conditions": before,
        "model": f"Llama of {' and '.join(shapes)} parameters, random weights, {told}, {plan.dtype}",
        "peers": {"vLLM": version("vllm")}, "tokens": parts.TOKENS, "rounds": plan.rounds,
        "rows": [{"model": name, **one} for name, of in found.items() for one in of["rows"]],
        "agent": {name: of["agent"] for name, of in found.items()},
    }  # fmt: skip
    print(table(record["rows"]))
    print(json.dumps(record["agent"]))
    if options.out:
        options.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
