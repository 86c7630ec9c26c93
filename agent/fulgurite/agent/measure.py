"""The results of one pass on the host: what its probes kept is reduced on its device, then copied once.

Where few rows are in host memory they are held or copied only, and reduced by whoever reads the block
(`unreduced`).

A part that fails three times is left out from then on; the others go on.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from operator import is_
from typing import Any, Protocol

import numpy as np
import torch

from fulgurite.agent import reduce
from fulgurite.agent.awaited import Awaited, Exchange, Waiting
from fulgurite.agent.contribution import Attribution
from fulgurite.agent.deep import Deep
from fulgurite.agent.headweights import HeadWeights
from fulgurite.agent.late_deep import LateDeep
from fulgurite.agent.probes import Pass
from fulgurite.agent.renewed import Renewed
from fulgurite.agent.shield import Shield
from fulgurite.agent.unreduced import Part, Unreduced
from fulgurite.agent.weights import Watched

Array = np.ndarray[Any, Any]
WITH_LAYERS = ("heads", "deep")
MOST_LEFT = 8  # steps that wait to be reduced
MOST_LEFT_BYTES = 6 << 20  # of all of them, where several do: the outbox must have room for them
MOST_BYTES = 15 << 20  # of one step that does: the outbox takes 16, what else is told of it included
_is_absent = partial(is_, None)


class Waits(Protocol):
    """What is held until it is reduced."""

    nbytes: int


class Measure:
    """Of one model.

    Parameters
    ----------
    layers : how many layers it has.
    watched : tells whether weights changed, which makes the values of this pass untellable at `deep`.

    Attributes
    ----------
    exchange : gives the rows of the unembedding that other processes hold; None where nobody does.
    """

    def __init__(
        self, layers: int, *, weights: HeadWeights, deep: Deep, watched: Watched, shield: Shield
    ) -> None:
        self._count = layers
        self._weights = weights
        self._deep = deep
        self._watched = watched
        self._shield = shield
        self._waiting: deque[weakref.ref[Waits]] = deque(maxlen=MOST_LEFT)
        self._awaited = Waiting()
        self.exchange: Exchange | None = None
        self._on_host: reduce.Plan | None = None  # of which all is in host memory
        self._renewed = Renewed()
        self._sizes_of: reduce.Plan | None = None
        self._sizes: dict[tuple[int, bool, bool], int] = {}
        self._pulse_bytes = (0, 0, 0)  # rows, bytes without and with scores: replaced as one

    def of(
        self,
        passing: Pass,
        tokens: torch.Tensor | Array,
        layout: reduce.Plan | None,
        attribution: Attribution | None,
    ) -> dict[str, Array]:
        """Every result of this pass.

        Parameters
        ----------
        tokens : of int64, shape (n, 1)
        layout, attribution : None where they are not known.
        """
        size = self._size_left(passing, layout)
        if size:
            return self._leave(passing, tokens, layout, attribution, size)
        assert passing.logits is not None
        with _computing_on(passing.logits.device):
            return self._now(passing, tokens, layout, attribution)

    def room_for(self, rows: int, logits: torch.Tensor, *, is_scored: bool) -> int:
        """Bytes of `rows` at level `pulse`, with or without the scores that were sampled from, where they may
        wait to be reduced; 0 where they may not."""
        known, plain, scored = self._pulse_bytes
        if rows != known:
            plain, scored = logits.nbytes, logits.nbytes + 4 * logits.numel()
            self._pulse_bytes = rows, plain, scored
        size = scored if is_scored else plain
        return size if self._has_room(size) else 0

    def waits(self, held: Waits) -> None:
        """Something waits to be reduced."""
        self._waiting.append(weakref.ref(held))

    def _now(
        self,
        passing: Pass,
        tokens: torch.Tensor | Array,
        layout: reduce.Plan | None,
        attribution: Attribution | None,
    ) -> dict[str, Array]:
        """Reduce on the device where the rows are."""
        logits = passing.logits
        assert logits is not None
        ids = (torch.from_numpy(tokens) if isinstance(tokens, np.ndarray) else tokens).to(logits.device)
        full = passing.level in WITH_LAYERS
        logits = passing.logits = logits.flatten(0, -2)
        host: dict[str, Array] = {}
        found: dict[str, torch.Tensor] = {}
        if logits.device.type == "cpu" and logits.shape[0] == 1:
            host = reduce.row_uncertainty(logits, ids, full=full)
        else:
            found = {"tokens": ids, **reduce.uncertainty(logits, ids, full=full)}
        if full and layout is not None and not self._shield.is_out("reduce"):
            with self._shield.at("reduce"):
                top_ids = found.get("top_ids")
                if passing.level == "deep" and top_ids is None:
                    top_ids = torch.from_numpy(reduce.top_ids(host))
                found.update(self._layers(passing, layout, attribution, ids, top_ids))
        found.update(self._beside(passing, ids, full=full))
        for name in ("alive", "alive_logits", "alive_deep", "alive_experts"):
            if (alive := getattr(passing, name)) is not None:
                found[name] = alive
        if found:
            host.update(reduce.to_host(found))
        return host

    def _beside(self, passing: Pass, ids: torch.Tensor, *, full: bool) -> dict[str, torch.Tensor]:
        """Expert routing, and what was sampled from."""
        found: dict[str, torch.Tensor] = {}
        if full and passing.extra and not self._shield.is_out("experts"):
            with self._shield.at("experts"):
                found.update(_experts(passing, self._count))
        if passing.scores is not None and passing.scores.shape[0] == ids.shape[0]:
            sampled = torch.log_softmax(passing.scores, -1, dtype=torch.float32)
            found["logprob_sampled"] = sampled.gather(-1, ids.to(sampled.device))[:, 0]
        return found

    def _size_left(self, passing: Pass, layout: reduce.Plan | None) -> int:
        """Bytes of the rows of this pass, where they are left for whoever reads the block to reduce them; 0
        where they are not."""
        logits, kept = passing.logits, passing.kept
        if passing.alive is not None or passing.alive_logits is not None:
            return 0
        if logits is None or not logits.is_cpu:
            return 0
        full = passing.level != "pulse"
        if full:
            if layout is None or not layout.places or self._shield.is_out("reduce"):
                return 0
            if any(map(_is_absent, kept)) or not self._are_on_host(kept, layout):  # type: ignore[arg-type]
                return 0
        held = _lean(passing, layout) if full and layout is not None else None
        key = (passing.measured, passing.level == "deep", passing.scores is None)
        if self._sizes_of is not held or key not in self._sizes:
            self._sizes_of = held
            self._sizes = {key: self._size(passing, logits, held)}
        size = self._sizes[key]
        return size if self._has_room(size) else 0  # what is reduced weighs less

    def _has_room(self, size: int) -> bool:
        """Whether a step of `size` bytes may wait to be reduced: one always, if the outbox takes it."""
        if size > MOST_BYTES:
            return False
        if not self._waiting or self._waiting[-1]() is None:
            return True  # they are read in order
        waiting = [left.nbytes for left in (held() for held in self._waiting) if left is not None]
        is_room = len(waiting) < MOST_LEFT and size + sum(waiting) <= MOST_LEFT_BYTES
        return is_room or not waiting

    def _size(self, passing: Pass, logits: torch.Tensor, layout: reduce.Plan | None) -> int:
        size = logits.nbytes + (0 if passing.scores is None else 4 * passing.scores.numel())
        if layout is not None:
            size += layout.slots * passing.measured * layout.width * logits.element_size()
        if passing.level == "deep":
            size += sum(kept.nbytes for (kind, _), kept in passing.deep.items() if kind == "neurons")
        return max(1, size)

    def _are_on_host(self, kept: list[torch.Tensor], layout: reduce.Plan) -> bool:
        """Whether all of it is in host memory. A model moves as a whole; one that was spread is told when it
        is looked at first."""
        if self._on_host is layout:
            return kept[0].is_cpu
        if not all(tensor.is_cpu for tensor in kept):
            return False
        if len(self._weights.on_host) != len(self._weights.stacked):
            return False
        self._on_host = layout
        return True

    def _leave(
        self,
        passing: Pass,
        tokens: torch.Tensor | Array,
        layout: reduce.Plan | None,
        attribution: Attribution | None,
        size: int,
    ) -> dict[str, Array]:
        """Hold the rows, which nobody writes into once the model has made them. `scores` are copied where
        somebody may: `generate` may hand them out. The results that are there already: those of `deep`, which
        need the model's weights, among them.
        """
        assert passing.logits is not None
        full = passing.level != "pulse"
        ids = (tokens if isinstance(tokens, np.ndarray) else tokens.cpu().numpy()).reshape(-1)
        ids = ids.astype(np.int32)  # a copy
        unreduced = Unreduced(_held(passing.logits), ids, full, nbytes=size)
        scores = passing.scores
        if scores is not None and scores.is_cpu and scores.shape[0] == len(ids):
            unreduced.scores = _held(scores if passing.owns_scores else scores.clone())
            passing.scores = None
        if full:
            with self._shield.at("reduce"):
                assert layout is not None
                lean = _lean(passing, layout)
                self._leave_layers(unreduced, passing.kept, layout, lean, is_own=passing.is_own)  # type: ignore[arg-type]
        passing.unreduced = unreduced
        self.waits(unreduced)
        host = {"tokens": ids}
        if passing.scores is not None or passing.extra or passing.level == "deep":
            with _computing_on(passing.logits.device):
                column = torch.from_numpy(ids.astype(np.int64)[:, None])
                found = self._beside(passing, column, full=full)
                if passing.level == "deep":
                    with self._shield.at("reduce"):
                        found.update(self._above(passing, unreduced, layout, attribution, column))  # type: ignore[arg-type]
                if found:
                    host.update(reduce.to_host(found))
        return host

    def _above(
        self,
        passing: Pass,
        unreduced: Unreduced,
        layout: reduce.Plan,
        attribution: Attribution | None,
        tokens: torch.Tensor,
    ) -> dict[str, torch.Tensor]:
        """What `deep` tells of a pass the rest of which is left."""
        kept: list[torch.Tensor] = passing.kept  # type: ignore[assignment]
        assert passing.logits is not None
        passing.logits = passing.logits.flatten(0, -2).float()
        candidates = reduce.largest(passing.logits)
        unreduced.top_ids = candidates.numpy()
        stacked = reduce.stack(kept[: len(layout.places)])
        late = LateDeep(self._shield)
        found = self._deeply(passing, layout, attribution, stacked, tokens, candidates, late)
        if late.nbytes:
            unreduced.deep = late
            unreduced.nbytes += late.nbytes
        return found

    def _leave_layers(
        self,
        unreduced: Unreduced,
        kept: list[torch.Tensor],
        layout: reduce.Plan,
        lean: reduce.Plan,
        *,
        is_own: bool,
    ) -> None:
        """`is_own`: what was kept is copies of ours already."""
        is_held = is_own or self._renewed.is_trusted(kept, layout)
        if lean is not layout:
            kept = kept[: len(lean.places)] + kept[len(layout.places) :]
            unreduced.layout = lean
        parts = [kept] if lean.is_joint else [kept[part] for part in lean.parts]
        if not is_held:
            held: list[Part] = [reduce.numbers(reduce.together(part)) for part in parts]
        elif kept[0].requires_grad:  # what leads to it is not to be held
            held = [[tensor.detach() for tensor in part] for part in parts]
        else:
            held = list(parts)
        unreduced.kept, unreduced.grams = tuple(held), self._weights.on_host

    def _layers(
        self,
        passing: Pass,
        layout: reduce.Plan,
        attribution: Attribution | None,
        tokens: torch.Tensor,
        candidates: torch.Tensor | None,
    ) -> dict[str, torch.Tensor]:
        if any(tensor is None for tensor in passing.kept):
            self._shield.note("probe:silent")
            self._shield.say_once(
                "silent", "a part of the model was not seen in a pass: no activity is told of its token"
            )
            return {}
        kept: list[torch.Tensor] = passing.kept  # type: ignore[assignment]
        if not layout.places:
            return {}
        found, stacked = self._activity(kept, layout)
        found.update(self._deeply(passing, layout, attribution, stacked, tokens, candidates))
        return found

    def _deeply(
        self,
        passing: Pass,
        layout: reduce.Plan,
        attribution: Attribution | None,
        stacked: torch.Tensor,
        tokens: torch.Tensor,
        candidates: torch.Tensor | None,
        late: LateDeep | None = None,
    ) -> dict[str, torch.Tensor]:
        """What `deep` tells besides; lowers the level of a pass whose weights are no longer there. `late`
        takes what is left to whoever reads the block."""
        found: dict[str, torch.Tensor] = {}
        if passing.level == "deep" and self._watched.has_changed():
            passing.level = "heads"  # the weights of this pass are not those that are there now
        if passing.level != "deep":
            return found
        with self._shield.at("deep"):
            found.update(self._deep.measure(passing, layout, stacked, candidates, late))
        readout = self._deep.readout
        if readout is not None and readout.is_split:
            with self._shield.at("contribution"):
                self._await(passing, layout, attribution, stacked, tokens, candidates)
        elif attribution is not None and passing.logits is not None:
            with self._shield.at("contribution"):
                chosen, unembedded = tokens[:, 0].to(stacked.device), passing.deep.get(("unembedded", 0))
                if late is not None:
                    late.heads = attribution.later(stacked, passing.logits, chosen, unembedded)
                if late is None or late.heads is None:
                    kept = _by_layer(passing.kept, layout)  # type: ignore[arg-type]  # none is None by now
                    found.update(attribution.of(stacked, kept, passing.logits, chosen, unembedded))
        return found

    def _await(
        self,
        passing: Pass,
        layout: reduce.Plan,
        attribution: Attribution | None,
        stacked: torch.Tensor,
        tokens: torch.Tensor,
        candidates: torch.Tensor | None,
    ) -> None:
        """Leave what needs rows of the unembedding that other processes hold to whoever reads the block."""
        readout, logits = self._deep.readout, passing.logits
        if readout is None or logits is None or self.exchange is None:
            return
        if not self._awaited.has_room(2 * stacked.nbytes):
            self._shield.note("ranks:waiting")  # not read yet, and what waits is bounded
            return
        ids = tokens if candidates is None else torch.cat([tokens, candidates.to(tokens.device)], -1)
        unembedded = passing.deep.get(("unembedded", 0))
        measured = attribution.measured(logits, tokens[:, 0], unembedded) if attribution is not None else ()
        passing.awaited = Awaited(
            attribution,
            readout,
            stacked=stacked,
            heads=_by_layer(passing.kept, layout),  # type: ignore[arg-type]  # none is None by now
            measured=tuple(found.to(stacked.device) for found in measured),
            streams=None if candidates is None else self._deep.streams(layout, stacked),
            ids=ids,
            step=passing.step,
            exchange=self.exchange,
            shield=self._shield,
        )
        self._awaited.add(passing.awaited)

    def _activity(
        self, kept: list[torch.Tensor], layout: reduce.Plan
    ) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """What `heads` tells, and the vectors of the plan as one tensor."""
        vectors, grams = kept[: len(layout.places)], self._weights.stacked
        if layout.is_joint:  # the heads' outputs are as wide as the stream: all of it is one tensor
            whole = reduce.stack(kept)
            stacked = whole[: len(vectors)]
            found = reduce.stream(stacked, layout)
            found["heads0"] = reduce.squares(whole[len(vectors) :], grams[0])
            return found, stacked
        stacked = reduce.stack(vectors)
        found = reduce.stream(stacked, layout)
        for i, group in enumerate(layout.groups):
            inputs = kept[group.slots[0] : group.slots[-1] + 1]
            found[f"heads{i}"] = reduce.head_squares(inputs, grams[i])
        return found, stacked


def _lean(passing: Pass, layout: reduce.Plan) -> reduce.Plan:
    """Of what is held of this pass: level `deep` needs more than is told of the others."""
    return layout if passing.level == "deep" or layout.lean is None else layout.lean


@contextmanager
def _computing_on(device: torch.device) -> Iterator[None]:
    """Whatever the host's settings are: nothing of ours is differentiated or computed in fewer bits."""
    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        yield


def _held(rows: torch.Tensor) -> torch.Tensor:
    """The same memory, and nothing of what led to it."""
    return rows.detach() if rows.requires_grad else rows


def _by_layer(kept: list[torch.Tensor], layout: reduce.Plan) -> dict[int, torch.Tensor]:
    """What each layer's projection was handed."""
    return {
        int(index): kept[slot]
        for group in layout.groups
        for slot, index in zip(group.slots, group.layers, strict=True)
    }


def _experts(passing: Pass, layers: int) -> dict[str, torch.Tensor]:
    """Expert ids and weights, (layers, n, experts per token); -1 and NaN where a layer has none."""
    like = next(iter(passing.extra.values()))[0]
    rows, most = passing.measured, max(ids.shape[-1] for ids, _ in passing.extra.values())
    ids = torch.full((layers, rows, most), -1.0, device=like.device)
    weights = torch.full((layers, rows, most), float("nan"), device=like.device)
    for layer, (chosen, gates) in passing.extra.items():
        ids[layer, :, : chosen.shape[-1]] = chosen.reshape(rows, -1).float()
        weights[layer, :, : gates.shape[-1]] = gates.reshape(rows, -1).float()
    return {"expert_ids": ids, "expert_weights": weights}
