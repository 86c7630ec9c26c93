"""The matrix that a linear layer of vLLM applies, of the columns that this process holds.

vLLM packs weights as its kernels want them and may drop the original, so a layer whose weight is not there as
it was is asked what it does to each unit vector, through the method that its forward pass uses. That asks for
no collective: it is the product before the all-reduce.

Shape letters: d width of the output, i of the input that this process holds.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from fulgurite.agent.weights import Unreadable

_AT_ONCE = 1024


def bare(layer: nn.Module) -> nn.Module:
    """The layer under an adapter's wrapper."""
    base = getattr(layer, "base_layer", None)
    return base if isinstance(base, nn.Module) else layer


def widths_of(layer: nn.Module) -> tuple[int, int] | None:
    """(in, out) of a linear layer, all processes together; None where it is none."""
    layer = bare(layer)
    into, out = getattr(layer, "input_size", None), getattr(layer, "output_size", None)
    return (into, out) if isinstance(into, int) and isinstance(out, int) else None


def leading_back(part: nn.Module, hidden: int) -> list[nn.Module]:
    """The linear layers in `part` whose output is as wide as the residual stream, in order; of one with an
    adapter, its wrapper."""
    under = {id(getattr(module, "base_layer", None)) for module in part.modules()}
    return [m for m in part.modules() if (widths_of(m) or (0, 0))[1] == hidden and id(m) not in under]


def held_inputs(layer: nn.Module) -> int:
    """How many inputs this process holds the columns of."""
    layer = bare(layer)
    held: Any = getattr(layer, "input_size_per_partition", None) or getattr(layer, "input_size", 0)
    return int(held)


@torch.no_grad()
def matrix_of(layer: nn.Module) -> torch.Tensor:
    """The matrix (d, i), in the model's number format where it is held as it is.

    Raises
    ------
    Unreadable
        Where it cannot be had.
    """
    layer = bare(layer)
    widths = widths_of(layer)
    if widths is None:
        raise Unreadable("it is no linear layer")
    shape = (widths[1], held_inputs(layer))
    weight = layer._parameters.get("weight")
    is_as_it_was = weight is not None and tuple(weight.shape) == shape and weight.is_floating_point()
    if weight is not None and is_as_it_was and weight.element_size() > 1:
        return weight.detach()
    return _asked(layer, shape)


def _asked(layer: Any, shape: tuple[int, int]) -> torch.Tensor:
    like = next((t for t in (*layer.parameters(), *layer.buffers())), None)
    dtype = getattr(layer, "params_dtype", None) or torch.get_default_dtype()
    device = torch.device("cpu") if like is None else like.device
    found = torch.empty(shape, dtype=dtype, device=device)
    try:
        for start in range(0, shape[1], _AT_ONCE):
            width = min(_AT_ONCE, shape[1] - start)
            units = torch.zeros(width, shape[1], dtype=dtype, device=device)
            units.diagonal(start).fill_(1.0)
            found[:, start : start + width] = layer.quant_method.apply(layer, units, None).T
    except Exception as error:
        raise Unreadable(f"it could not be asked what it does ({type(error).__name__}: {error})") from error
    return found


def bias_of(layer: nn.Module) -> torch.Tensor | None:
    """What the layer adds, (d,), None where it adds nothing."""
    bias = bare(layer)._parameters.get("bias")
    return None if bias is None or not bool(bias.any()) else bias.detach()


def as_linear(layer: nn.Module) -> nn.Linear:
    """The same map as an ordinary linear layer, for whoever reads weights there."""
    matrix, bias = matrix_of(layer), bias_of(layer)
    made = nn.Linear(matrix.shape[1], matrix.shape[0], bias=bias is not None, device="meta")
    made.weight = nn.Parameter(matrix, requires_grad=False)
    if bias is not None:
        made.bias = nn.Parameter(bias, requires_grad=False)
    return made
