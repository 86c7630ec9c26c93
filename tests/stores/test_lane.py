"""The short way to a server, against a real one: what goes wrong in one exchange does not reach the next."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from redis.exceptions import ResponseError
from tests.collector.stage import StoreServer, asynchronous

from fulgurite.collector.stores.lane import Lane, packed, unrefused
from fulgurite.collector.stores.servers import client_at


@asynccontextmanager
async def laid() -> AsyncIterator[tuple[Lane, Any]]:
    """A lane to a server of its own, and a client of the usual kind."""
    with TemporaryDirectory(prefix="fulgurite-lane-") as folder:
        server = StoreServer(Path(folder))
        await server.start()
        usual, blocking = client_at(server.url), client_at(server.url, answers_soon=False)
        lane = Lane(blocking, timeout_s=5.0)
        try:
            yield lane, usual
        finally:
            await lane.close()
            await usual.aclose()
            await blocking.aclose()
            await server.kill()


def test_words_are_packed_as_the_protocol_has_them() -> None:
    assert packed(("SET", b"k\r\n", 17)) == b"*3\r\n$3\r\nSET\r\n$3\r\nk\r\n\r\n$2\r\n17\r\n"
    assert packed(("ECHO", "é")) == b"*2\r\n$4\r\nECHO\r\n$2\r\n\xc3\xa9\r\n"


@asynchronous
async def test_each_command_has_its_answer_and_a_refusal_is_in_its_place() -> None:
    async with laid() as (lane, usual):
        found = await lane.ask(("SET", "a", 1), ("LPUSH", "a", 2), ("GET", "a"))
        assert (found[0], found[2]) == (b"OK", b"1")
        assert isinstance(found[1], ResponseError)
        with pytest.raises(ResponseError):
            unrefused(found)
        assert await lane.transact(("INCR", "a"), ("INCR", "a")) == [2, 3]
        with pytest.raises(ResponseError):
            await lane.transact(("INCR", "a"), ("NOSUCH",))
        assert await usual.get("a") == b"3"  # of a refused transaction nothing is done


@asynchronous
async def test_a_connection_that_died_while_it_was_kept_is_replaced() -> None:
    async with laid() as (lane, usual):
        await lane.ask(("SET", "a", 1))
        await usual.client_kill_filter(_type="normal", skipme=True)
        assert await lane.ask(("GET", "a")) == [b"1"]


@asynchronous
async def test_an_answer_that_nobody_waited_for_is_not_taken_for_the_next() -> None:
    async with laid() as (lane, _):
        asked = asyncio.create_task(lane.ask(("BLPOP", "nothing", 1)))
        await asyncio.sleep(0.1)
        asked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asked
        assert await lane.ask(("ECHO", "mine")) == [b"mine"]


@asynchronous
async def test_an_answer_that_does_not_come_in_time_is_given_up() -> None:
    async with laid() as (lane, _):
        lane._timeout_s = 0.2
        with pytest.raises(TimeoutError):
            await lane.ask(("BLPOP", "nothing", 2))
        assert await lane.ask(("ECHO", "mine")) == [b"mine"]


@asynchronous
async def test_many_at_once_have_a_connection_each() -> None:
    async with laid() as (lane, _):
        words = [f"w{i}" for i in range(64)]
        found = await asyncio.gather(*(lane.ask(("ECHO", word)) for word in words))
        assert [answer.decode() for (answer,) in found] == words
