"""The keys and values in vLLM's pages, on the CPU.

How a page is laid out depends on the instructions that the kernel was made for. It is asked and not assumed:
numbers are written into a page of our own by the function that writes the cache, and looked for there.

Shape letters: p positions of a page, G key heads, D width of a head.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import torch
from torch import nn

from fulgurite.agent.anatomy import LayerParts
from fulgurite.agent.engines.flat.attended import Looked, Unread

_AT_ONCE: Final = 2048  # positions
_NUMBERS: Final = {torch.float32: torch.int32, torch.bfloat16: torch.int16, torch.float16: torch.int16}
_FIRST, _GAP = 0x7C00, 0x0400  # patterns of two bytes that are no number in one of the two formats


class CpuPages:
    """Of one attention module, whose cache is there when it has run."""

    def __init__(self, module: Any) -> None:
        self._module = module
        self._order: tuple[torch.Tensor, torch.Tensor] | None = None

    def read(self, where: Any, first: int, count: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """See `Pages.read`; `where` are the numbers of a request's pages."""
        cache = self._cache()
        size, width = cache.shape[2], cache.shape[3] // 2
        if self._order is None:
            self._order = self._asked(cache)
        keys, values = self._order
        pages = torch.as_tensor(where, dtype=torch.int64)
        if pages.numel() * size < count:
            raise Unread("the pages of a request are not of the size that its layer's cache has")
        step = max(1, _AT_ONCE // size)
        for start in range(first // size, -(-count // size), step):
            chosen = pages[start : start + step]
            held = cache[chosen].reshape(len(chosen), cache.shape[1], 2, size * width)
            found = (
                held[:, :, i].index_select(-1, order).view(len(chosen), -1, size, width)
                for i, order in enumerate((keys, values))
            )
            skipped, end = max(0, first - start * size), min(len(chosen) * size, count - start * size)
            yield tuple(part.transpose(1, 2).flatten(0, 1)[skipped:end].float() for part in found)  # type: ignore[misc]

    def _cache(self) -> torch.Tensor:
        cache = self._module.kv_cache
        cache = cache[0] if isinstance(cache, (list, tuple)) else cache
        shape = (self._module.num_kv_heads, 2 * self._module.head_size)
        if cache.dim() != 4 or (cache.shape[1], cache.shape[3]) != shape or cache.dtype not in _NUMBERS:
            raise Unread(f"its cache is not one that we know ({tuple(cache.shape)}, {cache.dtype})")
        found: torch.Tensor = cache
        return found

    def _asked(self, cache: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Where in a page each number (p * D) of keys and of values is: int64 (p * D,) each."""
        _, heads, size, width = cache.shape
        width //= 2
        count = size * width
        if cache.element_size() == 2 and count > (1 << 16) - 2 * _GAP:
            raise Unread("a page has more numbers than its number format has")
        page = torch.zeros(1, heads, size, 2 * width, dtype=cache.dtype)
        marks = _marks(count, cache.dtype)
        given = marks.view(size, 1, width).expand(size, heads, width).contiguous()
        self._module.impl.do_kv_cache_update(self._module, given, given.clone(), page, torch.arange(size))
        kind = _NUMBERS[cache.dtype]
        wanted = marks.view(kind)
        orders = []
        for half in page.view(kind).reshape(heads, 2, count).unbind(1):
            told, places = half[0].sort()
            sought, order = wanted.sort()
            if not torch.equal(told, sought) or not (half == half[0]).all():
                raise Unread("the layout of its cache's pages was not found")
            place = torch.empty(count, dtype=torch.int64)
            place[order] = places
            orders.append(place)
        return orders[0], orders[1]


def _marks(count: int, dtype: torch.dtype) -> torch.Tensor:
    """So many different numbers of a format, none of which is infinite or no number."""
    if dtype == torch.float32:
        return torch.arange(count, dtype=dtype)
    patterns = torch.arange(count)
    patterns = torch.where(patterns >= _FIRST, patterns + _GAP, patterns)
    return torch.where(patterns >= 1 << 15, patterns - (1 << 16), patterns).to(torch.int16).view(dtype)


def looked(
    attention: Mapping[int, nn.Module], layers: Sequence[LayerParts], device: torch.device
) -> dict[int, Looked | str]:
    """By layer with heads, what can be looked at of its attention, or why it cannot."""
    return {layer.index: _looked(attention.get(layer.index), device) for layer in layers if layer.heads}


def _looked(module: Any, device: torch.device) -> Looked | str:
    impl: Any = getattr(module, "impl", None)
    if device.type != "cpu":
        return "its cache is on a device, whose captured graphs cannot choose their steps"
    needed = ("num_heads", "num_kv_heads", "scale", "do_kv_cache_update")
    if impl is None or any(not hasattr(impl, name) for name in needed) or not hasattr(module, "head_size_v"):
        return "its attention is of a kind that we do not know"
    for name, is_so in (
        ("has learned sinks", getattr(impl, "sinks", None) is not None),
        ("is biased by distance", getattr(impl, "alibi_slopes", None) is not None),
        ("shares another layer's cache", module.kv_sharing_target_layer_name is not None),
        ("has values of another width than keys", module.head_size_v != module.head_size),
        ("keeps keys in fewer bits", str(module.kv_cache_dtype).startswith("fp8")),
    ):
        if is_so:
            return f"its attention {name}"
    return Looked(
        module,
        int(impl.num_heads),
        int(impl.num_kv_heads),
        int(module.head_size),
        float(impl.scale),
        float(getattr(impl, "logits_soft_cap", 0) or 0),
        int(module.sliding_window or 0),
        CpuPages(module),
    )
