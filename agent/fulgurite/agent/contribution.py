"""Direct attribution of the emitted token's logit to everything that was added to the residual stream; it
sums.

With the final norm's scale frozen at this token's value the centred logit is linear in the stream:
``logit_y - mean = s * (sum_n <c(x_n), g * (u_y - u_mean)> / sigma + <beta, u_y - u_mean>) + (b_y - b_mean)``,
where x_n are the embedding as it enters layer 0, every head, every feed-forward write and every bias; c
subtracts the mean for a LayerNorm. What the terms leave of the measured left side is the residue, shown with
every token. Under a soft-cap all of this is about the logit before the cap.

A signed push, not an importance. Costs one product with each output projection per token: for sampled tokens.

Shape letters: n rows, L layers, H heads, D width of a head, d residual width, V vocabulary.
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

from fulgurite.agent.anatomy import LayerParts
from fulgurite.agent.grams import effective_weight
from fulgurite.agent.norms import NormSpec, fit_norm
from fulgurite.agent.probes import Current
from fulgurite.agent.reduce import Plan
from fulgurite.agent.wiring import LayerWiring

Array = np.ndarray[Any, Any]
CHANNELS = (
    "head_contribution",
    "ffn_contribution",
    "embedding_contribution",
    "other_contribution",
    "residue",
    "logit_centered",
)


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
    weight = getattr(unembedding, "weight", None)
    if final_norm is None or not isinstance(weight, torch.Tensor) or not weight.is_floating_point():
        return "the model's final norm and unembedding were not found"
    if set(seen) != {"into", "out", "end"} or not np.array_equal(seen["into"], seen["end"]):
        return "something that is not known stands between the last layer and the final norm"
    norm = fit_norm(final_norm, seen["into"], seen["out"], tolerance)
    if norm is None:
        return "what the final norm computes was not recognised"
    bias = getattr(unembedding, "bias", None)
    if unembedded is None:
        out = torch.as_tensor(seen["out"][:2], dtype=weight.dtype, device=weight.device)
        unembedded = functional.linear(out, weight, bias)
    plain = unembedded[:2].double()
    behind = _behind(plain, logits[:2].double().to(plain.device), constants, max(tolerance, 1e-3))
    if behind is None:
        return "what stands between the unembedding and the logits was not confirmed by its values"
    scale, cap = behind
    mean_bias = 0.0 if bias is None else float(bias.double().mean())
    return Readout(norm, weight.detach(), bias, _mean_row(weight), mean_bias, scale, cap)


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


class Attribution:
    """The contributions of a model whose wiring and readout are known.

    Parameters
    ----------
    epsilon : spacing at 1 of the number format of the residual stream.
    """

    def __init__(
        self,
        layers: Sequence[LayerParts],
        wiring: Sequence[LayerWiring],
        layout: Plan,
        readout: Readout,
        *,
        epsilon: float,
    ) -> None:
        self.layers = layers
        self.wiring = wiring
        self.layout = layout
        self.readout = readout
        self.epsilon = epsilon
        self._bias = self._biases()

    def _biases(self) -> torch.Tensor:
        """What each projection's bias adds, but for the scale of a norm behind it, float32 (L, d)."""
        rows = np.zeros((len(self.layers), self.layout.width))
        for i, (layer, wires) in enumerate(zip(self.layers, self.wiring, strict=True)):
            bias = getattr(layer.projection, "bias", None)
            if isinstance(bias, torch.Tensor) and wires.mixer is not None:
                row = bias.detach().double().cpu().numpy()
                norm = wires.mixer.norm
                if norm is not None:
                    row = (row - row.mean() if norm.centred else row) * norm.gain
                rows[i] = row * wires.mixer.factor
        return torch.as_tensor(rows, dtype=torch.float32, device=self.readout.weight.device)

    @torch.no_grad()
    def of(
        self,
        stacked: torch.Tensor,
        heads: Mapping[int, torch.Tensor],
        logits: torch.Tensor,
        tokens: torch.Tensor,
        unembedded: torch.Tensor | None = None,
    ) -> dict[str, torch.Tensor]:
        """The channels of contribution, rows first.

        Parameters
        ----------
        stacked : Tensor of float32, shape (slots, n, d), one per slot of the plan
        heads : by layer, the projection's input, n * H * D items
        logits, tokens : shapes (n, V) and (n,)
        unembedded : what the unembedding gave, (n, V), where a soft-cap follows
        """
        readout, layout = self.readout, self.layout
        end = stacked[layout.after_ffn[-1]]
        aim, push = self._direction(end, tokens)
        dots = torch.linalg.vecdot(stacked, push)  # (slots, n)
        scales = self._norm_scales(stacked)  # (L, n)
        other = (push @ self._bias.T / scales.T).sum(-1) + self._constant(aim, tokens)
        ffn = self._ffn(dots)
        other = other + self._norm_biases(push, ffn) + self._headless(dots)
        other = other + self._rounding(dots, stacked, push)
        head = self._heads(heads, push, scales)
        embedding = dots[layout.embedding]
        values = readout.uncapped(logits, unembedded)
        left = values.gather(-1, tokens[:, None])[:, 0] - values.mean(-1)
        total = head.nansum((-1, -2)) + ffn.nansum(-1) + embedding + other
        return {
            "head_contribution": head,
            "ffn_contribution": ffn,
            "embedding_contribution": embedding,
            "other_contribution": other,
            "residue": (left - total) / values.std(-1, correction=0),
            "logit_centered": left,
        }

    def _direction(self, end: torch.Tensor, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """`u_y - u_mean` (n, d), and the vector with which a write's product is its contribution (n, d)."""
        readout, norm = self.readout, self.readout.norm
        aim = (readout.weight[tokens].float() - readout.mean_row) * readout.scale
        push = aim * torch.as_tensor(norm.gain, dtype=torch.float32, device=aim.device)
        centred = end - end.mean(-1, keepdim=True) if norm.centred else end
        scale = (centred.square().mean(-1, keepdim=True) + norm.eps).sqrt()
        push = (push - push.mean(-1, keepdim=True) if norm.centred else push) / scale
        return aim, push

    def _constant(self, aim: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """The final norm's bias and the unembedding's."""
        beta = torch.as_tensor(self.readout.norm.bias, dtype=torch.float32, device=aim.device)
        found: torch.Tensor = aim @ beta
        if self.readout.bias is not None:
            found = found + (self.readout.bias[tokens].float() - self.readout.mean_bias) * self.readout.scale
        return found

    def _norm_scales(self, stacked: torch.Tensor) -> torch.Tensor:
        """Scale of the norm behind each layer's mixer, 1 where there is none, (L, n)."""
        scales = torch.ones(len(self.layers), stacked.shape[1], device=stacked.device)
        for i in self.layout.behind:
            x = stacked[self.layout.before_norm[i]]
            centred = x - x.mean(-1, keepdim=True) if self.layout.norm_centred[i] else x
            scales[i] = (centred.square().mean(-1) + float(self.layout.norm_eps[i])).sqrt()
        return scales

    def _norm_biases(self, push: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        """The biases of norms behind the mixers."""
        found = torch.zeros(like.shape[0], device=push.device)
        for wires in self.wiring:
            if wires.mixer is not None and wires.mixer.norm is not None and wires.mixer.norm.bias.any():
                bias = torch.as_tensor(wires.mixer.norm.bias, dtype=torch.float32, device=push.device)
                found = found + (push @ bias) * wires.mixer.factor
        return found

    def _ffn(self, dots: torch.Tensor) -> torch.Tensor:
        """Contributions of the feed-forward parts (n, L), NaN where there is none."""
        found = torch.full((dots.shape[-1], len(self.layers)), float("nan"), device=dots.device)
        for i, slot in enumerate(self.layout.ffn):
            if slot >= 0:
                found[:, i] = dots[slot] * float(self.layout.ffn_factor[i])
        return found

    def _headless(self, dots: torch.Tensor) -> torch.Tensor:
        """What token mixers without heads add."""
        found = torch.zeros(dots.shape[-1], device=dots.device)
        for layer, slot in zip(self.layers, self.layout.mixer, strict=True):
            if slot >= 0 and layer.projection is None:
                found = found + dots[slot] * float(self.layout.mixer_factor[layer.index])
        return found

    def _rounding(self, dots: torch.Tensor, stacked: torch.Tensor, push: torch.Tensor) -> torch.Tensor:
        """What the rounding of the additions to the stream contributes: where it went less what was added.

        More than rounding can make is not called rounding: it stays in the residue.
        """
        layout = self.layout
        gap = dots[layout.after_ffn[-1]] - dots[layout.embedding]
        for slots, factors in ((layout.mixer, layout.mixer_factor), (layout.ffn, layout.ffn_factor)):
            for slot, factor in zip(slots, factors, strict=True):
                if slot >= 0:
                    gap = gap - dots[slot] * float(factor)
        sums = [slot for slot in (*layout.after_mixer, *layout.after_ffn) if slot >= 0]
        sizes = torch.linalg.vector_norm(stacked[torch.as_tensor(sums, device=stacked.device)], dim=-1).sum(0)
        most = 2 * self.epsilon * sizes * torch.linalg.vector_norm(push, dim=-1)
        return torch.where(gap.abs() <= most, gap, 0.0)

    def _heads(
        self, inputs: Mapping[int, torch.Tensor], push: torch.Tensor, scales: torch.Tensor
    ) -> torch.Tensor:
        """Contributions of the heads (n, L, H), NaN where there are none."""
        rows = push.shape[0]
        found = torch.full((rows, len(self.layers), self.layout.heads), float("nan"), device=push.device)
        for i, kept in inputs.items():
            layer, mixer = self.layers[i], self.wiring[i].mixer
            assert layer.projection is not None
            assert mixer is not None
            aim = push * mixer.factor
            if mixer.norm is not None:
                aim = aim * torch.as_tensor(mixer.norm.gain, dtype=torch.float32, device=aim.device)
                aim = (aim - aim.mean(-1, keepdim=True) if mixer.norm.centred else aim) / scales[i][:, None]
            weight = effective_weight(layer.projection).to(aim.device)
            products = (aim @ weight) * kept.reshape(rows, -1).to(aim.device, torch.float32)
            found[:, i, : layer.heads] = products.view(rows, layer.heads, -1).sum(-1)
        return found
