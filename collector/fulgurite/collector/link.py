"""The collector's end of an agent's stream: what a message means, and what is to be said next. Pure.

It knows no clock, no socket and no store: `fulgurite.collector.intake` tells it what came and what was
stored, and `fulgurite.collector.ingest` asks it what to say.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from fulgurite.collector.clock import ClockGauge
from fulgurite.collector.config import Settings
from fulgurite.collector.hello import parse_message
from fulgurite.collector.refusal import Refused
from fulgurite.collector.store import Entry, EntryId, Registration
from fulgurite.v1 import agent_pb2
from fulgurite.wire.codec import MAX_SEQUENCE, PROTOCOL, Codec, CodecError, batch_bytes
from fulgurite.wire.frame import FrameBatch

PING_EVERY_S: Final = 5.0
"""Less than an agent's patience with silence: while the store is away, pings are all that it hears."""
FIRST_PINGS: Final = 4
FIRST_PING_EVERY_S: Final = 0.25
"""So that the clocks are compared early, and not by one journey alone."""
MAX_WORD_BYTES: Final = 64 << 10
"""Of a message that is not a batch."""
ACK_BYTES: Final = 1 << 20
"""So much that is stored is acknowledged at once: the agent keeps it until then."""
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
_PONG_TAG: Final = agent_pb2.AgentMessage.PONG_FIELD_NUMBER << 3 | 2


def is_pong(message: bytes) -> bool:
    """Whether an agent's serialised message is the answer to a ping, which is not to wait behind batches."""
    return message[:1] == bytes([_PONG_TAG]) and len(message) < 64


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
    room_bytes : int, optional
        What of its batches may wait here; without: as the settings say. The credit is for no more than that:
        what is under way beyond it would wait in the buffers of the connection.
    """

    def __init__(
        self,
        codec: Codec,
        registration: Registration,
        *,
        settings: Settings,
        now_s: float,
        room_bytes: int | None = None,
    ) -> None:
        self.clock = ClockGauge()
        self.wanted = agent_pb2.Control()
        self.epoch_ms = registration.epoch_ms
        self.stored = registration.resume_after
        self._codec = codec
        self._settings = settings
        self._room_bytes = settings.held_bytes if room_bytes is None else room_bytes
        self._batch_bytes = 0  # of the larger ones among the last batches
        self._seen = registration.resume_after
        self._told = agent_pb2.Control()
        self._pings = 0
        self._ping_s = now_s
        self._owed = self._owed_bytes = 0  # batches that are stored and not acknowledged
        self._is_asked = False
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
        if not (len(batch) or batch.events or batch.scales or batch.sketches):
            return None
        return Taken(self._entry(batch, data, now_ns), batch)

    def _entry(self, batch: FrameBatch, data: bytes, now_ns: int) -> Entry:
        last = batch.last_sequence
        self._batch_bytes = max(len(data), self._batch_bytes - self._batch_bytes // 16)
        if len(batch):
            if batch.first_sequence <= self._seen < last:
                raise Refused(
                    f"a batch of frames {batch.first_sequence} to {last}: up to {self._seen} they came before"
                )
            self._seen = max(self._seen, last)
        entry_id = EntryId(self.epoch_ms, min(max(last, 0), MAX_SEQUENCE))
        return Entry(
            id=entry_id,
            at=entry_id if len(batch) else EntryId(),  # of events the store gives it
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
        self._owed_bytes += sum(len(entry.batch) for entry in with_frames)

    def hurry(self) -> bool:
        """The agent gave its account, which it does when it waits for ours: acknowledge now. Whether there is
        something to."""
        self._is_asked = self._owed > 0
        return self._is_asked

    def pong(self, pong: agent_pb2.Pong, *, now_s: float, wall_ns: int) -> None:
        """The agent answered a ping."""
        self.clock.answered(pong.ping_ns, pong.wall_ns, now_ns=int(now_s * 1e9), wall_ns=wall_ns)

    # --- what to say

    def want(self, control: agent_pb2.Control) -> None:
        """All that is wanted of the agent; said where it is not what was said last. Not to be changed."""
        self.wanted = control

    def welcome(self, collector_id: str) -> agent_pb2.CollectorMessage:
        """The answer to the hello."""
        self._told = self.wanted
        welcome = agent_pb2.Welcome(
            protocol=PROTOCOL,
            epoch_ms=self.epoch_ms,
            resume_after=self.stored,
            credit=self.credit,
            collector_id=collector_id,
            demand=self.wanted.demand if self.wanted.HasField("demand") else None,
            control=self.wanted,
        )
        return agent_pb2.CollectorMessage(welcome=welcome)

    @property
    def credit(self) -> int:
        """Batches that the agent may have under way: as many as there is room for, by the last ones' size."""
        fitting = self._room_bytes // self._batch_bytes if self._batch_bytes else self._settings.credit
        return max(1, min(self._settings.credit, fitting))

    @property
    def silent_until_s(self) -> float:
        """When there is something to say, if nothing happens before."""
        if not self._owed:
            return self._ping_s
        company = self._settings.ack_batches
        if (credit := self.credit) < self._settings.credit:  # the agent waits for it
            company = min(company, max(1, credit // 2))
        soon = self._is_asked or self._owed >= company or self._owed_bytes >= ACK_BYTES
        return min(self._ping_s, self._owed_since_s + (0.0 if soon else self._settings.ack_delay_s))

    def say(self, now_s: float, *, at_last: bool = False) -> agent_pb2.CollectorMessage | None:
        """The next message, if one is due; the acknowledgement that is owed, `at_last`."""
        if not at_last and self.wanted != self._told:
            self._told = self.wanted
            return agent_pb2.CollectorMessage(control=self.wanted)
        if not at_last and now_s >= self._ping_s:
            return self._ping(now_s)
        if self._owed and (at_last or now_s >= self.silent_until_s):
            self._owed = self._owed_bytes = 0
            self._is_asked = False
            ack = agent_pb2.Ack(epoch_ms=self.epoch_ms, sequence=self.stored, credit=self.credit)
            return agent_pb2.CollectorMessage(ack=ack)
        return None

    def _ping(self, now_s: float) -> agent_pb2.CollectorMessage:
        self._pings += 1
        self._ping_s = now_s + (FIRST_PING_EVERY_S if self._pings < FIRST_PINGS else PING_EVERY_S)
        ping = agent_pb2.Ping(ping_ns=int(now_s * 1e9))
        best = self.clock.best
        if best is not None:
            ping.clock_offset_ns, ping.round_trip_ns = best.offset_ns, best.round_trip_ns
        self.clock.sent(ping.ping_ns)
        return agent_pb2.CollectorMessage(ping=ping)
