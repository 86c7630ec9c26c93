"""What one pass showed of how a model adds its parts, and why a model cannot be measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from fulgurite.agent.wiring import LayerWiring

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
