"""Sketches to bytes and back. What a peer sends is checked against the bytes that came before it is believed.

Errors here are `ValueError`; `fulgurite.wire.codec` makes them its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import prod
from typing import Any, Final

import numpy as np

from fulgurite.v1 import frame_pb2
from fulgurite.wire.frame import Array, RequestRef
from fulgurite.wire.sketch import BUCKETS, Moments, Sketch

MAX_SKETCHES: Final = 4096
MAX_SKETCH_COLUMNS: Final = 64
MAX_SKETCH_CELLS: Final = 1 << 20  # of all columns of a message together
MAX_NAME: Final = 64
MAX_COUNT: Final = 1 << 32
MAX_NS: Final = (1 << 63) - 1

_COUNT: Final = np.dtype("<u4")
_VALUE: Final = np.dtype("<f4")
_BUCKETS: Final[dict[int, np.dtype[Any]]] = {1: np.dtype("<u1"), 2: np.dtype("<u2"), 4: np.dtype("<u4")}
_MOST: Final = float(np.finfo(np.float32).max)


def sketch_to_pb(sketch: Sketch) -> frame_pb2.Sketch:
    """The wire form of a sketch, but for its request."""
    message = frame_pb2.Sketch(
        start_ns=sketch.start_ns,
        end_ns=sketch.end_ns,
        tokens=sketch.tokens,
        kv_tokens=sketch.kv_tokens,
        kv_bytes=sketch.kv_bytes,
        sequences=sketch.sequences,
    )
    message.columns.extend(columns_to_pb(sketch.columns.items()))
    return message


def columns_to_pb(columns: Iterable[tuple[str, Moments]]) -> list[frame_pb2.SketchColumn]:
    """The wire form of moments by name."""
    return [_column_to_pb(name, moments) for name, moments in columns]


def _column_to_pb(name: str, moments: Moments) -> frame_pb2.SketchColumn:
    first, buckets = moments.trimmed()
    size = _size_for(int(buckets.max(initial=0)))
    count = moments.count.astype(_COUNT)
    if len(count) > 1 and (count == count[0]).all():
        count = count[:1]
    return frame_pb2.SketchColumn(
        name=name,
        shape=moments.shape,
        count=count.tobytes(),
        mean=_values(moments.mean),
        squares=_values(moments.squares),
        buckets=buckets.astype(_BUCKETS[size]).tobytes(),
        first_bucket=first,
        bucket_bytes=size if buckets.size else 0,
    )


def _values(values: Array) -> bytes:
    return np.clip(values, -_MOST, _MOST).astype(_VALUE).tobytes()


def _size_for(largest: int) -> int:
    return 1 if largest < 1 << 8 else 2 if largest < 1 << 16 else 4


def check_sketches(sketches: Sequence[frame_pb2.Sketch]) -> None:
    """Hold every size against the bytes that came.

    Raises
    ------
    ValueError
        Where something does not fit.
    """
    if len(sketches) > MAX_SKETCHES:
        raise ValueError(f"{len(sketches)} sketches in one batch; at most {MAX_SKETCHES}")
    cells = 0
    for sketch in sketches:
        if max(sketch.tokens, sketch.sequences) > MAX_COUNT or sketch.kv_tokens > MAX_COUNT << 16:
            raise ValueError(f"a sketch of {sketch.tokens} tokens and {sketch.kv_tokens} cached ones")
        if max(sketch.start_ns, sketch.end_ns, sketch.kv_bytes) > MAX_NS:
            raise ValueError("a sketch of a time, or a size, that cannot be")
        cells += check_columns(sketch.columns)
        if cells > MAX_SKETCH_CELLS:
            raise ValueError(f"sketches of {cells} cells in one batch; at most {MAX_SKETCH_CELLS}")


def check_columns(columns: Sequence[frame_pb2.SketchColumn]) -> int:
    """As `check_sketches`, for the columns of one; how many cells they have."""
    if len(columns) > MAX_SKETCH_COLUMNS:
        raise ValueError(f"a sketch of {len(columns)} columns; at most {MAX_SKETCH_COLUMNS}")
    if len({column.name for column in columns}) != len(columns):
        raise ValueError("a sketch names a column twice")
    return sum(_checked_cells(column) for column in columns)


def _checked_cells(column: frame_pb2.SketchColumn) -> int:
    name, shape = column.name[:40], tuple(column.shape)
    if len(column.name) > MAX_NAME or len(shape) > 4:
        raise ValueError(f"a sketch's column {name!r} with a name or a shape that is too long")
    cells = prod(shape)
    if len(column.mean) != cells * 4 or len(column.squares) != cells * 4 or not cells:
        raise ValueError(f"sketch of {name}: {len(column.mean)} bytes of means for shape {shape}")
    if len(column.count) not in (4, cells * 4):
        raise ValueError(f"sketch of {name}: {len(column.count)} bytes of counts for shape {shape}")
    if column.buckets:
        size = column.bucket_bytes
        if size not in _BUCKETS or len(column.buckets) % (cells * size):
            raise ValueError(f"sketch of {name}: {len(column.buckets)} bytes of buckets for shape {shape}")
        if column.first_bucket + len(column.buckets) // (cells * size) > BUCKETS:
            raise ValueError(f"sketch of {name}: more than {BUCKETS} buckets")
    if not np.isfinite(np.frombuffer(column.mean, _VALUE)).all():
        raise ValueError(f"sketch of {name}: a mean that is no number")
    squares = np.frombuffer(column.squares, _VALUE)
    if not (np.isfinite(squares) & (squares >= 0)).all():
        raise ValueError(f"sketch of {name}: a negative sum of squares, or one that is no number")
    return cells


def sketch_from_pb(message: frame_pb2.Sketch, request: RequestRef | None) -> Sketch:
    """The sketch in a message that `check_sketches` let pass."""
    return Sketch(
        tokens=message.tokens,
        start_ns=message.start_ns,
        end_ns=message.end_ns,
        columns=columns_from_pb(message.columns),
        request=request,
        kv_tokens=message.kv_tokens,
        kv_bytes=message.kv_bytes,
        sequences=message.sequences,
    )


def columns_from_pb(columns: Iterable[frame_pb2.SketchColumn]) -> dict[str, Moments]:
    """Moments by name, from columns that `check_columns` let pass. To be merged from, not folded into."""
    return {column.name: _column_from_pb(column) for column in columns}


def _column_from_pb(column: frame_pb2.SketchColumn) -> Moments:
    moments = Moments(tuple(column.shape), bucketed=False)
    moments.count[:] = np.frombuffer(column.count, _COUNT)
    moments.mean[:] = np.frombuffer(column.mean, _VALUE)
    moments.squares[:] = np.frombuffer(column.squares, _VALUE)
    if column.buckets:
        buckets = np.frombuffer(column.buckets, _BUCKETS[column.bucket_bytes])
        moments.buckets = buckets.reshape(moments.cells, -1)
        moments.first_bucket = column.first_bucket
    return moments
