"""Which experts each token is sent to, read where vLLM's routers decide it.

A router is no module, and it is called inside an operator that graphs do not see into; so its decision is
wrapped on the instance, and the rows that matter are copied at once (`desk`). What is told are the ids before
experts are moved between processes, and the weights that are applied.

Shape letters: n rows, L layers, E experts per token.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from fulgurite.agent.anatomy import LayerParts
from fulgurite.agent.engines.flat.desk import Desk, Plane
from fulgurite.agent.engines.vllm.around import around

Array = np.ndarray[Any, Any]


class Routing:
    """The routers of one model.

    Parameters
    ----------
    most : experts per token, of the layer that has most.
    """

    def __init__(self, layers: Sequence[LayerParts], desk: Desk, most: int) -> None:
        self._layers = len(layers)
        self._desk = desk
        self._most = most
        routed = [layer for layer in layers if len(layer.experts) == 1]
        self._of = [layer.index for layer in routed]
        self._ids, id_planes = desk.planes(len(routed), most, torch.int64)
        self._weights, weight_planes = desk.planes(len(routed), most, torch.float32)
        self._planes = list(zip(id_planes, weight_planes, strict=True))
        for layer, planes in zip(routed, self._planes, strict=True):
            router: Any = layer.experts[0].router
            around(router, "_compute_routing", self._deciding(*planes))

    def _deciding(self, ids: Plane, weights: Plane) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        def making(original: Callable[..., Any]) -> Callable[..., Any]:
            def compute_routing(*args: Any, **kwargs: Any) -> Any:
                found = original(*args, **kwargs)
                if found[1].shape[-1] == self._most:
                    self._desk.keep(ids, found[1], None)
                    self._desk.keep(weights, found[0], None)
                return found

            return compute_routing

        return making

    def columns(self, rows: torch.Tensor | slice) -> dict[str, Array]:
        """The channels, (n, L, E): −1 and NaN where a layer routes nothing or was not seen in this step."""
        seen = [i for i, planes in enumerate(self._planes) if self._desk.is_written(list(planes))]
        if not seen:
            return {}
        ids, weights = self._ids[seen][:, rows].cpu().numpy(), self._weights[seen][:, rows].cpu().numpy()
        layers = [self._of[i] for i in seen]
        shape = (ids.shape[1], self._layers, self._most)
        told, gates = np.full(shape, -1, np.int16), np.full(shape, np.nan, np.float32)
        told[:, layers], gates[:, layers] = ids.transpose(1, 0, 2), weights.transpose(1, 0, 2)
        return {"expert_ids": told, "expert_weights": gates}
