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

import heapq
import itertools
import zlib
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import TYPE_CHECKING, NamedTuple

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
LEAST_WEIGHT = 0.10  # a cell with less of a head's attention has no strike of its own
DIMMEST = 0.04  # a node below this display value has no arc of its own
TEXELS = 4  # RGBA texels per slot
STRANDS = 6  # strands around the axis; one more runs along it
STRAND_RADIUS = 0.055

_GRID_S = 0.02


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
        What it belongs to: (layer, head) of a head, (layer, cell) of a read, (layer, 0) of the rest.
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


def heads_per_group(layers: int, slots: int) -> int:
    """How many heads per station get an arc, so that about three chains fit into `slots`."""
    groups = min(layers, GROUPS)
    return int(np.clip(slots // (3 * groups) - 2, 1, HEADS_PER_GROUP))


def heads_and_strikes(layers: int, slots: int) -> tuple[int, int]:
    """The same where strikes come along: heads per station and strikes per head, so that two chains fit.

    Where not even two chains of one head with one strike fit, one does, or the strikes are left out.
    """
    groups = min(layers, GROUPS)
    room = slots // (2 * groups) - 2  # beside trunk and FFN
    for strikes in range(READS_PER_HEAD, 0, -1):
        if room // (1 + strikes) >= 1:
            return min(HEADS_PER_GROUP, room // (1 + strikes)), strikes
    return (1, 1) if 4 * groups <= slots else (heads_per_group(layers, slots), 0)


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
    """
    rows: list[_Row] = []
    layout = replace(layout, spine=layout.spine + _strand(lane))
    if pushes is None:
        pushes = Pushes(np.full(head_display.shape, np.nan), np.full(len(ffn_display), np.nan))
    for low, high in _stations(len(ffn_display)):
        rows += _trunk(layout, head_display, ffn_display, low, high, pushes)
        rows += _heads(layout, head_display, low, high, top, (reads, strikes), pushes)
        rows += _ffn(layout, ffn_display, low, high, pushes)
    rows.sort(key=lambda row: row.delay)
    return Arcs(
        start=np.array([row.start for row in rows], np.float32).reshape(-1, 3),
        end=np.array([row.end for row in rows], np.float32).reshape(-1, 3),
        display=np.array([row.display for row in rows], np.float32),
        width=np.array([row.width for row in rows], np.float32),
        push=np.array([row.push for row in rows], np.float32),
        delay=np.array([row.delay for row in rows], np.float32),
        kind=np.array([row.kind for row in rows], np.int8),
        node=np.array([row.node for row in rows], np.int32).reshape(-1, 2),
    )


class _Row(NamedTuple):
    """One arc."""

    delay: float
    kind: Kind
    start: Floats
    end: Floats
    display: float
    node: tuple[int, int]
    push: float
    width: float


def _strand(lane: int) -> Floats:
    """How far the strand of a lane lies from the axis."""
    angle = 2.0 * np.pi * (lane - 1) / STRANDS
    place = [0.0, np.sin(angle), np.cos(angle)] if lane else [0.0, 0.0, 0.0]
    return np.array(place, np.float32) * STRAND_RADIUS


def _stations(layers: int) -> list[tuple[int, int]]:
    edges = np.linspace(0, layers, min(layers, GROUPS) + 1).round().astype(int)
    return list(itertools.pairwise(edges.tolist()))


def _trunk(layout: Layout, heads: Floats, ffn: Floats, low: int, high: int, pushes: Pushes) -> list[_Row]:
    values = np.concatenate([heads[low:high].ravel(), ffn[low:high]])
    drawn = np.isfinite(values)
    if not drawn.any():
        return []
    start, end = layout.spine[low], layout.spine[high]
    display = float(values[drawn].max())
    pushed = np.concatenate([pushes.heads[low:high].ravel(), pushes.ffn[low:high]])[drawn]
    return [_Row(low / len(ffn), Kind.TRUNK, start, end, display, (low, 0), _hue(pushed.sum()), display)]


def _heads(
    layout: Layout,
    heads: Floats,
    low: int,
    high: int,
    top: int,
    reads: tuple[Reads | None, int],
    pushes: Pushes,
) -> list[_Row]:
    values = np.where(np.isfinite(heads[low:high]), heads[low:high], -1.0).ravel()
    order = np.argsort(-values, kind="stable")[:top]
    layers, width = heads.shape
    rows: list[_Row] = []
    for flat in order[values[order] >= DIMMEST].tolist():
        layer, head = low + flat // width, flat % width
        place, display = layout.heads[layer, head], float(values[flat])
        into = _spine_at(layout, layer, 0.55)
        toward = (into - place) * (0.9 * layout.head_radius / max(1e-6, float(np.linalg.norm(into - place))))
        delay, push = (layer + 0.25) / layers, _hue(pushes.heads[layer, head])
        rows.append(_Row(delay, Kind.HEAD, place + toward, into, display, (layer, head), push, display))
        rows += _reads(layout, *reads, layer, head, display)
    return rows


def _reads(
    layout: Layout, reads: Reads | None, strikes: int, layer: int, head: int, display: float
) -> list[_Row]:
    """Strikes from the cells that a head attends to most to that head."""
    place, delay = layout.heads[layer, head], layer / len(layout.heads)
    rows: list[_Row] = []
    for cell, weight in reads.strongest(layer, head, strikes) if reads is not None else ():
        source = layout.cells[layer, cell].mean(axis=0)
        rows.append(_Row(delay, Kind.READ, source, place, display, (layer, cell), NO_PUSH, weight))
    return rows


def _ffn(layout: Layout, ffn: Floats, low: int, high: int, pushes: Pushes) -> list[_Row]:
    values = np.where(np.isfinite(ffn[low:high]), ffn[low:high], -1.0)
    layer, display = low + int(np.argmax(values)), float(values.max())
    if display < DIMMEST:
        return []
    # from the upper edge: of the disc's square, or of the first plate
    start, end = layout.plates[layer, 0, 2:].mean(axis=0), _spine_at(layout, layer, 1.0)
    delay = (layer + 0.6) / len(ffn)
    return [_Row(delay, Kind.FFN, start, end, display, (layer, 0), _hue(pushes.ffn[layer]), display)]


def _hue(logits: float) -> float:
    """The hue of a push as it goes into a slot."""
    return float(texel(hue(logits)))


def _spine_at(layout: Layout, layer: int, share: float) -> Floats:
    """The point on the spine `share` of the way from where `layer` begins to where the next one does."""
    return np.asarray(
        layout.spine[layer] + share * (layout.spine[layer + 1] - layout.spine[layer]), np.float32
    )


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
    """

    def __init__(self, slots: int) -> None:
        self.slots = np.zeros((slots, TEXELS, 4), np.float32)
        self.revision = 0
        self._births = np.full(slots, -np.inf)
        self._next = 0
        self._serial = 0
        self._coming: list[tuple[float, int, Floats]] = []
        self._busy: dict[int, int] = {}  # arcs alive in each interval of the admission's grid
        self._origin_s = 0.0

    def __len__(self) -> int:
        return len(self.slots)

    def clear(self) -> None:
        """No arc, none to come."""
        self.slots[:] = 0.0
        self._births[:] = -np.inf
        self._coming.clear()
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
        held = np.array([self._busy.get(origin + i, 0) for i in range(span)])
        if (held + wanted).max() > len(self.slots):
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
        for i in range(n):
            self._serial += 1
            heapq.heappush(self._coming, (float(births[i]), self._serial, texels[i]))

    def advance(self, now_s: float, origin_s: float) -> None:
        """Arcs that are born by `now_s` take their slots, the oldest arc's first."""
        if origin_s != self._origin_s:
            self._origin_s = origin_s
            self.slots[:, 0, 3] = np.where(np.isfinite(self._births), self._births - origin_s, 0.0)
            self.revision += 1
        while self._coming and self._coming[0][0] <= now_s:
            birth_s, _, texels = heapq.heappop(self._coming)
            if birth_s + LIFE_S > now_s:
                self._place(birth_s, texels)

    def _place(self, birth_s: float, texels: Floats) -> None:
        self.slots[self._next] = texels
        self.slots[self._next, 0, 3] = birth_s - self._origin_s
        self._births[self._next] = birth_s
        self._next = (self._next + 1) % len(self.slots)
        self.revision += 1

    def live(self, now_s: float) -> int:
        """Arcs that are alive at `now_s`."""
        return int(np.sum((self._births <= now_s) & (now_s < self._births + LIFE_S)))
