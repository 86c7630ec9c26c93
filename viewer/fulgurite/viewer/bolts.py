"""The lightning of a token: which arcs it has, and the ring of slots that the live ones are drawn from.

The residual stream is a sum, not a route, and the arcs say so: from every drawn head and FFN block one arc
leaps to the spine, where that node's write is added; the trunk runs along the spine to the emitted token;
where attention was captured, thin strikes come from the cells that a drawn head reads. An arc's brightness
and width are the display value of the node that it belongs to (for the trunk: the largest of the layers that
the segment passes); its colour is the request's. Only its jagged shape is decoration: hashed from the frame's
id, so the same frame has the same shape.

Pure numpy; times are seconds on the viewer's time axis. Shape letters: L layers, H heads, S slots, n arcs.
"""

from __future__ import annotations

import heapq
import itertools
import zlib
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fulgurite.viewer.layout import Layout

    Floats = NDArray[np.float32]

ARCS = 300
"""Most live arcs over all replicas: what two cores without a GPU draw at 30 pictures per second."""
LIFE_S = 0.42
GROUPS = 16  # a chain has at most so many stations along the layers
HEADS_PER_GROUP = 4
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
        Brightness and width, 0 … 1.
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
    delay: Floats
    kind: NDArray[np.int8]
    node: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.display)


def frame_seed(request_id: str, sequence: int, position: int) -> int:
    """The number that shapes a frame's bolts, in 0 … 65535: a hash of the frame's id. Decoration only."""
    return zlib.crc32(f"{request_id}/{sequence}/{position}".encode()) & 0xFFFF


def heads_per_group(layers: int, slots: int) -> int:
    """How many heads per station get an arc, so that about three chains fit into `slots`."""
    groups = min(layers, GROUPS)
    return int(np.clip(slots // (3 * groups) - 2, 1, HEADS_PER_GROUP))


def chain(
    layout: Layout,
    head_display: Floats,
    ffn_display: Floats,
    *,
    top: int,
    reads: NDArray[np.int32] | None = None,
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
    reads : ndarray of int32, shape (L, H), optional
        The cell that each head reads most, -1 where it was not captured.
    lane : int
        Which strand along the spine: one per request colour, so that requests stay apart. 0 is the axis.
    """
    rows: list[_Row] = []
    layout = replace(layout, spine=layout.spine + _strand(lane))
    for low, high in _stations(len(ffn_display)):
        rows += _trunk(layout, head_display, ffn_display, low, high)
        rows += _heads(layout, head_display, low, high, top, reads)
        rows += _ffn(layout, ffn_display, low, high)
    rows.sort(key=lambda row: row.delay)
    return Arcs(
        start=np.array([row.start for row in rows], np.float32).reshape(-1, 3),
        end=np.array([row.end for row in rows], np.float32).reshape(-1, 3),
        display=np.array([row.display for row in rows], np.float32),
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


def _strand(lane: int) -> Floats:
    """How far the strand of a lane lies from the axis."""
    angle = 2.0 * np.pi * (lane - 1) / STRANDS
    place = [0.0, np.sin(angle), np.cos(angle)] if lane else [0.0, 0.0, 0.0]
    return np.array(place, np.float32) * STRAND_RADIUS


def _stations(layers: int) -> list[tuple[int, int]]:
    edges = np.linspace(0, layers, min(layers, GROUPS) + 1).round().astype(int)
    return list(itertools.pairwise(edges.tolist()))


def _trunk(layout: Layout, heads: Floats, ffn: Floats, low: int, high: int) -> list[_Row]:
    values = np.concatenate([heads[low:high].ravel(), ffn[low:high]])
    values = values[np.isfinite(values)]
    if not len(values):
        return []
    start, end = layout.spine[low], layout.spine[high]
    return [_Row(low / len(ffn), Kind.TRUNK, start, end, float(values.max()), (low, 0))]


def _heads(
    layout: Layout, heads: Floats, low: int, high: int, top: int, reads: NDArray[np.int32] | None
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
        rows.append(_Row((layer + 0.25) / layers, Kind.HEAD, place + toward, into, display, (layer, head)))
        if reads is not None and reads[layer, head] >= 0:
            cell = int(reads[layer, head])
            source = layout.cells[layer, cell].mean(axis=0)
            rows.append(_Row(layer / layers, Kind.READ, source, place, display, (layer, cell)))
    return rows


def _ffn(layout: Layout, ffn: Floats, low: int, high: int) -> list[_Row]:
    values = np.where(np.isfinite(ffn[low:high]), ffn[low:high], -1.0)
    layer, display = low + int(np.argmax(values)), float(values.max())
    if display < DIMMEST:
        return []
    # from the upper edge: of the disc's square, or of the first plate
    start = layout.plates[layer, 0, 2:].mean(axis=0)
    return [
        _Row((layer + 0.6) / len(ffn), Kind.FFN, start, _spine_at(layout, layer, 1.0), display, (layer, 0))
    ]


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
        (start xyz, birth), (end xyz, life), (color rgb, display), (seed, kind, 0, 0). Birth is
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
        texels[:, 3, 1] = arcs.kind
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
