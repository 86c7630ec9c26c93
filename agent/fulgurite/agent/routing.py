"""Where the last query of a pass looks: its softmax row over the cached keys, told in a few numbers per head.

Only the rows of the positions that matter are ever formed, never the whole matrix. Eager attention hands its
weights out, and they are read there; under a fused kernel the row is recomputed in float32 from the queries
and keys that the kernel was handed, and believed only when it, times the values, is what the kernel gave.
This is routing, not importance.

A key is named by its distance from the query, counted in keys that the query may see: so neither padding, a
sliding window nor a static cache shifts a position. Costs about half of what the kernel reads, for the layers
whose turn it is.

Shape letters: n rows that are measured, b rows and t positions of the pass, k of them that matter, s keys, H
heads, K top entries, B buckets of heat.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.compiler import is_compiling
from torch.utils.hooks import RemovableHandle

from fulgurite.agent.anatomy import LayerParts
from fulgurite.agent.interface import INTERCEPTION
from fulgurite.agent.probes import Current, Pass
from fulgurite.agent.shield import Shield
from fulgurite.wire.channels import KV_HEAT_BUCKETS, KV_HEAT_RECENT, TOP_K

Array = np.ndarray[Any, Any]
CHANNELS = (
    "attention_entropy",
    "sink_mass",
    "attended_positions",
    "attended_weights",
    "measured_layers",
    "kv_heat",
)
LEARNED = "learned_sink_mass"
UNREACHED = (
    "Python sees neither the weights nor the queries and keys of its attention: it is compiled, or calls its "
    'kernel itself (attn_implementation="eager" without compilation may give them)'
)
UNCONFIRMED = "what its attention gave was not confirmed by the recomputed weights"
_TAKE_OUT_AFTER = 3


def learned_sinks(layer: LayerParts) -> torch.Tensor | None:
    """The learned sink logits of a layer's heads, (H,), None where it has none."""
    if layer.mixer is None:
        return None
    for name, parameter in layer.mixer.named_parameters(recurse=False):
        if "sink" in name and parameter.shape == (layer.heads,):
            return parameter
    return None


class Looks:
    """Watches the attention of the layers that have heads, and tells whose turn it is."""

    def __init__(self, layers: Sequence[LayerParts], current: Current, shield: Shield) -> None:
        self._looks = {
            layer.index: _Look(layer, current, shield)
            for layer in layers
            if layer.mixer is not None and layer.heads
        }
        self._turn = 0

    def install(self) -> None:
        """Watch."""
        for look in self._looks.values():
            look.install()

    def remove(self) -> None:
        """Take everything out."""
        for look in self._looks.values():
            look.remove()

    @property
    def hooks(self) -> int:
        """How many hooks are in the model: two for each layer that is watched."""
        return sum(2 * look.is_installed for look in self._looks.values())

    def every(self) -> frozenset[int]:
        """All layers that can be looked at."""
        return frozenset(index for index, look in self._looks.items() if not look.refused)

    def next(self) -> frozenset[int]:
        """The one layer whose turn it is."""
        able = sorted(self.every())
        self._turn += 1
        return frozenset(able[(self._turn - 1) % len(able) :][:1]) if able else frozenset()

    def missing(self, passing: Pass) -> dict[int, str]:
        """Layers that gave nothing in a pass that asked for all of them, and why. They are not asked
        again."""
        for index, look in self._looks.items():
            if ("attention", index) not in passing.deep and not look.refused:
                look.refused = UNREACHED
        return {index: look.refused for index, look in self._looks.items() if look.refused}


class _Look:
    """One layer's attention: a hook for the weights that it hands out, an observer for those that it does
    not."""

    def __init__(self, layer: LayerParts, current: Current, shield: Shield) -> None:
        assert layer.mixer is not None
        self.index = layer.index
        self.heads = layer.heads
        self.mixer = layer.mixer
        self.sinks = learned_sinks(layer) is not None
        self.current = current
        self.shield = shield
        self.refused = ""
        self.failures = 0
        self._confirmed: set[bool] = set()  # for passes of one position, and for those of several
        self._is_inverted = False
        self._handle: RemovableHandle | None = None

    def install(self) -> None:
        if self._handle is None:
            self._handle = self.mixer.register_forward_hook(_WeightsHook(self), with_kwargs=True)
            INTERCEPTION.add(self.mixer, self.called)

    def remove(self) -> None:
        if self._handle is not None:
            self._handle.remove()
            self._handle = None
            INTERCEPTION.discard(self.mixer, self.called)

    @property
    def is_installed(self) -> bool:
        return self._handle is not None

    def wanted(self) -> Pass | None:
        """The pass that runs, where this layer is to be looked at in it."""
        passing = self.current.passing
        if passing is None or self.index not in passing.looks or self.failures >= _TAKE_OUT_AFTER:
            return None
        return None if self.refused else passing

    def failed(self, error: Exception) -> None:
        self.failures += 1
        self.shield.caught("attention", error)

    def called(self, call: Mapping[str, Any], output: Any) -> None:
        """After the kernel: recompute the rows that matter."""
        passing = self.wanted()
        if passing is None:
            return
        started = time.perf_counter_ns()
        try:
            if _is_plain(call, passing):
                with torch.no_grad(), exact(call["query"]):
                    weights, visible = recomputed(passing, call)
                    if (passing.width > 1) not in self._confirmed:
                        self._confirm_kernel(passing, weights, call["value"], output)
                    self._keep(passing, weights, visible, is_whole=call.get("s_aux") is None)
        except Exception as error:
            self.failed(error)
        passing.own_ns += time.perf_counter_ns() - started

    def handed_out(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], weights: torch.Tensor
    ) -> None:
        """After the module: take the rows that matter of the weights (b, H, t, s) that it gave."""
        passing = self.wanted()
        if passing is None or weights.shape[:3] != (passing.batch, self.heads, passing.width):
            return
        started = time.perf_counter_ns()
        try:
            with torch.no_grad(), exact(weights):
                rows = passing.rows(weights.detach().transpose(1, 2)).float()  # (b, k, H, s)
                mask = _mask_of(module, args, kwargs)
                visible = seen_keys(passing, mask, rows.shape[-1], None, rows.device)
                if (passing.width > 1) not in self._confirmed:
                    self._confirm_weights(passing, rows, visible)
                is_whole = not self.sinks and weights.dtype == torch.float32  # else they are rounded
                self._keep(passing, rows, visible != self._is_inverted, is_whole=is_whole)
        except Exception as error:
            self.failed(error)
        passing.own_ns += time.perf_counter_ns() - started

    def _keep(self, passing: Pass, weights: torch.Tensor, visible: torch.Tensor, *, is_whole: bool) -> None:
        if not self.refused:
            passing.deep["attention", self.index] = summary(weights, visible, is_whole=is_whole)

    def _confirm_kernel(self, passing: Pass, weights: torch.Tensor, value: torch.Tensor, output: Any) -> None:
        """The kernel's result (b, t, H, D) is these weights times the values."""
        gave = passing.rows((output[0] if isinstance(output, tuple) else output).detach()).float()
        b, k, heads, s = weights.shape
        groups = heads // value.shape[1]
        spread = weights.transpose(1, 2).reshape(b, value.shape[1], groups * k, s)
        made = (spread @ value[:, :, :s].float()).reshape(b, heads, k, -1).transpose(1, 2)
        tolerance = max(1e-4, 4 * torch.finfo(value.dtype).eps)
        error = torch.linalg.vector_norm(gave.reshape(made.shape) - made)
        self._settle(passing, bool(error <= tolerance * torch.linalg.vector_norm(made)))

    def _confirm_weights(self, passing: Pass, weights: torch.Tensor, visible: torch.Tensor) -> None:
        """Weights are a softmax row: none is negative, they sum to 1 but for a learned sink, hidden keys have
        none. Some models mark the keys that are hidden, not those that are seen."""
        total = weights.sum(-1)
        is_row = bool((weights >= 0).all()) and bool((total <= 1.02).all())
        is_whole = self.sinks or bool((total >= 0.98).all())
        lit = (weights > 0).any(2)  # (b, k, s)
        self._is_inverted = bool((lit & ~visible).any())
        hides = not bool((lit & (visible == self._is_inverted)).any())
        self._settle(passing, is_row and is_whole and hides)

    def _settle(self, passing: Pass, holds: bool) -> None:
        if holds:
            self._confirmed.add(passing.width > 1)
        else:
            self.refused = UNCONFIRMED


class _WeightsHook:
    """Forward hook of an attention module; a copy of the model carries a function that does nothing."""

    __slots__ = ("look",)

    def __init__(self, look: _Look) -> None:
        self.look = look

    def __call__(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any
    ) -> None:
        if is_compiling() or not isinstance(output, tuple) or len(output) < 2:
            return
        weights = output[1]
        if isinstance(weights, torch.Tensor) and weights.dim() == 4:
            self.look.handed_out(module, args, kwargs, weights)

    def __reduce__(self) -> tuple[Any, ...]:
        from contextlib import nullcontext

        return getattr, (nullcontext(), "__exit__")


def _mask_of(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    if "attention_mask" in kwargs:
        return kwargs["attention_mask"]
    names = list(inspect.signature(module.forward).parameters)
    place = names.index("attention_mask") if "attention_mask" in names else len(args)
    return args[place] if place < len(args) else None


def exact(tensor: torch.Tensor) -> torch.autocast:
    """Our own arithmetic is float32, whatever the host casts its own to."""
    return torch.autocast(tensor.device.type, enabled=False)


def _is_plain(call: Mapping[str, Any], passing: Pass) -> bool:
    """Whether this is a call whose row we know how to form."""
    packed = any(call.get(name) is not None for name in ("cu_seq_lens_q", "cu_seqlens_q", "position_bias"))
    query, key, mask = call["query"], call["key"], call.get("attention_mask")
    shaped = query.dim() == 4 and query.shape[0] == passing.batch and query.shape[2] == passing.width
    grouped = key.dim() == 4 and query.shape[1] % key.shape[1] == 0
    told = mask is None or (isinstance(mask, torch.Tensor) and mask.shape[-1] >= key.shape[-2])
    return shaped and grouped and told and not packed


def recomputed(passing: Pass, call: Mapping[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """The softmax rows that matter, float32 (b, k, H, s), and which keys they see, bool (b, k, s).

    Grouped queries share their keys without a copy of them.

    Parameters
    ----------
    call : the arguments of an attention function, by name.
    """
    query, key, mask = call["query"], call["key"], call.get("attention_mask")
    b, heads, t, width = query.shape
    if mask is None and t > 1 and key.shape[2] > t:
        key = key[:, :, :t]  # an empty static cache: what is beyond the prompt is not filled yet
    s = key.shape[2]
    rows = passing.rows(query.detach().transpose(1, 2)).float()  # (b, k, H, D)
    k = rows.shape[1]
    spread = rows.transpose(1, 2).reshape(b, key.shape[1], heads // key.shape[1] * k, width)
    scores = spread @ key.detach().float().transpose(-1, -2)
    scaling = call.get("scaling")
    scores = scores.reshape(b, heads, k, s).transpose(1, 2)
    scores = scores * (width**-0.5 if scaling is None else float(scaling))
    cap = call.get("softcap")
    if cap is not None:
        scores = torch.tanh(scores / cap) * cap
    visible = seen_keys(passing, mask, s, call.get("sliding_window"), scores.device)
    if mask is not None and mask.dim() == 4 and mask.is_floating_point():
        scores = scores + _mask_rows(passing, mask, s).float()
    scores = scores.masked_fill(~visible[:, :, None], float("-inf"))
    sinks = call.get("s_aux")
    if sinks is None:
        return scores.softmax(-1), visible
    with_sink = torch.cat([scores, sinks.float().reshape(1, 1, -1, 1).expand(b, k, heads, 1)], -1)
    return with_sink.softmax(-1)[..., :-1], visible


def seen_keys(passing: Pass, mask: Any, keys: int, window: Any, device: Any) -> torch.Tensor:
    """Which keys the positions that matter may see, bool (b, k, s).

    A mask of four dimensions says it all; one of two (or none) is told to kernels that know about causality
    and windows themselves.
    """
    if isinstance(mask, torch.Tensor) and mask.dim() == 4:
        rows = _mask_rows(passing, mask, keys)
        found = rows if rows.dtype == torch.bool else rows > torch.finfo(rows.dtype).min / 2
        return found.any(2).to(device)
    queries = torch.arange(keys - passing.width, keys, device=device).expand(passing.batch, -1)
    places = passing.rows(queries[..., None])[..., 0]  # (b, k)
    order = torch.arange(keys, device=device)
    found = order <= places[..., None]
    if isinstance(window, int) and window > 0:
        found = found & (order > places[..., None] - window)
    if isinstance(mask, torch.Tensor):
        found = found & (mask[:, None, -keys:] != 0).to(device)
    return found


def _mask_rows(passing: Pass, mask: torch.Tensor, keys: int) -> torch.Tensor:
    """The rows of a mask (b or 1, H or 1, t, s) that matter, (b, k, H or 1, s)."""
    spread = mask[..., :keys].expand(passing.batch, -1, -1, -1)[:, :, -passing.width :]
    return passing.rows(spread.transpose(1, 2))


def summary(weights: torch.Tensor, visible: torch.Tensor, *, is_whole: bool) -> torch.Tensor:
    """What is told of rows (b, k, H, s): one vector per row, float32 (b, k, H * (3 + 2 * K) + B + 1).

    In it, per head: entropy, sum, weight of the first key that is seen, K largest weights, their distances;
    then the mean mass per bucket of distance, and the number of keys that are seen. `is_whole`: the rows sum
    to 1, no learned sink takes its part.
    """
    b, k, heads, s = weights.shape
    weights = weights.masked_fill(~visible[:, :, None], 0.0)
    after = visible.flip(-1).cumsum(-1).flip(-1)  # keys that are seen from here to the query, itself included
    distance = (after - 1).clamp(min=0)
    first = visible.int().argmax(-1)[..., None, None].expand(b, k, heads, 1)
    top = torch.topk(weights, min(TOP_K, s), -1)
    back = distance[:, :, None].expand(b, k, heads, s).gather(-1, top.indices).float()
    back = torch.where(top.values > 0, back, -1.0)
    short = TOP_K - top.values.shape[-1]
    values, back = (nn.functional.pad(x, (0, short), value=-1.0) for x in (top.values, back))
    heat = torch.zeros(b, k, KV_HEAT_BUCKETS, device=weights.device)
    heat.scatter_add_(-1, bucket_of(distance), weights.mean(2))
    told = (
        _entropy(weights, top.indices[..., :1], is_whole=is_whole),
        weights.sum(-1),
        weights.gather(-1, first)[..., 0],
        values,
        back,
        heat,
        after[..., :1].float(),
    )
    return torch.cat([x.reshape(b, k, -1).float() for x in told], -1)


def _entropy(weights: torch.Tensor, largest: torch.Tensor, *, is_whole: bool) -> torch.Tensor:
    """-sum w ln w over the keys, (b, k, H); `largest` (b, k, H, 1) are the places of the largest weights.

    A weight close to 1 has no digits left: in a row that sums to 1 it is told from all the others.
    """
    plain: torch.Tensor = -torch.special.xlogy(weights, weights).sum(-1)
    if not is_whole:
        return plain
    others = weights.scatter(-1, largest, 0.0)
    rest = others.sum(-1).clamp(max=0.5)
    fine = -torch.special.xlogy(others, others).sum(-1) - (1.0 - rest) * torch.log1p(-rest)
    return torch.where(rest < 0.5, fine, plain)


def bucket_of(distance: torch.Tensor) -> torch.Tensor:
    """The bucket of heat of keys at these distances, int64; the first position's own bucket apart."""
    edges = KV_HEAT_RECENT * 2 ** torch.arange(KV_HEAT_BUCKETS - KV_HEAT_RECENT, device=distance.device)
    middle = KV_HEAT_BUCKETS - KV_HEAT_RECENT - torch.bucketize(distance, edges, right=True)
    return torch.where(distance < KV_HEAT_RECENT, KV_HEAT_BUCKETS - 1 - distance, middle.clamp(min=1))


def columns(
    told: Mapping[int, Array], positions: Array, layers: Sequence[LayerParts], heads: int
) -> dict[str, Array]:
    """The channels, rows first, NaN and −1 where a layer was not looked at.

    Parameters
    ----------
    told : by layer, its `summary` as ndarray of float32, shape (n, width)
    positions : ndarray of int, shape (n,), of the emitted tokens: the query stood one before.
    """
    n, count = len(positions), len(layers)
    found: dict[str, Array] = {
        "attention_entropy": np.full((n, count, heads), np.nan, np.float32),
        "sink_mass": np.full((n, count, heads), np.nan, np.float32),
        "attended_positions": np.full((n, count, heads, TOP_K), -1, np.int32),
        "attended_weights": np.full((n, count, heads, TOP_K), np.nan, np.float32),
        "measured_layers": np.zeros((n, count), np.uint8),
        "kv_heat": np.full((n, count, KV_HEAT_BUCKETS), np.nan, np.float32),
    }
    if any(learned_sinks(layer) is not None for layer in layers):
        found[LEARNED] = np.full((n, count, heads), np.nan, np.float32)
    for index, rows in told.items():
        for name, value in _of_layer(rows, positions, layers[index]).items():
            target = found[name][:, index]
            if value.ndim > 1 and name != "kv_heat":
                target[:, : layers[index].heads] = value
            else:
                target[:] = value
    return found


def _of_layer(rows: Array, positions: Array, layer: LayerParts) -> dict[str, Array]:
    heads = layer.heads
    cuts = np.cumsum([heads, heads, heads, heads * TOP_K, heads * TOP_K, KV_HEAT_BUCKETS])
    entropy, total, first, weights, back, heat, seen = np.split(rows, cuts, axis=-1)
    weights, back = (x.reshape(-1, heads, TOP_K) for x in (weights, back))
    is_sink = (
        np.round(seen).astype(np.int64) == positions[:, None]
    )  # the first key that is seen is the first of all
    here = np.round(positions[:, None, None] - 1 - back).astype(np.int32)
    found = {
        "attention_entropy": entropy,
        "sink_mass": np.where(is_sink, first, 0.0),
        "attended_positions": np.where(back >= 0, here, -1),
        "attended_weights": np.where(back >= 0, weights, np.nan),
        "measured_layers": np.ones(len(rows), np.uint8),
        "kv_heat": _heat(heat, first.mean(-1), np.round(seen[:, 0]).astype(np.int64), is_sink[:, 0]),
    }
    if learned_sinks(layer) is not None:
        found[LEARNED] = np.clip(1.0 - total, 0.0, 1.0)
    return found


def _heat(heat: Array, first: Array, seen: Array, is_sink: Array) -> Array:
    """Mass per bucket with the first position in its own, NaN where a bucket holds no key that is seen."""
    found = heat.copy()
    row = np.arange(len(found))
    last = bucket_of(torch.from_numpy(seen - 1)).numpy()
    found[row, last] = np.where(is_sink, np.maximum(found[row, last] - first, 0.0), found[row, last])
    nearest = np.array([0, *(_nearest(bucket) for bucket in range(1, KV_HEAT_BUCKETS))])
    held = nearest[None, :] < (seen - is_sink)[:, None]
    found[:, 0], held[:, 0] = first, is_sink
    found[~held] = np.nan
    return found


def _nearest(bucket: int) -> int:
    """The smallest distance in a bucket."""
    recent = KV_HEAT_BUCKETS - 1 - bucket
    if recent < KV_HEAT_RECENT:
        return recent
    return int(KV_HEAT_RECENT * 2 ** (KV_HEAT_BUCKETS - KV_HEAT_RECENT - 1 - bucket))
