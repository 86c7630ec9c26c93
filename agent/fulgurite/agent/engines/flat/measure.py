"""The results of one step of vLLM, from the planes that its layers left to numpy: one batched reduction.

Shape letters: n measured rows, V vocabulary; the others are those of `fulgurite.agent.reduce`.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

from fulgurite.agent import lens, reduce
from fulgurite.agent.anatomy import LayerParts
from fulgurite.agent.awaited import Awaited, Exchange, Waiting
from fulgurite.agent.contribution import Attribution
from fulgurite.agent.engines.flat.attended import Attended
from fulgurite.agent.engines.flat.desk import Desk, Plane
from fulgurite.agent.engines.flat.neurons import Neurons
from fulgurite.agent.engines.flat.taps import hook
from fulgurite.agent.readout import Readout
from fulgurite.agent.shield import Shield
from fulgurite.agent.unreduced import Summed, Unreduced
from fulgurite.agent.wiring import Tap, part_of

Array = np.ndarray[Any, Any]
MOST_WAITING = 64  # steps that are left to be reduced by whoever reads them
MOST_WAITING_BYTES = 12 << 20  # of all of them: the outbox must have room for them
Where = Callable[[int, Tap], "tuple[nn.Module | None, Tap]"]


class Router(Protocol):
    """Which experts each token is sent to, as an engine tells it."""

    def columns(self, rows: torch.Tensor | slice) -> dict[str, Array]:
        """The channels of these rows."""


@dataclass(frozen=True, slots=True)
class _Pair:
    """Slots of a layer that hands on both parts of its stream."""

    ffn: int
    before: int
    after: int

    @classmethod
    def of(cls, layout: reduce.Plan, layer: int) -> _Pair:
        return cls(int(layout.ffn[layer]), int(layout.after_mixer[layer]), int(layout.after_ffn[layer]))

    @property
    def slots(self) -> tuple[int, int, int]:
        return self.ffn, self.before, self.after


@dataclass(frozen=True, slots=True, eq=False)
class _Sums:
    """Which slots are the sums of which."""

    ffn: slice | list[int]
    before: slice | list[int]
    after: slice | list[int]

    @classmethod
    def of(cls, pairs: Sequence[_Pair]) -> _Sums | None:
        if not pairs:
            return None
        return cls(*(_run([pair.slots[i] for pair in pairs]) for i in range(3)))

    @property
    def slots(self) -> Summed:
        return self.after, self.ffn, self.before

    def add(self, kept: torch.Tensor) -> None:
        """In the model's number format, as its next norm rounds the sum."""
        kept[self.after] = kept[self.ffn] + kept[self.before]


def _planned(
    layout: reduce.Plan, desk: Desk
) -> tuple[list[torch.Tensor], torch.Tensor, list[Plane], list[tuple[torch.Tensor, list[Plane]]]]:
    """The buffers as `Unreduced` takes them, and the stream's and the heads' parts of them with their
    planes."""
    count = len(layout.places)
    if layout.is_joint:
        whole, planes = desk.planes(layout.slots, layout.width)
        return [whole], whole[:count], planes[:count], [(whole[count:], planes[count:])]
    stream, planes = desk.planes(count, layout.width)
    heads = [desk.planes(len(group.slots), group.heads * group.head_dim) for group in layout.groups]
    return [stream, *(buffer for buffer, _ in heads)], stream, planes, heads


def _run(slots: list[int]) -> slice | list[int]:
    """As a slice, where they follow on one another."""
    is_run = slots == list(range(slots[0], slots[0] + len(slots)))
    return slice(slots[0], slots[0] + len(slots)) if is_run else slots


class Measure:
    """Of one model whose wiring is known.

    Parameters
    ----------
    grams : of each group of heads of the plan.
    routing : of a mixture of experts.
    paired : layers whose two outputs are what the feed-forward part adds and the stream before it. One tap
        leaves both, and their sum, which is the stream behind, is made for all these layers at once.
    attribution, readout, neurons, attended : for level `deep`, None where they are not known.
    exchange : gives the rows of the unembedding that other processes hold; None where all are here.
    """

    def __init__(
        self,
        layout: reduce.Plan,
        grams: list[torch.Tensor],
        desk: Desk,
        *,
        attribution: Attribution | None = None,
        readout: Readout | None = None,
        neurons: Neurons | None = None,
        attended: Attended | None = None,
        routing: Router | None = None,
        paired: Collection[int] = (),
        exchange: Exchange | None = None,
    ) -> None:
        self.layout = layout
        self.desk = desk
        self._grams = grams
        self._attribution = attribution
        self._readout = readout
        self._neurons = neurons
        self.attended = attended
        self._exchange = exchange
        self._awaited = Waiting()
        self.routing = routing
        self._buffers, self._stream, self._planes, self._heads = _planned(layout, desk)
        self._inputs = {
            int(index): buffer[i]
            for group, (buffer, _) in zip(layout.groups, self._heads, strict=True)
            for i, index in enumerate(group.layers)
        }
        self._pairs = {int(i): _Pair.of(layout, int(i)) for i in sorted(paired)}
        self._sums = _Sums.of(list(self._pairs.values()))
        self._host_grams: tuple[Array, ...] = ()
        self._host_buffers: tuple[Array, ...] = ()
        if desk.device.type == "cpu":
            self._host_grams = tuple(gram.numpy() for gram in grams)
            self._host_buffers = tuple(map(reduce.numbers, self._buffers))
        self._row_bytes = sum(b[:, :1].nbytes for b in self._buffers)
        self._waiting: deque[weakref.ref[Unreduced]] = deque()
        made = {pair.after for pair in self._pairs.values()}
        written = [plane for slot, plane in enumerate(self._planes) if slot not in made]
        self._is_written = desk.watched([*written, *(plane for _, planes in self._heads for plane in planes)])

    def install(self, layers: tuple[LayerParts, ...], where: Where | None = None) -> list[Any]:
        """Put the taps in; their handles.

        Parameters
        ----------
        where : where a tap of a layer is to be read, for engines whose layers do not hand the stream on.
        """
        handles = []
        joint = {slot for pair in self._pairs.values() for slot in pair.slots}
        for index, pair in self._pairs.items():
            plane = self._planes[pair.ffn]
            plane.beside = self._planes[pair.before]
            block = layers[index].block
            end = Tap("block", "out")
            handles.append(hook(block, end, self.layout.width, desk=self.desk, plane=plane))
        for slot, (plane, (index, tap)) in enumerate(zip(self._planes, self.layout.places, strict=True)):
            if slot in joint:
                continue
            module, read = (part_of(layers[index], tap.part), tap) if where is None else where(index, tap)
            assert module is not None
            handles.append(hook(module, read, self.layout.width, desk=self.desk, plane=plane))
        for group, (_, planes) in zip(self.layout.groups, self._heads, strict=True):
            for plane, index in zip(planes, group.layers, strict=True):
                projection = layers[int(index)].projection
                assert projection is not None
                width = group.heads * group.head_dim
                tap = Tap("projection", "in")
                handles.append(hook(projection, tap, width, desk=self.desk, plane=plane))
        handles += [] if self._neurons is None else self._neurons.install(layers)
        return handles if self.attended is None else handles + self.attended.install()

    def is_written(self) -> bool:
        """Whether every tap was there in this step."""
        return self._is_written()

    def left(
        self, rows: torch.Tensor | slice, logits: torch.Tensor, tokens: Array, *, deep: bool
    ) -> Unreduced | None:
        """The rows of the step as they are, for whoever reads the block to reduce them; None where `layers`
        is to do it at once: on other devices, for level `deep`, and where too much waits already.

        Parameters
        ----------
        logits : shape (n, V), of these rows; nobody writes into them any more
        """
        if deep or logits.device.type != "cpu" or self.desk.device.type != "cpu":
            return None
        waiting = self._waiting
        while waiting and waiting[0]() is None:
            waiting.popleft()
        size = logits.nbytes + self._row_bytes * logits.shape[0]
        if (len(waiting) + 1) * size > MOST_WAITING_BYTES or len(waiting) >= MOST_WAITING:
            return None
        place = rows if isinstance(rows, slice) else rows.numpy()  # copied: the next step writes there
        found = Unreduced(
            reduce.numbers(logits),
            tokens.astype(np.int32),
            full=True,
            nbytes=size,
            kept=tuple([buffer[:, place].copy() for buffer in self._host_buffers]),
            grams=self._host_grams,
            summed=None if self._sums is None else self._sums.slots,
        )
        waiting.append(weakref.ref(found))
        return found

    def _stacked(self, rows: torch.Tensor | slice) -> torch.Tensor:
        """Every vector slot, float32 (slots, n, d)."""
        kept = self._stream[:, rows].clone()
        if self._sums is not None:  # what no tap left
            self._sums.add(kept)
        return kept.float()

    def layers(
        self,
        rows: torch.Tensor | slice,
        logits: torch.Tensor,
        tokens: torch.Tensor,
        candidates: torch.Tensor | None,
        *,
        deep: bool,
    ) -> dict[str, torch.Tensor]:
        """What the layers did at `rows` of the step.

        Parameters
        ----------
        logits, tokens : shapes (n, V) and (n,), of these rows
        candidates : the most probable tokens, int64 (n, K)
        """
        stacked = self._stacked(rows)
        found = reduce.stream(stacked, self.layout)
        for i, (buffer, _) in enumerate(self._heads):
            found[f"heads{i}"] = reduce.squares(buffer[:, rows].contiguous().float(), self._grams[i])
        if not deep:
            return found
        if self._neurons is not None:
            found.update(self._neurons.told(rows))
        if self._readout is None or self._readout.is_split:
            return found
        if self._attribution is not None:
            found.update(self._attribution.of(stacked, self._handed(rows), logits, tokens))
        streams = self._streams(stacked)
        if candidates is not None and streams is not None:
            found.update(lens.look(self._readout, streams, candidates))
        return found

    def awaited(
        self,
        rows: torch.Tensor | slice,
        logits: torch.Tensor,
        tokens: torch.Tensor,
        candidates: torch.Tensor | None,
        *,
        number: int,
        shield: Shield,
    ) -> Awaited | None:
        """What of a deep step rests on rows of the unembedding that other processes hold; None where nothing
        does, or too much waits already.

        Parameters
        ----------
        rows, logits, tokens, candidates : as for `layers`
        number : of the step, the same in all processes.
        """
        readout, attribution = self._readout, self._attribution
        if readout is None or not readout.is_split or self._exchange is None:
            return None
        stacked = self._stacked(rows)
        if not self._awaited.has_room(2 * stacked.nbytes):
            shield.note("ranks:waiting")  # not read yet, and what waits is bounded
            return None
        ids = tokens[:, None] if candidates is None else torch.cat([tokens[:, None], candidates], -1)
        found = Awaited(
            attribution,
            readout,
            stacked=stacked,
            heads=self._handed(rows),
            measured=() if attribution is None else attribution.measured(logits, tokens),
            streams=None if candidates is None else self._streams(stacked),
            ids=ids,
            step=number,
            exchange=self._exchange,
            shield=shield,
        )
        self._awaited.add(found)
        return found

    def handed(self, layer: int, rows: torch.Tensor | slice) -> torch.Tensor:
        """What the output projection of a layer was handed, float32 (n, H * D)."""
        return self._inputs[layer][rows].float()

    def _handed(self, rows: torch.Tensor | slice) -> dict[int, torch.Tensor]:
        return {layer: self.handed(layer, rows) for layer in self._inputs}

    def _streams(self, stacked: torch.Tensor) -> torch.Tensor | None:
        """What each layer left, (L, n, d); None where that is not known of all."""
        ends = self.layout.after_ffn
        if not (ends >= 0).all():
            return None
        return stacked.index_select(0, torch.as_tensor(ends, device=stacked.device))
