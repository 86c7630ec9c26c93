"""A beam search of `generate`, followed step by step.

What a step chose is known in three parts: the candidates (from the stopping criterion), which rows go on
(from the reordering of the cache), and with which tokens (from the next forward pass). So a step is settled
when the next one begins, the last one when the search is over.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from fulgurite.agent.beams import Beams
from fulgurite.agent.probes import Pass

Array = np.ndarray[Any, Any]
Settle = Callable[[Pass, Any, Array, int], None]


class Search:
    """One search.

    Parameters
    ----------
    beams : beams per prompt.
    """

    def __init__(self, beams: int) -> None:
        self.beams = beams
        self.lines: Beams | None = None
        self.passing: Pass | None = None
        self.parents: torch.Tensor | None = None
        self._candidates: torch.Tensor | None = None
        self._chosen_ns = 0
        self._cache: Any = None

    def closed(self, passing: Pass, cache: Any) -> None:
        """A forward pass is over."""
        self.passing = passing
        if cache is not self._cache and callable(getattr(cache, "reorder_cache", None)):
            self.release()
            cache.reorder_cache = _Reorder(self, cache.reorder_cache)
            self._cache = cache

    def chosen(self, candidates: torch.Tensor, now_ns: int) -> None:
        """The candidates (b * c, t + 1) of this step are known."""
        self._candidates = candidates
        self._chosen_ns = now_ns

    def prompts(self, rows: int) -> torch.Tensor:
        """What the rows were fed first, (rows, t), while the first step is unsettled."""
        assert self._candidates is not None
        texts = self._candidates[:, :-1]
        each = texts.reshape(rows // self.beams, -1, texts.shape[-1])[:, :1]
        return each.expand(-1, self.beams, -1).reshape(rows, -1)

    def go_on(self, ids: torch.Tensor, settle: Settle) -> None:
        """The next forward pass begins, and is fed `ids` (b * k, 1 or all so far)."""
        candidates, passing = self._take()
        if candidates is None or self.lines is None:
            return
        if candidates.shape[-1] != self.lines.length + 1:
            self.lines = None  # a step went unseen (a pause): who continues whom is not known any more
            return
        fed = ids.cpu().numpy()
        if self._cache is None:
            rows = self.lines.rows_of(fed)
        elif self.parents is not None:
            rows = self.parents.cpu().numpy().astype(np.int64)
        else:
            return
        lines, tokens = self.lines.go_on(candidates, rows, fed[:, -1])
        if passing is not None:
            settle(passing, lines, tokens, self._chosen_ns)

    def end(self, returned: Any, settle: Settle) -> tuple[int, ...]:
        """The search is over; which lines were returned."""
        self.release()
        candidates, passing = self._take()
        if candidates is None or self.lines is None or candidates.shape[-1] != self.lines.length + 1:
            return ()
        lines, tokens = self.lines.end(candidates)
        if passing is not None:
            settle(passing, lines, tokens, self._chosen_ns)
        ids = getattr(returned, "sequences", returned)
        return self.lines.winners(ids.cpu().numpy()) if isinstance(ids, torch.Tensor) else ()

    def release(self) -> None:
        """Leave the cache as it was."""
        if self._cache is not None:
            self._cache.__dict__.pop("reorder_cache", None)

    def _take(self) -> tuple[Array | None, Pass | None]:
        candidates, self._candidates = self._candidates, None
        passing, self.passing = self.passing, None
        return None if candidates is None else candidates.cpu().numpy(), passing


class _Reorder:
    """Stands in for the cache's `reorder_cache` and takes note of the order."""

    def __init__(self, search: Search, original: Callable[[torch.Tensor], Any]) -> None:
        self._search = search
        self._original = original

    def __call__(self, beam_idx: torch.Tensor) -> Any:
        self._search.parents = beam_idx
        return self._original(beam_idx)
