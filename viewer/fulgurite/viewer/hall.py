"""The pages that are open: each has its own bounded queue, so that one that stalls harms nobody.

A message is the same bytes in every queue. A page that does not read in time loses what waits for it, newest
wins: it is told how many tokens it missed and goes on with the present. Its past is read from behind, a piece
at a time, and only while nothing newer waits. Pure but for the event that says that something waits; all on
one event loop.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable

from fulgurite.viewer.message import pack
from fulgurite.viewer.story import Message

QUEUED_BYTES = 8 << 20
NEWEST_S = 5.0  # of the past is told before the present, in order


class Guest:
    """One open page.

    Parameters
    ----------
    welcome : what it must know first.
    past : the kept past, oldest first: the last `NEWEST_S` of it go first, the rest from behind.
    budget_bytes : most bytes that wait.
    """

    def __init__(
        self,
        welcome: Iterable[bytes],
        past: Iterable[Message],
        now_s: float,
        *,
        budget_bytes: int = QUEUED_BYTES,
    ) -> None:
        past = list(past)
        self._queue: deque[Message] = deque(Message(data, "welcome") for data in welcome)
        self._queue += [message for message in past if message.last_s >= now_s - NEWEST_S]
        self._past = [message.data for message in past if message.last_s < now_s - NEWEST_S]
        self._bytes = sum(len(message.data) for message in self._queue)
        self._budget_bytes = max(budget_bytes, self._bytes)
        self._waiting = asyncio.Event()
        self._waiting.set()
        self.missed = 0

    @property
    def queued_bytes(self) -> int:
        """Bytes that wait, without the past."""
        return self._bytes

    def put(self, message: Message) -> None:
        """One more message. Never blocks; what does not fit makes room for it."""
        if self._bytes + len(message.data) > self._budget_bytes:
            self._give_up()
        self._queue.append(message)
        self._bytes += len(message.data)
        self._waiting.set()

    def _give_up(self) -> None:
        """Drop every token that waits, and its past; say how many; keep what only the newest of counts."""
        gone = sum(message.tokens for message in self._queue)
        self.missed += gone
        newest: dict[str, Message] = {}
        for message in self._queue:
            if message.kind != "tokens" and message.kind != "event":
                newest[message.of or f"{message.kind} {len(newest)}"] = message
        self._past.clear()
        gap = Message(pack({"kind": "gap", "tokens": gone, "reason": "slow_viewer"}), "gap")
        self._queue = deque([*newest.values(), gap])
        self._bytes = sum(len(message.data) for message in self._queue)

    async def take(self) -> bytes:
        """The next message; waits while there is none."""
        while True:
            if self._queue:
                message = self._queue.popleft()
                self._bytes -= len(message.data)
                return message.data
            if self._past:
                return self._past.pop()
            self._waiting.clear()
            await self._waiting.wait()


class Hall:
    """Every open page."""

    def __init__(self) -> None:
        self._guests: set[Guest] = set()

    def __len__(self) -> int:
        return len(self._guests)

    @property
    def guests(self) -> frozenset[Guest]:
        """Those that are open now."""
        return frozenset(self._guests)

    def enter(self, guest: Guest) -> None:
        """A page was opened."""
        self._guests.add(guest)

    def leave(self, guest: Guest) -> None:
        """A page was closed."""
        self._guests.discard(guest)

    def tell(self, messages: Iterable[Message]) -> None:
        """The same bytes to everybody."""
        for message in messages:
            for guest in self._guests:
                guest.put(message)
