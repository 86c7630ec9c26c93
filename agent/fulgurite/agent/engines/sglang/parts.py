"""What a decoder of SGLang is made of: layers, attention, projections, feed-forward parts, norms.

By structure, as `fulgurite.agent.anatomy` does it for transformers: attention is told by SGLang's own
``RadixAttention``, the rest by the widths of linear layers. How the parts are added is not assumed but found
from values (`looks`).
"""

from __future__ import annotations

from typing import Any, Final

from torch import nn

from fulgurite.agent.anatomy import Anatomy, LayerParts, fingerprint, is_norm
from fulgurite.agent.engines.flat.matrices import held_inputs, leading_back
from fulgurite.agent.engines.flat.seen import Unsupported
from fulgurite.agent.routing import CHANNELS as ROUTING
from fulgurite.wire.topology import Topology

_ABSENT: Final = ("learned_sink_mass", "expert_ids", "expert_weights")
_NOT_THERE: Final = "not measured inside SGLang"
_LAYERS: Final = ("head_write", "ffn_write", "ffn_cosine", "residual_norm")


def dissect(runner: Any, *, name: str) -> Anatomy:
    """Find the parts of the model of a ``ModelRunner``.

    Raises
    ------
    Unsupported
        Where there are none that we know.
    """
    from sglang.srt.runtime_context import get_parallel

    model, told = runner.model, runner.model_config
    config, hidden = told.hf_text_config, int(told.hidden_size)
    if int(get_parallel().tp_size) > 1 or int(get_parallel().pp_size) > 1:
        raise Unsupported("the model is split over several processes")
    owner, blocks = _layers(model, int(getattr(config, "num_hidden_layers", 0) or 0))
    layers = tuple(_parts(block, i, hidden) for i, block in enumerate(blocks))
    norms = [m for m in owner.children() if is_norm(m, hidden)]
    unembedding = getattr(model, "lm_head", None)
    heads = max((layer.heads for layer in layers), default=0)
    missing = dict.fromkeys(_ABSENT, _NOT_THERE)
    if not heads:
        missing["head_write"] = missing["head_contribution"] = (
            "no attention with a linear output projection was found in this model"
        )
    topology = Topology(
        **_shape(told, name),
        architecture=type(model).__name__,
        layers=len(layers),
        heads=heads,
        kv_heads=int(told.num_key_value_heads) if heads else 0,
        head_dim=max((layer.head_dim for layer in layers), default=0),
        layer_kinds=tuple(layer.kind for layer in layers),
        layer_heads=tuple(layer.heads for layer in layers),
        layer_windows=tuple(layer.window for layer in layers),
        parameters=sum(p.numel() for p in model.parameters()),
        weights_fingerprint=fingerprint(model),
        unavailable=tuple(sorted(missing.items())),
    )
    return Anatomy(
        layers=layers,
        final_norm=norms[-1] if norms else None,
        unembedding=unembedding if isinstance(unembedding, nn.Module) else None,
        topology=topology,
        constants=(),
    )


def without_layers(runner: Any, *, name: str, reason: str) -> Anatomy:
    """A model whose layers are not measured, and why: its shape as its configuration tells it."""
    told = runner.model_config
    config = told.hf_text_config
    topology = Topology(
        **_shape(told, name),
        architecture=type(runner.model).__name__,
        layers=int(getattr(config, "num_hidden_layers", 0) or 0),
        heads=int(getattr(config, "num_attention_heads", 0) or 0),
        kv_heads=int(told.num_key_value_heads),
        head_dim=int(told.head_dim),
        unavailable=tuple((channel, reason) for channel in sorted((*_LAYERS, *ROUTING, *_ABSENT))),
    )
    return Anatomy((), None, None, topology, ())


def _shape(told: Any, name: str) -> dict[str, Any]:
    return {
        "model_name": name,
        "hidden_size": int(told.hidden_size),
        "ffn_size": int(getattr(told.hf_text_config, "intermediate_size", 0) or 0),
        "vocab_size": int(told.vocab_size),
        "dtype": str(told.dtype).removeprefix("torch."),
        "context_length": int(told.context_len),
    }


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
    return owner, list(found)


def _parts(block: nn.Module, index: int, hidden: int) -> LayerParts:
    inner = [m for m in block.modules() if type(m).__name__ == "RadixAttention"]
    attention: Any = inner[0] if len(inner) == 1 else None
    mixer = (
        next((c for c in block.children() if any(m is attention for m in c.modules())), None)
        if attention is not None
        else None
    )
    projection, heads, width = (None, 0, 0) if mixer is None else _heads(mixer, attention, hidden)
    around = [c for c in block.children() if c is not mixer and not is_norm(c, hidden)]
    leading = [c for c in around if leading_back(c, hidden)]
    window = int(getattr(attention, "sliding_window_size", -1) or -1)
    return LayerParts(
        index=index,
        block=block,
        kind="none" if not heads else "sliding" if window > 0 else "full",
        window=max(window, 0) if heads else 0,
        mixer=mixer,
        projection=projection,
        heads=heads,
        head_dim=width,
        ffn=leading[-1] if leading else None,
        ffn_linear=leading_back(leading[-1], hidden)[-1] if leading else None,
        experts=(),
        norms=tuple(m for m in block.modules() if is_norm(m, hidden)),
        first_head=0,
        held_heads=heads,
    )


def _heads(mixer: nn.Module, attention: Any, hidden: int) -> tuple[nn.Module | None, int, int]:
    """(output projection, heads, width of one), or nothing where the widths do not agree."""
    to_stream = leading_back(mixer, hidden)
    heads, width = int(attention.tp_q_head_num), int(attention.v_head_dim)
    if not to_stream or heads * width != held_inputs(to_stream[-1]):
        return None, 0, 0
    return to_stream[-1], heads, width
