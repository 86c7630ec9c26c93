"""The two runs: every variant at batch 1, 8 and 32 in two dtypes; and the agent's cost along four axes."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from benchmarks.collector_process import collector_process
from benchmarks.interleave import interleave, ratio
from benchmarks.overhead import environment, plots
from benchmarks.overhead.peers import PACKAGES
from benchmarks.overhead.subject import Shape, build
from benchmarks.overhead.workers import Worker, WorkerError

Row = dict[str, Any]
ABOUT = """\
Decoding with a Llama of random weights, one torch thread. `thread_cpu` is the CPU time of the generating
thread, `process_cpu` that of all threads of the process, both as a ratio to `off` of the same process and
round; `thread_us_added` and `process_us_added` are the same in microseconds per token step. `own_us` is the
CPU time of the generating thread in the agent's own code alone, per token step, measured where it runs,
without what torch itself takes to call a hook; `operator_calls` are torch operators per token step on the
generating thread. Peers keep, for every token, what our level `heads` reads: each layer's input of the output
projection. A peer's own `off` is the same model in its environment. OpenTelemetry records times only, no
measures of the model."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How long a run is; `rounds` by batch size."""

    shape: Shape
    dtypes: tuple[str, ...]
    rounds: Mapping[int, int]
    tokens: int
    length: int


FULL = Plan(Shape(), ("float32", "bfloat16"), {1: 15, 8: 8, 32: 6}, tokens=32, length=64)
QUICK = Plan(
    Shape(layers=4, width=256, heads=8, kv_heads=4, ffn=512, vocabulary=2000),
    ("float32",), {1: 3, 8: 3}, tokens=16, length=32,
)  # fmt: skip


def overhead(*, quick: bool) -> dict[str, Any]:
    """Everything beside everything."""
    plan = QUICK if quick else FULL
    peers, skipped = _environments()
    rows: list[Row] = []
    with TemporaryDirectory() as folder, collector_process("--history", "all") as endpoint:
        parameters = build(plan.shape, Path(folder))
        for dtype in plan.dtypes:
            with _workers(Path(folder), dtype, endpoint, peers, skipped) as workers:
                for batch in plan.rounds:
                    rows += [
                        {"dtype": dtype, "batch": batch, **row} for row in _measured(workers, plan, batch)
                    ]
    model = f"Llama, random weights, {parameters / 1e6:.0f} M parameters, {plan.shape}"
    versions = {peer.peer: peer.version for peer in peers}
    return {"about": ABOUT, "model": model, "peers": versions, "skipped": skipped, "rows": rows}


def _environments() -> tuple[list[environment.Environment], dict[str, str]]:
    made = {peer: environment.make(peer) for peer in PACKAGES}
    there = [one for one in made.values() if isinstance(one, environment.Environment)]
    return there, {peer: one for peer, one in made.items() if isinstance(one, str)}


@contextmanager
def _workers(
    folder: Path,
    dtype: str,
    endpoint: str,
    peers: Sequence[environment.Environment],
    skipped: dict[str, str],
) -> Iterator[dict[str, Worker]]:
    with ExitStack() as stack:
        start = partial(Worker, Path(sys.executable), str(folder), dtype)
        workers = {"": stack.enter_context(start(endpoint, "-"))}
        for peer in peers:
            try:
                worker = Worker(peer.python, str(folder), dtype, "-", peer.peer)
            except WorkerError as error:
                skipped[f"{peer.peer} {peer.version}, {dtype}"] = str(error)
            else:
                workers[f"{peer.peer} {peer.version}"] = stack.enter_context(worker)
        yield workers


def _measured(workers: Mapping[str, Worker], plan: Plan, batch: int) -> list[Row]:
    asked = {"rows": batch, "length": plan.length}
    calls = {
        (name, variant): partial(worker.ask, "measure", variant, **asked, tokens=plan.tokens)
        for name, worker in workers.items()
        for variant in worker.variants
    }
    counts = {key: workers[key[0]].ask("count", key[1], **asked) for key in calls}
    owned = {
        key: worker.ask("own", key[1], **asked)["own_us_per_step"]
        for key, worker in ((key, workers[key[0]]) for key in calls)
        if not key[0]
    }
    for measure in calls.values():
        measure()
    taken = interleave({"\0".join(key): call for key, call in calls.items()}, rounds=plan.rounds[batch])
    samples = {key: taken["\0".join(key)] for key in calls}
    return [
        {
            **_row(key, samples, batch, plan.tokens),
            "own_us": owned.get(key),
            "operator_calls": counts[key]["operator_calls_per_step"],
        }
        for key in calls
    ]


def _row(
    key: tuple[str, str], samples: Mapping[tuple[str, str], list[Row]], batch: int, tokens_each: int
) -> Row:
    """One variant against `off` of the same worker."""
    tokens = batch * tokens_each
    worker, variant = key
    own, base, again = samples[key], samples[worker, "off"], samples[worker, "off again"]

    def compared(field: str, other: list[Row] = own) -> Any:
        return ratio([one[field] for one in other], [one[field] for one in base])

    wall, thread, process = (compared(field) for field in ("seconds", "thread_cpu_s", "process_cpu_s"))
    is_base = variant == "off"
    return {
        "variant": f"{variant} (beside {worker})"
        if worker and variant.startswith("off")
        else (worker or variant),
        "tokens_per_s": round(tokens / float(np.median([one["seconds"] for one in own])), 1),
        "time": str(wall),
        "verdict": "base" if is_base else wall.verdict(compared("seconds", again)),
        "p99_ms": round(float(np.percentile([ns for one in own for ns in one["step_ns"]], 99)) / 1e6, 2),
        "thread_cpu": str(thread),
        "thread_cpu_verdict": "base" if is_base else thread.verdict(compared("thread_cpu_s", again)),
        "process_cpu": str(process),
        "thread_us_added": _interval(own, base, tokens_each, "thread_cpu_s"),
        "process_us_added": _interval(own, base, tokens_each, "process_cpu_s"),
        "rounds": len(own),
    }


AXES: dict[str, tuple[int, ...]] = {
    "layers": (4, 8, 16, 32),
    "heads": (4, 8, 16, 32),
    "context": (64, 256, 1024),
    "batch": (1, 4, 16, 64),
}
SWEPT = Shape(layers=8, width=512, heads=8, kv_heads=4, ffn=1024, vocabulary=8000)
SWEPT_VARIANTS = ("off", "off again", "pulse", "heads", "deep (1 step in 16)", "deep, every token")


def sweep(*, quick: bool, out: Path) -> dict[str, Any]:
    """Time and CPU per token step along each axis, all else as it was; drawn as one plot an axis."""
    axes = {name: values[:2] for name, values in AXES.items()} if quick else AXES
    rounds, tokens = (2, 8) if quick else (9, 32)
    plan = Plan(SWEPT, ("float32",), {1: rounds}, tokens=tokens, length=64)
    rows = [
        {"axis": axis, "value": value, **row}
        for axis, values in axes.items()
        for value in values
        for row in _point(plan, axis, value)
    ]
    files = [plots.draw(axis, [row for row in rows if row["axis"] == axis], out) for axis in axes]
    return {"about": SWEEP_ABOUT, "model": f"Llama, random weights, {SWEPT}", "rows": rows, "plots": files}


SWEEP_ABOUT = """\
What the agent adds to a token step, in microseconds of wall time and of CPU time of the generating thread
(medians of paired differences to `off`, with 95 % bootstrap intervals), along four axes, float32, one torch
thread.
"""


def _point(plan: Plan, axis: str, value: int) -> list[Row]:
    shape, batch, length = plan.shape, 1, plan.length
    if axis == "batch":
        batch = value
    elif axis == "context":
        length = value
    elif axis == "heads":
        shape = replace(shape, heads=value, kv_heads=value // 2)
    else:
        shape = replace(shape, layers=value)
    with TemporaryDirectory() as folder, collector_process("--history", "all") as endpoint:
        build(shape, Path(folder))
        with Worker(Path(sys.executable), folder, "float32", endpoint, "-") as worker:
            asked = {"rows": batch, "length": length, "tokens": plan.tokens}
            calls = {name: partial(worker.ask, "measure", name, **asked) for name in SWEPT_VARIANTS}
            for measure in calls.values():
                measure()
            taken = interleave(calls, rounds=plan.rounds[1])
    return [
        {"variant": name, **_added(taken[name], taken["off"], plan.tokens)} for name in SWEPT_VARIANTS[1:]
    ]


def _added(own: list[Row], base: list[Row], tokens: int) -> Row:
    found: Row = {}
    for name, field in (("wall_us", "seconds"), ("thread_cpu_us", "thread_cpu_s")):
        middle, low, high = _difference(own, base, tokens, field)
        found |= {name: round(middle, 1), f"{name}_low": round(low, 1), f"{name}_high": round(high, 1)}
    return found


def _interval(own: list[Row], base: list[Row], tokens: int, field: str) -> str:
    return "{:.0f} [{:.0f}, {:.0f}]".format(*_difference(own, base, tokens, field))


def _difference(own: list[Row], base: list[Row], tokens: int, field: str) -> tuple[float, float, float]:
    """Microseconds per token step more than the base: median of the pairs, and its 95 % interval."""
    added = np.array([mine[field] - off[field] for mine, off in zip(own, base, strict=True)]) / tokens * 1e6
    draws = np.random.default_rng(0).choice(added, size=(2000, len(added)))
    low, high = np.percentile(np.median(draws, axis=1), [2.5, 97.5])
    return float(np.median(added)), float(low), float(high)
