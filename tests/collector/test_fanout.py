"""The newest entries of one replica, held for everyone, within a bound."""

from __future__ import annotations

import asyncio

import pytest
from tests.collector.stage import asynchronous, until

from fulgurite.collector import fanout as fanout_module
from fulgurite.collector.fanout import OFFERED_S, WAIT_S, Channel, Fanout
from fulgurite.collector.outage import Outage
from fulgurite.collector.store import Entry, EntryId, Page, Position
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


def event(at: int) -> Entry:
    return Entry(id=EntryId(7, 0), at=EntryId(at, 0), count=0, schema_hash=b"", ingested_ns=0, batch=b"e")


class CountingStore(MemoryStore):
    """Counts how often it was read."""

    def __init__(self) -> None:
        super().__init__()
        self.reads = 0

    async def read(self, key: ReplicaKey, after: Position, *, limit: int, wait_s: float = 0.0) -> Page:
        self.reads += 1
        return await super().read(key, after, limit=limit, wait_s=wait_s)


def open_channel() -> Channel:
    channel = Channel(KEY, set())
    channel.begin(Position(EntryId(7, 5)))
    return channel


def test_what_was_stored_here_and_follows_is_taken_as_offered() -> None:
    channel = open_channel()
    channel.offer([frames(6), frames(7)], 1000, 1.0)
    assert (numbers(channel, 0), channel.is_behind) == ([6, 7], False)
    assert channel.position == Position(EntryId(7, 7))
    assert channel.offered_s == 1.0


def test_what_does_not_follow_is_left_to_the_store() -> None:
    later = EntryId(8, 1)
    strange = {
        "a gap": [frames(7)],
        "again": [frames(5)],
        "events": [event(1)],
        "events behind frames": [frames(6), event(1)],
        "an epoch": [Entry(id=later, at=later, count=1, schema_hash=b"", ingested_ns=0, batch=b"x")],
    }
    for name, entries in strange.items():
        channel = open_channel()
        channel.offer(entries, 1000, 1.0)
        assert (channel.end, channel.is_behind, channel.attention.is_set()) == (0, True, True), name
        channel.offer([frames(6)], 1000, 1.0)  # not before what is missing was read
        assert channel.end == 0, name


def test_while_the_store_is_read_nothing_is_taken_as_offered() -> None:
    channel = open_channel()
    channel.is_read = True
    channel.offer([frames(6)], 1000, 1.0)
    assert (channel.end, channel.is_behind) == (0, True)


def test_a_stream_that_is_offered_is_whole_and_hardly_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fanout_module, "OFFERED_S", 60.0)  # however slow the machine is
    asyncio.run(offered_stream())


async def offered_stream() -> None:
    store, wake = CountingStore(), asyncio.Event()
    fanout = Fanout(store, max_bytes=1 << 20, outage=Outage())
    channel = fanout.join(KEY, wake)
    await until(lambda: channel.is_ready)
    for last in range(1, 101):
        entries = [frames(last)] if last % 25 else [event(last), frames(last)]
        await store.append(KEY, entries)
        fanout.offer(KEY, entries)
        await asyncio.sleep(0.002)
    await until(lambda: channel.end >= 104)
    with_frames = [entry.id.sequence for entry in channel.after(0, 1000) if entry.count]
    assert with_frames == list(range(1, 101))
    assert channel.end == 104
    assert store.reads < 60  # about two around each of the four events, and a few at the beginning
    await fanout.close()


@asynchronous
async def test_what_another_collector_wrote_is_seen_also_in_a_stream_that_is_offered() -> None:
    store, wake = CountingStore(), asyncio.Event()
    fanout = Fanout(store, max_bytes=1 << 20, outage=Outage())
    channel = fanout.join(KEY, wake)
    await until(lambda: channel.is_ready)
    last = 0

    async def offered(until_end: int) -> None:
        nonlocal last
        while channel.end < until_end:
            last += 1
            await store.append(KEY, [frames(last)])
            fanout.offer(KEY, [frames(last)])
            await asyncio.sleep(OFFERED_S / 10)

    await offered(5)
    await store.append(KEY, [event(1)])  # nobody offers it
    began = last
    while not any(not entry.count for entry in channel.after(0, 1000)):
        await offered(channel.end + 1)
        assert last < began + 30 * WAIT_S / OFFERED_S
    last += 1
    await store.append(KEY, [frames(last)])  # nor this one, which is missed at the next that is
    await offered(channel.end + 3)
    await until(lambda: [e.id.sequence for e in channel.after(0, 1000) if e.count][-1] == last)
    assert [e.id.sequence for e in channel.after(0, 1000) if e.count] == list(range(1, last + 1))
    await fanout.close()
