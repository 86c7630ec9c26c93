"""Watches attention: which layers are looked at in a pass, and what each of them hands out.

Eager attention hands its weights out, and they are read there. Under a fused kernel the rows that matter are
recomputed, and believed only when they, times the values, are what the kernel gave. A layer that gives
nothing, or something else, is refused with the reason, and is not asked again.

Shape letters: b rows and t positions of the pass, k of them that matter, s keys, H heads.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.compiler import is_compiling
from torch.utils.hooks import RemovableHandle

from fulgurite.agent.anatomy import LayerParts
from fulgurite.agent.interface import INTERCEPTION
from fulgurite.agent.looked import Handed, keep
from fulgurite.agent.probes import Current, Pass
from fulgurite.agent.routing import learned_sinks
from fulgurite.agent.shelf import ROWS, Place, Shelf
from fulgurite.agent.shelf_looks import forget, leave_weights, misfit, register, width_of
from fulgurite.agent.shield import Shield
from fulgurite.agent.softmax_row import exact, is_plain, products, seen_keys, softmax_rows

Array = np.ndarray[Any, Any]
UNREACHED = (
    "Python sees neither the weights nor the queries and keys of its attention: it is compiled, or calls its "
    'kernel itself (attn_implementation="eager" without compilation may give them)'
)
UNCONFIRMED = "what its attention gave was not confirmed by the recomputed weights"
_TAKE_OUT_AFTER = 3


class Looks:
    """Watches the attention of the layers that have heads, and tells whose turn it is."""

    def __init__(
        self, layers: Sequence[LayerParts], current: Current, shield: Shield, shelf: Shelf, *, always: bool
    ) -> None:
        self._shelf = shelf
        self._always = always
        self._places: dict[int, Place] = {}
        self._looks = {
            layer.index: _Look(layer, current, shield)
            for layer in layers
            if layer.mixer is not None and layer.heads
        }
        self._turn = 0

    def install(self) -> None:
        """Watch."""
        for look in self._looks.values():
            look.install()
            if not look.refused and (place := self._place(look)) is not None:
                self._places[look.index] = place
                register(look.mixer, place, look.index)

    def _place(self, look: _Look) -> Place | None:
        """Where graphs leave this layer's records. On a device they would be made in each pass, so only where
        each is looked at."""
        device = next((p.device for p in look.mixer.parameters()), torch.device("meta"))
        if device.type != "cpu" and not self._always:
            return None
        return self._shelf.place((id(look.mixer), "look"), width_of(look.heads), device)

    @property
    def keys(self) -> set[tuple[int, str]]:
        """Of the places on the shelf."""
        return {(id(self._looks[index].mixer), "look") for index in self._places}

    def fetched(self, passing: Pass) -> dict[int, Place]:
        """The places of the layers that are looked at in this pass, which a graph may have written."""
        fits = passing.keep == 1 and passing.batch <= ROWS
        return {i: place for i, place in self._places.items() if fits and i in passing.looks}

    def believed(self, index: int, record: Array) -> Array | None:
        """What a graph left of a layer, (n, w), without how far it is off; None where it is not the
        kernel's."""
        look = self._looks[index]
        if look.refused or not (record[:, -1] <= 1.0).all():
            look.refused = look.refused or UNCONFIRMED
            return None
        return record[:, :-1]

    @property
    def refused(self) -> dict[int, str]:
        """Layers that are not looked at, and why."""
        return {index: look.refused for index, look in self._looks.items() if look.refused}

    def remove(self) -> None:
        """Take everything out."""
        for look in self._looks.values():
            look.remove()

    @property
    def hooks(self) -> int:
        """How many hooks are in the model: two for each layer that is watched."""
        return sum(2 * look.is_installed for look in self._looks.values())

    def every(self) -> frozenset[int]:
        """All layers that can be looked at."""
        return frozenset(index for index, look in self._looks.items() if not look.refused)

    def next(self) -> frozenset[int]:
        """The one layer whose turn it is."""
        able = sorted(self.every())
        self._turn += 1
        return frozenset(able[(self._turn - 1) % len(able) :][:1]) if able else frozenset()

    def missing(self, passing: Pass) -> dict[int, str]:
        """Layers that gave nothing in a pass that asked for all of them, and why. They are not asked
        again."""
        for index, look in self._looks.items():
            if ("attention", index) not in passing.deep and not look.refused:
                look.refused = UNREACHED
        return self.refused


class _Look:
    """One layer's attention: a hook for the weights that it hands out, an observer for those that it does
    not."""

    def __init__(self, layer: LayerParts, current: Current, shield: Shield) -> None:
        assert layer.mixer is not None
        self.index = layer.index
        self.heads = layer.held_heads
        self.mixer = layer.mixer
        self.sinks = learned_sinks(layer) is not None
        self.current = current
        self.shield = shield
        self.refused = ""
        self.failures = 0
        self._confirmed: set[bool] = set()  # for passes of one position, and for those of several
        self._is_inverted = False
        self._handle: RemovableHandle | None = None

    def install(self) -> None:
        if self._handle is None:
            self._handle = self.mixer.register_forward_hook(_WeightsHook(self), with_kwargs=True)
            INTERCEPTION.add(self.mixer, self.called)

    def remove(self) -> None:
        if self._handle is not None:
            self._handle.remove()
            self._handle = None
            INTERCEPTION.discard(self.mixer, self.called)
            forget(self.mixer)

    @property
    def is_installed(self) -> bool:
        return self._handle is not None

    def wanted(self) -> Pass | None:
        """The pass that runs, where this layer is to be looked at in it."""
        passing = self.current.passing
        if passing is None or self.index not in passing.looks or self.failures >= _TAKE_OUT_AFTER:
            return None
        return None if self.refused else passing

    def failed(self, error: Exception) -> None:
        self.failures += 1
        self.shield.caught("attention", error)

    def called(self, call: Mapping[str, Any], output: Any) -> None:
        """After the kernel: recompute the rows that matter."""
        passing = self.wanted()
        if passing is None:
            return
        started = time.perf_counter_ns()
        try:
            if is_plain(call, passing):
                with torch.no_grad(), exact(call["query"]):
                    found = products(passing, call)
                    if (passing.width > 1) not in self._confirmed:
                        weights = softmax_rows(passing, [found])[0][0]
                        self._confirm_kernel(passing, weights, call["value"], output)
                if not self.refused:
                    keep(passing, self.index, found)
        except Exception as error:
            self.failed(error)
        passing.own_ns += time.perf_counter_ns() - started

    def handed_out(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], weights: torch.Tensor
    ) -> None:
        """After the module: take the rows that matter of the weights (b, H, t, s) that it gave."""
        passing = self.wanted()
        if passing is None or weights.shape[:3] != (passing.batch, self.heads, passing.width):
            return
        started = time.perf_counter_ns()
        try:
            with torch.no_grad(), exact(weights):
                rows = passing.rows(weights.detach().transpose(1, 2)).float()  # (b, k, H, s)
                mask = _mask_of(module, args, kwargs)
                if (passing.width > 1) not in self._confirmed:
                    visible = seen_keys(passing, mask, rows.shape[-1], None, rows.device)
                    self._confirm_weights(passing, rows, visible)
            if not self.refused:
                is_whole = not self.sinks and weights.dtype == torch.float32  # else they are rounded
                keep(passing, self.index, Handed(rows, mask, self._is_inverted, is_whole))
        except Exception as error:
            self.failed(error)
        passing.own_ns += time.perf_counter_ns() - started

    def _confirm_kernel(self, passing: Pass, weights: torch.Tensor, value: torch.Tensor, output: Any) -> None:
        """The kernel's result (b, t, H, D) is these weights times the values."""
        gave = output[0] if isinstance(output, tuple) else output
        self._settle(passing, bool(misfit(passing, weights, value, gave) <= 1.0))

    def _confirm_weights(self, passing: Pass, weights: torch.Tensor, visible: torch.Tensor) -> None:
        """Weights are a softmax row: none is negative, they sum to 1 but for a learned sink, hidden keys have
        none. Some models mark the keys that are hidden, not those that are seen."""
        total = weights.sum(-1)
        is_row = bool((weights >= 0).all()) and bool((total <= 1.02).all())
        is_whole = self.sinks or bool((total >= 0.98).all())
        lit = (weights > 0).any(2)  # (b, k, s)
        self._is_inverted = bool((lit & ~visible).any())
        hides = not bool((lit & (visible == self._is_inverted)).any())
        self._settle(passing, is_row and is_whole and hides)

    def _settle(self, passing: Pass, holds: bool) -> None:
        if holds:
            self._confirmed.add(passing.width > 1)
        else:
            self.refused = UNCONFIRMED


class _WeightsHook:
    """Forward hook of an attention module; a copy of the model carries a function that does nothing."""

    __slots__ = ("look",)

    def __init__(self, look: _Look) -> None:
        self.look = look

    def __call__(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any
    ) -> None:
        if not isinstance(output, tuple) or len(output) < 2:
            return
        weights = output[1]
        if is_compiling():
            if isinstance(weights, torch.Tensor) and weights.dim() == 4:
                leave_weights(module, weights, kwargs.get("attention_mask"), sinks=self.look.sinks)
            return
        if isinstance(weights, torch.Tensor) and weights.dim() == 4:
            self.look.handed_out(module, args, kwargs, weights)

    def __reduce__(self) -> tuple[Any, ...]:
        return getattr, (nullcontext(), "__exit__")


def _mask_of(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    if "attention_mask" in kwargs:
        return kwargs["attention_mask"]
    names = list(inspect.signature(module.forward).parameters)
    place = names.index("attention_mask") if "attention_mask" in names else len(args)
    return args[place] if place < len(args) else None
