"""The softmax row of the last query over the cached keys, as a kernel computes it, never the whole matrix.

From the queries and keys that an attention function was handed, with its scale, mask, window, soft-cap and
learned sinks, in float32. Costs about half of what the kernel reads.

Shape letters: b rows and t positions of the pass, k of them that matter, s keys, H heads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from fulgurite.agent.probes import Pass


def exact(tensor: torch.Tensor) -> torch.autocast:
    """Our own arithmetic is float32, whatever the host casts its own to."""
    return torch.autocast(tensor.device.type, enabled=False)


def is_plain(call: Mapping[str, Any], passing: Pass) -> bool:
    """Whether this is a call whose row we know how to form."""
    packed = any(call.get(name) is not None for name in ("cu_seq_lens_q", "cu_seqlens_q", "position_bias"))
    query, key, mask = call["query"], call["key"], call.get("attention_mask")
    shaped = query.dim() == 4 and query.shape[0] == passing.batch and query.shape[2] == passing.width
    grouped = key.dim() == 4 and query.shape[1] % key.shape[1] == 0
    told = mask is None or (isinstance(mask, torch.Tensor) and mask.shape[-1] >= key.shape[-2])
    return shaped and grouped and told and not packed


@dataclass(frozen=True, slots=True, eq=False)
class Products:
    """The queries that matter of one call, times its keys, and what makes softmax rows of them.

    Attributes
    ----------
    dots : Tensor of float32, b * H * k * s items: by row, key head, query head of it, position, key.
    heads, positions : H and k.
    scaling, cap, window : as the attention function was told; None: none.
    mask : likewise, of the pass.
    sinks : learned logits, (H,), that take their part of each row; None: none.
    """

    dots: torch.Tensor
    heads: int
    positions: int
    scaling: float
    cap: float | None
    window: int | None
    mask: torch.Tensor | None
    sinks: torch.Tensor | None

    @property
    def likeness(self) -> tuple[object, ...]:
        """Rows of calls in which this is the same are formed together."""
        shape = (self.dots.shape, self.dots.device, self.heads)
        return (*shape, self.scaling, self.cap, self.window, id(self.mask), self.sinks is None)


def products(passing: Pass, call: Mapping[str, Any]) -> Products:
    """Of one call. Grouped queries share their keys without a copy of them.

    Parameters
    ----------
    call : the arguments of an attention function, by name.
    """
    query, key, mask = call["query"], call["key"], call.get("attention_mask")
    b, heads, t, width = query.shape
    if mask is None and t > 1 and key.shape[2] > t:
        key = key[:, :, :t]  # an empty static cache: what is beyond the prompt is not filled yet
    rows = passing.rows(query.detach().transpose(1, 2)).float()  # (b, k, H, D)
    k = rows.shape[1]
    spread = rows.transpose(1, 2).reshape(b, key.shape[1], heads // key.shape[1] * k, width)
    dots = spread @ key.detach().float().transpose(-1, -2)
    scaling, window, sinks = (call.get(name) for name in ("scaling", "sliding_window", "s_aux"))
    return Products(
        dots,
        heads,
        k,
        width**-0.5 if scaling is None else float(scaling),
        call.get("softcap"),
        window if isinstance(window, int) and window > 0 else None,
        mask,
        None if sinks is None else sinks.detach().float(),
    )


def softmax_rows(passing: Pass, calls: Sequence[Products]) -> tuple[torch.Tensor, torch.Tensor]:
    """The softmax rows of g calls that are alike, float32 (g, b, k, H, s), and which keys all of them see,
    bool (b, k, s)."""
    first = calls[0]
    b, s, k, heads = passing.batch, first.dots.shape[-1], first.positions, first.heads
    scores = torch.stack([one.dots for one in calls]).view(len(calls), b, heads, k, s).transpose(2, 3)
    scores = scores * first.scaling
    if first.cap is not None:
        scores = torch.tanh(scores / first.cap) * first.cap
    mask = first.mask
    visible = seen_keys(passing, mask, s, first.window, scores.device)
    if mask is not None and mask.dim() == 4 and mask.is_floating_point():
        scores = scores + _mask_rows(passing, mask, s).float()
    scores = scores.masked_fill(~visible[:, :, None], float("-inf"))
    if first.sinks is None:
        return scores.softmax(-1), visible
    sinks = torch.stack([one.sinks for one in calls if one.sinks is not None]).view(-1, 1, 1, heads, 1)
    with_sink = torch.cat([scores, sinks.expand(-1, b, k, -1, -1)], -1)
    return with_sink.softmax(-1)[..., :-1], visible


def seen_keys(passing: Pass, mask: Any, keys: int, window: Any, device: Any) -> torch.Tensor:
    """Which keys the positions that matter may see, bool (b, k, s).

    A mask of four dimensions says it all; one of two (or none) is told to kernels that know about causality
    and windows themselves.
    """
    if isinstance(mask, torch.Tensor) and mask.dim() == 4:
        rows = _mask_rows(passing, mask, keys)
        found = rows if rows.dtype == torch.bool else rows > torch.finfo(rows.dtype).min / 2
        return found.any(2).to(device)
    queries = torch.arange(keys - passing.width, keys, device=device).expand(passing.batch, -1)
    places = passing.rows(queries[..., None])[..., 0]  # (b, k)
    order = torch.arange(keys, device=device)
    found = order <= places[..., None]
    if isinstance(window, int) and window > 0:
        found = found & (order > places[..., None] - window)
    if isinstance(mask, torch.Tensor):
        found = found & (mask[:, None, -keys:] != 0).to(device)
    return found


def _mask_rows(passing: Pass, mask: torch.Tensor, keys: int) -> torch.Tensor:
    """The rows of a mask (b or 1, H or 1, t, s) that matter, (b, k, H or 1, s)."""
    spread = mask[..., :keys].expand(passing.batch, -1, -1, -1)[:, :, -passing.width :]
    return passing.rows(spread.transpose(1, 2))
