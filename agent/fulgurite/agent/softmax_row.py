"""The softmax row of the last query over the cached keys, as a kernel computes it, never the whole matrix.

From the queries and keys that an attention function was handed, with its scale, mask, window, soft-cap and
learned sinks, in float32. Costs about half of what the kernel reads.

Shape letters: b rows and t positions of the pass, k of them that matter, s keys, H heads.
"""

from __future__ import annotations

from collections.abc import Mapping
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


def recomputed(passing: Pass, call: Mapping[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """The softmax rows that matter, float32 (b, k, H, s), and which keys they see, bool (b, k, s).

    Grouped queries share their keys without a copy of them.

    Parameters
    ----------
    call : the arguments of an attention function, by name.
    """
    query, key, mask = call["query"], call["key"], call.get("attention_mask")
    b, heads, t, width = query.shape
    if mask is None and t > 1 and key.shape[2] > t:
        key = key[:, :, :t]  # an empty static cache: what is beyond the prompt is not filled yet
    s = key.shape[2]
    rows = passing.rows(query.detach().transpose(1, 2)).float()  # (b, k, H, D)
    k = rows.shape[1]
    spread = rows.transpose(1, 2).reshape(b, key.shape[1], heads // key.shape[1] * k, width)
    scores = spread @ key.detach().float().transpose(-1, -2)
    scaling = call.get("scaling")
    scores = scores.reshape(b, heads, k, s).transpose(1, 2)
    scores = scores * (width**-0.5 if scaling is None else float(scaling))
    cap = call.get("softcap")
    if cap is not None:
        scores = torch.tanh(scores / cap) * cap
    visible = seen_keys(passing, mask, s, call.get("sliding_window"), scores.device)
    if mask is not None and mask.dim() == 4 and mask.is_floating_point():
        scores = scores + _mask_rows(passing, mask, s).float()
    scores = scores.masked_fill(~visible[:, :, None], float("-inf"))
    sinks = call.get("s_aux")
    if sinks is None:
        return scores.softmax(-1), visible
    with_sink = torch.cat([scores, sinks.float().reshape(1, 1, -1, 1).expand(b, k, heads, 1)], -1)
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
