"""The once-a-second duties: write down the figures of the replicas that are here, trim their past."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable
from typing import Final

from fulgurite.collector.outage import Outage
from fulgurite.collector.replicas import Replica, Replicas
from fulgurite.collector.store import Retention, Store, StoreError

log = logging.getLogger(__name__)

BEAT_EVERY_S: Final = 1.0
AT_ONCE: Final = 32
KEPT_AFTER_S: Final = 60.0
"""Longer than the retention by this much the store forgets a replica, and so do we."""


class Keeper:
    """Keeps the figures in the store, so that any collector can tell them, and the past within its bounds."""

    def __init__(self, store: Store, replicas: Replicas, *, retention: Retention, outage: Outage) -> None:
        self._store = store
        self._replicas = replicas
        self._retention = retention
        self._outage = outage

    async def run(self) -> None:
        """Do so until cancelled."""
        while True:
            began_s = time.monotonic()
            try:
                await self.keep()
            except Exception:  # a duty that fails once must not end the others for good
                log.exception("keeping the figures of the replicas failed; it is tried again")
            await asyncio.sleep(max(0.1, BEAT_EVERY_S - (time.monotonic() - began_s)))

    async def keep(self) -> None:
        """Do so once."""
        replicas = list(self._replicas)
        for at in range(0, len(replicas), AT_ONCE):
            await asyncio.gather(*(self._keep(replica) for replica in replicas[at : at + AT_ONCE]))

    async def _keep(self, replica: Replica) -> None:
        told = await self._done(self._tell(replica))
        # In any case: a store that is full refuses to be told, and what is too old makes room there.
        trimmed = await self._done(self._store.trim(replica.key))
        if not (told and trimmed):
            return
        self._outage.succeeded("write")
        if (
            replica.left_s is not None
            and time.monotonic() - replica.left_s > self._retention.age_s + KEPT_AFTER_S
        ):
            self._replicas.forget(replica.key)
            await self._store.replicas()  # a store in this process forgets when it is asked

    async def _tell(self, replica: Replica) -> None:
        if replica.left_s is None:
            await self._replicas.announce(replica)
            await self._replicas.beat(replica)

    async def _done(self, duty: Awaitable[None]) -> bool:
        """Whether the store did it."""
        try:
            await duty
        except StoreError as error:
            self._outage.failed("write", error)
            return False
        return True
