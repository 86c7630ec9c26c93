"""The queue between the host's threads and the thread that sends.

It is bounded in bytes: when it is full the oldest goes, and is counted. The host's side takes no lock at all
(a `deque` appends and pops atomically, and each thread counts in a cell of its own), so it cannot wait for a
sending thread, nor for another thread of the host. The sending thread sleeps on a semaphore that the host
only ever releases.

Every frame has a place in the stream of the process, from 1 on. What was evicted keeps its places, so whoever
reads the stream sees a gap there. Tokens that are to be folded pass through in the same order, without a
place.
"""

from __future__ import annotations

from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from math import inf
from threading import Lock, get_ident
from time import monotonic
from typing import Final, Literal

import numpy as np

from fulgurite.agent.late import LateBlock
from fulgurite.wire.frame import Array, FrameBlock, RequestEvent
from fulgurite.wire.ledger import Ledger

DEFAULT_BUDGET_BYTES: Final = 16 << 20
HARD_BUDGET_BYTES: Final = 32 << 20
NEVER: Final = 1 << 62  # as a number of frames to wait for: let nothing wake the sender

_BLOCK_OVERHEAD_BYTES: Final = 4096  # array headers and dictionaries of a block of some thirty columns
_EVENT_BYTES: Final = 512


@dataclass(frozen=True, slots=True)
class Drawn:
    """What was taken out.

    Attributes
    ----------
    payload : FrameBlock or RequestEvent
    frames : int
        0 for an event.
    first_sequence : int
        Place of the first frame in the stream of the process, from 1 on; for an event, of the frame after it.
    nbytes : int
        What it held in the outbox.
    rows : bool or ndarray of bool
        Of a block: which of its tokens are frames; the others are to be folded.
    """

    payload: FrameBlock | RequestEvent
    frames: int
    first_sequence: int
    nbytes: int
    rows: Array | bool = True


@dataclass(slots=True)
class _Cell:
    """What one thread put in and took out. Only that thread writes it."""

    bytes_held: int = 0  # put in less taken out: negative in a thread that mostly takes
    frames_in: int = 0
    frames_out: int = 0
    events_evicted: int = 0
    unfolded: int = 0


# Payload, frames, bytes, rows, and when it came (monotonic, s).
_Item = tuple[FrameBlock | RequestEvent, int, int, Array | bool, float]


class Outbox:
    """Bounded queue of blocks and events.

    Parameters
    ----------
    ledger : Ledger
        Where frames that come in and frames that are evicted are counted.
    budget_bytes : int
        What all that is held may weigh, by the arrays' own sizes; at most 32 MiB.

    Raises
    ------
    ValueError
        For a budget that is not within 64 KiB and 32 MiB.
    """

    def __init__(self, ledger: Ledger, budget_bytes: int = DEFAULT_BUDGET_BYTES) -> None:
        if not 1 << 16 <= budget_bytes <= HARD_BUDGET_BYTES:
            raise ValueError(f"an outbox holds 64 KiB to 32 MiB, not {budget_bytes} bytes")
        self._ledger = ledger
        self._budget = budget_bytes
        self._reserved = 0
        self._items: deque[_Item] = deque()
        self._cells: dict[int, _Cell] = {}
        self._wake = Lock()
        self._wake.acquire()
        self._wake_at_frames = 1
        self._wake_at_age_s = inf
        self.lull_s = -inf

    # --- the host's side: O(1), no lock

    def put(self, block: FrameBlock, rows: Array | bool = True) -> None:
        """Hand over a block. Where the budget is exceeded the oldest goes, counted as ``outbox_full``.

        Parameters
        ----------
        rows : which of the tokens are wanted as frames; the others are to be folded.

        Raises
        ------
        Exception
            Where columns have to be made here and cannot be: the frames are lost, and counted as ``invalid``.
        """
        room = self._budget - self._reserved - _BLOCK_OVERHEAD_BYTES
        if type(block) is LateBlock and block.nbytes <= room:  # its columns are not made here
            tokens, nbytes = block.rows, block.nbytes
        else:  # what it was made from does not fit: made, it weighs less
            tokens, nbytes = len(block), self._made_bytes(block)
        if not tokens:
            return
        nbytes += _BLOCK_OVERHEAD_BYTES
        if rows is True:
            frames = tokens
        else:
            frames = 0 if rows is False else int(np.count_nonzero(rows))
            self._ledger.fold(tokens - frames)
        self._ledger.capture(frames)
        self._append((block, frames, nbytes, rows, monotonic()))

    def _made_bytes(self, block: FrameBlock) -> int:
        try:
            return sum(column.nbytes for column in block.columns.values())
        except Exception:
            self._ledger.capture(len(block))
            self._ledger.drop(len(block), "invalid")
            raise

    def put_event(self, event: RequestEvent) -> None:
        """Hand over an event. It keeps its place among the frames, and waits for them."""
        nbytes = _EVENT_BYTES + sum(map(len, event.prompt_texts))
        self._append((event, 0, nbytes, True, monotonic()))

    def _append(self, item: _Item) -> None:
        cell = self._cell()
        cell.bytes_held += item[2]
        cell.frames_in += item[1]
        self._items.append(item)
        held, waiting = self._totals()
        while held > self._budget - self._reserved and self._evict():
            held, waiting = self._totals()
        # An event counts for no frame, and is rare. What is to be folded can wait.
        if waiting >= self._wake_at_frames or (not item[1] and item[3] is True):
            self.wake()

    def _evict(self) -> bool:
        try:
            payload, frames, nbytes, rows, _ = self._items.popleft()
        except IndexError:
            return False
        cell = self._cell()
        cell.bytes_held -= nbytes
        cell.frames_out += frames
        if rows is not True:
            cell.unfolded += len(payload) - frames  # type: ignore[arg-type]
        else:
            cell.events_evicted += not frames
        self._ledger.drop(frames, "outbox_full")
        return True

    def lull(self) -> None:
        """The calling thread goes into a long call outside of Python: who waits for that may work now."""
        now_s = self.lull_s = monotonic()
        try:
            came_s = self._items[0][4]
        except IndexError:
            return
        if now_s - came_s >= self._wake_at_age_s:
            self.wake()

    def wake(self) -> None:
        """End the sender's sleep, now or the next one. Never blocks."""
        try:
            self._wake.release()
        except RuntimeError:  # awake already
            pass

    # --- the sender's side: one thread

    def wait(self, timeout_s: float, *, frames: int = 1, lull_at_age_s: float = inf) -> None:
        """Sleep until `frames` frames wait, `wake` is called, or the time is over; or until the host has a
        lull when the oldest item has waited for so long."""
        self._wake_at_frames = frames  # before the look, so that what comes after the look wakes
        self._wake_at_age_s = lull_at_age_s
        if self.frames < frames and timeout_s > 0:
            self._wake.acquire(timeout=timeout_s)
        self._wake_at_frames = NEVER
        self._wake_at_age_s = inf

    def take(self) -> Drawn | None:
        """The oldest item, or None."""
        # Evictions happen at the head only. One between these two lines moves the gap by one item, never the
        # order.
        first_sequence = self.position + 1
        try:
            payload, frames, nbytes, rows, _ = self._items.popleft()
        except IndexError:
            return None
        cell = self._cell()
        cell.bytes_held -= nbytes
        cell.frames_out += frames
        return Drawn(payload, frames, first_sequence, nbytes, rows)

    def make_ready(self) -> None:
        """Make the columns of all that waits, which stays where it is."""
        for payload, *_ in tuple(self._items):  # a tuple: the host appends and evicts meanwhile
            if type(payload) is LateBlock:
                with suppress(Exception):  # it will fail again where it is taken, and counts there
                    _ = payload.columns

    @property
    def next_kind(self) -> Literal["nothing", "frames", "event", "folds"]:
        """What the oldest item is. The host may evict it before it is taken."""
        try:
            _, frames, _, rows, _ = self._items[0]
        except IndexError:
            return "nothing"
        return "frames" if frames else "folds" if rows is False else "event"

    def oldest_s(self, now_s: float) -> float:
        """When the oldest item came (monotonic); `now_s` where there is none."""
        try:
            return min(now_s, self._items[0][4])
        except IndexError:
            return now_s

    @property
    def is_half_full(self) -> bool:
        """Whether half of the budget that is left to it is used."""
        return 2 * self.nbytes > self._budget - self._reserved

    def reserve(self, nbytes: int) -> None:
        """Leave so much of the budget to what the sender holds itself.

        What has to go for it goes here, on the sender's thread: the host's next `put` would pay for it.
        """
        reserved = min(nbytes, self._budget)
        while self.nbytes > self._budget - reserved and self._evict():
            pass
        self._reserved = reserved

    # --- readings

    @property
    def position(self) -> int:
        """Frames that were taken or evicted so far: the place in the stream before the head of the queue."""
        return sum(cell.frames_out for cell in tuple(self._cells.values()))

    @property
    def frames(self) -> int:
        """Frames waiting."""
        return self._totals()[1]

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return self._totals()[0]

    @property
    def events_evicted(self) -> int:
        """Events that went because the outbox was full."""
        return sum(cell.events_evicted for cell in tuple(self._cells.values()))

    @property
    def unfolded(self) -> int:
        """Tokens that were to be folded and went because the outbox was full."""
        return sum(cell.unfolded for cell in tuple(self._cells.values()))

    def __len__(self) -> int:
        """Items waiting, events included."""
        return len(self._items)

    def _cell(self) -> _Cell:
        ident = get_ident()
        cell = self._cells.get(ident)
        if cell is None:
            cell = self._cells[ident] = _Cell()
        return cell

    def _totals(self) -> tuple[int, int]:
        held = waiting = 0
        for cell in tuple(self._cells.values()):
            held += cell.bytes_held
            waiting += cell.frames_in - cell.frames_out
        return held, waiting
