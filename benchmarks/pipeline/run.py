"""`make bench-pipeline`: every row, the peers beside them, the growth; one record."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import grpc

from benchmarks.load.shape import SHAPES
from benchmarks.pipeline import beside, growth
from benchmarks.pipeline.rows import LENGTHS, ROWS

Row = dict[str, Any]
ABOUT = """\
What the way from an agent to a viewer costs and keeps, each row against its target.

Real processes on one machine: a load generator or the agent's own exporter, a collector, its store, viewers.
They compete for the same cores, so capacity is told as **tokens for a second of a core** (acknowledged tokens
over CPU time of the collector's processes), beside what was reached by the clock. `collector_us` and
`store_us` are CPU time of a token. Memory is the most that the collector's processes had together. *Full
batches* have 256 tokens, which is what agents send when they are many or a collector was slow; *a fleet of 8*
sends what comes in 4 ms, as agents do when nothing holds them up: there the cost is that of messages, not of
tokens.

The peers log the same arrays at the same tokens a second. OpenTelemetry's receiver parses and counts, and
stores nothing; Rerun's proxy keeps what comes in memory. Neither aggregates, neither has anything on disk.
`load_1min` is the machine's load before a part: where it is above the number of cores, times by the clock
(ms, per second) say more about the machine than about us, and CPU times are the ones to read."""


def pipeline(*, quick: bool, out: Path, only: Sequence[str] = ()) -> dict[str, Any]:
    """The record of a run; of the parts named in `only`, beside what an earlier run found of the others.

    Raises
    ------
    ValueError
        Where there is no such part.
    """
    length = LENGTHS["quick" if quick else "full"]
    parts: dict[str, Callable[[], list[Row]]] = {
        name.replace("_", " "): partial(measure, length) for name, measure in ROWS.items()
    }
    skipped = {}
    missing = beside.environment()
    if missing is None:
        for name in ("W1", "W8B"):
            parts[f"beside peers, {name}"] = partial(beside.beside, SHAPES[name], length.load_s)
    else:
        skipped["the peers"] = missing
    for axis in growth.AXES:
        parts[axis] = partial(growth.measure, axis, quick=quick, seconds=length.load_s / 1.5)
    unknown = [name for name in only if name not in parts]
    if unknown:
        raise ValueError(f"no part named {unknown[0]!r}: choose from {', '.join(parts)}")
    earlier = _kept(out) if only else {}
    groups: dict[str, list[Row]] = {}
    for name, measure in parts.items():
        if only and name not in only:
            groups |= {name: earlier[name]} if name in earlier else {}
            continue
        try:
            groups[name] = _measured(measure)
        except (OSError, RuntimeError, subprocess.SubprocessError, grpc.FutureTimeoutError) as error:
            skipped[name] = f"{type(error).__name__}: {error}"
            print(f"{name} failed: {skipped[name]}", flush=True)
    plots = [growth.draw(axis, groups[axis], out) for axis in growth.AXES if axis in groups]
    return {
        "about": ABOUT,
        "model": "synthetic",
        "rows": [row for rows in groups.values() for row in rows],
        "groups": groups,
        "plots": plots,
        "peers": None if missing else beside.versions(),
        "skipped": skipped,
    }


def _measured(measure: Callable[[], list[Row]]) -> list[Row]:
    """The rows, each with the load of the machine before it was measured."""
    load = round(os.getloadavg()[0], 1)
    rows = [{**row, "load_1min": load} for row in measure()]
    for row in rows:
        print(row, flush=True)
    return rows


def _kept(out: Path) -> dict[str, list[Row]]:
    """What an earlier run found of each part."""
    path = out / "pipeline.json"
    groups: dict[str, list[Row]] = json.loads(path.read_text())["groups"] if path.exists() else {}
    return groups
