"""Frames and requests as Arrow tables: one schema for every model, so that files of different ones stack."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any, Final

import numpy as np
import pyarrow as pa

from fulgurite.cli.export.stream import Part
from fulgurite.telemetry.requests import RequestRecord
from fulgurite.wire.channels import BY_NAME, CHANNELS, LEVELS, PHASES, Channel
from fulgurite.wire.frame import FrameBlock

Array = np.ndarray[Any, Any]

PLACE: Final = (
    ("replica", pa.string()),
    ("model", pa.string()),
    ("epoch_ms", pa.int64()),
    ("stream_sequence", pa.int64()),
    ("request_id", pa.string()),
    ("trace_id", pa.string()),
    ("span_id", pa.string()),
    ("token_text", pa.string()),
)
WORDS: Final = {"phase": PHASES, "level": LEVELS}
_TYPES: Final = {"f4": pa.float32(), "f2": pa.float32(), "i8": pa.int64(), "i4": pa.int32(), "i2": pa.int16(),
                 "u2": pa.int32(), "u1": pa.int16()}  # fmt: skip
_KEPT: Final = tuple(channel for channel in CHANNELS if channel.name != "request_index")


def _type(channel: Channel) -> pa.DataType:
    if channel.name in WORDS:
        return pa.string()
    kind = _TYPES[channel.exact]
    for _ in channel.dims:
        kind = pa.list_(kind)
    return kind


@cache
def frame_schema() -> pa.Schema:
    """A row per token. Fields carry unit and formula, those of arrays the letters of their axes."""
    fields = [pa.field(name, kind) for name, kind in PLACE]
    for channel in _KEPT:
        told = {"unit": channel.unit, "formula": channel.formula, "axes": " ".join(channel.dims)}
        fields.append(pa.field(channel.name, _type(channel), metadata=told))
    return pa.schema(fields, metadata={"fulgurite.rows": "tokens"})


def frame_table(part: Part) -> pa.Table:
    """The frames of a batch, in stream order. A channel that was not captured is null; undefined is NaN."""
    sequence = part.batch.first_sequence
    tables = []
    for block in part.batch.blocks:
        tables.append(_block_table(part, block, sequence))
        sequence += len(block)
    return pa.concat_tables(tables) if tables else frame_schema().empty_table()


def _block_table(part: Part, block: FrameBlock, first: int) -> pa.Table:
    count = len(block)
    refs = [block.requests[index] for index in block.columns["request_index"].tolist()]
    columns: list[Any] = [
        pa.array([part.replica] * count),
        pa.array([part.model] * count),
        pa.array(np.full(count, part.batch.epoch_ms, np.int64)),
        pa.array(first + np.arange(count, dtype=np.int64)),
        pa.array([ref.request_id for ref in refs]),
        pa.array([ref.trace_id or None for ref in refs], pa.string()),
        pa.array([ref.span_id or None for ref in refs], pa.string()),
        pa.array(list(block.texts) if block.texts is not None else [None] * count, pa.string()),
    ]
    columns += [_column(block, channel) for channel in _KEPT]
    return pa.Table.from_arrays(columns, schema=frame_schema())


def _column(block: FrameBlock, channel: Channel) -> Any:
    values = block.columns.get(channel.name)
    if values is None:
        return pa.nulls(len(block), _type(channel))
    words = WORDS.get(channel.name)
    if words is not None:
        return pa.array([words[index] for index in values.tolist()])
    if channel.name in ("token_id",):
        return pa.array(np.asarray(values, np.int32), mask=np.asarray(values) < 0)  # -1: not switched on
    return _nested(np.ascontiguousarray(values), _TYPES[channel.exact])


def _nested(values: Array, kind: pa.DataType) -> Any:
    """An array of any shape as lists of lists, without a copy per item."""
    made: Any = pa.array(values.reshape(-1).astype(kind.to_pandas_dtype(), copy=False))
    size = values.size
    for width in reversed(values.shape[1:]):
        rows = size // width if width else 0
        offsets = np.arange(rows + 1, dtype=np.int32) * width
        made = pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), made)
        size = rows
    return made


REQUEST_SCHEMA: Final = pa.schema(
    [
        ("replica", pa.string()),
        ("model", pa.string()),
        ("request_id", pa.string()),
        ("trace_id", pa.string()),
        ("outcome", pa.string()),
        ("reason", pa.string()),
        ("started_ns", pa.int64()),
        ("ended_ns", pa.int64()),
        ("duration_s", pa.float64()),
        ("first_token_s", pa.float64()),
        ("prompt_tokens", pa.int32()),
        ("output_tokens", pa.int32()),
        ("sequences", pa.int32()),
        ("mean_logprob", pa.float64()),
        ("mean_entropy", pa.float64()),
        ("mean_head_write_max", pa.float64()),
        ("mean_ffn_write", pa.float64()),
    ],
    metadata={"fulgurite.rows": "requests"},
)


def request_table(records: Sequence[tuple[RequestRecord, str]]) -> pa.Table:
    """A row per request that ended."""
    rows = [request_row(record, model) for record, model in records]
    return pa.Table.from_pylist(rows, schema=REQUEST_SCHEMA)


def request_row(record: RequestRecord, model: str) -> dict[str, Any]:
    """The figures of one request; None where nothing was measured."""
    return {
        "replica": record.replica,
        "model": model,
        "request_id": record.request_id,
        "trace_id": record.trace_id or None,
        "outcome": record.outcome,
        "reason": record.reason or None,
        "started_ns": record.started_ns,
        "ended_ns": record.ended_ns,
        "duration_s": record.duration_s,
        "first_token_s": record.first_token_s,
        "prompt_tokens": record.prompt_tokens,
        "output_tokens": record.output_tokens,
        "sequences": record.sequences,
        "mean_logprob": _mean(record, "logprob"),
        "mean_entropy": _mean(record, "entropy"),
        "mean_head_write_max": _mean(record, "head_write_max"),
        "mean_ffn_write": _mean(record, "ffn_write_mean"),
    }


def _mean(record: RequestRecord, name: str) -> float | None:
    values = record.columns.get(name)
    if values is None or not np.isfinite(values).any():
        return None
    return float(values[np.isfinite(values)].mean())


assert all(name in BY_NAME for name in WORDS)
