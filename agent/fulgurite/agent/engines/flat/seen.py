"""What one pass showed of how a model adds its parts, and why a model cannot be measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from fulgurite.agent.engines.flat.matrices import bias_of
from fulgurite.agent.wiring import LayerWiring, Tap

Array = np.ndarray[Any, Any]


class Unsupported(Exception):
    """The inside of this model cannot be measured here; says why."""


@dataclass(frozen=True, slots=True, eq=False)
class Trial:
    """What the pass showed.

    Attributes
    ----------
    wiring : of each layer.
    handed, gave : by layer, what its output projection was handed and gave, float64 (n, i) and (n, d).
    final : ``into``, ``out`` of the final norm and ``end``, the last layer's output, float64 (n, d).
    logits : float tensor (n, V), None where this process has none.
    epsilon : spacing of the number format at 1.
    ffn_gave : by layer, what its feed-forward part gave.
    down_handed, down_gave : as `handed` and `gave`, of the last linear map of the feed-forward part.
    paired : layers that hand on two tensors which are, bit for bit, what the feed-forward part adds and the
        stream after the mixer.
    """

    wiring: tuple[LayerWiring, ...]
    handed: Mapping[int, Array]
    gave: Mapping[int, Array]
    final: Mapping[str, Array]
    logits: torch.Tensor | None
    epsilon: float
    paired: frozenset[int] = frozenset()
    down_handed: Mapping[int, Array] = field(default_factory=dict)
    down_gave: Mapping[int, Array] = field(default_factory=dict)
    ffn_gave: Mapping[int, Array] = field(default_factory=dict)

    def misfit(self, linear: nn.Module, weight: torch.Tensor, layer: int, *, down: bool = False) -> float:
        """How far what `linear` of `layer` gave is from what `weight` (d, i) gives, as a share of that.

        Parameters
        ----------
        down : it is the last one of the feed-forward part, and not the output projection.
        """
        handed = (self.down_handed if down else self.handed).get(layer)
        gave = (self.down_gave if down else self.gave).get(layer)
        if handed is None or gave is None or handed.shape[-1] != weight.shape[1]:
            return float("inf")
        made = handed @ weight.double().cpu().numpy().T
        bias = bias_of(linear)
        if bias is not None:
            made = made + bias.double().cpu().numpy()
        return float(np.linalg.norm(made - gave)) / max(float(np.linalg.norm(made)), 1e-12)

    @property
    def close(self) -> float:
        """A misfit that rounding explains."""
        return max(1e-3, 4 * self.epsilon)


def gathered(seen: Sequence[Mapping[Tap, Array]], tap: Tap) -> dict[int, Array]:
    """What was seen at `tap`, by layer, of the layers where it was."""
    return {index: taps[tap] for index, taps in enumerate(seen) if tap in taps}
