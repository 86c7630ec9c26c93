"""Hooks that read the residual stream where vLLM's layers add to it.

A layer of vLLM mostly hands on two tensors, what was written last and the stream before it, and the next norm
adds them, in place. So the stream that a part meets is the sum of what it is handed, and what a norm was
given is what it hands on beside its own output. A hook reads at once and keeps nothing. It is plain code,
since it is traced into compiled graphs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.compiler import is_compiling
from torch.utils.hooks import RemovableHandle

from fulgurite.agent.anatomy import LayerParts
from fulgurite.agent.engines.flat.desk import Desk, Plane, leave, trace, traced
from fulgurite.agent.engines.flat.matrices import held_inputs
from fulgurite.agent.wiring import Tap, part_of

Seen = Callable[[torch.Tensor, "torch.Tensor | None"], None]


def wide(values: tuple[Any, ...], width: int) -> list[torch.Tensor]:
    """Those of `values` that are vectors of the stream, one per token."""
    found = []
    for value in values:
        is_wide = isinstance(value, torch.Tensor) and value.dim() == 2 and value.shape[-1] == width
        if is_wide and value.is_floating_point():
            found.append(value)
    return found


class _Hook:
    """Hands what it reads to `seen`, or leaves an operator in the graph that is traced."""

    def __init__(self, width: int, desk: Desk | None, plane: Plane | None, seen: Seen | None) -> None:
        self.width = width
        self.desk = desk
        self.plane = plane
        self.number = -1 if plane is None else plane.number
        self.anchor = None if desk is None else desk.anchor
        self.clock = None if desk is None else desk.clock
        self.into = () if plane is None else traced(plane)
        self.seen = seen

    def give(self, x: torch.Tensor, y: torch.Tensor | None) -> None:
        if self.seen is not None:
            self.seen(x, y)
        elif is_compiling() and self.into:
            trace(x, y, self.into, self.clock)  # type: ignore[arg-type]
        elif is_compiling():
            leave(x, y, self.anchor, self.number)  # type: ignore[arg-type]
        else:
            self.desk.keep(self.plane, x, y)  # type: ignore[union-attr, arg-type]


class _Handed(_Hook):
    """The sum of what a part is handed."""

    def __call__(self, _: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        found = wide((*args, *kwargs.values()), self.width)
        if len(found) == 1:
            self.give(found[0], None)
        elif len(found) == 2:
            self.give(found[0], found[1])


class _Given(_Hook):
    """The sum of what a part gives."""

    def __call__(self, _: nn.Module, __: tuple[Any, ...], output: Any) -> None:
        found = wide(output if isinstance(output, tuple) else (output,), self.width)
        if len(found) == 1:
            self.give(found[0], None)
        elif len(found) == 2:
            self.give(found[0], found[1])


class _Normed(_Hook):
    """What a norm gives, without the stream that it hands on."""

    def __call__(self, _: nn.Module, __: tuple[Any, ...], output: Any) -> None:
        first = output[0] if isinstance(output, tuple) else output
        if isinstance(first, torch.Tensor):
            self.give(first, None)


class _Met(_Hook):
    """The stream that a norm was given: with the addition that it makes itself."""

    def __call__(self, _: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        stream = output[1] if isinstance(output, tuple) else args[0]
        if isinstance(stream, torch.Tensor):
            self.give(stream, None)


class _First(_Hook):
    """The first tensor that a module is handed, one row per token."""

    def __call__(self, _: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        first = args[0] if args else next(iter(kwargs.values()), None)
        if isinstance(first, torch.Tensor) and first.dim() > 1:
            rows = first.flatten(1)
            if rows.shape[-1] == self.width:
                self.give(rows, None)


def first_argument(module: nn.Module, width: int, *, desk: Desk, plane: Plane) -> RemovableHandle:
    """Leave what `module` is handed first, `width` numbers a token, in `plane` of `desk`."""
    return module.register_forward_pre_hook(_First(width, desk, plane, None), with_kwargs=True)


def hook(
    module: nn.Module,
    tap: Tap,
    width: int,
    *,
    desk: Desk | None = None,
    plane: Plane | None = None,
    seen: Seen | None = None,
) -> RemovableHandle:
    """Read `tap` at `module`: into `plane` of `desk`, or for `seen`."""
    of = (width, desk, plane, seen)
    if tap.part.startswith("norm"):
        return module.register_forward_hook(_Met(*of) if tap.side == "in" else _Normed(*of))
    if tap.side == "out":
        return module.register_forward_hook(_Given(*of))
    return module.register_forward_pre_hook(_Handed(*of), with_kwargs=True)


def watch_down(layer: LayerParts, width: int, handed: Seen, gave: Seen) -> list[RemovableHandle]:
    """Read what the last linear map of the feed-forward part is handed and gives (the stream is `width`
    wide); no handles where there is none."""
    linear = layer.ffn_linear
    if linear is None:
        return []
    into = hook(linear, Tap("ffn_linear", "in"), held_inputs(linear), seen=handed)
    return [into, hook(linear, Tap("ffn_linear", "out"), width, seen=gave)]


def candidates(layer: LayerParts) -> list[Tap]:
    """Every place that `wiring.wire` wants to see."""
    found = [Tap("block", "in"), Tap("block", "out")]
    found += [Tap(part, "out") for part in ("mixer", "projection") if part_of(layer, part) is not None]
    if layer.ffn is not None:
        found += [Tap("ffn", "in"), Tap("ffn", "out")]
    for i in range(len(layer.norms)):
        found += [Tap(f"norm{i}", "in"), Tap(f"norm{i}", "out")]
    return found
