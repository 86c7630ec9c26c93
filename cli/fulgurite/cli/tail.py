"""Turns what a collector tells a viewer into the lines of `fulgurite tail`; knows no socket, no terminal."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from fulgurite.cli.frame_json import event_record, frame_record
from fulgurite.wire.codec import CodecError, decode_batch, topology_from_pb

if TYPE_CHECKING:
    from fulgurite.v1.frame_pb2 import Schema
    from fulgurite.v1.viewer_pb2 import Gap, ReplicaAnnouncement, WatchedBatch, WatchResponse

Line = dict[str, Any]


class Tail:
    """Remembers what each replica announced, since its batches are unreadable without.

    Parameters
    ----------
    limit : int, optional
        Frames after which it is done; None for never.
    """

    def __init__(self, *, limit: int | None = None) -> None:
        self._left = limit
        self._schemas: dict[str, Schema] = {}

    @property
    def is_done(self) -> bool:
        """Whether `limit` frames were told."""
        return self._left == 0

    def lines(self, message: WatchResponse) -> Iterator[Line]:
        """The lines that one message is worth."""
        kind = message.WhichOneof("message")
        if kind == "replica":
            yield self._replica(message.replica)
        elif kind == "batch":
            yield from self._batch(message.batch)
        elif kind == "gap":
            yield _gap(message.gap)
        elif kind == "caught_up":
            yield {"type": "caught_up", "replica": message.caught_up.key}

    def _replica(self, announced: ReplicaAnnouncement) -> Line:
        self._schemas[announced.key] = announced.schema
        topology = dataclasses.asdict(topology_from_pb(announced.topology))
        return {
            "type": "replica",
            "replica": announced.key,
            "level": announced.level,
            "tokens": announced.tokens,
            "encoding": announced.schema.encoding,
            "topology": topology,
        }

    def _batch(self, watched: WatchedBatch) -> Iterator[Line]:
        schema = self._schemas.get(watched.key)
        where = {"replica": watched.key, "entry_id": watched.entry_id}
        if schema is None:
            yield {"type": "undecodable", **where, "reason": "its replica was not announced"}
            return
        try:
            batch = decode_batch(watched.batch, schema)
        except CodecError as error:
            yield {"type": "undecodable", **where, "reason": str(error)}
            return
        for offset, frame in enumerate(batch.frames()):
            if self.is_done:
                return
            if self._left is not None:
                self._left -= 1
            place = {"epoch_ms": batch.epoch_ms, "stream_sequence": batch.first_sequence + offset}
            yield {"type": "frame", "replica": watched.key, **place, **frame_record(frame)}
        for event in () if self.is_done else batch.events:
            yield {"type": "event", "replica": watched.key, **event_record(event)}


def _gap(gap: Gap) -> Line:
    return {
        "type": "gap",
        "replica": gap.key,
        "epoch_ms": gap.epoch_ms,
        "first_sequence": gap.first_sequence,
        "last_sequence": gap.last_sequence,
        "frames": gap.frames,
        "reason": gap.reason,
    }
