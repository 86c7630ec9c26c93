"""Which requests carry per-token arrays: a share of all, and those that somebody will ask about.

The decision falls at the end of a request, when it is known how it went. Pure.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

import numpy as np

from fulgurite.telemetry.requests import RequestRecord

REMEMBERED: Final = 512
LEAST_FOR_SLOW: Final = 64
_SPAN: Final = 1 << 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """What is asked for.

    Attributes
    ----------
    ratio : float
        Share of requests that carry arrays, by a hash of the trace id, so that all of a trace do or none.
    token_ratio : float
        Share of requests whose tokens get spans of their own; for debugging.
    slow_quantile : float
        A request that took longer per token than this quantile of its replica's last ones is slow.
    slow_s : float or None
        Or longer than this in all.
    asked : collection of str
        Trace ids or request ids that are wanted in any case.
    """

    ratio: float = 1 / 16
    token_ratio: float = 0.0
    slow_quantile: float = 0.99
    slow_s: float | None = None
    asked: Collection[str] = ()

    def __post_init__(self) -> None:
        for name in ("ratio", "token_ratio", "slow_quantile"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be between 0 and 1, not {getattr(self, name):g}")


class TailSampler:
    """Decides for the requests of one replica."""

    def __init__(self, sampling: Sampling) -> None:
        self._sampling = sampling
        self._paces: deque[float] = deque(maxlen=REMEMBERED)
        self._decided = 0
        self._limit = float("inf")

    def because(self, record: RequestRecord, *, is_diverging: bool = False) -> str:
        """Why `record` carries arrays: asked, failed, diverging, slow or ratio; empty where it does not."""
        wanted = self._sampling
        is_slow = self._is_slow(record)
        if record.request_id in wanted.asked or (record.trace_id and record.trace_id in wanted.asked):
            return "asked"
        if record.outcome != "finished":
            return "failed"
        if is_diverging:
            return "diverging"
        if is_slow:
            return "slow"
        return "ratio" if _share(record) < wanted.ratio else ""

    def with_tokens(self, record: RequestRecord) -> bool:
        """Whether its tokens get spans of their own."""
        return _share(record) < self._sampling.token_ratio

    def _is_slow(self, record: RequestRecord) -> bool:
        pace_s = record.duration_s / max(1, record.output_tokens)
        self._decided += 1
        if len(self._paces) >= LEAST_FOR_SLOW and (self._decided % 16 == 0 or self._limit == float("inf")):
            self._limit = float(np.quantile(self._paces, self._sampling.slow_quantile))
        self._paces.append(pace_s)
        too_long = self._sampling.slow_s is not None and record.duration_s > self._sampling.slow_s
        return too_long or pace_s > self._limit


def _share(record: RequestRecord) -> float:
    return int(record.own_trace_id[-16:], 16) / _SPAN


class Divergence:
    """Which replicas of one model behave unlike the others: by the mean activity of their layers.

    The distance of a replica is the relative L2 difference of its per-layer means to the median over all
    replicas of the model. With two of them, it cannot be said which one is off: both are.
    """

    LIMIT: Final = 0.15
    LEAST_TOKENS: Final = 256

    def __init__(self) -> None:
        self._profiles: dict[bytes, dict[str, tuple[int, np.ndarray[tuple[int], np.dtype[np.float64]]]]] = {}

    def tell(
        self, model: bytes, replica: str, tokens: int, profile: np.ndarray[tuple[int], np.dtype[np.float64]]
    ) -> None:
        """What a replica did in its last window; replaces what was told of it."""
        self._profiles.setdefault(model, {})[replica] = (tokens, profile)

    def forget(self, replica: str) -> None:
        """It is gone."""
        for profiles in self._profiles.values():
            profiles.pop(replica, None)

    def distance(self, model: bytes, replica: str) -> float | None:
        """Its distance; None where there is nobody to compare it with, or too few tokens."""
        known = {
            name: profile
            for name, (tokens, profile) in self._profiles.get(model, {}).items()
            if tokens >= self.LEAST_TOKENS
        }
        if replica not in known or len(known) < 2 or len({p.shape for p in known.values()}) != 1:
            return None
        middle = np.median(np.stack(list(known.values())), axis=0)
        size = float(np.linalg.norm(middle))
        return float(np.linalg.norm(known[replica] - middle)) / size if size > 0 else None

    def is_diverging(self, model: bytes, replica: str) -> bool:
        """Whether its distance is beyond the limit."""
        distance = self.distance(model, replica)
        return distance is not None and distance > self.LIMIT
