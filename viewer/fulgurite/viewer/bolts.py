"""The lightning of a token: which arcs it has, and the ring of slots that the live ones are drawn from.

The residual stream is a sum, not a route, and the arcs say so: from every drawn head and FFN block one arc
leaps to the spine, where that node's write is added; the trunk runs along the spine to the emitted token;
where attention was captured, thin strikes come from the cells that a drawn head attends to most. An arc's
brightness and width are the display value of the node that it belongs to (for the trunk: the largest of the
layers that the segment passes); a strike has the brightness of its head, the width of its attention weight:
where a head looks is routing, and lights nothing. An arc's colour is the request's, or in the contribution
view the signed push of its node (for the trunk: the sum over the layers that the segment passes). Only its
jagged shape is decoration: hashed from the frame's id, so the same frame has the same shape.

Pure numpy; times are seconds on the viewer's time axis. Shape letters: L layers, H heads, S slots, n arcs, K
attended positions.
"""

from __future__ import annotations

import itertools
import math
import zlib
from dataclasses import dataclass, fields, replace
from enum import IntEnum
from typing import TYPE_CHECKING, Any

import numpy as np

from fulgurite.viewer.contribution import NO_PUSH, hue, texel

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fulgurite.viewer.layout import Layout

    Floats = NDArray[np.float32]

ARCS = 300
"""Most live arcs over all replicas: what two cores without a GPU draw at 30 pictures per second."""
LIFE_S = 0.42
GROUPS = 16  # a chain has at most so many stations along the layers
HEADS_PER_GROUP = 4
READS_PER_HEAD = 2
EXPERTS_PER_STATION = 2
LEAST_WEIGHT = 0.10  # a cell with less of a head's attention has no strike of its own
DIMMEST = 0.04  # a node below this display value has no arc of its own
TEXELS = 4  # RGBA texels per slot
STRANDS = 6  # strands around the axis; one more runs along it
STRAND_RADIUS = 0.055

_GRID_S = 0.02
_LOOKED_AHEAD = 12  # intervals of that grid, for when there is room


class Kind(IntEnum):
    """What an arc shows."""

    TRUNK = 0
    HEAD = 1
    FFN = 2
    READ = 3


@dataclass(frozen=True, slots=True)
class Arcs:
    """The arcs of one token, in the order in which they appear.

    Attributes
    ----------
    start, end : ndarray of float32, shape (n, 3)
    display : ndarray of float32, shape (n,)
        Brightness, 0 … 1.
    width : ndarray of float32, shape (n,)
        0 … 1: as `display`, of a read its attention weight.
    push : ndarray of float32, shape (n,)
        Hue of the signed push, -1 … 1, or `contribution.NOT_CAPTURED`, or of a read `NO_PUSH`.
    delay : ndarray of float32, shape (n,)
        When each appears, as a share of the time that the chain takes, never decreasing.
    kind : ndarray of int8, shape (n,)
        Of `Kind`.
    node : ndarray of int32, shape (n, 2)
        What it belongs to: (layer, head) of a head, (layer, cell) of a read, (layer, expert) of an FFN arc
        of a model with experts, (layer, 0) of the rest.
    """

    start: Floats
    end: Floats
    display: Floats
    width: Floats
    push: Floats
    delay: Floats
    kind: NDArray[np.int8]
    node: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.display)


@dataclass(frozen=True, slots=True)
class Reads:
    """Where the heads of one token looked.

    Attributes
    ----------
    cells : ndarray of int32, shape (L, H, K)
        The cell of each of the positions that a head attended to most; -1: none, or not captured.
    weights : ndarray of float32, shape (L, H, K)
        The attention weight that went there, 0 … 1.
    """

    cells: NDArray[np.int32]
    weights: Floats

    def strongest(self, layer: int, head: int, most: int = READS_PER_HEAD) -> list[tuple[int, float]]:
        """The cells that a head attended to most, with their weights; positions of one cell add up."""
        total: dict[int, float] = {}
        pairs = zip(self.cells[layer, head].tolist(), self.weights[layer, head].tolist(), strict=True)
        for cell, weight in pairs:
            if cell >= 0 and weight > 0.0:  # NaN is not
                total[cell] = total.get(cell, 0.0) + weight
        order = sorted(total.items(), key=lambda item: -item[1])[:most]
        return [(cell, min(1.0, weight)) for cell, weight in order if weight >= LEAST_WEIGHT]


@dataclass(frozen=True, slots=True)
class Pushes:
    """The contributions of one token in logits; NaN: not captured.

    Attributes
    ----------
    heads : ndarray of float64, shape (L, H)
    ffn : ndarray of float64, shape (L,)
    """

    heads: NDArray[np.float64]
    ffn: NDArray[np.float64]


def frame_seed(request_id: str, sequence: int, position: int) -> int:
    """The number that shapes a frame's bolts, in 0 … 65535: a hash of the frame's id. Decoration only."""
    return zlib.crc32(f"{request_id}/{sequence}/{position}".encode()) & 0xFFFF


def heads_and_strikes(
    layers: int, slots: int, *, chains: int = 2, has_reads: bool = True, has_experts: bool = False
) -> tuple[int, int]:
    """Heads per station that get an arc, and strikes per head, so that so many chains fit into `slots`.

    Where not even chains of one head with one strike fit, one does, or the strikes are left out.
    """
    groups = min(layers, GROUPS)
    beside = 1 + (EXPERTS_PER_STATION if has_experts else 1)  # trunk, and FFN or experts
    room = slots // (chains * groups) - beside
    for strikes in range(READS_PER_HEAD, 0, -1) if has_reads else ():
        if room // (1 + strikes) >= 1:
            return min(HEADS_PER_GROUP, room // (1 + strikes)), strikes
    if has_reads and (2 + beside) * groups <= slots:
        return 1, 1
    return int(np.clip(room, 1, HEADS_PER_GROUP)), 0


def chain(
    layout: Layout,
    head_display: Floats,
    ffn_display: Floats,
    *,
    top: int,
    reads: Reads | None = None,
    strikes: int = READS_PER_HEAD,
    pushes: Pushes | None = None,
    lane: int = 0,
    experts: Floats | None = None,
    hidden: NDArray[np.bool_] | None = None,
) -> Arcs:
    """The arcs of one token.

    Parameters
    ----------
    head_display : ndarray of float32, shape (L, H)
        Display values; NaN where a head was not measured: it has no arc.
    ffn_display : ndarray of float32, shape (L,)
    top : int
        Arcs per station for its most active heads.
    reads : where the heads looked; None: not captured.
    strikes : most strikes per drawn head.
    pushes : the contributions; None: not captured.
    lane : int
        Which strand along the spine: one per request colour, so that requests stay apart. 0 is the axis.
    experts : ndarray of float32, shape (L, E)
        Display values of the gate weights, NaN where no router was captured: then the block's arc is
        replaced by one to each chosen expert of a station, at most `EXPERTS_PER_STATION`. None: dense.
    hidden : ndarray of bool, shape (L, H)
        Heads that have no arc because they are not looked at. None: all are.
    """
    layers = len(ffn_display)
    if pushes is None:
        pushes = Pushes(np.full(head_display.shape, np.nan), np.full(layers, np.nan))
    token = _Token(
        layout=replace(layout, spine=layout.spine + _strand(lane)),
        heads=head_display if hidden is None else np.where(hidden, np.nan, head_display).astype(np.float32),
        ffn=ffn_display,
        pushes=pushes,
        edges=np.linspace(0, layers, min(layers, GROUPS) + 1).round().astype(np.intp),
    )
    parts = [_trunk(token), _heads(token, top)]
    parts.append(_ffn(token) if experts is None else _experts(token, experts))
    if reads is not None and strikes:
        parts.append(_strikes(token, parts[1], reads, strikes))
    return _sorted(parts)


@dataclass(frozen=True, slots=True)
class _Token:
    """What the arcs of a token are made from; station i has the layers `edges[i]` to `edges[i + 1]`."""

    layout: Layout
    heads: Floats
    ffn: Floats
    pushes: Pushes
    edges: NDArray[np.intp]

    def spine_at(self, layer: NDArray[np.intp], share: float) -> Floats:
        """Points on the spine, `share` of the way from where `layer` begins to where the next one does."""
        spine = self.layout.spine
        return np.asarray(spine[layer] + share * (spine[layer + 1] - spine[layer]), np.float32)


def _arcs(
    kind: Kind,
    start: Floats,
    end: Floats,
    display: Floats,
    delay: NDArray[np.float64],
    node: tuple[NDArray[Any], NDArray[Any] | int],
    push: NDArray[np.float64] | float,
    width: Floats | None = None,
) -> Arcs:
    """Arcs of one kind; a push in logits, or already `NO_PUSH`."""
    n = len(display)
    place = np.zeros((n, 2), np.int32)
    place[:, 0], place[:, 1] = node
    hues = np.full(n, push, np.float32) if isinstance(push, float) else texel(hue(push))
    return Arcs(
        start=start.astype(np.float32),
        end=end.astype(np.float32),
        display=display.astype(np.float32),
        width=(display if width is None else width).astype(np.float32),
        push=hues,
        delay=delay.astype(np.float32),
        kind=np.full(n, kind, np.int8),
        node=place,
    )


def _sorted(parts: list[Arcs]) -> Arcs:
    """All arcs in the order in which they appear."""
    columns = {f.name: np.concatenate([getattr(part, f.name) for part in parts]) for f in fields(Arcs)}
    order = np.argsort(columns["delay"], kind="stable")
    return Arcs(**{name: column[order] for name, column in columns.items()})


def _strand(lane: int) -> Floats:
    """How far the strand of a lane lies from the axis."""
    angle = 2.0 * np.pi * (lane - 1) / STRANDS
    place = [0.0, np.sin(angle), np.cos(angle)] if lane else [0.0, 0.0, 0.0]
    return np.array(place, np.float32) * STRAND_RADIUS


def _trunk(token: _Token) -> Arcs:
    """Along the spine: as bright as the brightest node that the segment passes."""
    low, high = token.edges[:-1], token.edges[1:]
    of_layer = np.fmax(np.fmax.reduce(token.heads, axis=1), token.ffn)
    display = np.fmax.reduceat(of_layer, low)
    drawn = np.concatenate([token.heads, token.ffn[:, None]], axis=1)
    pushed = np.concatenate([token.pushes.heads, token.pushes.ffn[:, None]], axis=1)
    total = np.add.reduceat(np.where(np.isfinite(drawn), pushed, 0.0).sum(axis=1), low)
    lit = np.isfinite(display)
    low, high, spine = low[lit], high[lit], token.layout.spine
    return _arcs(
        Kind.TRUNK, spine[low], spine[high], display[lit], low / len(token.ffn), (low, 0), total[lit]
    )


def _heads(token: _Token, top: int) -> Arcs:
    """From the most active heads of each station to the spine."""
    layers, width = token.heads.shape
    values = np.where(np.isfinite(token.heads), token.heads, -1.0).ravel()
    found = []
    for low, high in itertools.pairwise((token.edges * width).tolist()):
        group = values[low:high]
        some = np.arange(len(group))
        if top < len(group):  # of equals those of the lowest number: argpartition's choice is the machine's
            some = np.flatnonzero(group >= np.partition(group, -top)[-top])
        found.append(low + some[np.argsort(-group[some], kind="stable")][:top])
    flat = np.concatenate(found)
    flat = flat[values[flat] >= DIMMEST]
    layer, head = np.divmod(flat, width)
    place, into = token.layout.heads[layer, head], token.spine_at(layer, 0.55)
    way = into - place
    reach = np.maximum(1e-6, np.linalg.norm(way, axis=1, keepdims=True))
    start = place + way * (0.9 * token.layout.head_radius / reach)
    push = token.pushes.heads[layer, head]
    return _arcs(Kind.HEAD, start, into, values[flat], (layer + 0.25) / layers, (layer, head), push)


def _strikes(token: _Token, heads: Arcs, reads: Reads, strikes: int) -> Arcs:
    """From the cells that the drawn heads attend to most to those heads."""
    rows = [
        (layer, head, float(display), cell, weight)
        for (layer, head), display in zip(heads.node.tolist(), heads.display, strict=True)
        for cell, weight in reads.strongest(layer, head, strikes)
    ]
    table = np.array(rows, np.float64).reshape(-1, 5)
    layer, head, cell = table[:, [0, 1, 3]].astype(np.intp).T
    display, weight = table[:, [2, 4]].astype(np.float32).T
    source = token.layout.cells[layer, cell].mean(axis=1)
    place, delay = token.layout.heads[layer, head], layer / len(token.ffn)
    return _arcs(Kind.READ, source, place, display, delay, (layer, cell), NO_PUSH, weight)


def _busiest(token: _Token) -> NDArray[np.intp]:
    """The layer of each station whose FFN block wrote most."""
    values = np.where(np.isfinite(token.ffn), token.ffn, -1.0)
    stations = itertools.pairwise(token.edges.tolist())
    return np.array([low + int(np.argmax(values[low:high])) for low, high in stations], np.intp)


def _ffn(token: _Token) -> Arcs:
    """From the upper edge of each station's most active block, disc or plate, to the spine."""
    layer = _busiest(token)
    layer = layer[token.ffn[layer] >= DIMMEST]
    start, end = token.layout.plates[layer, 0, 2:].mean(axis=1), token.spine_at(layer, 1.0)
    delay = (layer + 0.6) / len(token.ffn)
    return _arcs(Kind.FFN, start, end, token.ffn[layer], delay, (layer, 0), token.pushes.ffn[layer])


def _experts(token: _Token, experts: Floats) -> Arcs:
    """From the spine into the experts that the router chose in each station's most active layer.

    Brightness and width are the light of the expert: its gate weight.
    """
    weights = np.where(np.isfinite(experts), experts, 0.0)
    layer = np.repeat(_busiest(token), EXPERTS_PER_STATION)
    order = np.argsort(-weights[layer[::EXPERTS_PER_STATION]], axis=1, kind="stable")
    expert = order[:, :EXPERTS_PER_STATION].ravel()
    layer = layer[: len(expert)] if expert.size == layer.size else layer[::EXPERTS_PER_STATION]
    lit = weights[layer, expert] >= DIMMEST
    layer, expert = layer[lit], expert[lit]
    start, end = token.spine_at(layer, 0.7), token.layout.plates[layer, expert].mean(axis=1)
    delay = (layer + 0.6) / len(token.ffn)
    push = token.pushes.ffn[layer]
    return _arcs(Kind.FFN, start, end, weights[layer, expert], delay, (layer, expert), push)


class Bolts:
    """The live arcs: a ring of slots as one float texture, and the arcs that are still to come.

    Whole chains are admitted or refused, by what the stream itself says (`admits`), never by when it is
    looked at: the same stream gives the same arcs.

    Attributes
    ----------
    slots : ndarray of float32, shape (S, TEXELS, 4)
        (start xyz, birth), (end xyz, life), (color rgb, display), (seed, kind, width, push). Birth is
        relative to the origin that `advance` was called with; a slot that was never used has life 0.
    revision : int
        Rises when `slots` changed.
    full_for_s : float
        For how long at least a chain like the one that was refused last finds no room, as far as it was
        looked ahead: to make one that is refused costs as much as one that is drawn.
    """

    def __init__(self, slots: int) -> None:
        self.full_for_s = 0.0
        self.slots = np.zeros((slots, TEXELS, 4), np.float32)
        self.revision = 0
        self._births = np.full(slots, -np.inf)
        self._next = 0
        self._coming_s = np.zeros(0)  # births of the arcs to come, in order
        self._next_s = math.inf  # the first of them
        self._coming = np.zeros((0, TEXELS, 4), np.float32)
        self._busy: dict[int, int] = {}  # arcs alive in each interval of the admission's grid
        self._origin_s = 0.0

    def __len__(self) -> int:
        return len(self.slots)

    def clear(self) -> None:
        """No arc, none to come."""
        self.slots[:] = 0.0
        self._births[:] = -np.inf
        self._coming_s, self._coming, self._next_s = self._coming_s[:0], self._coming[:0], math.inf
        self._busy.clear()
        self.revision += 1

    def resize(self, slots: int) -> None:
        """So many slots from now on; of what lives now the newest arcs stay."""
        born = np.flatnonzero(np.isfinite(self._births))
        kept = born[np.argsort(self._births[born], kind="stable")][-slots:]
        texels, births = self.slots[kept], self._births[kept]
        self.slots = np.zeros((slots, TEXELS, 4), np.float32)
        self._births = np.full(slots, -np.inf)
        self.slots[: len(kept)], self._births[: len(kept)] = texels, births
        self._next = len(kept) % slots
        self.revision += 1

    def admits(self, arcs: Arcs, at_s: float, spread_s: float) -> bool:
        """Whether a chain from `at_s` on fits beside those admitted before; if so, its room is taken."""
        if not len(arcs):
            return False
        # float32 cannot tell UNIX times a minute apart
        births = at_s + arcs.delay.astype(np.float64) * spread_s
        first = np.floor(births / _GRID_S).astype(np.int64)
        last = np.ceil((births + LIFE_S) / _GRID_S).astype(np.int64)
        origin, span = int(first.min()), int(last.max() - first.min()) + 2
        change = np.bincount(first - origin, minlength=span) - np.bincount(last - origin + 1, minlength=span)
        wanted = np.cumsum(change)
        held = np.array([self._busy.get(origin + i, 0) for i in range(span + _LOOKED_AHEAD)])
        later = np.lib.stride_tricks.sliding_window_view(held, span)
        has_room = (later + wanted).max(axis=1) <= len(self.slots)
        if not has_room[0]:
            self.full_for_s = _GRID_S * (int(has_room.argmax()) if has_room.any() else len(has_room))
            return False
        for i in np.flatnonzero(wanted).tolist():
            self._busy[origin + i] = int(held[i] + wanted[i])
        self._forget(origin)
        return True

    def _forget(self, origin: int) -> None:
        if len(self._busy) > 1024:
            self._busy = {key: count for key, count in self._busy.items() if key >= origin - 512}

    def add(
        self, arcs: Arcs, at_s: float, spread_s: float, *, color: tuple[float, float, float], seed: int
    ) -> None:
        """Let a chain begin at `at_s`."""
        n = len(arcs)
        texels = np.zeros((n, TEXELS, 4), np.float32)
        texels[:, 0, :3], texels[:, 1, :3] = arcs.start, arcs.end
        texels[:, 1, 3] = LIFE_S
        texels[:, 2, :3], texels[:, 2, 3] = color, arcs.display
        texels[:, 3, 0] = (seed + 131 * np.arange(n)) % 65536
        texels[:, 3, 1], texels[:, 3, 2], texels[:, 3, 3] = arcs.kind, arcs.width, arcs.push
        births = at_s + arcs.delay.astype(np.float64) * spread_s
        place = np.searchsorted(self._coming_s, births, side="right")  # never decreasing, as the births
        self._coming_s = np.insert(self._coming_s, place, births)
        self._coming = np.insert(self._coming, place, texels, axis=0)
        self._next_s = float(self._coming_s[0])

    def advance(self, now_s: float, origin_s: float) -> None:
        """Arcs that are born by `now_s` take their slots, the oldest arc's first."""
        if origin_s != self._origin_s:
            self._origin_s = origin_s
            self.slots[:, 0, 3] = np.where(np.isfinite(self._births), self._births - origin_s, 0.0)
            self.revision += 1
        if now_s < self._next_s:
            return
        # Of those that are born by now, the ones that live, and for which there are slots.
        dead, due = self._coming_s.searchsorted((now_s - LIFE_S, now_s), side="right").tolist()
        first = max(dead, due - len(self.slots))
        while first < due:  # once, or twice where the ring ends in between
            last = min(due, first + len(self.slots) - self._next)
            self._place(self._coming_s[first:last], self._coming[first:last])
            first = last
        self._coming_s, self._coming = self._coming_s[due:], self._coming[due:]
        self._next_s = float(self._coming_s[0]) if len(self._coming_s) else math.inf

    def _place(self, births: NDArray[np.float64], texels: Floats) -> None:
        """Let these begin in the next slots; they fit in before the ring's end."""
        end = self._next + len(births)
        slots = self.slots[self._next : end]
        slots[:] = texels
        slots[:, 0, 3] = births - self._origin_s
        self._births[self._next : end] = births
        self._next = end % len(self.slots)
        self.revision += 1

    def live(self, now_s: float) -> int:
        """Arcs that are alive at `now_s`."""
        return int(np.sum((self._births <= now_s) & (now_s < self._births + LIFE_S)))
