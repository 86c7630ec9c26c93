"""From the results of one step of vLLM to the columns of its frames: made where they are read, off the host's
thread.

Needs nothing but numpy and what was measured. Shape letters: n rows; the others are those of
`fulgurite.wire.channels`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fulgurite.agent import lens, neurons, reduce, routing
from fulgurite.agent.assemble import _uncertainty
from fulgurite.agent.awaited import Awaited
from fulgurite.agent.contribution import CHANNELS as CONTRIBUTIONS
from fulgurite.agent.deep import by_layer
from fulgurite.agent.unreduced import Unreduced
from fulgurite.wire.channels import LEVELS, Level

Array = np.ndarray[Any, Any]
_OF_WEIGHTS = ("head_write", "head_contribution", "other_contribution", "residue", *neurons.CHANNELS)
_OWN_BYTES = 256  # of a row: the columns of one number each


@dataclass(slots=True, eq=False)
class Step:
    """One measured step: the rows of many requests.

    Attributes
    ----------
    host : results by name, as `reduce` gives them.
    request, sequence, token, position, prompt : ndarray of int, shape (n,)
        `request` is the index into the block's requests; `prompt` how many tokens its prompt has.
    windows : ndarray of int, shape (L,), what each layer's cache holds at most; 0: all; -1: it has none;
        empty where that is not known.
    kv_bytes : ndarray of int64, shape (n,), -1 where it is not known.
    requests : how many were in the batch.
    number, started_ns, ended_ns : of the step; UNIX time.
    experts : finished columns of routing.
    adapted : ndarray of bool, shape (n,), rows whose output projections have an adapter on top: what rests on
        the base's weights does not hold for them.
    unreduced : rows whose results are not among `host` yet.
    awaited : what rests on what other processes hold.
    looking : the heads of each layer, of models whose attention is looked at.
    """

    host: Mapping[str, Array]
    layout: reduce.Plan | None
    request: Array
    sequence: Array
    token: Array
    position: Array
    prompt: Array
    windows: Array
    kv_bytes: Array
    level: Level
    requests: int
    number: int
    started_ns: int
    ended_ns: int
    experts: Mapping[str, Array] = field(default_factory=dict)
    adapted: Array | None = None
    unreduced: Unreduced | None = None
    awaited: Awaited | None = None
    looking: tuple[routing.HeadsOf, ...] = ()

    @property
    def nbytes(self) -> int:
        """What the step holds, and what its columns will hold, whichever is more; at most about."""
        held = (_OWN_BYTES + 4 * self.windows.size) * self.token.size
        held += sum(2 * found.nbytes for found in (*self.host.values(), *self.experts.values()))
        held += 0 if self.awaited is None else self.awaited.nbytes
        return held if self.unreduced is None else held + self.unreduced.nbytes

    def columns(self) -> dict[str, Array]:
        """Every channel that was measured."""
        unreduced = self.unreduced
        if unreduced is not None:  # two threads that read at the same time both put the same there
            self.host = {**self.host, **unreduced.reduced(self.layout)}
            self.unreduced = None
        rows = self.token.size
        columns: dict[str, Array] = {
            "request_index": self.request.astype(np.uint16),
            "sequence": self.sequence.astype(np.uint16),
            "position": self.position.astype(np.int32),
            "token_id": self.token.astype(np.int32),
            "phase": (self.position > self.prompt).astype(np.uint8),
            "level": np.full(rows, LEVELS.index(self.level), np.uint8),
            "step": np.full(rows, self.number, np.int64),
            "parent_row": np.full(rows, -1, np.int16),
            "started_ns": np.full(rows, self.started_ns, np.int64),
            "ended_ns": np.full(rows, self.ended_ns, np.int64),
            "batch_size": np.full(rows, self.requests, np.uint16),
        }
        if self.windows.size:
            columns["kv_tokens"] = self._kv_tokens()
        if (self.kv_bytes >= 0).all():
            columns["kv_bytes"] = self.kv_bytes
        if "logprob" in self.host:
            columns["logprob"] = self.host["logprob"].reshape(rows).astype(np.float32)
        if "plogp" in self.host:
            columns.update(_uncertainty(self.host))
        if "norms" in self.host and self.layout is not None:
            columns.update(reduce.activity(self.host, self.layout))
        columns.update(
            {n: self.host[n].astype(np.float32, copy=False) for n in CONTRIBUTIONS if n in self.host}
        )
        if "lens_rank" in self.host:
            columns.update(lens.columns(self.host))
        if self.layout is not None and (largest := by_layer(self.host, "neurons")):
            columns.update(neurons.columns(largest, self.windows.size))
        if self.layout is not None and (looked := by_layer(self.host, "attention")):
            columns.update(routing.columns(looked, self.position, self.looking, self.layout.heads))
        if self.awaited is not None:
            columns.update(self.awaited.columns())
        columns.update(self.experts)
        if self.adapted is not None and self.adapted.any():
            for name in _OF_WEIGHTS:
                if name in columns:
                    none = (
                        np.float32(np.nan)
                        if columns[name].dtype.kind == "f"
                        else columns[name].dtype.type(-1)
                    )
                    columns[name] = np.where(_like(self.adapted, columns[name]), none, columns[name])
        return columns

    def _kv_tokens(self) -> Array:
        """Cached positions after the pass: what comes before the token that follows from it."""
        held = np.where(
            self.windows > 0, np.minimum(self.position[:, None], self.windows), self.position[:, None]
        )
        return np.where(self.windows < 0, -1, held).astype(np.int32)


def _like(rows: Array, column: Array) -> Array:
    """One value per row, in the shape of the column's dimensions."""
    return rows.reshape(-1, *(1,) * (column.ndim - 1))
