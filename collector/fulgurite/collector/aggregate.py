"""What a replica did in its last seconds, folded from frames and sketches. Pure: knows no clock, no store.

Windows are one second of ingest time; figures are over the last `WINDOWS` whole ones and the open one. Blocks
are gathered for a moment and folded together: a fold costs by the call more than by the token.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numpy as np

from fulgurite.collector.gauges import SILENT_S, Gauges
from fulgurite.collector.throughput import Throughput
from fulgurite.collector.windows import SECOND_NS, Window, Windows, quantiles_of
from fulgurite.v1 import viewer_pb2
from fulgurite.wire.frame import FrameBatch, FrameBlock, RequestRef
from fulgurite.wire.sketch import (
    ACTIVITY,
    FIRST_TOKEN,
    FIRST_TOKEN_BOUNDS_S,
    FIRST_TOKEN_COUNTS,
    INTER_TOKEN,
    INTER_TOKEN_BOUNDS_S,
    INTER_TOKEN_COUNTS,
    Moments,
    Pace,
    foldable,
    joined,
)

WINDOWS: Final = 5
GATHER_TOKENS: Final = 512
GATHER_BYTES: Final = 512 << 10
"""So that no fold takes long where a token has many samples."""
GATHER_S: Final = 0.5

Array = np.ndarray[Any, Any]


class Aggregate:
    """The figures of one replica.

    Parameters
    ----------
    tokens_total, frames_total : int
        Tokens that were counted before, by another collector or an earlier one.
    experts : int
        Of the model.
    is_kept_whole : callable, optional
        Whether the history rule keeps the frames of a request whole; without: of none.
    """

    def __init__(
        self,
        tokens_total: int = 0,
        *,
        frames_total: int = 0,
        experts: int = 0,
        is_kept_whole: Callable[[RequestRef], bool] = lambda _: False,
    ) -> None:
        self.windows = Windows(experts, seconds=WINDOWS + 1)
        self.tokens_total, self.frames_total = tokens_total, frames_total
        self.newest_ended_ns = 0
        self._pace = Pace(silent_s=SILENT_S)
        self._gauges = Gauges(is_kept_whole)
        self._throughput = Throughput()
        self._gathered: list[FrameBlock] = []
        self._gathered_tokens = self._gathered_bytes = 0
        self._gathered_ns = 0

    def fold(self, batch: FrameBatch, now_ns: int) -> None:
        """Take a batch that was ingested at `now_ns`."""
        if (
            not 0 <= now_ns - self._gathered_ns < GATHER_S * SECOND_NS
            or self._gathered_tokens > GATHER_TOKENS
            or self._gathered_bytes > GATHER_BYTES
        ):
            self.settle()
        if self._gathered and now_ns // SECOND_NS != self._gathered_ns // SECOND_NS:
            self.settle()
        for event in batch.events:
            if event.kind == "started":
                self._pace.started(event.request_id, event.time_ns)
        self._gather(batch, now_ns)
        if batch.events or batch.sketches:
            self._fold_words(batch, now_ns)

    def _gather(self, batch: FrameBatch, now_ns: int) -> None:
        if not self._gathered:
            self._gathered_ns = now_ns
        for block in batch.blocks:
            folded = foldable(block)
            self._gathered.append(folded)
            self._gathered_bytes += sum(column.nbytes for column in folded.columns.values())
            self._gathered_tokens += len(block)
            self.tokens_total += len(block)
            self.frames_total += len(block)
            self._throughput.frames(len(block), now_ns)
            self.newest_ended_ns = int(block.columns["ended_ns"][-1])

    def _fold_words(self, batch: FrameBatch, now_ns: int) -> None:
        window = self.windows.at(now_ns)
        for event in batch.events:
            window.count(event)
            if event.kind in ("finished", "aborted"):
                self.settle()
                self._pace.ended(event.request_id)
                self._gauges.ended(event.request_id)
        for sketch in batch.sketches:
            if sketch.request is None:  # those of requests are of the same tokens
                self.tokens_total += sketch.tokens
                window.take_sketch(sketch)
                self._gauges.take(sketch, now_ns)
                self._throughput.sketch(sketch.tokens, sketch.end_ns - sketch.start_ns, now_ns)

    def settle(self) -> None:
        """Fold what was gathered."""
        blocks, self._gathered = self._gathered, []
        self._gathered_tokens = self._gathered_bytes = 0
        if not blocks:
            return
        window = self.windows.at(self._gathered_ns)
        for block in joined(blocks):
            window.take(block, self._pace.see(block, self._gathered_ns))
        self._pace.forget(self._gathered_ns)
        self._gauges.see(blocks, self._gathered_ns)

    def closed(self, now_ns: int) -> list[viewer_pb2.Window]:
        """The windows that closed by `now_ns` since this was last asked."""
        self.settle()
        self.windows.close(now_ns)
        gauges = self._gauges_at(now_ns)
        return [window.message(**gauges) for window in self.windows.closed()]

    def _gauges_at(self, now_ns: int) -> dict[str, int]:
        self._pace.forget(now_ns)
        held, most = self._gauges.now(now_ns), (1 << 64) - 1
        return {
            "sequences": held.sequences,
            "kv_tokens": min(held.kv_tokens, most),
            "kv_bytes": min(held.kv_bytes, most),
        }

    def status(self, now_ns: int) -> viewer_pb2.ReplicaStatus:
        """The figures as of `now_ns`; who and what it is, is for the caller to fill in."""
        self.settle()
        oldest_ns = now_ns - WINDOWS * SECOND_NS
        windows = [w for w in self.windows.last if w.end_ns > oldest_ns]
        gauges = self._gauges_at(now_ns)
        span_s = (now_ns - windows[0].start_ns) / 1e9 if windows else 0.0
        status = viewer_pb2.ReplicaStatus(
            tokens_per_s=self._throughput.per_s(now_ns, is_folding=self._gauges.is_folding(now_ns)),
            inter_token=quantiles_of(windows, INTER_TOKEN, [gaps for w in windows for gaps in w.gaps_s]),
            first_token=quantiles_of(windows, FIRST_TOKEN, [some for w in windows for some in w.firsts_s]),
            kv_tokens=gauges["kv_tokens"],
            kv_bytes=gauges["kv_bytes"],
            running_sequences=min(gauges["sequences"], (1 << 32) - 1),
            tokens_total=min(self.tokens_total, (1 << 64) - 1),
            frames_total=self.frames_total,
            window_s=span_s,
            first_token_bounds_s=FIRST_TOKEN_BOUNDS_S,
            first_token_counts=_summed(windows, FIRST_TOKEN_COUNTS),
            inter_token_bounds_s=INTER_TOKEN_BOUNDS_S,
            inter_token_counts=_summed(windows, INTER_TOKEN_COUNTS),
        )
        heads, ffn = (_per_layer(windows, name) for name in ACTIVITY)
        status.head_activity.extend(heads)
        status.ffn_activity.extend(ffn)
        return status


def _summed(windows: list[Window], name: str) -> list[int]:
    histograms = np.array([window.histogram(name) for window in windows], np.int64)
    return histograms.sum(axis=0).tolist() if len(windows) else []


def _per_layer(windows: list[Window], name: str) -> list[float]:
    """Mean per layer over what was measured; NaN where nothing was. Of the newest shape alone."""
    known: list[Moments] = [w.fold.columns[name] for w in windows if name in w.fold.columns]
    if not known or not known[-1].shape:
        return []
    shape = known[-1].shape
    alike = [one for one in known if one.shape == shape]
    count = np.sum([one.count for one in alike], axis=0).reshape(shape[0], -1).sum(axis=1)
    total = np.sum([one.count * one.mean for one in alike], axis=0).reshape(shape[0], -1).sum(axis=1)
    with np.errstate(all="ignore"):
        means: list[float] = np.where(count > 0, total / count, np.nan).tolist()
    return means
