"""Hooks in a model: put them in, take every one out again.

A hook keeps a reference to a tensor that the model made anyway, or, where a pass has several positions, a
copy of the few rows that matter, so that nothing of the size of a prompt stays alive. It does no arithmetic.
A copy of the model (pickle, `copy.deepcopy`) carries no hook of ours: each turns into a function of the
standard library that does nothing.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import nn
from torch.compiler import is_compiling
from torch.utils.hooks import RemovableHandle

from fulgurite.agent.shield import Shield
from fulgurite.wire.channels import Level

_TAKE_OUT_AFTER = 3  # failures of one probe


class Pass:
    """One forward pass of the model: what its probes keep until the token is known.

    Attributes
    ----------
    batch, width : rows and positions of the pass.
    keep : how many last positions matter: 1, or several where drafts are verified.
    last : position that matters per row where it is not the last (right padding), shape (batch,), or None.
    kept : what each probe saw, by the probe's index.
    extra : integer and weight tensors of expert routing, by layer.
    references : what probes that are not trusted yet made a copy of.
    """

    __slots__ = (
        "batch", "cache", "call", "extra", "keep", "kept", "last", "level", "logits", "mask", "own_ns",
        "position_ids", "references", "started_ns", "step", "width",
    )  # fmt: skip

    def __init__(self, batch: int, width: int, slots: int) -> None:
        self.batch = batch
        self.width = width
        self.keep = 1
        self.last: torch.Tensor | None = None
        self.kept: list[torch.Tensor | None] = [None] * slots
        self.extra: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self.logits: torch.Tensor | None = None
        self.cache: Any = None
        self.call: Any = None
        self.mask: torch.Tensor | None = None
        self.position_ids: torch.Tensor | None = None
        self.level: Level = "heads"
        self.references: list[tuple[_Probe, torch.Tensor]] = []
        self.step = 0
        self.started_ns = 0
        self.own_ns = 0

    def rows(self, tensor: torch.Tensor) -> torch.Tensor:
        """The positions of `tensor` (batch, width, …) or (batch * width, …) that matter, (batch, keep, …).

        A pass of one position gives the tensor itself, whatever its shape.
        """
        if self.width == 1:
            return tensor
        if tensor.shape[:2] != (self.batch, self.width):
            tensor = tensor.reshape(self.batch, self.width, *tensor.shape[1:])
        if self.last is not None:
            return tensor[torch.arange(self.batch, device=tensor.device), self.last.to(tensor.device), None]
        return tensor[:, -self.keep :].clone()


class Current(threading.local):
    """The pass that runs in this thread, None where there is none."""

    passing: Pass | None = None


class _Probe:
    """A hook that is handed the pass of its thread. Subclasses say what they keep.

    Until the first pass of one position has shown that the model does not write into a kept tensor later, a
    probe keeps a copy (`copies`).
    """

    __slots__ = ("copies", "current", "failures", "index", "shield")

    def __init__(self, current: Current, shield: Shield, index: int) -> None:
        self.current = current
        self.shield = shield
        self.index = index
        self.failures = 0
        self.copies = True

    def keep(self, passing: Pass, tensor: torch.Tensor) -> None:
        """Put the rows of `tensor` that matter where they are looked for."""
        rows = passing.rows(tensor)
        if self.copies and passing.width == 1:
            passing.references.append((self, rows))
            rows = rows.clone()
        passing.kept[self.index] = rows

    def settle(self, passing: Pass, reference: torch.Tensor) -> None:
        """Trust the reference from now on where the copy shows that nobody wrote into it."""
        kept = passing.kept[self.index]
        self.copies = kept is None or not torch.equal(kept, reference)

    def __reduce__(self) -> tuple[Any, ...]:
        return getattr, (nullcontext(), "__exit__")

    def _failed(self, error: Exception) -> None:
        self.failures += 1
        self.shield.caught("probe", error)


class InputProbe(_Probe):
    """Keeps the first tensor that a module is handed."""

    __slots__ = ()

    def __call__(self, _: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any] | None = None) -> None:
        if is_compiling():
            return
        passing = self.current.passing
        if passing is None or self.failures >= _TAKE_OUT_AFTER:
            return
        try:
            self.keep(passing, args[0] if args else _first_tensor(kwargs))
        except Exception as error:
            self._failed(error)


class OutputProbe(_Probe):
    """Keeps the first tensor that a module gives."""

    __slots__ = ()

    def __call__(self, _: nn.Module, __: tuple[Any, ...], output: Any) -> None:
        if is_compiling():
            return
        passing = self.current.passing
        if passing is None or self.failures >= _TAKE_OUT_AFTER:
            return
        try:
            self.keep(passing, output if isinstance(output, torch.Tensor) else output[0])
        except Exception as error:
            self._failed(error)


class ExpertProbe(_Probe):
    """Keeps the expert ids and weights that a module of experts is handed. `index` is the layer."""

    __slots__ = ()

    def __call__(self, _: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        if is_compiling():
            return
        passing = self.current.passing
        if passing is None or self.failures >= _TAKE_OUT_AFTER:
            return
        try:
            routed = _routing((*args, *kwargs.values()), passing.batch * passing.width)
            if routed is not None:
                passing.extra[self.index] = (passing.rows(routed[0]), passing.rows(routed[1]))
        except Exception as error:
            self._failed(error)


def _first_tensor(kwargs: Mapping[str, Any] | None) -> torch.Tensor:
    for value in (kwargs or {}).values():
        if isinstance(value, torch.Tensor):
            return value
    raise TypeError("a probed module was handed no tensor")


def _routing(values: tuple[Any, ...], rows: int) -> tuple[torch.Tensor, torch.Tensor] | None:
    """The integer tensor (rows, k) among `values` and the floating one of the same shape."""
    tensors = [v for v in values if isinstance(v, torch.Tensor) and v.dim() == 2 and v.shape[0] == rows]
    for ids in tensors:
        if not ids.is_floating_point():
            for weights in tensors:
                if weights.is_floating_point() and weights.shape == ids.shape:
                    return ids, weights
    return None


class Probes:
    """The hooks that are in a model, and how to get them out."""

    def __init__(self, current: Current, shield: Shield) -> None:
        self.current = current
        self.shield = shield
        self._handles: list[RemovableHandle] = []

    def __len__(self) -> int:
        return len(self._handles)

    def watch_input(self, module: nn.Module, index: int, *, by_keyword: bool = False) -> None:
        """Keep what `module` is handed."""
        probe = InputProbe(self.current, self.shield, index)
        self._handles.append(module.register_forward_pre_hook(probe, with_kwargs=by_keyword))

    def watch_output(self, module: nn.Module, index: int) -> None:
        """Keep what `module` gives."""
        probe = OutputProbe(self.current, self.shield, index)
        self._handles.append(module.register_forward_hook(probe))

    def watch_experts(self, module: nn.Module, layer: int) -> None:
        """Keep how tokens are routed to the experts of `layer`."""
        probe = ExpertProbe(self.current, self.shield, layer)
        self._handles.append(module.register_forward_pre_hook(probe, with_kwargs=True))

    def remove(self) -> None:
        """Take every hook out."""
        while self._handles:
            self._handles.pop().remove()
