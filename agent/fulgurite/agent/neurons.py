"""The neurons that write most: largest ``|a_i| * ||w_i||`` of a dense feed-forward part.

``a`` is the input of its down projection and ``w_i`` the column that neuron i is written with; what stands
behind the projection (a norm, a multiplier) is left out. A layer whose feed-forward part is not one such
projection, as a mixture of experts, has none: seen in the values of the first pass, not guessed. Costs one
product and one selection per layer, for sampled tokens.

Shape letters: n rows, L layers, f neurons, N neurons that are told.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from operator import is_
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.compiler import is_compiling
from torch.utils.hooks import RemovableHandle

from fulgurite.agent.anatomy import LayerParts, linear_shape
from fulgurite.agent.probes import Current
from fulgurite.agent.reduce import numbers
from fulgurite.agent.scratch import scratch, widened
from fulgurite.agent.shelf import DEEP, Place, Shelf, leave
from fulgurite.agent.shield import Shield
from fulgurite.agent.unreduced import largest_places
from fulgurite.agent.weights import Unreadable, columns_of, effective_weight, identity_of
from fulgurite.agent.wiring import LayerWiring, Tap
from fulgurite.wire.channels import TOP_NEURONS

Array = np.ndarray[Any, Any]
CHANNELS = ("neuron_ids", "neuron_values")
ROUTED = "its feed-forward part is a mixture of experts: each token has other neurons"
UNSEEN = "the input of its down projection was not seen: compiled code runs no Python"
UNLIKE = "its feed-forward part does not end in one down projection"
_TAKE_OUT_AFTER = 3


def refusal(layer: LayerParts, wires: LayerWiring, seen: Mapping[Tap, Array]) -> str:
    """Why this layer's neurons cannot be told, empty where they can.

    Parameters
    ----------
    seen : what was there in the first pass, float64 (n, d).
    """
    if layer.experts:
        return ROUTED
    down, whole = seen.get(Tap("ffn_linear", "out")), seen.get(Tap("ffn", "out"))
    if wires.ffn is None or down is None:
        return UNLIKE
    is_whole = whole is not None and np.array_equal(whole, down)
    return "" if is_whole or wires.ffn.tap == Tap("ffn_linear", "out") else UNLIKE


class Neurons:
    """The down projections that are watched, and the size of each neuron's column."""

    def __init__(self, current: Current, shield: Shield, shelf: Shelf) -> None:
        self.current = current
        self.shield = shield
        self.shelf = shelf
        self.places: dict[int, Place] = {}
        self.keys: set[tuple[int, str]] = set()
        self._sizes: dict[int, torch.Tensor] = {}
        self._stacked: dict[
            tuple[tuple[int, ...], torch.device], tuple[list[torch.Tensor], torch.Tensor]
        ] = {}
        self._firsts: dict[int, int] = {}
        self._reasons: dict[int, str] = {}
        self._marks: dict[int, tuple[object, ...]] = {}
        self._settled: set[int] = set()
        self._handles: list[RemovableHandle] = []

    def install(self, layers: Iterable[LayerParts]) -> None:
        """Watch the down projections of these layers."""
        self.remove()
        for layer in layers:
            if layer.ffn_linear is not None and not layer.experts:
                probe = _NeuronProbe(self.current, self.shield, layer.index, self._place(layer))
                self._handles.append(layer.ffn_linear.register_forward_pre_hook(probe))

    def _place(self, layer: LayerParts) -> Place | None:
        """Where compiled graphs leave what this layer's down projection is handed."""
        linear = layer.ffn_linear
        shape = None if linear is None else linear_shape(linear)
        device = None if linear is None else next((p.device for p in linear.parameters()), None)
        if shape is None or device is None:
            return None
        key = (id(linear), "neurons")
        place = self.shelf.place(key, shape[0], device)
        if place is not None:
            self.keys.add(key)
            self.places[layer.index] = place
        return place

    def remove(self) -> None:
        """Take every hook out."""
        self.places, self.keys = {}, set()
        while self._handles:
            self._handles.pop().remove()

    @property
    def hooks(self) -> int:
        """How many hooks are in the model."""
        return len(self._handles)

    def largest(
        self, inputs: Mapping[int, torch.Tensor], layers: Mapping[int, LayerParts]
    ) -> dict[str, torch.Tensor]:
        """Ids and sizes of the largest neurons, by layer: ``neurons{layer}``, float32 (n, 2, N)."""
        return {
            name: told
            for group in self._alike(inputs, layers)
            for name, told in zip(
                (f"neurons{index}" for index in group), self._largest(group, inputs), strict=True
            )
        }

    def later(self, inputs: Mapping[int, torch.Tensor], layers: Mapping[int, LayerParts]) -> LateNeurons:
        """The same, left to whoever reads the block. `inputs` are copies, in host memory."""
        groups = self._alike(inputs, layers)
        return LateNeurons(
            {index: inputs[index].flatten(0, -2) for group in groups for index in group},
            {index: (self._sizes[index], self._firsts[index]) for group in groups for index in group},
        )

    def _alike(self, inputs: Mapping[int, torch.Tensor], layers: Mapping[int, LayerParts]) -> list[list[int]]:
        """Layers whose neurons can be told, those together that are alike."""
        alike: dict[tuple[object, ...], list[int]] = {}
        for index, kept in inputs.items():
            sizes = self._size_of(layers[index])
            if sizes is not None and sizes.shape[0] == kept.shape[-1]:
                alike.setdefault((kept.shape, kept.dtype, kept.device), []).append(index)
        return list(alike.values())

    def _largest(self, group: list[int], inputs: Mapping[int, torch.Tensor]) -> torch.Tensor:
        """Of layers that are alike, in one go: (layers, n, 2, N)."""
        kept = torch.stack([inputs[index] for index in group]).flatten(1, -2).float()  # (layers, n, f)
        top = _top(kept.abs_() * self._together(group, kept.device))
        firsts = torch.tensor([self._firsts[index] for index in group], device=kept.device)
        return torch.stack([top.indices + firsts[:, None, None], top.values], 2)

    def _together(self, group: list[int], device: torch.device) -> torch.Tensor:
        """The sizes of these layers' columns, (layers, 1, f)."""
        sizes, key = [self._sizes[index] for index in group], (tuple(group), device)
        known = self._stacked.get(key)
        if known is None or not all(map(is_, known[0], sizes)):
            known = self._stacked[key] = (sizes, torch.stack([one.to(device) for one in sizes])[:, None])
        return known[1]

    def unreadable(self, layer: LayerParts) -> str:
        """Why the columns cannot be measured, empty where they can."""
        self._size_of(layer)
        return self._reasons.get(layer.index, "")

    def refresh(self) -> None:
        """Look at all weights again before they are believed to be the same."""
        self._settled.clear()

    def _size_of(self, layer: LayerParts) -> torch.Tensor | None:
        """Norms of the columns that this process holds, float32 (f,), anew where the weights changed.

        Between two calls of `refresh` the weights are looked at once: whoever measures asks `Watched` first.
        """
        assert layer.ffn_linear is not None
        if layer.index in self._settled:
            return self._sizes.get(layer.index)
        mark = identity_of(layer.ffn_linear)
        if self._marks.get(layer.index) != mark:
            self._marks[layer.index] = mark
            self._reasons.pop(layer.index, None)
            try:
                weight = effective_weight(layer.ffn_linear)
                self._firsts[layer.index] = (columns_of(layer.ffn_linear) or (0, 0))[0]
                self._sizes[layer.index] = sizes_of(weight)
            except Unreadable as reason:
                self._sizes.pop(layer.index, None)
                self._reasons[layer.index] = f"the weights of its down projection are not known: {reason}"
        if _is_watched(layer.ffn_linear):
            self._settled.add(layer.index)
        return self._sizes.get(layer.index)


class LateNeurons:
    """The largest neurons of one step, left to whoever reads the block.

    Parameters
    ----------
    inputs : by layer, what its down projection was handed, (n, f).
    sizes : by layer, the norms of its columns, float32 (f,), and the number of the first.
    """

    def __init__(
        self, inputs: Mapping[int, torch.Tensor], sizes: Mapping[int, tuple[torch.Tensor, int]]
    ) -> None:
        self._inputs = inputs
        self._sizes = sizes

    @property
    def nbytes(self) -> int:
        """What is held, and what the channels will hold."""
        return sum(kept.nbytes + 16 * len(kept) * TOP_NEURONS for kept in self._inputs.values())

    def told(self) -> dict[str, Array]:
        """As `Neurons.largest`."""
        found = {}
        for index, kept in self._inputs.items():
            sizes, first = self._sizes[index]
            handed = numbers(kept)
            written = np.abs(widened(handed, "neurons"), out=scratch("written", handed.shape))
            written *= sizes.numpy()
            ids = largest_places(written, min(TOP_NEURONS, written.shape[-1]))
            values = np.take_along_axis(written, ids, -1)
            found[f"neurons{index}"] = np.stack([(ids + first).astype(np.float32), values], 1)
        return found


def sizes_of(weight: torch.Tensor) -> torch.Tensor:
    """What each neuron's column (d,) of `weight` (d, f) weighs: its norm, float32 (f,)."""
    sizes: torch.Tensor = torch.linalg.vector_norm(weight.float(), dim=0)
    return sizes


def told(kept: torch.Tensor, sizes: torch.Tensor) -> torch.Tensor:
    """Of what a down projection is handed, (n, f): ids, then sizes of the largest, float32 (n, 2 N)."""
    top = _top(kept.float().abs() * sizes)
    return torch.cat([top.indices.float(), top.values], -1)


def _top(written: torch.Tensor) -> Any:
    return torch.topk(written, min(TOP_NEURONS, written.shape[-1]), -1)


def _is_watched(linear: nn.Module) -> bool:
    """Whether `weights.Watched` tells of each write to it that torch counts."""
    parts = list(linear.modules())
    return not any(part._buffers or hasattr(part, "_hf_hook") for part in parts)


class _NeuronProbe:
    """Keeps what a down projection is handed, for the steps that are looked at deeply."""

    __slots__ = ("current", "failures", "index", "place", "shield")

    def __init__(self, current: Current, shield: Shield, index: int, place: Place | None) -> None:
        self.place = place
        self.current = current
        self.shield = shield
        self.index = index
        self.failures = 0

    def __call__(self, _: nn.Module, args: tuple[Any, ...]) -> None:
        if is_compiling():
            if self.place is not None and args:
                leave(args[0], self.place, DEEP)
            return
        passing = self.current.passing
        if passing is None or not args or self.failures >= _TAKE_OUT_AFTER:
            return
        if passing.level != "deep" and not passing.looks:
            return
        try:
            rows = passing.rows(args[0].detach())
            passing.deep["neurons", self.index] = rows.clone() if passing.width == 1 else rows
        except Exception as error:
            self.failures += 1
            self.shield.caught("neurons", error)

    def __reduce__(self) -> tuple[Any, ...]:
        return getattr, (nullcontext(), "__exit__")


def columns(host: Mapping[int, Array], layers: int) -> dict[str, Array]:
    """The channels, rows first, −1 and NaN where a layer has none.

    Parameters
    ----------
    host : by layer, as `Neurons.largest` gives them, shape (n, 2, N)
    """
    n = len(next(iter(host.values())))
    ids = np.full((n, layers, TOP_NEURONS), -1, np.int32)
    values = np.full((n, layers, TOP_NEURONS), np.nan, np.float32)
    for index, found in host.items():
        ids[:, index, : found.shape[-1]] = found[:, 0]
        values[:, index, : found.shape[-1]] = found[:, 1]
    return {"neuron_ids": ids, "neuron_values": values}
