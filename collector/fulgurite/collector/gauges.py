"""What the sequences of a replica hold now: of each from one source, frames or a sketch. Pure.

A sequence whose tokens come as frames is known by itself; those whose tokens are folded are one sum, in the
newest sketch. When a viewer comes, or the last one leaves, sequences change over in the middle, and for a
moment both tell of the same ones. By the agent's clock, in which both are:

- a sequence whose newest frame is older than the sketch went on in the sketch, and its frame says nothing of
  now; unless the history rule keeps its request whole, whose tokens are never folded;
- a sequence whose frames begin in its middle was folded until then. A sketch that has it from before is worth
  what it says less that sequence, at what it held where its frames began; and nothing, once all of it are so.

What is left of a sketch between the first and the last of its sequences that change over, one step of the
model, is therefore too low by what these grew by since the sketch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final
from zlib import crc32

import numpy as np

from fulgurite.wire.frame import Array, FrameBlock, RequestRef
from fulgurite.wire.sketch import Sketch, joined

SECOND_NS: Final = 1_000_000_000
SILENT_S: Final = 5.0
"""A sequence without a token for so long is not under way; agents hold it so too, in what they fold."""
SKETCH_HOLDS_S: Final = 2.0
"""What a sketch said holds until the next one, or so long."""
MOST: Final = 4096
"""Sequences that left a sketch and are remembered."""

_Name = tuple[str, int]
_Figures = tuple[int, int, int, int, int]
"""Of one token: position, when it ended, phase, and what its sequence held."""


@dataclass(frozen=True, slots=True)
class Held:
    """What is held by sequences under way.

    Attributes
    ----------
    sequences : int
    kv_tokens : int
        Cached positions.
    kv_bytes : int
        Of their caches.
    """

    sequences: int = 0
    kv_tokens: int = 0
    kv_bytes: int = 0

    def __add__(self, other: Held) -> Held:
        return Held(
            self.sequences + other.sequences,
            self.kv_tokens + other.kv_tokens,
            self.kv_bytes + other.kv_bytes,
        )

    def without(self, other: Held) -> Held:
        """What is left of it, which is nothing where it has no sequence left."""
        sequences = self.sequences - other.sequences
        if sequences <= 0:
            return Held()
        return Held(
            sequences,
            max(0, self.kv_tokens - other.kv_tokens),
            max(0, self.kv_bytes - other.kv_bytes),
        )


@dataclass(slots=True)
class _Sequence:
    """A sequence whose frames come, or came.

    Attributes
    ----------
    began_ns, at_first : of the first frame since its tokens come without a gap: when it ended, what it held.
    """

    request: RequestRef
    position: int
    ended_ns: int
    seen_ns: int
    kv_tokens: int
    kv_bytes: int
    began_ns: int
    at_first: Held


class Gauges:
    """What is held now.

    Parameters
    ----------
    is_kept_whole : callable
        Whether the history rule keeps the frames of a request whole, whoever watches.
    """

    def __init__(self, is_kept_whole: Callable[[RequestRef], bool]) -> None:
        self._is_kept_whole = is_kept_whole
        self._sequences: dict[_Name, _Sequence] = {}
        self._left: dict[_Name, _Sequence] = {}  # those that were folded before their frames began
        self._sketch = Held()
        self._sketch_end_ns = self._sketch_came_ns = 0

    def see(self, blocks: Iterable[FrameBlock], now_ns: int) -> None:
        """Take in frames that were ingested at `now_ns`: all that came since the last call."""
        # One, as all have the same columns.
        for block in joined(_narrowed(block) for block in blocks if len(block)):
            columns = block.columns
            key = columns["request_index"].astype(np.int64) << 16 | columns["sequence"]
            order = np.lexsort((columns["position"], key))
            key = key[order]
            starts = np.flatnonzero(key[1:] != key[:-1]) + 1
            at, ends = np.concatenate(([0], starts)), np.concatenate((starts, [len(key)]))
            rows = zip(
                key[at].tolist(),
                (ends - at).tolist(),
                _figures(columns, order[at]),
                _figures(columns, order[ends - 1]),
                strict=True,
            )
            for one, tokens, first, last in rows:
                self._see((block.requests[one >> 16], one & 0xFFFF), tokens, first, last, now_ns)

    def _see(
        self, whose: tuple[RequestRef, int], tokens: int, first: _Figures, last: _Figures, now_ns: int
    ) -> None:
        """`tokens` of one sequence, of which these are the first and the last."""
        request, number = whose
        name = (request.request_id, number)
        position, ended_ns, _, kv_tokens, kv_bytes = last
        known = self._sequences.get(name)
        if known is not None and first[0] == known.position + 1 and position == known.position + tokens:
            known.position, known.ended_ns, known.seen_ns = position, ended_ns, now_ns
            known.kv_tokens, known.kv_bytes = kv_tokens, kv_bytes
            return
        _, began_ns, phase, *at_first = first
        one = _Sequence(
            request, position, ended_ns, now_ns, kv_tokens, kv_bytes, began_ns, Held(1, *at_first)
        )
        self._sequences[name] = one
        self._left.pop(name, None)
        if phase != 0 and not self._is_kept_whole(request):
            self._left[name] = one
            if len(self._left) > MOST:
                del self._left[next(iter(self._left))]

    def take(self, sketch: Sketch, now_ns: int) -> None:
        """Take in the sketch of a second, which came at `now_ns`."""
        self._sketch = Held(sketch.sequences, max(0, sketch.kv_tokens), max(0, sketch.kv_bytes))
        self._sketch_end_ns, self._sketch_came_ns = sketch.end_ns, now_ns
        # Agents let go of a sequence when its request ends, and in a while of one that is folded no more.
        self._left = {
            name: one
            for name, one in self._left.items()
            if self._sequences.get(name) is one and self._is_in_sketch(one)
        }

    def ended(self, request_id: str) -> None:
        """A request is over."""
        for name in [name for name in self._sequences if name[0] == request_id]:
            one = self._sequences.pop(name)
            if name in self._left and self._is_superseded(one):
                del self._left[name]

    def now(self, now_ns: int) -> Held:
        """What all sequences under way hold at `now_ns`."""
        self._forget(now_ns)
        told = [one for one in self._sequences.values() if not self._is_superseded(one)]
        held = Held(len(told), sum(one.kv_tokens for one in told), sum(one.kv_bytes for one in told))
        return held + self._folded(now_ns)

    def is_folding(self, now_ns: int) -> bool:
        """Whether there are sequences under way that only a sketch tells of."""
        return self._folded(now_ns).sequences > 0

    def _folded(self, now_ns: int) -> Held:
        """What is left of the sketch."""
        if not 0 <= now_ns - self._sketch_came_ns < SKETCH_HOLDS_S * SECOND_NS:
            return Held()
        left = Held()
        for one in self._left.values():
            if self._is_in_sketch(one) and not self._is_superseded(one):
                left += one.at_first
        return self._sketch.without(left)

    def _forget(self, now_ns: int) -> None:
        limit_ns = now_ns - int(SILENT_S * SECOND_NS)
        for name in [name for name, one in self._sequences.items() if one.seen_ns < limit_ns]:
            del self._sequences[name]

    def _is_superseded(self, one: _Sequence) -> bool:
        """Whether the sketch knows more of it than its frames do."""
        if one.ended_ns >= self._sketch_end_ns or self._is_kept_whole(one.request):
            return False
        # By arrival as well: a clock of the agent that is set back must not hide what comes from then on.
        return one.seen_ns <= self._sketch_came_ns + int(SKETCH_HOLDS_S * SECOND_NS)

    def _is_in_sketch(self, one: _Sequence) -> bool:
        """Whether a sequence that was folded until its frames began is in the sketch still."""
        return self._sketch_end_ns < one.began_ns + int(SILENT_S * SECOND_NS)


def _narrowed(block: FrameBlock) -> FrameBlock:
    """The columns that are read here, in the same shapes whatever was captured; what was not is 0."""
    columns = block.columns
    zeros = np.zeros(len(block), np.int64)
    kv_tokens = columns["kv_tokens"].max(axis=-1, initial=0) if "kv_tokens" in columns else zeros
    kv_bytes = np.maximum(columns["kv_bytes"], 0) if "kv_bytes" in columns else zeros
    names = ("request_index", "sequence", "position", "ended_ns", "phase")
    return FrameBlock(
        block.requests,
        {name: columns[name] for name in names} | {"kv_tokens": kv_tokens, "kv_bytes": kv_bytes},
    )


def _figures(columns: Mapping[str, Array], rows: Array) -> Iterator[_Figures]:
    names = ("position", "ended_ns", "phase", "kv_tokens", "kv_bytes")
    return zip(*(columns[name][rows].tolist() for name in names), strict=True)


def is_kept_whole(request: RequestRef, one_in: int) -> bool:
    """Whether agents send a request whole where one in `one_in` is asked for, and nobody watches.

    The same choice as theirs, which is part of the protocol: a hash of the trace id, or of the request id
    where there is no trace.
    """
    name = request.trace_id or request.request_id
    return one_in > 0 and crc32(name.encode("utf-8", "replace")) % one_in == 0
