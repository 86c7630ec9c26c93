"""Waiting for an event, for so long at most."""

from __future__ import annotations

import asyncio


async def wait_at_most(event: asyncio.Event, timeout_s: float) -> None:
    """Until `event` is set, or the time is up.

    Makes no task and loses no cancellation, as `asyncio.wait_for` does before Python 3.12: it is awaited for
    each message.
    """
    if event.is_set():
        return
    try:
        async with asyncio.timeout(max(0.0, timeout_s)):
            await event.wait()
    except TimeoutError:
        pass
