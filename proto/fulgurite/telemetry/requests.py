"""Requests, put together from frames and events. Pure: knows no clock, no socket and no store."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from fulgurite.wire.sketch import FIRST_TOKEN, INTER_TOKEN

if TYPE_CHECKING:
    from fulgurite.wire.frame import FrameBatch, FrameBlock, RequestEvent
    from fulgurite.wire.sketch import Sketch

Array = np.ndarray[Any, Any]

MOST_REQUESTS: Final = 16_384
"""Under way at once; the one that was silent longest is given up beyond it."""
MOST_TOKENS: Final = 65_536
"""Of one request that are kept one by one; the others are counted."""
SILENT_NS: Final = 600 * 1_000_000_000
"""A request without a word for so long has no end that anybody will hear of."""
HELD_NS: Final = 5 * 1_000_000_000
"""How long a request that ended without a token waits for a sketch of its tokens."""
ENDS: Final = ("finished", "aborted")


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestRecord:
    """A request that ended.

    Attributes
    ----------
    replica : str
        Text of its key.
    trace_id, span_id : str
        Hexadecimal, of the span that it ran under; empty where there was none.
    outcome : ``finished``, ``aborted`` or ``given_up`` (nobody heard of its end).
    reason : why it ended, as the engine says.
    started_ns, first_token_ns, ended_ns : UNIX time; `first_token_ns` 0 where there was no token.
    output_tokens : tokens of all sequences, captured whole or not.
    pace_s : mean time between two tokens of a sequence; None where there were none.
    columns : mapping of str to ndarray, shape (tokens,)
        Per token: `sequence`, `position`, `started_ns`, `ended_ns`, and what of `batch_size`, `logprob`,
        `entropy`, `kv_tokens`, `head_write_max`, `head_write_layer`, `head_write_head`, `ffn_write_mean` was
        captured for any of them; NaN, or -1, at the tokens that lack it.
    """

    replica: str
    request_id: str
    trace_id: str
    span_id: str
    outcome: str
    reason: str
    started_ns: int
    first_token_ns: int
    ended_ns: int
    prompt_tokens: int
    output_tokens: int
    sequences: int
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    pace_s: float | None = None
    columns: Mapping[str, Array] = field(default_factory=dict)

    @property
    def duration_s(self) -> float:
        """From its start to its end."""
        return max(0, self.ended_ns - self.started_ns) / 1e9

    @property
    def first_token_s(self) -> float | None:
        """From its start to its first token; None without one."""
        return max(0, self.first_token_ns - self.started_ns) / 1e9 if self.first_token_ns else None

    @property
    def own_span_id(self) -> str:
        """Id of the request's own span: the same in every process that makes it."""
        return _hashed(f"span {self.replica} {self.request_id} {self.started_ns}", 8)

    @property
    def own_trace_id(self) -> str:
        """The trace that it ran under, else one made of its name."""
        return self.trace_id or _hashed(f"trace {self.replica} {self.request_id} {self.started_ns}", 16)


def _hashed(text: str, nbytes: int) -> str:
    return hashlib.blake2b(text.encode(), digest_size=nbytes).hexdigest()


@dataclass(slots=True)
class _Track:
    """A request under way."""

    request_id: str
    started_ns: int
    seen_ns: int
    trace_id: str = ""
    span_id: str = ""
    prompt_tokens: int = 0
    sequences: int = 1
    first_token_ns: int = 0
    last_token_ns: int = 0
    tokens: int = 0
    first_s: float | None = None
    gaps: int = 0
    gaps_s: float = 0.0
    end: RequestEvent | None = None
    pieces: list[dict[str, Array]] = field(default_factory=list)


class Requests:
    """The requests of one replica.

    Parameters
    ----------
    replica : str
        Text of its key.
    """

    def __init__(self, replica: str) -> None:
        self._replica = replica
        self._tracks: dict[str, _Track] = {}

    def __len__(self) -> int:
        return len(self._tracks)

    def fold(self, batch: FrameBatch, now_ns: int | None = None) -> list[RequestRecord]:
        """Take a batch; gives the requests that ended in it, frames of the same batch included.

        Parameters
        ----------
        now_ns : int, optional
            The reader's own time, by which a request is silent; by default the times in the batch are taken
            for it, which another machine's clock may have set.
        """
        for event in batch.events:
            if event.kind == "started":
                self._start(event, now_ns)
        for block in batch.blocks:
            self._take(block, now_ns)
        ended = [self._take_sketch(sketch, now_ns) for sketch in batch.sketches if sketch.request is not None]
        ended += [self._end(event, now_ns) for event in batch.events if event.kind in ENDS]
        return [record for record in ended if record is not None]

    def give_up(self, now_ns: int) -> list[RequestRecord]:
        """The requests that nobody heard of for long, or that are too many; and those that ended without a
        token, whose sketch did not come."""
        silent = [
            t for t in self._tracks.values() if now_ns - t.seen_ns > (SILENT_NS if t.end is None else HELD_NS)
        ]
        over = len(self._tracks) - len(silent) - MOST_REQUESTS
        if over > 0:
            silent = sorted(self._tracks.values(), key=lambda t: t.seen_ns)[: len(silent) + over]
        return [self._record(self._tracks.pop(t.request_id)) for t in silent]

    def _start(self, event: RequestEvent, now_ns: int | None) -> None:
        track = self._tracks.get(event.request_id)
        if track is None:
            seen_ns = event.time_ns if now_ns is None else now_ns
            track = self._tracks[event.request_id] = _Track(event.request_id, event.time_ns, seen_ns)
        track.started_ns = min(track.started_ns, event.time_ns)
        track.prompt_tokens = sum(event.prompt_tokens_per_row) or event.prompt_tokens
        track.sequences = max(1, event.sequences)

    def _take(self, block: FrameBlock, now_ns: int | None) -> None:
        columns = block.columns
        index = columns["request_index"]
        for number in np.unique(index).tolist():
            ref = block.requests[number]
            rows = np.flatnonzero(index == number)
            track = self._tracks.get(ref.request_id)
            if track is None:
                started_ns = int(columns["started_ns"][rows].min())
                track = self._tracks[ref.request_id] = _Track(ref.request_id, started_ns, started_ns)
            track.trace_id, track.span_id = ref.trace_id or track.trace_id, ref.span_id or track.span_id
            ended_ns = columns["ended_ns"][rows]
            first = int(ended_ns.min())
            track.first_token_ns = min(track.first_token_ns or first, first)
            track.last_token_ns = max(track.last_token_ns, int(ended_ns.max()))
            track.seen_ns = track.last_token_ns if now_ns is None else now_ns
            if track.tokens < MOST_TOKENS:
                track.pieces.append(_piece(columns, rows))
            track.tokens += len(rows)

    def _take_sketch(self, sketch: Sketch, now_ns: int | None) -> RequestRecord | None:
        """Tokens of a request that came folded; gives the request where it was only waiting for them."""
        assert sketch.request is not None
        ref = sketch.request
        track = self._tracks.get(ref.request_id)
        if track is None:
            track = self._tracks[ref.request_id] = _Track(ref.request_id, sketch.start_ns, sketch.start_ns)
        track.trace_id, track.span_id = ref.trace_id or track.trace_id, ref.span_id or track.span_id
        track.tokens += sketch.tokens
        track.last_token_ns = max(track.last_token_ns, sketch.end_ns)
        track.seen_ns = sketch.end_ns if now_ns is None else now_ns
        first = sketch.columns.get(FIRST_TOKEN)
        if first is not None and first.count.sum():
            first_s = float(first.mean[0])  # since a start whose event may be still to come
            track.first_s = first_s if track.first_s is None else min(track.first_s, first_s)
        gaps = sketch.columns.get(INTER_TOKEN)
        if gaps is not None:
            track.gaps += int(gaps.count[0])
            track.gaps_s += float(gaps.count[0] * gaps.mean[0])
        return None if track.end is None else self._record(self._tracks.pop(ref.request_id))

    def _end(self, event: RequestEvent, now_ns: int | None) -> RequestRecord | None:
        track = self._tracks.get(event.request_id)
        if track is None:
            seen_ns = event.time_ns if now_ns is None else now_ns
            track = self._tracks[event.request_id] = _Track(event.request_id, event.time_ns, seen_ns)
            track.prompt_tokens = sum(event.prompt_tokens_per_row) or event.prompt_tokens
        track.end = event
        if not track.tokens:
            track.seen_ns = event.time_ns if now_ns is None else now_ns
            return None
        return self._record(self._tracks.pop(event.request_id))

    def _record(self, track: _Track) -> RequestRecord:
        end, columns = track.end, _joined(track.pieces)
        count, total_s = _gaps(columns)
        count, total_s = count + track.gaps, total_s + track.gaps_s
        return RequestRecord(
            replica=self._replica,
            request_id=track.request_id,
            trace_id=track.trace_id,
            span_id=track.span_id,
            outcome=end.kind if end is not None else "given_up",
            reason=end.reason if end is not None else "",
            started_ns=track.started_ns,
            first_token_ns=_first_token_ns(track),
            ended_ns=max(end.time_ns if end is not None else 0, track.last_token_ns, track.started_ns),
            prompt_tokens=track.prompt_tokens,
            output_tokens=track.tokens,
            sequences=track.sequences,
            drafted_tokens=end.drafted_tokens if end is not None else 0,
            accepted_tokens=end.accepted_tokens if end is not None else 0,
            pace_s=total_s / count if count else None,
            columns=columns,
        )


def _first_token_ns(track: _Track) -> int:
    """When its first token was committed, as frames or a sketch say; 0 where neither does."""
    told = [track.first_token_ns] if track.first_token_ns else []
    if track.first_s is not None:
        told.append(track.started_ns + int(track.first_s * 1e9))
    return min(told, default=0)


def _gaps(columns: Mapping[str, Array]) -> tuple[int, float]:
    """How many pairs of consecutive tokens there are, and the seconds between them in all."""
    if not columns:
        return 0, 0.0
    ended_ns, place = columns["ended_ns"], columns["position"]
    follows = (np.diff(columns["sequence"]) == 0) & (np.diff(place) == 1)
    gaps_ns = np.diff(ended_ns)[follows]
    return int(follows.sum()), float(np.maximum(0, gaps_ns).sum()) / 1e9


def _piece(columns: Mapping[str, Array], rows: Array) -> dict[str, Array]:
    """What is kept of some tokens of one request."""
    piece = {
        name: columns[name][rows].astype(np.int64)
        for name in ("sequence", "position", "started_ns", "ended_ns", "batch_size")
        if name in columns
    }
    piece |= {
        name: columns[name][rows].astype(np.float64) for name in ("logprob", "entropy") if name in columns
    }
    if "kv_tokens" in columns:
        piece["kv_tokens"] = columns["kv_tokens"][rows].max(axis=-1).astype(np.int64)
    if "head_write" in columns:
        heads = columns["head_write"][rows]
        flat = np.where(np.isnan(heads), -np.inf, heads).reshape(len(rows), -1)
        best = flat.argmax(axis=1)
        most = flat[np.arange(len(rows)), best].astype(np.float64)
        piece["head_write_max"] = np.where(np.isfinite(most), most, np.nan)
        piece["head_write_layer"], piece["head_write_head"] = np.divmod(best, heads.shape[-1])
    if "ffn_write" in columns:
        piece["ffn_write_mean"] = _means(columns["ffn_write"][rows].astype(np.float64))
    return piece


def _means(values: Array) -> Array:
    """Mean of each row over what is not NaN; NaN where nothing is."""
    known = ~np.isnan(values)
    count = np.where(known.any(axis=-1), known.sum(axis=-1), np.nan)
    means: Array = np.where(known, values, 0.0).sum(axis=-1) / count
    return means


def _joined(pieces: Iterable[dict[str, Array]]) -> dict[str, Array]:
    """One array per channel, by sequence and position; NaN, or -1, where a token lacks the channel."""
    kept = list(pieces)
    if not kept:
        return {}
    dtypes = {name: values.dtype for piece in kept for name, values in piece.items()}
    whole = {
        name: np.concatenate([_filled(piece, name, dtype) for piece in kept])
        for name, dtype in sorted(dtypes.items())
    }
    order = np.lexsort((whole["position"], whole["sequence"]))
    return {name: values[order] for name, values in whole.items()}


def _filled(piece: dict[str, Array], name: str, dtype: np.dtype[Any]) -> Array:
    values = piece.get(name)
    if values is not None:
        return values
    return np.full(len(piece["position"]), np.nan if dtype.kind == "f" else -1, dtype)
