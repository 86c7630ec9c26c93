"""What came from one agent and is not stored yet. It is bounded: when it is full nothing more is read."""

from __future__ import annotations

import asyncio
from collections import deque


class Inbox:
    """A queue of messages with one who puts and one who takes.

    Parameters
    ----------
    max_bytes, max_messages : int
        How much may wait. One message always may, however large.
    """

    def __init__(self, *, max_bytes: int, max_messages: int) -> None:
        self._max_bytes, self._max_messages = max_bytes, max_messages
        self._messages: deque[bytes] = deque()
        self._nbytes = 0
        self._closed = False
        self._changed = asyncio.Event()

    @property
    def nbytes(self) -> int:
        """Bytes that wait."""
        return self._nbytes

    async def put(self, message: bytes) -> bool:
        """Add `message` as soon as there is room; False where it is closed."""
        while self._is_full(len(message)) and not self._closed:
            await self._change()
        if self._closed:
            return False
        self._messages.append(message)
        self._nbytes += len(message)
        self._changed.set()
        return True

    def close(self) -> None:
        """Nothing more comes. What is there can be taken."""
        self._closed = True
        self._changed.set()

    async def take(self, *, max_bytes: int, max_messages: int) -> list[bytes]:
        """What waits, up to a limit, as soon as something does; empty when nothing will ever come."""
        while not self._messages and not self._closed:
            await self._change()
        taken: list[bytes] = []
        nbytes = 0
        while self._messages and len(taken) < max_messages and (not taken or nbytes < max_bytes):
            taken.append(self._messages.popleft())
            nbytes += len(taken[-1])
        self._nbytes -= nbytes
        self._changed.set()
        return taken

    def _is_full(self, more: int) -> bool:
        too_many = len(self._messages) >= self._max_messages
        return bool(self._messages) and (too_many or self._nbytes + more > self._max_bytes)

    async def _change(self) -> None:
        # One event for both sides: each looks again at what it waits for, and both never wait at once.
        self._changed.clear()
        await self._changed.wait()
