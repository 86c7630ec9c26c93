"""A step at level `pulse` in which every row goes on: what is seen on the host's thread is held, and nothing
else is done there.

At this level what a step costs is the code that it goes through, which no cache holds any more when a pass of
the model is over. So that of `assemble.Step` is gone through by whoever reads the block.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from fulgurite.agent.assemble import Step
from fulgurite.agent.identity import Committed, Request
from fulgurite.agent.kv import CacheReading
from fulgurite.agent.unreduced import Unreduced

Array = np.ndarray[Any, Any]


@dataclass(slots=True, eq=False, weakref_slot=True)
class PulseStep:
    """One measured step.

    Attributes
    ----------
    logits, scores : Tensor, shape (n, V), in host memory; nobody writes into them any more.
    tokens : the n emitted ones; or, of one row, the text with the token at its end, Tensor of int64, shape
        (1, t), in host memory.
    number, started_ns, ended_ns, cached : as of a `Step`.
    nbytes : what is held, at most about.
    """

    request: Request
    committed: Committed
    logits: torch.Tensor
    scores: torch.Tensor | None
    tokens: torch.Tensor | list[int]
    number: int
    started_ns: int
    ended_ns: int
    cached: CacheReading | None
    nbytes: int

    def columns(self) -> dict[str, Array]:
        """Every channel that was measured."""
        tokens = self.tokens
        if isinstance(tokens, list):
            ids = np.array(tokens, np.int32)
        else:
            ids = tokens.detach().numpy()[:, -1].astype(np.int32)
        scores = None if self.scores is None else self.scores.detach()
        step = Step(
            {}, ids, self.committed, self.request, "pulse", self.number, len(ids),
            self.started_ns, self.ended_ns, None, self.cached,
            unreduced=Unreduced(self.logits.detach(), ids, full=False, nbytes=self.nbytes, scores=scores),
        )  # fmt: skip
        return step.columns()
