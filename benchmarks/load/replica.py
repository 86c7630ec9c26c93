"""One generated replica: says hello, sends what is due within its credit, resumes after a break."""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import grpc

from benchmarks.load.account import Account
from benchmarks.load.pacing import Pace
from benchmarks.load.template import Template
from fulgurite.v1 import agent_pb2
from fulgurite.wire.codec import PROTOCOL, Codec, resource_to_pb, topology_to_pb
from fulgurite.wire.topology import Topology

METHOD: Final = "/fulgurite.v1.AgentService/Connect"
MAX_WAITING_BYTES: Final = 16 << 20
"""What an agent keeps by default; more than that is given up, oldest first, and counted."""
EOF: Final[Any] = grpc.aio.EOF  # type: ignore[attr-defined]
OPTIONS: Final = (
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_http_proxy", 0),
    ("grpc.max_send_message_length", -1),
)


@dataclass(slots=True)
class _Waiting:
    """A message that is sent, or is to be, and not acknowledged."""

    due_s: float
    first: int
    count: int
    turn: int
    template: Template
    sent_s: float = 0.0


class Replica:
    """Sends templates one after another at a pace, for as long as it is told.

    Parameters
    ----------
    resource : mapping
        The OpenTelemetry triplet that it calls itself by.
    """

    def __init__(
        self, address: str, resource: dict[str, str], *, topology: Topology, codec: Codec,
        templates: Sequence[Template], pace: Pace, metadata: tuple[tuple[str, str], ...] = (),
    ) -> None:  # fmt: skip
        self.account = Account()
        self._address, self._resource, self._topology, self._codec = address, resource, topology, codec
        self._cycle = itertools.cycle(templates)
        self._number = len(templates)
        self._pace, self._metadata = pace, metadata
        self._waiting: deque[_Waiting] = deque()  # due and not acknowledged; the first `_under_way` are sent
        self._under_way = 0
        self._words: deque[bytes] = deque()  # answers to pings
        self._epoch_ms = self._made = self._messages = 0
        self._acknowledged = 0
        self._credit = 0
        self._news = asyncio.Event()
        self._ended = False

    async def run(self, start_s: float, seconds: float, drain_s: float = 5.0) -> Account:
        """Send from `start_s` (monotonic) on; then wait up to `drain_s` for what is under way."""
        making = asyncio.create_task(self._make(start_s, seconds))
        try:
            async with asyncio.timeout(start_s - time.monotonic() + seconds + drain_s):
                while not (making.done() and not self._waiting):
                    await self._connected()
        except TimeoutError:
            pass
        finally:
            making.cancel()
            await asyncio.gather(making, return_exceptions=True)
        return self.account

    async def _make(self, start_s: float, seconds: float) -> None:
        """Put messages down when they are due, whether or not the ones before could be sent."""
        while (due_s := self._pace.due_s(self._made)) < seconds:
            wait_s = start_s + due_s - time.monotonic()
            if wait_s > 0:
                await asyncio.sleep(wait_s)
            template = next(self._cycle)
            turn = self._messages // self._number
            self._waiting.append(_Waiting(start_s + due_s, self._made + 1, template.count, turn, template))
            self._made += template.count
            self._messages += 1
            self.account.offered += template.count
            self._give_up_what_is_too_much()
            self._news.set()
        self._ended = True
        self._news.set()

    def _give_up_what_is_too_much(self) -> None:
        unsent = len(self._waiting) - self._under_way
        if unsent > 1 and self._waiting[-1].template.nbytes * unsent > MAX_WAITING_BYTES:
            gone = self._waiting[self._under_way]
            del self._waiting[self._under_way]
            self.account.dropped += gone.count

    async def _connected(self) -> None:
        """One stream, until it breaks or everything is acknowledged."""
        self._under_way = self._credit = 0
        self._words.clear()
        async with grpc.aio.insecure_channel(self._address, options=OPTIONS) as channel:
            connect: Any = channel.stream_stream(METHOD, None, None)
            call = connect(metadata=self._metadata or None)
            try:
                await self._greet(call)
                reading = asyncio.create_task(self._read(call))
                try:
                    await self._write(call, reading)
                finally:
                    reading.cancel()
                    await asyncio.gather(reading, return_exceptions=True)
            except (grpc.aio.AioRpcError, asyncio.InvalidStateError, ConnectionError):
                self.account.reconnects += 1
                await asyncio.sleep(random.uniform(0.1, 0.3))

    async def _greet(self, call: Any) -> None:
        hello = agent_pb2.Hello(
            protocol=PROTOCOL,
            resource=resource_to_pb(self._resource),
            topology=topology_to_pb(self._topology),
            schema=self._codec.schema,
            level="heads",
            level_ceiling="heads",
            tokens="off",
            epoch_ms=self._epoch_ms,
            last_sequence=self._made,
            wall_ns=time.time_ns(),
        )
        await call.write(agent_pb2.AgentMessage(hello=hello).SerializeToString())
        answer = await call.read()
        if answer is EOF:
            raise ConnectionError("no welcome")
        welcome = agent_pb2.CollectorMessage.FromString(answer)
        if welcome.HasField("refusal"):
            raise ConnectionError(welcome.refusal.reason)
        self._epoch_ms, self._credit = welcome.welcome.epoch_ms, welcome.welcome.credit
        self._settle(welcome.welcome.resume_after)

    async def _read(self, call: Any) -> None:
        try:
            while (data := await call.read()) is not EOF:
                message = agent_pb2.CollectorMessage.FromString(data)
                if message.HasField("ack"):
                    self._credit = message.ack.credit
                    self._settle(message.ack.sequence)
                elif message.HasField("ping"):
                    pong = agent_pb2.Pong(ping_ns=message.ping.ping_ns, wall_ns=time.time_ns())
                    self._words.append(agent_pb2.AgentMessage(pong=pong).SerializeToString())
                    self._news.set()
                elif message.HasField("refusal"):
                    raise ConnectionError(message.refusal.reason)
        finally:
            self._news.set()

    def _settle(self, sequence: int) -> None:
        """Everything up to `sequence` is stored."""
        now_s = time.monotonic()
        while self._waiting and self._waiting[0].first + self._waiting[0].count - 1 <= sequence:
            one = self._waiting.popleft()
            self._under_way = max(0, self._under_way - 1)
            self.account.acknowledged += one.count
            if one.sent_s:
                self.account.ack_s.append(now_s - one.sent_s)
        self._news.set()

    async def _write(self, call: Any, reading: asyncio.Task[None]) -> None:
        while not (self._ended and not self._waiting):
            if reading.done():
                await reading
                raise ConnectionError("the stream ended")
            if self._words:  # a call takes one message at a time, so that one task writes them all
                await call.write(self._words.popleft())
            elif self._under_way < min(self._credit, len(self._waiting)):
                await self._send(call, self._waiting[self._under_way])
            else:
                self._news.clear()
                await self._news.wait()
        await call.write(agent_pb2.AgentMessage(goodbye=agent_pb2.Goodbye()).SerializeToString())
        await call.done_writing()

    async def _send(self, call: Any, one: _Waiting) -> None:
        self._under_way += 1
        is_first = not one.sent_s
        one.sent_s = time.monotonic()
        ended_ns = time.time_ns() - int((one.sent_s - one.due_s) * 1e9)
        message = one.template.message(
            epoch_ms=self._epoch_ms, first_sequence=one.first, ended_ns=ended_ns, turn=one.turn
        )
        if is_first:
            self.account.sent += one.count
            self.account.lateness_s.append(max(0.0, one.sent_s - one.due_s))
        await call.write(message)
