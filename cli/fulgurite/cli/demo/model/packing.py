"""Whole documents laid side by side into windows of one length, each between a start and an end token."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

POOL = 48
"""How many documents to choose from: enough that a gap at the end of a window mostly finds one that fits."""


def windows(documents: Iterable[Sequence[int]], *, length: int, pad: int) -> Iterator[NDArray[np.int64]]:
    """Windows of `length` tokens; no document is cut, and what is left at the end is `pad`.

    Parameters
    ----------
    documents : iterable of sequence of int
        Token ids with their start and end tokens. One that is longer than `length` is left out.
    length : int
        Tokens in a window.
    pad : int
        The token that fills up.
    """
    source = (document for document in documents if len(document) <= length)
    pool: list[Sequence[int]] = []
    while True:
        pool.extend(document for document, _ in zip(source, range(POOL - len(pool)), strict=False))
        if not pool:
            return
        yield _fill(pool, length=length, pad=pad)


def _fill(pool: list[Sequence[int]], *, length: int, pad: int) -> NDArray[np.int64]:
    window = np.full(length, pad, dtype=np.int64)
    used = 0
    while (at := _fitting(pool, length - used)) is not None:
        document = pool.pop(at)
        window[used : used + len(document)] = document
        used += len(document)
    return window


def _fitting(pool: Sequence[Sequence[int]], room: int) -> int | None:
    return next((at for at, document in enumerate(pool) if len(document) <= room), None)
