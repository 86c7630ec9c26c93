"""Interleaved measurement: all variants in every round, in a new order each, compared as paired ratios.

A shared machine drifts; a round is short, so that drift hits all variants alike. One variant should be the base a second
time (the A/A control): what its ratio departs from 1 by is the resolution of the run, and a difference inside it is called
unresolved.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

Measure = Callable[[], float]


@dataclass(frozen=True, slots=True)
class Ratio:
    """The median of the paired ratios to the base, with a bootstrap interval."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.3f} [{self.low:.3f}, {self.high:.3f}]"


def interleave(variants: Mapping[str, Measure], *, rounds: int, seed: int = 0) -> dict[str, list[float]]:
    """Measure every variant once a round, in a seeded random order."""
    order = np.random.default_rng(seed)
    names = list(variants)
    values: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(rounds):
        for index in order.permutation(len(names)):
            values[names[index]].append(variants[names[index]]())
    return values


def ratios(values: Mapping[str, list[float]], *, base: str, seed: int = 0) -> dict[str, Ratio]:
    """Paired ratios to `base`: median and 95 % bootstrap interval of the median."""
    return {name: _ratio(values[name], values[base], seed) for name in values}


def _ratio(values: list[float], base: list[float], seed: int) -> Ratio:
    paired = np.asarray(values) / np.asarray(base)
    draws = np.random.default_rng(seed).choice(paired, size=(2000, len(paired)))
    low, high = np.percentile(np.median(draws, axis=1), [2.5, 97.5])
    return Ratio(float(np.median(paired)), float(low), float(high))
