"""The collector's end of an agent's stream: what a message means, and what is to be said next. Pure.

It knows no clock, no socket and no store: `fulgurite.collector.intake` tells it what came and what was
stored, and `fulgurite.collector.ingest` asks it what to say.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from fulgurite.collector.config import Settings
from fulgurite.collector.hello import parse_message
from fulgurite.collector.refusal import Refused
from fulgurite.collector.store import Entry, EntryId, Registration
from fulgurite.v1 import agent_pb2
from fulgurite.wire.codec import MAX_SEQUENCE, PROTOCOL, Codec, CodecError, batch_bytes
from fulgurite.wire.frame import FrameBatch

PING_EVERY_S: Final = 5.0
"""Less than an agent's patience with silence: while the store is away, pings are all that it hears."""
MAX_WORD_BYTES: Final = 64 << 10
"""Of a message that is not a batch."""
ENVELOPE_BYTES: Final = 64 << 10
"""What a batch may grow by on its way to a viewer, whose limit for a message is the same."""


@dataclass(frozen=True, slots=True)
class Taken:
    """A batch that came.

    Attributes
    ----------
    entry : Entry
        As it is stored: the bytes are those of the agent.
    batch : FrameBatch
        The same, decoded.
    """

    entry: Entry
    batch: FrameBatch


Message = Taken | agent_pb2.AgentStats | agent_pb2.Goodbye | agent_pb2.Pong


class Link:
    """One agent's stream.

    Parameters
    ----------
    codec : Codec
        Of the schema in its hello.
    registration : Registration
        The epoch that it writes under, and what of it is stored.
    now_s : float
        Monotonic time.
    """

    def __init__(self, codec: Codec, registration: Registration, *, settings: Settings, now_s: float) -> None:
        self.epoch_ms = registration.epoch_ms
        self.stored = registration.resume_after
        self._codec = codec
        self._settings = settings
        self._seen = registration.resume_after
        self._spoke_s = now_s
        self._owed = 0  # batches that are stored and not acknowledged
        self._owed_since_s = 0.0

    # --- what came

    def read(self, data: bytes, now_ns: int) -> Message | None:
        """What a message says; None for one that says nothing here, or is of a later version.

        Raises
        ------
        Refused
            Where it breaks the protocol.
        """
        batch = batch_bytes(data)
        if batch is not None:
            return self._batch(batch, now_ns)
        message = parse_message(data)
        if message.HasField("batch"):  # written in a way that hides where its bytes are
            return self._batch(message.batch.SerializeToString(), now_ns)
        if len(data) > MAX_WORD_BYTES:
            raise Refused(f"a message of {len(data)} bytes that is no batch; at most {MAX_WORD_BYTES}")
        if message.HasField("hello"):
            raise Refused("a second hello came on one stream")
        if message.HasField("stats"):
            return message.stats
        if message.HasField("goodbye"):
            return message.goodbye
        return message.pong if message.HasField("pong") else None

    def _batch(self, data: bytes, now_ns: int) -> Taken | None:
        most = self._settings.receive_limit_bytes - ENVELOPE_BYTES
        if len(data) > most:
            raise Refused(f"a batch of {len(data)} bytes; at most {most}")
        try:
            batch = self._codec.decode(data)
        except CodecError as error:
            raise Refused(str(error)) from None
        if batch.epoch_ms != self.epoch_ms:
            raise Refused(f"a batch of epoch {batch.epoch_ms} where {self.epoch_ms} was agreed")
        if not len(batch) and not batch.events and not batch.scales:
            return None
        return Taken(self._entry(batch, data, now_ns), batch)

    def _entry(self, batch: FrameBatch, data: bytes, now_ns: int) -> Entry:
        last = batch.last_sequence
        if len(batch):
            if batch.first_sequence <= self._seen < last:
                raise Refused(
                    f"a batch of frames {batch.first_sequence} to {last}: up to {self._seen} they came before"
                )
            self._seen = max(self._seen, last)
        return Entry(
            id=EntryId(self.epoch_ms, min(max(last, 0), MAX_SEQUENCE)),
            count=len(batch),
            schema_hash=self._codec.schema_hash,
            ingested_ns=now_ns,
            batch=data,
        )

    def keep(self, entries: list[Entry], now_s: float) -> None:
        """These are stored."""
        with_frames = [entry for entry in entries if entry.count]
        if not with_frames:
            return
        self.stored = max(self.stored, with_frames[-1].id.sequence)
        if not self._owed:
            self._owed_since_s = now_s
        self._owed += len(with_frames)

    # --- what to say

    def welcome(self, collector_id: str) -> agent_pb2.CollectorMessage:
        """The answer to the hello."""
        welcome = agent_pb2.Welcome(
            protocol=PROTOCOL,
            epoch_ms=self.epoch_ms,
            resume_after=self.stored,
            credit=self._settings.credit,
            collector_id=collector_id,
        )
        return agent_pb2.CollectorMessage(welcome=welcome)

    @property
    def silent_until_s(self) -> float:
        """When there is something to say, if nothing happens before."""
        ping_s = self._spoke_s + PING_EVERY_S
        if not self._owed:
            return ping_s
        soon = self._owed >= self._settings.ack_batches
        return min(ping_s, self._owed_since_s + (0.0 if soon else self._settings.ack_delay_s))

    def say(self, now_s: float, *, at_last: bool = False) -> agent_pb2.CollectorMessage | None:
        """The next message, if one is due; the acknowledgement that is owed, `at_last`."""
        if self._owed and (at_last or now_s >= self.silent_until_s):
            self._owed = 0
            self._spoke_s = now_s
            ack = agent_pb2.Ack(epoch_ms=self.epoch_ms, sequence=self.stored, credit=self._settings.credit)
            return agent_pb2.CollectorMessage(ack=ack)
        if not at_last and now_s >= self._spoke_s + PING_EVERY_S:
            self._spoke_s = now_s
            return agent_pb2.CollectorMessage(ping=agent_pb2.Ping(ping_ns=int(now_s * 1e9)))
        return None
