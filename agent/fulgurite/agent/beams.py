"""The lineage of a beam search: which row continues which, and which lines were returned. Pure numpy.

A running line is a row of the batch; it moves from row to row when the search prunes. A line that ended while
others go on has no row any more: it gets a number behind the rows. So a frame's `sequence` is its line's row
in that step, its `parent_row` the row one position earlier, and a returned line is read backwards from the
frame that `winners` names.

Shape letters: b prompts, k beams of each, c candidates of each (c >= k), t tokens so far.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fulgurite.agent.identity import Committed, Request

Array = np.ndarray[Any, Any]


class Beams:
    """The lines of one request.

    Parameters
    ----------
    request : its rows are the b * k beams.
    texts : ndarray of int64, shape (b * k, t), the prompts as they are fed.
    """

    def __init__(self, request: Request, texts: Array, beams: int) -> None:
        self.request = request
        self.beams = beams
        self._texts = texts.reshape(-1, beams, texts.shape[-1])
        self._ended: list[tuple[Array, int]] = []
        self._next = request.rows

    @property
    def length(self) -> int:
        """How many tokens the running lines have, prompt and padding included."""
        return int(self._texts.shape[-1])

    def go_on(self, candidates: Array, rows: Array, tokens: Array) -> tuple[Committed, Array]:
        """The search goes on with `tokens` behind the lines in `rows`, both (b * k,).

        A candidate among the best k of its prompt that does not go on has ended.

        Parameters
        ----------
        candidates : ndarray of int, shape (b * c, t + 1), best first.

        Returns
        -------
        tuple of Committed and ndarray of int64, shape (m,)
            The running lines, behind them those that ended now; and the token of each.
        """
        before = self._texts
        grown = np.concatenate([before.reshape(-1, before.shape[-1])[rows], tokens[:, None]], -1)
        running = grown.reshape(before.shape[0], self.beams, -1)
        best = self._best(candidates)
        prompt, place = np.nonzero(~_equal(best, running).any(-1))
        parents, ended = self._parents(best)[prompt, place], best[prompt, place]
        numbers = self._next + np.arange(prompt.size)
        self._next += prompt.size
        self._ended += list(zip(ended, numbers.tolist(), strict=True))
        self._texts = running
        sequence = np.concatenate([np.arange(self.request.rows), numbers])
        committed = self._committed(np.concatenate([rows, parents]), sequence)
        return committed, np.concatenate([tokens, ended[:, -1]])

    def rows_of(self, texts: Array) -> Array:
        """The row that each of the texts (b * k, t + 1) continues, (b * k,)."""
        return self._parents(texts.reshape(*self._texts.shape[:2], -1)).reshape(-1)

    def end(self, candidates: Array) -> tuple[Committed, Array]:
        """The search is over: the best k candidates of each prompt are its last lines, in its rows."""
        best = self._best(candidates)
        sequence = np.arange(self.request.rows)
        self._ended += list(zip(best.reshape(-1, best.shape[-1]), sequence.tolist(), strict=True))
        return self._committed(self._parents(best).reshape(-1), sequence), best[..., -1].reshape(-1)

    def winners(self, returned: Array) -> tuple[int, ...]:
        """Where each returned line (n, t) ended: the `sequence` of its last frame; -1 where it is unknown."""
        return tuple(self._winner(row) for row in returned)

    def _winner(self, row: Array) -> int:
        fitting = [
            (len(text), number)
            for text, number in self._ended
            if len(text) <= len(row) and np.array_equal(row[: len(text)], text)
        ]
        return max(fitting)[1] if fitting else -1

    def _best(self, candidates: Array) -> Array:
        prompts = self._texts.shape[0]
        return candidates.reshape(prompts, -1, candidates.shape[-1])[:, : self.beams]

    def _parents(self, lines: Array) -> Array:
        """Row of the line that each continues, (b, k)."""
        first = np.arange(self._texts.shape[0])[:, None] * self.beams
        found: Array = first + _equal(lines[..., :-1], self._texts).argmax(-1)
        return found

    def _committed(self, rows: Array, sequence: Array) -> Committed:
        request = self.request
        passes = np.broadcast_to(request.generated[0], rows.shape)
        own = bool(request.generated[0] == 0)
        request.generated = request.generated + 1
        return Committed(
            real=np.arange(rows.size),
            sequence=sequence,
            position=request.prompt[rows] + passes,
            row=rows,
            passes=passes,
            parent=np.full(rows.size, -1) if own else rows,
        )


def _equal(some: Array, others: Array) -> Array:
    """Which of the texts (b, x, t) are which of (b, y, t), as (b, x, y)."""
    found: Array = (some[:, :, None] == others[:, None]).all(-1)
    return found
