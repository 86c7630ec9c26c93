"""Where a compiled graph leaves which experts its tokens are sent to.

While a graph is traced, one operator in front of each module of experts copies the ids and the weights that
it is handed to the shelf, side by side as float32 (exact for ids below 2^24). Experts are handed rows and
positions as one axis, so that they alone do not tell which positions are last. Of a pass with more rows than
the shelf holds, a probe in front of them does, by how many rows it left in the same pass (`beside`).

Costs one small copy per layer of experts and pass.

Shape letters: n rows of the pass (batch times positions), k experts per token, w width of a place.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.compiler import is_exporting

from fulgurite.agent.shelf import OPEN, STAMP, Place, put

_LEAST = 2  # of k: a place is at least as wide as its stamp
_OPEN = 1.0

_library: Any = torch.library.Library("fulgurite", "FRAGMENT")  # type: ignore[no-untyped-call]
_library.define(
    "route(Tensor ids, Tensor weights, Tensor? beside, Tensor(a!) buffer, Tensor clock, int chosen) -> ()"
)


def width_of(chosen: int) -> int:
    """Numbers in a record of `chosen` experts per token: ids in its first half, weights in the other."""
    return 2 * max(chosen, _LEAST)


def leave_routing(
    routed: tuple[torch.Tensor, torch.Tensor] | None, place: Place, chosen: int, beside: Place | None
) -> None:
    """In a graph that is traced: have what experts are handed copied to `place`. Anything but plain code
    would break it.

    Parameters
    ----------
    routed : ids and weights, (n, k); None leaves nothing.
    chosen : k as `place` was made for.
    beside : of the same clock, what is left earlier in each pass, from (batch, positions, …).
    """
    if routed is not None and not is_exporting():
        ids, weights = routed
        other = None if beside is None else beside.buffer
        torch.ops.fulgurite.route(ids, weights.detach(), other, place.buffer, place.clock, chosen)


def read_routing(
    place: Place | None, chosen: int, batch: int, width: int, keep: int
) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Ids and weights of the last `keep` positions of each row, (batch, keep, k); None where they were not
    left."""
    rows = None if place is None else place.read(batch, width, keep)
    if rows is None:
        return None
    half = rows.shape[-1] // 2
    return rows[..., :chosen], rows[..., half : half + chosen]


def _route(
    ids: torch.Tensor,
    weights: torch.Tensor,
    beside: torch.Tensor | None,
    buffer: torch.Tensor,
    clock: torch.Tensor,
    chosen: int,
) -> None:
    """Leave the rows that matter, and the stamp. Another k than the place was made for leaves nothing."""
    if clock.device.type == "cpu" and not clock[OPEN].item():
        return
    if ids.shape[-1] != chosen or buffer.shape[1] != width_of(chosen):
        return
    rows, is_open = _record(ids, weights, chosen), clock[OPEN] == _OPEN
    if rows.shape[0] <= buffer.shape[0] - 1:
        put(rows, buffer, clock, is_open)
    elif beside is not None:
        _put_last(rows, beside, buffer, clock, is_open)


def _record(ids: torch.Tensor, weights: torch.Tensor, chosen: int) -> torch.Tensor:
    """Ids and weights side by side, (n, w)."""
    short = [0, max(chosen, _LEAST) - chosen]
    halves = (torch.nn.functional.pad(half.float(), short) for half in (ids, weights))
    return torch.cat(tuple(halves), -1)


def _put_last(
    rows: torch.Tensor,
    beside: torch.Tensor,
    buffer: torch.Tensor,
    clock: torch.Tensor,
    is_open: torch.Tensor,
) -> None:
    """Leave the last position of each of the batch's rows, which `beside` counted in this pass."""
    stamp, batch = beside[-1, 0], beside[-1, 1]
    width = rows.shape[0] / batch.clamp(min=1)
    is_told = (stamp == clock[STAMP]) & (batch >= 1) & (width == width.floor())
    ends = torch.arange(1, buffer.shape[0], device=rows.device) * width - 1
    last = rows.index_select(0, ends.long().clamp(0, rows.shape[0] - 1))
    if buffer.device.type != "cpu":
        put(last, buffer, clock, is_open & is_told, batch)
    elif bool(is_told):
        put(last[: int(batch)], buffer, clock, is_open)


def _traced(*_: Any) -> None:
    """Nothing is returned, so there is nothing to say of its shape."""


_library.impl("route", _route, "CompositeExplicitAutograd")
_library.impl("route", _traced, "Meta")
