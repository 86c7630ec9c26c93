"""The runs: every variant at batch 1, 8 and 32 in two dtypes, ours on a larger model alike, and the agent's
cost along five axes."""

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
import torch

from benchmarks.collector_process import collector_process
from benchmarks.interleave import interleave, ratio
from benchmarks.overhead import environment, plots
from benchmarks.overhead.peers import PACKAGES
from benchmarks.overhead.subject import Shape, build
from benchmarks.overhead.workers import Worker, WorkerError

Row = dict[str, Any]
PEERS_ROUNDS = 3
OF_THE_AGENT = ("pulse", "heads", "deep (1 step in 16)", "deep, every token")
ABOUT = """\
Decoding with a Llama of random weights, one torch thread, from the first token to the last. `thread_cpu` is
the CPU time of the generating thread, `process_cpu` that of all threads of the process, both as a ratio to
`off` of the same process and round; `thread_us_added` and `process_us_added` are the same in microseconds per
token step. `own_us` is the CPU time of the generating thread in the agent's own code alone, per token step,
measured where it runs, without what torch itself takes to call a hook, less what the looks at the clock take
(the mean, then the median step), and `own_share` the mean as a share of a step of `off`; one step in 16 of
each sample is a deep one; fewer than six rounds resolve nothing; `operator_calls` are torch operators per
token step on the generating thread. Peers keep, for every token, what our level `heads` reads: each layer's
input of the output projection. A peer's own `off` is the same model in its environment. OpenTelemetry records
times only, no measures of the model."""

ABOUT_LARGE = """\
As `overhead`, of a model with nine times the parameters: the agent costs mostly so much a layer and a step,
however wide they are. In bfloat16, as people run it; in float32 where the processor has no instructions for
that. Peers of other environments are not beside it."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How long a run is.

    Attributes
    ----------
    rounds : by dtype, those at each batch size.
    tokens : by batch size: fewer, where each takes longer. From the first to the last are so many times 16
        steps, of which one is a deep one.
    own_tokens : by batch size, of what is measured in the agent's own code; as `tokens`.
    prompt : tokens of all prompts of a batch together, and no fewer than 8 each.
    """

    shape: Shape
    rounds: Mapping[str, Mapping[int, int]]
    tokens: Mapping[int, int]
    own_tokens: Mapping[int, int]
    prompt: int

    def asked(self, batch: int) -> dict[str, int]:
        """What the workers are told of the prompts."""
        return {"rows": batch, "length": max(8, self.prompt // batch)}


FULL = Plan(
    Shape(), {"float32": {1: 7, 8: 7, 32: 6}, "bfloat16": {1: 7, 8: 6, 32: 6}},
    tokens={1: 33, 8: 17, 32: 17}, own_tokens={1: 129, 8: 65, 32: 33}, prompt=64,
)  # fmt: skip
LARGE = Plan(
    Shape(layers=16, width=2048, heads=32, kv_heads=8, ffn=8192),
    {"bfloat16": {1: 6, 8: 6, 32: 6}},
    tokens={1: 17, 8: 17, 32: 17}, own_tokens={1: 33, 8: 17, 32: 17}, prompt=64,
)  # fmt: skip
QUICK = Plan(
    Shape(layers=4, width=256, heads=8, kv_heads=4, ffn=512, vocabulary=2000), {"float32": {1: 2, 8: 2}},
    tokens={1: 8, 8: 8}, own_tokens={1: 17, 8: 17}, prompt=32,
)  # fmt: skip


def overhead(*, quick: bool) -> dict[str, Any]:
    """Everything beside everything."""
    peers, skipped = _environments()
    found = _over(QUICK if quick else FULL, peers, skipped)
    return {**found, "about": ABOUT, "peers": {peer.peer: peer.version for peer in peers}}


def overhead_large(*, quick: bool) -> dict[str, Any]:
    """Ours, and what needs no other environment, on a model as large as small ones that people serve."""
    skipped: dict[str, str] = {}
    plan = QUICK if quick else LARGE
    if not torch.cpu.get_capabilities().get("avx512_bf16") and "bfloat16" in plan.rounds:
        plan = replace(plan, rounds={"float32": plan.rounds["bfloat16"]})
        skipped["bfloat16"] = (
            "this processor has no instructions for it: a step takes several times as long as one in "
            "float32, and every share would look small"
        )
    return {**_over(plan, [], skipped), "about": ABOUT_LARGE}


def _over(plan: Plan, peers: Sequence[environment.Environment], skipped: dict[str, str]) -> dict[str, Any]:
    with collector_process("--history", "all") as endpoint, TemporaryDirectory() as folder:
        parameters = f"{build(plan.shape, Path(folder)) / 1e6:.0f} M"
        found = _planned(plan, Path(folder), endpoint, peers, skipped)
        rows = [{"model": parameters, **row} for row in found]
    if not rows:
        raise WorkerError(f"nothing was measured: {skipped}")
    model = f"Llama, random weights: {parameters} parameters, {plan.shape}"
    return {"model": model, "skipped": skipped, "rows": rows}


def _planned(
    plan: Plan,
    folder: Path,
    endpoint: str,
    peers: Sequence[environment.Environment],
    skipped: dict[str, str],
) -> Iterator[Row]:
    for dtype, rounds in plan.rounds.items():
        with _workers(folder, dtype, endpoint, peers, skipped) as workers:
            for batch, times in rounds.items():
                try:
                    rows = _measured(workers, plan, batch, rounds=times)
                except WorkerError as error:  # what is measured by then is kept
                    skipped[f"{dtype}, batch {batch}"] = str(error)
                    break
                print(f"{dtype}, batch {batch}: measured", file=sys.stderr, flush=True)
                yield from ({"dtype": dtype, "batch": batch, **row} for row in rows)


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


def _measured(workers: Mapping[str, Worker], plan: Plan, batch: int, *, rounds: int) -> list[Row]:
    asked, tokens = plan.asked(batch), plan.tokens[batch]
    calls = {
        (name, variant): partial(worker.ask, "measure", variant, **asked, tokens=tokens)
        for name, worker in workers.items()
        for variant in worker.variants
    }
    counts = {key: workers[key[0]].ask("count", key[1], **asked) for key in calls}
    owned = {
        variant: workers[""].ask("own", variant, **asked, tokens=plan.own_tokens[batch])
        for variant in OF_THE_AGENT
    }
    with_peers = min(rounds, PEERS_ROUNDS)
    taken = interleave({"\0".join(key): call for key, call in calls.items()}, rounds=with_peers)
    ours = {"\0".join(key): call for key, call in calls.items() if not key[0]}
    alone = interleave(ours, rounds=rounds - with_peers, seed=1)
    samples = {key: taken["\0".join(key)] + alone.get("\0".join(key), []) for key in calls}
    return [
        {
            **_row(key, samples, batch, tokens),
            **_own(owned.get(key[1]), samples["", "off"], tokens),
            "operator_calls": counts[key]["operator_calls_per_step"],
        }
        for key in calls
    ]


def _own(found: Row | None, base: list[Row], tokens: int) -> Row:
    """What was spent in the agent's own code, and its share of a step of `off`."""
    if found is None:
        return {"own_us": "", "own_share": ""}
    step_us = float(np.median([one["decode_thread_cpu_s"] for one in base])) / (tokens - 1) * 1e6
    return {
        "own_us": f"{found['own_us']} ({found['own_us_median']})",
        "own_share": f"{found['own_us'] / step_us:.2%}",
    }


def _row(
    key: tuple[str, str], samples: Mapping[tuple[str, str], list[Row]], batch: int, tokens_each: int
) -> Row:
    """One variant against `off` of the same worker."""
    steps = tokens_each - 1
    worker, variant = key
    own, base, again = samples[key], samples[worker, "off"], samples[worker, "off again"]

    def compared(field: str, other: list[Row] = own) -> Any:
        return ratio([one[field] for one in other], [one[field] for one in base])

    wall, thread, process = (compared(f"decode_{name}") for name in ("s", "thread_cpu_s", "process_cpu_s"))
    is_base = variant == "off"
    return {
        "variant": f"{variant} (beside {worker})"
        if worker and variant.startswith("off")
        else (worker or variant),
        "tokens_per_s": round(batch * steps / float(np.median([one["decode_s"] for one in own])), 1),
        "time": str(wall),
        "verdict": "base" if is_base else wall.verdict(compared("decode_s", again)),
        "p99_ms": round(float(np.percentile([ns for one in own for ns in one["step_ns"]], 99)) / 1e6, 2),
        "thread_cpu": str(thread),
        "thread_cpu_verdict": "base" if is_base else thread.verdict(compared("decode_thread_cpu_s", again)),
        "process_cpu": str(process),
        "thread_us_added": _interval(own, base, steps, "decode_thread_cpu_s"),
        "process_us_added": _interval(own, base, steps, "decode_process_cpu_s"),
        "rounds": len(own),
    }


AXES: dict[str, tuple[int, ...]] = {
    "layers": (4, 8, 16, 32),
    "heads": (4, 8, 16, 32),
    "context": (64, 256, 1024),
    "batch": (1, 4, 16, 64),
    "vocabulary": (8_000, 32_000, 128_256),
}
SWEPT = Shape(layers=8, width=512, heads=8, kv_heads=4, ffn=1024, vocabulary=8000)
SWEPT_VARIANTS = ("off", "off again", *OF_THE_AGENT)
SWEPT_ROUNDS, SWEPT_TOKENS, SWEPT_OWN_TOKENS = 5, 17, 33


def sweep(*, quick: bool, out: Path) -> dict[str, Any]:
    """Time and CPU per token step along each axis, all else as it was; drawn as one plot an axis."""
    axes = {name: values[:2] for name, values in AXES.items()} if quick else AXES
    rounds = 2 if quick else SWEPT_ROUNDS
    with collector_process("--history", "all") as endpoint:
        rows = [
            {"axis": axis, "value": value, **row}
            for axis, values in axes.items()
            for value in values
            for row in _point(endpoint, axis, value, rounds=rounds)
        ]
    files = [plots.draw(axis, [row for row in rows if row["axis"] == axis], out) for axis in axes]
    return {"about": SWEEP_ABOUT, "model": f"Llama, random weights, {SWEPT}", "rows": rows, "plots": files}


SWEEP_ABOUT = """\
What the agent adds to a token step along five axes, float32, one torch thread, from the first token to the
last. `own_us`: CPU time of the generating thread in the agent's own code, measured where it runs (the mean of
32 steps). The others are medians of paired differences to `off`, with 95 % bootstrap intervals, in
microseconds of wall time and of CPU time of the generating thread.
"""


def _point(endpoint: str, axis: str, value: int, *, rounds: int) -> list[Row]:
    shape, batch, length = SWEPT, 1, 64
    if axis == "batch":
        batch, length = value, max(8, 64 // value)
    elif axis == "context":
        length = value
    elif axis == "heads":
        shape = replace(shape, heads=value, kv_heads=value // 2)
    else:
        shape = replace(shape, **{axis: value})
    asked = {"rows": batch, "length": length}
    with TemporaryDirectory() as folder:
        build(shape, Path(folder))
        with Worker(Path(sys.executable), folder, "float32", endpoint, "-") as worker:
            owned = {v: worker.ask("own", v, **asked, tokens=SWEPT_OWN_TOKENS) for v in OF_THE_AGENT}
            taken = interleave(
                {v: partial(worker.ask, "measure", v, **asked, tokens=SWEPT_TOKENS) for v in SWEPT_VARIANTS},
                rounds=rounds,
            )
    return [
        {
            "variant": variant,
            "own_us": owned[variant]["own_us"] if variant in owned else 0.0,
            **_added(taken[variant], taken["off"], SWEPT_TOKENS - 1),
        }
        for variant in SWEPT_VARIANTS[1:]
    ]


def _added(own: list[Row], base: list[Row], tokens: int) -> Row:
    found: Row = {}
    for name, field in (("wall_us", "decode_s"), ("thread_cpu_us", "decode_thread_cpu_s")):
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
