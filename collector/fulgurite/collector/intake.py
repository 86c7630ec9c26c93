"""From one agent's inbox into the store, in order, then into the figures.

While the store is away it waits here, with what it has taken; the inbox fills behind it, and nothing more is
read from the agent. That is back-pressure, not loss.
"""

from __future__ import annotations

import asyncio
import time
from typing import Final

from fulgurite.collector.fanout import Fanout
from fulgurite.collector.inbox import Inbox
from fulgurite.collector.link import Link, Taken, is_pong
from fulgurite.collector.outage import GivenUp, Outage
from fulgurite.collector.refusal import Refused
from fulgurite.collector.replicas import Replica, Replicas
from fulgurite.collector.store import StaleEpoch, Store, StoreError
from fulgurite.v1 import agent_pb2

MOST_AT_ONCE: Final = 32
MOST_BYTES_AT_ONCE: Final = 512 << 10
"""So that a burst of one agent delays nobody else."""
REPLACED: Final = (
    "another process announced itself as {key}: give each process a service.instance.id of its own"
)


class Intake:
    """Takes in what one agent sends.

    Parameters
    ----------
    fanout : Fanout, optional
        To whom what is stored is offered; None: whoever watches reads the store.

    Attributes
    ----------
    news : Event
        There may be something to say.
    is_over : bool
        Whether nothing more will be taken.
    refusal : Refused or None
        Why, where the agent is turned away.
    """

    def __init__(
        self,
        link: Link,
        replica: Replica,
        inbox: Inbox,
        *,
        store: Store,
        replicas: Replicas,
        outage: Outage,
        fanout: Fanout | None = None,
    ) -> None:
        self.link, self.replica, self.inbox = link, replica, inbox
        self.news = asyncio.Event()
        self.is_over = False
        self.refusal: Refused | None = None
        self._store, self._replicas, self._outage, self._fanout = store, replicas, outage, fanout
        self._given_up = asyncio.Event()

    async def run(self) -> None:
        """Take until the inbox is closed and empty."""
        try:
            while messages := await self.inbox.take(max_bytes=MOST_BYTES_AT_ONCE, max_messages=MOST_AT_ONCE):
                await self._handle(messages)
                if self.inbox.nbytes:  # where there is nothing more it waits anyway
                    await asyncio.sleep(0)
        except Refused as refusal:
            self.refusal = self.refusal or refusal
        except GivenUp:
            pass
        finally:
            self.is_over = True
            self.inbox.close()
            self.news.set()

    def give_up(self, refusal: Refused | None = None) -> None:
        """Take what the store takes now, and no more."""
        self.refusal = self.refusal or refusal
        self.inbox.close()
        self._given_up.set()

    def hear(self, data: bytes) -> bool:
        """Take a message that must not wait behind others; False where it is none."""
        if not is_pong(data):
            return False
        message = self.link.read(data, 0)
        assert isinstance(message, agent_pb2.Pong)
        self.link.pong(message, now_s=time.monotonic(), wall_ns=time.time_ns())
        return True

    async def _handle(self, messages: list[bytes]) -> None:
        """What could be read is kept even where something behind it breaks the protocol."""
        now_ns = time.time_ns()
        self.replica.seen_ns = now_ns
        taken: list[Taken] = []
        refusal: Refused | None = None
        is_asked = False
        for data in messages:
            try:
                message = self.link.read(data, now_ns)
            except Refused as error:
                refusal = error
                break
            if isinstance(message, Taken):
                taken.append(message)
            elif isinstance(message, agent_pb2.AgentStats):
                self.replica.hear(message)
                is_asked = True
            elif isinstance(message, agent_pb2.Goodbye):
                self.replica.has_ended = True
            elif isinstance(message, agent_pb2.Pong):
                self.link.pong(message, now_s=time.monotonic(), wall_ns=now_ns)
        if taken:
            await self._keep(taken, now_ns)
        if is_asked and self.link.hurry():
            self.news.set()
        if refusal:
            raise refusal

    async def _keep(self, taken: list[Taken], now_ns: int) -> None:
        entries = [one.entry for one in taken]
        try:
            await self._outage.outlast(
                "write", lambda: self._store.append(self.replica.key, entries), self._given_up
            )
        except StaleEpoch:
            raise Refused(REPLACED.format(key=self.replica.key)) from None
        if self._fanout is not None:
            self._fanout.offer(self.replica.key, entries)
        before_s = self.link.silent_until_s
        self.link.keep(entries, time.monotonic())
        if self.link.silent_until_s < before_s:
            self.news.set()
        for one in taken:
            self.replica.fold(one.batch, now_ns)
        if self.replica.unannounced:
            await self._announce()

    async def _announce(self) -> None:
        try:
            await self._replicas.announce(self.replica)
        except StoreError as error:  # it stays unannounced, and the next beat tries again
            self._outage.failed("write", error)
