"""One streamed answer: its chunks become frames, and its fate an event.

Called between two chunks, on the host's thread; the caller shields it. Shape letters: n pieces of a chunk, K
the alternatives of `fulgurite.wire.channels`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from fulgurite.agent.blackbox import pieces
from fulgurite.agent.blackbox.pieces import Piece, Usage
from fulgurite.wire.channels import LEVELS, TOP_K
from fulgurite.wire.frame import FrameBlock, RequestEvent, RequestRef

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class Wish:
    """What the user asks for.

    Attributes
    ----------
    choices : sequences.
    alternatives : most probable tokens at every place. A server may add the token itself to them.
    """

    choices: int = 1
    alternatives: int = 0


@dataclass(frozen=True, slots=True)
class Taker:
    """Where an answer goes.

    Attributes
    ----------
    step : gives the number of the next chunk.
    has_texts : token texts are switched on.
    """

    export: Callable[[FrameBlock], None]
    event: Callable[[RequestEvent], None]
    step: Callable[[], int]
    has_texts: bool


class Answer:
    """From the request until it is over.

    Parameters
    ----------
    ref : the request until the server names it.
    wish : what was asked for.
    asked_ns : when, UNIX time.
    """

    def __init__(self, ref: RequestRef, taker: Taker, wish: Wish, *, asked_ns: int) -> None:
        self.ref = ref
        self._taker = taker
        self._choices = max(1, wish.choices)
        self._alternatives = min(max(0, wish.alternatives), TOP_K)
        self._asked_ns = self._last_ns = asked_ns
        self._has_started = self._is_over = False
        self._count: dict[int, int] = {}
        self._ends: dict[int, str] = {}
        self._usage = Usage()

    def heard(self, chunk: Any, now_ns: int) -> None:
        """A chunk has come."""
        if self._is_over:
            return
        self._start(str(getattr(chunk, "id", "") or ""))
        self._usage = pieces.usage(chunk) or self._usage
        found = pieces.pieces(chunk)
        if found:
            self._taker.export(self._block(found, now_ns))
            self._last_ns = now_ns
        self._ends.update(pieces.ends(chunk))

    def over(self, now_ns: int, *, failure: str = "") -> None:
        """No more will come: `failure` says why, where that was not the server's end of it."""
        if self._is_over:
            return
        self._start("")
        self._is_over = True
        is_whole = not failure or len(self._ends) >= self._choices
        reason = self._ends.get(0, "") if is_whole else failure
        self._say("finished" if is_whole else "aborted", now_ns, reason)

    def _start(self, request_id: str) -> None:
        if self._has_started:
            return
        self._has_started = True
        if request_id:
            self.ref = replace(self.ref, request_id=request_id)
        self._say("started", self._asked_ns, "")

    def _say(self, kind: str, time_ns: int, reason: str) -> None:
        self._taker.event(
            RequestEvent(
                request_id=self.ref.request_id,
                kind=kind,
                time_ns=time_ns,
                prompt_tokens=self._usage.prompt_tokens,
                generated_tokens=self._usage.generated_tokens,
                sequences=self._choices,
                reason=reason,
            )
        )

    def _block(self, found: Sequence[Piece], now_ns: int) -> FrameBlock:
        sequence = np.array([piece.sequence for piece in found], np.uint16)
        position = np.array([self._next(piece.sequence) for piece in found], np.int32)
        rows = len(found)
        columns: dict[str, Array] = {
            "request_index": np.zeros(rows, np.uint16),
            "sequence": sequence,
            "position": position,
            "token_id": np.array([piece.token_id for piece in found], np.int32),
            "phase": (position > 0).astype(np.uint8),
            "level": np.full(rows, LEVELS.index("pulse"), np.uint8),
            "step": np.full(rows, self._taker.step(), np.int64),
            "parent_row": np.full(rows, -1, np.int16),
            "started_ns": np.full(rows, self._last_ns, np.int64),
            "ended_ns": np.full(rows, now_ns, np.int64),
            **uncertainty(found, self._alternatives),
        }
        texts = tuple(piece.text for piece in found) if self._taker.has_texts else None
        return FrameBlock((self.ref,), columns, texts)

    def _next(self, sequence: int) -> int:
        self._count[sequence] = self._count.get(sequence, -1) + 1
        return self._count[sequence]


def uncertainty(found: Sequence[Piece], most: int) -> dict[str, Array]:
    """What is said of the `most` alternatives; a channel is absent where one of the pieces lacks it."""
    columns: dict[str, Array] = {}
    if all(math.isfinite(piece.logprob) for piece in found):
        columns["logprob"] = np.array([piece.logprob for piece in found], np.float32)
    if not most or not all(piece.alternatives for piece in found):
        return columns
    ids = np.full((len(found), TOP_K), -1, np.int32)
    logprobs = np.full((len(found), TOP_K), np.nan, np.float32)
    for row, piece in enumerate(found):
        for i, one in enumerate(piece.alternatives[:most]):
            ids[row, i], logprobs[row, i] = one.token_id, one.logprob
    columns.update(top_ids=ids, top_logprobs=logprobs)
    if most > 1 and all(len(piece.alternatives) > 1 for piece in found):
        columns["margin"] = logprobs[:, 0] - logprobs[:, 1]
    if "logprob" in columns:
        columns["rank"] = np.array([_rank(piece, most) for piece in found], np.int32)
    return columns


def _rank(piece: Piece, most: int) -> int:
    """Tokens more probable than this one; -1 where as many as were asked for are, and so perhaps others."""
    above = sum(one.logprob > piece.logprob for one in piece.alternatives[:most])
    return above if above < min(most, len(piece.alternatives)) else -1
