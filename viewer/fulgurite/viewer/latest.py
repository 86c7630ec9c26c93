"""One key, one survivor: a mailbox where a newer value replaces the one that nobody has read yet.

For everything of which only the newest counts (a replica's status, its announcement): however slow the
reader is, it never holds more than one value per key. What must not be lost (frames) does not belong here.
"""

from __future__ import annotations

import threading
from collections.abc import Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Latest(Generic[K, V]):
    """The newest unread value of each key, in the order in which they were put. Safe between threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._values: dict[K, V] = {}

    def __len__(self) -> int:
        return len(self._values)

    def put(self, key: K, value: V) -> None:
        """Replace what is unread under `key`; the value moves to the end."""
        with self._lock:
            self._values.pop(key, None)
            self._values[key] = value

    def take(self) -> list[V]:
        """Every unread value, oldest first. They are read now."""
        with self._lock:
            values, self._values = self._values, {}
        return list(values.values())
