"""Where heads look, in engines whose keys are in pages and whose kernels give no weights.

A tap at the attention module leaves the queries of the rows that matter, in sampled steps and of the layer
whose turn it is. When the step is over its keys are all in the cache: they are read there, and the softmax
row of each query is formed in float32. It is believed where that row times the cached values is what the
kernel gave. This is routing, not importance.

Costs a pass over the keys and values of the measured requests, of one layer, in sampled steps.

Shape letters: n rows that are measured, s keys of one of them, t of these read at once, H heads, G key heads,
D width of a head.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any, Final, Protocol

import numpy as np
import torch
from torch import nn

from fulgurite.agent.deep import Reasons
from fulgurite.agent.engines.flat.desk import Desk, Plane
from fulgurite.agent.engines.flat.taps import first_argument
from fulgurite.agent.routing import CHANNELS, summary
from fulgurite.agent.shield import STRIKES, Shield

Array = np.ndarray[Any, Any]
Where = Callable[[int, int], Any]
_MOST_WEIGHTS: Final = 1 << 21  # numbers that are told at once: 8 MiB


class Unread(Exception):
    """The cache cannot be read as it is; says why."""


class Pages(Protocol):
    """The cached keys and values of one layer."""

    def read(self, where: Any, first: int, count: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Those of the positions from `first` on to `count`, some at a time: float32 (t, G, D) each.

        Parameters
        ----------
        where : what the engine knows the places of a request by.
        """


@dataclass(frozen=True, slots=True, eq=False)
class Looked:
    """An attention module whose rows can be formed.

    Attributes
    ----------
    module : it is handed the queries, (tokens, H * D), first.
    scaling, cap, window : of its softmax row; 0: no soft-cap, and all positions are seen.
    """

    module: nn.Module
    heads: int
    key_heads: int
    width: int
    scaling: float
    cap: float
    window: int
    pages: Pages


class Attended:
    """The layers that are looked at, one a deep step or all of them.

    Parameters
    ----------
    found : by layer, what can be looked at, or why it cannot.
    every : each step is looked at deeply, and then every layer is.
    close : how far a row times the values may be from what the kernel gave, relative to that.
    """

    def __init__(self, found: Mapping[int, Looked | str], desk: Desk, *, every: bool, close: float) -> None:
        self._desk = desk
        self._every, self._close = every, close
        self._layers = {index: one for index, one in found.items() if isinstance(one, Looked)}
        refused = [(index, why) for index, why in found.items() if isinstance(why, str)]
        self.reasons: Reasons = dict.fromkeys(CHANNELS, refused) if refused else {}
        self._order = sorted(self._layers)
        self._planes: dict[int, Plane] = {}
        self._strikes = 0

    @property
    def width(self) -> int:
        """Numbers that a row leaves, over all layers."""
        return sum(one.heads * one.width for one in self._layers.values())

    def install(self) -> list[Any]:
        """Put the taps in; their handles."""
        handles = []
        for index, one in self._layers.items():
            _, (plane,) = self._desk.planes(1, one.heads * one.width)
            plane.turn = index
            self._planes[index] = plane
            handles.append(first_argument(one.module, plane.buffer.shape[1], desk=self._desk, plane=plane))
        return handles

    def turn(self, number: int) -> frozenset[int]:
        """The layers whose turn it is in step `number`, the same in all processes of a model."""
        if not self._order or self._strikes >= STRIKES:
            return frozenset()
        if self._every:
            return frozenset(self._order)
        return frozenset({self._order[(number * 0x9E3779B1 >> 12) % len(self._order)]})

    def told(
        self,
        rows: torch.Tensor | slice,
        handed: Callable[[int], torch.Tensor],
        positions: Array,
        where: Where,
        shield: Shield,
    ) -> dict[str, torch.Tensor]:
        """Of these rows of the step: ``attention{layer}``, float32 (n, w), as `routing.summary` gives it; of
        the layers that were looked at and are believed.

        Parameters
        ----------
        handed : gives what the heads of a layer gave, float32 (n, H * D)
        positions : ndarray of int, shape (n,), of the emitted tokens: so many keys a row may see.
        where : by row and layer, what the engine knows the places of the row's request by.
        """
        found: dict[str, torch.Tensor] = {}
        for index, plane in self._planes.items():
            if self._strikes >= STRIKES or not self._desk.is_written([plane]):
                continue
            one, queries = self._layers[index], plane.buffer[rows].float()
            try:
                told = self._of_layer(one, index, queries, handed(index), positions.tolist(), where)
            except Unread as why:
                self._refuse(shield, index, str(why))
                continue
            if told is None:
                self._refuse(shield, index, "what is formed of the cache is not what the kernel gave")
            else:
                found[f"attention{index}"] = told
        return found

    def _refuse(self, shield: Shield, index: int, why: str) -> None:
        self._strikes += 1
        shield.note("attention:unlike")
        if self._strikes >= STRIKES:
            shield.say_once("attended", "where heads look is not told any more: in layer %d, %s", index, why)

    def _of_layer(
        self,
        one: Looked,
        index: int,
        queries: torch.Tensor,
        handed: torch.Tensor,
        positions: Sequence[int],
        where: Where,
    ) -> torch.Tensor | None:
        """As `told`, of one layer; None where it is not believed."""
        told: list[torch.Tensor] = []
        together: list[torch.Tensor] = []
        for i, count in enumerate(positions):
            first = max(0, count - one.window) if one.window else 0
            weights, gave = _row(one, queries[i], where(i, index), first, count)
            should = handed[i].view(one.heads, -1)
            off = torch.linalg.vector_norm(gave - should)
            if not off <= self._close * torch.linalg.vector_norm(should):  # nor where it is no number
                return None
            together.append(weights)
            longest = max(row.shape[-1] for row in together)
            if len(together) * one.heads * longest >= _MOST_WEIGHTS or i == len(positions) - 1:
                told.append(_summaries(together))
                together.clear()
        return torch.cat(told)


def _row(
    one: Looked, query: torch.Tensor, where: Any, first: int, count: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The softmax row of one query (H * D) over the keys from `first` to `count`, (H, s), and that times the
    values, (H, D).

    Of a long request keys and values are far more than their scores, so none is held: what was summed up so
    far is scaled anew where a larger score comes (online softmax, Milakov and Gimelshein 2018).
    """
    grouped = query.view(one.key_heads, -1, one.width)  # query heads beside the key head that they share
    scores: list[torch.Tensor] = []
    most, gave, total = torch.tensor(-inf), torch.zeros(()), torch.zeros(())
    for keys, held in one.pages.read(where, first, count):
        part = (grouped @ keys.permute(1, 2, 0)).flatten(0, 1) * one.scaling  # (H, t)
        if one.cap:
            part = torch.tanh(part / one.cap) * one.cap
        scores.append(part)
        before, most = most, torch.maximum(most, part.amax(-1, keepdim=True))
        kept, shares = torch.exp(before - most), torch.exp(part - most)
        summed = (shares.view(one.key_heads, -1, held.shape[0]) @ held.transpose(0, 1)).flatten(0, 1)
        gave, total = gave * kept + summed, total * kept + shares.sum(-1, keepdim=True)
    return torch.exp(torch.cat(scores, -1) - most) / total, gave / total


def _summaries(rows: Sequence[torch.Tensor]) -> torch.Tensor:
    """Of rows (H, s) of different length, (n, w)."""
    longest = max(row.shape[-1] for row in rows)
    padded = torch.stack([nn.functional.pad(row, (longest - row.shape[-1], 0)) for row in rows])
    counts = torch.tensor([row.shape[-1] for row in rows], device=padded.device)
    visible = torch.arange(longest, device=padded.device) >= (longest - counts)[:, None]
    return summary(padded[:, None], visible[:, None], is_whole=True)[:, 0]
