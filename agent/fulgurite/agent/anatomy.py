"""What a decoder is made of, found by structure: layers, token mixers, output projections, feed-forward
parts, norms.

Nothing here goes by the names of a model family. A token mixer is the part of a layer that is handed a mask
or a cache; its output projection is the last linear map in it that leads back to the residual stream; a
feed-forward part is what else leads there. How these parts are added to the residual stream is not assumed
but found from the values of the first forward pass (`fulgurite.agent.wiring`). What does not fit is left out,
with the reason.

Costs one walk over the modules when a model is instrumented.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from fulgurite.agent.weights import Unreadable, columns_of, is_distributed
from fulgurite.wire.topology import Topology

_STATEFUL = ("linear", "mamba", "ssm", "conv", "recurrent", "retention", "rwkv")


@dataclass(frozen=True, slots=True, eq=False)
class LayerParts:
    """The parts of one decoder layer.

    Attributes
    ----------
    block : the layer itself.
    kind, window : as in `Topology.layer_kinds`, `Topology.layer_windows`.
    mixer : attention or another token mixer, None where the layer has none.
    projection : the linear map from concatenated heads to the residual stream, None where there are no heads.
    heads, head_dim : of the projection's input, all processes together; 0 where there are none.
    ffn, ffn_linear : the feed-forward part, and the last linear map in it that leads to the residual stream.
    experts : modules that may be handed expert ids and weights.
    norms : every normalisation over the residual width that belongs to the layer.
    first_head, held_heads : which heads are computed in this process: all, but for tensor parallelism.
    """

    index: int
    block: nn.Module
    kind: str
    window: int
    mixer: nn.Module | None
    projection: nn.Module | None
    heads: int
    head_dim: int
    ffn: nn.Module | None
    ffn_linear: nn.Module | None
    experts: tuple[nn.Module, ...]
    norms: tuple[nn.Module, ...]
    first_head: int = 0
    held_heads: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Anatomy:
    """A decoder's parts, and its shape as told to everybody else.

    Attributes
    ----------
    constants : multipliers and caps that the model's configuration declares.
    """

    layers: tuple[LayerParts, ...]
    final_norm: nn.Module | None
    unembedding: nn.Module | None
    topology: Topology
    constants: tuple[float, ...]

    def without(self, unavailable: dict[str, str]) -> Anatomy:
        """The same with further channels that cannot be measured, and why."""
        known = dict(self.topology.unavailable)
        merged = tuple(sorted({**unavailable, **known}.items()))
        return replace(self, topology=replace(self.topology, unavailable=merged))


def dissect(model: nn.Module) -> Anatomy:
    """Find the parts of `model`."""
    config = _text_config(model)
    hidden = int(getattr(config, "hidden_size", 0) or 0)
    owner, blocks = _layer_list(model, int(getattr(config, "num_hidden_layers", 0) or 0))
    layers = tuple(_parts(block, index, config, hidden) for index, block in enumerate(blocks))
    norms = [m for m in owner.children() if is_norm(m, hidden)] if owner is not None else []
    return Anatomy(
        layers=layers,
        final_norm=norms[-1] if norms else None,
        unembedding=_output_embeddings(model),
        topology=_topology(model, config, layers, hidden),
        constants=_declared_in(config),
    )


def linear_shape(module: nn.Module) -> tuple[int, int] | None:
    """(in, out) of a linear map: `Linear` and all that look like it, and the transposed `Conv1D` of GPT-2."""
    width_in, width_out = getattr(module, "in_features", None), getattr(module, "out_features", None)
    if isinstance(width_in, int) and isinstance(width_out, int):
        return width_in, width_out
    weight = getattr(module, "weight", None)
    if (
        isinstance(getattr(module, "nf", None), int)
        and isinstance(weight, torch.Tensor)
        and weight.dim() == 2
    ):
        return int(weight.shape[0]), int(weight.shape[1])
    return None


def is_norm(module: nn.Module, width: int) -> bool:
    """Whether `module` normalises vectors of `width`: no parts, at most a gain and a bias of that width."""
    if any(True for _ in module.children()) or linear_shape(module) is not None:
        return False
    own = list(module.parameters(recurse=False))
    if own:
        return all(p.dim() == 1 and p.shape[0] == width for p in own) and hasattr(module, "weight")
    return "norm" in type(module).__name__.lower()


def linears(module: nn.Module, out: int) -> list[nn.Module]:
    """Linear maps in `module` that lead to width `out`, in order of definition, adapters counted as one."""
    shape = linear_shape(module)
    if shape is not None:
        return [module] if shape[1] == out else []
    return [found for child in module.children() for found in linears(child, out)]


def accepts(module: nn.Module, *words: str) -> bool:
    """Whether the forward pass of `module` has a parameter whose name contains one of `words`.

    A wrapper that hands on whatever it is given (tensor parallelism puts one around a forward pass) says
    nothing of it: then the class does.
    """
    try:
        named = inspect.signature(module.forward).parameters.values()
        if all(one.kind in (one.VAR_POSITIONAL, one.VAR_KEYWORD) for one in named):
            named = inspect.signature(type(module).forward).parameters.values()
    except (TypeError, ValueError):
        return False
    return any(word in one.name for one in named for word in words)


def declared(block: nn.Module) -> tuple[float, ...]:
    """Multipliers that a layer declares: plain numbers among the attributes of it and its parts."""
    values = {
        v for holder in (block, *block.children()) for v in vars(holder).values() if isinstance(v, float)
    }
    return tuple(sorted(v for v in values if 1e-3 < abs(v) < 1e4))


def _declared_in(config: Any) -> tuple[float, ...]:
    words = ("multiplier", "scal", "cap")
    named = {k: v for k, v in vars(config).items() if any(word in k for word in words)}
    values = {float(v) for v in named.values() if isinstance(v, (int, float)) and not isinstance(v, bool)}
    return tuple(sorted(v for v in values if 1e-3 < abs(v) < 1e4))


def _text_config(model: nn.Module) -> Any:
    config: Any = model.config
    found = config.get_text_config(decoder=True) if hasattr(config, "get_text_config") else config
    return found if found is not None else config


def _layer_list(model: nn.Module, count: int) -> tuple[nn.Module | None, list[nn.Module]]:
    """The longest-suited `ModuleList`: as many entries as the configuration has layers, most parameters."""
    lists = [
        (sum(p.numel() for p in child.parameters()), owner, child)
        for owner in model.modules()
        for child in owner.children()
        if isinstance(child, nn.ModuleList) and len(child) == count and not hasattr(owner, "is_encoder_stack")
    ]
    if not lists or count == 0:
        return None, []
    _, owner, found = max(lists, key=lambda item: item[0])
    return owner, list(found)


def _parts(block: nn.Module, index: int, config: Any, hidden: int) -> LayerParts:
    mixer = _mixer(block, hidden)
    kind, window = _kind(mixer, index, config)
    projection, heads, head_dim = None, 0, 0
    if mixer is not None and kind in ("full", "sliding"):
        projection, heads, head_dim = _heads(mixer, config, hidden)
    if heads == 0 and kind in ("full", "sliding"):
        kind = "none"
    ffn = _ffn(block, mixer, hidden)
    first, held = _held(projection, heads, head_dim)
    return LayerParts(
        index=index,
        block=block,
        kind=kind,
        window=window,
        mixer=mixer,
        projection=projection,
        heads=heads,
        head_dim=head_dim,
        ffn=ffn,
        ffn_linear=(linears(ffn, hidden) or [None])[-1] if ffn is not None else None,  # type: ignore[list-item]
        experts=tuple(_experts(ffn)) if ffn is not None else (),
        norms=tuple(m for m in _running(block) if is_norm(m, hidden)),
        first_head=first,
        held_heads=held,
    )


def _running(module: nn.Module) -> Iterator[nn.Module]:
    """`module` and all its parts, but for those that make weights, as a parametrisation by norms does."""
    yield module
    for child in module.children():
        if not isinstance(child, nn.utils.parametrize.ParametrizationList):
            yield from _running(child)


def _takes_context(module: nn.Module) -> bool:
    return accepts(module, "mask", "past", "cache") and not getattr(module, "is_cross_attention", False)


def _mixer(block: nn.Module, hidden: int) -> nn.Module | None:
    """The innermost part that is handed a mask or a cache and leads back to the residual stream."""
    for child in block.children():
        if _takes_context(child) and linears(child, hidden):
            return _mixer(child, hidden) or child
    return None


def _kind(mixer: nn.Module | None, index: int, config: Any) -> tuple[str, int]:
    if mixer is None:
        return "none", 0
    declared = getattr(config, "layer_types", None) or getattr(config, "layers_block_type", None) or []
    label = str(declared[index]) if index < len(declared) else ""
    if any(word in label for word in _STATEFUL) or any(isinstance(m, nn.Conv1d) for m in mixer.modules()):
        return "linear", 0
    window = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
    if hasattr(mixer, "sliding_window"):
        window = mixer.sliding_window
    if not isinstance(window, int) or window <= 0 or (label and "full" in label):
        return "full", 0
    return "sliding", window


def _heads(mixer: nn.Module, config: Any, hidden: int) -> tuple[nn.Module | None, int, int]:
    """(projection, heads, width of a head), or nothing where the widths do not agree."""
    projection = linears(mixer, hidden)[-1]
    shape = linear_shape(projection)
    width = shape[0] if shape else 0
    counts = _numbers((mixer, config), ("num_heads", "num_attention_heads", "n_heads", "n_head"))
    for head_dim in _numbers((mixer, config), ("v_head_dim", "head_dim")):
        if width % head_dim == 0 and (not counts or width // head_dim in counts):
            return projection, width // head_dim, head_dim
    for count in counts:
        if width % count == 0:
            return projection, count, width // count
    return None, 0, 0


def _held(projection: nn.Module | None, heads: int, head_dim: int) -> tuple[int, int]:
    """(first, count) of the heads whose columns this process holds; all, where it is split otherwise."""
    try:
        columns = columns_of(projection) if projection is not None else None
    except Unreadable:
        columns = None
    if columns is None or columns[0] % head_dim or columns[1] % head_dim:
        return 0, heads
    return columns[0] // head_dim, columns[1] // head_dim


def _numbers(holders: tuple[Any, ...], names: tuple[str, ...]) -> list[int]:
    values = [getattr(holder, name, None) for holder in holders for name in names]
    return [v for v in values if isinstance(v, int) and not isinstance(v, bool) and v > 0]


def _ffn(block: nn.Module, mixer: nn.Module | None, hidden: int) -> nn.Module | None:
    """The last part beside the mixer that leads back to the residual stream; a bare linear map where there is
    no more."""
    around = [c for c in block.children() if mixer is None or all(part is not mixer for part in c.modules())]
    leading = [c for c in around if not _takes_context(c) and (linears(c, hidden) or list(_experts(c)))]
    return leading[-1] if leading else None


def _experts(ffn: nn.Module) -> Iterator[nn.Module]:
    """Modules that hold all experts in three-dimensional parameters and are handed ids and weights."""
    for module in ffn.modules():
        stacked = any(p.dim() == 3 for p in module.parameters(recurse=False))
        if stacked and accepts(module, "index", "indices", "experts"):
            yield module


def _output_embeddings(model: nn.Module) -> nn.Module | None:
    getter = getattr(model, "get_output_embeddings", None)
    found = getter() if callable(getter) else None
    return found if isinstance(found, nn.Module) else None


def _topology(model: nn.Module, config: Any, layers: tuple[LayerParts, ...], hidden: int) -> Topology:
    experts = _first(config, "num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
    routed = any(layer.experts for layer in layers)
    heads = max((layer.heads for layer in layers), default=0)
    ffn = next((linear_shape(p.ffn_linear) for p in layers if p.ffn_linear is not None), None)
    return Topology(
        model_name=_name(model, config),
        architecture=type(model).__name__,
        layers=len(layers),
        heads=heads,
        kv_heads=_kv_heads(layers, config) if heads else 0,
        head_dim=max((layer.head_dim for layer in layers), default=0),
        hidden_size=hidden,
        ffn_size=_first(config, "intermediate_size", "ffn_dim", "n_inner") or (ffn[0] if ffn else 0),
        vocab_size=int(getattr(config, "vocab_size", 0) or 0),
        experts=experts if routed else 0,
        experts_per_token=_first(config, "num_experts_per_tok", "top_k", "moe_topk") if routed else 0,
        layer_kinds=tuple(layer.kind for layer in layers),
        layer_heads=tuple(layer.heads for layer in layers),
        layer_windows=tuple(layer.window for layer in layers),
        parameters=sum(p.numel() for p in model.parameters()),
        weights_fingerprint=fingerprint(model),
        dtype=_dtype(model),
        context_length=_first(config, "max_position_embeddings", "n_positions", "max_seq_len"),
        unavailable=tuple(sorted(_missing(layers, heads).items())),
    )


def _kv_heads(layers: tuple[LayerParts, ...], config: Any) -> int:
    if getattr(config, "multi_query", False) and not getattr(config, "new_decoder_architecture", False):
        return 1
    mixers = tuple(layer.mixer for layer in layers if layer.heads)
    found = _numbers((mixers[0], config), ("num_kv_heads", "num_key_value_heads", "num_attention_heads"))
    return found[0] if found else max(layer.heads for layer in layers)


def _missing(layers: tuple[LayerParts, ...], heads: int) -> dict[str, str]:
    missing: dict[str, str] = {}
    if not layers:
        reason = "no list of decoder layers was found in this model"
        missing = dict.fromkeys(("ffn_write", "ffn_cosine", "residual_norm", "kv_tokens"), reason)
    if heads == 0:
        reason = "no attention heads with a linear output projection were found in this model"
        missing["head_write"] = missing["head_contribution"] = reason
    if layers and all(layer.ffn is None for layer in layers):
        missing["ffn_write"] = missing["ffn_cosine"] = "no feed-forward part was found in this model's layers"
    return missing


def _first(config: Any, *names: str) -> int:
    return next(iter(_numbers((config,), names)), 0)


def _name(model: nn.Module, config: Any) -> str:
    path = str(getattr(model.config, "_name_or_path", "") or getattr(config, "_name_or_path", "") or "")
    return path.rstrip("/").rsplit("/", 1)[-1] or type(model).__name__


def _dtype(model: nn.Module) -> str:
    first = next((p.dtype for p in model.parameters() if p.is_floating_point()), None)
    return str(first).removeprefix("torch.") if first is not None else ""


def fingerprint(model: nn.Module, samples: int = 16) -> str:
    """A hash over names, shapes and a few evenly spaced values of each parameter: equal for equal weights."""
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters(), key=lambda item: item[0]):
        digest.update(f"{name}{tuple(parameter.shape)}{parameter.dtype}".encode())
        if parameter.device.type != "meta" and parameter.numel():
            digest.update(_sample(parameter, samples))
    return digest.hexdigest()[:16]


def _sample(parameter: torch.Tensor, samples: int) -> bytes:
    if is_distributed(parameter):
        parameter = parameter.to_local()  # type: ignore[attr-defined]
    if type(parameter) not in (torch.Tensor, nn.Parameter) or parameter.is_quantized:
        return b""  # packed in a way of its own
    with torch.no_grad():
        flat = parameter.detach().reshape(-1)
        picked = flat[:: max(1, flat.numel() // samples)][:samples]
        return bytes(picked.to("cpu").contiguous().view(torch.uint8).numpy().tobytes())
