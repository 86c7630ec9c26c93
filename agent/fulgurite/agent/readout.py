"""How the residual stream becomes logits: final norm, unembedding, scale, soft-cap; found from the values.

What stands between them is confirmed in one forward pass, and not assumed. Costs one mean over the
unembedding's rows.

Shape letters: n rows, d residual width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.compiler import is_compiling
from torch.nn import functional
from torch.utils.hooks import RemovableHandle

from fulgurite.agent.norms import NormSpec, fit_norm
from fulgurite.agent.probes import Current
from fulgurite.agent.rank_rows import RowShare
from fulgurite.agent.weights import (
    Unreadable,
    effective_bias,
    effective_weight,
    is_quantised,
    rows_of,
    tensor_of,
)

Array = np.ndarray[Any, Any]
_MOST_BYTES = 64 << 20  # of an unembedding that is quantised, as numbers


@dataclass(frozen=True, slots=True, eq=False)
class Readout:
    """How the residual stream becomes logits.

    Attributes
    ----------
    norm : the final norm's formula.
    weight, bias : of the unembedding, shapes (V, d) and (V,).
    mean_row, mean_bias : their means over the vocabulary.
    scale : multiplier behind the unembedding.
    cap : soft-cap behind that, or None.
    first, vocabulary : the first token whose row is here, and how many tokens there are, where other
        processes hold rows too: weight, bias, their means are then of the rows that are here. Else 0 and 0.
    """

    norm: NormSpec
    weight: torch.Tensor
    bias: torch.Tensor | None
    mean_row: torch.Tensor
    mean_bias: float
    scale: float
    cap: float | None
    first: int = 0
    vocabulary: int = 0

    @property
    def is_split(self) -> bool:
        """Whether other processes hold rows too."""
        return self.vocabulary > 0

    @property
    def total(self) -> Array:
        """Sum of the rows that are here, float64 (d,)."""
        found: Array = self.mean_row.double().cpu().numpy() * self.weight.shape[0]
        return found

    @property
    def bias_total(self) -> float:
        """Sum of the biases that are here."""
        return self.mean_bias * self.weight.shape[0]

    def part_of(self, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Of tokens (n, m): which rows are here, bool; rows (n, m, d) and biases (n, m), float32 and 0
        elsewhere."""
        places = ids.to(self.weight.device) - self.first
        held = (places >= 0) & (places < self.weight.shape[0])
        places = places.clamp(0, self.weight.shape[0] - 1)
        rows = self.weight[places].float() * held[..., None]
        biases = torch.zeros_like(rows[..., 0]) if self.bias is None else self.bias[places].float() * held
        return held, rows, biases

    def of_rows(self, whole: RowShare, device: torch.device) -> Readout:
        """The readout of a vocabulary of these rows alone, one behind the other, with the means of all."""
        rows, biases, mean = (
            torch.tensor(found, dtype=torch.float32, device=device)
            for found in (whole.rows, whole.biases, whole.total / whole.count)
        )
        return replace(
            self,
            weight=rows.flatten(0, 1),
            bias=biases.flatten(),
            mean_row=mean,
            mean_bias=float(whole.bias_total[0]) / whole.count,
            first=0,
            vocabulary=0,
        )

    def uncapped(self, logits: torch.Tensor, unembedded: torch.Tensor | None) -> torch.Tensor:
        """Logits before the soft-cap, float32: from what the unembedding gave, where the cap cannot be
        undone."""
        if self.cap is None:
            return logits.float()
        if unembedded is not None:
            return unembedded.float() * self.scale
        return (torch.atanh(logits.double() / self.cap) * self.cap).float()


@torch.no_grad()
def find_readout(
    final_norm: nn.Module | None,
    unembedding: nn.Module | None,
    seen: Mapping[str, Array],
    logits: torch.Tensor,
    *,
    unembedded: torch.Tensor | None = None,
    constants: Sequence[float],
    tolerance: float,
    is_shared: bool = False,
    part: tuple[int, int] | None = None,
) -> Readout | str:
    """The readout as the values of a forward pass confirm it, or why there is none.

    Parameters
    ----------
    seen : ``into`` and ``out`` of the final norm and ``end``, the last layer's output, each float64 (n, d)
    logits : Tensor, shape (n, V)
    unembedded : what the unembedding gave, (n, V), where it was seen; else it is computed.
    constants : multipliers and caps that the model declares.
    is_shared : the processes that hold the rest of the rows can be asked for them.
    part : the first row of the unembedding that is here and how many are, where that is known already.
    """
    if final_norm is None or unembedding is None:
        return "the model's final norm and unembedding were not found"
    if part is None and is_shared:
        part = rows_of(unembedding)
    try:
        weight, bias = _held_weights(unembedding) if part is None else _part_of(unembedding, part)
    except Unreadable as reason:
        return f"the weights of the model's unembedding are not known: {reason}"
    if set(seen) != {"into", "out", "end"} or not np.array_equal(seen["into"], seen["end"]):
        return "something that is not known stands between the last layer and the final norm"
    norm = fit_norm(final_norm, seen["into"], seen["out"], tolerance)
    if norm is None:
        return "what the final norm computes was not recognised"
    if part is not None:
        own = slice(part[0], part[0] + part[1])
        is_whole = unembedded is not None and unembedded.shape == logits.shape
        unembedded = unembedded[..., own] if unembedded is not None and is_whole else None
        vocabulary, logits = logits.shape[-1], logits[..., own]
    if unembedded is None:
        out = torch.as_tensor(seen["out"][:2], dtype=weight.dtype, device=weight.device)
        unembedded = functional.linear(out, weight, bias)
    plain = unembedded[:2].double()
    if not _applies(weight, bias, seen["out"][:2], unembedded[:2]):
        return "what the unembedding gave is not what its weights give"
    behind = _behind(plain, logits[:2].double().to(plain.device), constants, max(tolerance, 1e-3))
    if behind is None:
        return "what stands between the unembedding and the logits was not confirmed by its values"
    scale, cap = behind
    mean_bias = 0.0 if bias is None else float(bias.double().mean())
    found = Readout(norm, weight.detach(), bias, _mean_row(weight), mean_bias, scale, cap)
    return found if part is None else replace(found, first=part[0], vocabulary=vocabulary)


def _held_weights(unembedding: nn.Module) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Weight (V, d) and bias (V,), as they are held: nothing of that size is kept twice."""
    if list(unembedding.children()):
        return effective_weight(unembedding), effective_bias(unembedding)
    weight, again = tensor_of(unembedding, "weight"), tensor_of(unembedding, "weight")
    if weight is None or again is None or weight.dim() != 2:
        raise Unreadable("it has no weight matrix")
    if weight.data_ptr() != again.data_ptr():
        if not is_quantised(unembedding):
            raise Unreadable("they are read from disk in each pass")
        if weight.nbytes > _MOST_BYTES:
            raise Unreadable(
                f"they are quantised, and too large to be kept twice ({weight.nbytes >> 20} MiB)"
            )
    if weight.shape != getattr(unembedding, "weight", weight).shape and not is_quantised(unembedding):
        raise Unreadable("they are split over several processes")
    return weight, tensor_of(unembedding, "bias")


def _part_of(unembedding: nn.Module, part: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor | None]:
    """As `_held_weights`, of the rows that this process has."""
    if list(unembedding.children()) or is_quantised(unembedding):
        raise Unreadable("they are split over several processes")
    first, count = part
    weight, bias = tensor_of(unembedding, "weight"), tensor_of(unembedding, "bias")
    if weight is None or weight.dim() != 2 or weight.shape[0] != count or not count:
        raise Unreadable("they are split over several processes, and not evenly")
    if bias is not None and bias.shape[0] != count:
        bias = bias[first : first + count]
    return weight, bias


def _applies(weight: torch.Tensor, bias: torch.Tensor | None, out: Array, gave: torch.Tensor) -> bool:
    """Whether the unembedding gave for `out` (n, d) what its weights give: what rounds its input does not."""
    rows = torch.as_tensor(out, dtype=weight.dtype, device=weight.device)
    with torch.autocast(weight.device.type, enabled=False):
        made = functional.linear(rows, weight, bias).double()
    close = max(1e-3, *(4 * torch.finfo(kind).eps for kind in (weight.dtype, gave.dtype)))
    return bool((made.to(gave.device) - gave.double()).norm() <= close * made.norm())


def _mean_row(weight: torch.Tensor, chunk: int = 16384) -> torch.Tensor:
    total = torch.zeros(weight.shape[1], dtype=torch.float64, device=weight.device)
    for part in torch.split(weight.detach(), chunk):
        total += part.double().sum(0)
    return (total / weight.shape[0]).float()


def _behind(
    plain: torch.Tensor, logits: torch.Tensor, constants: Sequence[float], tolerance: float
) -> tuple[float, float | None] | None:
    """(scale, cap) that turn the unembedding's output into the logits.

    The closest way is taken, not the first that is close: a cap hardly shows in small logits.
    """
    if plain.shape != logits.shape:
        return None
    scales = [1.0, *constants, *(1 / c for c in constants)]
    ways: list[tuple[float, float | None]] = [(scale, None) for scale in scales]
    ways += [(1.0, cap) for cap in constants if cap > 1]

    def error(way: tuple[float, float | None]) -> float:
        scale, cap = way
        made = plain * scale if cap is None else torch.tanh(plain * scale / cap) * cap
        return float(torch.linalg.vector_norm(made - logits))

    best = min(ways, key=error)
    return best if error(best) <= tolerance * float(torch.linalg.vector_norm(logits)) else None


class UnembeddingProbe:
    """Keeps what the unembedding gave in the pass of its thread: under a soft-cap the logits do not tell."""

    def __init__(self, unembedding: nn.Module | None, current: Current) -> None:
        self._unembedding = unembedding
        self._current = current
        self._handle: RemovableHandle | None = None

    @property
    def is_installed(self) -> bool:
        """Whether it is watched."""
        return self._handle is not None

    def install(self) -> None:
        """Watch it."""
        if self._handle is None and self._unembedding is not None:
            self._handle = self._unembedding.register_forward_hook(self)

    def remove(self) -> None:
        """Watch it no longer."""
        if self._handle is not None:
            self._handle.remove()
            self._handle = None

    def __call__(self, _: nn.Module, __: tuple[Any, ...], output: Any) -> None:
        passing = None if is_compiling() else self._current.passing
        if passing is not None and isinstance(output, torch.Tensor) and output.dim() == 3:
            passing.deep["unembedded", 0] = output.detach()

    def __reduce__(self) -> tuple[Any, ...]:
        return getattr, (nullcontext(), "__exit__")
