"""A step of one row at level `pulse`: what is seen on the host's thread is held, and nothing else is done
there.

At this level, at one row, what a step costs is the code that it goes through, which no cache holds any more
when a pass of the model is over. So that of `assemble.Step` is gone through by whoever reads the block.
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
    logits, scores : Tensor, shape (1, V), in host memory; nobody writes into them any more.
    fed : Tensor of int64, shape (1, t), in host memory: the text, the emitted token at its end.
    number, started_ns, ended_ns, cached : as of a `Step`.
    nbytes : what is held, at most about.
    """

    __slots__ = (
        "__weakref__", "_cached", "_committed", "_ended_ns", "_fed", "_logits", "_number", "_request",
        "_scores", "_started_ns", "nbytes",
    )  # fmt: skip

    def __init__(
        self,
        request: Request,
        committed: Committed,
        logits: torch.Tensor,
        scores: torch.Tensor | None,
        fed: torch.Tensor,
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
        self._fed = fed
        self._number = number
        self._started_ns = started_ns
        self._ended_ns = ended_ns
        self._cached = cached
        self.nbytes = nbytes

    def columns(self) -> dict[str, Array]:
        """Every channel that was measured."""
        ids = self._fed.detach().numpy()[:, -1].astype(np.int32)
        scores = None if self._scores is None else self._scores.detach()
        step = Step(
            {}, ids, self._committed, self._request, "pulse", self._number, 1,
            self._started_ns, self._ended_ns, None, self._cached,
            unreduced=Unreduced(self._logits.detach(), ids, full=False, nbytes=self.nbytes, scores=scores),
        )  # fmt: skip
        return step.columns()
