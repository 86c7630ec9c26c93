"""What the first pass showed that cannot be measured, in words: one reason per channel. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fulgurite.agent.anatomy import LayerParts
from fulgurite.agent.deep import Reasons
from fulgurite.agent.ranks import OWN, OWN_DEEP, elsewhere
from fulgurite.agent.wiring import LayerWiring


def unmeasured(
    layers: Sequence[LayerParts],
    wiring: Sequence[LayerWiring],
    blind: Mapping[int, str],
    undeep: Reasons,
    *,
    is_deep: bool,
) -> dict[str, str]:
    """The reason for each channel.

    Parameters
    ----------
    blind : by layer, why its heads are not told.
    undeep : by channel of `deep`, the layers that cannot be had, and why.
    """
    reasons: Reasons = {channel: list(found) for channel, found in undeep.items()}
    for layer, wires in zip(layers, wiring, strict=True):
        for channel, reason in wires.reasons.items():
            reasons.setdefault(channel, []).append((layer.index, reason))
        if why := blind.get(layer.index):
            reasons.setdefault("head_write", []).append((layer.index, why))
        elif why := elsewhere(layer):
            for channel in OWN + (OWN_DEEP if is_deep else ()):
                reasons.setdefault(channel, []).append((layer.index, why))
    return {channel: f"{_layer_names(found)}: {found[0][1]}" for channel, found in reasons.items()}


def _layer_names(found: list[tuple[int, str]]) -> str:
    numbers = [str(index) for index in dict.fromkeys(index for index, _ in found)]
    if len(numbers) == 1:
        return f"layer {numbers[0]}"
    return f"{len(numbers)} layers ({', '.join(numbers[:2])}{', …' if len(numbers) > 2 else ''})"
