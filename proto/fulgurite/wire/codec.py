"""Frames to columns of bytes and back: the only reader of generated code besides the ends of the RPCs.

A batch holds the frames of some steps as blocks, a block holds one run of bytes per channel, and the schema
(sent once, named in each batch by its hash) says which channel is which and how its bytes are written. Two
encodings:

``exact``
    float16 columns; float32 where `fulgurite.wire.channels` says so (signed contributions, their sums,
    norms). Values beyond ±65504 are clipped to it, NaN is kept. Relative error at most 2⁻¹¹, below 6.1e-5
    absolute 2⁻²⁵.
``compact``
    One byte on a logarithmic scale for the channels that `channels` marks ``log8``. Code 0 is zero, or too
    small for code 1; code 255 is NaN; codes 1…254 are log-spaced from `low` to `high`, the smallest and the
    largest positive value of that column in that block, with ``low >= 1e-6 * high``. The step between codes
    is (high/low)^(1/253), so a decoded value is off by at most (high/low)^(1/506) - 1, which is ≤ 10^(6/506)
    - 1 = 2.77 % relative; what is below `low` decodes as 0 or `low` and is off by less than 1e-6 * high.
    Infinite and negative values are not norms or masses and are written as NaN.

Three savings: consecutive blocks with the same channels become one; a column whose items are all equal within
each frame (the KV length of every layer) is written as one item per frame; and one that is the same in every
frame of the block (phase, level, what is not switched on) as a single item. When and where a frame was is
always written per frame, so that few bytes cannot stand for very many frames.

Decoding never trusts a peer: every count, index, size and shape is checked against the bytes that came and
against the caps below *before* anything is built from it, and what is repeated per frame stays a view.
Whatever is wrong is a `CodecError`.

Shape letters: n frames of a block; those of `channels` for the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from math import isfinite, log, log2, prod
from typing import TYPE_CHECKING, Any, Final, NoReturn

import numpy as np
from google.protobuf.message import DecodeError, Message

from fulgurite.v1 import agent_pb2, frame_pb2
from fulgurite.wire.channels import BY_NAME, CHANNELS, LEVELS, PHASES, Channel
from fulgurite.wire.frame import Array, FrameBatch, FrameBlock, RequestEvent, RequestRef, Scale
from fulgurite.wire.sketch_codec import check_sketches, sketch_from_pb, sketch_to_pb
from fulgurite.wire.topology import Topology

if TYPE_CHECKING:
    from numpy.typing import NDArray

PROTOCOL: Final = 1
ENCODINGS: Final = ("exact", "compact")

# What a peer may ask of us.
MAX_BATCH_BYTES: Final = 16 << 20
MAX_FRAMES: Final = 65_536  # per batch; request_index is u2
MAX_COLUMNS: Final = 256
MAX_ITEMS: Final = 1 << 22  # per frame and column
MAX_BLOCK_ITEMS: Final = 1 << 26  # per column of a block, as seen through the repeating views
MAX_EVENTS: Final = 65_536
MAX_SCALES: Final = 64
MAX_LAYERS: Final = 4096
MAX_HEADS: Final = 1024
MAX_EXPERTS: Final = 32_767  # expert_ids are i2
MAX_CELLS: Final = 1 << 19  # layers x heads, layers x experts per token; times TOP_K it is MAX_ITEMS
MAX_TEXT: Final = 1024  # characters of a name
MAX_SEQUENCE: Final = (1 << 63) - 1

F2_MAX: Final = 65504.0
LOG8_NAN: Final = 255
LOG8_STEPS: Final = 253
LOG8_RANGE: Final = 1e-6
_LOG2_RANGE: Final = log2(LOG8_RANGE)
_LOG2_TINY: Final = -126.0  # of the smallest normal float32: a denormal bound would be too coarse
_STEP: Final = np.arange(LOG8_STEPS + 1) / LOG8_STEPS
LOG8_MAX_RELATIVE_ERROR: Final = (1 / LOG8_RANGE) ** (0.5 / LOG8_STEPS) - 1

_REQUIRED: Final = (
    "request_index",
    "sequence",
    "position",
    "token_id",
    "phase",
    "level",
    "step",
    "started_ns",
    "ended_ns",
)
_PER_FRAME: Final = frozenset({"position", "step", "started_ns", "ended_ns"})
_DTYPES: Final[Mapping[str, np.dtype[Any]]] = {
    "f4": np.dtype("<f4"),
    "f2": np.dtype("<f2"),
    "i8": np.dtype("<i8"),
    "i4": np.dtype("<i4"),
    "i2": np.dtype("<i2"),
    "u2": np.dtype("<u2"),
    "u1": np.dtype("<u1"),
    "log8": np.dtype("<u1"),
}
_LIMITED: Final = frozenset({"request_index", "phase", "level"})
_FEW: Final = 4096  # items of a column that is copied together with others, since a call costs more
_MOST_LAYOUTS: Final = 64
_NOTHING: Final[Array] = np.zeros(0, np.float32)
_FLOATING: Final = frozenset({"f4", "f2", "log8"})
_UNSIGNED: Final[Mapping[int, np.dtype[Any]]] = {
    1: np.dtype("<u1"),
    2: np.dtype("<u2"),
    4: np.dtype("<u4"),
    8: np.dtype("<u8"),
}


class CodecError(ValueError):
    """Bytes, or a frame, that break the format. The message says which rule."""


def _refuse(message: str) -> NoReturn:
    raise CodecError(message)


def content_hash(message: Message) -> bytes:
    """The address of a message: 16 bytes of BLAKE2b over its deterministic serialisation."""
    import hashlib

    return hashlib.blake2b(message.SerializeToString(deterministic=True), digest_size=16).digest()


# --- the schema ---------------------------------------------------------------------------------------------


def schema_for(topology: Topology, encoding: str = "exact") -> frame_pb2.Schema:
    """Every column that frames of this model may have.

    Parameters
    ----------
    encoding : ``exact`` or ``compact``.

    Raises
    ------
    ValueError
        For another encoding.
    """
    if encoding not in ENCODINGS:
        raise ValueError(f"no such encoding: {encoding!r}; choose one of {', '.join(ENCODINGS)}")
    schema = frame_pb2.Schema(topology_hash=content_hash(topology_to_pb(topology)), encoding=encoding)
    for channel in CHANNELS:
        shape = channel.shape(topology)
        if prod(shape):  # a dense model has no expert columns
            written = channel.exact if encoding == "exact" else channel.compact
            schema.columns.add(name=channel.name, shape=shape, encoding=written, unit=channel.unit)
    return schema


def check_schema(schema: frame_pb2.Schema, topology: Topology) -> None:
    """Hold a peer's schema against its topology: same hash; layers, heads, experts as the model has them.

    Raises
    ------
    CodecError
        Where they disagree.
    """
    codec_for(schema)
    if schema.topology_hash != content_hash(topology_to_pb(topology)):
        _refuse("the schema belongs to another topology: their hashes differ")
    for spec in schema.columns:
        channel = BY_NAME.get(spec.name)
        if channel is None:
            continue
        for letter, got, want in zip(channel.dims, spec.shape, channel.shape(topology), strict=True):
            if letter in "LH2E" and got != want:
                _refuse(f"column {spec.name} has {got} where the topology has {want} ({letter})")


@dataclass(frozen=True, slots=True)
class _Column:
    """One column of the schema, checked."""

    name: str
    shape: tuple[int, ...]
    items: int
    encoding: str
    dtype: np.dtype[Any]
    known: bool  # this version has a channel of that name
    size: int  # bytes of an item
    nbytes: int  # of a frame
    is_per_frame: bool  # never written once for all frames

    @classmethod
    def of(cls, spec: frame_pb2.ColumnSpec) -> _Column:
        shape = tuple(spec.shape)
        if spec.encoding not in _DTYPES:
            _refuse(f"column {spec.name[:40]!r} is written as {spec.encoding[:20]!r}, not an encoding")
        if len(shape) > 4 or prod(shape) > MAX_ITEMS or prod(shape) < 1:
            _refuse(
                f"column {spec.name[:40]!r} has shape {shape[:5]}: 1 to {MAX_ITEMS} items in 4 dimensions"
            )
        channel = BY_NAME.get(spec.name)
        if channel is not None:
            _check_known(channel, shape, spec.encoding)
        dtype, items = _DTYPES[spec.encoding], prod(shape)
        return cls(
            name=spec.name,
            shape=shape,
            items=items,
            encoding=spec.encoding,
            dtype=dtype,
            known=channel is not None,
            size=dtype.itemsize,
            nbytes=items * dtype.itemsize,
            is_per_frame=spec.name in _PER_FRAME,
        )


@dataclass(frozen=True, slots=True)
class _Layout:
    """The columns that a block has, in the order of the schema: what need not be asked of each block anew."""

    indexes: tuple[int, ...]
    columns: tuple[_Column, ...]
    log8: int  # how many of them are written so
    foreign: tuple[str, ...]  # names that the schema has not

    @classmethod
    def of(
        cls, schema: tuple[_Column, ...], indexes: tuple[int, ...], foreign: tuple[str, ...] = ()
    ) -> _Layout:
        columns = tuple(schema[i] for i in indexes)
        return cls(indexes, columns, sum(column.encoding == "log8" for column in columns), foreign)


_Read = tuple[_Layout, list[bytes]]
"""What a block has, and its bytes, checked."""


def _check_known(channel: Channel, shape: tuple[int, ...], encoding: str) -> None:
    if len(shape) != len(channel.dims):
        _refuse(f"column {channel.name} has {len(shape)} dimensions, not {len(channel.dims)}")
    if (encoding in _FLOATING) != (channel.exact in _FLOATING):
        _refuse(
            f"column {channel.name} is written as {encoding}, which is of another kind than {channel.exact}"
        )
    if channel.name == "request_index" and encoding != "u2":
        _refuse("column request_index is not u2")


def codec_for(schema: frame_pb2.Schema) -> Codec:
    """The codec of a schema, kept for the next call.

    Raises
    ------
    CodecError
        For a schema that breaks the format.
    """
    return _codec_of_bytes(schema.SerializeToString(deterministic=True))


@lru_cache(maxsize=64)
def _codec_of_bytes(serialised: bytes) -> Codec:
    return Codec(frame_pb2.Schema.FromString(serialised))


class Codec:
    """Writes and reads the batches of one schema. Any thread may use it: it keeps how blocks look, no more.

    Parameters
    ----------
    schema : Schema
        Checked here.

    Raises
    ------
    CodecError
        For a schema that breaks the format.
    """

    def __init__(self, schema: frame_pb2.Schema) -> None:
        if len(schema.columns) > MAX_COLUMNS:
            _refuse(f"a schema of {len(schema.columns)} columns; at most {MAX_COLUMNS}")
        self.schema = schema
        self.schema_hash = content_hash(schema)
        self._columns = tuple(_Column.of(spec) for spec in schema.columns)
        self._index = {column.name: i for i, column in enumerate(self._columns)}
        if len(self._index) != len(self._columns):
            _refuse("a schema names a column twice")
        self._layouts_out: dict[tuple[str, ...], _Layout] = {}
        self._layouts_in: dict[tuple[int, ...], _Layout] = {}
        absent = [name for name in _REQUIRED if name not in self._index or self._at(name).items != 1]
        if absent:
            _refuse(f"a schema without the column {absent[0]}, or not one item per frame")

    def _at(self, name: str) -> _Column:
        return self._columns[self._index[name]]

    # --- writing

    def encode(self, batch: FrameBatch) -> frame_pb2.Batch:
        """The message for these frames.

        Raises
        ------
        CodecError
            Where a block lacks an identity column, has a shape that the schema has not, or a value that does
            not fit.
        """
        if len(batch) > MAX_FRAMES:
            _refuse(f"{len(batch)} frames in one batch; at most {MAX_FRAMES}")
        message = frame_pb2.Batch(
            epoch_ms=batch.epoch_ms,
            first_sequence=batch.first_sequence,
            count=len(batch),
            schema_hash=self.schema_hash,
            sent_ns=batch.sent_ns,
        )
        requests: dict[RequestRef, int] = {}
        for blocks in _alike(batch.blocks):
            self._write_block(message.blocks.add(), blocks, requests)
        message.requests.extend([_request_to_pb(request) for request in requests])
        message.events.extend(event_to_pb(event) for event in batch.events)
        message.scales.extend(scale_to_pb(scale) for scale in batch.scales)
        for sketch in batch.sketches:
            message.sketches.append(sketch_to_pb(sketch))
            if sketch.request is not None:
                message.sketches[-1].request.CopyFrom(_request_to_pb(sketch.request))
        return message

    def _write_block(
        self, message: frame_pb2.Block, blocks: list[FrameBlock], requests: dict[RequestRef, int]
    ) -> None:
        every = [block.columns for block in blocks]
        layout = self._writing(every[0])
        message.count = count = sum(map(len, blocks))
        data: list[bytes] = []
        lows, highs = [], []
        halves: list[tuple[int, Array]] = []  # those of few items are converted together
        for column in layout.columns:
            name = column.name
            if name == "request_index":
                values = _renumbered(blocks, requests)
            else:
                values = every[0][name] if len(every) == 1 else np.concatenate([one[name] for one in every])
            if values.shape != (count, *column.shape):
                _refuse(f"{name} has shape {values.shape}, not {(count, *column.shape)}")
            if values.dtype == column.dtype and column.encoding != "log8":
                data.append(_written(values.tobytes(), column, count))
            elif column.encoding == "log8":
                items, low, high = _to_log8(values)
                lows.append(low)
                highs.append(high)
                data.append(_written(items.tobytes(), column, count))
            elif column.encoding == "f2" and values.size <= _FEW:
                halves.append((len(data), values))
                data.append(b"")
            elif column.encoding == "f2":
                data.append(_written(_to_halves([values]), column, count))
            else:
                data.append(_written(_to_dtype(values, column).tobytes(), column, count))
        if halves:
            written = _to_halves([values for _, values in halves])
            at = 0
            for place, values in halves:
                end = at + 2 * values.size
                data[place] = _written(written[at:end], layout.columns[place], count)
                at = end
        message.column_index.extend(layout.indexes)
        message.column_data.extend(data)
        message.log8_low.extend(lows)
        message.log8_high.extend(highs)
        if blocks[0].texts is not None:
            message.token_texts.extend(_utf8(text) for block in blocks for text in block.texts or ())

    def _writing(self, values: Mapping[str, Array]) -> _Layout:
        """How blocks with these columns are written.

        Raises
        ------
        CodecError
            Where one is missing, or one has values for which the schema has no column.
        """
        names = tuple(values)
        layout = self._layouts_out.get(names)
        if layout is None:
            absent = [name for name in _REQUIRED if name not in values]
            if absent:
                _refuse(f"a block without the column {absent[0]}")
            indexes = tuple(sorted(self._index[name] for name in names if name in self._index))
            foreign = tuple(name for name in names if name not in self._index)
            layout = _Layout.of(self._columns, indexes, foreign)
            self._keep(self._layouts_out, names, layout)
        for name in layout.foreign:
            if values[name].size:
                _refuse(f"the schema has no column {name}: this model should not have it")
        return layout

    @staticmethod
    def _keep(layouts: dict[Any, _Layout], key: Any, layout: _Layout) -> None:
        """For the next block like it; bounded, since a peer chooses the key."""
        if len(layouts) >= _MOST_LAYOUTS:
            layouts.clear()
        layouts[key] = layout

    # --- reading

    def validate(self, batch: frame_pb2.Batch | bytes) -> frame_pb2.Batch:
        """Check every count, index and size of a batch without building its arrays.

        Returns
        -------
        Batch
            Parsed; `decode` of it cannot fail.

        Raises
        ------
        CodecError
            Where it breaks the format.
        """
        message = _parsed(batch)
        self._checked(message)
        return message

    def _checked(self, message: frame_pb2.Batch) -> list[_Read]:
        if message.schema_hash != self.schema_hash:
            _refuse("the batch was written for another schema: their hashes differ")
        if sum(block.count for block in message.blocks) != message.count:
            _refuse(f"the batch says {message.count} frames, its blocks say otherwise")
        if len(message.requests) > max(message.count, 1):
            _refuse(f"{len(message.requests)} requests for {message.count} frames")
        for request in message.requests:
            _check_request(request)
        found = [self._checked_block(block, len(message.requests)) for block in message.blocks]
        _check_extras(message)
        return found

    def _checked_block(self, block: frame_pb2.Block, requests: int) -> _Read:
        count, data = block.count, list(block.column_data)
        if not count:
            _refuse("a block without frames")
        layout = self._reading(tuple(block.column_index), len(data))
        if len(block.token_texts) not in (0, count):
            _refuse(f"{len(block.token_texts)} token texts for {count} frames")
        for column, written in zip(layout.columns, data, strict=True):
            _check_column(column, written, count, requests)
        if (log8 := layout.log8) or block.log8_low or block.log8_high:
            _check_log8(block, log8)
        return layout, data

    def _reading(self, indexes: tuple[int, ...], columns: int) -> _Layout:
        """What a block with these columns has.

        Raises
        ------
        CodecError
            Where it cannot have them.
        """
        layout = self._layouts_in.get(indexes)
        if layout is not None and len(indexes) == columns:
            return layout
        if len(indexes) != columns or len(set(indexes)) != len(indexes):
            _refuse(f"a block of {columns} columns with {len(set(indexes))} indexes")
        if indexes and max(indexes) >= len(self._columns):
            _refuse(f"column {max(indexes)} of a schema of {len(self._columns)}")
        layout = _Layout.of(self._columns, indexes)
        names = {column.name for column in layout.columns}
        absent = [name for name in _REQUIRED if name not in names]
        if absent:
            _refuse(f"a block without the column {absent[0]}")
        self._keep(self._layouts_in, indexes, layout)
        return layout

    def decode(self, batch: frame_pb2.Batch | bytes) -> FrameBatch:
        """The frames of a message. Arrays are read-only; floating ones are float32.

        Columns that this version does not know are left out.

        Raises
        ------
        CodecError
            Where it breaks the format.
        """
        message = _parsed(batch)
        checked = self._checked(message)
        requests = tuple(request_from_pb(request) for request in message.requests)
        return FrameBatch(
            epoch_ms=message.epoch_ms,
            first_sequence=message.first_sequence,
            blocks=tuple(
                _read_block(block, requests, *read)
                for block, read in zip(message.blocks, checked, strict=True)
            ),
            events=tuple(event_from_pb(event) for event in message.events),
            scales=tuple(scale_from_pb(scale) for scale in message.scales),
            sent_ns=message.sent_ns,
            sketches=tuple(
                sketch_from_pb(one, request_from_pb(one.request) if one.HasField("request") else None)
                for one in message.sketches
            ),
        )


def encode_batch(batch: FrameBatch, schema: frame_pb2.Schema) -> frame_pb2.Batch:
    """`Codec.encode` with the codec of `schema`."""
    return codec_for(schema).encode(batch)


def decode_batch(batch: frame_pb2.Batch | bytes, schema: frame_pb2.Schema) -> FrameBatch:
    """`Codec.decode` with the codec of `schema`."""
    return codec_for(schema).decode(batch)


def validate_batch(batch: frame_pb2.Batch | bytes, schema: frame_pb2.Schema) -> frame_pb2.Batch:
    """`Codec.validate` with the codec of `schema`."""
    return codec_for(schema).validate(batch)


def peek(batch: bytes) -> tuple[int, int, int, bytes]:
    """Epoch (ms), first sequence, number of frames and schema hash of a serialised batch.

    Raises
    ------
    CodecError
        Where the bytes are no batch, or the numbers are beyond the caps.
    """
    message = _parsed(batch)
    return message.epoch_ms, message.first_sequence, message.count, message.schema_hash


def batch_bytes(agent_message: bytes) -> bytes | None:
    """The serialised batch in a serialised `AgentMessage`, without parsing; None where there is none."""
    if not agent_message or agent_message[0] != _BATCH_TAG:
        return None
    length = shift = 0
    for at, byte in enumerate(agent_message[1:6], 2):
        length |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return agent_message[at:] if len(agent_message) - at == length else None
    return None


def agent_message_bytes(batch: bytes) -> bytes:
    """A serialised `AgentMessage` that holds this serialised batch."""
    length, prefix = len(batch), bytearray([_BATCH_TAG])
    while length > 0x7F:
        prefix.append(length & 0x7F | 0x80)
        length >>= 7
    prefix.append(length)
    return bytes(prefix) + batch


_BATCH_TAG: Final = agent_pb2.AgentMessage.BATCH_FIELD_NUMBER << 3 | 2


def _parsed(batch: frame_pb2.Batch | bytes) -> frame_pb2.Batch:
    if isinstance(batch, bytes):
        if len(batch) > MAX_BATCH_BYTES:
            _refuse(f"a batch of {len(batch)} bytes; at most {MAX_BATCH_BYTES}")
        try:
            batch = frame_pb2.Batch.FromString(batch)
        except DecodeError as error:
            raise CodecError(f"not a batch: {error}") from None
    if batch.count > MAX_FRAMES:
        _refuse(f"a batch of {batch.count} frames; at most {MAX_FRAMES}")
    if batch.count and not 1 <= batch.first_sequence <= MAX_SEQUENCE - batch.count:
        _refuse(f"a batch that begins at sequence {batch.first_sequence}; the first frame of an epoch is 1")
    if batch.epoch_ms > MAX_SEQUENCE:
        _refuse(f"an epoch of {batch.epoch_ms} ms")
    return batch


def _check_log8(block: frame_pb2.Block, columns: int) -> None:
    if len(block.log8_low) != columns or len(block.log8_high) != columns:
        _refuse(f"{len(block.log8_low)} lows and {len(block.log8_high)} highs for {columns} log8 columns")
    for low, high in zip(block.log8_low, block.log8_high, strict=True):
        if not 0 <= low <= high < float("inf"):
            _refuse(f"a log8 column from {low} to {high}")


def _check_extras(message: frame_pb2.Batch) -> None:
    if len(message.events) > MAX_EVENTS or len(message.scales) > MAX_SCALES:
        _refuse(f"{len(message.events)} events and {len(message.scales)} scales in one batch")
    for event in message.events:
        if len(event.request_id) > MAX_TEXT or len(event.kind) > MAX_TEXT:
            _refuse(f"an event whose names are longer than {MAX_TEXT} characters")
    for scale in message.scales:
        check_scale(scale)
    for sketch in message.sketches:
        _check_request(sketch.request)
    try:
        check_sketches(message.sketches)
    except ValueError as error:
        raise CodecError(str(error)) from None


def _check_request(request: frame_pb2.RequestRef) -> None:
    if len(request.trace_id) not in (0, 16) or len(request.span_id) not in (0, 8):
        _refuse("a trace id has 16 bytes and a span id 8, or none")
    if len(request.request_id) > MAX_TEXT:
        _refuse(f"a request id of {len(request.request_id)} characters; at most {MAX_TEXT}")


# --- columns ------------------------------------------------------------------------------------------------


def _alike(blocks: Iterable[FrameBlock]) -> Iterator[list[FrameBlock]]:
    """Runs of blocks with the same channels."""
    for _, run in groupby(blocks, key=lambda block: (block.columns.keys(), block.texts is None)):
        alike = [block for block in run if len(block)]
        if alike:
            yield alike


def _check_column(column: _Column, data: bytes, count: int, requests: int) -> None:
    nbytes = len(data)
    once = count if column.is_per_frame else 1
    if nbytes not in (count * column.nbytes, count * column.size, once * column.size):
        _refuse(
            f"{column.name[:40]}: {nbytes} bytes for {count} frames of {column.items} x {column.size} bytes"
        )
    if count * column.items > MAX_BLOCK_ITEMS:
        _refuse(f"{column.name[:40]}: {count} x {column.items} items; at most {MAX_BLOCK_ITEMS} in a block")
    if column.name in _LIMITED:
        limit = {"request_index": requests, "phase": len(PHASES), "level": len(LEVELS)}[column.name]
        if nbytes == column.size:  # as mostly; a number is read in less time than an array
            least = most = int.from_bytes(data, "little", signed=column.dtype.kind == "i")
        else:
            values = np.frombuffer(data, column.dtype)
            least, most = int(values.min()), int(values.max())
        if most >= limit or least < 0:
            _refuse(f"{column.name} is out of range: {most}, with {limit} to choose from")


def _renumbered(blocks: list[FrameBlock], requests: dict[RequestRef, int]) -> Array:
    """`request_index` of all blocks, into the one table of the batch."""
    parts, told, places = [], None, list[int]()
    for block in blocks:
        column = block.columns["request_index"]
        if len(column) == 1:
            is_known = 0 <= int(column[0]) < len(block.requests)
        else:
            is_known = not len(column) or 0 <= int(column.min()) <= int(column.max()) < len(block.requests)
        if not is_known:
            _refuse(f"request_index is out of range: {len(block.requests)} requests in the block")
        if block.requests != told:  # in the steps of a batch they are mostly the same ones
            told = block.requests
            places = [requests.setdefault(request, len(requests)) for request in told]
        same = places == list(range(len(places)))
        parts.append(column if same else np.array(places)[column])
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _to_halves(columns: list[Array]) -> bytes:
    """The items of all columns as float16, one column behind the other."""
    values = columns[0] if len(columns) == 1 else np.concatenate([column.reshape(-1) for column in columns])
    # minimum and maximum keep NaN
    return np.minimum(np.maximum(values, -F2_MAX), F2_MAX).astype(_DTYPES["f2"]).tobytes()


def _to_dtype(values: Array, column: _Column) -> Array:
    if column.encoding == "f4":
        return values.astype(column.dtype)
    if values.dtype.kind not in "iub":
        _refuse(f"{column.name} holds {values.dtype}, not integers")
    bounds = np.iinfo(column.dtype)
    if values.size and not bounds.min <= int(values.min()) <= int(values.max()) <= bounds.max:
        _refuse(
            f"{column.name} holds {int(values.min())} to {int(values.max())}, which {column.encoding} cannot"
        )
    return values.astype(column.dtype)


def _to_log8(values: Array) -> tuple[Array, float, float]:
    """Codes, low and high of a column (see the head of this module)."""
    x = np.asarray(values, np.float32)
    with np.errstate(all="ignore"):
        logs = np.log2(x)  # zero is -inf, negative is NaN
        highest = np.fmax.reduce(logs, axis=None)
        if highest == np.inf:
            logs[logs == np.inf] = np.nan
            highest = np.fmax.reduce(logs, axis=None)
        if not highest > -np.inf:  # zeros and NaN alone
            return np.where(np.isnan(logs), np.uint8(LOG8_NAN), np.uint8(0)), 0.0, 0.0
        lowest = np.fmin.reduce(logs, axis=None, where=logs > -np.inf, initial=highest)
        lowest = max(lowest, highest + np.float32(_LOG2_RANGE), _LOG2_TINY)
        span = np.float32(highest - lowest)
        logs -= lowest
        logs *= np.float32(LOG8_STEPS) / span if span > 0 else np.float32(1)
        logs += np.float32(1.5)
        np.maximum(logs, np.float32(0), out=logs)  # keeps NaN
        logs[np.isnan(logs)] = LOG8_NAN
        return logs.astype(np.uint8), float(np.exp2(lowest)), float(np.exp2(highest))


def _written(data: bytes, column: _Column, count: int) -> bytes:
    """The bytes of all items, or of fewer: one a frame where all of a frame's are equal (by bits: NaN equals
    NaN), one where all frames have the same."""
    size = column.size
    if column.items > 1 and count and data[:size] == data[column.nbytes - size : column.nbytes]:
        bits = np.frombuffer(data, _UNSIGNED[size]).reshape(count, column.items)
        if (bits == bits[:, :1]).all():
            data = bits[:, 0].tobytes()
    return data if column.is_per_frame or count == 1 else once_if_same(data, size, count)


def once_if_same(data: bytes, size: int, count: int) -> bytes:
    """The bytes of a column, or its single item of `size` bytes where all of `count` frames have the same."""
    once = data[:size]
    return once if len(data) == count * size and data == once * count else data


def _read_block(
    block: frame_pb2.Block, requests: tuple[RequestRef, ...], layout: _Layout, data: list[bytes]
) -> FrameBlock:
    columns: dict[str, Array] = {}
    count, bounds = block.count, iter(zip(block.log8_low, block.log8_high, strict=True))
    halves: list[tuple[_Column, int]] = []  # those of few items are converted together
    parts: list[bytes] = []
    for column, written in zip(layout.columns, data, strict=True):
        low, high = next(bounds) if column.encoding == "log8" else (0.0, 0.0)
        if not column.known:
            continue
        columns[column.name] = _NOTHING  # its place; those of halves follow
        if column.encoding == "f2" and len(written) <= 2 * _FEW:
            halves.append((column, len(written) // 2))
            parts.append(written)
        else:
            columns[column.name] = _spread(_from_bytes(written, column, low, high), count, column)
    if halves:
        together = np.frombuffer(b"".join(parts), _DTYPES["f2"]).astype(np.float32)
        together.flags.writeable = False
        at = 0
        for column, items in halves:
            columns[column.name] = _spread(together[at : at + items], count, column)
            at += items
    return FrameBlock(requests, columns, tuple(block.token_texts) or None)


def _from_bytes(data: bytes, column: _Column, low: float, high: float) -> Array:
    items: Array = np.frombuffer(data, column.dtype)
    if column.encoding == "log8":
        items = log8_table(low, high)[items]
    elif column.encoding == "f2":
        items = items.astype(np.float32)
    elif not items.dtype.isnative:
        items = items.astype(column.dtype.newbyteorder("="))
    items.flags.writeable = False
    return items


def log8_table(low: float, high: float) -> NDArray[np.float32]:
    """What each of the 256 codes of a log8 column stands for: float32, shape (256,)."""
    table = np.zeros(256, np.float32)
    if high > 0:
        floor = log(max(low, 1e-300))  # a low of zero has no logarithm; nothing that we write has it
        table[1:LOG8_NAN] = np.exp(floor + _STEP * (log(high) - floor))
    table[LOG8_NAN] = np.nan
    return table


def _spread(values: Array, count: int, column: _Column) -> Array:
    """Items in the shape of the channel: (n, *shape). What was written once, or once per frame, is a view."""
    if values.size == count * column.items:
        return values.reshape(count, *column.shape) if column.shape else values
    step = values.itemsize if values.size == count else 0  # one item of each frame, or one of all
    strides = (step, *(0 for _ in column.shape))
    return np.ndarray((count, *column.shape), values.dtype, values, 0, strides)


def _utf8(text: str) -> str:
    """`text` without lone surrogates, which UTF-8 cannot carry."""
    return text.encode("utf-8", "replace").decode("utf-8")


# --- the small messages -------------------------------------------------------------------------------------


def _checked_fields(build: Callable[..., Any], what: str, **fields: Any) -> Any:
    """A message from these fields; a value that its field cannot hold is a `CodecError`."""
    try:
        return build(**fields)
    except (TypeError, ValueError) as error:
        raise CodecError(f"{what}: {error}") from None


@lru_cache(maxsize=4096)
def _request_to_pb(request: RequestRef) -> frame_pb2.RequestRef:
    """As `request_to_pb`; the message is shared and must not be changed."""
    return request_to_pb(request)


def request_to_pb(request: RequestRef) -> frame_pb2.RequestRef:
    """The wire form of a request reference."""
    try:
        trace_id, span_id = bytes.fromhex(request.trace_id), bytes.fromhex(request.span_id)
    except ValueError:
        trace_id = span_id = b"?"
    if len(trace_id) not in (0, 16) or len(span_id) not in (0, 8):
        _refuse(f"a trace id has 32 hex digits and a span id 16: {request.trace_id!r}, {request.span_id!r}")
    fields = {"request_id": request.request_id, "trace_id": trace_id, "span_id": span_id}
    message: frame_pb2.RequestRef = _checked_fields(frame_pb2.RequestRef, "a request", **fields)
    return message


def request_from_pb(message: frame_pb2.RequestRef) -> RequestRef:
    """The request reference in a message."""
    return RequestRef(message.request_id, message.trace_id.hex(), message.span_id.hex())


_EVENT_SCALARS: Final = (
    "request_id",
    "kind",
    "time_ns",
    "prompt_tokens",
    "sequences",
    "reason",
    "drafted_tokens",
    "accepted_tokens",
    "generated_tokens",
)
_EVENT_LISTS: Final = ("prompt_texts", "winning_rows", "prompt_tokens_per_row")


def event_to_pb(event: RequestEvent) -> frame_pb2.RequestEvent:
    """The wire form of an event."""
    fields = {name: getattr(event, name) for name in (*_EVENT_SCALARS, *_EVENT_LISTS)}
    fields["prompt_texts"] = [_utf8(text) for text in event.prompt_texts]
    message: frame_pb2.RequestEvent = _checked_fields(frame_pb2.RequestEvent, "an event", **fields)
    return message


def event_from_pb(message: frame_pb2.RequestEvent) -> RequestEvent:
    """The event in a message."""
    fields: dict[str, Any] = {name: getattr(message, name) for name in _EVENT_SCALARS}
    fields.update({name: tuple(getattr(message, name)) for name in _EVENT_LISTS})
    return RequestEvent(**fields)


def scale_to_pb(scale: Scale) -> frame_pb2.Scale:
    """The wire form of a display scale."""
    kinds = [{"kind": kind, "low": low, "high": high} for kind, (low, high) in scale.kinds.items()]
    fields = {"version": scale.version, "tokens": scale.tokens, "kinds": kinds}
    message: frame_pb2.Scale = _checked_fields(frame_pb2.Scale, "a scale", **fields)
    return message


def check_scale(message: frame_pb2.Scale) -> None:
    """Refuse a display scale that cannot be drawn with: too many kinds, not finite, or upside down."""
    if len(message.kinds) > MAX_SCALES:
        _refuse(f"a scale of {len(message.kinds)} kinds; at most {MAX_SCALES}")
    for kind in message.kinds:
        if not (isfinite(kind.low) and isfinite(kind.high) and kind.low <= kind.high):
            _refuse(f"a scale from {kind.low} to {kind.high}")
        if len(kind.kind) > MAX_TEXT:
            _refuse(f"a scale's kind of {len(kind.kind)} characters; at most {MAX_TEXT}")


def scale_from_pb(message: frame_pb2.Scale) -> Scale:
    """The display scale in a message.

    Raises
    ------
    CodecError
        Where it cannot be drawn with.
    """
    check_scale(message)
    kinds = {kind.kind: (kind.low, kind.high) for kind in message.kinds}
    return Scale(version=message.version, kinds=kinds, tokens=message.tokens)


_TOPOLOGY_FIELDS: Final = (
    "model_name",
    "architecture",
    "layers",
    "heads",
    "kv_heads",
    "head_dim",
    "hidden_size",
    "ffn_size",
    "vocab_size",
    "experts",
    "experts_per_token",
    "parameters",
    "weights_fingerprint",
    "dtype",
    "context_length",
)
_TOPOLOGY_LISTS: Final = ("layer_kinds", "layer_heads", "layer_windows")


def topology_to_pb(topology: Topology) -> frame_pb2.Topology:
    """The wire form of a topology."""
    fields = {name: getattr(topology, name) for name in (*_TOPOLOGY_FIELDS, *_TOPOLOGY_LISTS)}
    fields["unavailable"] = [{"channel": name, "reason": reason} for name, reason in topology.unavailable]
    message: frame_pb2.Topology = _checked_fields(frame_pb2.Topology, "a topology", **fields)
    return message


def topology_from_pb(message: frame_pb2.Topology) -> Topology:
    """The topology in a message.

    Raises
    ------
    CodecError
        Where a size is beyond the caps, or a list does not fit the number of layers.
    """
    _check_topology(message)
    fields: dict[str, Any] = {name: getattr(message, name) for name in _TOPOLOGY_FIELDS}
    fields.update({name: tuple(getattr(message, name)) for name in _TOPOLOGY_LISTS})
    unavailable = tuple((item.channel, item.reason) for item in message.unavailable)
    try:
        return Topology(unavailable=unavailable, **fields)
    except ValueError as error:
        raise CodecError(f"a topology: {error}") from None


def _check_topology(message: frame_pb2.Topology) -> None:
    caps = {"layers": MAX_LAYERS, "heads": MAX_HEADS, "kv_heads": MAX_HEADS, "experts": MAX_EXPERTS}
    for name, cap in caps.items():
        if getattr(message, name) > cap:
            _refuse(f"a topology of {getattr(message, name)} {name}; at most {cap}")
    if message.layers < 1:
        _refuse("a topology without layers")
    if message.experts_per_token > message.experts:
        _refuse(f"{message.experts_per_token} experts per token of {message.experts}")
    if message.layers * max(message.heads, message.experts_per_token) > MAX_CELLS:
        _refuse(f"a topology of {message.layers} x {message.heads} heads; at most {MAX_CELLS} in all")
    if any(heads > message.heads for heads in message.layer_heads):
        _refuse(f"a layer with more than {message.heads} heads")
    if len(message.unavailable) > MAX_COLUMNS or len(message.layer_kinds) > MAX_LAYERS:
        _refuse("a topology with more lists than it has layers or channels")
    names = (message.model_name, message.architecture, message.weights_fingerprint, message.dtype)
    if any(len(name) > MAX_TEXT for name in names):
        _refuse(f"a topology whose names are longer than {MAX_TEXT} characters")


_RESOURCE_KEYS: Final = {
    "service.namespace": "service_namespace",
    "service.name": "service_name",
    "service.instance.id": "service_instance_id",
}


def resource_to_pb(resource: Mapping[str, str]) -> frame_pb2.Resource:
    """The wire form of OpenTelemetry resource attributes."""
    named = {field: _utf8(str(resource.get(key, ""))) for key, field in _RESOURCE_KEYS.items()}
    rest = {_utf8(key): _utf8(str(value)) for key, value in resource.items() if key not in _RESOURCE_KEYS}
    return frame_pb2.Resource(attributes=rest, **named)


def resource_from_pb(message: frame_pb2.Resource) -> dict[str, str]:
    """The OpenTelemetry resource attributes in a message; the empty ones of the triplet are left out."""
    named = {key: getattr(message, field) for key, field in _RESOURCE_KEYS.items()}
    return dict(message.attributes) | {key: value for key, value in named.items() if value}
