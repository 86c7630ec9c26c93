"""The results of one step of vLLM, from the planes that its layers left to numpy: one batched reduction.

Shape letters: n measured rows, V vocabulary; the others are those of `fulgurite.agent.reduce`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

from fulgurite.agent import lens, reduce
from fulgurite.agent.anatomy import LayerParts
from fulgurite.agent.contribution import Attribution
from fulgurite.agent.engines.flat.desk import Desk, Plane
from fulgurite.agent.engines.flat.taps import hook
from fulgurite.agent.readout import Readout
from fulgurite.agent.wiring import Tap, part_of

Array = np.ndarray[Any, Any]
Where = Callable[[int, Tap], "tuple[nn.Module | None, Tap]"]


class Router(Protocol):
    """Which experts each token is sent to, as an engine tells it."""

    def columns(self, rows: torch.Tensor | slice) -> dict[str, Array]:
        """The channels of these rows."""


class Measure:
    """Of one model whose wiring is known.

    Parameters
    ----------
    grams : of each group of heads of the plan.
    routing : of a mixture of experts.
    attribution, readout : for level `deep`, None where they are not known.
    """

    def __init__(
        self,
        layout: reduce.Plan,
        grams: list[torch.Tensor],
        desk: Desk,
        *,
        attribution: Attribution | None = None,
        readout: Readout | None = None,
        routing: Router | None = None,
    ) -> None:
        self.layout = layout
        self.desk = desk
        self._grams = grams
        self._attribution = attribution
        self._readout = readout
        self.routing = routing
        self._stream, self._planes = desk.planes(len(layout.places), layout.width)
        self._heads: list[tuple[torch.Tensor, list[Plane]]] = [
            desk.planes(len(group.slots), group.heads * group.head_dim) for group in layout.groups
        ]

    def install(self, layers: tuple[LayerParts, ...], where: Where | None = None) -> list[Any]:
        """Put the taps in; their handles.

        Parameters
        ----------
        where : where a tap of a layer is to be read, for engines whose layers do not hand the stream on.
        """
        handles = []
        for plane, (index, tap) in zip(self._planes, self.layout.places, strict=True):
            module, read = (part_of(layers[index], tap.part), tap) if where is None else where(index, tap)
            assert module is not None
            handles.append(hook(module, read, self.layout.width, desk=self.desk, plane=plane))
        for group, (_, planes) in zip(self.layout.groups, self._heads, strict=True):
            for plane, index in zip(planes, group.layers, strict=True):
                projection = layers[int(index)].projection
                assert projection is not None
                width = group.heads * group.head_dim
                tap = Tap("projection", "in")
                handles.append(hook(projection, tap, width, desk=self.desk, plane=plane))
        return handles

    @property
    def planes(self) -> list[Plane]:
        """All of them."""
        return [*self._planes, *(plane for _, planes in self._heads for plane in planes)]

    def is_written(self) -> bool:
        """Whether every tap was there in this step."""
        return self.desk.is_written(self.planes)

    def layers(
        self,
        rows: torch.Tensor | slice,
        logits: torch.Tensor,
        tokens: torch.Tensor,
        candidates: torch.Tensor | None,
        *,
        deep: bool,
    ) -> dict[str, torch.Tensor]:
        """What the layers did at `rows` of the step.

        Parameters
        ----------
        logits, tokens : shapes (n, V) and (n,), of these rows
        candidates : the most probable tokens, int64 (n, K)
        """
        stacked = self._stream[:, rows].contiguous().float()
        found = reduce.stream(stacked, self.layout)
        for i, (buffer, _) in enumerate(self._heads):
            found[f"heads{i}"] = reduce.squares(buffer[:, rows].contiguous().float(), self._grams[i])
        if not deep:
            return found
        if self._attribution is not None:
            heads = {
                int(index): buffer[i, rows].float()
                for group, (buffer, _) in zip(self.layout.groups, self._heads, strict=True)
                for i, index in enumerate(group.layers)
            }
            found.update(self._attribution.of(stacked, heads, logits, tokens))
        ends = self.layout.after_ffn
        if self._readout is not None and candidates is not None and (ends >= 0).all():
            streams = stacked.index_select(0, torch.as_tensor(ends, device=stacked.device))
            found.update(lens.look(self._readout, streams, candidates))
        return found
