"""A block of frames whose columns are put together where they are first read, off the host's thread."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from fulgurite.wire.frame import FrameBlock, RequestRef

Array = np.ndarray[Any, Any]


class LateBlock(FrameBlock):
    """Frames of one step, as they were measured until somebody reads them.

    Parameters
    ----------
    make : gives the columns. Called once, or twice where two threads read at the same time: it depends on
        nothing that changes. What it holds is let go with the first reading.
    rows : how many frames.
    nbytes : what is held, before the first reading and after it, at most about.
    """

    __slots__ = ("_made", "_make", "nbytes", "rows")

    nbytes: int
    _make: Callable[[], Mapping[str, Array]] | None
    _made: Mapping[str, Array] | None
    rows: int

    def __init__(
        self,
        requests: tuple[RequestRef, ...],
        make: Callable[[], Mapping[str, Array]],
        *,
        rows: int,
        nbytes: int,
        texts: tuple[str, ...] | None = None,
    ) -> None:
        keep = object.__setattr__  # the block is frozen for everybody else
        keep(self, "requests", requests)
        keep(self, "texts", texts)
        keep(self, "nbytes", nbytes)
        keep(self, "rows", rows)
        keep(self, "_made", None)
        keep(self, "_make", make)

    @property
    def columns(self) -> Mapping[str, Array]:
        """By channel name, as of any block."""
        make = self._make  # before the look at what is made: another thread lets go of it after that
        made = self._made
        if made is None:
            assert make is not None
            made = make()
            object.__setattr__(self, "_made", made)
            object.__setattr__(self, "_make", None)
        return made

    def __len__(self) -> int:
        return self.rows

    def __reduce__(self) -> tuple[Any, ...]:
        return FrameBlock, (self.requests, dict(self.columns), self.texts)
