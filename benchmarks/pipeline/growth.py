"""What a token costs as replicas, viewers and the topology grow, with a picture of each."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from benchmarks.load.shape import SHAPES
from benchmarks.pipeline import programs
from benchmarks.pipeline.meter import Meter, micros
from benchmarks.pipeline.programs import result, run_load, start_load, start_module

AXES: Final[Mapping[str, Sequence[Any]]] = {
    "replicas": (1, 4, 8, 16, 32),
    "viewers": (0, 1, 10, 25, 50),
    "topology": tuple(SHAPES),
}
QUICK: Final[Mapping[str, Sequence[Any]]] = {
    "replicas": (1, 4), "viewers": (0, 5), "topology": ("W1", "llama-3-405b"),
}  # fmt: skip
TOKENS_PER_S: Final = 200.0
WATCHED_TOKENS_PER_S: Final = 40.0
BATCH: Final = 8
Row = dict[str, Any]


def measure(axis: str, *, quick: bool, seconds: float) -> list[Row]:
    """The rows of an axis."""
    return [_MEASURES[axis](value, seconds) for value in (QUICK if quick else AXES)[axis]]


def _replicas(count: int, seconds: float) -> Row:
    options: Row = {"shape": "W1", "replicas": count, "tokens_per_s": TOKENS_PER_S, "batch_tokens": BATCH}
    with programs.collector() as (address, pid):
        run_load(address, seconds=1.0, **options)
        with Meter(pid) as meter:
            found = run_load(address, seconds=seconds, **options)
    return _row("replicas", count, found["acknowledged"], meter)


def _viewers(count: int, seconds: float) -> Row:
    options: Row = {"shape": "W1", "replicas": 8, "tokens_per_s": WATCHED_TOKENS_PER_S, "batch_tokens": BATCH}
    with programs.collector() as (address, pid):
        load = start_load(address, seconds=seconds + 120, **options)  # it is ended when all have seen
        time.sleep(3)
        with Meter(pid) as meter:
            began_s = time.monotonic()
            if count:
                arguments = ("--viewers", count, "--seconds", seconds)
                result(start_module("benchmarks.pipeline.audience", address, *arguments), timeout_s=180)
            else:
                time.sleep(seconds)
            took_s = time.monotonic() - began_s
        programs.end(load)
    return _row("viewers", count, int(took_s * 8 * WATCHED_TOKENS_PER_S), meter)


def _topology(name: str, seconds: float) -> Row:
    options: Row = {"shape": name, "replicas": 8, "tokens_per_s": 100.0, "batch_tokens": BATCH}
    with programs.collector() as (address, pid):
        run_load(address, seconds=1.0, **options)
        with Meter(pid) as meter:
            found = run_load(address, seconds=seconds, **options)
    return _row("samples a token", SHAPES[name].samples, found["acknowledged"], meter)


_MEASURES: Final[Mapping[str, Callable[[Any, float], Row]]] = {
    "replicas": _replicas,
    "viewers": _viewers,
    "topology": _topology,
}


def _row(axis: str, value: int, tokens: int, meter: Meter) -> Row:
    return {
        "what": f"growth, {axis}",
        "value": value,
        "collector_us": micros(meter.cost.cpu_s, tokens),
        "store_us": micros(meter.cost.store_cpu_s, tokens),
        "rss_mib": meter.cost.rss_mib,
    }


def draw(axis: str, rows: Sequence[Row], folder: Path) -> str:
    """Write `pipeline-<axis>.svg` into `folder`; its name."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.2), layout="constrained")
    plot = figure.add_subplot()
    values = [row["value"] for row in rows]
    for name, label in (("collector_us", "collector"), ("store_us", "store")):
        plot.plot(values, [row[name] for row in rows], marker="o", label=label)
    plot.set_xscale("symlog" if min(values) == 0 else "log", base=2)
    plot.set_xticks(values, [f"{value:,}" for value in values])
    plot.minorticks_off()
    plot.set_xlabel(rows[0]["what"].removeprefix("growth, "))
    plot.set_ylabel("CPU time of a token, µs")
    plot.set_ylim(bottom=0)
    plot.grid(axis="y", linewidth=0.4)
    plot.legend(frameon=False)
    name = f"pipeline-{axis}.svg"
    figure.savefig(folder / name, metadata={"Date": None})
    return name
