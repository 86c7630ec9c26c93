"""Rows of an unembedding whose vocabulary is split over ranks, put together for one step.

A token's contributions need its row of the unembedding, which one rank has. All ranks emit the same tokens,
so each knows without being asked which of its rows a step needs: it tells them to the first rank, which puts
them together and tells the others. That happens where columns are read, never on the host's thread.

Knows no socket. Shape letters: n rows of the step, m ids per row (the emitted token, then the most probable
ones), d residual width.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
_LOOK_S = 0.25  # how often somebody who waits looks whether it is over


@dataclass(frozen=True, slots=True, eq=False)
class RowShare:
    """What one rank has of the rows that a step needs; all ranks' together are a `RowShare` that has all.

    Attributes
    ----------
    rows, biases : float32, shapes (n, m, d) and (n, m); 0 where it has none.
    held : bool, shape (n, m), which it has.
    total, bias_total : float64, shapes (d,) and (1,): sums over all rows that it has.
    count : of these rows.
    """

    rows: Array
    biases: Array
    held: Array
    total: Array
    bias_total: Array
    count: int

    def first_ids(self) -> RowShare:
        """Of the emitted tokens alone."""
        return RowShare(
            self.rows[:, :1], self.biases[:, :1], self.held[:, :1], self.total, self.bias_total, self.count
        )

    def arrays(self) -> dict[str, Array]:
        """As arrays, to be sent."""
        count = np.array([self.count], np.int64)
        return {
            "rows": self.rows, "biases": self.biases, "held": self.held, "total": self.total,
            "bias_total": self.bias_total, "count": count,
        }  # fmt: skip

    @classmethod
    def of(cls, arrays: Mapping[str, Array]) -> RowShare:
        """From what `arrays` gave.

        Raises
        ------
        KeyError, ValueError
            Where something is missing, or is not of the same rows.
        """
        found = cls(
            rows=arrays["rows"],
            biases=arrays["biases"],
            held=arrays["held"],
            total=arrays["total"],
            bias_total=arrays["bias_total"],
            count=int(arrays["count"][0]),
        )
        n, m, d = found.rows.shape
        if found.held.shape != (n, m) or found.biases.shape != (n, m) or found.total.shape != (d,):
            raise ValueError("these rows and sums are not of the same tokens")
        return found


def together(shares: Sequence[RowShare], vocabulary: int) -> RowShare | None:
    """All of them as one; None where they are not all of the vocabulary, or not of the same tokens."""
    first = shares[0]
    if any(share.rows.shape != first.rows.shape for share in shares):
        return None
    count = sum(share.count for share in shares)
    held = np.sum([share.held for share in shares], axis=0)
    if count != vocabulary or not (held == 1).all():
        return None
    rows, biases, total, bias_total = (
        np.sum([getattr(share, name) for share in shares], axis=0)
        for name in ("rows", "biases", "total", "bias_total")
    )
    return RowShare(rows, biases, held == 1, total, bias_total, count)


@dataclass(slots=True)
class _Member:
    shares: dict[int, RowShare] = field(default_factory=dict)  # by step
    passed: int = -1  # up to which step no more will come
    is_absent: bool = False


class RowTable:
    """The first rank's: what the others told, by step.

    Parameters
    ----------
    places : of the other ranks.
    """

    def __init__(self, places: Sequence[int]) -> None:
        self._members = {place: _Member() for place in places}
        self._changed = threading.Condition()
        self._done = -1

    def put(self, place: int, step: int, share: RowShare) -> bool:
        """A rank told its rows of a step; False where that step is over."""
        with self._changed:
            member = self._members[place]
            member.is_absent = False
            if step > self._done:
                member.shares[step] = share
            self._changed.notify_all()
            return step > self._done

    def passed(self, place: int, step: int) -> None:
        """A rank is past a step: its rows of it will not come any more."""
        with self._changed:
            self._members[place].passed = max(self._members[place].passed, step)
            self._changed.notify_all()

    def left(self, place: int) -> None:
        """A rank will tell nothing more."""
        with self._changed:
            self._members[place].is_absent = True
            self._changed.notify_all()

    def finish(self, step: int) -> list[tuple[int, int]]:
        """This rank is past a step itself: (place, step) of all that wait for an answer in vain."""
        with self._changed:
            self._done = max(self._done, step)
            found = []
            for place, member in self._members.items():
                found += [(place, told) for told in member.shares if told <= step]
                member.shares = {told: share for told, share in member.shares.items() if told > step}
            return found

    def gather(
        self, step: int, own: RowShare, vocabulary: int, *, wait_s: float, is_over: Callable[[], bool]
    ) -> tuple[RowShare | None, list[int], list[int]]:
        """All rows of a step, as soon as every rank that is there told its own; None where some are missing.
        Further, who waits for that answer, and who was waited for in vain.
        """
        until = time.monotonic() + wait_s
        with self._changed:
            while missing := self._missing(step):
                left_s = until - time.monotonic()
                if left_s <= 0 or is_over():
                    break
                self._changed.wait(min(left_s, _LOOK_S))
            for place in missing:
                self._members[place].is_absent = True
            told = {place: m.shares.pop(step) for place, m in self._members.items() if step in m.shares}
        return together([own, *told.values()], vocabulary), list(told), missing

    def _missing(self, step: int) -> list[int]:
        return [
            place
            for place, member in self._members.items()
            if step not in member.shares and member.passed < step and not member.is_absent
        ]
