"""The account of frames: captured = pending + acknowledged + everything dropped, by reason; at every moment.

Tokens whose frames nobody asked for are `folded` into sketches: they are not captured, and counted apart.

The sum cannot be broken, because `pending` is not kept: it is what was captured less what was settled, and
settling more than is pending is refused. Counting takes no lock: each thread counts in a cell of its own,
which nobody else writes, so the host's thread never waits for a thread that sends. A reading adds the cells
up, settled ones first: since a frame is counted as captured before it can be settled, no reading shows a
negative `pending`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from threading import get_ident


class LedgerError(RuntimeError):
    """More frames were settled than were pending: a defect of the caller."""


@dataclass(frozen=True, slots=True)
class Account:
    """A reading of a ledger: ``captured == pending + acknowledged + sum(dropped.values())``."""

    captured: int
    acknowledged: int
    dropped: Mapping[str, int]
    folded: int = 0

    @property
    def settled(self) -> int:
        """Frames whose fate is known."""
        return self.acknowledged + sum(self.dropped.values())

    @property
    def pending(self) -> int:
        """Frames on their way."""
        return self.captured - self.settled


@dataclass(slots=True)
class _Cell:
    """What one thread counted. Only that thread writes it."""

    captured: int = 0
    acknowledged: int = 0
    folded: int = 0
    dropped: dict[str, int] = field(default_factory=dict)


class Ledger:
    """Counts frames. Any thread may call anything.

    A frame has one owner at a time, who counts it: who hands it over calls `capture` first; who takes it out
    of the stream calls `acknowledge` or `drop`, once.

    Examples
    --------
    >>> ledger = Ledger()
    >>> ledger.capture(3)
    >>> ledger.drop(1, "outbox_full")
    >>> ledger.acknowledge(2)
    >>> ledger.account()
    Account(captured=3, acknowledged=2, dropped={'outbox_full': 1}, folded=0)
    """

    def __init__(self) -> None:
        # By thread. The identity of a dead thread is used again by a later one, and its cell with it: what
        # counts is that no two living threads share one. So there are as many cells as threads ever lived at
        # the same time.
        self._cells: dict[int, _Cell] = {}
        self._sealed_for = ""

    def _cell(self) -> _Cell:
        ident = get_ident()
        cell = self._cells.get(ident)
        if cell is None:
            cell = self._cells[ident] = _Cell()
        return cell

    def capture(self, frames: int) -> None:
        """Count frames that enter."""
        if frames < 0:
            raise LedgerError(f"{frames} frames cannot be captured")
        self._cell().captured += frames

    def fold(self, tokens: int) -> None:
        """Count tokens that go into sketches and not into frames."""
        self._cell().folded += tokens

    def acknowledge(self, frames: int) -> None:
        """Count frames that are where they were to go.

        Raises
        ------
        LedgerError
            Where more are settled than are pending.
        """
        self._check(frames)
        self._cell().acknowledged += frames

    def drop(self, frames: int, reason: str) -> None:
        """Count frames that are lost.

        Raises
        ------
        LedgerError
            Where more are settled than are pending.
        """
        self._check(frames)
        if frames:
            dropped = self._cell().dropped
            dropped[reason] = dropped.get(reason, 0) + frames

    def seal(self, reason: str) -> None:
        """Nobody waits any more for who has what is pending: from now on it counts as dropped for `reason`.

        What is settled all the same, later, counts as what it then is.
        """
        self._sealed_for = reason

    def _check(self, frames: int) -> None:
        if not 0 <= frames <= self._counted().pending:
            raise LedgerError(f"{frames} frames cannot be settled: {self._counted()}")

    def account(self) -> Account:
        """Everything counted so far."""
        counted, reason = self._counted(), self._sealed_for
        if not reason or not counted.pending:
            return counted
        dropped = {**counted.dropped, reason: counted.dropped.get(reason, 0) + counted.pending}
        return replace(counted, dropped=dropped)

    def _counted(self) -> Account:
        cells = tuple(self._cells.values())
        acknowledged = sum(cell.acknowledged for cell in cells)
        dropped: dict[str, int] = {}
        for cell in cells:
            for reason, frames in tuple(cell.dropped.items()):
                dropped[reason] = dropped.get(reason, 0) + frames
        captured = sum(cell.captured for cell in tuple(self._cells.values()))
        folded = sum(cell.folded for cell in cells)
        return Account(captured, acknowledged, dropped, folded)
