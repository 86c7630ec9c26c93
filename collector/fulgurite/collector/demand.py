"""What is wanted of each replica: whole frames while somebody watches, its level, a pause. Told to its agent.

A viewer may be at another collector than the agent, so that somebody watches is marked in the store, for a
few seconds at a time; that is also how long it lasts after the last viewer left. What was asked for by an
administrator is kept in the store with the replica.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from google.protobuf.message import DecodeError

from fulgurite.collector.config import History
from fulgurite.collector.store import Store, StoreError, StoreUnfit, Wish
from fulgurite.v1 import agent_pb2
from fulgurite.wire.replica import ReplicaKey

log = logging.getLogger(__name__)

LOOK_EVERY_S: Final = 0.25
MARK_EVERY_S: Final = 1.0
MARKED_S: Final = 3.0
"""Longer than the time between two marks, so that a mark that comes late changes nothing."""
NOBODY: Final = Wish()


class Demands:
    """What is wanted of the replicas whose agents are connected here, and which ones are watched here.

    Parameters
    ----------
    history : History
        What is wanted of requests while nobody watches.
    """

    def __init__(self, store: Store, *, history: History) -> None:
        self._store, self._history = store, history
        self._watchers: Counter[ReplicaKey] = Counter()
        self._wishes: dict[ReplicaKey, Wish] = {}
        self._agents: dict[ReplicaKey, tuple[object, Callable[[], None]]] = {}
        self._marked_s = float("-inf")
        self._hurry = asyncio.Event()
        self._may_not_mark = False

    # --- who watches here

    def watch(self, key: ReplicaKey) -> None:
        """One more viewer watches this replica here."""
        self._watchers[key] += 1
        if self._watchers[key] == 1:
            self._marked_s = float("-inf")
            self._tell(key)
            self._hurry.set()

    def unwatch(self, key: ReplicaKey) -> None:
        """One less. Its mark in the store lasts a little longer."""
        self._watchers[key] -= 1
        if self._watchers[key] <= 0:
            del self._watchers[key]

    # --- whose agent is here

    async def look_up(self, key: ReplicaKey) -> None:
        """See what is wanted of a replica, before its agent is welcome.

        Raises
        ------
        StoreError
            As the store does.
        """
        self._wishes[key] = (await self._store.wishes([key])).get(key, NOBODY)

    def admit(self, key: ReplicaKey, stream: object, tell: Callable[[], None]) -> None:
        """An agent is connected; `tell` is called when what is wanted of it may have changed."""
        self._agents[key] = (stream, tell)

    def leave(self, key: ReplicaKey, stream: object) -> None:
        """The stream is gone. Another one of the same replica may have come in between."""
        if key in self._agents and self._agents[key][0] is stream:
            del self._agents[key]
            self._wishes.pop(key, None)

    def of(self, key: ReplicaKey) -> agent_pb2.Control:
        """All that is wanted of a replica."""
        wish = self._wishes.get(key, NOBODY)
        control = agent_pb2.Control()
        try:
            control.ParseFromString(wish.control)
        except DecodeError:
            control.Clear()
        control.own_level = not control.level
        control.demand.CopyFrom(
            agent_pb2.Demand(
                watched=wish.is_watched or self._watchers[key] > 0,
                one_in=self._history.one_in,
                history_level=self._history.level,
            )
        )
        return control

    def hurry(self) -> None:
        """Look at once: something was changed in the store."""
        self._hurry.set()

    # --- between the collectors

    async def run(self) -> None:
        """Keep the marks fresh and look at those of others, until cancelled."""
        while True:
            self._hurry.clear()
            try:
                await self.look(time.monotonic())
            except StoreError:  # what was wanted holds on; whoever stores or reads says that it is away
                pass
            except Exception:  # what is wanted must be told again as soon as it can be
                log.exception("looking up what is wanted of the replicas failed; it is tried again")
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK_EVERY_S):  # which loses no cancellation, as `wait_for` may
                    await self._hurry.wait()

    async def look(self, now_s: float) -> None:
        """Do so once."""
        if self._watchers and now_s >= self._marked_s + MARK_EVERY_S:
            self._marked_s = now_s
            await self._mark()
        if not self._agents:
            return
        wishes = await self._store.wishes(list(self._agents))
        for key in list(self._agents):
            wish = wishes.get(key, NOBODY)
            if wish != self._wishes.get(key):
                self._wishes[key] = wish
                self._tell(key)

    async def _mark(self) -> None:
        try:
            await self._store.mark_watched(list(self._watchers), MARKED_S)
        except StoreUnfit as error:  # who may only read: what agents here send is seen, others are not asked
            if not self._may_not_mark:
                log.warning("agents at other collectors do not hear that somebody watches here: %s", error)
            self._may_not_mark = True

    def _tell(self, key: ReplicaKey) -> None:
        if key in self._agents:
            self._agents[key][1]()
