"""Entries in a row, written through whatever happens to the servers, as the collector writes them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from fulgurite.collector.outage import Outage
from fulgurite.collector.store import Entry, EntryId, Position, Store
from fulgurite.collector.stores.redis import RedisStore
from fulgurite.wire.replica import ReplicaKey

EPOCH = 1_700_000_000_000
HASH = b"0123456789abcdef"
FRAMES = 4


def entry(number: int) -> Entry:
    """Entry `number` of a row, counted from 1."""
    return Entry(
        id=EntryId(EPOCH, number * FRAMES),
        count=FRAMES,
        schema_hash=HASH,
        ingested_ns=number,
        batch=b"%d" % number + bytes(200),
    )


@asynccontextmanager
async def opened(url: str, **settings: object) -> AsyncIterator[RedisStore]:
    """A store there."""
    store = RedisStore(url, **settings)  # type: ignore[arg-type]
    await store.open()
    try:
        yield store
    finally:
        await store.close()


async def read_all(store: Store, key: ReplicaKey) -> list[int]:
    """Numbers of the entries that are there, in order."""
    found: list[Entry] = []
    after = Position()
    while (page := await store.read(key, after, limit=100)).entries:
        found += page.entries
        after = page.position
    return [one.id.sequence // FRAMES for one in found]


@dataclass
class Writer:
    """Writes one entry after another until it is stopped; what the store does not take it offers again."""

    store: Store
    key: ReplicaKey
    written: int = 0
    longest_pause_s: float = 0.0
    _over: asyncio.Event = field(default_factory=asyncio.Event)

    async def run(self) -> None:
        """Do so."""
        outage = Outage(0.2)
        while not self._over.is_set():
            began_s = time.monotonic()
            number = self.written + 1
            await outage.outlast("write", lambda: self.store.append(self.key, [entry(number)]), self._over)  # noqa: B023
            self.written = number
            self.longest_pause_s = max(self.longest_pause_s, time.monotonic() - began_s)
            await asyncio.sleep(0.002)

    def stop(self) -> None:
        """After the entry that is on its way."""
        self._over.set()


@asynccontextmanager
async def writing(store: Store, *keys: ReplicaKey) -> AsyncIterator[list[Writer]]:
    """A writer for each key."""
    writers = [Writer(store, key) for key in keys]
    tasks = [asyncio.create_task(writer.run()) for writer in writers]
    try:
        yield writers
    finally:
        for writer in writers:
            writer.stop()
        await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 60.0)


async def reached(condition: Callable[[], bool], timeout_s: float = 40.0) -> None:
    """Wait until it is so."""
    limit_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < limit_s, "not in time"
        await asyncio.sleep(0.02)
