"""What the frames of a block light: display values of nodes, for whole steps and for single tokens. Pure.

The nodes of a step show the largest value of its rows. The display function rises, so the largest is taken of
what was measured, and only that is made a display value: a step of a thousand rows costs one pass over them.
Where contributions were captured, each node's hue is that of the row that its light is of.

Shape letters: n frames, L layers, H heads, E experts (1 if dense).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fulgurite.viewer.bolts import Pushes
from fulgurite.viewer.contribution import hue, pushes
from fulgurite.viewer.pulses import Pulse

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fulgurite.viewer.colors import Display
    from fulgurite.wire.frame import FrameBlock
    from fulgurite.wire.topology import Topology

    Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class StepLight:
    """The light of one block.

    Attributes
    ----------
    head_write : ndarray of float32, shape (n, L, H); None: not captured, or without a scale.
    ffn_write : likewise, shape (n, L).
    head_pushes, ffn_pushes : contributions in logits, shape (n, L, H) and (n, L); None: not captured.
    """

    block: FrameBlock
    topology: Topology
    head_display: Display | None
    ffn_display: Display | None
    expert_display: Display
    head_write: Floats | None
    ffn_write: Floats | None
    head_pushes: NDArray[np.float64] | None
    ffn_pushes: NDArray[np.float64] | None

    @classmethod
    def of(cls, block: FrameBlock, topology: Topology, display: Callable[[str], Display | None]) -> StepLight:
        """The light of `block`, with the display function of each node kind."""
        columns, (layers, heads) = block.columns, (topology.layers, topology.heads)
        head, ffn, expert = display("head"), display("ffn"), display("expert")
        assert expert is not None
        return cls(
            block,
            topology,
            head,
            ffn,
            expert,
            None if head is None else columns.get("head_write"),
            None if ffn is None else columns.get("ffn_write"),
            pushes(block, "head_contribution", (layers, heads), topology.dtype)
            if "head_contribution" in columns
            else None,
            pushes(block, "ffn_contribution", (layers,), topology.dtype)
            if "ffn_contribution" in columns
            else None,
        )

    @property
    def is_lit(self) -> bool:
        """Whether anything of it can be drawn to scale."""
        return self.head_write is not None or self.ffn_write is not None

    # of a step

    def pulse(self, low: int, high: int, at_s: float, spread_s: float) -> Pulse:
        """The light of the rows `low` to `high`, one forward pass."""
        layers = self.topology.layers
        head_hues = ffn_hues = None
        if self.head_pushes is not None:
            head_hues = hue(_of_largest(self.head_write, self.head_pushes, low, high))
        if self.ffn_pushes is not None:
            ffn_hues = hue(_of_largest(self.ffn_write, self.ffn_pushes, low, high))[:, None]
        ffn = _shown(self.ffn_display, self.ffn_write, low, high, (layers,))
        plates = ffn[:, None] if not self.topology.experts else self._gates(low, high)
        if ffn_hues is not None:
            ffn_hues = np.broadcast_to(ffn_hues, plates.shape)
        heads = _shown(self.head_display, self.head_write, low, high, (layers, self.topology.heads))
        self._hide_absent(heads)
        return Pulse.of(at_s, spread_s, heads, plates, head_hues, ffn_hues)

    def _hide_absent(self, heads: Floats) -> None:
        """Layers with fewer heads than others have no value beyond theirs."""
        counts = self.topology.layer_heads
        if min(counts, default=0) < self.topology.heads:
            heads[np.arange(self.topology.heads) >= np.asarray(counts)[:, None]] = np.nan

    def _gates(self, low: int, high: int) -> Floats:
        """Each expert's largest gate weight (L, E); one that no router chose is dark, NaN: not captured."""
        columns, shape = self.block.columns, (self.topology.layers, self.topology.experts)
        if "expert_ids" not in columns or "expert_weights" not in columns:
            return np.full(shape, np.nan, np.float32)
        ids = columns["expert_ids"][low:high].astype(np.intp)
        weights = columns["expert_weights"][low:high].astype(np.float32)
        gates = np.zeros(shape, np.float32)
        chosen = (ids >= 0) & (ids < shape[1]) & np.isfinite(weights)
        _, layer, _ = np.nonzero(chosen)
        np.maximum.at(gates, (layer, ids[chosen]), self.expert_display(weights[chosen]))
        gates[~chosen.any(axis=(0, 2))] = np.nan
        return gates

    def pushed(self, low: int, high: int) -> int:
        """How many of these frames have a contribution that may be drawn."""
        if self.head_pushes is None:
            return 0
        return int(np.isfinite(self.head_pushes[low:high]).any(axis=(1, 2)).sum())

    # of a token

    def heads(self, row: int) -> Floats:
        """Display values of one token's heads, shape (L, H); NaN: not measured."""
        shape = (self.topology.layers, self.topology.heads)
        shown = _shown(self.head_display, self.head_write, row, row + 1, shape)
        self._hide_absent(shown)
        return shown

    def ffn(self, row: int) -> Floats:
        """Display values of one token's FFN blocks, shape (L,); NaN: not measured."""
        return _shown(self.ffn_display, self.ffn_write, row, row + 1, (self.topology.layers,))

    def experts(self, row: int) -> Floats | None:
        """Display values of one token's gate weights, shape (L, E); None: a dense model."""
        return self._gates(row, row + 1) if self.topology.experts else None

    def pushes(self, row: int) -> Pushes | None:
        """The contributions of one token; None: not captured."""
        if self.head_pushes is None and self.ffn_pushes is None:
            return None
        layers, heads = self.topology.layers, self.topology.heads
        return Pushes(
            np.full((layers, heads), np.nan) if self.head_pushes is None else self.head_pushes[row],
            np.full(layers, np.nan) if self.ffn_pushes is None else self.ffn_pushes[row],
        )


def _shown(
    display: Display | None, values: Floats | None, low: int, high: int, shape: tuple[int, ...]
) -> Floats:
    """The display value of the largest over the rows; NaN: no row has one."""
    if display is None or values is None:
        return np.full(shape, np.nan, np.float32)
    return display(_largest(values[low:high]))


def _largest(rows: Floats) -> Floats:
    """The largest over the rows that is a number; NaN: none is."""
    if len(rows) == 1:
        return np.asarray(rows[0])
    flat = rows.reshape(len(rows), -1)  # two axes are reduced in half the time of three
    largest: Floats = flat.max(axis=0)
    if np.isnan(largest).any():
        largest = np.fmax.reduce(flat, axis=0)
    return largest.reshape(rows.shape[1:])


def _of_largest(
    values: Floats | None, pushed: NDArray[np.float64], low: int, high: int
) -> NDArray[np.float64]:
    """For each node the push of the row whose value is the largest."""
    if values is None:
        return np.full(pushed.shape[1:], np.nan)
    rows = values[low:high]
    first = np.where(np.isfinite(rows), rows, -np.inf).argmax(axis=0)[None]
    return np.asarray(np.take_along_axis(pushed[low:high], first, axis=0)[0])
