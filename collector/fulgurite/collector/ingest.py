"""The port for agents: one bidirectional stream each, from its hello to its end.

Messages are taken as bytes, because a batch is stored as its agent wrote it, and because what is no message
is to be answered with a sentence.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from typing import Any, Final
from weakref import WeakValueDictionary

import grpc

from fulgurite.collector.caller import check_replica
from fulgurite.collector.config import Settings
from fulgurite.collector.demand import Demands
from fulgurite.collector.fanout import Fanout
from fulgurite.collector.hello import Introduction, introduction
from fulgurite.collector.inbox import Inbox
from fulgurite.collector.intake import REPLACED, Intake
from fulgurite.collector.link import Link
from fulgurite.collector.outage import Outage
from fulgurite.collector.refusal import Refused
from fulgurite.collector.replicas import Replicas
from fulgurite.collector.store import Store, StoreError
from fulgurite.collector.waiting import wait_at_most
from fulgurite.v1 import agent_pb2
from fulgurite.wire.refusals import STORE_AWAY
from fulgurite.wire.replica import ReplicaKey

log = logging.getLogger(__name__)

HELLO_TIMEOUT_S: Final = 5.0
HELD_BYTES: Final = 64 << 20
LEAST_HELD_BYTES: Final = 1 << 20
"""So much of all agents together waits for the store, but at least a large batch of each."""
GIVE_UP_S: Final = 1.0
ORPHAN_S: Final = 10.0
"""How long what a vanished agent had sent waits for a store that is away."""
DAY_MS: Final = 86_400_000
"""An epoch so far ahead is none that a collector gave; who asks for one gets a new one."""
AWAY: Final = f"{STORE_AWAY}: "


class AgentService:
    """See `agent.proto`.

    Parameters
    ----------
    collector_id : str
        What this collector calls itself to agents.
    fanout : Fanout, optional
        Where viewers wait for what agents send here.
    """

    def __init__(
        self,
        store: Store,
        replicas: Replicas,
        *,
        demands: Demands,
        settings: Settings,
        outage: Outage,
        collector_id: str,
        fanout: Fanout | None = None,
    ) -> None:
        self._store, self._replicas, self._demands, self._fanout = store, replicas, demands, fanout
        self._settings, self._outage, self._collector_id = settings, outage, collector_id
        self._intakes: dict[ReplicaKey, Intake] = {}
        self._running: dict[Intake, asyncio.Task[None]] = {}
        self._doors: WeakValueDictionary[ReplicaKey, asyncio.Lock] = WeakValueDictionary()
        self._closing = False

    @property
    def handler(self) -> Any:
        """What a server is given."""
        connect = grpc.stream_stream_rpc_method_handler(
            self.connect,
            request_deserializer=None,
            response_serializer=agent_pb2.CollectorMessage.SerializeToString,
        )
        return grpc.method_handlers_generic_handler("fulgurite.v1.AgentService", {"Connect": connect})

    async def connect(self, requests: AsyncIterator[bytes], context: Any) -> None:
        """One agent."""
        messages = aiter(requests)
        try:
            intake = await self._admit(await _hello(messages))
        except Refused as refusal:
            await _refuse(refusal, context)
            return
        pump = asyncio.create_task(_pump(messages, intake))
        try:
            await context.write(intake.link.welcome(self._collector_id))
            await self._talk(intake, context)
        finally:
            pump.cancel()
            try:
                await asyncio.gather(pump, return_exceptions=True)
            finally:  # a call that ends by itself may be cancelled while it does
                self._leave(intake)

    async def drain(self, timeout_s: float) -> None:
        """Take nothing more; end each stream when what came is stored, or when the time is up."""
        self._closing = True
        for intake in self._running:
            intake.inbox.close()
        if self._running:
            await asyncio.wait(list(self._running.values()), timeout=timeout_s)
        for intake in self._running:
            intake.give_up()
        if self._running:
            await asyncio.wait(list(self._running.values()), timeout=GIVE_UP_S)
        # The store is let go of next: who still writes would take that for an outage. What is cut off here
        # was not acknowledged, and comes again.
        while left := list(self._running.values()):
            for task in left:
                task.cancel()
            await asyncio.wait(left)

    # --- in

    async def _admit(self, introduced: Introduction) -> Intake:
        door = self._doors.setdefault(introduced.key, asyncio.Lock())
        check_replica(introduced.key)
        async with door:  # one at a time: two streams of one replica must not both be its writer
            self._check_is_open()
            await self._make_room(introduced)
            now_ms = time.time_ns() // 1_000_000
            try:
                registration = await self._store.register(
                    introduced.key,
                    asked_epoch_ms=introduced.asked_epoch_ms
                    if introduced.asked_epoch_ms < now_ms + DAY_MS
                    else 0,
                    now_ms=now_ms,
                )
                replica = await self._replicas.introduce(introduced, registration)
                await self._demands.look_up(introduced.key)
            except StoreError as error:
                self._outage.failed("write", error)
                raise Refused(f"{AWAY}{error}", final=False) from error
            self._check_is_open()  # nobody would wait for what it sends
            room = self._room()
            link = Link(
                introduced.codec,
                registration,
                settings=self._settings,
                now_s=time.monotonic(),
                room_bytes=room,
            )
            inbox = Inbox(max_bytes=room, max_messages=4 * self._settings.credit)
            intake = Intake(
                link,
                replica,
                inbox,
                store=self._store,
                replicas=self._replicas,
                outage=self._outage,
                fanout=self._fanout,
            )
            self._start(intake)
            replica.connect(link, inbox, self._collector_id)
        return intake

    def _check_is_open(self) -> None:
        if self._closing:
            raise Refused("this collector is about to end", final=False)

    def _room(self) -> int:
        """Bytes of one more agent that may wait: its share of all, as long as that is enough."""
        share = HELD_BYTES // (len(self._intakes) + 1)
        return max(LEAST_HELD_BYTES, min(self._settings.held_bytes, share))

    async def _make_room(self, introduced: Introduction) -> None:
        older = self._intakes.pop(introduced.key, None)
        if older is None:
            if len(self._intakes) >= self._settings.max_replicas:
                most = self._settings.max_replicas
                raise Refused(
                    f"{most} replicas are connected to this collector, which is its limit", final=False
                )
            return
        is_same_process = older.link.epoch_ms == introduced.asked_epoch_ms
        older.give_up(None if is_same_process else Refused(REPLACED.format(key=introduced.key)))
        if older in self._running:
            await asyncio.wait([self._running[older]])

    def _start(self, intake: Intake) -> None:
        self._intakes[intake.replica.key] = intake
        intake.link.want(self._demands.of(intake.replica.key))
        self._demands.admit(intake.replica.key, intake, lambda: self._tell(intake))
        task = asyncio.create_task(self._run(intake), name=f"intake {intake.replica.key}")
        self._running[intake] = task
        task.add_done_callback(lambda done: self._ended(intake, done))

    def _tell(self, intake: Intake) -> None:
        intake.link.want(self._demands.of(intake.replica.key))
        intake.news.set()

    async def _run(self, intake: Intake) -> None:
        await intake.run()
        if intake.refusal is not None:  # it may be another collector's by now
            return
        try:
            await self._replicas.beat(intake.replica)
        except StoreError as error:
            self._outage.failed("write", error)

    def _ended(self, intake: Intake, task: asyncio.Task[None]) -> None:
        self._running.pop(intake, None)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("taking in what %s sends failed", intake.replica.key, exc_info=error)

    # --- out

    async def _talk(self, intake: Intake, context: Any) -> None:
        """Say what is due until there is nothing more to take."""
        while not intake.is_over:
            intake.news.clear()
            message = intake.link.say(time.monotonic())
            if message is not None:
                await context.write(message)
            elif not intake.is_over:
                await wait_at_most(intake.news, intake.link.silent_until_s - time.monotonic())
        message = intake.link.say(time.monotonic(), at_last=True)
        if message is not None:
            await context.write(message)
        if intake.refusal is not None:
            await _refuse(intake.refusal, context)

    def _leave(self, intake: Intake) -> None:
        """The stream is gone. What came is still stored, as long as the store answers soon."""
        intake.inbox.close()
        self._demands.leave(intake.replica.key, intake)
        if not intake.is_over:
            asyncio.get_running_loop().call_later(ORPHAN_S, intake.give_up)
        if self._intakes.get(intake.replica.key) is intake:
            del self._intakes[intake.replica.key]
            intake.replica.left_s = time.monotonic()


async def _hello(messages: AsyncIterator[bytes]) -> Introduction:
    try:
        first = await asyncio.wait_for(anext(messages), HELLO_TIMEOUT_S)
    except StopAsyncIteration:
        raise Refused("the stream ended before a hello came", final=False) from None
    except TimeoutError:
        raise Refused(f"no hello came within {HELLO_TIMEOUT_S:g} s", final=False) from None
    return introduction(first)


async def _pump(messages: AsyncIterator[bytes], intake: Intake) -> None:
    """From the stream into the inbox; while that is full nothing is read."""
    try:
        async for message in messages:
            if not intake.hear(message) and not await intake.inbox.put(message):
                return
    except Refused as refusal:
        intake.refusal = intake.refusal or refusal
    finally:
        intake.inbox.close()


async def _refuse(refusal: Refused, context: Any) -> None:
    # That the store is away was said once, for all agents that come in the meantime.
    level = logging.DEBUG if refusal.reason.startswith(AWAY) else logging.WARNING
    log.log(level, "refused the agent at %s: %s", context.peer(), refusal.reason)
    told = agent_pb2.Refusal(reason=refusal.reason, final=refusal.final)
    await context.write(agent_pb2.CollectorMessage(refusal=told))
