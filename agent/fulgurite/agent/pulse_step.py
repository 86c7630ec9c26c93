"""A step at level `pulse` in which every row goes on: what is seen on the host's thread is held, and nothing
else is done there.

At this level what a step costs is the code that it goes through, which no cache holds any more when a pass of
the model is over. So that of `assemble.Step` is gone through by whoever reads the block.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from fulgurite.agent.assemble import Step
from fulgurite.agent.identity import Committed, Request
from fulgurite.agent.kv import CacheReading
from fulgurite.agent.unreduced import Unreduced

Array = np.ndarray[Any, Any]


class PulseStep:
    """One measured step.

    Parameters
    ----------
    logits, scores : Tensor, shape (n, V), in host memory; nobody writes into them any more.
    tokens : the emitted ones, ndarray of int32, shape (n,); or, of one row, the text with the token at its
        end, Tensor of int64, shape (1, t), in host memory.
    number, started_ns, ended_ns, cached : as of a `Step`.
    nbytes : what is held, at most about.
    """

    __slots__ = (
        "__weakref__", "_cached", "_committed", "_ended_ns", "_logits", "_number", "_request", "_scores",
        "_started_ns", "_tokens", "nbytes",
    )  # fmt: skip

    def __init__(
        self,
        request: Request,
        committed: Committed,
        logits: torch.Tensor,
        scores: torch.Tensor | None,
        tokens: torch.Tensor | Array,
        number: int,
        started_ns: int,
        ended_ns: int,
        cached: CacheReading | None,
        nbytes: int,
    ) -> None:
        self._request = request
        self._committed = committed
        self._logits = logits
        self._scores = scores
        self._tokens = tokens
        self._number = number
        self._started_ns = started_ns
        self._ended_ns = ended_ns
        self._cached = cached
        self.nbytes = nbytes

    def columns(self) -> dict[str, Array]:
        """Every channel that was measured."""
        ids = self._tokens
        if not isinstance(ids, np.ndarray):
            ids = ids.detach().numpy()[:, -1].astype(np.int32)
        scores = None if self._scores is None else self._scores.detach()
        step = Step(
            {}, ids, self._committed, self._request, "pulse", self._number, len(ids),
            self._started_ns, self._ended_ns, None, self._cached,
            unreduced=Unreduced(self._logits.detach(), ids, full=False, nbytes=self.nbytes, scores=scores),
        )  # fmt: skip
        return step.columns()
