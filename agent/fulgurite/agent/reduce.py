"""From the tensors that probes kept to the scalars of a frame: one batched reduction over all layers, one
copy.

Pure: takes tensors, gives numpy arrays; knows no hook, request or clock.

Shape letters: n rows, L layers, H heads (the most of any layer), D width of a head, d residual width, V
vocabulary, K top entries, E experts per token.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from fulgurite.agent.anatomy import LayerParts
from fulgurite.agent.wiring import LayerWiring, Tap
from fulgurite.wire.channels import TOP_K

Array = np.ndarray[Any, Any]
READ = (torch.float32, torch.bfloat16, torch.float16)
"""What numpy is given of a tensor (`numbers`) and reads as float32 (`scratch.widened`)."""
_BLOCK = 64
_LEAST = -1e4  # log-probability below which a token adds nothing to the entropy: keeps 0 * inf out


@dataclass(frozen=True, slots=True, eq=False)
class HeadGroup:
    """Layers whose heads have the same number and width, reduced together.

    Attributes
    ----------
    slots : where the projections' inputs were kept, one per layer of the group.
    layers : their layer numbers.
    first : number of the first head: not 0 where another process computes those before it.
    """

    heads: int
    head_dim: int
    slots: tuple[int, ...]
    layers: Array
    first: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """What is kept where, and how it is reduced: built once, when the wiring is known.

    Attributes
    ----------
    places : (layer, tap) of each vector slot; the slots of the groups come after them.
    after_mixer, before_ffn, after_ffn, ffn, before_norm : ndarray of int, shape (L,)
        Vector slot per layer, -1 where there is none.
    mixer_factor, ffn_factor : ndarray of float32, shape (L,)
        Multiplier with which a part is added; NaN where it is not measured.
    norm_eps : ndarray of float64, shape (L,)
        Of the norm behind the mixer; `norm_centred` says whether it subtracts the mean.
    embedding : slot of what enters layer 0, for level `deep`; else -1.
    mixer : ndarray of int, shape (L,)
        Slot of what the mixer adds, for level `deep`; else -1.
    lean : of a plan for `deep`, the same without what only that needs, which has the last vector slots; else
        None.
    """

    layers: int
    heads: int
    width: int
    places: tuple[tuple[int, Tap], ...]
    after_mixer: Array
    before_ffn: Array
    after_ffn: Array
    ffn: Array
    before_norm: Array
    mixer_factor: Array
    ffn_factor: Array
    norm_eps: Array
    norm_centred: Array
    embedding: int
    mixer: Array
    groups: tuple[HeadGroup, ...] = field(default=())
    lean: Plan | None = field(default=None)

    # what follows from the above, worked out once
    around: Array = field(init=False)
    unseen: Array = field(init=False)
    met: Array = field(init=False)
    behind: Array = field(init=False)
    mixer_size: Array = field(init=False)
    ffn_size: Array = field(init=False)
    ffn_sign: Array = field(init=False)
    is_uniform: bool = field(init=False)
    is_centred: bool = field(init=False)
    is_joint: bool = field(init=False)
    met_slots: tuple[slice | Array, slice | Array] = field(init=False)
    parts: tuple[slice, ...] = field(init=False)

    def __post_init__(self) -> None:
        around = np.stack([self.after_mixer, self.after_ffn, self.ffn, self.before_ffn])
        derived: dict[str, Any] = {
            "around": np.maximum(around, 0),
            "unseen": around < 0,
            "met": np.flatnonzero((self.ffn >= 0) & (self.before_ffn >= 0)),
            "behind": np.flatnonzero(self.before_norm >= 0),
            "is_centred": bool(self.norm_centred.any()),
            "mixer_size": np.abs(self.mixer_factor)[:, None],
            "ffn_size": np.abs(self.ffn_factor)[:, None],
            "ffn_sign": np.sign(self.ffn_factor)[:, None],
            "is_uniform": len(self.groups) == 1
            and len(self.groups[0].slots) == self.layers
            and self.groups[0].heads == self.heads,
        }
        derived["met_slots"] = (_run(self.ffn[derived["met"]]), _run(self.before_ffn[derived["met"]]))
        slots = [group.slots for group in self.groups]
        derived["parts"] = (slice(0, len(self.places)), *(slice(own[0], own[-1] + 1) for own in slots))
        derived["is_joint"] = derived["is_uniform"] and self.width == self.heads * self.groups[0].head_dim
        for name, value in derived.items():
            object.__setattr__(self, name, value)

    @property
    def slots(self) -> int:
        """How many tensors a pass keeps."""
        return len(self.places) + sum(len(group.slots) for group in self.groups)

    def without_rest(self, count: int) -> Plan:
        """With the first `count` of the vector slots alone."""
        gone = len(self.places) - count
        groups = tuple(
            replace(group, slots=tuple(slot - gone for slot in group.slots)) for group in self.groups
        )
        none = np.full(self.layers, -1)
        return replace(self, places=self.places[:count], embedding=-1, mixer=none, groups=groups)


def plan(
    layers: Sequence[LayerParts],
    wiring: Sequence[LayerWiring],
    *,
    heads: int,
    width: int,
    deep: bool = False,
    blind: Collection[int] = (),
) -> Plan:
    """Lay out what to keep for these layers of residual width `width`.

    Parameters
    ----------
    deep : also for contributions.
    blind : layers whose heads are not told.
    """
    book = _Book()
    count = len(layers)
    columns = {
        name: np.full(count, -1) for name in ("after_mixer", "before_ffn", "after_ffn", "ffn", "before_norm")
    }
    mixer_factor, ffn_factor = np.full(count, np.nan, np.float32), np.full(count, np.nan, np.float32)
    eps, centred = np.zeros(count), np.zeros(count, bool)
    for name in ("after_mixer", "before_ffn", "after_ffn"):  # kind by kind, so that each is a run of slots
        columns[name][:] = [book.slot(i, getattr(wires, name)) for i, wires in enumerate(wiring)]
    for i, wires in enumerate(wiring):
        if wires.ffn is not None:
            columns["ffn"][i], ffn_factor[i] = book.slot(i, wires.ffn.tap), wires.ffn.factor
    for i, wires in enumerate(wiring):
        if wires.mixer is not None:
            columns["before_norm"][i], mixer_factor[i] = (
                book.slot(i, wires.mixer.before_norm),
                wires.mixer.factor,
            )
            if wires.mixer.norm is not None:
                eps[i], centred[i] = wires.mixer.norm.eps, wires.mixer.norm.centred
    of_heads = len(book.places)
    mixer = np.full(count, -1)
    for layer, wires in zip(layers, wiring, strict=True):
        if deep and wires.mixer is not None:
            mixer[layer.index] = book.slot(layer.index, wires.mixer.tap)
    embedding = book.slot(0, Tap("block", "in")) if deep and count else -1
    places = tuple(book.places)
    groups = _groups(layers, wiring, len(places), blind)
    found = Plan(
        layers=count,
        heads=heads,
        width=width,
        places=places,
        mixer_factor=mixer_factor,
        ffn_factor=ffn_factor,
        norm_eps=eps,
        norm_centred=centred,
        embedding=embedding,
        mixer=mixer,
        groups=groups,
        lean=None,
        **columns,
    )
    return found if len(places) == of_heads else replace(found, lean=found.without_rest(of_heads))


class _Book:
    """Gives each place one slot; a layer's input is the output of the layer before."""

    def __init__(self) -> None:
        self.places: list[tuple[int, Tap]] = []

    def slot(self, layer: int, tap: Tap | None) -> int:
        if tap is None:
            return -1
        if tap == Tap("block", "in") and layer > 0:
            layer, tap = layer - 1, Tap("block", "out")
        if (layer, tap) not in self.places:
            self.places.append((layer, tap))
        return self.places.index((layer, tap))


def _groups(
    layers: Sequence[LayerParts], wiring: Sequence[LayerWiring], slot: int, blind: Collection[int]
) -> tuple[HeadGroup, ...]:
    shapes: dict[tuple[int, int, int], list[int]] = {}
    for layer, wires in zip(layers, wiring, strict=True):
        if layer.projection is not None and wires.mixer is not None and layer.index not in blind:
            shape = (layer.held_heads, layer.head_dim, layer.first_head)
            shapes.setdefault(shape, []).append(layer.index)
    groups: list[HeadGroup] = []
    for (heads, head_dim, first), members in shapes.items():
        slots = tuple(range(slot, slot + len(members)))
        groups.append(HeadGroup(heads, head_dim, slots, np.array(members), first))
        slot += len(members)
    return tuple(groups)


def uncertainty(logits: torch.Tensor, tokens: torch.Tensor, *, full: bool) -> dict[str, torch.Tensor]:
    """What the output distribution says of the emitted tokens.

    Parameters
    ----------
    logits : Tensor, shape (n, V), raw logits
    tokens : Tensor of int64, shape (n, 1)
    full : also the sum of p ln p, which is less the entropy, the most probable tokens, and the rank where
        these do not tell it; else the log-probability alone, shape (n, 1).
    """
    surprise = torch.log_softmax(logits, -1, dtype=torch.float32)
    chosen = surprise.gather(-1, tokens)
    found = {"logprob": chosen}
    if full:
        top = torch.topk(surprise, min(TOP_K, surprise.shape[-1]), -1)
        if not _are_among(chosen, top.values):
            found["rank"] = torch.count_nonzero(surprise > chosen, -1)
        found["top_ids"] = top.indices
        found["top_logprobs"] = top.values
        found["plogp"] = torch.exp(surprise).mul_(surprise.clamp_(min=_LEAST)).sum(-1)
    return found


def _are_among(chosen: torch.Tensor, top: torch.Tensor) -> bool:
    """Whether all that were chosen are among the most probable, which then tell their rank. Asks no
    device."""
    return chosen.device.type == "cpu" and bool((chosen.numpy() >= top.numpy()[:, -1:]).all())


def row_uncertainty(logits: torch.Tensor, tokens: torch.Tensor, *, full: bool) -> dict[str, Array]:
    """As `uncertainty` for a single row on the CPU, with fewer and cheaper calls; its results are on the
    host.

    Where the most probable tokens are, `top_ids` tells of it.

    Parameters
    ----------
    logits, tokens : shapes (1, V) and (1, 1)
    """
    surprise = torch.log_softmax(logits, -1, dtype=torch.float32)
    row, token = surprise.numpy(), int(tokens.item())
    chosen = row[0, token]
    found: dict[str, Array] = {"tokens": np.array([token]), "logprob": np.array([chosen])}
    if not full:
        return found
    found.update(_row_top(surprise))
    if not chosen >= found["top_logprobs"][-1]:
        found["rank"] = np.count_nonzero(row > chosen, -1)
    powers = torch.from_numpy(np.exp(row))
    plogp = (powers * surprise).sum(-1)
    if not math.isfinite(plogp.item()):  # where a token cannot come, 0 * -inf is nothing
        plogp = powers.mul_(surprise.clamp_(min=_LEAST)).sum(-1)
    found["plogp"] = plogp.numpy()
    return found


def _row_top(surprise: torch.Tensor) -> dict[str, Array]:
    """The most probable tokens of one row: they stand in those blocks of it whose maxima are the largest."""
    width = surprise.shape[-1]
    rest = width % _BLOCK
    if width < TOP_K * _BLOCK:
        top = torch.topk(surprise[0], min(TOP_K, width))
        return {"top_logprobs": top.values.numpy(), "top_places": top.indices.numpy()}
    blocks = (surprise[0, : width - rest] if rest else surprise).view(-1, _BLOCK)
    best = torch.topk(blocks.amax(-1), TOP_K, sorted=False).indices
    candidates = blocks.index_select(0, best).view(-1)
    if rest:
        candidates = torch.cat([candidates, surprise[0, width - rest :]])
    top = torch.topk(candidates, TOP_K)
    return {
        "top_logprobs": top.values.numpy(),
        "top_places": top.indices.numpy(),
        "top_blocks": best.numpy(),
        "top_rest": np.array(width - rest),
    }


def largest(logits: torch.Tensor) -> torch.Tensor:
    """Ids of the most probable tokens of each row, int64 (n, K): as `_row_top`, of several rows."""
    rows, width = logits.shape
    rest = width % _BLOCK
    if width < TOP_K * _BLOCK or rest:
        return torch.topk(logits, min(TOP_K, width), -1).indices
    blocks = logits.view(rows, -1, _BLOCK)
    best = torch.topk(blocks.amax(-1), TOP_K, -1, sorted=False).indices
    ids = (best[..., None] * _BLOCK + torch.arange(_BLOCK)).flatten(1)
    return ids.gather(-1, torch.topk(logits.gather(-1, ids), TOP_K, -1).indices)


def top_ids(host: Mapping[str, Array]) -> Array:
    """Ids of the most probable tokens, (n, K), from how `uncertainty` or `row_uncertainty` tells them."""
    if "top_ids" in host:
        return host["top_ids"]
    places, blocks = host["top_places"], host.get("top_blocks")
    if blocks is None:
        return places[None]
    number, within = np.divmod(places, _BLOCK)
    behind = number >= len(blocks)
    ids = blocks[np.where(behind, 0, number)] * _BLOCK + within
    return np.where(behind, host["top_rest"] + places - len(blocks) * _BLOCK, ids)[None]


def stream(stacked: torch.Tensor, layout: Plan) -> dict[str, torch.Tensor]:
    """Norms of every vector slot, and the products of each feed-forward write with the stream that it meets.

    Parameters
    ----------
    stacked : Tensor of float32, shape (slots, n, d), one per slot of `layout.places`
    """
    found = {"norms": torch.linalg.vector_norm(stacked, dim=-1)}
    if layout.met.size:
        writes, before = (_pick(stacked, slots) for slots in layout.met_slots)
        found["products"] = (writes * before).sum(-1)
    if layout.is_centred:
        found["means"] = stacked.mean(-1)
    return found


def head_squares(inputs: Sequence[torch.Tensor], grams: torch.Tensor) -> torch.Tensor:
    """Squared norm of what each head's projection gives, shape (layers, heads, n).

    Parameters
    ----------
    inputs : tensors of n * heads * D items, one per layer of a group
    grams : Tensor of float32, shape (layers, heads, D, D)
    """
    return squares(stack(inputs), grams)


def squares(stacked: torch.Tensor, grams: torch.Tensor) -> torch.Tensor:
    """As `head_squares`, of what is stacked already: float32 (layers, n, heads * D)."""
    count, heads, width, _ = grams.shape
    if stacked.shape[1] == 1:  # one row is laid out by heads as it is
        row = stacked.view(-1, 1, width)
        return (torch.bmm(row, grams.flatten(0, 1)) * row).sum(-1).view(count, heads, 1)
    slices = stacked.view(count, -1, heads, width).transpose(1, 2)  # (layers, heads, n, D)
    return (torch.matmul(slices, grams) * slices).sum(-1)


def stack(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """All tensors as one of float32, shape (tensors, n, width)."""
    return together(tensors).float()


def together(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """All tensors as one, shape (tensors, n, width)."""
    try:
        stacked = torch.stack(tensors)  # type: ignore[arg-type]
    except RuntimeError:  # layers on several devices, or a model that flattens rows and positions in places
        first = tensors[0]
        stacked = torch.stack([t.to(first.device).reshape(-1, first.shape[-1]) for t in tensors])
    return stacked.flatten(1, -2)


def numbers(tensor: torch.Tensor) -> Array:
    """Those of a tensor in host memory, in the same memory; numpy knows no bfloat16, whose bits are told as
    int16 (`unreduced` widens them)."""
    if tensor.requires_grad:
        tensor = tensor.detach()
    found: Array = (tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor).numpy()
    return found


def _pick(stacked: torch.Tensor, slots: slice | Array) -> torch.Tensor:
    if isinstance(slots, slice):
        return stacked[slots]
    return stacked.index_select(0, torch.as_tensor(slots, device=stacked.device))


def _run(slots: Array) -> slice | Array:
    """As a slice, where they follow on one another."""
    is_run = slots.size and (np.diff(slots) == 1).all()
    return slice(int(slots[0]), int(slots[-1]) + 1) if is_run else slots


def to_host(found: Mapping[str, torch.Tensor]) -> dict[str, Array]:
    """All results in one copy. Whole numbers travel as float32, which is exact below 2**24."""
    first = next(iter(found.values()))
    if first.device.type == "cpu":
        return {name: value.numpy() for name, value in found.items()}
    return unpacked(packed(found).cpu().numpy(), found)


def packed(found: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """All results behind one another, float32, on the device of the first."""
    device = next(iter(found.values())).device
    return torch.cat([value.reshape(-1).to(device, torch.float32) for value in found.values()])


def unpacked(host: Array, found: Mapping[str, torch.Tensor]) -> dict[str, Array]:
    """What `packed` put together, in the shapes of `found`."""
    ends = np.cumsum([value.numel() for value in found.values()])
    pieces = np.split(host, ends[:-1])
    return {
        name: piece.reshape(tuple(value.shape))
        for (name, value), piece in zip(found.items(), pieces, strict=True)
    }


def activity(host: Mapping[str, Array], layout: Plan) -> dict[str, Array]:
    """The channels of activity from what was copied: float32, frames first.

    Parameters
    ----------
    host : ``norms`` (slots, n), ``products`` (met, n), ``means``, and ``heads0``, ``heads1``, … (layers,
        heads, n)
    """
    norms = host["norms"]
    after_mixer, after_ffn, ffn, before_ffn = _by_layer(norms, layout)
    rows = norms.shape[-1]
    residual = np.empty((rows, layout.layers, 2), np.float32)
    residual[..., 0], residual[..., 1] = after_mixer.T, after_ffn.T
    found = {
        "residual_norm": residual,
        "ffn_write": np.ascontiguousarray((ffn * layout.ffn_size / after_ffn).T),
        "ffn_cosine": _cosine(host, ffn, before_ffn, layout),
    }
    if layout.groups:
        found["head_write"] = _head_write(host, after_mixer, norms, layout)
    return found


def _by_layer(norms: Array, layout: Plan) -> Array:
    """Norms by layer, (4, L, n): after the mixer, after the FFN, of the FFN's write, before it; NaN where
    unseen."""
    found = norms.take(layout.around, 0)
    if layout.unseen.any():
        found[layout.unseen] = np.nan
    return found


def _cosine(host: Mapping[str, Array], ffn: Array, before_ffn: Array, layout: Plan) -> Array:
    cosine = np.full((ffn.shape[-1], layout.layers), np.nan, np.float32)
    if layout.met.size:
        sizes = np.maximum((ffn * before_ffn)[layout.met], np.finfo(np.float32).tiny)
        cosine[:, layout.met] = (layout.ffn_sign[layout.met] * host["products"] / sizes).T
    return cosine


def _head_write(host: Mapping[str, Array], after_mixer: Array, norms: Array, layout: Plan) -> Array:
    factor = layout.mixer_size / after_mixer  # (L, n)
    if layout.behind.size:
        factor[layout.behind] /= _norm_scale(host, norms, layout)
    if layout.is_uniform:
        sizes = np.sqrt(np.maximum(host["heads0"], 0.0)) * factor[:, None, :]
        return np.ascontiguousarray(sizes.transpose(2, 0, 1))
    found = np.full((norms.shape[-1], layout.layers, layout.heads), np.nan, np.float32)
    for i, group in enumerate(layout.groups):
        sizes = np.sqrt(np.maximum(host[f"heads{i}"], 0.0)) * factor[group.layers][:, None, :]
        found[:, group.layers, group.first : group.first + group.heads] = sizes.transpose(2, 0, 1)
    return found


def _norm_scale(host: Mapping[str, Array], norms: Array, layout: Plan) -> Array:
    """Scale of the norm behind the mixer, for the layers that have one, shape (layers, n)."""
    slots = layout.before_norm[layout.behind]
    square = np.square(norms[slots].astype(np.float64)) / layout.width
    if layout.norm_centred.any():
        mean = np.square(host["means"][slots].astype(np.float64))
        square -= mean * layout.norm_centred[layout.behind][:, None]
    return np.sqrt(square + layout.norm_eps[layout.behind][:, None]).astype(np.float32)
