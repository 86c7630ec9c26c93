"""The plot of a soak: memory, threads and files of agent and collector, with every fault marked."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.soak.vitals import Vitals

COLOURS = {"agent": "#b35806", "collector": "#542788"}
ROWS = (("resident_mib", "resident memory, MiB"), ("threads", "threads"), ("files", "file descriptors"))


def draw(looks: Sequence[Vitals], faults: Sequence[dict[str, Any]], path: Path, *, title: str) -> None:
    """Write it to `path`."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(3, 1, figsize=(10, 8), sharex=True, layout="constrained")
    for axis, (field, label) in zip(axes, ROWS, strict=True):
        for fault in faults:
            axis.axvspan(fault["at_s"] / 60, (fault["at_s"] + fault["for_s"]) / 60, color="0.88", linewidth=0)
        for who, colour in COLOURS.items():
            lives = sorted({one.life for one in looks if one.who == who})
            for life in lives:
                mine = [one for one in looks if one.who == who and one.life == life]
                axis.plot(
                    [one.at_s / 60 for one in mine],
                    [getattr(one, field) for one in mine],
                    color=colour,
                    label=who if life == lives[0] else None,
                )
        axis.set_ylabel(label)
        axis.set_ylim(bottom=0)
    axes[0].legend(loc="lower right")
    axes[0].set_title(title, fontsize=10)
    axes[-1].set_xlabel("minutes (grey: a fault is on)")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
