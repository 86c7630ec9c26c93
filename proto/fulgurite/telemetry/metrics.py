"""The figures of one replica since it was first heard, as cumulative arrays. Pure; never per-token calls.

What a scrape or a push shows are `Point`s: a metric of `fulgurite.telemetry.names`, its labels and a value.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from fulgurite.telemetry.names import BY_NAME, METRICS, Metric
from fulgurite.wire.sketch import (
    BUCKET_BOUNDS,
    ENTROPY,
    EXPERT_LOAD,
    INTER_TOKEN,
    INTER_TOKEN_COUNTS,
    SURPRISE,
    Moments,
    Sketch,
)

if TYPE_CHECKING:
    from fulgurite.telemetry.requests import RequestRecord
    from fulgurite.wire.frame import FrameBatch, FrameBlock

Array = np.ndarray[Any, Any]

SERIES_BUDGET: Final = 2000
"""Series of one replica, a histogram's buckets, its count and its sum counted one by one."""
SILENT_NS: Final = 5_000_000_000
MOST_EXPERTS: Final = 32_768
_SKETCHED: Final = {"fulgurite.token.surprisal": SURPRISE, "fulgurite.token.entropy": ENTROPY}


@dataclass(frozen=True, slots=True)
class Exemplar:
    """One measurement that fell into a bucket, with the trace that it belongs to."""

    value: float
    time_ns: int
    trace_id: str
    span_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Histogram:
    """A cumulative histogram.

    Attributes
    ----------
    counts : tuple of int, length len(bounds) + 1
        Per bucket, not cumulated; the last one is beyond the highest bound.
    exemplars : the newest of each bucket, by the bucket's index.
    """

    bounds: tuple[float, ...]
    counts: tuple[int, ...]
    total: float
    exemplars: Mapping[int, Exemplar] = field(default_factory=dict)

    @property
    def count(self) -> int:
        """Measurements in all buckets."""
        return sum(self.counts)


@dataclass(frozen=True, slots=True)
class Point:
    """One series now. `value` is a number, or a `Histogram` for the kinds histogram and moments."""

    metric: Metric
    labels: Mapping[str, str]
    value: float | int | Histogram

    @property
    def series(self) -> int:
        """How many series of the text format it is."""
        if not isinstance(self.value, Histogram):
            return 1
        return 2 if self.metric.kind == "moments" else len(self.value.counts) + 2


class _Tally:
    """A histogram that grows."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._edges = np.asarray(bounds, np.float64)
        self._counts = np.zeros(len(bounds) + 1, np.int64)
        self._total = 0.0
        self._exemplars: dict[int, Exemplar] = {}

    def add(self, values: Array) -> None:
        """Count values; a NaN is nothing that was measured."""
        known = values[~np.isnan(values)]
        if known.size:
            np.add.at(self._counts, np.searchsorted(self._edges, known, side="left"), 1)
            self._total += float(known.sum())

    def add_one(self, value: float, record: RequestRecord) -> None:
        """Count the figure of a request, with its trace as the exemplar."""
        self.add(np.asarray([value], np.float64))
        if record.trace_id:
            at = int(np.searchsorted(self._edges, value, side="left"))
            self._exemplars[at] = Exemplar(value, record.ended_ns, record.trace_id, record.own_span_id)

    def add_counts(self, counts: Array, total: float) -> None:
        """Take in a histogram with the same bounds."""
        if len(counts) == len(self._counts):
            self._counts += counts.astype(np.int64)
            self._total += total

    def add_sketch(self, moments: Moments) -> None:
        """Take in the buckets of a sketch of one number, whose bounds ours are a part of."""
        if moments.buckets is None or moments.cells != 1:
            return
        width = moments.buckets.shape[1]
        upper = np.append(BUCKET_BOUNDS, np.inf)[moments.first_bucket : moments.first_bucket + width]
        places = np.searchsorted(self._edges, upper * (1 - 1e-3), side="left")
        np.add.at(self._counts, places, moments.buckets[0].astype(np.int64))
        self._total += float(moments.count[0] * moments.mean[0])

    @property
    def value(self) -> Histogram:
        return Histogram(
            bounds=self._bounds,
            counts=tuple(self._counts.tolist()),
            total=self._total,
            exemplars=dict(self._exemplars),
        )


class _Moments:
    """Count and sum per layer."""

    def __init__(self) -> None:
        self.count = np.zeros(0, np.int64)
        self.total = np.zeros(0)

    def add(self, values: Array) -> None:
        """Take values, shape (tokens, layers)."""
        if len(self.count) != values.shape[1]:
            self.count, self.total = np.zeros(values.shape[1], np.int64), np.zeros(values.shape[1])
        known = np.isfinite(values)
        self.count += known.sum(axis=0)
        self.total += np.where(known, values, 0.0).sum(axis=0)

    def add_sketch(self, moments: Moments) -> None:
        """Take in a sketch of the shape (layers,) or (layers, heads)."""
        layers = moments.shape[0]
        count = moments.count.reshape(layers, -1)
        total = (moments.mean * moments.count).reshape(layers, -1)
        if len(self.count) != layers:
            self.count, self.total = np.zeros(layers, np.int64), np.zeros(layers)
        heads = np.maximum(1, (count > 0).sum(axis=1))
        self.count += count.max(axis=1)
        self.total += total.sum(axis=1) / heads


@dataclass(slots=True)
class _Sequence:
    position: int
    ended_ns: int
    kv_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentAccount:
    """What an agent says of itself, as of now; -1 and NaN: not known."""

    captured: int = 0
    acknowledged: int = 0
    pending: int = 0
    dropped: Mapping[str, int] = field(default_factory=dict)
    errors: Mapping[str, int] = field(default_factory=dict)
    overhead: float = float("nan")
    running: int = -1
    waiting: int = -1
    kv_bytes: int = -1
    kv_capacity: int = -1


class ReplicaMeter:
    """Folds what one replica sends.

    Parameters
    ----------
    experts : experts of a layer; 0 for a dense model.
    """

    def __init__(self, experts: int = 0) -> None:
        self._histograms = {m.name: _Tally(m.buckets) for m in METRICS if m.kind == "histogram"}
        self._heads, self._ffn = _Moments(), _Moments()
        self._experts = min(experts, MOST_EXPERTS)
        self._chosen = np.zeros((0, self._experts), np.int64)
        self._sequences: dict[tuple[str, int], _Sequence] = {}
        self._open: dict[str, None] = {}  # started, and not known to have ended
        self._tokens = self._prompt_tokens = 0
        self._outcomes: dict[str, int] = {}
        self._sketched: Sketch | None = None
        self.account = AgentAccount()

    def fold(self, batch: FrameBatch) -> None:
        """Take the tokens and events of a batch."""
        for event in batch.events:
            if event.kind == "started":
                self._open[event.request_id] = None
                self._prompt_tokens += sum(event.prompt_tokens_per_row) or event.prompt_tokens
            elif event.kind == "preempted":
                self._outcomes["preempted"] = self._outcomes.get("preempted", 0) + 1
        for block in batch.blocks:
            self._take(block)
        for sketch in batch.sketches:
            if sketch.request is None:  # those of requests are of the same tokens
                self._take_sketch(sketch)
        over = {e.request_id for e in batch.events if e.kind in ("finished", "aborted")}
        for name in over:
            self._open.pop(name, None)
        if over:
            self._sequences = {key: s for key, s in self._sequences.items() if key[0] not in over}

    def end(self, record: RequestRecord) -> None:
        """Take a request that ended."""
        self._open.pop(record.request_id, None)
        self._outcomes[record.outcome] = self._outcomes.get(record.outcome, 0) + 1
        tally = self._histograms
        if record.outcome != "given_up":
            tally["gen_ai.server.request.duration"].add_one(record.duration_s, record)
        if record.first_token_s is not None:
            tally["gen_ai.server.time_to_first_token"].add_one(record.first_token_s, record)
        if record.outcome == "finished" and record.pace_s is not None:
            tally["gen_ai.server.time_per_output_token"].add_one(record.pace_s, record)

    def _take(self, block: FrameBlock) -> None:
        columns = block.columns
        self._tokens += len(block)
        if "logprob" in columns:
            self._histograms["fulgurite.token.surprisal"].add(-columns["logprob"].astype(np.float64))
        if "entropy" in columns:
            self._histograms["fulgurite.token.entropy"].add(columns["entropy"].astype(np.float64))
        if "head_write" in columns:
            self._heads.add(_means(columns["head_write"]))
        if "ffn_write" in columns:
            self._ffn.add(columns["ffn_write"].astype(np.float64))
        if "expert_ids" in columns and self._experts:
            self._count_experts(columns["expert_ids"])
        self._histograms["fulgurite.inter_token.duration"].add(self._gaps(block))

    def _take_sketch(self, sketch: Sketch) -> None:
        """Tokens of about a second, that came folded."""
        self._tokens += sketch.tokens
        self._sketched = sketch
        for name, column in _SKETCHED.items():
            moments = sketch.columns.get(column)
            if moments is not None:
                self._histograms[name].add_sketch(moments)
        counts = sketch.columns.get(INTER_TOKEN_COUNTS)
        times = sketch.columns.get(INTER_TOKEN)
        if counts is not None and times is not None:
            total = float(times.count[0] * times.mean[0])
            self._histograms["fulgurite.inter_token.duration"].add_counts(counts.count, total)
        if "head_write" in sketch.columns:
            self._heads.add_sketch(sketch.columns["head_write"])
        if "ffn_write" in sketch.columns:
            self._ffn.add_sketch(sketch.columns["ffn_write"])
        load = sketch.columns.get(EXPERT_LOAD)
        if load is not None and len(load.shape) == 2 and load.shape[1] == self._experts:
            if self._chosen.shape != load.shape:
                self._chosen = np.zeros(load.shape, np.int64)
            self._chosen += load.count.reshape(load.shape)

    def _count_experts(self, ids: Array) -> None:
        """Choices per layer and expert; `ids` has the shape (tokens, layers, chosen)."""
        layers = ids.shape[1]
        if self._chosen.shape[0] != layers:
            self._chosen = np.zeros((layers, self._experts), np.int64)
        layer = np.broadcast_to(np.arange(layers)[None, :, None], ids.shape)
        known = (ids >= 0) & (ids < self._experts)
        np.add.at(self._chosen, (layer[known], ids[known].astype(np.int64)), 1)

    def _gaps(self, block: FrameBlock) -> Array:
        """Seconds since the token before it of the same sequence; nothing for a first one, nor where tokens
        between them did not come."""
        columns = block.columns
        tokens = columns["kv_tokens"].max(axis=-1).tolist() if "kv_tokens" in columns else [0] * len(block)
        names = [request.request_id for request in block.requests]
        gaps: list[float] = []
        rows = zip(
            columns["request_index"].tolist(),
            columns["sequence"].tolist(),
            columns["position"].tolist(),
            columns["ended_ns"].tolist(),
            tokens,
            strict=True,
        )
        for request, sequence, position, ended_ns, kv_tokens in rows:
            key = (names[request], sequence)
            before = self._sequences.get(key)
            follows = before is not None and position == before.position + 1
            if before is not None and follows and ended_ns >= before.ended_ns:
                gaps.append((ended_ns - before.ended_ns) / 1e9)
            self._sequences[key] = _Sequence(position, ended_ns, max(0, kv_tokens))
        return np.asarray(gaps, np.float64)

    # --- what is shown

    def points(self, now_ns: int, budget: int = SERIES_BUDGET) -> list[Point]:
        """Every series as of `now_ns`, within `budget`: the most important first, whole metrics or none."""
        self._forget(now_ns)
        families: dict[Metric, list[Point]] = {}
        for point in self._every():
            families.setdefault(point.metric, []).append(point)
        kept: list[Point] = []
        left, dropped = budget - 1, 0  # one of them says how many are missing
        for metric in sorted(families, key=lambda m: m.priority):
            series = sum(point.series for point in families[metric])
            if series <= left:
                kept += families[metric]
                left -= series
            else:
                dropped += series
        kept.append(Point(BY_NAME["fulgurite.series.dropped"], {}, dropped))
        return kept

    def _forget(self, now_ns: int) -> None:
        self._sequences = {k: s for k, s in self._sequences.items() if now_ns - s.ended_ns <= SILENT_NS}
        if self._sketched is not None and now_ns - self._sketched.end_ns > SILENT_NS:
            self._sketched = None

    def _every(self) -> Iterator[Point]:
        for name, tally in self._histograms.items():
            if tally.value.count or BY_NAME[name].priority == 0:
                yield Point(BY_NAME[name], {}, tally.value)
        yield _plain("fulgurite.tokens", self._tokens)
        yield _plain("fulgurite.prompt_tokens", self._prompt_tokens)
        for outcome, count in sorted(self._outcomes.items()):
            yield _plain("fulgurite.requests", count, {"fulgurite.outcome": outcome})
        running = self._open.keys() | {key[0] for key in self._sequences}
        held = sum(s.kv_tokens for s in self._sequences.values())
        told = self._sketched
        yield _plain("fulgurite.sequences.running", len(self._sequences) + (told.sequences if told else 0))
        yield _plain("fulgurite.kv.tokens", held + (told.kv_tokens if told else 0))
        yield from self._account_points(len(running))
        yield from self._layer_points("fulgurite.layer.head_write", self._heads)
        yield from self._layer_points("fulgurite.layer.ffn_write", self._ffn)
        yield from self._expert_points()

    def _account_points(self, running: int) -> Iterator[Point]:
        account = self.account
        yield _plain("fulgurite.requests.running", account.running if account.running >= 0 else running)
        yield from _known("fulgurite.requests.waiting", account.waiting)
        yield from _known("fulgurite.kv.bytes", account.kv_bytes)
        yield from _known("fulgurite.kv.capacity", account.kv_capacity)
        yield _plain("fulgurite.frames.captured", account.captured)
        yield _plain("fulgurite.frames.acknowledged", account.acknowledged)
        yield _plain("fulgurite.frames.pending", account.pending)
        for reason, count in sorted(account.dropped.items()):
            yield _plain("fulgurite.frames.dropped", count, {"fulgurite.reason": reason})
        for kind, count in sorted(account.errors.items()):
            yield _plain("fulgurite.agent.errors", count, {"error.type": kind})
        if not np.isnan(account.overhead):
            yield _plain("fulgurite.agent.overhead", account.overhead)

    def _layer_points(self, name: str, moments: _Moments) -> Iterator[Point]:
        for layer in np.flatnonzero(moments.count).tolist():
            value = Histogram(
                bounds=(), counts=(int(moments.count[layer]),), total=float(moments.total[layer])
            )
            yield Point(BY_NAME[name], {"fulgurite.layer": str(layer)}, value)

    def _expert_points(self) -> Iterator[Point]:
        for expert, count in enumerate(self._chosen.sum(axis=0).tolist()):
            if self._chosen.size:
                yield _plain("fulgurite.expert.tokens", count, {"fulgurite.expert": str(expert)})
        for layer, counts in enumerate(self._chosen):
            if counts.any():
                imbalance = float(counts.max() / counts.mean())
                yield _plain("fulgurite.expert.imbalance", imbalance, {"fulgurite.layer": str(layer)})


def _plain(name: str, value: float | int, labels: Mapping[str, str] | None = None) -> Point:
    return Point(BY_NAME[name], labels or {}, value)


def _known(name: str, value: int) -> Iterable[Point]:
    return (_plain(name, value),) if value >= 0 else ()


def _means(values: Array) -> Array:
    """Mean over the heads, shape (tokens, layers); NaN for a layer without heads."""
    known = np.isfinite(values)
    count = known.sum(axis=-1)
    total = np.where(known, values, 0.0).sum(axis=-1, dtype=np.float64)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)
