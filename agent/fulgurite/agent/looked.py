"""What the looks of one pass kept, told together when it ends: once for all layers that are alike.

A call of torch costs more than the arithmetic of one layer's row. What waits is bounded.

Shape letters: b rows of the pass, k of its positions that matter, s keys, H heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from fulgurite.agent.probes import Pass
from fulgurite.agent.routing import summary
from fulgurite.agent.softmax_row import Products, exact, seen_keys, softmax_rows

MOST_BYTES = 8 << 20  # that wait in one pass


@dataclass(frozen=True, slots=True, eq=False)
class Handed:
    """The rows that matter of weights that a model handed out.

    Attributes
    ----------
    rows : Tensor of float32, shape (b, k, H, s)
    mask : as the module was told.
    is_inverted : it marks the keys that are hidden.
    is_whole : as for `routing.summary`.
    """

    rows: torch.Tensor
    mask: Any
    is_inverted: bool
    is_whole: bool

    @property
    def likeness(self) -> tuple[object, ...]:
        """Rows of which this is the same are told together."""
        rows = self.rows
        return (rows.shape, rows.device, id(self.mask), self.is_inverted, self.is_whole)


Kept = Products | Handed


def keep(passing: Pass, index: int, found: Kept) -> None:
    """Of layer `index`."""
    passing.looked.append((index, found))
    passing.looked_bytes += (found.dots if isinstance(found, Products) else found.rows).nbytes
    if passing.looked_bytes > MOST_BYTES:
        tell(passing)


@torch.no_grad()
def tell(passing: Pass) -> None:
    """Leave in `Pass.deep` what is told of each layer that was looked at, (b, k, w)."""
    alike: dict[tuple[object, ...], list[tuple[int, Kept]]] = {}
    for index, found in passing.looked:
        alike.setdefault(found.likeness, []).append((index, found))
    passing.looked.clear()
    passing.looked_bytes = 0
    for group in alike.values():
        told = _summaries(passing, [found for _, found in group])
        passing.deep.update({("attention", index): told[i] for i, (index, _) in enumerate(group)})


def _summaries(passing: Pass, group: Sequence[Kept]) -> torch.Tensor:
    calls = [found for found in group if isinstance(found, Products)]
    if calls:
        with exact(calls[0].dots):
            rows, visible = softmax_rows(passing, calls)
            return summary(rows, visible, is_whole=calls[0].sinks is None)
    handed = [found for found in group if isinstance(found, Handed)]
    first = handed[0]
    with exact(first.rows):
        visible = seen_keys(passing, first.mask, first.rows.shape[-1], None, first.rows.device)
        rows = torch.stack([found.rows for found in handed])
        return summary(rows, visible != first.is_inverted, is_whole=first.is_whole)
