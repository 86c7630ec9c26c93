"""Where the layers of a running model leave the rows that matter, eager or compiled.

vLLM compiles with all guards dropped, adds to the residual stream in place, and replays captured graphs: a
reference that is kept in a hook is overwritten or was never taken. So a tap copies at once. All taps write
into one buffer of fixed address, one plane per tap, so that the reduction of a step needs no stacking. Each
plane is stamped with the number of the step: what was not written in this step is told from what is quiet.

In Python a tap calls `keep`. Where a graph is traced for the CPU it leaves plain operators in it (`trace`),
which the compiler makes a part of the loops around them: there what costs is a call, not the copy, and this
way there is none. For that each plane has its own storage, its own list of rows and its own stamp: what
shares nothing is not put off to the end of the graph, where all that is kept would stay alive until then.
Elsewhere, and for what is not kept in every step, it leaves the operator ``fulgurite_vllm::keep``, which on a
device copies every row of the plane, so that a captured graph holds the same kernels in each step.

Costs one small copy per tap and step, and `rows` rows of the model's number format per tap. A tap that is
handed two tensors may leave each of them in a plane of its own (`beside`).

Shape letters: t taps, r rows, w width of a tap.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from fulgurite.agent.neurons import told

Array = np.ndarray[Any, Any]

_MOST_PLANES = 1 << 14

_library: Any = torch.library.Library("fulgurite_vllm", "DEF")  # type: ignore[no-untyped-call]
_library.define("keep(Tensor x, Tensor? y, Tensor(a!) anchor, int plane) -> ()")


class Plane:
    """What one tap writes to.

    Attributes
    ----------
    number : what the operator knows it by.
    buffer : Tensor, shape (r, w), a part of its desk's.
    beside : where the second of two tensors is left; None: it is added to the first.
    sizes : of each column (w,) that is written with what the tap is handed: then the largest of them are
        told in place of the rows, in steps that are looked at deeply (`neurons.told`). Else None.
    turn : it is written only in deep steps in which it is this layer's turn; None: in each.
    rows, stamp : ndarray of int64, shapes (r,) and (1,)
        In host memory: the rows of this step, as graphs read them; the step in which it was written last, -1
        before the first.
    place : of its stamp among those of its desk.
    """

    __slots__ = ("_into", "beside", "buffer", "desk", "number", "place", "rows", "sizes", "stamp", "turn")

    def __init__(self, desk: Desk, buffer: torch.Tensor, *, rows: Array, stamps: Array, place: int) -> None:
        self.desk = desk
        self.buffer = buffer
        self.beside: Plane | None = None
        self.sizes: torch.Tensor | None = None
        self.turn: int | None = None
        self.rows = rows
        self.place = place
        self.stamp = stamps[place : place + 1]
        self._into = buffer[:0]
        self.number = len(_planes)
        _planes.append(self)

    def first(self, count: int) -> torch.Tensor:
        """Its first rows; the view of the step before, where there were as many."""
        if self._into.shape[0] != count:
            self._into = self.buffer[:count]
        return self._into


_planes: list[Plane] = []


class Desk:
    """The planes of one model.

    Parameters
    ----------
    most : rows of a plane.
    device, dtype : of the model's layers.

    Attributes
    ----------
    stamp : number of the step that runs.
    clock : int64 (1,), the same where graphs read it; -1 where none runs.
    count : rows of this step that are kept.
    own_ns : time spent in taps since it was last taken.
    errors : failures in taps, by kind. The host never sees them.
    """

    def __init__(self, most: int, device: torch.device, dtype: torch.dtype) -> None:
        self.most = most
        self.device, self.dtype = device, dtype
        self.stamp = 0
        self.count = 0
        self.own_ns = 0
        self.errors: Counter[str] = Counter()
        self._is_fixed = device.type != "cpu"
        with torch.inference_mode(False):
            self.anchor = torch.zeros(1, device=device)
            self._all = torch.zeros(most, dtype=torch.int64, device=device)
            self.clock = torch.full((1,), -1, dtype=torch.int64, device=device)
            self._counted = torch.arange(most)
        self._time = self.clock.numpy() if not self._is_fixed else np.empty(1, np.int64)
        self._rows: list[Array] = []
        self._stamps = np.full(_MOST_PLANES, -1, np.int64)
        self._taken = 0
        self._in_order = 0  # so many of the rows that graphs read are the first ones, in order
        self._chosen = self._all[:0]
        self._is_every = False  # the rows that matter are the first ones, in order
        self._is_open = self._is_deep = False
        self._turn: frozenset[int] = frozenset()
        self._marks: torch.Tensor | None = None
        self._blocks: list[torch.Tensor] = []

    def planes(
        self, taps: int, width: int, dtype: torch.dtype | None = None
    ) -> tuple[torch.Tensor, list[Plane]]:
        """A buffer (t, r, w) and its planes; in the model's number format where none is named."""
        with torch.inference_mode(False):
            buffer = torch.zeros(taps, self.most, width, dtype=dtype or self.dtype, device=self.device)
            each = [buffer[i] if self._is_fixed else _apart(buffer[i]) for i in range(taps)]
        self._blocks.append(buffer)
        rows = np.zeros((taps, 0 if self._is_fixed else self.most), np.int64)
        self._rows.append(rows)
        self._in_order = 0
        first, self._taken = self._taken, self._taken + taps
        if self._taken > _MOST_PLANES:
            raise ValueError(f"a desk has {_MOST_PLANES} planes at most")
        return buffer, [
            Plane(self, one, rows=rows[i], stamps=self._stamps, place=first + i) for i, one in enumerate(each)
        ]

    @property
    def nbytes(self) -> int:
        """Memory of all planes."""
        return sum(block.nbytes for block in self._blocks) + sum(rows.nbytes for rows in self._rows)

    def open(self, rows: torch.Tensor, *, deep: bool = False, turn: frozenset[int] = frozenset()) -> int:
        """A step begins whose `rows` (int64, of the flat run of tokens) matter; how many of them are kept.

        Parameters
        ----------
        deep : it is looked at deeply.
        turn : the layers whose attention is looked at.
        """
        self.stamp += 1
        self.count = min(int(rows.shape[0]), self.most)
        self._chosen = rows[: self.count].to(self.device, torch.int64)
        if self._is_fixed:
            self._all[: self.count].copy_(self._chosen)
            self.clock.fill_(self.stamp)
        else:
            self._is_every = torch.equal(self._chosen, self._counted[: self.count])
            self._tell_graphs()
        self._is_open, self._is_deep, self._turn = self.count > 0, deep, turn
        return self.count

    def _tell_graphs(self) -> None:
        """Which rows matter. Most steps give one token of each request, and then they are those of before."""
        count = self.count
        if not self._is_every or self._in_order < count:
            chosen = self._chosen.numpy()
            for rows in self._rows:
                rows[:, :count] = chosen
            self._in_order = count if self._is_every else 0
        self._time[0] = self.stamp if count else -1

    def shut(self) -> None:
        """The step is over: nothing is kept until the next one."""
        self._is_open = False
        self._time[0] = -1  # a graph that runs all the same says so

    def keep(self, plane: Plane, x: torch.Tensor, y: torch.Tensor | None) -> None:
        """Copy the rows of `x` that matter; those of `y` are added, or left beside them."""
        if not self._is_open or (plane.turn is not None and plane.turn not in self._turn):
            return
        started = time.perf_counter_ns()
        copy = self._keep_all if self._is_fixed else self._keep_some
        try:
            if plane.sizes is not None:
                self._tell(plane, plane.sizes, x)
            elif y is None or plane.beside is None:
                copy(plane, x, y)
            else:
                copy(plane, x, None)
                copy(plane.beside, y, None)
        except Exception as error:  # in the middle of somebody else's forward pass
            self.errors[f"tap:{type(error).__name__}"] += 1
        self.own_ns += time.perf_counter_ns() - started

    def _keep_some(self, plane: Plane, x: torch.Tensor, y: torch.Tensor | None) -> None:
        into = plane.first(self.count)
        if self._is_every and x.shape == into.shape:
            if y is None:
                into.copy_(x)
            else:
                torch.add(x, y, out=into)
        else:
            self._select(into, x, y)
        plane.stamp[0] = self.stamp

    def _tell(self, plane: Plane, sizes: torch.Tensor, x: torch.Tensor) -> None:
        """The largest of what is written with `x`. A captured graph does it in each step."""
        if self._is_fixed:
            plane.buffer.copy_(told(x.index_select(0, self._all.clamp(max=x.shape[0] - 1)), sizes))
            self._mark(plane.number).copy_(self.clock)
        elif self._is_deep:
            plane.first(self.count).copy_(told(x.index_select(0, self._chosen), sizes))
            plane.stamp[0] = self.stamp

    def _select(self, into: torch.Tensor, x: torch.Tensor, y: torch.Tensor | None) -> None:
        if x.shape[-1] != into.shape[-1]:  # `out=` would let it grow
            raise ValueError(f"a tap of width {into.shape[-1]} was handed {x.shape[-1]}")
        if x.dtype == into.dtype:
            torch.index_select(x, 0, self._chosen, out=into)
        else:
            into.copy_(x.index_select(0, self._chosen))
        if y is not None:
            into += y.index_select(0, self._chosen)

    def _keep_all(self, plane: Plane, x: torch.Tensor, y: torch.Tensor | None) -> None:
        rows = self._all.clamp(max=x.shape[0] - 1)
        found = x.index_select(0, rows)
        plane.buffer.copy_(found if y is None else found + y.index_select(0, rows))
        self._mark(plane.number).copy_(self.clock)

    def _mark(self, number: int) -> torch.Tensor:
        if self._marks is None:
            self._marks = torch.full((_MOST_PLANES,), -1, dtype=torch.int64, device=self.device)
        return self._marks[number : number + 1]

    def is_written(self, planes: Sequence[Plane]) -> bool:
        """Whether all of these were written in this step."""
        return self.watched(planes)()

    def watched(self, planes: Sequence[Plane]) -> Callable[[], bool]:
        """What tells, step after step, whether all of these were written."""
        places = np.array([plane.place for plane in planes])
        numbers = torch.tensor([plane.number for plane in planes], device=self.device)

        def are_written() -> bool:
            if not self._is_fixed:
                return bool((self._stamps[places] == self.stamp).all())
            return self._marks is not None and bool((self._marks[numbers] == self.stamp).all())

        return are_written

    def take_ns(self) -> int:
        """Time spent in taps since this was asked last."""
        spent, self.own_ns = self.own_ns, 0
        return spent


def _keep(x: torch.Tensor, y: torch.Tensor | None, anchor: torch.Tensor, plane: int) -> None:  # noqa: ARG001
    found = _planes[plane]
    found.desk.keep(found, x, y)


def _traced(x: torch.Tensor, y: torch.Tensor | None, anchor: torch.Tensor, plane: int) -> None:
    """Nothing is returned, so there is nothing to say of its shape."""


_library.impl("keep", _keep, "CompositeExplicitAutograd")
_library.impl("keep", _traced, "Meta")


def leave(x: torch.Tensor, y: torch.Tensor | None, anchor: torch.Tensor, plane: int) -> None:
    """In a graph that is traced: have the rows of `x` kept whenever it runs."""
    torch.ops.fulgurite_vllm.keep(x, y, anchor, plane)


Traced = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""Of a plane in host memory, what graphs read and write: buffer, rows and stamp."""


def traced(plane: Plane) -> tuple[Traced, ...]:
    """Where a graph for the CPU leaves what a tap at `plane` is handed: one place for all of it, or one for
    each of two tensors; none where the operator is to do it."""
    if plane.desk.device.type != "cpu" or plane.sizes is not None or plane.turn is not None:
        return ()
    with torch.inference_mode(False):
        return tuple(
            (one.buffer, torch.from_numpy(one.rows), torch.from_numpy(one.stamp))
            for one in (plane, plane.beside)
            if one is not None
        )


def trace(x: torch.Tensor, y: torch.Tensor | None, into: tuple[Traced, ...], clock: torch.Tensor) -> None:
    """In a graph that is traced for the CPU: as `leave`. Nothing here may fail, since the host's graph
    would."""
    if y is None or len(into) == 1:
        _place(x, y, into[0], clock)
    else:
        _place(x, None, into[0], clock)
        _place(y, None, into[1], clock)


def _place(x: torch.Tensor, y: torch.Tensor | None, into: Traced, clock: torch.Tensor) -> None:
    buffer, rows, stamp = into
    if x.dim() != 2 or x.shape[1] != buffer.shape[1]:
        return
    count = torch.sym_min(x.shape[0], buffer.shape[0])  # type: ignore[no-untyped-call]
    chosen = rows[:count].clamp(max=x.shape[0] - 1)  # of passes that nobody opened, they are of another one
    found = x.index_select(0, chosen)
    buffer[:count].copy_(found if y is None else found + y.index_select(0, chosen))
    stamp.copy_(clock)


def _apart(plane: torch.Tensor) -> torch.Tensor:
    """The same memory under a storage of its own: a graph that writes into parts of one storage copies all
    of it."""
    return torch.from_numpy(plane.view(torch.uint8).numpy()).view(plane.dtype)
