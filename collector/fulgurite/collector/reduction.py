"""A batch with what one viewer wants of it: some requests, channels, layers, so many frames a second. Pure.

Columns are cut as bytes, so what is left is exactly what the agent wrote. What is left out is counted.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from math import prod
from typing import Any, Final

import numpy as np

from fulgurite.v1 import frame_pb2
from fulgurite.wire.channels import BY_NAME
from fulgurite.wire.codec import once_if_same

ALWAYS: Final = frozenset(
    {"request_index", "sequence", "position", "token_id", "phase", "level", "step", "parent_row",
     "started_ns", "ended_ns", "batch_size"}
)  # fmt: skip
"""Who and when: no frame is without them."""
_REMEMBERED: Final = 4096
_FILLS: Final = {
    "f4": np.array(np.nan, "<f4").tobytes(),
    "f2": np.array(np.nan, "<f2").tobytes(),
    "log8": b"\xff",
    "u1": b"\x00",
    "u2": b"\x00\x00",
    "i2": b"\xff" * 2,
    "i4": b"\xff" * 4,
    "i8": b"\xff" * 8,
}

Bytes = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class Wanted:
    """What of a batch is wanted; nothing said: all.

    Attributes
    ----------
    trace_id : 16 bytes, or empty.
    frames_per_s : of one replica; 0: all.
    """

    request_id: str = ""
    trace_id: bytes = b""
    frames_per_s: float = 0.0
    channels: frozenset[str] = frozenset()
    layers: frozenset[int] = frozenset()

    @property
    def is_all(self) -> bool:
        """Whether batches go as they are."""
        return self == Wanted()


@dataclass(slots=True)
class Reducer:
    """Cuts the batches of one replica's stream for one viewer, in order."""

    wanted: Wanted
    _slot: tuple[int, int] = (0, -1)  # epoch, and the last interval of which a frame was sent
    _requests: dict[str, None] = field(default_factory=dict)  # of the trace that is wanted

    def reduce(self, data: bytes, schema: frame_pb2.Schema) -> tuple[bytes, int]:
        """What is left of a batch that was stored, empty for nothing; and how many frames were left out."""
        batch = frame_pb2.Batch.FromString(data)
        chosen = [self._is_wanted(request) for request in batch.requests]
        kept: list[frame_pb2.Block] = []
        for block in batch.blocks:
            if (cut := self._block(block, schema, chosen, batch.epoch_ms)) is not None:
                kept.append(cut)
        count = sum(block.count for block in kept)
        left_out = batch.count - count
        events = [event for event in batch.events if self._has(event.request_id)]
        sketches = [sketch for sketch in batch.sketches if self._has_sketch(sketch)]
        if not count and not events and not sketches and not batch.scales:
            return b"", left_out
        _renumber(batch, kept, schema)
        del batch.blocks[:], batch.events[:], batch.sketches[:]
        batch.blocks.extend(kept)
        batch.events.extend(events)
        batch.sketches.extend(sketches)
        batch.count = count
        return batch.SerializeToString(), left_out

    def _is_wanted(self, request: frame_pb2.RequestRef) -> bool:
        wanted = self.wanted
        fits = (not wanted.request_id or request.request_id == wanted.request_id) and (
            not wanted.trace_id or request.trace_id == wanted.trace_id
        )
        if fits and wanted.trace_id:
            self._requests[request.request_id] = None
            if len(self._requests) > _REMEMBERED:
                del self._requests[next(iter(self._requests))]
        return fits

    def _has(self, request_id: str) -> bool:
        if self.wanted.request_id and request_id != self.wanted.request_id:
            return False
        return not self.wanted.trace_id or request_id in self._requests

    def _has_sketch(self, sketch: frame_pb2.Sketch) -> bool:
        if sketch.HasField("request"):
            return self._is_wanted(sketch.request)
        return not (self.wanted.request_id or self.wanted.trace_id)

    def _block(
        self, block: frame_pb2.Block, schema: frame_pb2.Schema, chosen: list[bool], epoch_ms: int
    ) -> frame_pb2.Block | None:
        names = [schema.columns[i].name for i in block.column_index]
        rows = np.array(chosen, bool)[_numbers(block, names.index("request_index"), "<u2")]
        if self.wanted.frames_per_s:
            rows &= self._in_time(_numbers(block, names.index("ended_ns"), "<i8"), rows, epoch_ms)
        if not rows.any():
            return None
        return self._columns(block, schema, None if rows.all() else rows)

    def _in_time(self, ended_ns: Bytes, rows: Bytes, epoch_ms: int) -> Bytes:
        """The newest of each interval that none was sent of."""
        slots = (ended_ns * (self.wanted.frames_per_s / 1e9)).astype(np.int64)
        epoch, last = self._slot
        fits = rows & (slots > last) if epoch == epoch_ms else rows.copy()
        newest = np.zeros(len(slots), bool)
        where = np.flatnonzero(fits)
        if len(where):
            _, from_the_end = np.unique(slots[where][::-1], return_index=True)
            newest[where[::-1][from_the_end]] = True
            self._slot = (epoch_ms, int(slots[where].max()))
        return newest

    def _columns(
        self, block: frame_pb2.Block, schema: frame_pb2.Schema, rows: Bytes | None
    ) -> frame_pb2.Block:
        kept = frame_pb2.Block(count=block.count if rows is None else int(rows.sum()))
        log8 = iter(zip(block.log8_low, block.log8_high, strict=True))
        for index, data in zip(block.column_index, block.column_data, strict=True):
            spec = schema.columns[index]
            bounds = next(log8) if spec.encoding == "log8" else None
            if self.wanted.channels and spec.name not in self.wanted.channels | ALWAYS:
                continue
            kept.column_index.append(index)
            kept.column_data.append(self._cut(data, block.count, spec, rows))
            if bounds is not None:
                kept.log8_low.append(bounds[0])
                kept.log8_high.append(bounds[1])
        if block.token_texts:
            texts: Iterable[str] = block.token_texts
            flags = [True] * block.count if rows is None else rows.tolist()
            kept.token_texts.extend(text for text, flag in zip(texts, flags, strict=True) if flag)
        return kept

    def _cut(self, data: bytes, count: int, spec: frame_pb2.ColumnSpec, rows: Bytes | None) -> bytes:
        """Some rows of a column, and what is not wanted of its layers as if it had not been measured."""
        channel = BY_NAME.get(spec.name)
        masked = self.wanted.layers and channel is not None and channel.dims[:1] == ("L",)
        is_once = len(data) == len(_FILLS[spec.encoding])  # the same in all frames
        if is_once and not masked:
            return data
        table: Bytes = np.frombuffer(data, np.uint8).reshape(1 if is_once else count, -1)
        if is_once:
            table = np.tile(table, (count, 1))
        if rows is not None:
            table = table[rows]
        if masked:
            table = _masked(table, spec, self.wanted.layers)
        return table.tobytes()


def _masked(table: Bytes, spec: frame_pb2.ColumnSpec, layers: frozenset[int]) -> Bytes:
    fill = np.frombuffer(_FILLS[spec.encoding], np.uint8)
    items, size, count = prod(spec.shape), len(fill), len(table)
    if table.shape[1] == size:  # one item for all of a frame
        table = np.tile(table, (1, items))
    cells = table.reshape(count, spec.shape[0], items // spec.shape[0], size).copy()
    hidden = [layer for layer in range(spec.shape[0]) if layer not in layers]
    cells[:, hidden] = fill
    return cells.reshape(count, -1)


def _numbers(block: frame_pb2.Block, place: int, dtype: str) -> Bytes:
    """A column of one number per frame."""
    return np.broadcast_to(np.frombuffer(block.column_data[place], dtype), block.count)


def _renumber(batch: frame_pb2.Batch, blocks: list[frame_pb2.Block], schema: frame_pb2.Schema) -> None:
    """Keep the requests that the frames in `blocks` are of, and no others."""
    places = [[schema.columns[i].name for i in block.column_index].index("request_index") for block in blocks]
    columns = [_numbers(block, place, "<u2") for block, place in zip(blocks, places, strict=True)]
    used = np.unique(np.concatenate(columns)) if columns else np.zeros(0, np.int64)
    requests = [batch.requests[i] for i in used.tolist()]
    for block, place, column in zip(blocks, places, columns, strict=True):
        numbers = np.searchsorted(used, column).astype("<u2")
        block.column_data[place] = once_if_same(numbers.tobytes(), numbers.itemsize, block.count)
    copies = [frame_pb2.RequestRef.FromString(request.SerializeToString()) for request in requests]
    del batch.requests[:]
    batch.requests.extend(copies)
