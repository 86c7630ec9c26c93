"""Which row of the batch is which request, sequence and position. Pure: numpy and counting.

A request is one call of `generate`, or one cache object of a plain loop; its rows are its sequences. A row's
position axis leaves padding out: with P real prompt tokens the first generated token has position P. A pass
that verifies drafts commits several tokens of a row at once.

Shape letters: b rows, w width of the padded prompt, n tokens committed by one pass, m measured rows of it.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fulgurite.agent.kv import CacheReader
from fulgurite.wire.frame import RequestRef

Array = np.ndarray[Any, Any]
_AHEAD = 64  # steps


@dataclass(frozen=True, slots=True, eq=False)
class Committed:
    """The tokens of one pass, one entry per measured row.

    Attributes
    ----------
    real : ndarray of int64, measured rows whose token is one (a finished row is only fed padding).
    sequence, position : ndarray of int64, shape (m,)
    row : ndarray of int64, shape (m,), row of the batch that the token was computed in.
    passes : ndarray of int64, shape (m,), generated tokens that were fed before it.
    parent : ndarray of int64, shape (m,), row of the step before that is continued; -1: the sequence's own.
    """

    real: Array
    sequence: Array
    position: Array
    row: Array
    passes: Array
    parent: Array


@dataclass(slots=True)
class Request:
    """The sequences of one request, as far as they have come.

    Attributes
    ----------
    left, prompt : ndarray of int64, shape (b,)
        Padding before the prompt, and its real tokens.
    width : positions of the padded prompt.
    generated : ndarray of int64, shape (b,), tokens committed so far.
    finished : ndarray of bool, shape (b,)
    drafted, accepted : tokens that were proposed by somebody else, and those of them that were taken.
    winners : rows of the returned beams, in order.
    reader : of its cache.
    """

    ref: RequestRef
    left: Array
    prompt: Array
    width: int
    generated: Array = field(init=False)
    finished: Array = field(init=False)
    kv_bytes: int = 0
    drafted: int = 0
    accepted: int = 0
    winners: tuple[int, ...] = ()
    reader: CacheReader = field(default_factory=CacheReader)
    _all_run: bool = True
    _every_row: Array = field(init=False)
    _no_parent: Array = field(init=False)
    _ahead: list[tuple[Committed, Array]] = field(default_factory=list)
    _given: Array = field(init=False)
    _at: int = 0

    def __post_init__(self) -> None:
        self.generated = self._given = np.zeros(len(self.prompt), np.int64)
        self.finished = np.zeros(len(self.prompt), bool)
        self._every_row, self._no_parent = np.arange(len(self.prompt)), np.full(len(self.prompt), -1)

    @property
    def rows(self) -> int:
        """How many sequences."""
        return len(self.prompt)

    @property
    def all_run(self) -> bool:
        """Whether none of them has ended."""
        return self._all_run

    def lengthen(self, width: int) -> None:
        """The prompt, none of whose tokens is padding, goes on for `width` positions."""
        self.prompt = self.prompt + width
        self.width += width
        self._ahead = []

    def commit(self, tokens: Array, stops: frozenset[int]) -> Committed:
        """Take the tokens of one pass.

        Parameters
        ----------
        tokens : ndarray of int, shape (b,) or (b, n)
        stops : token ids that end a sequence.
        """
        if tokens.size == self.rows:
            return self._commit_one(tokens.reshape(-1), stops)
        tokens = tokens.reshape(self.rows, -1)
        ends = np.isin(tokens, np.fromiter(stops, np.int64)) if stops else np.zeros(tokens.shape, bool)
        behind = np.cumsum(ends, -1) - ends > 0  # after the token that ended its row
        real = ~self.finished[:, None] & ~behind
        passes = self.generated[:, None] + np.arange(tokens.shape[1])
        rows = np.repeat(np.arange(self.rows), tokens.shape[1])
        self.generated = self.generated + real.sum(-1)  # what was handed out is not written to
        self.finished |= (ends & real).any(-1)
        self._all_run = not self.finished.any()
        return Committed(
            real=np.flatnonzero(real),
            sequence=rows,
            position=(self.prompt[:, None] + passes).reshape(-1),
            row=rows,
            passes=passes.reshape(-1),
            parent=np.full(rows.size, -1),
        )

    def _commit_one(self, tokens: Array, stops: frozenset[int]) -> Committed:
        """One token of each row: what nearly every pass gives, so it is spared the arithmetic of several."""
        if self._all_run:
            found = self.go_on()
        else:
            rows, running, passes = self._every_row, ~self.finished, self.generated
            self.generated = passes + running
            found = Committed(
                np.flatnonzero(running), rows, self.prompt + passes, rows, passes, self._no_parent
            )
        if stops:
            self.stop_at(tokens.tolist(), stops)
        return found

    def stop_at(self, tokens: list[int], stops: frozenset[int]) -> None:
        """Rows whose token, of the pass that was committed last, is among `stops` have ended."""
        if not stops.isdisjoint(tokens):
            self.finished, self._all_run = self.finished | [token in stops for token in tokens], False

    def go_on(self) -> Committed:
        """Take one token of each row, none of which has ended before, whatever it is."""
        at = self._at
        if at >= len(self._ahead) or self.generated is not self._given:
            self._look_ahead()
            at = 0
        found, self.generated = self._ahead[at]
        self._given, self._at = self.generated, at + 1
        return found

    def _look_ahead(self) -> None:
        """Work the next steps out together: they are the same in every row but for where they begin. Of each,
        what it gives, and what was generated after it."""
        rows, parents = self._every_row, self._no_parent
        passes = self.generated + np.arange(_AHEAD + 1)[:, None]
        positions = self.prompt + passes
        self._ahead = [
            (Committed(rows, rows, positions[at], rows, passes[at], parents), passes[at + 1])
            for at in range(_AHEAD)
        ]

    def cached(self, resident: Array, rows: Array, passes: Array) -> Array:
        """Real tokens among the `resident` last positions of each layer's cache, shape (m, layers).

        Parameters
        ----------
        resident : ndarray of int, shape (layers,), cached positions, padding included; -1 where there is no
            cache.
        rows, passes : ndarray of int, shape (m,), row of the batch, and tokens after its prompt that were
            fed.
        """
        passes = passes[:, None]
        first = self.width + passes - resident[None, :]
        left, last = self.left[rows, None], (self.left + self.prompt)[rows, None]
        real = np.maximum(last - np.maximum(first, left), 0) + np.minimum(passes, resident[None, :])
        return np.where(resident[None, :] < 0, -1, real)


def new_request(ref: RequestRef, *, rows: int, width: int, mask: Array | None) -> Request:
    """A request of `rows` prompts padded to `width`; `mask` (b, w) is 1 where a prompt is real."""
    if mask is None:
        return Request(ref, np.zeros(rows, np.int64), np.full(rows, width, np.int64), width)
    real = mask != 0
    prompt = real.sum(-1)
    left = np.where(prompt > 0, real.argmax(-1), mask.shape[-1])
    return Request(ref, left.astype(np.int64), prompt.astype(np.int64), mask.shape[-1])


def new_ref(trace_id: str = "", span_id: str = "", request_id: str = "") -> RequestRef:
    """A request reference with an id of its own where none is given."""
    return RequestRef(request_id or uuid.uuid4().hex, trace_id, span_id)
