"""Gram matrices of output projections: what turns a head's slice of the input into the norm of what it adds.

``||W_h z_h||^2 = z_h' G_h z_h`` with ``G_h = W_h' W_h``, computed once per head from the projection's
columns, in float32. A norm that stands between the projection and the residual stream has its gain (and its
centring) folded into W; its scale is applied per token. Costs ``heads * head_dim^2`` floats a layer, and the
exact norm of a head's write then needs head_dim^2 multiplications in place of head_dim * hidden_size.

Shape letters: d residual width, H heads, D width of a head.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from fulgurite.agent.norms import NormSpec

_AT_ONCE = 512  # unit vectors that a projection is asked about in one call


@torch.no_grad()
def effective_weight(projection: nn.Module) -> torch.Tensor:
    """The matrix (d, H*D) that the projection applies, as float32.

    A plain linear map is read; anything else (an adapter on top, packed weights) is asked what it does to
    each unit vector, which is exact for whatever is linear.
    """
    weight = getattr(projection, "weight", None)
    plain = isinstance(weight, torch.Tensor) and weight.is_floating_point() and weight.device.type != "meta"
    if plain and not list(projection.children()) and weight is not None and weight.dim() == 2:
        is_transposed = isinstance(getattr(projection, "nf", None), int)
        found: torch.Tensor = (weight.T if is_transposed else weight).detach().float()
        return found
    return _by_function(projection)


def _by_function(projection: nn.Module) -> torch.Tensor:
    like = next(
        (p for p in projection.parameters() if p.is_floating_point() and p.device.type != "meta"), None
    )
    width = int(projection.in_features)  # type: ignore[arg-type]
    options: dict[str, Any] = {} if like is None else {"dtype": like.dtype, "device": like.device}
    offset = projection(torch.zeros(1, width, **options))
    columns = []
    for start in range(0, width, _AT_ONCE):
        units = torch.zeros(min(_AT_ONCE, width - start), width, **options)
        units.diagonal(start).fill_(1.0)
        columns.append((projection(units) - offset).T.detach().float())
    return torch.cat(columns, 1)


@torch.no_grad()
def gram(weight: torch.Tensor, heads: int, norm: NormSpec | None = None) -> torch.Tensor:
    """G of every head, float32, shape (H, D, D), for a weight of shape (d, H*D)."""
    if norm is not None:
        if norm.centred:
            weight = weight - weight.mean(0, keepdim=True)
        gain = torch.as_tensor(norm.gain, dtype=torch.float32, device=weight.device)
        weight = weight * gain[:, None]
    columns = weight.reshape(weight.shape[0], heads, -1).permute(1, 2, 0)  # (H, D, d)
    with torch.autocast(weight.device.type, enabled=False):  # whatever the host casts its own products to
        return torch.matmul(columns, columns.transpose(1, 2))


def identity_of(projection: nn.Module) -> tuple[object, ...]:
    """Changes when the projection's weights were written to or exchanged: then its Gram matrices are
    stale."""
    marks: list[object] = [getattr(projection, name, None) for name in ("merged", "disable_adapters")]
    marks.append(tuple(getattr(projection, "active_adapters", None) or ()))
    for parameter in projection.parameters():
        marks.append((parameter.data_ptr(), _version(parameter)))
    return tuple(str(mark) for mark in marks)


def _version(parameter: torch.Tensor) -> int:
    return -1 if parameter.is_inference() else parameter._version
