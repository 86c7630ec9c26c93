"""The output projections' weights: the Gram matrix of each head, what it was built from, which cannot be had.

Built once, and again where the weights were written to or exchanged. A projection that cannot be read, or
that gives something else than its weights do, is blind: its heads are not told, and why is said.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from fulgurite.agent.anatomy import LayerParts
from fulgurite.agent.grams import gram
from fulgurite.agent.norms import NormSpec
from fulgurite.agent.reduce import Plan
from fulgurite.agent.shield import Shield
from fulgurite.agent.weights import (
    Unreadable,
    effective_bias,
    effective_weight,
    identity_of,
    tolerance,
)
from fulgurite.agent.wiring import LayerWiring, Tap

Array = np.ndarray[Any, Any]


class HeadWeights:
    """Of one model.

    Attributes
    ----------
    stacked : list of Tensor of float32, one per group of the plan, shape (layers, heads, D, D)
    on_host : the same as arrays, where they are in host memory; else none.
    blind : by layer, why its heads cannot be told.
    """

    def __init__(self, layers: Sequence[LayerParts]) -> None:
        self.stacked: list[torch.Tensor] = []
        self.on_host: tuple[Array, ...] = ()
        self.blind: dict[int, str] = {}
        self._layers = tuple(layer for layer in layers if layer.projection is not None)
        self._plain: dict[int, torch.Tensor] = {}
        self._marks: dict[int, tuple[object, ...]] = {}

    @property
    def nbytes(self) -> int:
        """Memory of the Gram matrices."""
        return sum(g.nbytes for g in (self.stacked or self._plain.values()))

    def prepare(self, shield: Shield) -> None:
        """Build all, before anything is known of how the projections' outputs are added."""
        for layer in self._layers:
            with shield.at("gram"):
                self.build(layer, None)

    def build(self, layer: LayerParts, norm: NormSpec | None) -> None:
        """Build those of one layer, with the norm that follows its projection."""
        assert layer.projection is not None
        self._marks[layer.index] = identity_of(layer.projection)
        self.blind.pop(layer.index, None)
        try:
            weight = effective_weight(layer.projection)
            if weight.shape[1] != layer.held_heads * layer.head_dim:
                raise Unreadable("its weights are split over several processes, and not by heads")
            self._plain[layer.index] = gram(weight, layer.held_heads, norm)
        except Unreadable as reason:
            self._plain.pop(layer.index, None)
            self.blind[layer.index] = f"the weights of its output projection are not known: {reason}"

    def complete(self, layout: Plan, wiring: Sequence[LayerWiring]) -> None:
        """The wiring is known: build what has a norm behind it, and what is not there."""
        for layer in self._layers:
            norm = norm_of(wiring, layer.index)
            if (norm or layer.index not in self._plain) and layer.index not in self.blind:
                self.build(layer, norm)
        self.collect(layout)

    def collect(self, layout: Plan) -> None:
        """Put those of a group together, in one tensor that holds them once."""
        grams = [[self._plain[int(index)] for index in group.layers] for group in layout.groups]
        self.stacked = [torch.stack([g.to(group[0].device) for g in group]) for group in grams]
        are_on_host = all(stacked.device.type == "cpu" for stacked in self.stacked)
        self.on_host = tuple(stacked.numpy() for stacked in self.stacked) if are_on_host else ()
        for group, stacked in zip(layout.groups, self.stacked, strict=True):
            for i, index in enumerate(group.layers):
                self._plain[int(index)] = stacked[i]

    def stale(self) -> list[LayerParts]:
        """The layers whose projection was written to or exchanged since theirs were built."""
        return [
            layer
            for layer in self._layers
            if layer.index in self._marks and self._marks[layer.index] != identity_of(layer.projection)  # type: ignore[arg-type]
        ]

    def confirm(
        self, inputs: Mapping[int, torch.Tensor], seen: Sequence[Mapping[Tap, Array]], epsilon: float
    ) -> None:
        """What we read is what the projections applied in this pass; else their heads are not told.

        Parameters
        ----------
        inputs : by layer, what its projection was handed.
        seen : per layer, what was there in the pass, float64 (n, d).
        epsilon : spacing at 1 of the number format of the residual stream.
        """
        for layer in self._layers:
            z = inputs.get(layer.index)
            if layer.index not in self.blind and z is not None:
                reason = _unlike(layer, z, seen[layer.index].get(Tap("projection", "out")), epsilon)
                if reason:
                    self.blind[layer.index] = reason


def norm_of(wiring: Sequence[LayerWiring], index: int) -> NormSpec | None:
    """The norm between the layer's mixer and the residual stream."""
    mixer = wiring[index].mixer if wiring else None
    return mixer.norm if mixer is not None else None


def _unlike(layer: LayerParts, z: torch.Tensor, gave: Array | None, epsilon: float) -> str:
    """Why the projection of `layer` is not what was read, empty where it is."""
    assert layer.projection is not None
    width = layer.held_heads * layer.head_dim
    if z.shape[-1] != width:
        given = f"its output projection was handed {z.shape[-1]} values per position"
        return f"{given}, not the {width} of its heads"
    if gave is None or layer.held_heads != layer.heads:
        return ""
    try:
        with torch.no_grad(), torch.autocast(z.device.type, enabled=False):
            error = _misfit(layer.projection, z, gave)
    except Unreadable as reason:
        return f"its output projection is not known: {reason}"
    if error > max(tolerance(layer.projection), 4 * epsilon):
        return f"its output projection gave something else than its weights do (by {error:.0%})"
    return ""


def _misfit(projection: nn.Module, z: torch.Tensor, gave: Array) -> float:
    """Relative error of what the matrix gives for `z` against what the projection gave."""
    weight, bias = effective_weight(projection), effective_bias(projection)
    made = z.detach().reshape(-1, z.shape[-1]).to(weight.device, torch.float32) @ weight.T
    wanted = torch.as_tensor(gave, dtype=torch.float32, device=weight.device)
    if bias is not None:
        wanted = wanted - bias.to(weight.device, torch.float32)
    if made.shape != wanted.shape:
        return float("inf")
    return float((made - wanted).norm() / made.norm().clamp(min=1e-12))
