"""From the results of one step to the columns of its frames: what is left to do when a step is measured.

Needs nothing but numpy and what was measured, so whoever reads a block does it, and not the host's thread.

Shape letters: n rows; the others are those of `fulgurite.wire.channels`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fulgurite.agent import reduce
from fulgurite.agent.awaited import Awaited
from fulgurite.agent.contribution import CHANNELS as CONTRIBUTIONS
from fulgurite.agent.deep import DeepRows, by_layer
from fulgurite.agent.identity import Committed, Request
from fulgurite.agent.kv import CacheReading
from fulgurite.agent.unreduced import Unreduced
from fulgurite.wire.channels import LEVELS, TOP_K, Level
from fulgurite.wire.frame import RequestRef

Array = np.ndarray[Any, Any]
_OWN_BYTES = 256  # of a row: the columns of one number each


@dataclass(slots=True, eq=False)
class Step:
    """One measured step.

    Attributes
    ----------
    host : results by name, as `reduce` gives them.
    ids : ndarray of int32, shape (n,), the emitted tokens.
    number, batch : of the step and of its pass.
    started_ns, ended_ns : UNIX time.
    layout : of the results, None where the layers were not measured.
    cached : what the cache held, None where it is not known.
    deep : what level `deep` showed, None where it did not look.
    unreduced : rows whose results are not among `host` yet.
    awaited : what rests on what other processes hold.
    """

    host: Mapping[str, Array]
    ids: Array
    committed: Committed
    request: Request
    level: Level
    number: int
    batch: int
    started_ns: int
    ended_ns: int
    layout: reduce.Plan | None
    cached: CacheReading | None
    deep: DeepRows | None = None
    unreduced: Unreduced | None = None
    awaited: Awaited | None = None

    @property
    def nbytes(self) -> int:
        """What the step holds, and what its columns will hold, whichever is more; at most about."""
        held = _OWN_BYTES * self.ids.size
        for found in self.host.values():
            held += 2 * found.nbytes
        if self.deep is not None:
            held += self.deep.nbytes
        if self.unreduced is not None:
            held += self.unreduced.nbytes
        if self.awaited is not None:
            held += self.awaited.nbytes
        return held if self.cached is None else held + 4 * len(self.cached.resident) * self.ids.size

    def columns(self) -> dict[str, Array]:
        """Every channel that was measured, for the rows whose token is one."""
        unreduced = self.unreduced
        if unreduced is not None:  # two threads that read at the same time both put the same there
            self.layout = unreduced.layout or self.layout
            found = unreduced.reduced(self.layout)
            self.host = {**self.host, **found}
            if self.deep is not None:
                self.deep = self.deep.with_largest(by_layer(found, "neurons"))
            self.unreduced = None
        columns = self._columns()
        real = self.committed.real
        if real.size == self.ids.size:
            return columns
        return {name: column[real] for name, column in columns.items()}

    def _columns(self) -> dict[str, Array]:
        rows, host, committed = self.ids.size, self.host, self.committed
        columns: dict[str, Array] = {
            "request_index": np.zeros(rows, np.uint16),
            "sequence": committed.sequence.astype(np.uint16),
            "position": committed.position.astype(np.int32),
            "token_id": self.ids,
            "phase": (committed.passes > 0).astype(np.uint8),
            "level": np.full(rows, LEVELS.index(self.level), np.uint8),
            "step": np.full(rows, self.number, np.int64),
            "parent_row": committed.parent.astype(np.int16),
            "started_ns": np.full(rows, self.started_ns, np.int64),
            "ended_ns": np.full(rows, self.ended_ns, np.int64),
            "batch_size": np.full(rows, self.batch, np.uint16),
            "logprob": host["logprob"].reshape(rows).astype(np.float32),
        }
        if "logprob_sampled" in host:
            columns["logprob_sampled"] = host["logprob_sampled"]
        if "plogp" in host:
            columns.update(_uncertainty(host))
        if "norms" in host and self.layout is not None:
            columns.update(reduce.activity(host, self.layout))
        for name in CONTRIBUTIONS:
            if name in host:
                columns[name] = host[name].astype(np.float32, copy=False)
        if "expert_ids" in host:
            columns["expert_ids"] = host["expert_ids"].transpose(1, 0, 2).astype(np.int16)
            columns["expert_weights"] = host["expert_weights"].transpose(1, 0, 2).astype(np.float32)
        if self.deep is not None:
            columns.update(self.deep.columns())
        if self.awaited is not None:
            columns.update(self.awaited.columns())
        columns.update(self._memory())
        return columns

    def _memory(self) -> dict[str, Array]:
        if self.cached is None:
            return {}
        committed, resident = self.committed, np.array(self.cached.resident, np.int64)
        cached = self.request.cached(resident, committed.row, committed.passes)
        columns: dict[str, Array] = {"kv_tokens": cached.astype(np.int32)}
        if self.cached.row_bytes is not None:
            columns["kv_bytes"] = np.full(self.ids.size, self.cached.row_bytes, np.int64)
        return columns


@dataclass(slots=True, eq=False)
class PackedStep(Step):
    """One measured step whose rows are of several requests.

    Attributes
    ----------
    refs : of these requests.
    index : ndarray of uint16, shape (n,), into `refs`.
    kv_tokens : ndarray of int32, shape (n, layers); kv_bytes : ndarray of int64, shape (n,).
    requests : how many were in the batch, those without a token included.
    """

    refs: tuple[RequestRef, ...] = ()
    index: Array = field(default_factory=lambda: np.zeros(0, np.uint16))
    kv_tokens: Array = field(default_factory=lambda: np.zeros((0, 0), np.int32))
    kv_bytes: Array = field(default_factory=lambda: np.zeros(0, np.int64))
    requests: int = 0

    def _columns(self) -> dict[str, Array]:
        columns = Step._columns(self)
        columns["request_index"] = self.index
        columns["batch_size"] = np.full(self.ids.size, self.requests, np.uint16)
        return columns

    def _memory(self) -> dict[str, Array]:
        return {"kv_tokens": self.kv_tokens, "kv_bytes": self.kv_bytes}


def _uncertainty(host: Mapping[str, Array]) -> dict[str, Array]:
    top_ids = reduce.top_ids(host).astype(np.int32)
    top = host["top_logprobs"].reshape(top_ids.shape).astype(np.float32)
    rank = host.get("rank")
    if rank is None:  # the token is among the most probable: none of the others comes before it
        rank = np.count_nonzero(top > host["logprob"].reshape(-1, 1), -1)
    short = TOP_K - top.shape[-1]
    if short > 0:
        top_ids = np.pad(top_ids, ((0, 0), (0, short)), constant_values=-1)
        top = np.pad(top, ((0, 0), (0, short)), constant_values=np.nan)
    return {
        "entropy": -host["plogp"].astype(np.float32),
        "margin": top[:, 0] - top[:, 1],
        "rank": rank.reshape(-1).astype(np.int32),
        "top_ids": top_ids,
        "top_logprobs": top,
    }
