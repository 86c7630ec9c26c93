"""What is in the store after a run, read with the store's own port and decoded."""

from __future__ import annotations

import asyncio

from tests.chaos.numbered import numbers_in

from fulgurite.collector.store import Position
from fulgurite.collector.stores.redis import RedisStore
from fulgurite.wire.replica import ReplicaKey


def stored_numbers(url: str, keys: list[ReplicaKey], encoding: str) -> dict[ReplicaKey, list[int]]:
    """Numbers of the frames of each replica, in the order of the stream."""
    return asyncio.run(_read(url, keys, encoding))


async def _read(url: str, keys: list[ReplicaKey], encoding: str) -> dict[ReplicaKey, list[int]]:
    store = RedisStore(url)
    await store.open()
    try:
        return {key: numbers_in(await _batches(store, key), encoding) for key in keys}
    finally:
        await store.close()


async def _batches(store: RedisStore, key: ReplicaKey) -> list[bytes]:
    found: list[bytes] = []
    after = Position()
    while (page := await store.read(key, after, limit=256)).entries:
        found += [entry.batch for entry in page.entries if entry.count]
        after = page.position
    return found
