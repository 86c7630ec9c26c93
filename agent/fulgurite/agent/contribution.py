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

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from fulgurite.agent.anatomy import LayerParts
from fulgurite.agent.readout import Readout
from fulgurite.agent.reduce import Plan, stack
from fulgurite.agent.weights import (
    Unreadable,
    effective_bias,
    effective_weight,
    is_quantised,
    is_transposed,
    tensor_of,
)
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
_WIDENED = 1 << 19  # numbers at once: 2 MiB


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
        self._held: dict[int, torch.Tensor] = {}
        self._given: Mapping[int, torch.Tensor] | None = None

    def _biases(self) -> torch.Tensor:
        """What each projection's bias adds, but for the scale of a norm behind it, float32 (L, d)."""
        rows = np.zeros((len(self.layers), self.layout.width))
        for i, (layer, wires) in enumerate(zip(self.layers, self.wiring, strict=True)):
            bias = effective_bias(layer.projection) if layer.projection is not None else None
            if bias is not None and wires.mixer is not None:
                row = bias.double().cpu().numpy()
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
        return self.told(stacked, heads, tokens, *self.measured(logits, tokens, unembedded))

    def measured(
        self, logits: torch.Tensor, tokens: torch.Tensor, unembedded: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The logit of each token, the mean of all logits, and their standard deviation, before a soft-cap:
        (n,) each. Parameters as for `of`."""
        if unembedded is not None and unembedded.shape != logits.shape:
            unembedded = None  # a part of it
        values = self.readout.uncapped(logits, unembedded)
        chosen = values.gather(-1, tokens[:, None])[:, 0]
        mean = values.mean(-1)
        spread = torch.linalg.vector_norm(values - mean[:, None], dim=-1) / math.sqrt(values.shape[-1])
        return chosen, mean, spread

    def through(self, readout: Readout, matrices: Mapping[int, torch.Tensor]) -> Attribution:
        """The same through rows of the unembedding that were put together, for another thread: it touches no
        module, whose weights may be exchanged for the time of a forward pass.

        Parameters
        ----------
        matrices : as `matrices` gave them.
        """
        found = copy.copy(self)
        found.readout, found._given = readout, matrices
        return found

    def matrices(self) -> dict[int, torch.Tensor]:
        """By layer, what its projection applies, in the model's own memory. Asked between two passes.

        Raises
        ------
        Unreadable
            Where that cannot be had: adapters, quantised or offloaded weights.
        """
        found = {}
        for layer in self.layers:
            projection = layer.projection
            if projection is None:
                continue
            for name, is_so in (
                ("under adapters", bool(list(projection.children()))),
                ("offloaded or under hooks of accelerate", hasattr(projection, "_hf_hook")),
                ("quantised", is_quantised(projection)),
            ):
                if is_so:
                    raise Unreadable(
                        f"the weights of the output projection in layer {layer.index} are {name}"
                    )
            weight = tensor_of(projection, "weight")
            if weight is None or weight.dim() != 2:
                raise Unreadable(f"the output projection in layer {layer.index} has no weight matrix")
            found[layer.index] = weight.T if is_transposed(projection) else weight
        return found

    @torch.no_grad()
    def told(
        self,
        stacked: torch.Tensor,
        heads: Mapping[int, torch.Tensor],
        tokens: torch.Tensor,
        chosen: torch.Tensor,
        mean: torch.Tensor,
        spread: torch.Tensor,
    ) -> dict[str, torch.Tensor]:
        """As `of`, from what `measured` gave.

        Parameters
        ----------
        tokens : of the readout's rows, shape (n,)
        """
        layout = self.layout
        end = stacked[layout.after_ffn[-1]]
        aim, push = self._direction(end, tokens)
        dots = torch.linalg.vecdot(stacked, push)  # (slots, n)
        scales = self._norm_scales(stacked)  # (L, n)
        constant = self._constant(aim, tokens)
        other = (push @ self._bias.T / scales.T).sum(-1) + constant
        ffn = self._ffn(dots)
        other = other + self._norm_biases(push, ffn) + self._headless(dots)
        other = other + self._rounding(dots, stacked, push)
        head = self._heads(heads, push, scales)
        embedding = dots[layout.embedding]
        left = chosen - mean
        other = other + self._read_rounding(left - constant, chosen, end * push)
        total = head.nansum((-1, -2)) + ffn.nansum(-1) + embedding + other
        return {
            "head_contribution": head,
            "ffn_contribution": ffn,
            "embedding_contribution": embedding,
            "other_contribution": other,
            "residue": (left - total) / spread,
            "logit_centered": left,
        }

    def _weight(self, index: int, projection: nn.Module) -> torch.Tensor:
        """As `effective_weight`, of whatever type; asked once where the weights are read in place. Exchanged
        weights bring another `Attribution`."""
        if self._given is not None:
            return self._given[index]
        weight = self._held.get(index)
        if weight is None:
            weight = effective_weight(projection, widened=False)
            if _is_held(weight, projection):
                self._held[index] = weight
        return weight

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
        layers = np.flatnonzero(self.layout.ffn >= 0)
        written = _times(dots, self.layout.ffn[layers], self.layout.ffn_factor[layers])
        return found.index_copy_(1, torch.as_tensor(layers, device=dots.device), written.T)

    def _headless(self, dots: torch.Tensor) -> torch.Tensor:
        """What token mixers without heads add."""
        found = torch.zeros(dots.shape[-1], device=dots.device)
        for layer, slot in zip(self.layers, self.layout.mixer, strict=True):
            if slot >= 0 and layer.projection is None:
                found = found + dots[slot] * float(self.layout.mixer_factor[layer.index])
        return found

    def _read_rounding(self, left: torch.Tensor, chosen: torch.Tensor, read: torch.Tensor) -> torch.Tensor:
        """What the rounding of the final norm and of the logits themselves contributes, (n,).

        Parameters
        ----------
        left, chosen : the centred logit less what has no part in the stream, and the logit, (n,)
        read : what each coordinate of the stream gives, (n, d)
        """
        most = self.epsilon * (2 * torch.linalg.vector_norm(read, dim=-1) + chosen.abs() / 2)
        return _as_far_as(left - read.sum(-1), most)

    def _rounding(self, dots: torch.Tensor, stacked: torch.Tensor, push: torch.Tensor) -> torch.Tensor:
        """What the rounding of the additions to the stream contributes: where it went less what was added."""
        layout = self.layout
        gap = dots[layout.after_ffn[-1]] - dots[layout.embedding]
        for slots, factors in ((layout.mixer, layout.mixer_factor), (layout.ffn, layout.ffn_factor)):
            there = slots >= 0
            gap = gap - _times(dots, slots[there], factors[there]).sum(0)
        sums = np.concatenate([layout.after_mixer, layout.after_ffn])
        kept = torch.as_tensor(sums[sums >= 0], device=stacked.device)
        shares = stacked.index_select(0, kept) * push  # each coordinate rounds by itself
        return _as_far_as(gap, 2 * self.epsilon * shares.square().sum((0, -1)).sqrt())

    def _heads(
        self, inputs: Mapping[int, torch.Tensor], push: torch.Tensor, scales: torch.Tensor
    ) -> torch.Tensor:
        """Contributions of the heads (n, L, H), NaN where there are none."""
        rows = push.shape[0]
        found = torch.full((rows, len(self.layers), self.layout.heads), float("nan"), device=push.device)
        for group in self.layout.groups:
            first, last = group.first, group.first + group.heads
            members = group.layers.tolist()
            kept = stack([inputs[i].to(push.device) for i in members]).view(len(members), rows, -1)
            for i, index in enumerate(members):
                kept[i] *= self._aimed(index, push, scales)
            told = kept.view(*kept.shape[:2], group.heads, -1).sum(-1)
            found[:, torch.as_tensor(group.layers, device=push.device), first:last] = told.transpose(0, 1)
        return found

    def _aimed(self, index: int, push: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
        """With what each input of a layer's projection is multiplied, (n, H * D)."""
        layer, mixer = self.layers[index], self.wiring[index].mixer
        assert layer.projection is not None
        assert mixer is not None
        aim = push if mixer.factor == 1.0 else push * mixer.factor
        if mixer.norm is not None:
            aim = aim * torch.as_tensor(mixer.norm.gain, dtype=torch.float32, device=aim.device)
            aim = (aim - aim.mean(-1, keepdim=True) if mixer.norm.centred else aim) / scales[index][:, None]
        return _product(aim, self._weight(index, layer.projection).to(aim.device))


def _product(rows: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    """`rows` (n, d) times `matrix` (d, i), in float32. What is to be widened for it is so in parts: all of it
    at once would be new memory for each layer, and leave the caches."""
    if matrix.dtype == torch.float32 or matrix.device.type != "cpu":
        return rows @ matrix.float()
    height, width = matrix.shape
    room = torch.empty(min(height, max(1, _WIDENED // width)), width)
    found = torch.zeros(rows.shape[0], width)
    for start in range(0, height, len(room)):
        part = room[: height - start]
        part.copy_(matrix[start : start + len(room)])
        found.addmm_(rows[:, start : start + len(room)], part)
    return found


def _is_held(weight: torch.Tensor, projection: nn.Module) -> bool:
    """Whether `weight` is the projection's own memory, and stays: so what is written there is seen."""
    own = projection._parameters.get("weight")
    is_plain = type(own) is nn.Parameter and not hasattr(projection, "_hf_hook")
    return own is not None and is_plain and weight.data_ptr() == own.data_ptr()


def _times(dots: torch.Tensor, slots: Array, factors: Array) -> torch.Tensor:
    """`dots` (all slots, n) of these `slots` (k,), times their factors (k,): shape (k, n)."""
    chosen = dots.index_select(0, torch.as_tensor(slots, device=dots.device))
    return chosen * torch.as_tensor(factors, dtype=torch.float32, device=dots.device)[:, None]


def _as_far_as(gap: torch.Tensor, most: torch.Tensor) -> torch.Tensor:
    """`gap` where rounding can make it. What is more is not called rounding: it stays in the residue."""
    return torch.where(gap.abs() <= most, gap, 0.0)
