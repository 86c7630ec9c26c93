"""One reader of the store per replica that is watched; every viewer takes from it at its own pace.

A viewer that falls behind what is held here has been too slow. Nobody waits for it, and it costs no memory.

What this collector itself has stored need not be read back: it is offered, and taken where it follows on what
is held without a gap. Whatever is not so simple (a batch without frames, a new epoch, another collector that
wrote meanwhile) is read, and the store alone says in which order it came.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Sequence
from itertools import islice
from typing import Final

from fulgurite.collector.outage import Outage
from fulgurite.collector.store import Entry, EntryId, Position, Store, StoreError
from fulgurite.collector.waiting import wait_at_most
from fulgurite.wire.replica import ReplicaKey

log = logging.getLogger(__name__)

PAGE: Final = 64
WAIT_S: Final = 1.0
LEAST_BYTES: Final = 64 << 10
EPOCHS: Final = 16
OFFERED_S: Final = 0.5
"""While entries were offered so lately the store is asked once in `WAIT_S` only, for what others wrote."""


class Channel:
    """The newest entries of one replica. They are numbered from 0; `first` is the oldest that is held.

    Attributes
    ----------
    base, position : Position
        Every entry behind `base`, up to `position`, is held.
    is_ready : bool
        Whether it was found where the stream is.
    ends : dict of int to int
        The last sequence of the newest epochs that were seen here.
    is_read : bool
        Whether an answer of the store is under way: what comes now might be in it.
    is_behind : bool
        Whether something was stored that is not held, and is to be read.
    refused : EntryId or None
        The newest that was offered and not taken; None where it has no place that can be compared (events).
    offered_s, read_s : float
        When something was last offered, and when the store last answered (monotonic).
    attention : Event
        The reader is to look again.
    """

    def __init__(self, key: ReplicaKey, wakes: set[asyncio.Event]) -> None:
        self.key = key
        self.base = self.position = Position()
        self.first = 0
        self.is_ready = False
        self.wakes = wakes
        self.ends: dict[int, int] = {}
        self.is_read = self.is_behind = False
        self.refused: EntryId | None = EntryId()
        self.offered_s = self.read_s = float("-inf")
        self.attention = asyncio.Event()
        self._entries: deque[Entry] = deque()
        self._nbytes = 0

    @property
    def end(self) -> int:
        """The number behind the newest entry."""
        return self.first + len(self._entries)

    def begin(self, position: Position) -> None:
        """The stream is here now."""
        self.base = self.position = position
        self.ends[position.frames.epoch_ms] = position.frames.sequence
        self.is_ready = True
        self._wake()

    def extend(self, entries: tuple[Entry, ...], max_bytes: int) -> None:
        """Take what came, let go of the oldest beyond `max_bytes`."""
        for entry in entries:
            self._entries.append(entry)
            self._nbytes += len(entry.batch)
            self.position = self.position.past(entry)
            if entry.count:
                self.ends[entry.id.epoch_ms] = entry.id.sequence
        while len(self.ends) > EPOCHS:
            del self.ends[next(iter(self.ends))]
        while self._nbytes > max_bytes and len(self._entries) > 1:
            gone = self._entries.popleft()
            self._nbytes -= len(gone.batch)
            self.base = self.base.past(gone)
            self.first += 1
        self._wake()

    def offer(self, entries: Sequence[Entry], max_bytes: int, now_s: float) -> None:
        """These were stored here, in this order; what follows on what is held is taken."""
        self.offered_s = now_s
        if self.is_read or self.is_behind or not self.is_ready or not self._follow(entries):
            known = self.refused is not None and all(entry.count for entry in entries)
            self.refused = entries[-1].at if known else None
            self.is_behind = True
            self.attention.set()
            return
        self.extend(tuple(entries), max_bytes)

    def _follow(self, entries: Sequence[Entry]) -> bool:
        epoch_ms, sequence = self.position.frames.epoch_ms, self.position.frames.sequence
        for entry in entries:
            if not entry.count or entry.at.epoch_ms != epoch_ms or entry.first_sequence != sequence + 1:
                return False
            sequence = entry.at.sequence
        return True

    def at(self, number: int) -> Entry | None:
        """The entry of that number; None where it is not held."""
        place = number - self.first
        return self._entries[place] if 0 <= place < len(self._entries) else None

    def after(self, number: int, limit: int = PAGE) -> list[Entry]:
        """At most `limit` entries from `number` on, which must be held."""
        start = number - self.first
        if start > len(self._entries) // 2:  # a deque is walked from its nearer end
            tail = list(islice(reversed(self._entries), len(self._entries) - start))
            return tail[::-1][:limit]
        return list(islice(self._entries, start, start + limit))

    def _wake(self) -> None:
        for wake in self.wakes:
            wake.set()


class Fanout:
    """The channels that somebody watches.

    Parameters
    ----------
    max_bytes : int
        Of all channels together, shared evenly; but at least `LEAST_BYTES` and one entry each.
    """

    def __init__(self, store: Store, *, max_bytes: int, outage: Outage) -> None:
        self._store = store
        self._max_bytes = max_bytes
        self._outage = outage
        self._channels: dict[ReplicaKey, Channel] = {}
        self._readers: dict[ReplicaKey, asyncio.Task[None]] = {}

    def join(self, key: ReplicaKey, wake: asyncio.Event) -> Channel:
        """The channel of a replica; `wake` is set whenever there is more in it."""
        channel = self._channels.get(key)
        if channel is None:
            channel = self._channels[key] = Channel(key, {wake})
            self._readers[key] = asyncio.create_task(self._read(channel), name=f"reader of {key}")
        channel.wakes.add(wake)
        return channel

    def leave(self, channel: Channel, wake: asyncio.Event) -> None:
        """One viewer is gone; with the last one goes the reader."""
        channel.wakes.discard(wake)
        if not channel.wakes and self._channels.get(channel.key) is channel:
            del self._channels[channel.key]
            self._readers.pop(channel.key).cancel()

    async def close(self) -> None:
        """End every reader."""
        readers = list(self._readers.values())
        for reader in readers:
            reader.cancel()
        await asyncio.gather(*readers, return_exceptions=True)

    async def _read(self, channel: Channel) -> None:
        while True:
            try:
                await self._read_once(channel)
            except StoreError as error:
                self._outage.failed("read", error)
                await asyncio.sleep(self._outage.retry_after_s)
            except Exception:  # a reader that ends would leave its viewers without a word
                log.exception("reading the stream of %s failed; it is tried again", channel.key)
                await asyncio.sleep(self._outage.retry_after_s)
            else:
                self._outage.succeeded("read")

    async def _read_once(self, channel: Channel) -> None:
        if not channel.is_ready:
            channel.begin(await self._store.newest(channel.key))
        channel.attention.clear()
        now_s = time.monotonic()
        quiet_s = channel.offered_s + OFFERED_S - now_s
        rest_s = min(quiet_s, channel.read_s + WAIT_S - now_s)
        if rest_s > 0 and not channel.is_behind:
            await wait_at_most(channel.attention, rest_s)
            return
        wait_s = 0.0 if channel.is_behind or quiet_s > 0 else WAIT_S
        channel.is_behind, channel.is_read, channel.refused = False, True, EntryId()
        try:
            page = await self._store.read(channel.key, channel.position, limit=PAGE, wait_s=wait_s)
        except BaseException:
            channel.is_behind = True
            raise
        finally:
            channel.is_read = False
        channel.read_s = time.monotonic()
        if page.entries:
            channel.extend(page.entries, self._share)
        # What was offered meanwhile is mostly in the answer: it waited for just that.
        is_held = channel.refused is not None and channel.refused <= channel.position.frames
        channel.is_behind = not is_held or len(page.entries) >= PAGE

    @property
    def _share(self) -> int:
        share = self._max_bytes // len(self._channels) if self._channels else self._max_bytes
        return max(LEAST_BYTES, share)

    def offer(self, key: ReplicaKey, entries: Sequence[Entry]) -> None:
        """These were stored by this collector: whoever watches need not wait for the store to say so."""
        channel = self._channels.get(key)
        if channel is not None and entries:
            channel.offer(entries, self._share, time.monotonic())
