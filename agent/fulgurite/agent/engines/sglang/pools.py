"""The keys and values in SGLang's pool of positions, and the attention modules that can be looked at."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

import torch

from fulgurite.agent.anatomy import LayerParts
from fulgurite.agent.engines.flat.attended import Looked, Unread

_AT_ONCE: Final = 2048  # positions
_POOL: Final = "MHATokenToKVPool"
_DEVICE: Final = "its cache is on a device, whose captured graphs cannot choose their steps"


class Slots:
    """Of one layer: each position of a request has a place of its own.

    Parameters
    ----------
    runner : the pool is its own, and there when it has run.
    layer : its number in the pool.
    """

    def __init__(self, runner: Any, layer: int, shape: tuple[int, int]) -> None:
        self._runner = runner
        self._layer = layer
        self._shape = shape

    def read(self, where: Any, first: int, count: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """See `Pages.read`; `where` are the places of all positions of a request."""
        pool = self._runner.token_to_kv_pool
        held = [pool.get_key_buffer(self._layer), pool.get_value_buffer(self._layer)]
        if type(pool).__name__ != _POOL or any(part.shape[1:] != self._shape for part in held):
            raise Unread(f"its cache is not one that we know ({type(pool).__name__})")
        if where.shape[0] < count or held[0].element_size() < 2:
            raise Unread("its cache does not hold what a row has seen")
        for places in where[first:count].long().split(_AT_ONCE):
            keys, values = (part.index_select(0, places).float() for part in held)
            yield keys, values


def looked(runner: Any, layers: Sequence[LayerParts], device: torch.device) -> dict[int, Looked | str]:
    """By layer with heads, what can be looked at of its attention, or why it cannot."""
    return {layer.index: _looked(runner, layer, device) for layer in layers if layer.heads}


def _looked(runner: Any, layer: LayerParts, device: torch.device) -> Looked | str:
    if device.type != "cpu":
        return _DEVICE
    module: Any = next(m for m in layer.block.modules() if type(m).__name__ == "RadixAttention")
    for name, is_so in (
        ("looks at other tokens than its own", bool(module.is_cross_attention)),
        ("has values of another width than keys", module.v_head_dim != module.qk_head_dim),
        ("scales its products by their number", int(getattr(module, "xai_temperature_len", -1)) > 0),
        ("caps its products in a way that we do not know", module.logit_capping_method != "tanh"),
        ("has learned sinks", any("sink" in name for name, _ in layer.block.named_parameters())),
    ):
        if is_so:
            return f"its attention {name}"
    width, window = int(module.qk_head_dim), int(module.sliding_window_size)
    return Looked(
        module,
        int(module.tp_q_head_num),
        int(module.tp_k_head_num),
        width,
        float(module.scaling),
        float(module.logit_cap or 0),
        window + 1 if window > 0 else 0,  # it counts the positions before the query
        Slots(runner, int(module.layer_id), (int(module.tp_k_head_num), width)),
    )
