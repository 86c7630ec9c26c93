"""Where the probes stand: at every candidate in the first pass, from then on only where the plan looks.

A candidate is a tensor that may be part of the residual stream; the first pass shows which are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from fulgurite.agent.anatomy import Anatomy, LayerParts
from fulgurite.agent.probes import Pass, Probes
from fulgurite.agent.reduce import Plan
from fulgurite.agent.wiring import Tap, candidate_taps, part_of


class Posts:
    """The posts of one model.

    Attributes
    ----------
    candidates : (layer, tap) by slot.
    inputs : by layer, the slot of what its projection is handed; after the candidates.
    final : slots of what the final norm is handed and gives, where they are watched.
    candidate_plan : number of the plan that watches the candidates.
    chosen : by layer, how many experts a token is sent to, as a pass showed it; empty until then.
    """

    def __init__(self, anatomy: Anatomy, probes: Probes, *, is_deep: bool) -> None:
        self.candidates: list[tuple[int, Tap]] = []
        self.inputs: dict[int, int] = {}
        self.final: tuple[int, int] | None = None
        self.candidate_plan = -1
        self.chosen: dict[int, int] = {}
        self._anatomy = anatomy
        self._probes = probes
        self._is_deep = is_deep

    @property
    def candidate_slots(self) -> int:
        """How many tensors the first pass keeps."""
        return len(self.candidates) + len(self.inputs) + (2 if self.final is not None else 0)

    def watch_candidates(self) -> None:
        """Watch whatever may be a part of the stream, the projections' inputs, and for `deep` the final
        norm."""
        layers, width = self._anatomy.layers, self._anatomy.topology.hidden_size
        self.candidate_plan = self._probes.plan
        self.candidates = [(layer.index, tap) for layer in layers for tap in candidate_taps(layer)]
        for slot, (index, tap) in enumerate(self.candidates):
            self._watch(layers[index], tap, slot, by_keyword=True)
        heads = [layer for layer in layers if layer.projection is not None]
        self.inputs = {layer.index: len(self.candidates) + i for i, layer in enumerate(heads)}
        for layer in heads:
            self._watch_heads(layer, self.inputs[layer.index])
        self.final = None
        norm = self._anatomy.final_norm
        if self._is_deep and norm is not None:
            into, device = len(self.candidates) + len(heads), device_of(norm)
            self.final = (into, into + 1)
            self._probes.watch_input(norm, into, width=width, device=device)
            self._probes.watch_output(norm, into + 1, width=width, device=device)

    def watch_plan(self, layout: Plan) -> None:
        """Watch what the plan needs."""
        layers = self._anatomy.layers
        for slot, (index, tap) in enumerate(layout.places):
            self._watch(layers[index], tap, slot, by_keyword=tap.part in ("block", "ffn"))
        for group in layout.groups:
            for slot, index in zip(group.slots, group.layers, strict=True):
                self._watch_heads(layers[index], slot)

    def watch_experts(self) -> None:
        """Watch how tokens are routed; after the posts that stand in front of the experts."""
        beside, declared = None, self._anatomy.topology.experts_per_token
        for layer in self._anatomy.layers:
            beside = beside if layer.projection is None else layer.projection
            chosen = self.chosen.get(layer.index, 0) if self.chosen else declared
            for module in layer.experts:
                self._probes.watch_experts(
                    module, layer.index, chosen=chosen, device=device_of(module), beside=beside
                )

    def routed(self, passing: Pass) -> None:
        """Learn from a pass how many experts its tokens were sent to."""
        self.chosen = {layer: ids.shape[-1] for layer, (ids, _) in passing.extra.items()}

    def handed(self, passing: Pass) -> Mapping[int, torch.Tensor]:
        """By layer, what its projection was handed in a pass that kept the candidates."""
        found = {index: passing.kept[slot] for index, slot in self.inputs.items()}
        return {index: tensor for index, tensor in found.items() if tensor is not None}

    def moved(self, kept: Sequence[torch.Tensor | None], layout: Plan) -> list[torch.Tensor | None]:
        """What the candidates kept, where the plan looks for it."""
        places = {place: slot for slot, place in enumerate(self.candidates)}
        moved = [kept[places[place]] for place in layout.places]
        for group in layout.groups:
            moved += [kept[self.inputs[int(index)]] for index in group.layers]
        return moved

    def epsilon(self, passing: Pass) -> float:
        """Spacing at 1 of the coarsest number format among the candidates of a pass."""
        kept = (passing.kept[slot] for slot in range(len(self.candidates)))
        return max(
            (torch.finfo(t.dtype).eps for t in kept if t is not None and t.is_floating_point()), default=1e-7
        )

    def _watch(self, layer: LayerParts, tap: Tap, slot: int, *, by_keyword: bool) -> None:
        module = part_of(layer, tap.part)
        assert module is not None
        device, width = device_of(layer.block), self._anatomy.topology.hidden_size
        if tap.side == "in":
            self._probes.watch_input(module, slot, by_keyword=by_keyword, width=width, device=device)
        else:
            self._probes.watch_output(module, slot, width=width, device=device)

    def _watch_heads(self, layer: LayerParts, slot: int) -> None:
        assert layer.projection is not None
        width = layer.held_heads * layer.head_dim
        self._probes.watch_input(layer.projection, slot, width=width, device=device_of(layer.block))


def device_of(module: nn.Module) -> torch.device | None:
    """Of its first parameter, None where it has none."""
    found = next(module.parameters(), None)
    return None if found is None else found.device
