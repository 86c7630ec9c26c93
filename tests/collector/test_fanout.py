"""The newest entries of one replica, held for everyone, within a bound."""

from __future__ import annotations

import asyncio

from tests.collector.stage import asynchronous, until

from fulgurite.collector.fanout import Channel, Fanout
from fulgurite.collector.outage import Outage
from fulgurite.collector.store import Entry, EntryId, Position
from fulgurite.collector.stores.memory import MemoryStore
from fulgurite.wire.replica import ReplicaKey

KEY = ReplicaKey("", "served", "a")


def frames(last: int, size: int = 10) -> Entry:
    at = EntryId(7, last)
    return Entry(id=at, at=at, count=1, schema_hash=b"", ingested_ns=0, batch=b"x" * size)


def numbers(channel: Channel, start: int, limit: int = 100) -> list[int]:
    return [entry.id.sequence for entry in channel.after(start, limit)]


def test_entries_are_found_by_their_number_from_either_end() -> None:
    channel = Channel(KEY, set())
    channel.begin(Position(EntryId(7, 5)))
    channel.extend(tuple(frames(last) for last in range(6, 26)), 1000)
    assert (channel.first, channel.end) == (0, 20)
    for start in range(20):
        assert numbers(channel, start) == list(range(6 + start, 26))
        assert numbers(channel, start, 3) == list(range(6 + start, min(26, 9 + start)))
    assert numbers(channel, 20) == []


def test_beyond_the_bound_the_oldest_go_and_the_base_follows() -> None:
    channel = Channel(KEY, set())
    channel.begin(Position(EntryId(7, 5)))
    channel.extend(tuple(frames(last) for last in range(6, 26)), 100)
    assert (channel.first, channel.end) == (10, 20)
    assert channel.base == Position(EntryId(7, 15))
    assert channel.position == Position(EntryId(7, 25))
    assert numbers(channel, 10) == list(range(16, 26))
    channel.extend((frames(26, 5000),), 100)
    assert (channel.first, channel.end) == (20, 21)  # one entry is held, however large


@asynchronous
async def test_one_reader_serves_all_and_goes_with_the_last() -> None:
    store = MemoryStore()
    fanout = Fanout(store, max_bytes=1 << 20, outage=Outage())
    first, second = asyncio.Event(), asyncio.Event()
    channel = fanout.join(KEY, first)
    assert fanout.join(KEY, second) is channel
    await until(lambda: channel.is_ready)
    readers = [task for task in asyncio.all_tasks() if task.get_name().startswith("reader of")]
    assert len(readers) == 1
    first.clear()
    second.clear()
    await store.append(KEY, [frames(1)])
    await first.wait()
    await second.wait()
    assert numbers(channel, 0) == [1]
    fanout.leave(channel, first)
    assert not readers[0].cancelling()
    fanout.leave(channel, second)
    await until(readers[0].done)
    again = fanout.join(KEY, first)
    assert again is not channel
    await fanout.close()


@asynchronous
async def test_a_reader_ends_with_its_last_viewer_also_where_an_entry_comes_at_that_moment() -> None:
    """A cancellation that meets the answer must not be lost: the reader would go on for ever, for nobody."""
    for turns in range(8):
        store, wake = MemoryStore(), asyncio.Event()
        fanout = Fanout(store, max_bytes=1 << 20, outage=Outage())
        channel = fanout.join(KEY, wake)
        reader = fanout._readers[KEY]
        await until(lambda channel=channel: channel.is_ready)
        await asyncio.sleep(0)
        await store.append(KEY, [frames(1)])
        for _ in range(turns):
            await asyncio.sleep(0)
        fanout.leave(channel, wake)
        await until(reader.done)
