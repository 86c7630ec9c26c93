"""What is seen at level `deep` beside contributions: attention routing, the logit lens, the largest neurons.

Holds their probes, decides whose turn it is, and says per channel and layer what cannot be had. Everything
that a pass keeps for it is in `Pass.deep`, one row per measured position.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from fulgurite.agent import lens, neurons, routing
from fulgurite.agent.anatomy import Anatomy
from fulgurite.agent.looks import Looks
from fulgurite.agent.probes import Current, Pass
from fulgurite.agent.readout import Readout, UnembeddingProbe
from fulgurite.agent.reduce import Plan
from fulgurite.agent.shelf import Shelf
from fulgurite.agent.shield import Shield
from fulgurite.agent.wiring import LayerWiring, Tap
from fulgurite.wire.channels import Level

Array = np.ndarray[Any, Any]
Reasons = dict[str, list[tuple[int, str]]]


class Deep:
    """The deep channels of one model.

    Attributes
    ----------
    readout : how the stream becomes logits; None until the first pass showed it.
    """

    def __init__(
        self, anatomy: Anatomy, current: Current, shield: Shield, shelf: Shelf, *, always: bool = False
    ) -> None:
        self.layers = layers = anatomy.layers
        self.heads = anatomy.topology.heads
        self.readout: Readout | None = None
        self._unembedding = UnembeddingProbe(anatomy.unembedding, current)
        self._shelf = shelf
        self._looks = Looks(layers, current, shield, shelf, always=always)
        self._neurons = neurons.Neurons(current, shield, shelf)
        self._late: dict[int, str] = {}
        self._refused: frozenset[int] = frozenset()

    def install(self) -> None:
        """Watch attention and down projections."""
        self._looks.install()
        if self.readout is None or self.readout.cap is not None:
            self._unembedding.install()
        self._neurons.install(layer for layer in self.layers if layer.index not in self._refused)

    def remove(self) -> None:
        """Take everything out."""
        self._unembedding.remove()
        self._looks.remove()
        self._neurons.remove()

    @property
    def hooks(self) -> int:
        """How many hooks are in the model, what stands in front of attention functions counted as such."""
        return self._looks.hooks + self._neurons.hooks + int(self._unembedding.is_installed)

    @property
    def keys(self) -> set[tuple[int, str]]:
        """Of the places on the shelf."""
        return self._looks.keys | self._neurons.keys

    def fetch(self, passing: Pass, *, now: bool) -> None:
        """Take what a compiled graph may have left of this pass; `passing.alive_deep` says what it did.

        Parameters
        ----------
        now : ask the device at once, and leave out what is not there.
        """
        places = {("attention", i): place for i, place in self._looks.fetched(passing).items()}
        reads = {name: place.buffer[: passing.batch].unsqueeze(1) for name, place in places.items()}
        alive = [self._shelf.alive_each(list(places.values()), passing.batch, 1)] if places else []
        for i, place in self._neurons.places.items():
            rows = place.read(passing.batch, passing.width, passing.keep)
            if rows is not None:
                places["neurons", i], reads["neurons", i] = place, rows
        wide = [place for (kind, _), place in places.items() if kind == "neurons"]
        if wide:
            alive.append(self._shelf.alive_each(wide, passing.batch, passing.width))
        if not alive:
            return
        flags = torch.cat([flag.to(alive[0].device) for flag in alive])
        names = tuple(reads)
        if now:
            names = tuple(name for name, there in zip(reads, flags.tolist(), strict=True) if there)
            reads, flags = {name: reads[name] for name in names}, flags[flags]
        passing.deep.update(reads)
        passing.fetched, passing.alive_deep = names, flags

    def refused_late(self) -> dict[str, str]:
        """Channels of which a compiled pass showed, since the last look, that they cannot be had."""
        refused = self._looks.refused
        if len(refused) == len(self._late):
            return {}
        self._late = refused
        index, why = next(iter(refused.items()))
        return dict.fromkeys(routing.CHANNELS, f"layer {index}: {why}")

    def settle(self) -> None:
        """The first pass is over: take out what only it needed."""
        if self.readout is None or self.readout.cap is None:
            self._unembedding.remove()

    def turn(self, level: Level, *, every: bool) -> frozenset[int]:
        """The layers whose attention is looked at in a pass: all, or one after the other."""
        if every:
            return self._looks.every()
        return self._looks.next() if level == "deep" else frozenset()

    def learn(
        self, passing: Pass, wiring: Sequence[LayerWiring], seen: Sequence[Mapping[Tap, Array]]
    ) -> Reasons:
        """What the first pass showed that cannot be had, by channel: layers and why."""
        reasons: Reasons = {}
        if passing.picked is None:
            self._late = self._looks.missing(passing)
        unreached = list(self._late.items())
        for channel in routing.CHANNELS if unreached else ():
            reasons[channel] = unreached
        found = [
            (layer.index, neurons.refusal(layer, wires, rows))
            for layer, wires, rows in zip(self.layers, wiring, seen, strict=True)
            if layer.ffn is not None
        ]
        if passing.level == "deep" or passing.looks:
            found = [(i, why or self._unseen(passing, i)) for i, why in found]
        found = [(i, why or self._neurons.unreadable(self.layers[i])) for i, why in found]
        refused = [(index, why) for index, why in found if why]
        self._refused = frozenset(index for index, _ in refused)
        for channel in neurons.CHANNELS if refused else ():
            reasons[channel] = refused
        return reasons

    def _unseen(self, passing: Pass, index: int) -> str:
        return "" if ("neurons", index) in passing.deep else neurons.UNSEEN

    def measure(
        self, passing: Pass, layout: Plan, stacked: torch.Tensor, candidates: torch.Tensor | None
    ) -> dict[str, torch.Tensor]:
        """What this pass shows, on the model's device.

        Parameters
        ----------
        stacked : Tensor of float32, shape (slots, n, d), one per slot of the plan
        candidates : the most probable tokens, int64 (n, K)
        """
        found = {
            f"attention{i}": t.flatten(0, -2) for (kind, i), t in passing.deep.items() if kind == "attention"
        }
        kept = {i: t for (kind, i), t in passing.deep.items() if kind == "neurons" and i not in self._refused}
        found.update(self._neurons.largest(kept, dict(enumerate(self.layers))))
        ends = layout.after_ffn
        if self.readout is not None and candidates is not None and (ends >= 0).all():
            streams = stacked.index_select(0, torch.as_tensor(ends, device=stacked.device))
            found.update(lens.look(self.readout, streams, candidates.to(stacked.device)))
        return found

    def columns(
        self, host: Mapping[str, Array], positions: Array, fetched: Sequence[tuple[str, int]] = ()
    ) -> dict[str, Array]:
        """The channels, rows first; one that no layer gives is absent.

        Parameters
        ----------
        positions : ndarray of int, shape (n,), of the emitted tokens
        fetched : what of it a compiled graph left, by kind and layer
        """
        found: dict[str, Array] = {}
        looked = {i: rows for i, rows in _by_layer(host, "attention").items() if rows.size}
        for i in [i for kind, i in fetched if kind == "attention"]:
            told = self._looks.believed(i, looked[i]) if i in looked else None
            if told is None:
                looked.pop(i, None)
            else:
                looked[i] = told
        if looked:
            found.update(routing.columns(looked, positions, self.layers, self.heads))
        largest = _by_layer(host, "neurons")
        if largest:
            found.update(neurons.columns(largest, len(self.layers)))
        if "lens_rank" in host:
            found.update(lens.columns(host))
        return found


def _by_layer(host: Mapping[str, Array], kind: str) -> dict[int, Array]:
    return {int(name.removeprefix(kind)): rows for name, rows in host.items() if name.startswith(kind)}
