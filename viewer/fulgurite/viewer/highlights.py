"""Tokens worth a look in the kept past: slow ones, surprising ones, uncertain ones. Pure.

A token is *slow* where its step took at least twice the median of its replica's kept steps, *surprising*
where the model gave it a probability under `SURPRISING`, *uncertain* where the entropy of its distribution
is in the upper twentieth of its replica's kept tokens.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fulgurite.viewer.track import Kept
    from fulgurite.wire.frame import FrameBlock

Why = Literal["slow", "surprising", "uncertain"]
SLOW_RATIO = 2.0
SURPRISING = 0.05
UNCERTAIN_SHARE = 0.95


@dataclass(frozen=True, slots=True)
class Spot:
    """One token of the kept past; `row` of `block`."""

    at_s: float
    block: FrameBlock
    row: int

    @property
    def request_id(self) -> str:
        """Whose token it is."""
        return self.block.requests[int(self.block.columns["request_index"][self.row])].request_id

    @property
    def sequence(self) -> int:
        """Of which sequence."""
        return int(self.block.columns["sequence"][self.row])


def spots(kept: Iterable[Kept], why: Why) -> list[Spot]:
    """The tokens of one replica that stand out, in the order of time; empty where the channel is missing."""
    blocks = [(k, _measure(k.block, why)) for k in kept]
    known = [values[np.isfinite(values)] for _, values in blocks if values is not None]
    if not known or not sum(map(len, known)):
        return []
    bound = _bound(np.concatenate(known), why)
    return [
        Spot(float(k.at_s[row]), k.block, row)
        for k, values in blocks
        if values is not None
        for row in np.flatnonzero(values >= bound).tolist()
    ]


def least_probable(kept: Iterable[Kept]) -> Spot | None:
    """The token with the least probability of those kept; None: it was not measured."""
    least: Spot | None = None
    lowest = math.inf
    for k in kept:
        if "logprob" in k.block.columns and len(k.block):
            values = np.where(np.isfinite(k.block.columns["logprob"]), k.block.columns["logprob"], np.inf)
            row = int(values.argmin())
            if float(values[row]) < lowest:
                lowest, least = float(values[row]), Spot(float(k.at_s[row]), k.block, row)
    return least


def _measure(block: FrameBlock, why: Why) -> NDArray[np.float64] | None:
    """What a token stands out by, larger for more; None: not captured."""
    columns = block.columns
    if why == "slow":
        if "started_ns" not in columns or "ended_ns" not in columns:
            return None
        took = (columns["ended_ns"] - columns["started_ns"]) / 1e9
        decode = columns["phase"] > 0 if "phase" in columns else True
        return np.where((took > 0) & decode, took, np.nan)  # a prefill is slow by its nature
    name = "logprob" if why == "surprising" else "entropy"
    if name not in columns:
        return None
    values = np.asarray(columns[name], np.float64)
    return -values if why == "surprising" else values


def _bound(values: NDArray[np.float64], why: Why) -> float:
    if why == "slow":
        return SLOW_RATIO * float(np.median(values))
    return -math.log(SURPRISING) if why == "surprising" else float(np.quantile(values, UNCERTAIN_SHARE))
