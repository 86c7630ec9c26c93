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
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from fulgurite.agent.anatomy import LayerParts
from fulgurite.agent.readout import Readout
from fulgurite.agent.reduce import READ, Plan, numbers, stack
from fulgurite.agent.scratch import WIDEST, scratch, widened
from fulgurite.agent.weights import (
    Unreadable,
    effective_bias,
    effective_weight,
    is_quantised,
    is_transposed,
    tensor_of,
    version_of,
)
from fulgurite.agent.wiring import LayerWiring

Array = np.ndarray[Any, Any]
Rows = Array | list[Array]
CHANNELS = (
    "head_contribution",
    "ffn_contribution",
    "embedding_contribution",
    "other_contribution",
    "residue",
    "logit_centered",
)
_WIDENED = 1 << 17  # numbers at once: half a MiB stays in the caches that a core has to itself


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
        beside = self.beside(stacked, tokens, chosen, mean, spread)
        return beside.with_heads(self._heads(heads, beside.push, beside.scales))

    @torch.no_grad()
    def later(
        self,
        stacked: torch.Tensor,
        logits: torch.Tensor,
        tokens: torch.Tensor,
        unembedded: torch.Tensor | None = None,
    ) -> LateHeads | None:
        """As `of`, all but the heads' part, which is left to whoever reads the block; None where what the
        projections apply is not known to stay as it is, or not in memory that numpy reads."""
        weights: dict[int, Array] = {}
        for group in self.layout.groups:
            for index in group.layers.tolist():
                weight = self._held.get(index)
                if weight is None or not weight.is_cpu or weight.dtype not in READ:
                    return None
                if version_of(weight) < 0:  # nobody would see that it is written to
                    return None
                weights[index] = numbers(weight)
        beside = self.beside(stacked, tokens, *self.measured(logits, tokens, unembedded))
        aims = {index: self._aim(index, beside.push, beside.scales) for index in weights}
        return LateHeads(self.layout, beside, aims, weights, [self._held[index] for index in weights])

    def beside(
        self,
        stacked: torch.Tensor,
        tokens: torch.Tensor,
        chosen: torch.Tensor,
        mean: torch.Tensor,
        spread: torch.Tensor,
    ) -> Beside:
        """All that is told of a step but for its heads."""
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
        left = chosen - mean
        other = other + self._read_rounding(left - constant, chosen, end * push)
        return Beside(push, scales, ffn, dots[layout.embedding], other, left, spread)

    def _aim(self, index: int, push: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
        """With what a layer's head writes are multiplied, (n, d)."""
        mixer = self.wiring[index].mixer
        assert mixer is not None
        aim = push if mixer.factor == 1.0 else push * mixer.factor
        if mixer.norm is not None:
            aim = aim * torch.as_tensor(mixer.norm.gain, dtype=torch.float32, device=aim.device)
            aim = (aim - aim.mean(-1, keepdim=True) if mixer.norm.centred else aim) / scales[index][:, None]
        return aim

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
        layer = self.layers[index]
        assert layer.projection is not None
        aim = self._aim(index, push, scales)
        return _product(aim, self._weight(index, layer.projection).to(aim.device))


@dataclass(frozen=True, slots=True, eq=False)
class Beside:
    """What is told of the contributions of a step but for its heads, and what these are told with.

    Attributes
    ----------
    push : Tensor of float32, shape (n, d), with which a write's product is its contribution.
    scales : Tensor of float32, shape (L, n), of the norms behind the mixers.
    ffn : Tensor of float32, shape (n, L)
    embedding, other, left, spread : Tensor of float32, shape (n,); `left` is the centred logit.
    """

    push: torch.Tensor
    scales: torch.Tensor
    ffn: torch.Tensor
    embedding: torch.Tensor
    other: torch.Tensor
    left: torch.Tensor
    spread: torch.Tensor

    def with_heads(self, head: torch.Tensor) -> dict[str, torch.Tensor]:
        """The channels, with the heads' part (n, L, H)."""
        total = head.nansum((-1, -2)) + self.ffn.nansum(-1) + self.embedding + self.other
        return {
            "head_contribution": head,
            "ffn_contribution": self.ffn,
            "embedding_contribution": self.embedding,
            "other_contribution": self.other,
            "residue": (self.left - total) / self.spread,
            "logit_centered": self.left,
        }


class LateHeads:
    """The contributions of one step, whose heads' part is left to whoever reads the block: numpy does it
    there, piece by piece, and asks for no thread.

    Parameters
    ----------
    aims : by layer, with what its heads' writes are multiplied, (n, d).
    weights : by layer, what its projection applies, (d, H * D), in the model's own memory (`numbers`).
    tensors : the same, to see whether they are written to.
    """

    def __init__(
        self,
        layout: Plan,
        beside: Beside,
        aims: Mapping[int, torch.Tensor],
        weights: Mapping[int, Array],
        tensors: Sequence[torch.Tensor],
    ) -> None:
        self._layout = layout
        self._beside = beside
        self._aims = aims
        self._weights = weights
        self._tensors = tensors
        self._versions = self._written()

    @property
    def nbytes(self) -> int:
        """What is held of its own, and what the channels will hold."""
        rows, layout = self._beside.left.numel(), self._layout
        own = {id(aim): aim.nbytes for aim in self._aims.values()}
        return sum(own.values()) + 4 * rows * layout.layers * (layout.heads + 3)

    def told(self, inputs: Sequence[Rows]) -> dict[str, Array]:
        """The channels; nothing where somebody wrote to the weights since.

        Parameters
        ----------
        inputs : per group of the plan, what each of its layers' projections was handed, (n, H * D) each.
        """
        rows, layout = self._beside.left.numel(), self._layout
        found = np.full((rows, layout.layers, layout.heads), np.nan, np.float32)
        for group, kept in zip(layout.groups, inputs, strict=True):
            last = group.first + group.heads
            for index, handed in zip(group.layers.tolist(), kept, strict=True):
                aimed = product(self._aims[index].numpy(), self._weights[index])
                aimed *= widened(handed, "handed")
                found[:, index, group.first : last] = aimed.reshape(rows, group.heads, -1).sum(-1)
        told = self._beside.with_heads(torch.from_numpy(found))
        if self._written() != self._versions:
            return {}
        return {name: tensor.numpy() for name, tensor in told.items()}

    def _written(self) -> list[int]:
        return [version_of(tensor) for tensor in self._tensors]


def product(rows: Array, matrix: Array) -> Array:
    """`rows` (n, d) times `matrix` (d, i), float32: tile by tile, of a size that no library starts threads
    for."""
    count, (height, width) = len(rows), matrix.shape
    found = np.zeros((count, width), np.float32)
    whole = width - width % WIDEST
    for start in range(0, height, WIDEST):
        part = widened(matrix[start : start + WIDEST], "part")
        tiles = part[:, :whole].reshape(len(part), -1, WIDEST).transpose(1, 0, 2)  # (tiles, 64, 64)
        for some in (slice(first, first + WIDEST) for first in range(0, count, WIDEST)):
            by = rows[some, start : start + WIDEST]
            if whole:
                into = scratch("tiles", (tiles.shape[0], len(by), WIDEST))
                found[some, :whole] += np.matmul(by, tiles, out=into).transpose(1, 0, 2).reshape(len(by), -1)
            if whole < width:
                found[some, whole:] += by @ part[:, whole:]
    return found


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
