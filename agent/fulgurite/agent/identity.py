"""Which row of the batch is which request, sequence and position. Pure: numpy and counting.

A request is one call of `generate`, or one cache object of a plain loop; its rows are its sequences. A row's
position axis leaves padding out: with P real prompt tokens the first generated token has position P.

Shape letters: b rows, w width of the padded prompt.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fulgurite.wire.frame import RequestRef

Array = np.ndarray[Any, Any]


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
    """

    ref: RequestRef
    left: Array
    prompt: Array
    width: int
    generated: Array = field(init=False)
    finished: Array = field(init=False)
    kv_bytes: int = 0

    def __post_init__(self) -> None:
        self.generated = np.zeros(len(self.prompt), np.int64)
        self.finished = np.zeros(len(self.prompt), bool)

    @property
    def rows(self) -> int:
        """How many sequences."""
        return len(self.prompt)

    def commit(
        self, tokens: Array, stops: frozenset[int], *, done: Array | None = None
    ) -> tuple[Array, Array]:
        """Take the tokens of one step.

        Parameters
        ----------
        tokens : ndarray of int, shape (b,)
        stops : token ids that end a sequence.
        done : rows that ended for any other reason with this token, shape (b,)

        Returns
        -------
        tuple of ndarray
            The rows whose token is real (a finished row is only fed padding), and their tokens' positions.
        """
        real = np.flatnonzero(~self.finished)
        positions = self.prompt[real] + self.generated[real]
        self.generated[real] += 1
        if stops:
            self.finished[real] |= np.isin(tokens[real], np.fromiter(stops, np.int64))
        if done is not None:
            self.finished |= done
        return real, positions

    def cached(self, resident: Array, passes: int) -> Array:
        """Real tokens among the `resident` last positions of each layer's cache, shape (b, layers).

        Parameters
        ----------
        resident : ndarray of int, shape (layers,), cached positions, padding included; -1 where there is no
            cache.
        passes : positions after the prompt that were fed so far.
        """
        total = self.width + passes
        first = (total - resident)[None, :]
        last = (self.left + self.prompt)[:, None]
        real = (
            np.maximum(last - np.maximum(first, self.left[:, None]), 0)
            + np.minimum(passes, resident)[None, :]
        )
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
