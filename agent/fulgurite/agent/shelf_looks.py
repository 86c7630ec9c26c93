"""Where a compiled graph leaves what its attention looks at.

While a graph is traced, one operator behind each attention call forms the softmax row of the last query, as
`softmax_row` does, tells it in the numbers of `routing.summary`, and leaves those on the shelf. It also says
how far that row, times the values, is from what the kernel gave: a row that is not the kernel's own is not
believed. On the CPU the operator does nothing in passes in which it is not its layer's turn; on a device it
would run in each, since a captured graph cannot choose.

Shape letters: b rows and t positions of the pass, s keys, H heads, w width of a record.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.compiler import is_exporting

from fulgurite.agent.probes import Pass
from fulgurite.agent.routing import summary
from fulgurite.agent.shelf import DEEP, EVERY, OPEN, ROWS, TURN, Place, put
from fulgurite.agent.softmax_row import exact, is_plain, products, seen_keys, softmax_rows
from fulgurite.wire.channels import KV_HEAT_BUCKETS, TOP_K

_PACKED = ("cu_seq_lens_q", "cu_seqlens_q", "position_bias")

# By identity of the attention module: a traced graph looks it up once, and a module is left as it is.
PLACES: dict[int, tuple[Place, int]] = {}

_library: Any = torch.library.Library("fulgurite", "FRAGMENT")  # type: ignore[no-untyped-call]
_library.define(
    "look(Tensor query, Tensor key, Tensor value, Tensor output, Tensor? mask, Tensor? sinks, "
    "Tensor(a!) buffer, Tensor clock, int layer, float? scaling, float? softcap, int? window) -> ()"
)
_library.define(
    "look_at(Tensor weights, Tensor? mask, Tensor(a!) buffer, Tensor clock, int layer, bool sinks) -> ()"
)


def width_of(heads: int) -> int:
    """Numbers in a record: those of `routing.summary`, and how far off it is."""
    return heads * (3 + 2 * TOP_K) + KV_HEAT_BUCKETS + 2


def register(module: nn.Module, place: Place | None, layer: int) -> None:
    """Graphs that are traced from now on leave at `place` what this attention module looks at."""
    if place is None:
        return
    if id(module) not in PLACES:
        weakref.finalize(module, PLACES.pop, id(module), None).atexit = False
    PLACES[id(module)] = (place, layer)


def forget(module: nn.Module) -> None:
    """Undo `register`."""
    PLACES.pop(id(module), None)


def leave_look(args: tuple[Any, ...], options: Mapping[str, Any], output: Any) -> None:
    """In a graph that is traced, behind an attention function. Anything but plain code breaks it."""
    found = PLACES.get(id(args[0])) if args else None
    if found is None or is_exporting() or len(args) < 4:
        return
    mask = args[4] if len(args) > 4 else options.get("attention_mask")
    gave = output[0] if isinstance(output, tuple) else output
    packed = any(options.get(name) is not None for name in _PACKED)
    if packed or not (mask is None or isinstance(mask, torch.Tensor)) or not isinstance(gave, torch.Tensor):
        return
    place, layer = found
    sinks = options.get("s_aux")
    torch.ops.fulgurite.look(
        args[1].detach(), args[2].detach(), args[3].detach(), gave.detach(), mask,
        None if sinks is None else sinks.detach(), place.buffer, place.clock, layer,
        options.get("scaling"), options.get("softcap"), options.get("sliding_window"),
    )  # fmt: skip


def leave_weights(module: nn.Module, weights: torch.Tensor, mask: Any, *, sinks: bool) -> None:
    """In a graph that is traced, behind a module that hands its weights (b, H, t, s) out."""
    found = PLACES.get(id(module))
    if found is None or is_exporting() or not (mask is None or isinstance(mask, torch.Tensor)):
        return
    torch.ops.fulgurite.look_at(weights.detach(), mask, found[0].buffer, found[0].clock, found[1], sinks)


def _look(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    output: torch.Tensor,
    mask: torch.Tensor | None,
    sinks: torch.Tensor | None,
    buffer: torch.Tensor,
    clock: torch.Tensor,
    layer: int,
    scaling: float | None,
    softcap: float | None,
    window: int | None,
) -> None:
    """Recompute the last row of each sequence, and leave what is told of it."""
    if not _has_turn(clock, layer):
        return
    call = {
        "query": query, "key": key, "value": value, "attention_mask": mask, "s_aux": sinks,
        "scaling": scaling, "softcap": softcap, "sliding_window": window,
    }  # fmt: skip
    passing = Pass(query.shape[0], query.shape[2], 0)
    if passing.batch > ROWS or not is_plain(call, passing):
        return
    with exact(query):
        rows, visible = softmax_rows(passing, [products(passing, call)])
        weights = rows[0]
        error = misfit(passing, weights, value, output)
        _leave(weights, visible, error, sinks is None, buffer, clock, layer)


def _look_at(
    weights: torch.Tensor,
    mask: torch.Tensor | None,
    buffer: torch.Tensor,
    clock: torch.Tensor,
    layer: int,
    sinks: bool,
) -> None:
    """Leave what is told of the last row of each sequence in `weights`."""
    if not _has_turn(clock, layer) or weights.shape[0] > ROWS:
        return
    passing = Pass(weights.shape[0], weights.shape[2], 0)
    with exact(weights):
        rows = passing.rows(weights.transpose(1, 2)).float()  # (b, 1, H, s)
        visible = seen_keys(passing, mask, rows.shape[-1], None, rows.device)
        error = unlike_rows(rows, visible, sinks=sinks)
        is_whole = not sinks and weights.dtype == torch.float32  # else they are rounded
        _leave(rows, visible, error, is_whole, buffer, clock, layer)


def _has_turn(clock: torch.Tensor, layer: int) -> bool:
    """Whether this layer is looked at in this pass; on a device, in each."""
    if clock.device.type != "cpu":
        return True
    now = clock.tolist()
    return bool(now[OPEN] and now[DEEP] and now[TURN] in (EVERY, layer))


def _leave(
    weights: torch.Tensor,
    visible: torch.Tensor,
    error: torch.Tensor,
    is_whole: bool,
    buffer: torch.Tensor,
    clock: torch.Tensor,
    layer: int,
) -> None:
    told = summary(weights, visible, is_whole=is_whole)[:, 0]
    record = torch.cat([told, error.reshape(1, 1).expand(told.shape[0], 1)], -1)
    if record.shape[-1] == buffer.shape[-1]:
        turn = (clock[TURN] == EVERY) | (clock[TURN] == layer)
        put(record, buffer, clock, turn & (clock[OPEN] * clock[DEEP] > 0))


def misfit(passing: Pass, weights: torch.Tensor, value: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
    """How far the rows (b, k, H, s), times the values, are from what a kernel gave (b, t, H, D), in multiples
    of what rounding allows."""
    gave = passing.rows(output.detach()).float()
    b, k, heads, s = weights.shape
    groups = heads // value.shape[1]
    spread = weights.transpose(1, 2).reshape(b, value.shape[1], groups * k, s)
    made = (spread @ value[:, :, :s].detach().float()).reshape(b, heads, k, -1).transpose(1, 2)
    tolerance = max(1e-4, 4 * torch.finfo(value.dtype).eps)
    error: torch.Tensor = torch.linalg.vector_norm(gave.reshape(made.shape) - made)
    allowed = (tolerance * torch.linalg.vector_norm(made)).clamp(min=1e-30)
    found: torch.Tensor = error / allowed
    return found


def unlike_rows(rows: torch.Tensor, visible: torch.Tensor, *, sinks: bool) -> torch.Tensor:
    """0 where these are softmax rows over the keys that are seen, else 2."""
    total = rows.sum(-1)
    holds = (rows >= 0).all() & (total <= 1.02).all() & ~((rows > 0).any(2) & ~visible).any()
    if not sinks:
        holds = holds & (total >= 0.98).all()
    return torch.where(holds, 0.0, 2.0)


def _traced(*_: Any) -> None:
    """Nothing is returned, so there is nothing to say of its shape."""


for _name, _function in (("look", _look), ("look_at", _look_at)):
    _library.impl(_name, _function, "CompositeExplicitAutograd")
    _library.impl(_name, _traced, "Meta")
