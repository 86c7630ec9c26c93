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

from fulgurite.agent.shelf import Place, Shelf, leave
from fulgurite.agent.shelf_experts import leave_routing, read_routing, width_of
from fulgurite.agent.shield import STRIKES, Shield
from fulgurite.agent.unreduced import Unreduced
from fulgurite.wire.channels import Level


class Pass:
    """One forward pass of the model: what its probes keep until the token is known.

    Attributes
    ----------
    batch, width : rows and positions of the pass.
    plan : which set of probes it was opened for.
    alive, alive_logits, alive_experts : of a compiled pass: whether its graph left what is read, one float32
        each.
    fetched, alive_deep : what of `deep` was read from the shelf, and whether a graph left it there, bool
        each.
    stamp, crowded : number of the pass on the shelf; whether another thread's pass ran at the same time.
    arrivals : how many calls of `generate` had begun or ended when it was opened.
    is_own : what was kept is copies of ours, into which the model cannot write.
    is_usual : nothing was learned in it that need not be learned again: it costs what a pass does.
    keep : how many last positions matter: 1, or several where drafts are verified.
    measured : how many rows are measured: batch * keep, or those that `take` left.
    last : position that matters per row where it is not the last (right padding), shape (batch,), or None.
    kept : what each probe saw, by the probe's index.
    logits : of the positions that matter, (batch * keep, vocabulary) or (batch, 1, vocabulary).
    extra : integer and weight tensors of expert routing, by layer.
    deep : what level `deep` keeps besides, by kind and layer, one row per position that matters.
    looks : layers whose attention is looked at.
    looked, looked_bytes : what these looks kept and what it weighs, until `looked.tell` tells of it in
        `deep`.
    picked : of many requests packed into one row: the positions that matter, shape (n,).
    scores : (batch, vocabulary), what was sampled from, where processors changed the logits.
    owns_scores : nobody else writes into `scores`.
    references : what probes that are not trusted yet made a copy of.
    unreduced : rows that are not reduced on the host's thread.
    awaited : what rests on what other processes hold, an `Awaited`.
    """

    # What a pass rarely has stands in the class: a pass that begins sets what it needs, and nothing else.
    keep = 1
    is_usual = True
    crowded = owns_scores = False
    arrivals = stamp = looked_bytes = step = started_ns = own_ns = 0
    level: Level = "heads"
    alive: torch.Tensor | None = None
    alive_logits: torch.Tensor | None = None
    alive_deep: torch.Tensor | None = None
    alive_experts: torch.Tensor | None = None
    last: torch.Tensor | None = None
    picked: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    scores: torch.Tensor | None = None
    mask: torch.Tensor | None = None
    position_ids: torch.Tensor | None = None
    unreduced: Unreduced | None = None
    awaited: Any = None
    cache: Any = None
    call: Any = None
    fetched: tuple[tuple[str, int], ...] = ()
    looks: frozenset[int] = frozenset()

    def __init__(self, batch: int, width: int, slots: int, *, plan: int = 0) -> None:
        self.batch = self.measured = batch
        self.width = width
        self.is_own = width > 1
        self.plan = plan
        self.kept: list[torch.Tensor | None] = [None] * slots
        self.extra: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self.deep: dict[tuple[str, int], torch.Tensor] = {}
        self.looked: list[tuple[int, Any]] = []
        self.references: list[tuple[_Probe, torch.Tensor]] = []

    def rows(self, tensor: torch.Tensor) -> torch.Tensor:
        """The positions of `tensor` (batch, width, …) or (batch * width, …) that matter, (batch, keep, …).

        A pass of one position gives the tensor itself, whatever its shape.
        """
        if self.width == 1:
            return tensor
        if tensor.shape[:2] != (self.batch, self.width):
            tensor = tensor.reshape(self.batch, self.width, *tensor.shape[1:])
        if self.picked is not None:
            return tensor.index_select(1, self.picked.to(tensor.device))
        if self.last is not None:
            return tensor[torch.arange(self.batch, device=tensor.device), self.last.to(tensor.device), None]
        return tensor[:, -self.keep :].clone()

    def take(self, *, first: int | None = None, rows: torch.Tensor | None = None) -> None:
        """Leave only the `first` of the kept positions of every row, or these `rows`, to be measured.

        What was kept then has one entry per measured row, and nothing else.
        """
        self.kept = [None if t is None else self._taken(t, first, rows) for t in self.kept]
        self.extra = {
            layer: (self._taken(ids, first, rows), self._taken(weights, first, rows))
            for layer, (ids, weights) in self.extra.items()
        }
        self.deep = {place: self._taken(kept, first, rows) for place, kept in self.deep.items()}
        if self.logits is not None:
            self.logits = self._taken(self.logits, first, rows)
        self.measured = len(rows) if rows is not None else self.batch * (first or self.keep)
        self.is_own |= rows is not None

    def _taken(self, tensor: torch.Tensor, first: int | None, rows: torch.Tensor | None) -> torch.Tensor:
        by_row = tensor.reshape(self.batch, self.keep, *tensor.shape[-1:])
        if rows is not None:
            by_row = by_row.index_select(0, rows.to(tensor.device))
        if first is not None:
            by_row = by_row[:, :first]
        return by_row.reshape(-1, tensor.shape[-1])


class Current(threading.local):
    """The pass that runs in this thread, None where there is none."""

    passing: Pass | None = None


class _Probe:
    """A hook that is handed the pass of its thread. Subclasses say what they keep.

    Until the first pass of one position has shown that the model does not write into a kept tensor later, a
    probe keeps a copy (`copies`). A pass that was opened for another set of probes is left alone: the places
    in it mean something else. While a graph is traced, the probe leaves an operator in it (`shelf`).
    """

    __slots__ = ("copies", "current", "failures", "handle", "index", "place", "plan", "shield")

    def __init__(
        self, current: Current, shield: Shield, index: int, plan: int, place: Place | None = None
    ) -> None:
        self.current = current
        self.shield = shield
        self.index = index
        self.plan = plan
        self.failures = 0
        self.copies = True
        self.handle: RemovableHandle | None = None
        self.place = place

    def leave(self, tensor: torch.Tensor | None) -> None:
        """In a graph that is traced: have `tensor` copied to our place. Anything but plain code breaks it."""
        if self.place is not None and tensor is not None:
            leave(tensor, self.place)

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
        if self.failures >= STRIKES and self.handle is not None:
            self.handle.remove()
            self.shield.note("probe:taken_out")
            self.shield.say_once(
                "taken_out", "a probe failed %d times and was taken out: what rests on it is missing", STRIKES
            )
        self.shield.caught("probe", error)


class InputProbe(_Probe):
    """Keeps the first tensor that a module is handed."""

    __slots__ = ()

    def __call__(self, _: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any] | None = None) -> None:
        if is_compiling():
            self.leave(_first(args) if args else _first(tuple((kwargs or {}).values())))
            return
        passing = self.current.passing
        if passing is None or passing.plan != self.plan:
            return
        try:
            tensor = args[0] if args else _first_tensor(kwargs)
            if passing.width == 1 and not self.copies:  # as `keep` does it, without the calls
                passing.kept[self.index] = tensor
            else:
                self.keep(passing, tensor)
        except Exception as error:
            self._failed(error)


class OutputProbe(_Probe):
    """Keeps the first tensor that a module gives."""

    __slots__ = ()

    def __call__(self, _: nn.Module, __: tuple[Any, ...], output: Any) -> None:
        if is_compiling():
            self.leave(_first((output,)) if not isinstance(output, tuple) else _first(output))
            return
        passing = self.current.passing
        if passing is None or passing.plan != self.plan:
            return
        try:
            tensor = output if isinstance(output, torch.Tensor) else output[0]
            if passing.width == 1 and not self.copies:
                passing.kept[self.index] = tensor
            else:
                self.keep(passing, tensor)
        except Exception as error:
            self._failed(error)


class ExpertProbe(_Probe):
    """Keeps the expert ids and weights that a module of experts is handed. `index` is the layer, `chosen` how
    many experts a token is sent to, `beside` what is left earlier in each pass."""

    __slots__ = ("beside", "chosen")

    def __init__(
        self,
        current: Current,
        shield: Shield,
        index: int,
        plan: int,
        place: Place | None = None,
        *,
        chosen: int = 0,
        beside: Place | None = None,
    ) -> None:
        super().__init__(current, shield, index, plan, place)
        self.chosen = chosen
        self.beside = beside

    def __call__(self, _: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        if is_compiling():
            if self.place is not None:
                leave_routing(_routing((*args, *kwargs.values())), self.place, self.chosen, self.beside)
            return
        passing = self.current.passing
        if passing is None or passing.plan != self.plan:
            return
        try:
            routed = _routing((*args, *kwargs.values()), passing.batch * passing.width)
            if routed is not None:
                passing.extra[self.index] = (passing.rows(routed[0]), passing.rows(routed[1]))
        except Exception as error:
            self._failed(error)


def _first(values: tuple[Any, ...]) -> torch.Tensor | None:
    """The first of them where it is a tensor; by keyword, the first that is one."""
    for value in values:
        if isinstance(value, torch.Tensor):
            return value
    return None


def _first_tensor(kwargs: Mapping[str, Any] | None) -> torch.Tensor:
    for value in (kwargs or {}).values():
        if isinstance(value, torch.Tensor):
            return value
    raise TypeError("a probed module was handed no tensor")


def _routing(values: tuple[Any, ...], rows: int | None = None) -> tuple[torch.Tensor, torch.Tensor] | None:
    """The integer tensor (rows, k) among `values` and the floating one of the same shape."""
    tensors = [v for v in values if isinstance(v, torch.Tensor) and v.dim() == 2]
    if rows is not None:
        tensors = [v for v in tensors if v.shape[0] == rows]
    for ids in tensors:
        if not ids.is_floating_point():
            for weights in tensors:
                if weights.is_floating_point() and weights.shape == ids.shape:
                    return ids, weights
    return None


class Probes:
    """The hooks that are in a model, and how to get them out.

    Parameters
    ----------
    shelf : where compiled graphs leave what the probes would have kept.
    """

    def __init__(self, current: Current, shield: Shield, shelf: Shelf | None = None) -> None:
        self.current = current
        self.shield = shield
        self.shelf = shelf
        self.plan = 0
        self._handles: list[RemovableHandle] = []
        self._by_slot: dict[int, _Probe] = {}
        self._experts: dict[int, ExpertProbe] = {}
        self.keys: set[tuple[int, str]] = set()

    def __len__(self) -> int:
        return len(self._handles)

    def watch_input(
        self,
        module: nn.Module,
        index: int,
        *,
        by_keyword: bool = False,
        width: int = 0,
        device: torch.device | None = None,
    ) -> None:
        """Keep what `module` is handed.

        Parameters
        ----------
        width, device : of it, for a place on the shelf; without, compiled graphs leave nothing.
        """
        place = self._place((id(module), "in"), width, device)
        probe = InputProbe(self.current, self.shield, index, self.plan, place)
        self._hold(probe, module.register_forward_pre_hook(probe, with_kwargs=by_keyword))

    def watch_output(
        self, module: nn.Module, index: int, *, width: int = 0, device: torch.device | None = None
    ) -> None:
        """Keep what `module` gives."""
        place = self._place((id(module), "out"), width, device)
        probe = OutputProbe(self.current, self.shield, index, self.plan, place)
        self._hold(probe, module.register_forward_hook(probe))

    def watch_experts(
        self,
        module: nn.Module,
        layer: int,
        *,
        chosen: int = 0,
        device: torch.device | None = None,
        beside: nn.Module | None = None,
    ) -> None:
        """Keep how tokens are routed to the experts of `layer`.

        Parameters
        ----------
        chosen, device : experts per token, and where they are, for a place on the shelf.
        beside : a module whose input is watched, and which runs before the experts in each pass.
        """
        place = self._place((id(module), "experts"), width_of(chosen), device) if chosen else None
        other = self.shelf.find((id(beside), "in")) if self.shelf is not None else None
        if other is not None and (place is None or other.clock is not place.clock):
            other = None  # on another device
        probe = ExpertProbe(self.current, self.shield, layer, self.plan, place, chosen=chosen, beside=other)
        probe.handle = module.register_forward_pre_hook(probe, with_kwargs=True)
        self._experts[layer] = probe
        self._handles.append(probe.handle)

    def fetch_experts(self, passing: Pass) -> list[Place] | None:
        """Take what a compiled graph may have left of how its tokens were routed; the places that it is from.
        None where some layer has none: routing is told of all layers or of none."""
        places = []
        for layer, probe in self._experts.items():
            if layer in passing.extra:
                continue  # the graph was left for it
            found = read_routing(probe.place, probe.chosen, passing.batch, passing.width, passing.keep)
            if found is None or probe.place is None:
                return None
            passing.extra[layer] = found
            places.append(probe.place)
        return places

    def trust(self) -> None:
        """Keep references from now on, as after the first pass of one position."""
        for probe in self._by_slot.values():
            probe.copies = False

    def places(self, slots: int) -> list[Place] | None:
        """The place of each slot; None where one has none."""
        found = [self._by_slot[slot].place if slot in self._by_slot else None for slot in range(slots)]
        return [place for place in found if place is not None] if None not in found else None

    def _place(self, key: tuple[int, str], width: int, device: torch.device | None) -> Place | None:
        if self.shelf is None or device is None:
            return None
        self.keys.add(key)
        return self.shelf.place(key, width, device)

    def _hold(self, probe: _Probe, handle: RemovableHandle) -> None:
        probe.handle = handle
        self._by_slot[probe.index] = probe
        self._handles.append(handle)

    def remove(self) -> None:
        """Take every hook out. What is put in from now on belongs to the next plan."""
        self.plan += 1
        self._by_slot, self._experts, self.keys = {}, {}, set()
        while self._handles:
            self._handles.pop().remove()
