"""The display scale of a stream, measured on the stream itself.

One scale per node kind, the same for all heads and all FFN blocks: the value below which 5 % and the value
below which 99 % of what was captured lie. It is folded from whole blocks in the order of capture, so the same
stream gives the same scale, however it was cut into messages.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from fulgurite.wire.frame import FrameBlock, Scale

CHANNEL_OF_KIND: Final = {"head": "head_write", "ffn": "ffn_write"}
LOW_QUANTILE: Final = 0.05
HIGH_QUANTILE: Final = 0.99

_DECADES: Final = (-8, 5)
_BINS_PER_DECADE: Final = 64  # 3.7 % wide
_BINS: Final = (_DECADES[1] - _DECADES[0]) * _BINS_PER_DECADE
_FIRST_TOKENS: Final = 8  # the first scale comes early: until then nothing can be drawn to scale
_EVERY_TOKENS: Final = 4096
_ALL_UNTIL_TOKENS: Final = 1024  # after so many, one block in 16 is enough
_SKIP: Final = 16
_CHANGE: Final = 1.05  # a bound that moved by less is the same scale


class ScaleGauge:
    """Folds blocks into quantiles of the write norms, and says when a new scale is due."""

    def __init__(self) -> None:
        self._counts = {kind: np.zeros(_BINS, np.int64) for kind in CHANNEL_OF_KIND}
        self._tokens = 0
        self._blocks = 0
        self._next_at = _FIRST_TOKENS
        self.scale = Scale(version=0, kinds={})

    def update(self, block: FrameBlock) -> Scale | None:
        """Fold a block; the new scale where one became due, else None."""
        if not any(name in block.columns for name in CHANNEL_OF_KIND.values()):
            return None
        self._blocks += 1
        if self._tokens >= _ALL_UNTIL_TOKENS and self._blocks % _SKIP:
            return None
        for kind, name in CHANNEL_OF_KIND.items():
            if name in block.columns:
                self._counts[kind] += _histogram(block.columns[name])
        self._tokens += len(block)
        if self._tokens < self._next_at:
            return None
        self._next_at = self._tokens + min(self._tokens, _EVERY_TOKENS)
        return self._renewed()

    def _renewed(self) -> Scale | None:
        kinds = {kind: _bounds(counts) for kind, counts in self._counts.items() if counts.any()}
        if not kinds or not _moved(self.scale.kinds, kinds):
            return None
        self.scale = Scale(version=self.scale.version + 1, kinds=kinds, tokens=self._tokens)
        return self.scale


def _histogram(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Counts per logarithmic bin of the positive, finite values."""
    positive = values[(values > 0) & (values < np.inf)]
    bins = ((np.log10(positive) - _DECADES[0]) * _BINS_PER_DECADE).astype(np.int64)
    return np.bincount(np.clip(bins, 0, _BINS - 1), minlength=_BINS)


def _bounds(counts: np.ndarray[Any, Any]) -> tuple[float, float]:
    cumulated = np.cumsum(counts)
    low, high = np.searchsorted(cumulated, cumulated[-1] * np.array([LOW_QUANTILE, HIGH_QUANTILE]))
    return _edge(int(low)), _edge(int(high) + 1)


def _edge(index: int) -> float:
    return float(10.0 ** (_DECADES[0] + index / _BINS_PER_DECADE))


def _moved(old: Any, new: dict[str, tuple[float, float]]) -> bool:
    if old.keys() != new.keys():
        return True
    pairs = [(a, b) for kind in new for a, b in zip(old[kind], new[kind], strict=True)]
    return any(max(a, b) > min(a, b) * _CHANGE for a, b in pairs)
