"""The key-value cache as a carpet: how full it is, and what was just written or read. Pure numpy.

The axis is the cached position of each sequence, in cells of `tokens_per_cell` positions; the cell grows by
doubling as sequences do. Fill is the share of the sequences under way that have cached so far. A sequence
counts until its request ends, or until it has been silent for `SILENT_S`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from fulgurite.viewer.glow import NEVER_S

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    Floats = NDArray[np.float32]

_FILL, _WRITTEN, _READ = range(3)  # channels of a texel

SILENT_S = 3.0
FIRST_TOKENS_PER_CELL = 1


class Carpet:
    """The cells of every layer.

    Attributes
    ----------
    tokens_per_cell : int
    written_s, read_s : ndarray of float64, shape (L, C)
        When a cell was last written to, or read by a drawn head.
    """

    def __init__(self, layers: int, cells: int) -> None:
        self.tokens_per_cell = FIRST_TOKENS_PER_CELL
        self.written_s = np.full((layers, cells), -np.inf)
        self.read_s = np.full((layers, cells), -np.inf)
        self.revision = 0
        # Cached positions of each, (L,), or a number where all layers are alike; the silent ones first.
        self._sequences: dict[tuple[str, int], tuple[NDArray[np.int32] | int, float]] = {}
        self._fill: Floats | None = None
        self._measured = False
        self._texels = np.zeros((layers, cells, 4), np.float32)
        self._stale = {_FILL, _WRITTEN, _READ}  # channels of the texels that are to be written
        self._origin_s = 0.0

    def clear(self) -> None:
        """Nothing cached, nothing measured."""
        self.written_s[:] = self.read_s[:] = -np.inf
        self._sequences.clear()
        self._fill, self._measured = None, False
        self.tokens_per_cell = FIRST_TOKENS_PER_CELL
        self._change(_FILL, _WRITTEN, _READ)

    def write(
        self, sequence: tuple[str, int], kv_tokens: NDArray[np.int32], at_s: float, *, first: int
    ) -> None:
        """After a pass a sequence has `kv_tokens` (L,) positions cached; those from `first` on are new."""
        self.write_step([sequence], kv_tokens[None], at_s, first=np.array([first]))

    def write_step(
        self,
        sequences: Sequence[tuple[str, int]],
        kv_tokens: NDArray[np.int32],
        at_s: float,
        *,
        first: NDArray[np.integer[Any]],
    ) -> None:
        """The same for all of a pass: `kv_tokens` (n, L), or (n, 1) where layers are alike; `first` (n,)."""
        most = int(kv_tokens.max())
        if most < 0:
            return
        self._grow(most)
        self._measured = True
        first = np.minimum(first[:, None], kv_tokens - 1)
        opened = (kv_tokens - 1) % self.tokens_per_cell == 0  # its newest token is the first of a cell
        is_fuller = bool((opened | (first < kv_tokens - 1)).any())
        rows = kv_tokens[:, 0].tolist() if kv_tokens.shape[1] == 1 else kv_tokens
        for sequence, held in zip(sequences, rows, strict=True):
            is_fuller |= self._sequences.pop(sequence, None) is None
            self._sequences[sequence] = (held, at_s)
        if is_fuller:
            self._fill = None
            self._change(_FILL)
        self._mark(kv_tokens, at_s, first)
        self._change(_WRITTEN)

    def _change(self, *channels: int) -> None:
        self._stale.update(channels)
        self.revision += 1

    def _mark(self, kv_tokens: NDArray[np.int32], at_s: float, first: NDArray[np.integer[Any]]) -> None:
        begin, end = first // self.tokens_per_cell, (kv_tokens - 1) // self.tokens_per_cell
        known = kv_tokens >= 1
        single = known & (begin == end)
        rows, cells = kv_tokens.shape[1], self.written_s.shape[1]
        new = np.zeros(rows * cells + 1, np.bool_)  # the last one stands for none
        new[np.where(single, end + cells * np.arange(rows), rows * cells)] = True
        self._stamp(new[:-1].reshape(rows, cells), at_s)
        for row in np.flatnonzero((known & ~single).any(axis=1)).tolist():  # a prefill writes many
            cell = np.arange(cells)
            self._stamp(
                known[row, :, None] & (cell >= begin[row, :, None]) & (cell <= end[row, :, None]), at_s
            )

    def _stamp(self, new: NDArray[np.bool_], at_s: float) -> None:
        """Cells that were written: (L, C), or (1, C) in all layers alike."""
        if len(new) == 1:
            cells = np.flatnonzero(new[0])
            self.written_s[:, cells] = np.maximum(self.written_s[:, cells], at_s)
        else:
            np.maximum(self.written_s, at_s, out=self.written_s, where=new)

    def cell_of(self, positions: NDArray[np.integer[Any]]) -> NDArray[np.int32]:
        """The cells of cached positions; -1 stays -1."""
        cells = np.minimum(positions // self.tokens_per_cell, self.read_s.shape[1] - 1)
        return np.where(positions >= 0, cells, -1).astype(np.int32)

    def read(self, layer: int, cell: int, at_s: float) -> None:
        """A drawn head looks at a cell."""
        self.read_s[layer, cell] = max(self.read_s[layer, cell], at_s)
        self._change(_READ)

    def end(self, request_id: str) -> None:
        """A request is over: its cache is gone."""
        self._drop([key for key in self._sequences if key[0] == request_id])

    def expire(self, now_s: float) -> None:
        """Forget sequences that have been silent for `SILENT_S`."""
        while self._sequences:
            key = next(iter(self._sequences))  # who spoke later stands behind
            if self._sequences[key][1] >= now_s - SILENT_S:
                break
            self._drop([key])

    def _drop(self, keys: Iterable[tuple[str, int]]) -> None:
        for key in keys:
            del self._sequences[key]
            self._fill = None
            self._change(_FILL)

    def _grow(self, tokens: int) -> None:
        cells = self.written_s.shape[1]
        while tokens > cells * self.tokens_per_cell:
            self.tokens_per_cell *= 2
            self.written_s, self.read_s = _halved(self.written_s), _halved(self.read_s)
            self._fill = None
            self._change(_FILL, _WRITTEN, _READ)

    def fill(self) -> Floats:
        """Share of the sequences under way that have cached up to each cell, shape (L, C)."""
        return np.broadcast_to(self._shares(), self.written_s.shape)

    def _shares(self) -> Floats:
        """The same, kept until it changes; shape (1, C) where layers are alike."""
        if self._fill is None:
            self._fill = self._counted()
        return self._fill

    def _counted(self) -> Floats:
        layers, cells = self.written_s.shape
        each = [held for held, _ in self._sequences.values()]
        if not each:
            return np.zeros((1, cells), np.float32)
        if set(map(type, each)) == {int}:
            cached = np.array(each)[:, None]
        else:
            cached = np.stack([np.broadcast_to(held, layers) for held in each])
        reach = np.maximum(cached + (self.tokens_per_cell - 1), 0) // self.tokens_per_cell
        reach = np.minimum(reach, cells)  # cells that it reaches into
        rows = reach.shape[1]
        at = reach if rows == 1 else reach + np.arange(rows) * (cells + 1)
        ends = np.bincount(at.ravel(), minlength=rows * (cells + 1)).reshape(rows, cells + 1)
        longer = len(each) - ends.cumsum(axis=1)[:, :cells]
        return (longer / len(each)).astype(np.float32)

    def texture(self, origin_s: float) -> Floats:
        """RGBA texels: fill (-1: not measured), write stamp, read stamp, 0. Shape (L, C, 4).

        It is one array, changed in place: copy it to keep it.
        """
        if origin_s != self._origin_s:
            self._origin_s = origin_s
            self._stale |= {_WRITTEN, _READ}
        if _FILL in self._stale:
            self._texels[..., _FILL] = self._shares() if self._measured else -1.0
        for channel, stamps in ((_WRITTEN, self.written_s), (_READ, self.read_s)):
            if channel in self._stale:
                np.maximum(stamps - origin_s, NEVER_S, out=self._texels[..., channel], casting="same_kind")
        self._stale.clear()
        return self._texels


def _halved(stamps: NDArray[np.float64]) -> NDArray[np.float64]:
    """Two cells become one: the later stamp of both; the far half is empty."""
    pairs = np.maximum(stamps[:, 0::2], stamps[:, 1::2])
    return np.concatenate([pairs, np.full_like(pairs, -np.inf)], axis=1)
