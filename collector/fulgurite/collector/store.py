"""The port to what stores: its contract, and the words it is spoken in.

The docstrings of `Store` are the contract. One suite of tests holds every implementation to it.

A replica has two streams. *Frames*: batches with frames, each with the id `<epoch ms>-<sequence of its last
frame>`, so that the store itself rejects what it already has. *Events*: batches without frames, with ids that
the store gives. A `Position` says how far both were read.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Final, Protocol

from fulgurite.wire.replica import ReplicaKey

MAX_ID_PART: Final = (1 << 64) - 1
ALIVE_S: Final = 5.0
"""A replica without a beat for so long has no collector that hears it."""


class StoreError(Exception):
    """The store cannot do what was asked."""


class StoreUnavailable(StoreError):
    """The store does not answer, or takes nothing now. Nothing of the call was acknowledged; try again."""


class StoreUnfit(StoreError):
    """The store answers, but cannot serve here. The message says what to do."""


class StaleEpoch(StoreError):
    """An entry of an epoch that a later one has replaced. It was not stored, and never will be."""


@dataclass(frozen=True, slots=True, order=True)
class EntryId:
    """The id of an entry, ordered."""

    epoch_ms: int = 0
    sequence: int = 0

    @property
    def text(self) -> str:
        """``<epoch ms>-<sequence>``."""
        return f"{self.epoch_ms}-{self.sequence}"

    @property
    def next(self) -> EntryId:
        """The smallest id behind this one."""
        return EntryId(self.epoch_ms, self.sequence + 1)

    @classmethod
    def parse(cls, text: str) -> EntryId:
        """Read `text`.

        Raises
        ------
        ValueError
            Where it is not two numbers of 64 bits.
        """
        match = re.fullmatch(r"(\d{1,20})-(\d{1,20})", text)
        if not match or max(int(match[1]), int(match[2])) > MAX_ID_PART:
            raise ValueError(f"not an entry: {text[:60]!r}; it is written <epoch ms>-<sequence>")
        return cls(int(match[1]), int(match[2]))


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One batch.

    Attributes
    ----------
    id : EntryId
        Epoch and sequence of the last frame; for a batch without frames, of the last frame before it.
    count : int
        Frames in it.
    batch : bytes
        As the agent wrote it.
    ingested_ns : int
        UNIX time at which the collector had it.
    at : EntryId
        Its id in its own stream. For frames the same as `id`; the store gives those of events.
    """

    id: EntryId
    count: int
    schema_hash: bytes
    ingested_ns: int
    batch: bytes
    at: EntryId = field(default_factory=EntryId)

    @property
    def first_sequence(self) -> int:
        """Sequence of the first frame."""
        return self.id.sequence - self.count + 1


@dataclass(frozen=True, slots=True)
class Position:
    """How far the two streams of a replica were read. The default is before everything."""

    frames: EntryId = EntryId()
    events: EntryId = EntryId()

    def covers(self, entry: Entry) -> bool:
        """Whether `entry` is at or before this position."""
        return entry.at <= (self.frames if entry.count else self.events)

    def past(self, entry: Entry) -> Position:
        """The position right behind `entry`."""
        return Position(entry.at, self.events) if entry.count else Position(self.frames, entry.at)

    def reaches(self, other: Position) -> bool:
        """Whether both streams were read as far as in `other`, or further."""
        return self.frames >= other.frames and self.events >= other.events


@dataclass(frozen=True, slots=True)
class Page:
    """Entries in the order in which they were ingested, and the position behind the last."""

    entries: tuple[Entry, ...]
    position: Position


@dataclass(frozen=True, slots=True)
class Registration:
    """What a replica writes under, and the last sequence of that epoch that was ever stored (0: none)."""

    epoch_ms: int
    resume_after: int


@dataclass(frozen=True, slots=True)
class ReplicaRow:
    """What the store knows of a replica.

    Attributes
    ----------
    announcement, status : bytes
        As they were given to `announce` and `beat`; `status` is empty before the first beat.
    alive : bool
        Whether there was a beat within `ALIVE_S`.
    """

    key: ReplicaKey
    announcement: bytes
    status: bytes
    alive: bool


@dataclass(frozen=True, slots=True)
class Retention:
    """What is kept of each replica."""

    age_s: float = 300.0
    nbytes: int = 64 << 20


@dataclass(frozen=True, slots=True)
class Wish:
    """What is wanted of a replica.

    Attributes
    ----------
    is_watched : bool
        Whether somebody watches it, at any collector.
    control : bytes
        As it was given to `ask`; empty where nothing was asked for.
    """

    is_watched: bool = False
    control: bytes = b""


WINDOWS_KEPT: Final[Mapping[int, int]] = {1: 300, 10: 360, 60: 1440}
"""Windows of a replica by their width in seconds, where the bytes allow it."""
WINDOWS_SHARE: Final = 8
"""Windows of one width take this part of the bytes of retention at most."""


class Outcome(Enum):
    """What became of an entry."""

    APPENDED = "appended"
    DUPLICATE = "duplicate"


def windows_kept(width_s: int, nbytes: int, retention: Retention) -> int:
    """How many windows of a width are kept, where each has about so many bytes."""
    room = retention.nbytes // WINDOWS_SHARE // max(1, nbytes)
    return max(2, min(WINDOWS_KEPT[width_s], room))


class Store(Protocol):
    """Where batches live, shared by all collectors.

    Every method MAY raise `StoreUnavailable`, after which the same call MAY be repeated: none has an effect
    twice, except that a batch without frames may then be stored twice. One writer per replica at a time; any
    number of readers. Bytes that are returned are the caller's to keep.
    """

    @property
    def name(self) -> str:
        """What it is, for people: ``redis 7.0.15``. Empty before `open`."""

    async def open(self) -> None:
        """Connect and see whether the store can serve.

        Raises
        ------
        StoreUnavailable
            Where nothing answers.
        StoreUnfit
            Where it lacks something, or cannot keep the durability that was asked for.
        """

    async def close(self) -> None:
        """Let go of it. What is stored stays."""

    async def register(self, key: ReplicaKey, *, asked_epoch_ms: int, now_ms: int) -> Registration:
        """Give a replica the epoch to write under.

        A replica that asks for 0, or for an epoch before the last one, gets a new one: max(`now_ms`, last
        + 1). Any other gets what it asks for, with the last sequence that was ever stored in it, trimmed or
        not. Two collectors that register the same replica at once MUST get different new epochs.
        """

    async def announce(self, key: ReplicaKey, schema_hash: bytes, announcement: bytes) -> None:
        """Say what a replica is. Replaces what was said; what was before is readable by its schema."""

    async def announcement(self, key: ReplicaKey, schema_hash: bytes) -> bytes | None:
        """What was announced with this schema; None where it is not known."""

    async def append(self, key: ReplicaKey, entries: Sequence[Entry]) -> list[Outcome]:
        """Store entries, in order; when it returns, they are as durable as was configured.

        An entry with frames whose id is not behind the newest is a DUPLICATE where both are of the same
        epoch. Entries without frames are always appended. Where `StoreUnavailable` is raised, all or none may
        be stored.

        Raises
        ------
        StaleEpoch
            Where a later epoch has begun. Entries before the one that raised may be stored.
        """

    async def read(self, key: ReplicaKey, after: Position, *, limit: int, wait_s: float = 0.0) -> Page:
        """At most about `limit` entries behind `after`, oldest first.

        Frames come in the order of their ids, events in theirs, both merged by the time at which they were
        ingested. An empty page says that there was nothing behind `after`; with `wait_s` it comes only after
        so long. A waiting reader MUST NOT delay any other call, and MUST end when it is cancelled, also where
        an entry comes at that moment.
        """

    async def newest(self, key: ReplicaKey) -> Position:
        """The position behind everything that is stored."""

    async def back(self, key: ReplicaKey, seconds: float) -> Position:
        """A position so many seconds ago, or up to a beat before; before everything where that is later."""

    async def oldest(self, key: ReplicaKey) -> EntryId | None:
        """Id of the oldest entry with frames that is still there; None where there is none."""

    async def beat(self, key: ReplicaKey, status: bytes) -> None:
        """The replica is connected: keep its status, mark how far its stream is, put off its expiry.

        About once a second. A replica without a beat for the age of retention and a minute is forgotten, with
        all that it stored.
        """

    async def trim(self, key: ReplicaKey) -> None:
        """Remove what is beyond the retention, by age and by bytes, to about a beat's distance."""

    async def mark_watched(self, keys: Sequence[ReplicaKey], seconds: float) -> None:
        """Say that somebody watches these replicas, for so many seconds."""

    async def ask(self, key: ReplicaKey, control: bytes) -> None:
        """Keep what is asked of a replica. Replaces what was asked; it is forgotten with the replica."""

    async def wishes(self, keys: Sequence[ReplicaKey]) -> dict[ReplicaKey, Wish]:
        """What is wanted of these replicas. One of which nothing is known MAY be left out."""

    async def keep_windows(self, key: ReplicaKey, windows: Sequence[tuple[int, bytes]]) -> None:
        """Keep windows that closed: pairs of a width in seconds, which `WINDOWS_KEPT` has, and bytes.

        The oldest of a width go, beyond `WINDOWS_KEPT` and the part of the retention's bytes.
        """

    async def windows(self, key: ReplicaKey, width_s: int, *, seconds: float) -> list[bytes]:
        """The windows that were kept within so many seconds, oldest first; 0: all."""

    async def keep_spans(self, parts: Sequence[tuple[bytes, bytes]]) -> None:
        """Keep what belongs to traces: pairs of a trace id (16 bytes) and bytes, for the age of retention.

        The same pair twice is kept once.
        """

    async def spans(self, trace_id: bytes) -> list[bytes]:
        """What was kept of a trace within the age of retention, in any order."""

    async def replicas(self) -> list[ReplicaRow]:
        """Every replica that was announced and is not forgotten, by key."""
