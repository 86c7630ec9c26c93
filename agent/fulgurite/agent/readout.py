"""How the residual stream becomes logits: final norm, unembedding, scale, soft-cap; found from the values.

What stands between them is confirmed in one forward pass, and not assumed. Costs one mean over the
unembedding's rows.

Shape letters: n rows, d residual width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.compiler import is_compiling
from torch.nn import functional
from torch.utils.hooks import RemovableHandle

from fulgurite.agent.norms import NormSpec, fit_norm
from fulgurite.agent.probes import Current
from fulgurite.agent.weights import Unreadable, effective_bias, effective_weight, is_quantised, tensor_of

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
    """

    norm: NormSpec
    weight: torch.Tensor
    bias: torch.Tensor | None
    mean_row: torch.Tensor
    mean_bias: float
    scale: float
    cap: float | None

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
) -> Readout | str:
    """The readout as the values of a forward pass confirm it, or why there is none.

    Parameters
    ----------
    seen : ``into`` and ``out`` of the final norm and ``end``, the last layer's output, each float64 (n, d)
    logits : Tensor, shape (n, V)
    unembedded : what the unembedding gave, (n, V), where it was seen; else it is computed.
    constants : multipliers and caps that the model declares.
    """
    if final_norm is None or unembedding is None:
        return "the model's final norm and unembedding were not found"
    try:
        weight, bias = _held_weights(unembedding)
    except Unreadable as reason:
        return f"the weights of the model's unembedding are not known: {reason}"
    if set(seen) != {"into", "out", "end"} or not np.array_equal(seen["into"], seen["end"]):
        return "something that is not known stands between the last layer and the final norm"
    norm = fit_norm(final_norm, seen["into"], seen["out"], tolerance)
    if norm is None:
        return "what the final norm computes was not recognised"
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
    return Readout(norm, weight.detach(), bias, _mean_row(weight), mean_bias, scale, cap)


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
