"""What a replica did in its last seconds, folded from its batches. Pure: knows no clock and no store.

Windows are one second of ingest time; figures are over the last `WINDOWS` whole ones and the open one.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fulgurite.v1 import viewer_pb2
from fulgurite.wire.frame import FrameBatch, FrameBlock

WINDOWS = 5
SILENT_S = 5.0
_SECOND_NS = 1_000_000_000

Array = np.ndarray[Any, Any]


@dataclass(slots=True)
class Window:
    """One second."""

    start_ns: int
    tokens: int = 0
    gaps_s: list[float] = field(default_factory=list)  # between tokens of one sequence
    firsts_s: list[float] = field(default_factory=list)  # from a request's start to its first token
    head_sum: Array = field(default_factory=lambda: np.zeros(0))  # (layers,), of the mean over heads
    ffn_sum: Array = field(default_factory=lambda: np.zeros(0))
    measured: int = 0


@dataclass(slots=True)
class _Sequence:
    """A sequence under way."""

    ended_ns: int
    seen_ns: int
    kv_tokens: int
    kv_bytes: int


class Aggregate:
    """The figures of one replica.

    Parameters
    ----------
    tokens_total : int
        Tokens that were counted before, by another collector or an earlier one.
    """

    def __init__(self, tokens_total: int = 0) -> None:
        self._windows: deque[Window] = deque(maxlen=WINDOWS + 1)
        self._sequences: dict[tuple[str, int], _Sequence] = {}
        self._started_ns: dict[str, int] = {}
        self.tokens_total = tokens_total

    def fold(self, batch: FrameBatch, now_ns: int) -> None:
        """Take a batch that was ingested at `now_ns`."""
        for event in batch.events:
            if event.kind == "started":
                self._started_ns[event.request_id] = event.time_ns
        window = self._open(now_ns)
        for block in batch.blocks:
            self._fold_block(window, block, now_ns)
        for event in batch.events:
            if event.kind in ("finished", "aborted"):
                self._end(event.request_id)
        self._forget(now_ns)

    def _open(self, now_ns: int) -> Window:
        start_ns = now_ns - now_ns % _SECOND_NS
        if not self._windows or self._windows[-1].start_ns < start_ns:
            self._windows.append(Window(start_ns))
        return self._windows[-1]

    def _fold_block(self, window: Window, block: FrameBlock, now_ns: int) -> None:
        window.tokens += len(block)
        self.tokens_total += len(block)
        self._fold_activity(window, block)
        columns = block.columns
        tokens = columns["kv_tokens"].max(axis=-1) if "kv_tokens" in columns else np.zeros(len(block), int)
        held = columns.get("kv_bytes", np.zeros(len(block), np.int64))
        rows = zip(
            columns["request_index"].tolist(),
            columns["sequence"].tolist(),
            columns["ended_ns"].tolist(),
            columns["started_ns"].tolist(),
            columns["phase"].tolist(),
            tokens.tolist(),
            held.tolist(),
            strict=True,
        )
        for request, sequence, ended_ns, started_ns, phase, kv_tokens, kv_bytes in rows:
            key = (block.requests[request].request_id, sequence)
            before = self._sequences.get(key)
            if phase == 0:
                window.firsts_s.append((ended_ns - self._started_ns.get(key[0], started_ns)) / 1e9)
            elif before is not None and ended_ns >= before.ended_ns:
                window.gaps_s.append((ended_ns - before.ended_ns) / 1e9)
            self._sequences[key] = _Sequence(ended_ns, now_ns, kv_tokens, kv_bytes)

    def _fold_activity(self, window: Window, block: FrameBlock) -> None:
        if "head_write" not in block.columns or "ffn_write" not in block.columns:
            return
        with np.errstate(all="ignore"):  # what a model overflows to is shown as it is
            heads = _mean(block.columns["head_write"], axis=-1).sum(axis=0, dtype=np.float64)
            ffn = block.columns["ffn_write"].sum(axis=0, dtype=np.float64)
        same = window.head_sum.shape == heads.shape
        window.head_sum = window.head_sum + heads if same else heads
        window.ffn_sum = window.ffn_sum + ffn if same else ffn
        window.measured = window.measured + len(block) if same else len(block)

    def _end(self, request_id: str) -> None:
        self._started_ns.pop(request_id, None)
        for key in [key for key in self._sequences if key[0] == request_id]:
            del self._sequences[key]

    def _forget(self, now_ns: int) -> None:
        silent = [key for key, s in self._sequences.items() if now_ns - s.seen_ns > SILENT_S * _SECOND_NS]
        for key in silent:
            del self._sequences[key]
        if len(self._started_ns) > 4096:  # a request that never ended
            self._started_ns = dict(list(self._started_ns.items())[-2048:])

    def status(self, now_ns: int) -> viewer_pb2.ReplicaStatus:
        """The figures as of `now_ns`; who and what it is, is for the caller to fill in."""
        oldest_ns = now_ns - WINDOWS * _SECOND_NS
        windows = [w for w in self._windows if w.start_ns + _SECOND_NS > oldest_ns]
        self._forget(now_ns)
        tokens = sum(w.tokens for w in windows)
        span_s = (now_ns - windows[0].start_ns) / 1e9 if windows else 0.0
        status = viewer_pb2.ReplicaStatus(
            tokens_per_s=tokens / max(span_s, 1.0),
            inter_token=_quantiles([gap for w in windows for gap in w.gaps_s]),
            first_token=_quantiles([first for w in windows for first in w.firsts_s]),
            kv_tokens=_total([s.kv_tokens for s in self._sequences.values()]),
            kv_bytes=_total([s.kv_bytes for s in self._sequences.values()]),
            running_sequences=len(self._sequences),
            tokens_total=self.tokens_total,
            window_s=span_s,
        )
        measured = [w for w in windows if w.measured]
        measured = [w for w in measured if w.head_sum.shape == measured[-1].head_sum.shape]
        if measured:
            count = sum(w.measured for w in measured)
            status.head_activity.extend((np.sum([w.head_sum for w in measured], axis=0) / count).tolist())
            status.ffn_activity.extend((np.sum([w.ffn_sum for w in measured], axis=0) / count).tolist())
        return status


def _total(counts: list[int]) -> int:
    """Their sum, without those that are not known (-1), and not beyond what the message can carry."""
    return min(sum(max(0, count) for count in counts), (1 << 64) - 1)


def _mean(values: Array, axis: int) -> Array:
    """Mean over what is not NaN; NaN where nothing is."""
    known = ~np.isnan(values)
    count = known.sum(axis=axis)
    total = np.where(known, values, 0.0).sum(axis=axis)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _quantiles(values: list[float]) -> viewer_pb2.Quantiles:
    if not values:
        return viewer_pb2.Quantiles()
    p50, p99 = np.percentile(values, [50, 99])
    return viewer_pb2.Quantiles(p50_s=float(p50), p99_s=float(p99), count=len(values))
