"""Interleaved measurement: all variants in every round, in a new order each, compared as paired ratios.

A shared machine drifts; a round is short, so that drift hits all variants alike. One variant should be the
base a second time (the A/A control): what its ratio departs from 1 by is the resolution of the run, and a
difference inside it is called unresolved.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

Taken = TypeVar("Taken")
DRAWS = 2000
FEWEST = 6
"""Pairs. That fewer all lie on one side comes by chance more than once in 20 times, and an interval drawn
from them says too little."""


@dataclass(frozen=True, slots=True)
class Ratio:
    """The median of the paired ratios to the base, with its 95 % bootstrap interval, and their number."""

    median: float
    low: float
    high: float
    pairs: int

    @property
    def reach(self) -> float:
        """How far from 1 the interval goes: of the A/A control, the resolution of a run."""
        return max(abs(self.low - 1.0), abs(self.high - 1.0))

    def verdict(self, control: Ratio) -> str:
        """``slower``, ``faster``, or ``unresolved`` where noise may hide the effect, or pairs are too few."""
        if min(self.pairs, control.pairs) < FEWEST:
            return "unresolved"
        if self.low <= 1.0 <= self.high or abs(self.median - 1.0) <= control.reach:
            return "unresolved"
        return "slower" if self.median > 1.0 else "faster"

    def __str__(self) -> str:
        return f"{self.median:.3f} [{self.low:.3f}, {self.high:.3f}]"


def interleave(
    variants: Mapping[str, Callable[[], Taken]], *, rounds: int, seed: int = 0
) -> dict[str, list[Taken]]:
    """Measure every variant once a round, in a seeded random order."""
    order = np.random.default_rng(seed)
    names = list(variants)
    taken: dict[str, list[Taken]] = {name: [] for name in names}
    for _ in range(rounds):
        for index in order.permutation(len(names)):
            taken[names[index]].append(variants[names[index]]())
    return taken


def ratio(values: Sequence[float], base: Sequence[float], *, seed: int = 0) -> Ratio:
    """The paired ratio of `values` to `base`: one of each a round."""
    paired = np.asarray(values) / np.asarray(base)
    draws = np.random.default_rng(seed).choice(paired, size=(DRAWS, len(paired)))
    low, high = np.percentile(np.median(draws, axis=1), [2.5, 97.5])
    return Ratio(float(np.median(paired)), float(low), float(high), len(paired))
