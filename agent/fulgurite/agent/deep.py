"""What is seen at level `deep` beside contributions: attention routing, the logit lens, the largest neurons.

Holds their probes, decides whose turn it is, and says per channel and layer what cannot be had. Everything
that a pass keeps for it is in `Pass.deep`, one row per measured position.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from fulgurite.agent import lens, neurons, routing
from fulgurite.agent.anatomy import Anatomy
from fulgurite.agent.late_deep import LateDeep
from fulgurite.agent.looked import tell
from fulgurite.agent.looks import Looks
from fulgurite.agent.probes import Current, Pass
from fulgurite.agent.readout import Readout, UnembeddingProbe
from fulgurite.agent.reduce import READ, Plan
from fulgurite.agent.shelf import Shelf
from fulgurite.agent.shield import Shield
from fulgurite.agent.wiring import LayerWiring, Tap
from fulgurite.wire.channels import KV_HEAT_BUCKETS, TOP_K, Level

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
        self._heads_of = tuple(routing.heads_of(layer) for layer in layers)
        self.heads = anatomy.topology.heads
        self.readout: Readout | None = None
        self._unembedding = UnembeddingProbe(anatomy.unembedding, current)
        self._shelf = shelf
        self._shield = shield
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

    def closes(self, passing: Pass) -> None:
        """A pass has ended: tell what its looks kept."""
        if passing.looked and not self._shield.is_out("attention"):
            with self._shield.at("attention"):
                tell(passing)

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

    def refresh(self) -> None:
        """Look at all weights again before they are believed to be the same."""
        self._neurons.refresh()

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
        self,
        passing: Pass,
        layout: Plan,
        stacked: torch.Tensor,
        candidates: torch.Tensor | None,
        late: LateDeep | None = None,
    ) -> dict[str, torch.Tensor]:
        """What this pass shows, on the model's device.

        Parameters
        ----------
        stacked : Tensor of float32, shape (slots, n, d), one per slot of the plan
        candidates : the most probable tokens, int64 (n, K)
        late : takes what is left to whoever reads the block; None where nothing is.
        """
        found = {
            f"attention{i}": t.flatten(0, -2) for (kind, i), t in passing.deep.items() if kind == "attention"
        }
        kept = {i: t for (kind, i), t in passing.deep.items() if kind == "neurons" and i not in self._refused}
        layers = dict(enumerate(self.layers))
        if late is not None and all(t.is_cpu and t.dtype in READ for t in kept.values()):
            late.neurons = self._neurons.later(kept, layers)
        else:
            found.update(self._neurons.largest(kept, layers))
        streams = self.streams(layout, stacked) if candidates is not None else None
        if self.readout is not None and not self.readout.is_split and streams is not None:
            assert candidates is not None
            found.update(lens.look(self.readout, streams, candidates.to(stacked.device)))
        return found

    def streams(self, layout: Plan, stacked: torch.Tensor) -> torch.Tensor | None:
        """What each layer left, (L, n, d); None where there is nothing to read it with."""
        ends = layout.after_ffn
        if self.readout is None or not (ends >= 0).all():
            return None
        return stacked.index_select(0, torch.as_tensor(ends, device=stacked.device))

    def told(
        self, host: Mapping[str, Array], positions: Array, fetched: Sequence[tuple[str, int]] = ()
    ) -> DeepRows:
        """What was measured of these rows, from which whoever reads them makes the channels.

        Parameters
        ----------
        positions : ndarray of int, shape (n,), of the emitted tokens
        fetched : what of it a compiled graph left, by kind and layer
        """
        looked = {i: rows for i, rows in by_layer(host, "attention").items() if rows.size}
        for i in [i for kind, i in fetched if kind == "attention"]:
            told = self._looks.believed(i, looked[i]) if i in looked else None
            if told is None:
                looked.pop(i, None)
            else:
                looked[i] = told.copy()  # the next pass writes there
        lenses = {name: host[name] for name in lens.CHANNELS if name in host}
        return DeepRows(
            looked, by_layer(host, "neurons"), lenses, positions, layers=self._heads_of, heads=self.heads
        )


@dataclass(frozen=True, slots=True, eq=False)
class DeepRows:
    """What one step showed at level `deep`, as it was measured. Holds nothing of the model.

    Attributes
    ----------
    looked, largest : by layer, what was told of attention and of neurons.
    lenses : of the logit lens, by name.
    positions : ndarray of int, shape (n,), of the emitted tokens
    layers, heads : the heads of each layer, and how many a layer has.
    """

    looked: Mapping[int, Array]
    largest: Mapping[int, Array]
    lenses: Mapping[str, Array]
    positions: Array
    layers: tuple[routing.HeadsOf, ...]
    heads: int

    @property
    def nbytes(self) -> int:
        """What is held, and what the channels will hold: those of attention have room for every layer."""
        held = sum(rows.nbytes for kind in (self.largest, self.lenses) for rows in kind.values())
        looked = sum(rows.nbytes for rows in self.looked.values())
        return 2 * held + looked + (self.positions.size * self._looked_bytes if looked else 0)

    @property
    def _looked_bytes(self) -> int:
        return len(self.layers) * (self.heads * 4 * (3 + 2 * TOP_K) + 4 * KV_HEAT_BUCKETS + 1)

    def with_largest(self, largest: Mapping[int, Array]) -> DeepRows:
        """With what was told of neurons later."""
        return replace(self, largest={**self.largest, **largest})

    def columns(self) -> dict[str, Array]:
        """The channels, rows first; one that no layer gives is absent."""
        found: dict[str, Array] = {}
        if self.looked:
            found.update(routing.columns(self.looked, self.positions, self.layers, self.heads))
        if self.largest:
            found.update(neurons.columns(self.largest, len(self.layers)))
        if self.lenses:
            found.update(lens.columns(self.lenses))
        return found


def by_layer(host: Mapping[str, Array], kind: str) -> dict[int, Array]:
    """Of the results of a step, those named `kind` and the number of a layer."""
    return {int(name.removeprefix(kind)): rows for name, rows in host.items() if name.startswith(kind)}
