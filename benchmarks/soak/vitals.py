"""What a process holds: memory, threads, file descriptors; over time, and whether it grows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import psutil

STRETCH_S: Final = 60.0
DRAWN: Final = 2000


@dataclass(frozen=True, slots=True)
class Vitals:
    """One look at one process.

    Attributes
    ----------
    at_s : float
        Since the beginning.
    who : str
        ``agent`` or ``collector``.
    life : int
        How often it was started before; a new life begins with nothing.
    """

    at_s: float
    who: str
    life: int
    resident_mib: float
    threads: int
    files: int


def look(pid: int, *, at_s: float, who: str, life: int) -> Vitals | None:
    """What it holds now; None where it is not there."""
    try:
        process = psutil.Process(pid)
        with process.oneshot():
            resident_mib = process.memory_info().rss / 2**20
            if not resident_mib:  # it was killed, and nobody has looked after it yet
                return None
            return Vitals(at_s, who, life, resident_mib, process.num_threads(), process.num_fds())
    except psutil.Error:
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Trend:
    """How what a process holds changed over one life, once it was warm.

    Attributes
    ----------
    mib_per_h : float
        Slope of the line through the memory of all looks.
    mib_per_h_interval : (float, float)
        95 % of the slopes that stretches of `STRETCH_S`, drawn again and again, give: an outage fills
        buffers and lets go of them, which one line takes for growth or for the contrary.
    """

    who: str
    life: int
    seconds: float
    first_mib: float
    last_mib: float
    most_mib: float
    mib_per_h: float
    mib_per_h_interval: tuple[float, float]
    threads: tuple[int, int]
    files: tuple[int, int]


def trend(looks: Sequence[Vitals], *, warm_s: float) -> Trend | None:
    """The trend of one life; None where there is too little to say.

    Parameters
    ----------
    warm_s : float
        So long after its start it is not counted: caches and pools fill.
    """
    if not looks:
        return None
    warm = [one for one in looks if one.at_s >= looks[0].at_s + warm_s]
    if len(warm) < 10:
        return None
    at_h = np.array([one.at_s for one in warm]) / 3600
    memory = np.array([one.resident_mib for one in warm])
    slope = float(np.polyfit(at_h, memory, 1)[0])
    low, high = np.percentile(_slopes(at_h, memory), (2.5, 97.5))
    return Trend(
        who=warm[0].who,
        life=warm[0].life,
        seconds=warm[-1].at_s - warm[0].at_s,
        first_mib=float(memory[0]),
        last_mib=float(memory[-1]),
        most_mib=float(memory.max()),
        mib_per_h=slope,
        mib_per_h_interval=(round(float(low), 2), round(float(high), 2)),
        threads=(min(one.threads for one in warm), max(one.threads for one in warm)),
        files=(min(one.files for one in warm), max(one.files for one in warm)),
    )


def _slopes(at_h: np.ndarray[Any, Any], memory: np.ndarray[Any, Any]) -> list[float]:
    """Of lines through as many stretches as there are, drawn with repetition (block bootstrap)."""
    stretch = ((at_h - at_h[0]) * 3600 // STRETCH_S).astype(int)
    parts = [np.flatnonzero(stretch == number) for number in np.unique(stretch)]
    rng = np.random.default_rng(0)
    found = []
    for _ in range(DRAWN):
        drawn = rng.integers(0, len(parts), len(parts))
        if len(set(drawn.tolist())) < min(2, len(parts)):
            continue  # no line goes through one stretch alone
        rows = np.concatenate([parts[number] for number in drawn])
        found.append(float(np.polyfit(at_h[rows], memory[rows], 1)[0]))
    return found
