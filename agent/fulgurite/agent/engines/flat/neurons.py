"""The neurons that write most, of the layers of an engine: told where they are seen, in steps that are looked
at deeply.

What a down projection is handed is wider than the stream, and the host's buffers are not its rows' place: a
tap picks the largest at once and leaves these (`fulgurite.agent.neurons`). The columns are confirmed on the
values of the trial pass, where one process has them all.

Shape letters: L layers, r rows, N neurons that are told.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from fulgurite.agent.anatomy import LayerParts
from fulgurite.agent.deep import Reasons
from fulgurite.agent.engines.flat.desk import Desk, Plane
from fulgurite.agent.engines.flat.matrices import bare, held_inputs, matrix_of, widths_of
from fulgurite.agent.engines.flat.seen import Trial
from fulgurite.agent.engines.flat.taps import hook
from fulgurite.agent.neurons import CHANNELS, refusal, sizes_of
from fulgurite.agent.weights import Unreadable
from fulgurite.agent.wiring import LayerWiring, Tap
from fulgurite.wire.channels import TOP_NEURONS

SAMPLED = "a captured graph cannot choose its steps: told where all of them are looked at (deep_ratio=1.0)"


class Neurons:
    """The layers whose neurons are told.

    Parameters
    ----------
    every : each step is looked at deeply.

    Attributes
    ----------
    reasons : by channel, the layers whose neurons are not told, and why.
    """

    def __init__(self, layers: Sequence[LayerParts], trial: Trial, desk: Desk, *, every: bool) -> None:
        self._desk = desk
        sizes: dict[int, torch.Tensor] = {}
        refused: list[tuple[int, str]] = []
        for layer, wires in zip(layers, trial.wiring, strict=True):
            if layer.ffn is None:
                continue
            why = SAMPLED if desk.device.type != "cpu" and not every else _refusal(layer, wires, trial)
            found = why or _columns(layer, trial)
            if isinstance(found, str):
                refused.append((layer.index, found))
            else:
                sizes[layer.index] = found
        self.reasons: Reasons = dict.fromkeys(CHANNELS, refused) if refused else {}
        self._planes = {index: _plane(desk, found) for index, found in sizes.items()}
        self._firsts = {index: _first(layers[index].ffn_linear) for index in sizes}  # type: ignore[arg-type]

    def install(self, layers: Sequence[LayerParts]) -> list[Any]:
        """Put the taps in; their handles."""
        handles = []
        for index, plane in self._planes.items():
            linear = layers[index].ffn_linear
            assert linear is not None
            tap = Tap("ffn_linear", "in")
            handles.append(hook(linear, tap, held_inputs(linear), desk=self._desk, plane=plane))
        return handles

    def told(self, rows: torch.Tensor | slice) -> dict[str, torch.Tensor]:
        """Of these rows of the step: ``neurons{layer}``, float32 (r, 2, N); of the layers that were seen."""
        found = {}
        for index, plane in self._planes.items():
            if self._desk.is_written([plane]):
                largest = plane.buffer[rows].reshape(-1, 2, plane.buffer.shape[-1] // 2).clone()
                largest[:, 0] += self._firsts[index]
                found[f"neurons{index}"] = largest
        return found


def _refusal(layer: LayerParts, wires: LayerWiring, trial: Trial) -> str:
    seen = {
        Tap("ffn", "out"): trial.ffn_gave.get(layer.index),
        Tap("ffn_linear", "out"): trial.down_gave.get(layer.index),
    }
    return refusal(layer, wires, {tap: rows for tap, rows in seen.items() if rows is not None})


def _columns(layer: LayerParts, trial: Trial) -> torch.Tensor | str:
    """The size of each column, float32 (f,), or why it is not known."""
    linear = layer.ffn_linear
    assert linear is not None
    try:
        weight = matrix_of(linear)
    except Unreadable as reason:
        return f"the weights of its down projection are not known: {reason}"
    if not _is_split(linear):
        error = trial.misfit(linear, weight, layer.index, down=True)
        if error > trial.close:
            return f"its down projection gave something else than its weights do (by {error:.0%})"
    return sizes_of(weight)


def _is_split(linear: nn.Module) -> bool:
    """Whether other processes hold columns too: what they give is summed over all of them."""
    return held_inputs(linear) != (widths_of(linear) or (0, 0))[0]


def _first(linear: nn.Module) -> int:
    """Number of the first neuron that this process has."""
    return int(getattr(bare(linear), "tp_rank", 0)) * held_inputs(linear) if _is_split(linear) else 0


def _plane(desk: Desk, sizes: torch.Tensor) -> Plane:
    _, (plane,) = desk.planes(1, 2 * min(TOP_NEURONS, sizes.shape[0]), torch.float32)
    plane.sizes = sizes
    return plane
