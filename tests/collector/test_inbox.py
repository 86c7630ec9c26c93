"""The inbox is bounded, keeps the order, and ends for both sides."""

from __future__ import annotations

import asyncio

from tests.collector.stage import asynchronous

from fulgurite.collector.inbox import Inbox


def inbox(max_bytes: int = 100, max_messages: int = 10) -> Inbox:
    return Inbox(max_bytes=max_bytes, max_messages=max_messages)


async def take(box: Inbox) -> list[bytes]:
    return await box.take(max_bytes=1000, max_messages=1000)


@asynchronous
async def test_what_is_put_is_taken_in_order() -> None:
    box = inbox()
    for message in (b"1", b"2", b"3"):
        assert await box.put(message)
    assert await box.take(max_bytes=1000, max_messages=2) == [b"1", b"2"]
    assert await take(box) == [b"3"]
    assert box.nbytes == 0


@asynchronous
async def test_when_it_is_full_nothing_more_goes_in_until_something_is_taken() -> None:
    for box in (inbox(max_bytes=10), inbox(max_messages=2)):
        await box.put(b"12345")
        await box.put(b"12345")
        putting = asyncio.create_task(box.put(b"x"))
        await asyncio.sleep(0)
        assert not putting.done()
        assert await take(box) == [b"12345", b"12345"]
        assert await putting
        assert await take(box) == [b"x"]


@asynchronous
async def test_one_message_larger_than_the_bound_passes() -> None:
    box = inbox(max_bytes=10)
    assert await box.put(b"x" * 50)
    assert await box.take(max_bytes=1, max_messages=5) == [b"x" * 50]


@asynchronous
async def test_who_takes_waits_for_who_puts() -> None:
    box = inbox()
    taking = asyncio.create_task(take(box))
    await asyncio.sleep(0)
    await box.put(b"1")
    assert await taking == [b"1"]


@asynchronous
async def test_closing_lets_what_is_there_be_taken_and_wakes_both() -> None:
    box = inbox(max_messages=1)
    await box.put(b"1")
    putting = asyncio.create_task(box.put(b"2"))
    await asyncio.sleep(0)
    box.close()
    assert not await putting
    assert await take(box) == [b"1"]
    assert await take(box) == []
    assert not await box.put(b"3")
