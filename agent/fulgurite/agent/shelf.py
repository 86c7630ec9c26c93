"""Where a compiled graph leaves what probes would have kept.

A compiled or captured graph runs no Python: a hook is traced once, and what it did then is all that the
graph does. So while a graph is traced, a probe puts one operator into it, which copies the rows that matter
into a buffer of fixed address. With the rows goes a stamp: the number of the pass, read from a tensor that we
advance from outside. A buffer whose stamp is not that of this pass was not written by it, so "not measured"
is told from "quiet". The same tensor holds the gates: where one is shut, nothing is written, and nothing is
compiled anew. One is for what is looked at deeply, in sampled passes only.

Costs one small copy per place and pass, and `ROWS` rows of float32 per place.

Shape letters: r rows, w width of a place.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.compiler import is_exporting

ROWS = 16  # of a pass (rows times positions) that are left; of a wider one the last position of each row
_STAMPS = 1 << 24  # exact in float32
_OPEN, _SHUT = 1.0, 0.0
STAMP, OPEN, DEEP, TURN = range(4)  # what a clock holds
EVERY, NOBODY = -1, -2  # whose turn it is, beside the numbers of layers

_library: Any = torch.library.Library("fulgurite", "DEF")  # type: ignore[no-untyped-call]
_library.define("leave(Tensor x, Tensor(a!) buffer, Tensor clock, int gate=1) -> ()")


def _leave(x: torch.Tensor, buffer: torch.Tensor, clock: torch.Tensor, gate: int = OPEN) -> None:
    """Copy the rows of `x` (..., w) that matter into `buffer` (r + 1, w), and stamp its last row."""
    if clock.device.type == "cpu" and not (clock[OPEN].item() and clock[gate].item()):
        return
    rows = _rows(x, buffer.shape[0] - 1)
    if rows is None or rows.shape[-1] != buffer.shape[1]:
        return
    put(rows, buffer, clock, (clock[OPEN] * clock[gate]) == _OPEN)


def put(
    rows: torch.Tensor,
    buffer: torch.Tensor,
    clock: torch.Tensor,
    is_open: torch.Tensor,
    told: torch.Tensor | None = None,
) -> None:
    """Write `rows` (n, w) and the stamp. Elsewhere than on the CPU, where `is_open` was asked before, the
    device decides: to ask it would wait for it, and cannot be captured.

    Parameters
    ----------
    told : how many of the rows count, where only the device knows it.
    """
    count = rows.shape[0]
    tail = torch.stack([clock[STAMP], torch.full_like(clock[STAMP], count) if told is None else told])
    if buffer.device.type == "cpu":
        buffer[:count].copy_(rows)
        buffer[-1, :2].copy_(tail)
        buffer[-1, 2] += 1
        return
    buffer[:count].copy_(torch.where(is_open, rows.to(buffer.dtype), buffer[:count]))
    buffer[-1, :2].copy_(torch.where(is_open, tail, buffer[-1, :2]))
    buffer[-1, 2] += is_open


def _rows(x: torch.Tensor, most: int) -> torch.Tensor | None:
    flat = x.reshape(-1, x.shape[-1])
    if flat.shape[0] <= most:
        return flat
    return x[:, -1] if x.dim() == 3 and x.shape[0] <= most else None


def _traced(x: torch.Tensor, buffer: torch.Tensor, clock: torch.Tensor, gate: int = OPEN) -> None:
    """Nothing is returned, so there is nothing to say of its shape."""


_library.impl("leave", _leave, "CompositeExplicitAutograd")
_library.impl("leave", _traced, "Meta")


def leave(tensor: torch.Tensor, place: Place, gate: int = OPEN) -> None:
    """In a graph that is traced: have `tensor` copied to `place`. Anything but plain code would break it.

    A graph that is exported goes elsewhere, where there is no agent: it gets nothing of ours.
    """
    if not is_exporting():
        torch.ops.fulgurite.leave(tensor.detach(), place.buffer, place.clock, gate)


@dataclass(frozen=True, slots=True, eq=False)
class Place:
    """What a probe writes to while a graph is traced.

    Attributes
    ----------
    buffer : Tensor of float32, shape (r + 1, w); the last row holds the stamp, the number of rows, and
        how often it was written.
    clock : Tensor of float32, shape (4,), the number of the pass, the gates, and whose turn it is.
    """

    buffer: torch.Tensor
    clock: torch.Tensor

    @property
    def written(self) -> int:
        """How often graphs wrote it: asks the device."""
        return int(self.buffer[-1, 2])

    def read(self, batch: int, width: int, keep: int) -> torch.Tensor | None:
        """The last `keep` positions of each row, (batch, keep, w); None where they were not left."""
        if batch * width <= ROWS:
            return self.buffer[: batch * width].view(batch, width, -1)[:, -keep:]
        return self.buffer[:batch].view(batch, 1, -1) if keep == 1 and batch <= ROWS else None


class Shelf:
    """The places of one model, and the number of the pass that runs (`stamp`)."""

    def __init__(self) -> None:
        self._places: dict[tuple[int, str], Place] = {}
        self._clocks: dict[torch.device, torch.Tensor] = {}
        self._lock = threading.Lock()
        self.stamp = 0
        self._is_open = True
        self._deep, self._turn = True, EVERY
        self.is_used = False

    def place(self, key: tuple[int, str], width: int, device: torch.device) -> Place | None:
        """The place named `key`, made where there is none."""
        if width < 3 or device.type == "meta":
            return None
        with self._lock:
            found = self._places.get(key)
            if found is None or found.buffer.device != device or found.buffer.shape[1] != width:
                found = self._places[key] = self._made(width, device)
            return found

    def _made(self, width: int, device: torch.device) -> Place:
        with torch.inference_mode(False):
            if device not in self._clocks:
                self._clocks[device] = _fixed(torch.tensor([0.0, _OPEN, _OPEN, EVERY], device=device))
            buffer = _fixed(torch.zeros(ROWS + 1, width, device=device))
            buffer[-1, 0] = -1.0
        return Place(buffer, self._clocks[device])

    def find(self, key: tuple[int, str]) -> Place | None:
        """The place named `key`, None where there is none."""
        return self._places.get(key)

    def retain(self, keys: Iterable[tuple[int, str]]) -> None:
        """Forget every other place."""
        wanted = set(keys)
        with self._lock:
            self._places = {key: place for key, place in self._places.items() if key in wanted}

    @property
    def nbytes(self) -> int:
        """Memory of all places."""
        return sum(place.buffer.nbytes for place in tuple(self._places.values()))

    def tick(self, *, deep: bool = False, turn: int = NOBODY) -> None:
        """The next pass is another one.

        Parameters
        ----------
        deep : it is looked at deeply.
        turn : the layer whose attention is looked at, or `EVERY` or `NOBODY`.
        """
        if self.is_used:
            self.stamp = (self.stamp + 1) % _STAMPS
            self._deep, self._turn = deep, turn
            self._tell()

    def gate(self, is_open: bool) -> None:
        """Let graphs leave something, or not."""
        if is_open != self._is_open:
            self._is_open = is_open
            self._tell()

    def _tell(self) -> None:
        gates = (_OPEN if is_open else _SHUT for is_open in (self._is_open, self._deep))
        now = torch.tensor([float(self.stamp), *gates, float(self._turn)])
        for clock in self._clocks.values():
            clock.copy_(now)

    def alive(self, places: Sequence[Place], batch: int, width: int) -> torch.Tensor:
        """Whether all of these were written in this pass, by one of this shape: a tensor of one
        float32."""
        return self.alive_each(places, batch, width).all().float().reshape(1)

    def alive_each(self, places: Sequence[Place], batch: int, width: int) -> torch.Tensor:
        """As `alive`, of each place: bool, (places,)."""
        rows = batch * width if batch * width <= ROWS else batch
        first = places[0].buffer.device
        tails = torch.stack([place.buffer[-1, :2].to(first) for place in places])
        wanted = torch.tensor([float(self.stamp), float(rows)], device=first)
        return (tails == wanted).all(-1)


def _fixed(tensor: torch.Tensor) -> torch.Tensor:
    """Mark the address as one that stays, so that captured graphs take the tensor as it is."""
    tensor._dynamo_static_input_type = "unguarded"  # type: ignore[attr-defined]  # what torch's own marker does
    return tensor
