"""Gram matrices of output projections: what turns a head's slice of the input into the norm of what it adds.

``||W_h z_h||^2 = z_h' G_h z_h`` with ``G_h = W_h' W_h``, computed once per head from the projection's
columns, in float32. A norm that stands between the projection and the residual stream has its gain (and its
centring) folded into W; its scale is applied per token. Costs ``heads * head_dim^2`` floats a layer, and the
exact norm of a head's write then needs head_dim^2 multiplications in place of head_dim * hidden_size.

Shape letters: d residual width, H heads, D width of a head.
"""

from __future__ import annotations

import torch

from fulgurite.agent.norms import NormSpec


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
