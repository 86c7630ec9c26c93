"""Memory that a thread works in, again and again.

An array of a megabyte that is made and let go in each step is new memory each time, on a thread other than
the first: the system hands it out page by page, which costs time beside the arithmetic that it is for.
"""

from __future__ import annotations

import math
import threading
from typing import Any, Final

import numpy as np

Array = np.ndarray[Any, Any]
MOST_BYTES: Final = 8 << 20
"""Of one piece that is kept; what is larger is made anew, and let go."""
WIDEST: Final = 64
"""Of a matrix that a library multiplies a few rows with without asking for more threads."""


class _Pieces(threading.local):
    """Of the calling thread."""

    def __init__(self) -> None:
        self.by_use: dict[tuple[str, np.dtype[Any]], Array] = {}


_pieces = _Pieces()


def scratch(use: str, shape: tuple[int, ...], dtype: Any = np.float32) -> Array:
    """An array of the calling thread's with anything in it.

    Parameters
    ----------
    use : the next call of this thread with the same one, and the same `dtype`, gives the same memory.
    """
    key = use, np.dtype(dtype)
    size = math.prod(shape)
    held = _pieces.by_use.get(key)
    if held is None or held.size < size:
        held = np.empty(size, dtype)
        if held.nbytes > MOST_BYTES:
            return held.reshape(shape)
        _pieces.by_use[key] = held
    return held[:size].reshape(shape)


def widened(found: Array, use: str) -> Array:
    """As float32, in memory that the next `use` of it overwrites, or as it is; int16 are the bits of a
    bfloat16, which are the upper half of a float32's."""
    if found.dtype == np.float32:
        return found
    if found.dtype != np.int16:
        wide = scratch(use, found.shape)
        np.copyto(wide, found, casting="same_kind")
        return wide
    bits = scratch(use, found.shape, np.int32)
    np.copyto(bits, found)
    np.left_shift(bits, 16, out=bits)
    return bits.view(np.float32)
