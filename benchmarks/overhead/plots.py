"""One picture per axis: what the agent adds to a token step, with its interval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def draw(axis: str, rows: Sequence[Mapping[str, Any]], folder: Path) -> str:
    """Write `sweep-<axis>.svg` into `folder`; its name."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.2), layout="constrained")
    plot = figure.add_subplot()
    for variant in dict.fromkeys(row["variant"] for row in rows):
        points = [row for row in rows if row["variant"] == variant]
        _line(plot, variant, points)
    plot.set_xscale("log", base=2)
    values = sorted({row["value"] for row in rows})
    plot.set_xticks(values, [str(value) for value in values])
    plot.set_xlabel(axis)
    plot.set_ylabel("added per token step, µs of thread CPU")
    plot.axhline(0, color="0.6", linewidth=0.8)
    plot.legend(frameon=False, fontsize="small")
    name = f"sweep-{axis}.svg"
    figure.savefig(folder / name, metadata={"Date": None})
    return name


def _line(plot: Any, variant: str, points: Sequence[Mapping[str, Any]]) -> None:
    middle = [point["thread_cpu_us"] for point in points]
    below = [max(0.0, point["thread_cpu_us"] - point["thread_cpu_us_low"]) for point in points]
    above = [max(0.0, point["thread_cpu_us_high"] - point["thread_cpu_us"]) for point in points]
    style = "--" if variant == "off again" else "-"
    values = [point["value"] for point in points]
    plot.errorbar(values, middle, yerr=[below, above], label=variant, linestyle=style, marker="o", capsize=3)
