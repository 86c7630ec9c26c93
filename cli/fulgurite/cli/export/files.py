"""Writes a file, whole or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from fulgurite.cli.errors import CommandError
from fulgurite.cli.export.stream import Missing, Part, parts
from fulgurite.telemetry.requests import RequestRecord, Requests

if TYPE_CHECKING:
    from fulgurite.cli.address import Address

FOREVER_NS = 1 << 63


@dataclass(slots=True)
class Written:
    """What went into a file."""

    rows: int = 0
    seen: set[str] = field(default_factory=set)
    gaps: list[str] = field(default_factory=list)

    @property
    def replicas(self) -> int:
        """How many replicas the rows are of."""
        return len(self.seen)


def write(
    address: Address,
    out: Path,
    form: str,
    *,
    selectors: Sequence[str],
    history_s: float,
    follow_s: float,
    aggregates: bool,
) -> Written:
    """Write what replicas measured to `out`.

    Raises
    ------
    CommandError
        Where there is nothing to write, no collector, or no place for the file.
    """
    from fulgurite.cli.client import Collector

    written = Written()
    part_of = out.with_name(f".{out.name}.part")
    try:
        with Collector(address) as collector:
            stream = _told(parts(collector, selectors, history_s=history_s, follow_s=follow_s), written)
            writer = _WRITERS[form, aggregates]
            with part_of.open("wb") as file:
                writer(file, stream, written)
        if not written.rows:
            what = "request that ended" if aggregates or form == "perfetto" else "frame"
            raise CommandError(
                f"nothing to export: the collector at {address} has no {what} of the last {history_s:g} s"
            )
        os.replace(part_of, out)
    except OSError as error:
        raise CommandError(f"cannot write {out}: {error.strerror or error}") from None
    finally:
        with suppress(OSError):
            part_of.unlink(missing_ok=True)
    return written


def _told(stream: Iterator[Part | Missing], written: Written) -> Iterator[Part]:
    for part in stream:
        if isinstance(part, Missing):
            written.gaps.append(part.text)
        else:
            written.seen.add(part.replica)
            yield part


def _records(stream: Iterator[Part]) -> Iterator[tuple[RequestRecord, str]]:
    """The requests of a stream; those under way at its end come last, as given up."""
    requests: dict[str, Requests] = {}
    models: dict[str, str] = {}
    for part in stream:
        models[part.replica] = part.model
        known = requests.setdefault(part.replica, Requests(part.replica))
        for record in known.fold(part.batch):
            yield record, part.model
    for replica, known in requests.items():
        for record in known.give_up(FOREVER_NS):
            yield record, models[replica]


def _parquet(file: IO[bytes], stream: Iterator[Part], written: Written) -> None:
    import pyarrow.parquet as pq

    from fulgurite.cli.export import columns

    with pq.ParquetWriter(file, columns.frame_schema(), compression="zstd") as writer:
        for part in stream:
            writer.write_table(columns.frame_table(part))
            written.rows += len(part.batch)


def _arrow(file: IO[bytes], stream: Iterator[Part], written: Written) -> None:
    import pyarrow as pa

    from fulgurite.cli.export import columns

    with pa.ipc.new_file(file, columns.frame_schema()) as writer:
        for part in stream:
            writer.write_table(columns.frame_table(part))
            written.rows += len(part.batch)


def _request_parquet(file: IO[bytes], stream: Iterator[Part], written: Written) -> None:
    import pyarrow.parquet as pq

    from fulgurite.cli.export import columns

    table = columns.request_table(list(_records(stream)))
    pq.write_table(table, file, compression="zstd")
    written.rows = len(table)


def _request_arrow(file: IO[bytes], stream: Iterator[Part], written: Written) -> None:
    import pyarrow as pa

    from fulgurite.cli.export import columns

    table = columns.request_table(list(_records(stream)))
    with pa.ipc.new_file(file, columns.REQUEST_SCHEMA) as writer:
        writer.write_table(table)
    written.rows = len(table)


def _jsonl(file: IO[bytes], stream: Iterator[Part], written: Written) -> None:
    from fulgurite.cli.frame_json import frame_record

    for part in stream:
        for offset, frame in enumerate(part.batch.frames()):
            place = {"epoch_ms": part.batch.epoch_ms, "stream_sequence": part.batch.first_sequence + offset}
            _line(file, {"replica": part.replica, "model": part.model, **place, **frame_record(frame)})
            written.rows += 1


def _request_jsonl(file: IO[bytes], stream: Iterator[Part], written: Written) -> None:
    from fulgurite.cli.export.columns import request_row

    for record, model in _records(stream):
        _line(file, request_row(record, model))
        written.rows += 1


def _perfetto(file: IO[bytes], stream: Iterator[Part], written: Written) -> None:
    from fulgurite.cli.export.perfetto import Timeline

    timeline = Timeline()
    file.write(b'{"displayTimeUnit":"ms","traceEvents":[\n')
    before = b""
    for record, model in _records(stream):
        for event in timeline.events(record, model):
            file.write(before + json.dumps(event).encode())
            before = b",\n"
            written.rows += event["ph"] == "X"
    file.write(b"\n]}\n")


def _line(file: IO[bytes], record: dict[str, Any]) -> None:
    file.write(json.dumps(record, ensure_ascii=False).encode() + b"\n")


_WRITERS: dict[tuple[str, bool], Callable[[IO[bytes], Iterator[Part], Written], None]] = {
    ("parquet", False): _parquet,
    ("arrow", False): _arrow,
    ("jsonl", False): _jsonl,
    ("perfetto", False): _perfetto,
    ("parquet", True): _request_parquet,
    ("arrow", True): _request_arrow,
    ("jsonl", True): _request_jsonl,
}
