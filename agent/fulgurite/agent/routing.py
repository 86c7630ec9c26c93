"""Where the last query of a pass looks, told in a few numbers per head. This is routing, not importance.

A key is named by its distance from the query, counted in keys that the query may see: so neither padding, a
sliding window nor a cache of fixed size shifts a position. Pure: takes softmax rows, gives channels.

Shape letters: n rows that are measured, b rows of the pass, k of its positions that matter, s keys, L layers,
H heads, K top entries, B buckets of heat.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from fulgurite.agent.anatomy import LayerParts
from fulgurite.wire.channels import KV_HEAT_BUCKETS, KV_HEAT_RECENT, TOP_K

Array = np.ndarray[Any, Any]
CHANNELS = (
    "attention_entropy",
    "sink_mass",
    "attended_positions",
    "attended_weights",
    "measured_layers",
    "kv_heat",
)
LEARNED = "learned_sink_mass"
_SMALLEST = torch.finfo(torch.float32).tiny  # of which the logarithm is finite; times a weight of 0 it is 0


@dataclass(frozen=True, slots=True)
class HeadsOf:
    """The heads of one layer that this process holds: all that the channels need to know of a layer.

    Attributes
    ----------
    first, held : the first one, and how many.
    has_sinks : whether they have learned sinks.
    """

    first: int
    held: int
    has_sinks: bool


def heads_of(layer: LayerParts) -> HeadsOf:
    """Those of `layer`."""
    return HeadsOf(layer.first_head, layer.held_heads, learned_sinks(layer) is not None)


def learned_sinks(layer: LayerParts) -> torch.Tensor | None:
    """The learned sink logits of a layer's heads, (H,), None where it has none."""
    if layer.mixer is None:
        return None
    for name, parameter in layer.mixer.named_parameters(recurse=False):
        if "sink" in name and parameter.shape == (layer.heads,):
            return parameter
    return None


def summary(weights: torch.Tensor, visible: torch.Tensor, *, is_whole: bool) -> torch.Tensor:
    """What is told of rows (…, b, k, H, s) that see the same keys (b, k, s): one vector per row of the pass,
    float32 (…, b, k, H * (3 + 2 * K) + B + 1).

    In it, per head: entropy, sum, weight of the first key that is seen, K largest weights, their distances;
    then the mean mass per bucket of distance, and the number of keys that are seen. `is_whole`: the rows sum
    to 1, no learned sink takes its part.
    """
    *outer, heads, s = weights.shape
    weights = weights.masked_fill(~visible[:, :, None], 0.0)
    after = visible.flip(-1).cumsum(-1).flip(-1)  # keys that are seen from here to the query, itself included
    distance = (after - 1).clamp_(min=0)
    first = visible.int().argmax(-1)[..., None, None].expand(*outer, heads, 1)
    top = torch.topk(weights, min(TOP_K, s), -1)
    back = distance[:, :, None].expand(*outer, heads, s).gather(-1, top.indices).float()
    back = torch.where(top.values > 0, back, -1.0)
    short = TOP_K - top.values.shape[-1]
    values, back = (nn.functional.pad(x, (0, short), value=-1.0) for x in (top.values, back))
    heat = torch.zeros(*outer, KV_HEAT_BUCKETS, device=weights.device)
    heat.scatter_add_(-1, bucket_of(distance).expand(*outer, s), weights.mean(-2))
    told = (
        _entropy(weights, top.values[..., 0], top.indices[..., :1], is_whole=is_whole),
        weights.sum(-1),
        weights.gather(-1, first)[..., 0],
        values,
        back,
        heat,
        after[..., :1].float().expand(*outer, 1),
    )
    return torch.cat([x.reshape(*outer, -1).float() for x in told], -1)


def _entropy(
    weights: torch.Tensor, largest: torch.Tensor, places: torch.Tensor, *, is_whole: bool
) -> torch.Tensor:
    """-sum w ln w over the keys, (…, H); `largest` (…, H) are the largest weights, `places` (…, H, 1) where
    they are.

    A weight close to 1 has no digits left: in a row that sums to 1 it is told from all the others.
    """
    others = weights.scatter(-1, places, 0.0)
    of_others = (others * torch.log(others.clamp(min=_SMALLEST))).sum(-1)
    plain: torch.Tensor = -(of_others + torch.special.xlogy(largest, largest))
    if not is_whole:
        return plain
    rest = others.sum(-1).clamp_(max=0.5)
    return torch.where(rest < 0.5, -of_others - (1.0 - rest) * torch.log1p(-rest), plain)


def bucket_of(distance: torch.Tensor) -> torch.Tensor:
    """The bucket of heat of keys at these distances, int64; the first position's own bucket apart."""
    edges = KV_HEAT_RECENT * 2 ** torch.arange(KV_HEAT_BUCKETS - KV_HEAT_RECENT, device=distance.device)
    middle = KV_HEAT_BUCKETS - KV_HEAT_RECENT - torch.bucketize(distance, edges, right=True)
    return torch.where(distance < KV_HEAT_RECENT, KV_HEAT_BUCKETS - 1 - distance, middle.clamp(min=1))


def columns(
    told: Mapping[int, Array], positions: Array, layers: Sequence[HeadsOf], heads: int
) -> dict[str, Array]:
    """The channels, rows first, NaN and −1 where a layer was not looked at.

    Parameters
    ----------
    told : by layer, its `summary` as ndarray of float32, shape (n, width)
    positions : ndarray of int, shape (n,), of the emitted tokens: the query stood one before.
    """
    n, count = len(positions), len(layers)
    found: dict[str, Array] = {
        "attention_entropy": np.full((n, count, heads), np.nan, np.float32),
        "sink_mass": np.full((n, count, heads), np.nan, np.float32),
        "attended_positions": np.full((n, count, heads, TOP_K), -1, np.int32),
        "attended_weights": np.full((n, count, heads, TOP_K), np.nan, np.float32),
        "measured_layers": np.zeros((n, count), np.uint8),
        "kv_heat": np.full((n, count, KV_HEAT_BUCKETS), np.nan, np.float32),
    }
    if any(layer.has_sinks for layer in layers):
        found[LEARNED] = np.full((n, count, heads), np.nan, np.float32)
    for index, rows in told.items():
        for name, value in _of_layer(rows, positions, layers[index]).items():
            target = found[name][:, index]
            if value.ndim > 1 and name != "kv_heat":
                layer = layers[index]
                target[:, layer.first : layer.first + layer.held] = value
            else:
                target[:] = value
    return found


def _of_layer(rows: Array, positions: Array, layer: HeadsOf) -> dict[str, Array]:
    heads = layer.held
    cuts = np.cumsum([heads, heads, heads, heads * TOP_K, heads * TOP_K, KV_HEAT_BUCKETS])
    entropy, total, first, weights, back, heat, seen = np.split(rows, cuts, axis=-1)
    weights, back = (x.reshape(-1, heads, TOP_K) for x in (weights, back))
    is_sink = (
        np.round(seen).astype(np.int64) == positions[:, None]
    )  # the first key that is seen is the first of all
    here = np.round(positions[:, None, None] - 1 - back).astype(np.int32)
    found = {
        "attention_entropy": entropy,
        "sink_mass": np.where(is_sink, first, 0.0),
        "attended_positions": np.where(back >= 0, here, -1),
        "attended_weights": np.where(back >= 0, weights, np.nan),
        "measured_layers": np.ones(len(rows), np.uint8),
        "kv_heat": _heat(heat, first.mean(-1), np.round(seen[:, 0]).astype(np.int64), is_sink[:, 0]),
    }
    if layer.has_sinks:
        found[LEARNED] = np.clip(1.0 - total, 0.0, 1.0)
    return found


def _heat(heat: Array, first: Array, seen: Array, is_sink: Array) -> Array:
    """Mass per bucket with the first position in its own, NaN where a bucket holds no key that is seen."""
    found = heat.copy()
    row = np.arange(len(found))
    last = _bucket_of(seen - 1)
    found[row, last] = np.where(is_sink, np.maximum(found[row, last] - first, 0.0), found[row, last])
    nearest = np.array([0, *(_nearest(bucket) for bucket in range(1, KV_HEAT_BUCKETS))])
    held = nearest[None, :] < (seen - is_sink)[:, None]
    found[:, 0], held[:, 0] = first, is_sink
    found[~held] = np.nan
    return found


def _bucket_of(distance: Array) -> Array:
    """As `bucket_of`, by numpy: whoever reads the block asks for no thread of torch."""
    edges = KV_HEAT_RECENT * 2 ** np.arange(KV_HEAT_BUCKETS - KV_HEAT_RECENT)
    middle = KV_HEAT_BUCKETS - KV_HEAT_RECENT - np.searchsorted(edges, distance, side="right")
    return np.where(distance < KV_HEAT_RECENT, KV_HEAT_BUCKETS - 1 - distance, np.maximum(middle, 1))


def _nearest(bucket: int) -> int:
    """The smallest distance in a bucket."""
    recent = KV_HEAT_BUCKETS - 1 - bucket
    if recent < KV_HEAT_RECENT:
        return recent
    return int(KV_HEAT_RECENT * 2 ** (KV_HEAT_BUCKETS - KV_HEAT_RECENT - 1 - bucket))
