"""The logit lens: what the most probable final tokens would be given after each layer.

The final norm and the unembedding are applied to the residual stream as each layer left it, for the final
candidates alone: their rows of the unembedding, never the whole vocabulary. Rank and probability are among
these candidates. Costs one small product per layer, for sampled tokens.

Shape letters: n rows, L layers, d residual width, K candidates.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from fulgurite.agent.readout import Readout
from fulgurite.wire.channels import TOP_K

Array = np.ndarray[Any, Any]
CHANNELS = ("lens_rank", "lens_prob")


def look(readout: Readout, streams: torch.Tensor, candidates: torch.Tensor) -> dict[str, torch.Tensor]:
    """Rank and probability of each candidate after each layer, (n, L, K).

    Parameters
    ----------
    streams : Tensor of float32, shape (L, n, d), what each layer left
    candidates : Tensor of int64, shape (n, K)
    """
    norm = readout.norm
    gain, beta = (
        torch.as_tensor(v, dtype=torch.float32, device=streams.device) for v in (norm.gain, norm.bias)
    )
    centred = streams - streams.mean(-1, keepdim=True) if norm.centred else streams
    scale = (centred.square().mean(-1, keepdim=True) + norm.eps).sqrt()
    read = (centred / scale * gain + beta).transpose(0, 1)  # (n, L, d)
    chosen = candidates.to(readout.weight.device)
    logits = read @ readout.weight[chosen].to(read.device, torch.float32).transpose(-1, -2)
    if readout.bias is not None:
        logits = logits + readout.bias[chosen].to(read.device, torch.float32)[:, None]
    logits = logits * readout.scale
    if readout.cap is not None:
        logits = torch.tanh(logits / readout.cap) * readout.cap
    return {
        "lens_rank": (logits[..., None, :] > logits[..., :, None]).sum(-1),
        "lens_prob": logits.softmax(-1),
    }


def columns(host: Mapping[str, Array]) -> dict[str, Array]:
    """The channels, K wide even where the vocabulary is smaller: −1 and NaN."""
    short = [(0, 0), (0, 0), (0, TOP_K - host["lens_rank"].shape[-1])]
    return {
        "lens_rank": np.pad(host["lens_rank"].astype(np.int32), short, constant_values=-1),
        "lens_prob": np.pad(host["lens_prob"].astype(np.float32), short, constant_values=np.nan),
    }
