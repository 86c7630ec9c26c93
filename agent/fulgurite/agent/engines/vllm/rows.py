"""Which row of a step is which request, sequence and position. Pure: numpy and counting.

A step of vLLM computes a flat run of tokens of many requests. Logits are taken of one row of each request, or
of one more than it has drafts; a row at position p gives the token at p + 1. What is noted here is noted
before the forward pass, since the engine's own tables move on while the step runs.

Shape letters: q requests of the step, n rows whose logits are taken.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fulgurite.wire.frame import RequestRef

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of one request of the engine, from its first step to its last.

    Attributes
    ----------
    ref : as frames name it: the id of the HTTP response and its trace.
    sequence : which choice of the response it is.
    prompt : its tokens.
    """

    ref: RequestRef
    sequence: int
    prompt: int
    stops: Stops


@dataclass(frozen=True, slots=True)
class Stops:
    """What ends a request: where several tokens come at once, those behind the end do not count.

    Attributes
    ----------
    tokens : ids that end it.
    most : tokens that it may have, generated ones and all.
    most_in_all : likewise, with its prompt.
    """

    tokens: frozenset[int] = frozenset()
    most: int = 1 << 62
    most_in_all: int = 1 << 62

    def kept(self, tokens: Sequence[int], before: int, prompt: int) -> int:
        """How many of `tokens` count, that follow `before` generated ones."""
        for i, token in enumerate(tokens):
            generated = before + i + 1
            if token in self.tokens or generated >= self.most or prompt + generated >= self.most_in_all:
                return i + 1
        return len(tokens)


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """The rows of one step.

    Attributes
    ----------
    requests : ids of the engine, in order of the batch, length q.
    first : ndarray of int64, shape (q,), each one's first row among those whose logits are taken.
    count : ndarray of int64, shape (q,), how many it has; 0 where its tokens are thrown away, since its
        prompt is not all there yet.
    position : ndarray of int64, shape (n,), of the token that follows from the row.
    adapted : ndarray of bool, shape (q,), whether an adapter is on top of the weights.
    is_plain : each request has one row, and its token counts: what most steps are.
    """

    requests: tuple[str, ...]
    first: Array
    count: Array
    position: Array
    adapted: Array
    is_plain: bool = False


def rows_of(
    requests: Sequence[str],
    computed: Array,
    scheduled: Array,
    drafts: Array,
    discarded: Array,
    adapted: Array | None = None,
) -> Rows:
    """The rows of a step that is about to run.

    Parameters
    ----------
    computed, scheduled, drafts : ndarray of int, shape (q,)
        Tokens computed before the step, tokens of the step, and how many of these are drafts.
    discarded, adapted : ndarray of bool, shape (q,)
    """
    if adapted is None:
        adapted = np.zeros(len(requests), bool)
    if not (drafts.any() or discarded.any()):
        first, count = np.arange(len(requests)), np.ones(len(requests), np.int64)
        position = computed.astype(np.int64) + scheduled
        return Rows(tuple(requests), first, count, position, adapted, is_plain=True)
    several = drafts.astype(np.int64) + 1
    first = np.cumsum(several) - several
    within = np.arange(int(several.sum())) - np.repeat(first, several)
    last = computed.astype(np.int64) + scheduled  # position that follows the last token of the step
    position = np.repeat(last - drafts, several) + within
    return Rows(tuple(requests), first, np.where(discarded, 0, several), position, adapted)


@dataclass(frozen=True, slots=True, eq=False)
class Sampled:
    """The tokens of a step.

    Attributes
    ----------
    row : ndarray of int64, shape (m,), which row each followed from.
    token, position : ndarray of int64, shape (m,)
    owner : ndarray of int64, shape (m,), index into `requests`.
    requests : ids of the engine.
    drafted, accepted : drafts of the step, and those of them that were taken.
    """

    row: Array
    token: Array
    position: Array
    owner: Array
    requests: tuple[str, ...]
    drafted: Mapping[str, int]
    accepted: Mapping[str, int]


def sampled(rows: Rows, tokens: Sequence[Sequence[int]], known: Mapping[str, Known]) -> Sampled:
    """What the engine sampled, row by row: without what it throws away.

    Parameters
    ----------
    tokens : of each request of the batch, in its order; empty where nothing is taken.
    """
    ours = tokens[: len(rows.requests)]
    is_plain = rows.is_plain and [len(one) for one in ours] == [1] * len(rows.requests)
    if is_plain and known.keys() >= set(rows.requests):
        token = np.array([one[0] for one in ours], np.int64)
        return Sampled(rows.first, token, rows.position, rows.first, rows.requests, {}, {})
    taken: list[tuple[int, int, int]] = []
    drafted: dict[str, int] = {}
    accepted: dict[str, int] = {}
    for i, (name, first, count) in enumerate(
        zip(rows.requests, rows.first.tolist(), rows.count.tolist(), strict=True)
    ):
        of = known.get(name)
        found = tokens[i][:count] if of is not None else ()
        if of is None or not found:
            continue
        if count > 1:
            before = int(rows.position[first]) - of.prompt
            drafted[name], accepted[name] = count - 1, len(found) - 1
            found = found[: of.stops.kept(found, before, of.prompt)]
        taken += [(first + j, token, i) for j, token in enumerate(found)]
    row, token, owner = np.array(taken, np.int64).reshape(-1, 3).T
    return Sampled(row, token, rows.position[row], owner, rows.requests, drafted, accepted)
