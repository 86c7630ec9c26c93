"""The store is away: one line in the log when it goes, one when it is back, and the patience in between."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Final, Literal, TypeVar

from fulgurite.collector.store import StaleEpoch, StoreError
from fulgurite.collector.waiting import wait_at_most

log = logging.getLogger(__name__)

FIRST_RETRY_S: Final = 0.05

Doing = Literal["write", "read"]
T = TypeVar("T")


class GivenUp(Exception):
    """Nobody waits for it any more."""


class Outage:
    """Whether the store is away, shared by all who need it.

    Parameters
    ----------
    retry_after_s : float
        The longest pause between two attempts.
    """

    def __init__(self, retry_after_s: float = 1.0) -> None:
        self.retry_after_s = retry_after_s
        self._failing: set[Doing] = set()
        self._since_s = 0.0

    @property
    def is_on(self) -> bool:
        """Whether something that was asked of the store failed, and has not succeeded since."""
        return bool(self._failing)

    def failed(self, doing: Doing, error: StoreError) -> None:
        """The store could not do it."""
        if not self._failing:
            self._since_s = time.monotonic()
            log.warning(
                "the store is away: %s. Until it answers nothing is acknowledged, and agents wait", error
            )
        self._failing.add(doing)

    def succeeded(self, doing: Doing) -> None:
        """The store did it. A store that is full still reads, so each kind of work ends its own failure."""
        if doing not in self._failing:
            return
        self._failing.discard(doing)
        if not self._failing:
            log.warning("the store answers again, after %.1f s", time.monotonic() - self._since_s)

    async def outlast(self, doing: Doing, call: Callable[[], Awaitable[T]], given_up: asyncio.Event) -> T:
        """`call`, as often as it takes.

        Raises
        ------
        GivenUp
            Where `given_up` is set first.
        StaleEpoch
            As `call` raised it.
        """
        pause_s = FIRST_RETRY_S
        while True:
            try:
                result = await call()
            except StaleEpoch:
                raise
            except StoreError as error:
                self.failed(doing, error)
            else:
                self.succeeded(doing)
                return result
            await self._pause(pause_s, given_up)
            pause_s = min(2 * pause_s, self.retry_after_s)

    async def _pause(self, pause_s: float, given_up: asyncio.Event) -> None:
        await wait_at_most(given_up, pause_s)
        if given_up.is_set():
            raise GivenUp
