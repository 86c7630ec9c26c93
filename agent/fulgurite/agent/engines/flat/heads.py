"""What turns the heads' outputs into the norms of what they add, for the layers of a vLLM model.

Gram matrices of the columns that this process holds (`fulgurite.agent.grams`), confirmed on the values of the
trial pass where one process has them all.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from fulgurite.agent.anatomy import LayerParts
from fulgurite.agent.engines.flat.matrices import matrix_of
from fulgurite.agent.engines.flat.seen import Trial
from fulgurite.agent.grams import gram
from fulgurite.agent.reduce import Plan
from fulgurite.agent.weights import Unreadable
from fulgurite.agent.wiring import LayerWiring


class Heads:
    """The Gram matrices of a model, and the layers whose heads are not told.

    Attributes
    ----------
    blind : by layer, why.
    """

    def __init__(self, layers: Sequence[LayerParts], trial: Trial) -> None:
        self.blind: dict[int, str] = {}
        self._grams: dict[int, torch.Tensor] = {}
        for layer, wires in zip(layers, trial.wiring, strict=True):
            if layer.projection is not None and wires.mixer is not None:
                self._build(layer, wires, trial)

    def _build(self, layer: LayerParts, wires: LayerWiring, trial: Trial) -> None:
        assert layer.projection is not None
        try:
            weight = matrix_of(layer.projection).float()
        except Unreadable as reason:
            self.blind[layer.index] = f"the weights of its output projection are not known: {reason}"
            return
        if layer.held_heads == layer.heads:
            error = trial.misfit(layer.projection, weight, layer.index)
            if error > trial.close:
                self.blind[layer.index] = (
                    f"its output projection gave something else than its weights do (by {error:.0%})"
                )
                return
        self._grams[layer.index] = gram(weight, layer.held_heads, wires.mixer.norm if wires.mixer else None)

    def stacked(self, layout: Plan) -> list[torch.Tensor]:
        """Of each group of the plan, float32 (layers, heads, D, D)."""
        return [torch.stack([self._grams[int(i)] for i in group.layers]) for group in layout.groups]
