"""What a normalisation module computes, found from its values: centred or not, which gain.

`y = gain * (x - mean(x)) / scale + bias`, with `scale = sqrt(mean(x^2) + eps)` after centring. A gain is the
weight, or one plus the weight, or none; which, is decided by what came out of the module, and by nothing
else.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from fulgurite.agent.weights import Unreadable, tensor_of

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True, eq=False)
class NormSpec:
    """A normalisation as a formula.

    Attributes
    ----------
    centred : whether the mean is subtracted (LayerNorm).
    eps : added to the mean square.
    gain : ndarray of float64, shape (width,)
    bias : ndarray of float64, shape (width,)
    """

    centred: bool
    eps: float
    gain: Array
    bias: Array

    def scale(self, x: Array) -> Array:
        """The scale of each vector, shape (…,), for x of shape (…, width)."""
        y = x - x.mean(-1, keepdims=True) if self.centred else x
        found: Array = np.sqrt(np.mean(np.square(y), -1) + self.eps)
        return found

    def __call__(self, x: Array) -> Array:
        """The module's output by formula."""
        y = x - x.mean(-1, keepdims=True) if self.centred else x
        return y / self.scale(x)[..., None] * self.gain + self.bias


def fit_norm(module: nn.Module, x: Array, y: Array, tolerance: float) -> NormSpec | None:
    """The formula that gives `y` for `x`, or None where none of the known ones does.

    A few rows in a coarse number format may fit several formulas: a stream whose mean is nearly 0 does not
    tell whether it is subtracted. Then the module is asked what it gives for rows that do.

    Parameters
    ----------
    x, y : ndarray of float64, shape (rows, width)
        What went in and what came out.
    tolerance : largest relative error of the whole.
    """
    fits = [spec for spec in _candidates(module, x) if _error(spec, x, y) <= tolerance]
    if not fits:
        return None
    asked = _asked(module, x.shape[-1]) if len(fits) > 1 else None
    rows, out = asked if asked is not None else (x, y)
    return min(fits, key=lambda spec: _error(spec, rows, out))


def _error(spec: NormSpec, x: Array, y: Array) -> float:
    return float(np.linalg.norm(spec(x) - y)) / (float(np.linalg.norm(y)) or 1.0)


@torch.no_grad()
def _asked(module: nn.Module, width: int) -> tuple[Array, Array] | None:
    """Rows with a mean of their own, and what the module gives for them; None where it cannot be asked."""
    like = getattr(module, "weight", None)
    options: dict[str, Any] = {"device": like.device, "dtype": like.dtype} if like is not None else {}
    rows = np.random.default_rng(0).normal(size=(4, width)) + np.array([[2.0], [-1.0], [0.5], [3.0]])
    try:
        into = torch.as_tensor(rows, dtype=torch.float32).to(**options)
        out = module.forward(into)
        found: Array = out.to("cpu", torch.float64).numpy()
    except Exception:  # a norm that is called in another way: what was seen has to do
        return None
    return (into.to("cpu", torch.float64).numpy(), found) if found.shape == rows.shape else None


def _candidates(module: nn.Module, x: Array) -> list[NormSpec]:
    width = x.shape[-1]
    weight, bias = _vector(module, "weight"), _vector(module, "bias")
    zero = np.zeros(width)
    gains = [np.ones(width)] if weight is None else [weight, 1.0 + weight]
    if any(gain.shape != (width,) for gain in gains):
        return []
    added = bias if bias is not None and bias.shape == (width,) else zero
    return [
        NormSpec(centred, eps, gain, added)
        for gain in gains
        for centred in (False, True)
        for eps in _epsilons(module)
    ]


def _vector(module: nn.Module, name: str) -> Array | None:
    try:
        value = tensor_of(module, name)
    except Unreadable:  # then no formula fits what the module gave
        return None
    found: Array | None = None if value is None else value.to("cpu", torch.float64).numpy()
    return found


def _epsilons(module: nn.Module) -> list[float]:
    found = [v for k, v in vars(module).items() if "eps" in k and isinstance(v, float) and 0 <= v < 0.1]
    return found or [1e-6, 1e-5]
