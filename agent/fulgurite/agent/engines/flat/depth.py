"""How the stream of a model becomes logits and what each part adds to them: for level `deep`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from fulgurite.agent import reduce
from fulgurite.agent.anatomy import Anatomy
from fulgurite.agent.contribution import CHANNELS as CONTRIBUTIONS
from fulgurite.agent.contribution import Attribution
from fulgurite.agent.engines.flat.heads import Heads
from fulgurite.agent.engines.flat.matrices import as_linear
from fulgurite.agent.engines.flat.seen import Trial
from fulgurite.agent.lens import CHANNELS as LENS
from fulgurite.agent.readout import Readout, find_readout


def depth(
    anatomy: Anatomy, seen: Trial, layout: reduce.Plan, heads: Heads, part: tuple[int, int] | None = None
) -> tuple[Readout | None, Attribution | None, dict[str, str]]:
    """How the stream becomes logits, and what each part adds to them; or why that is not known.

    Parameters
    ----------
    part : the first token whose row of the unembedding is here and how many are, where other processes that
        can be asked hold the rest.
    """
    readout = _readout(anatomy, seen, part)
    if isinstance(readout, str):
        return None, None, dict.fromkeys((*CONTRIBUTIONS, *LENS), readout)
    for layer, wires in zip(anatomy.layers, seen.wiring, strict=True):
        if wires.order in ("unknown", "post_norm"):
            reason = f"in layer {layer.index}, {next(iter(wires.reasons.values()))}"
            return readout, None, dict.fromkeys(CONTRIBUTIONS, reason)
    if heads.blind:
        index, why = next(iter(heads.blind.items()))
        return readout, None, dict.fromkeys(CONTRIBUTIONS, f"in layer {index}, {why}")
    plain: Sequence[Any] = [
        replace(layer, projection=as_linear(layer.projection)) if layer.projection is not None else layer
        for layer in anatomy.layers
    ]
    return readout, Attribution(tuple(plain), seen.wiring, layout, readout, epsilon=seen.epsilon), {}


def _readout(anatomy: Anatomy, seen: Trial, part: tuple[int, int] | None) -> Readout | str:
    unembedding = anatomy.unembedding
    if unembedding is None or seen.logits is None or anatomy.final_norm is None:
        return "the model's final norm, unembedding or logits are not in this process"
    weight = unembedding._parameters.get("weight")
    count = seen.logits.shape[-1] if part is None else part[1]
    if weight is None or weight.dim() != 2 or weight.shape[0] < count:
        return "the weights of the model's unembedding are split or packed"
    plain = nn.Linear(weight.shape[1], count, bias=False, device="meta")
    plain.weight = nn.Parameter(weight.detach()[:count], requires_grad=False)
    return find_readout(
        anatomy.final_norm,
        plain,
        dict(seen.final),
        seen.logits,
        constants=anatomy.constants,
        tolerance=max(1e-4, 4 * seen.epsilon),
        part=part,
    )
