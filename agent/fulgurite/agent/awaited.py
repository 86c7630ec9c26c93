"""What rests on rows of the unembedding that other processes hold: contributions and lens of one step.

The host's thread copies what they are made of, with the rows that this process has, and goes on. Whoever
reads the block asks the other ranks for the rest of the rows, and does the arithmetic.

Shape letters: n rows of the step, L layers, K candidates, d residual width.
"""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from fulgurite.agent import lens
from fulgurite.agent.contribution import Attribution
from fulgurite.agent.rank_rows import RowShare
from fulgurite.agent.readout import Readout
from fulgurite.agent.shield import Shield
from fulgurite.agent.weights import Unreadable, version_of

Array = np.ndarray[Any, Any]
MOST_WAITING = 64  # steps that wait for what other processes hold
MOST_WAITING_BYTES = 32 << 20  # of all of them
Exchange = Callable[[int, RowShare, int], RowShare | None]  # step, own rows, vocabulary


class Awaited:
    """Of one step.

    Parameters
    ----------
    attribution : None where contributions are not told.
    readout : of which this process has a part.
    stacked : Tensor of float32, shape (slots, n, d), one per slot of the plan
    heads : by layer, the projection's input, n * H * D items; copied.
    measured : as `Attribution.measured` gave it.
    streams : Tensor of float32, shape (L, n, d), what each layer left; None where there is no lens.
    ids : Tensor of int64, shape (n, 1 + K), the emitted token and the candidates.
    step : number of the step, the same in all ranks.
    exchange : gives all rows for this rank's, or None.
    """

    def __init__(
        self,
        attribution: Attribution | None,
        readout: Readout,
        *,
        stacked: torch.Tensor,
        heads: Mapping[int, torch.Tensor],
        measured: tuple[torch.Tensor, ...],
        streams: torch.Tensor | None,
        ids: torch.Tensor,
        step: int,
        exchange: Exchange,
        shield: Shield,
    ) -> None:
        matrices = _matrices(attribution)
        self._attribution = attribution = attribution if matrices is not None else None
        self._matrices = matrices or {}
        self._versions = self._written()
        self._readout = readout
        self._stacked = stacked
        self._heads = {layer: kept.clone() for layer, kept in heads.items()} if attribution else {}
        self._measured = measured
        self._streams = streams
        self._step = step
        self._exchange = exchange
        self._shield = shield
        self._ids = ids.shape
        self._held, self._rows, self._biases = readout.part_of(ids)
        self._lock = threading.Lock()
        self._told: dict[str, Array] | None = None

    @property
    def nbytes(self) -> int:
        """What is held."""
        kept = (self._stacked, self._rows, *self._heads.values(), *self._measured)
        return sum(tensor.nbytes for tensor in kept) + (0 if self._streams is None else self._streams.nbytes)

    def columns(self) -> dict[str, Array]:
        """The channels, rows first; nothing where rows are missing, or weights changed since."""
        with self._lock:
            if self._told is None:
                self._told = {}
                with self._shield.at("ranks"):
                    self._told = self._columns()
                self._heads, self._matrices, self._measured, self._streams = {}, {}, (), None
            return self._told

    @torch.no_grad()
    def _columns(self) -> dict[str, Array]:
        whole = self._exchange(self._step, self._share(), self._readout.vocabulary)
        if whole is None:
            return {}
        readout = self._readout.of_rows(whole, self._stacked.device)
        each = whole.rows.shape[1]
        places = torch.arange(self._ids[0] * each, device=self._stacked.device).view(-1, each)
        found: dict[str, Array] = {}
        if self._streams is not None and each == self._ids[1]:
            looked = lens.look(readout, self._streams, places[:, 1:])
            found.update(lens.columns({name: tensor.cpu().numpy() for name, tensor in looked.items()}))
        if self._attribution is not None:
            attribution = self._attribution.through(readout, self._matrices)
            told = attribution.told(self._stacked, self._heads, places[:, 0], *self._measured)
            if self._written() == self._versions:
                found.update({name: tensor.float().cpu().numpy() for name, tensor in told.items()})
        return found

    def _written(self) -> list[int]:
        """How often somebody wrote to each of the matrices."""
        return [version_of(matrix) for matrix in self._matrices.values()]

    def _share(self) -> RowShare:
        readout = self._readout
        return RowShare(
            self._rows.cpu().numpy(),
            self._biases.cpu().numpy(),
            self._held.cpu().numpy(),
            readout.total,
            np.array([readout.bias_total]),
            readout.weight.shape[0],
        )


class Waiting:
    """What waits to be read by somebody, of one model: it is bounded."""

    def __init__(self) -> None:
        self._held: deque[weakref.ref[Awaited]] = deque(maxlen=MOST_WAITING)

    def has_room(self, nbytes: int) -> bool:
        """Whether one more of about `nbytes` may wait."""
        held, most = self._held, min(MOST_WAITING, MOST_WAITING_BYTES // max(1, nbytes))
        return len(held) < most or (most > 0 and held[-most]() is None)

    def add(self, awaited: Awaited) -> None:
        """One more waits."""
        self._held.append(weakref.ref(awaited))


def _matrices(attribution: Attribution | None) -> dict[int, torch.Tensor] | None:
    """None where contributions are not told, or can no longer be: the wiring is then soon found anew."""
    if attribution is None:
        return None
    try:
        return attribution.matrices()
    except Unreadable:
        return None
