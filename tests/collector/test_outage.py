"""A store that is away is said once, is waited for, and is not waited for by who has left."""

from __future__ import annotations

import asyncio
import logging

import pytest
from tests.collector.stage import asynchronous

from fulgurite.collector.outage import GivenUp, Outage
from fulgurite.collector.store import StaleEpoch, StoreUnavailable


class Flaky:
    """Fails so many times, then gives its number of calls."""

    def __init__(self, failures: int) -> None:
        self.failures = failures
        self.calls = 0

    async def __call__(self) -> int:
        self.calls += 1
        if self.calls <= self.failures:
            raise StoreUnavailable("it sleeps")
        return self.calls


@asynchronous
async def test_a_call_is_repeated_until_it_succeeds_and_two_lines_say_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.WARNING)
    outage = Outage(retry_after_s=0.01)
    assert await outage.outlast("write", Flaky(3), asyncio.Event()) == 4
    assert not outage.is_on
    away, back = caplog.messages
    assert away == ("the store is away: it sleeps. Until it answers nothing is acknowledged, and agents wait")
    assert back.startswith("the store answers again, after 0.")


@asynchronous
async def test_a_store_that_only_reads_is_still_away() -> None:
    outage = Outage()
    outage.failed("read", StoreUnavailable("full"))
    outage.failed("write", StoreUnavailable("full"))
    outage.succeeded("read")
    assert outage.is_on
    outage.succeeded("write")
    assert not outage.is_on


@asynchronous
async def test_who_gives_up_waits_no_longer() -> None:
    outage, given_up = Outage(retry_after_s=60.0), asyncio.Event()
    waiting = asyncio.create_task(outage.outlast("write", Flaky(10**9), given_up))
    await asyncio.sleep(0)
    given_up.set()
    with pytest.raises(GivenUp):
        await waiting


@asynchronous
async def test_an_epoch_that_is_over_is_not_waited_for() -> None:
    async def append() -> None:
        raise StaleEpoch("over")

    outage = Outage()
    with pytest.raises(StaleEpoch):
        await outage.outlast("write", append, asyncio.Event())
    assert not outage.is_on
