"""What a collector's messages mean: announcements, batches, gaps and statuses become events. Pure.

It also keeps the account of each stream: what comes twice (after a reconnection) is dropped, what does not
come is a gap, and what cannot be read is a gap with a reason, never a crash.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from google.protobuf.message import DecodeError

from fulgurite.v1 import agent_pb2, frame_pb2, viewer_pb2
from fulgurite.viewer.events import (
    CaughtUp,
    Event,
    FeedTrouble,
    Frames,
    GapSeen,
    ReplicaSeen,
    ReplicaStatus,
    StatusSeen,
)
from fulgurite.wire import codec
from fulgurite.wire.frame import FrameBatch, FrameBlock

MALFORMED = "malformed"
LOST = "lost"
SCHEMAS_KEPT = 4  # per replica: a batch from before a change may come after its announcement


@dataclass(slots=True)
class _Stream:
    """How far one replica's stream was read."""

    epoch_ms: int = 0
    last_sequence: int = 0
    live: bool = False
    unreadable: bool = False  # something came since `last_sequence` that could not be read


class Reading:
    """Reads one subscription after another; what it knows of the streams outlives a connection."""

    def __init__(self) -> None:
        self._schemas: dict[str, dict[bytes, frame_pb2.Schema]] = {}
        self._streams: dict[str, _Stream] = {}

    def restart(self) -> None:
        """A new subscription begins: what comes first is the past again."""
        for stream in self._streams.values():
            stream.live = False

    def read(self, message: viewer_pb2.WatchResponse, received_ns: int) -> list[Event]:
        """The events that `message` tells, in order. Never raises for what a peer may send."""
        kind = message.WhichOneof("message")
        if kind == "replica":
            return self._replica(message.replica)
        if kind == "batch":
            return self._batch(message.batch, received_ns)
        if kind == "gap":
            return self._gap(message.gap)
        if kind == "status":
            return [StatusSeen(status=status_from_pb(message.status))]
        if kind == "caught_up":
            self._stream(message.caught_up.key).live = True
            return [CaughtUp(key=message.caught_up.key)]
        return []

    def _stream(self, key: str) -> _Stream:
        return self._streams.setdefault(key, _Stream())

    def _replica(self, announced: viewer_pb2.ReplicaAnnouncement) -> list[Event]:
        try:
            topology = codec.topology_from_pb(announced.topology)
            scale = codec.scale_from_pb(announced.scale) if announced.HasField("scale") else None
        except ValueError as error:
            return [FeedTrouble(key=announced.key, reason=f"its announcement cannot be read: {error}")]
        known = self._schemas.setdefault(announced.key, {})
        known[codec.content_hash(announced.schema)] = announced.schema
        while len(known) > SCHEMAS_KEPT:
            known.pop(next(iter(known)))
        seen = ReplicaSeen(
            key=announced.key,
            topology=topology,
            level=announced.level,
            tokens=announced.tokens or "off",
            scale=scale,
            attributes=dict(announced.resource.attributes),
        )
        return [seen]

    def _batch(self, watched: viewer_pb2.WatchedBatch, received_ns: int) -> list[Event]:
        try:
            message = frame_pb2.Batch.FromString(watched.batch)
            schema = self._schemas.get(watched.key, {}).get(message.schema_hash)
            if schema is None:
                return self._unread(watched.key, "its columns were never announced")
            batch = codec.decode_batch(message, schema)
        except (DecodeError, ValueError) as error:
            return self._unread(watched.key, str(error))
        return self._account(watched, batch, received_ns)

    def _account(self, watched: viewer_pb2.WatchedBatch, batch: FrameBatch, received_ns: int) -> list[Event]:
        stream = self._stream(watched.key)
        events: list[Event] = []
        if batch.epoch_ms < stream.epoch_ms:
            return []  # of a process that was replaced: it came before
        if batch.epoch_ms > stream.epoch_ms:
            stream.epoch_ms, stream.last_sequence = batch.epoch_ms, batch.first_sequence - 1
        batch = _behind(batch, stream.last_sequence)
        if not len(batch) and not batch.events and not batch.scales:
            return []
        missing = batch.first_sequence - stream.last_sequence - 1
        if missing > 0 and len(batch):
            events.append(
                GapSeen(
                    key=watched.key,
                    epoch_ms=batch.epoch_ms,
                    first_sequence=stream.last_sequence + 1,
                    last_sequence=batch.first_sequence - 1,
                    frames=missing,
                    reason=MALFORMED if stream.unreadable else LOST,
                )
            )
        stream.last_sequence = max(stream.last_sequence, batch.last_sequence)
        stream.unreadable = False
        size = len(watched.batch)
        events.append(
            Frames(key=watched.key, batch=batch, live=stream.live, received_ns=received_ns, nbytes=size)
        )
        return events

    def _gap(self, gap: viewer_pb2.Gap) -> list[Event]:
        stream = self._stream(gap.key)
        if gap.epoch_ms >= stream.epoch_ms:
            behind = stream.last_sequence if gap.epoch_ms == stream.epoch_ms else 0
            stream.epoch_ms, stream.last_sequence = gap.epoch_ms, max(behind, gap.last_sequence)
        seen = GapSeen(
            key=gap.key,
            epoch_ms=gap.epoch_ms,
            first_sequence=gap.first_sequence,
            last_sequence=gap.last_sequence,
            frames=gap.frames,
            reason=gap.reason or LOST,
        )
        return [seen]

    def _unread(self, key: str, reason: str) -> list[Event]:
        """Nothing in it is believed, not even its size: the next readable batch tells how much is missing."""
        self._stream(key).unreadable = True
        return [FeedTrouble(key=key, reason=f"a batch cannot be read: {reason}")]


def _behind(batch: FrameBatch, last_sequence: int) -> FrameBatch:
    """The part of `batch` that comes after `last_sequence`."""
    known = last_sequence - batch.first_sequence + 1
    if known <= 0 or not len(batch):
        return batch
    if known >= len(batch):
        return replace(batch, first_sequence=last_sequence + 1, blocks=())
    blocks: list[FrameBlock] = []
    for block in batch.blocks:
        skip = min(known, len(block))
        known -= skip
        if skip < len(block):
            blocks.append(block.select(range(skip, len(block))) if skip else block)
    return replace(batch, first_sequence=last_sequence + 1, blocks=tuple(blocks))


def status_from_pb(status: viewer_pb2.ReplicaStatus) -> ReplicaStatus:
    """A status as the page shows it: what was not measured is None."""
    agent = status.agent if status.HasField("agent") else None
    is_black_box = (status.layers, status.heads) == (1, 0)  # nothing of its cache is known
    return ReplicaStatus(
        key=status.key,
        state=status.state,
        model_name=status.model_name,
        tokens_per_s=_known(status.tokens_per_s),
        inter_token_p50_s=_known(status.inter_token.p50_s) if status.inter_token.count else None,
        inter_token_p99_s=_known(status.inter_token.p99_s) if status.inter_token.count else None,
        first_token_p50_s=_known(status.first_token.p50_s) if status.first_token.count else None,
        window_s=_known(status.window_s) or None,
        kv_tokens=None if is_black_box else status.kv_tokens,
        kv_bytes=None if is_black_box else status.kv_bytes,
        kv_capacity_bytes=agent.kv_capacity_bytes or None if agent else None,
        running_requests=agent.running_requests if agent else None,
        waiting_requests=agent.waiting_requests if agent else None,
        overhead_ratio=_known(agent.overhead_ratio) if agent else None,
        captured=agent.captured if agent else None,
        acknowledged=agent.acknowledged if agent else None,
        dropped=_dropped(agent),
        level=status.level,
        tokens_total=status.tokens_total,
    )


def _known(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _dropped(agent: agent_pb2.AgentStats | None) -> dict[str, int]:
    return {reason: count for reason, count in sorted(agent.dropped.items()) if count} if agent else {}
