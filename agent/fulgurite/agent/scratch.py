"""Memory that a thread works in again and again: the system hands large arrays out page by page, and takes
them back with each that is let go."""

from __future__ import annotations

import math
import threading
from typing import Any

import numpy as np

MOST_BYTES = 8 << 20
"""Of one array: larger ones are let go."""


class Scratch(threading.local):
    """Arrays by name; what is in one is lost when its name is asked for again."""

    def __init__(self) -> None:
        self._held: dict[str, np.ndarray[Any, Any]] = {}

    def array(self, name: str, shape: tuple[int, ...], dtype: Any = np.float32) -> np.ndarray[Any, Any]:
        """One of that shape, with anything in it; nobody may keep it."""
        size = math.prod(shape) * np.dtype(dtype).itemsize
        if size > MOST_BYTES:
            return np.empty(shape, dtype)
        held = self._held.get(name)
        if held is None or held.nbytes < size:
            held = self._held[name] = np.empty(size, np.uint8)
        found: np.ndarray[Any, Any] = held[:size].view(dtype).reshape(shape)
        return found
