"""`make bench-pipeline`: every row, the peers beside them, the growth; one record."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
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
stores nothing; Rerun's proxy keeps what comes in memory. Neither aggregates, neither has anything on disk."""


def pipeline(*, quick: bool, out: Path) -> dict[str, Any]:
    """The record of a run."""
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
    groups: dict[str, list[Row]] = {}
    for name, measure in parts.items():
        try:
            groups[name] = _told(measure())
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


def _told(rows: list[Row]) -> list[Row]:
    for row in rows:
        print(row, flush=True)
    return rows
