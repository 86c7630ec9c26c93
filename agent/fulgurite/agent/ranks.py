"""Frames of one token from the processes that share a model by tensor parallelism, put together.

Each rank captures what it computes: its own heads, and whatever stands behind an all-reduce in full.
Nothing is exchanged while the model runs: no collective is added, and a rank without an agent stops nobody.
Heads are disjoint over ranks, so they are set side by side; contributions are linear, so they add; norms of
the feed-forward parts are those behind the all-reduce, and are taken once.

Pure: takes blocks, gives blocks. Ranks observed since the same pass count steps alike, which is how their
frames are matched.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from fulgurite.agent.anatomy import LayerParts
from fulgurite.wire.frame import FrameBlock
from fulgurite.wire.topology import Topology

Array = np.ndarray[Any, Any]
OWN = ("head_write", "kv_bytes")
OWN_DEEP = (
    "head_contribution", "residue", "attention_entropy", "sink_mass", "learned_sink_mass",
    "attended_positions", "attended_weights", "kv_heat", "neuron_ids", "neuron_values",
)  # fmt: skip
_BY_HEAD = (
    "head_write", "head_contribution", "attention_entropy", "sink_mass", "learned_sink_mass",
    "attended_weights",
)  # fmt: skip
_SAME = ("position", "sequence", "token_id", "step", "measured_layers")
_SUMS = ("residue", "kv_bytes", "kv_heat", "neuron_ids", "neuron_values")
TOLD = ("position", "sequence", "step", "level", *OWN, *OWN_DEEP, "measured_layers", "logit_centered")
_PARTLY = "(tensor parallelism)"


def elsewhere(layer: LayerParts) -> str:
    """Why this process does not tell all heads of `layer`, empty where it does."""
    if layer.projection is None or layer.held_heads == layer.heads:
        return ""
    last = layer.first_head + layer.held_heads - 1
    return (
        f"this process tells of heads {layer.first_head} to {last} of {layer.heads} and of its own share of "
        f"neurons and cache; the rest is in the frames of the other ranks {_PARTLY}"
    )


def merge(blocks: Sequence[FrameBlock]) -> FrameBlock:
    """One block of the same frames as all ranks together see them.

    Parameters
    ----------
    blocks : of the same step, one per rank in order of rank; identity and times are the first one's.

    Raises
    ------
    ValueError
        Where they are not of the same tokens, or nobody sent any.
    """
    if not blocks:
        raise ValueError("merge() needs the block of at least one rank")
    parts = _alike([block.columns for block in blocks])
    for name in _SAME:
        held = [part[name] for part in parts if name in part]
        if any(not np.array_equal(held[0], other) for other in held[1:]):
            raise ValueError(f"these blocks are not of the same tokens: their {name} differ")
    columns = dict(parts[0])
    for name in _BY_HEAD:
        if name in columns:
            columns[name] = _side_by_side([part[name] for part in parts if name in part])
    if "attended_positions" in columns:
        columns["attended_positions"] = np.maximum.reduce(_all(parts, "attended_positions"))
    if "kv_bytes" in columns:
        columns["kv_bytes"] = np.sum(_all(parts, "kv_bytes"), axis=0)
    if "kv_heat" in columns and "attention_entropy" in columns:
        columns["kv_heat"] = _heat(parts)
    if "neuron_ids" in columns:
        columns.update(_neurons(parts))
    if "residue" in columns:
        columns.update(_residue(parts))
    return FrameBlock(blocks[0].requests, columns, blocks[0].texts)


def share(block: FrameBlock) -> dict[str, Array]:
    """What another process needs of a block to put its own together: nothing that says which tokens these
    are."""
    return {name: column for name, column in block.columns.items() if name in TOLD}


def partial(block: FrameBlock) -> FrameBlock:
    """The block without what is a sum over ranks of which some are missing."""
    columns = {name: column for name, column in block.columns.items() if name not in _SUMS}
    return FrameBlock(block.requests, columns, block.texts)


def merge_topologies(topologies: Sequence[Topology]) -> Topology:
    """The first one, without what was unavailable only because other ranks tell it."""
    first = topologies[0]
    kept = tuple((channel, why) for channel, why in first.unavailable if not why.endswith(_PARTLY))
    return replace(first, unavailable=kept)


def _alike(parts: Sequence[Mapping[str, Array]]) -> list[Mapping[str, Array]]:
    """Of ranks that a change of level reached at different steps, what the lowest one has."""
    levels = [part["level"][0] if "level" in part else 0 for part in parts]
    if len(set(levels)) == 1:
        return list(parts)
    lowest = parts[int(np.argmin(levels))]
    own = set(OWN + OWN_DEEP) | {"measured_layers"}
    kept = [{n: c for n, c in part.items() if n in lowest or n not in own} for part in parts]
    return [{**kept[0], "level": lowest["level"]}, *kept[1:]]


def _all(parts: Iterable[Mapping[str, Array]], name: str) -> list[Array]:
    return [part[name] for part in parts if name in part]


def _side_by_side(columns: Sequence[Array]) -> Array:
    """Each head from the rank that has it."""
    found = columns[0].copy()
    for other in columns[1:]:
        missing = np.isnan(found)
        found[missing] = other[missing]
    return found


def _heat(parts: Sequence[Mapping[str, Array]]) -> Array:
    """The mean over all heads, from each rank's mean over its own, (n, L, B)."""
    held = [part for part in parts if "kv_heat" in part and "attention_entropy" in part]
    heads = [np.sum(~np.isnan(part["attention_entropy"]), axis=-1)[..., None] for part in held]
    total = np.maximum(np.sum(heads, axis=0), 1)
    weighted = [part["kv_heat"] * count for part, count in zip(held, heads, strict=True)]
    found: Array = (np.sum(weighted, axis=0) / total).astype(np.float32)
    return found


def _neurons(parts: Sequence[Mapping[str, Array]]) -> dict[str, Array]:
    """The largest of all ranks' largest."""
    ids = np.concatenate(_all(parts, "neuron_ids"), axis=-1)
    values = np.concatenate(_all(parts, "neuron_values"), axis=-1)
    most = parts[0]["neuron_ids"].shape[-1]
    order = np.argsort(-np.nan_to_num(values, nan=-1.0), axis=-1, kind="stable")[..., :most]
    return {
        "neuron_ids": np.take_along_axis(ids, order, axis=-1),
        "neuron_values": np.take_along_axis(values, order, axis=-1),
    }


def _residue(parts: Sequence[Mapping[str, Array]]) -> dict[str, Array]:
    """What all heads together leave of the logit; not told where a rank's heads are missing.

    A rank's own residue is what its heads leave of it, over the spread of the logits: so the spread is known.
    """
    needed = ("residue", "head_contribution", "logit_centered")
    if any(name not in part for part in parts for name in needed):
        return {"residue": np.full_like(parts[0]["residue"], np.nan)}
    own = np.stack([np.nansum(part["head_contribution"].astype(np.float64), (1, 2)) for part in parts])
    residues = np.stack([part["residue"].astype(np.float64) for part in parts])
    first = parts[0]
    rest = np.nansum(first["ffn_contribution"].astype(np.float64), axis=1)
    rest += first["embedding_contribution"].astype(np.float64) + first["other_contribution"]
    left = first["logit_centered"].astype(np.float64) - rest
    widest = np.abs(residues).argmax(0)[None]
    most = np.take_along_axis(residues, widest, 0)[0]
    spread = (left - np.take_along_axis(own, widest, 0)[0]) / np.where(most == 0, np.nan, most)
    found = np.nan_to_num((left - own.sum(0)) / spread)
    return {"residue": found.astype(np.float32)}
