"""What a decoder of vLLM is made of: layers, attention, projections, feed-forward parts, experts, norms.

By structure, as `fulgurite.agent.anatomy` does it for transformers: what is attention is told by what vLLM
itself registers as such, the rest by the widths of linear layers. How the parts are added is not assumed but
found from values (`trial`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from fulgurite.agent.anatomy import Anatomy, LayerParts, fingerprint, is_norm
from fulgurite.agent.engines.flat.matrices import bare, held_inputs, leading_back
from fulgurite.agent.engines.flat.seen import Unsupported
from fulgurite.agent.routing import CHANNELS as ROUTING
from fulgurite.wire.topology import Topology

_LEARNED = {"learned_sink_mass": "not measured inside vLLM"}


@dataclass(frozen=True, slots=True, eq=False)
class Model:
    """A model of vLLM.

    Attributes
    ----------
    anatomy : its parts.
    attention : vLLM's attention module of each layer that has one, by layer.
    """

    anatomy: Anatomy
    attention: Mapping[int, nn.Module]


def dissect(model: nn.Module, vllm_config: Any, *, name: str) -> Model:
    """Find the parts of `model`.

    Raises
    ------
    Unsupported
        Where there are none that we know.
    """
    config = vllm_config.model_config.hf_text_config
    hidden = int(vllm_config.model_config.get_hidden_size())
    owner, blocks = _layers(model, int(getattr(config, "num_hidden_layers", 0) or 0))
    registered = {id(m): m for m in vllm_config.compilation_config.static_forward_context.values()}
    found = [_parts(block, i, hidden, registered, _rank(vllm_config)) for i, block in enumerate(blocks)]
    layers = tuple(layer for layer, _ in found)
    norms = [m for m in owner.children() if is_norm(m, hidden)]
    unembedding = getattr(model, "lm_head", None)
    anatomy = Anatomy(
        layers=layers,
        final_norm=norms[-1] if norms else None,
        unembedding=unembedding if isinstance(unembedding, nn.Module) else None,
        topology=_topology(model, vllm_config, config, layers, hidden, name),
        constants=_constants(config),
    )
    attention = {i: module for i, (_, module) in enumerate(found) if module is not None}
    return Model(anatomy, attention)


def without_layers(vllm_config: Any, *, name: str, reason: str) -> Anatomy:
    """A model whose layers cannot be measured, and why: its shape as its configuration tells it."""
    told = vllm_config.model_config
    config = told.hf_text_config
    layers = int(getattr(config, "num_hidden_layers", 0) or 0)
    channels = ("head_write", "ffn_write", "ffn_cosine", "residual_norm", *ROUTING, *_LEARNED)
    topology = Topology(
        model_name=name,
        architecture=str((getattr(told.hf_config, "architectures", None) or [""])[0]),
        layers=layers,
        heads=int(getattr(config, "num_attention_heads", 0) or 0),
        kv_heads=int(told.get_total_num_kv_heads()),
        head_dim=int(told.get_head_size()),
        hidden_size=int(told.get_hidden_size()),
        ffn_size=int(getattr(config, "intermediate_size", 0) or 0),
        vocab_size=int(told.get_vocab_size()),
        dtype=str(told.dtype).removeprefix("torch."),
        context_length=int(told.max_model_len),
        unavailable=tuple((channel, reason) for channel in sorted(channels)),
    )
    return Anatomy((), None, None, topology, ())


def _rank(vllm_config: Any) -> tuple[int, int]:
    """(rank, size) of tensor parallelism."""
    size = int(vllm_config.parallel_config.tensor_parallel_size)
    return int(vllm_config.parallel_config.rank) % size, size


def rows_held(unembedding: nn.Module | None) -> tuple[int, int] | None:
    """The first token whose row of the unembedding this process has, and how many it has; None where it has
    all. Rows that fill up its share, and those of adapters, stand behind them."""
    shard = getattr(bare(unembedding), "shard_indices", None) if unembedding is not None else None
    if shard is None or int(getattr(bare(unembedding), "tp_size", 1)) == 1:  # type: ignore[arg-type]
        return None
    first = int(shard.org_vocab_start_index)
    return first, int(shard.org_vocab_end_index) - first


def _layers(model: nn.Module, count: int) -> tuple[nn.Module, list[nn.Module]]:
    lists = [
        (sum(p.numel() for p in child.parameters()), owner, child)
        for owner in model.modules()
        for child in owner.children()
        if isinstance(child, nn.ModuleList) and len(child) == count
    ]
    if not lists or not count:
        raise Unsupported("no list of decoder layers was found in this model")
    _, owner, found = max(lists, key=lambda item: item[0])
    if any("Missing" in type(block).__name__ for block in found):
        raise Unsupported("its layers are split over several processes (pipeline parallelism)")
    return owner, list(found)


def _parts(
    block: nn.Module, index: int, hidden: int, registered: Mapping[int, nn.Module], rank: tuple[int, int]
) -> tuple[LayerParts, nn.Module | None]:
    inner = [m for m in block.modules() if id(m) in registered and hasattr(m, "num_heads")]
    attention = inner[0] if len(inner) == 1 else None
    mixer = next((c for c in block.children() if attention in list(c.modules())), None) if attention else None
    projection, heads, width = (
        _heads(mixer, attention, hidden, rank)
        if mixer is not None and attention is not None
        else (None, 0, 0)
    )
    around = [c for c in block.children() if c is not mixer and not is_norm(c, hidden)]
    leading = [c for c in around if _leads_back(c, hidden)]
    ffn = leading[-1] if leading else None
    window = getattr(attention, "sliding_window", None)
    held = heads // rank[1] if heads else 0
    layer = LayerParts(
        index=index,
        block=block,
        kind="none" if not heads else "sliding" if window else "full",
        window=int(window or 0) if heads else 0,
        mixer=mixer,
        projection=projection,
        heads=heads,
        head_dim=width,
        ffn=ffn,
        ffn_linear=next(reversed(leading_back(ffn, hidden)), None) if ffn is not None else None,
        experts=tuple(_experts(ffn)) if ffn is not None else (),
        norms=tuple(m for m in block.modules() if is_norm(m, hidden)),
        first_head=rank[0] * held,
        held_heads=held,
    )
    return layer, attention


def _heads(
    mixer: nn.Module, attention: Any, hidden: int, rank: tuple[int, int]
) -> tuple[nn.Module | None, int, int]:
    """(output projection, heads of all processes, width of one), or nothing where the widths do not agree."""
    to_stream = leading_back(mixer, hidden)
    if not to_stream:
        return None, 0, 0
    held = int(attention.num_heads)
    width = int(getattr(attention, "head_size_v", None) or getattr(attention, "v_head_dim", 0) or 0)
    projection = to_stream[-1]
    if held * width != held_inputs(projection):
        return None, 0, 0
    return projection, held * rank[1], width


def _leads_back(part: nn.Module, hidden: int) -> bool:
    return bool(leading_back(part, hidden)) or any(_experts(part))


def _experts(part: nn.Module) -> Iterator[nn.Module]:
    for module in part.modules():
        if hasattr(getattr(module, "router", None), "_compute_routing"):
            yield module


def _topology(
    model: nn.Module, vllm_config: Any, config: Any, layers: tuple[LayerParts, ...], hidden: int, name: str
) -> Topology:
    routed = [m for layer in layers for m in layer.experts]
    heads = max((layer.heads for layer in layers), default=0)
    missing = dict(_LEARNED)
    if not heads:
        missing["head_write"] = missing["head_contribution"] = (
            "no attention with a linear output projection was found in this model"
        )
    return Topology(
        model_name=name,
        architecture=type(model).__name__,
        layers=len(layers),
        heads=heads,
        kv_heads=int(vllm_config.model_config.get_total_num_kv_heads()) if heads else 0,
        head_dim=max((layer.head_dim for layer in layers), default=0),
        hidden_size=hidden,
        ffn_size=int(getattr(config, "intermediate_size", 0) or 0),
        vocab_size=int(vllm_config.model_config.get_vocab_size()),
        experts=int(vllm_config.model_config.get_num_experts()) if routed else 0,
        experts_per_token=max((_chosen(m) for m in routed), default=0),
        layer_kinds=tuple(layer.kind for layer in layers),
        layer_heads=tuple(layer.heads for layer in layers),
        layer_windows=tuple(layer.window for layer in layers),
        parameters=sum(p.numel() for p in model.parameters()),
        weights_fingerprint=fingerprint(model),
        dtype=str(vllm_config.model_config.dtype).removeprefix("torch."),
        context_length=int(vllm_config.model_config.max_model_len),
        unavailable=tuple(sorted(missing.items())),
    )


def _chosen(experts: Any) -> int:
    """How many experts a token is sent to."""
    return int(getattr(experts.router, "top_k", 0) or 0)


def _constants(config: Any) -> tuple[float, ...]:
    words = ("multiplier", "scal", "cap")
    named = {k: v for k, v in vars(config).items() if any(word in k for word in words)}
    values = {float(v) for v in named.values() if isinstance(v, (int, float)) and not isinstance(v, bool)}
    return tuple(sorted(v for v in values if 1e-3 < abs(v) < 1e4))
