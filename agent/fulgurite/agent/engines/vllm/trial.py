"""One pass that shows how a model of vLLM adds its parts, before it serves anything.

A compiled graph holds the taps that were there when it was traced, so what is to be kept has to be known
before that. Therefore the model runs once, eagerly, on a few made-up tokens, when its weights are loaded; in
the place of attention, which needs a key-value cache that is not there yet, stand made-up head outputs. The
wiring is found from these values as anywhere else (`fulgurite.agent.wiring`). Costs one pass of `_TOKENS`
tokens. No random state of the host is touched.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from fulgurite.agent.anatomy import declared
from fulgurite.agent.engines.flat.seen import Trial, gathered
from fulgurite.agent.engines.flat.taps import candidates, hook, watch_down
from fulgurite.agent.engines.vllm.parts import Model
from fulgurite.agent.wiring import LayerWiring, Tap, part_of, wire

Array = np.ndarray[Any, Any]
_TOKENS = 8
_END = Tap("block", "out")


@torch.inference_mode()
def run(runner: Any, found: Model) -> Trial:
    """Run it on the model of `runner`, whose parts are `found`."""
    anatomy = found.anatomy
    width = anatomy.topology.hidden_size
    seen: list[dict[Tap, Array]] = [{} for _ in anatomy.layers]
    handed: dict[int, Array] = {}
    down_handed: dict[int, Array] = {}
    down_gave: dict[int, Array] = {}
    final: dict[str, Array] = {}
    ends: dict[int, tuple[Array, Array]] = {}
    handles = []
    try:
        for layer in anatomy.layers:
            for tap in candidates(layer):
                module = part_of(layer, tap.part)
                if module is not None:
                    handles.append(hook(module, tap, width, seen=_into(seen[layer.index], tap)))
            handles.append(hook(layer.block, _END, width, seen=_both(ends, layer.index)))
            if layer.projection is not None:
                inputs = layer.held_heads * layer.head_dim
                keep = _into(handed, layer.index)
                handles.append(hook(layer.projection, Tap("projection", "in"), inputs, seen=keep))
            handles += watch_down(
                layer, width, _into(down_handed, layer.index), _into(down_gave, layer.index)
            )
        if anatomy.final_norm is not None:
            for name, side in (("into", "in"), ("out", "out")):
                tap = Tap("norm", side)  # type: ignore[arg-type]
                handles.append(hook(anatomy.final_norm, tap, width, seen=_into(final, name)))
        with _made_up_attention(found.attention):
            logits = _pass(runner, anatomy.topology.vocab_size)
    finally:
        for handle in handles:
            handle.remove()
    epsilon = float(torch.finfo(runner.model_config.dtype).eps)
    wiring = tuple(
        wire(layer, taps, epsilon=epsilon, constants=anatomy.constants + declared(layer.block))
        for layer, taps in zip(anatomy.layers, seen, strict=True)
    )
    end = seen[-1].get(_END) if seen else None
    if end is not None:
        final["end"] = end
    out = Tap("projection", "out")
    gave, ffn_gave = gathered(seen, out), gathered(seen, Tap("ffn", "out"))
    paired = frozenset(i for i, taps in enumerate(seen) if _is_pair(wiring[i], taps, ends.get(i)))
    return Trial(wiring, handed, gave, final, logits, epsilon, paired, down_handed, down_gave, ffn_gave)


def _into(book: dict[Any, Array], key: Any) -> Any:
    def keep(x: torch.Tensor, y: torch.Tensor | None) -> None:
        book[key] = _copied(x if y is None else x + y)

    return keep


def _both(book: dict[int, tuple[Array, Array]], key: int) -> Any:
    def keep(x: torch.Tensor, y: torch.Tensor | None) -> None:
        if y is not None:
            book[key] = _copied(x), _copied(y)

    return keep


def _copied(values: torch.Tensor) -> Array:
    return values.detach().to("cpu", torch.float64).numpy().copy()


def _is_pair(wires: LayerWiring, taps: Mapping[Tap, Array], end: tuple[Array, Array] | None) -> bool:
    """See `Trial.paired`."""
    if end is None or wires.order != "sequential" or wires.ffn is None or wires.after_mixer is None:
        return False
    wanted = taps[wires.ffn.tap], taps[wires.after_mixer]
    return all(np.array_equal(a, b) for a, b in zip(end, wanted, strict=True))


@contextmanager
def _made_up_attention(modules: Mapping[int, nn.Module]) -> Iterator[None]:
    made = torch.Generator().manual_seed(0)
    try:
        for module in modules.values():
            module.forward = _made_up(module, made)
        yield
    finally:
        for module in modules.values():
            vars(module).pop("forward", None)


def _made_up(module: Any, made: torch.Generator) -> Any:
    head: Any = getattr(module, "head_size_v", None) or getattr(module, "v_head_dim", 0)
    width = int(module.num_heads) * int(head)

    def forward(query: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        values = torch.randn(query.shape[0], width, generator=made)
        return values.to(query.device, query.dtype)

    return forward


def _pass(runner: Any, vocabulary: int) -> torch.Tensor | None:
    from vllm.forward_context import set_forward_context

    device = runner.device
    made = torch.Generator().manual_seed(1)
    tokens = torch.randint(0, vocabulary, (_TOKENS,), generator=made).to(device, torch.int32)
    positions = torch.arange(_TOKENS, device=device)
    if getattr(runner, "uses_mrope", False):
        positions = positions.expand(3, -1).contiguous()
    if getattr(runner, "lora_config", None):  # the layers ask which adapter each token has: none
        runner._set_active_loras((0,) * _TOKENS, (0,) * _TOKENS, set())
    with set_forward_context(None, runner.vllm_config, num_tokens=_TOKENS, skip_compiled=True):
        hidden = runner.model(
            input_ids=tokens, positions=positions, intermediate_tensors=None, inputs_embeds=None
        )
    hidden = hidden[0] if isinstance(hidden, tuple) else hidden
    logits: torch.Tensor | None = runner.model.compute_logits(hidden)
    return logits
