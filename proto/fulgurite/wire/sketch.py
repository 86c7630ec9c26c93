"""Sketches: what is known of many tokens where nobody asked for each of them.

Per cell of a quantity (a head, a layer, an expert) a sketch has the count, the mean, the sum of squared
deviations and counts in fixed logarithmic buckets, from which quantiles are read. Sketches of the same
quantity merge, in any order, to what folding all tokens at once gives (the means up to rounding).

The buckets are the same for every quantity: eight per decade from 1e-4 to 100, one below and one above. A
quantile that lies between the bounds is off by at most 10^(1/8) - 1 = 33 %, half of that on a logarithmic
scale. A bucket says nothing of the sign: only quantities that are not negative have buckets.

Folded are values as they were captured, before any encoding.

Shape letters: n tokens; C cells; W buckets; those of `fulgurite.wire.channels` for the rest; X experts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any, Final

import numpy as np

from fulgurite.wire.frame import Array, FrameBlock, RequestRef

BUCKETS_PER_DECADE: Final = 8
FIRST_DECADE: Final = -4
LAST_DECADE: Final = 2
BUCKETS: Final = (LAST_DECADE - FIRST_DECADE) * BUCKETS_PER_DECADE + 2
BUCKET_BOUNDS: Final = 10.0 ** (np.arange(BUCKETS - 1) / BUCKETS_PER_DECADE + FIRST_DECADE)
"""float64, shape (W - 1,): bucket i ends where bucket i + 1 begins, at bound i."""

ACTIVITY: Final = ("head_write", "ffn_write")
FIRST_TOKEN: Final = "first_token_s"
INTER_TOKEN: Final = "inter_token_s"
SURPRISE: Final = "surprise"
ENTROPY: Final = "entropy"
EXPERT_LOAD: Final = "expert_load"
SKETCHED: Final[Mapping[str, str]] = {
    "head_write": "as the channel, per layer and head",
    "ffn_write": "as the channel, per layer",
    SURPRISE: "minus logprob, nats",
    ENTROPY: "as the channel, nats",
    EXPERT_LOAD: "per layer and expert: how often it was chosen, and its gate weight",
    FIRST_TOKEN: "from the request's start to its first token, seconds",
    INTER_TOKEN: "between consecutive tokens of a sequence, seconds",
}
"""Every quantity that a sketch may have, and what it is."""

# The bounds that OpenTelemetry's GenAI conventions prescribe, seconds.
FIRST_TOKEN_BOUNDS_S: Final = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
)  # fmt: skip
INTER_TOKEN_BOUNDS_S: Final = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5)
FIRST_TOKEN_COUNTS: Final = "first_token_counts"
INTER_TOKEN_COUNTS: Final = "inter_token_counts"
"""Columns of one cell per normative bucket, whose counts are the histogram."""


class Moments:
    """Count, mean, squared deviations and bucket counts of one quantity, per cell. Folds and merges in place.

    Parameters
    ----------
    shape : tuple of int
        Of the quantity per token.
    bucketed : bool
        Whether quantiles are kept: not for what may be negative, and not where they would be too large.
    bucket_dtype : numpy dtype
        Of the bucket counts; a sum that does not fit is the caller's to avoid.

    Attributes
    ----------
    count : ndarray of int64, shape (C,)
    mean, squares : ndarray of float64, shape (C,)
        In the unit of the quantity, and its square.
    buckets : ndarray of unsigned integers, shape (C, W), or None
        From bucket `first_bucket` on.
    """

    __slots__ = ("buckets", "count", "first_bucket", "mean", "shape", "squares")

    def __init__(
        self, shape: tuple[int, ...], *, bucketed: bool = True, bucket_dtype: Any = np.uint32
    ) -> None:
        cells = prod(shape)
        self.shape = shape
        self.count: Array = np.zeros(cells, np.int64)
        self.mean: Array = np.zeros(cells)
        self.squares: Array = np.zeros(cells)
        self.first_bucket = 0
        self.buckets: Array | None = np.zeros((cells, BUCKETS), bucket_dtype) if bucketed else None

    @property
    def cells(self) -> int:
        """How many cells it has."""
        return len(self.count)

    @property
    def nbytes(self) -> int:
        """What it holds."""
        own = self.count.nbytes + self.mean.nbytes + self.squares.nbytes
        return own + (self.buckets.nbytes if self.buckets is not None else 0)

    @property
    def variance(self) -> Array:
        """float64, shape (C,): of what was folded; NaN where nothing was."""
        with np.errstate(all="ignore"):
            return self.squares / np.where(self.count > 0, self.count, np.nan)

    def fold(self, values: Array, places: Array | None = None) -> None:
        """Take in values, shape (n, *shape); NaN is not counted. `places`: their buckets, where known."""
        if not len(values):  # which no shape can be inferred of
            return
        values = values.reshape(len(values), -1)
        finite = np.isfinite(values)
        if finite.all():
            count: Any = len(values)
            mean = values.mean(axis=0, dtype=np.float64)
            off = values - mean
        else:
            count = finite.sum(axis=0)
            total = np.where(finite, values, 0).sum(axis=0, dtype=np.float64)
            mean = total / np.maximum(count, 1)
            off = np.where(finite, values - mean, 0.0)
        self._join(count, mean, np.einsum("nc,nc->c", off, off))
        if self.buckets is not None:
            self._count_places(buckets_of(values) if places is None else places)

    def _count_places(self, places: Array) -> None:
        """`places`: shape (n, C), a bucket of each value, or `BUCKETS` where there is none."""
        assert self.buckets is not None
        flat = (np.arange(self.cells) * BUCKETS + places)[places < BUCKETS]
        counts = self.buckets.reshape(-1)
        if 4 * flat.size > counts.size:
            counts += np.bincount(flat, minlength=counts.size).astype(counts.dtype)
        else:
            np.add.at(counts, flat, counts.dtype.type(1))

    def merge(self, other: Moments) -> None:
        """Take in what `other` has, which has the same shape."""
        if other.shape != self.shape:
            raise ValueError(f"a sketch of shape {other.shape} does not merge into one of {self.shape}")
        self._join(other.count, other.mean, other.squares)
        if self.buckets is not None and other.buckets is not None:
            first, width = other.first_bucket, other.buckets.shape[1]
            self.buckets[:, first : first + width] += other.buckets.astype(self.buckets.dtype)

    def _join(self, count: Any, mean: Array, squares: Array) -> None:
        total = self.count + count
        share = count / np.maximum(total, 1)
        off = mean - self.mean
        self.squares += squares + off * off * self.count * share
        self.mean += off * share
        self.count = total

    def quantile(self, q: float) -> Array:
        """float64, in `shape`: interpolated on a logarithmic scale; 0 below the grid, NaN for no count.

        Parameters
        ----------
        q : in [0, 1].
        """
        if self.buckets is None:
            return np.full(self.shape, np.nan)
        counts = self.buckets.astype(np.float64)
        cumulated = np.cumsum(counts, axis=1)
        total = cumulated[:, -1]
        wanted = q * total
        at = np.minimum((cumulated < np.maximum(wanted, 1e-9)[:, None]).sum(axis=1), counts.shape[1] - 1)
        rows = np.arange(self.cells)
        inside = counts[rows, at]
        before = cumulated[rows, at] - inside
        bucket = at + self.first_bucket
        with np.errstate(all="ignore"):
            part = (wanted - before) / inside
            value = 10.0 ** ((bucket - 1 + part) / BUCKETS_PER_DECADE + FIRST_DECADE)
        value = np.where(bucket == 0, 0.0, np.where(bucket == BUCKETS - 1, BUCKET_BOUNDS[-1], value))
        return np.where(total > 0, value, np.nan).reshape(self.shape)

    def trimmed(self) -> tuple[int, Array]:
        """The first bucket with a count, and the counts from there to the last: shape (C, W)."""
        if self.buckets is None:
            return 0, np.zeros((self.cells, 0), np.uint32)
        used = np.flatnonzero(self.buckets.any(axis=0))
        if not len(used):
            return 0, self.buckets[:, :0]
        first, last = int(used[0]), int(used[-1])
        return first + self.first_bucket, self.buckets[:, first : last + 1]


def buckets_of(values: Array) -> Array:
    """The bucket of each value: uint8, in their shape; `BUCKETS` for NaN."""
    with np.errstate(all="ignore"):
        logs = np.log10(values, dtype=np.float32)  # zero is -inf, negative is NaN
        logs -= np.float32(FIRST_DECADE)
        logs *= np.float32(BUCKETS_PER_DECADE)
        np.floor(logs, out=logs)
        logs += np.float32(1)
        np.clip(logs, 0, BUCKETS - 1, out=logs)  # keeps NaN
        logs[np.isnan(logs)] = BUCKETS
    return logs.astype(np.uint8)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sketch:
    """What many tokens have in common.

    Attributes
    ----------
    request : RequestRef or None
        Whose tokens; None: of all requests, in about a second.
    start_ns, end_ns : int
        UNIX time of the first and the last.
    tokens : int
    columns : mapping of str to Moments
        By the names of `SKETCHED`.
    kv_tokens, kv_bytes, sequences : int
        At the end, over the sequences under way.
    """

    tokens: int
    start_ns: int
    end_ns: int
    columns: Mapping[str, Moments]
    request: RequestRef | None = None
    kv_tokens: int = 0
    kv_bytes: int = 0
    sequences: int = 0


@dataclass(slots=True)
class SketchFold:
    """Folds blocks into one sketch.

    Parameters
    ----------
    experts : int
        Of the model; 0 for a dense one.
    bucket_dtype : numpy dtype
        Of the bucket counts.
    most_bucketed_cells : int
        A quantity of more cells keeps moments alone.
    """

    experts: int = 0
    bucket_dtype: Any = np.uint32
    most_bucketed_cells: int = 1 << 19
    tokens: int = 0
    start_ns: int = 0
    end_ns: int = 0
    columns: dict[str, Moments] = field(default_factory=dict)

    def fold(self, columns: Mapping[str, Array], places: Mapping[str, Array]) -> None:
        """Take in the columns of some tokens; `places` are the buckets that are known already."""
        ended = columns["ended_ns"]
        if not len(ended):
            return
        self.tokens += len(ended)
        first = int(columns["started_ns"].min())
        self.start_ns = min(self.start_ns, first) if self.start_ns else first
        self.end_ns = max(self.end_ns, int(ended.max()))
        for name, values in measured(columns).items():
            self.of(name, values.shape[1:]).fold(values, places.get(name))
        if "expert_ids" in columns and self.experts:
            self._fold_experts(columns["expert_ids"], columns.get("expert_weights"))

    def time(self, name: str, seconds: Array) -> None:
        """Take in durations."""
        if len(seconds):
            self.of(name, ()).fold(seconds[:, None])
            bounds = FIRST_TOKEN_BOUNDS_S if name == FIRST_TOKEN else INTER_TOKEN_BOUNDS_S
            counts = FIRST_TOKEN_COUNTS if name == FIRST_TOKEN else INTER_TOKEN_COUNTS
            self.of(counts, (len(bounds) + 1,), bucketed=False).count += histogram(seconds, bounds)

    def merge(self, sketch: Sketch) -> None:
        """Take in another sketch; a quantity of another shape is left out."""
        self.tokens += sketch.tokens
        self.start_ns = min(self.start_ns or sketch.start_ns, sketch.start_ns)
        self.end_ns = max(self.end_ns, sketch.end_ns)
        for name, moments in sketch.columns.items():
            mine = self.of(name, moments.shape, bucketed=moments.buckets is not None)
            if mine.shape == moments.shape:
                mine.merge(moments)

    def of(self, name: str, shape: tuple[int, ...], *, bucketed: bool = True) -> Moments:
        """The moments of a quantity."""
        moments = self.columns.get(name)
        if moments is None:
            bucketed = bucketed and prod(shape) <= self.most_bucketed_cells
            moments = Moments(shape, bucketed=bucketed, bucket_dtype=self.bucket_dtype)
            self.columns[name] = moments
        return moments

    def _fold_experts(self, ids: Array, weights: Array | None) -> None:
        """`ids`, `weights`: shape (n, L, E); -1 and what is no expert is not counted."""
        layers = ids.shape[1]
        load = self.of(EXPERT_LOAD, (layers, self.experts), bucketed=False)
        chosen = (ids >= 0) & (ids < self.experts)
        cells = (np.arange(layers)[:, None] * self.experts + ids)[chosen]
        given = (np.zeros(ids.shape) if weights is None else np.asarray(weights, np.float64))[chosen]
        given = np.where(np.isfinite(given), given, 0.0)
        count = np.bincount(cells, minlength=load.cells)
        mean = np.bincount(cells, given, minlength=load.cells) / np.maximum(count, 1)
        squares = np.bincount(cells, (given - mean[cells]) ** 2, minlength=load.cells)
        load._join(count, mean, squares)

    @property
    def nbytes(self) -> int:
        """What it holds."""
        return sum(moments.nbytes for moments in self.columns.values())

    def sketch(
        self, *, request: RequestRef | None = None, kv_tokens: int = 0, kv_bytes: int = 0, sequences: int = 0
    ) -> Sketch:
        """What was folded. Fold no more afterwards: the sketch has the same arrays."""
        return Sketch(
            tokens=self.tokens,
            start_ns=self.start_ns,
            end_ns=self.end_ns,
            columns=self.columns,
            request=request,
            kv_tokens=kv_tokens,
            kv_bytes=kv_bytes,
            sequences=sequences,
        )


def measured(columns: Mapping[str, Array]) -> dict[str, Array]:
    """The quantities in the columns of a block that are folded as they are."""
    found = {name: columns[name] for name in ACTIVITY if name in columns}
    if "logprob" in columns:
        found[SURPRISE] = -columns["logprob"]
    if ENTROPY in columns:
        found[ENTROPY] = columns[ENTROPY]
    return found


_FOLDED: Final = (
    "request_index", "sequence", "position", "phase", "started_ns", "ended_ns", "logprob", "entropy",
    "head_write", "ffn_write", "expert_ids", "expert_weights", "kv_tokens", "kv_bytes",
)  # fmt: skip


def foldable(block: FrameBlock) -> FrameBlock:
    """The block with the channels that folding reads, and no others."""
    return FrameBlock(block.requests, {n: block.columns[n] for n in _FOLDED if n in block.columns})


def joined(blocks: Iterable[FrameBlock]) -> list[FrameBlock]:
    """Blocks with the same channels of the same shapes as one, in order: a fold costs by the call."""
    alike: dict[tuple[Any, ...], list[FrameBlock]] = {}
    for block in blocks:
        shapes = tuple((name, column.shape[1:]) for name, column in block.columns.items())
        alike.setdefault(shapes, []).append(block)
    return [_one(same) if len(same) > 1 else same[0] for same in alike.values()]


def _one(blocks: list[FrameBlock]) -> FrameBlock:
    numbers: dict[RequestRef, int] = {}
    columns: dict[str, Array] = {}
    indexes, told, places = [], None, np.zeros(0, np.int64)
    for block in blocks:
        if block.requests != told:  # from step to step they are mostly the same ones
            told = block.requests
            places = np.array([numbers.setdefault(request, len(numbers)) for request in told], np.int64)
        indexes.append(places[block.columns["request_index"]])
    for name in blocks[0].columns:
        columns[name] = np.concatenate([block.columns[name] for block in blocks])
    columns["request_index"] = np.concatenate(indexes)
    return FrameBlock(tuple(numbers), columns)


def histogram(values: Array, bounds: tuple[float, ...]) -> Array:
    """Counts of the values at or below each bound, and above the last: int64, shape (len(bounds) + 1,)."""
    return np.bincount(np.searchsorted(bounds, values), minlength=len(bounds) + 1)


@dataclass(slots=True)
class _Sequence:
    """A sequence under way."""

    position: int
    ended_ns: int
    seen_ns: int
    kv_tokens: int
    kv_bytes: int


@dataclass(frozen=True, slots=True)
class Intervals:
    """What some tokens tell of time.

    Attributes
    ----------
    firsts_s, gaps_s : ndarray of float64
        From a request's start to its first token; between tokens of consecutive positions. Seconds.
    first_requests, gap_requests : ndarray of int64
        Of which request of the block.
    """

    firsts_s: Array
    first_requests: Array
    gaps_s: Array
    gap_requests: Array


@dataclass(slots=True)
class Pace:
    """How requests and their sequences go: time to the first token, time between tokens, caches held.

    An interval counts between tokens of consecutive positions only: what lies between others is not one
    token's time.

    Attributes
    ----------
    silent_s : float
        A sequence without a token for so long is not under way any more.
    """

    silent_s: float = 5.0
    _sequences: dict[tuple[str, int], _Sequence] = field(default_factory=dict)
    _started_ns: dict[str, int] = field(default_factory=dict)

    def started(self, request_id: str, time_ns: int) -> None:
        """A request began."""
        self._started_ns[request_id] = time_ns
        if len(self._started_ns) > 4096:  # requests that never ended
            self._started_ns = dict(list(self._started_ns.items())[-2048:])

    def ended(self, request_id: str) -> None:
        """A request is over."""
        self._started_ns.pop(request_id, None)
        for key in [key for key in self._sequences if key[0] == request_id]:
            del self._sequences[key]

    def see(self, block: FrameBlock, now_ns: int) -> Intervals:
        """Take in tokens, in the order in which they were captured."""
        columns, count = block.columns, len(block)
        firsts_s, first_requests = self._firsts(block, np.flatnonzero(columns["phase"] == 0))
        key = columns["request_index"].astype(np.int64) << 16 | columns["sequence"]
        order = np.argsort(key, kind="stable")
        key, position = key[order], columns["position"][order]
        ended, phase = columns["ended_ns"][order], columns["phase"][order]
        is_head = np.r_[True, key[1:] != key[:-1]][:count]
        before = self._before(block, key, is_head)
        former_position, former_ended = np.r_[-2, position[:-1]][:count], np.r_[0, ended[:-1]][:count]
        former_position[is_head], former_ended[is_head] = before
        gap_ns = ended - former_ended
        follows = (position == former_position + 1) & (gap_ns >= 0) & (phase != 0)
        self._keep(block, key, order, is_head, now_ns)
        return Intervals(firsts_s, first_requests, gap_ns[follows] / 1e9, key[follows] >> 16)

    def _firsts(self, block: FrameBlock, rows: Array) -> tuple[Array, Array]:
        columns = block.columns
        indexes = columns["request_index"][rows].astype(np.int64)
        started = columns["started_ns"][rows].copy()
        for i, index in enumerate(indexes.tolist()):
            started[i] = self._started_ns.get(block.requests[index].request_id, started[i])
        return (columns["ended_ns"][rows] - started) / 1e9, indexes

    def _before(self, block: FrameBlock, key: Array, is_head: Array) -> tuple[list[int], list[int]]:
        """Position and end of the token before, for the first token of each sequence in the block."""
        known = [self._sequences.get(_name(block, one)) for one in key[is_head].tolist()]
        positions = [one.position if one is not None else -2 for one in known]
        return positions, [one.ended_ns if one is not None else 0 for one in known]

    def _keep(self, block: FrameBlock, key: Array, order: Array, is_head: Array, now_ns: int) -> None:
        columns = block.columns
        is_tail = np.r_[is_head[1:], True][: len(key)]
        last = order[is_tail]
        tokens = (
            columns["kv_tokens"][last].max(axis=-1) if "kv_tokens" in columns else np.zeros(len(last), int)
        )
        held = columns["kv_bytes"][last] if "kv_bytes" in columns else np.zeros(len(last), int)
        rows = zip(
            key[is_tail].tolist(),
            columns["position"][last].tolist(),
            columns["ended_ns"][last].tolist(),
            tokens.tolist(),
            held.tolist(),
            strict=True,
        )
        for one, position, ended_ns, kv_tokens, kv_bytes in rows:
            name = _name(block, one)
            self._sequences[name] = _Sequence(position, ended_ns, now_ns, kv_tokens, kv_bytes)

    def forget(self, now_ns: int, silent_s: float | None = None) -> None:
        """Let go of the sequences that are silent."""
        limit_ns = (self.silent_s if silent_s is None else silent_s) * 1e9
        for key in [key for key, one in self._sequences.items() if now_ns - one.seen_ns > limit_ns]:
            del self._sequences[key]

    @property
    def sequences(self) -> int:
        """Under way."""
        return len(self._sequences)

    @property
    def kv_tokens(self) -> int:
        """Cached positions of all of them."""
        return sum(max(0, one.kv_tokens) for one in self._sequences.values())

    @property
    def kv_bytes(self) -> int:
        """Bytes of their caches."""
        return sum(max(0, one.kv_bytes) for one in self._sequences.values())


def _name(block: FrameBlock, key: int) -> tuple[str, int]:
    return block.requests[key >> 16].request_id, key & 0xFFFF
