"""One picture per axis: what the agent adds to a token step, with its interval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def draw(axis: str, rows: Sequence[Mapping[str, Any]], folder: Path) -> str:
    """Write `sweep-<axis>.svg` into `folder`; its name."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.2), layout="constrained")
    own, whole = figure.subplots(1, 2)
    variants = list(dict.fromkeys(row["variant"] for row in rows))
    for colour, variant in enumerate(variants):
        points = [row for row in rows if row["variant"] == variant]
        _line(whole, variant, points, colour=f"C{colour}")
        if any(point["own_us"] for point in points):
            shown = [point["own_us"] for point in points]
            own.plot([point["value"] for point in points], shown, marker="o", color=f"C{colour}")
    own.set_yscale("log")
    whole.axhline(0, color="0.6", linewidth=0.8)
    whole.legend(frameon=False, fontsize="small")
    for plot, label in ((own, "in the agent's own code"), (whole, "added in whole steps, with intervals")):
        _label(plot, axis, sorted({row["value"] for row in rows}), label)
    name = f"sweep-{axis}.svg"
    figure.savefig(folder / name, metadata={"Date": None})
    return name


def _label(plot: Any, axis: str, values: Sequence[int], what: str) -> None:
    plot.set_xscale("log", base=2)
    plot.set_xticks(values, [str(value) for value in values])
    plot.set_xlabel(axis)
    plot.set_ylabel("µs of thread CPU per token step")
    plot.set_title(what, fontsize="medium")


def _line(plot: Any, variant: str, points: Sequence[Mapping[str, Any]], *, colour: str) -> None:
    middle = [point["thread_cpu_us"] for point in points]
    below = [max(0.0, point["thread_cpu_us"] - point["thread_cpu_us_low"]) for point in points]
    above = [max(0.0, point["thread_cpu_us_high"] - point["thread_cpu_us"]) for point in points]
    style = "--" if variant == "off again" else "-"
    values = [point["value"] for point in points]
    plot.errorbar(
        values, middle, [below, above], label=variant, linestyle=style, marker="o", capsize=3, color=colour
    )
