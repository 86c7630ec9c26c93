"""Real collectors, agents and viewers for the tests, in one loop and over real sockets."""

from __future__ import annotations

import asyncio
import functools
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np

from fulgurite.collector.config import Listen, Settings
from fulgurite.collector.server import Collector
from fulgurite.collector.store import Store
from fulgurite.collector.stores.memory import MemoryStore
from fulgurite.v1 import agent_pb2, frame_pb2, viewer_pb2, viewer_pb2_grpc
from fulgurite.wire.codec import encode_batch, resource_to_pb, schema_for, topology_to_pb
from fulgurite.wire.frame import FrameBatch, FrameBlock, RequestEvent, RequestRef, Scale
from fulgurite.wire.topology import Topology

DEADLINE_S = 20.0
TOPOLOGY = Topology(
    model_name="tiny",
    architecture="LlamaForCausalLM",
    layers=2,
    heads=4,
    kv_heads=2,
    head_dim=8,
    hidden_size=32,
    ffn_size=64,
    vocab_size=100,
)
SCHEMA = schema_for(TOPOLOGY)

Serialised = bytes


def asynchronous(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run a test on a loop of its own, within the deadline."""

    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        asyncio.run(asyncio.wait_for(test(*args, **kwargs), 3 * DEADLINE_S))

    return run


async def until(condition: Callable[[], Any]) -> Any:
    """What `condition` gives, or what its awaitable does, as soon as it is true."""
    deadline_s = time.monotonic() + DEADLINE_S
    while True:
        value = condition()
        value = await value if isinstance(value, Awaitable) else value
        if value:
            return value
        assert time.monotonic() < deadline_s, "not in time"
        await asyncio.sleep(0.01)


def block_of(frames: int, *, request: str = "r", position: int = 0, **channels: Any) -> FrameBlock:
    """Frames of one request, one after another, 10 ms apart."""
    ended_ns = 1_000_000_000 + 10_000_000 * (position + np.arange(frames, dtype=np.int64))
    columns: dict[str, Any] = {
        "request_index": np.zeros(frames, np.uint16),
        "sequence": np.zeros(frames, np.uint16),
        "position": position + np.arange(frames, dtype=np.int32),
        "token_id": np.full(frames, -1, np.int32),
        "phase": np.ones(frames, np.uint8),
        "level": np.full(frames, 2, np.uint8),
        "step": position + np.arange(frames, dtype=np.int64),
        "started_ns": ended_ns - 5_000_000,
        "ended_ns": ended_ns,
    }
    return FrameBlock((RequestRef(request),), columns | channels)


def batch_of(
    epoch_ms: int,
    first: int,
    frames: int = 4,
    *,
    events: tuple[RequestEvent, ...] = (),
    scales: tuple[Scale, ...] = (),
    schema: frame_pb2.Schema = SCHEMA,
    padding: int = 0,
    **channels: Any,
) -> Serialised:
    """A serialised batch of `frames` frames from sequence `first` on."""
    blocks = (block_of(frames, position=first, **channels),) if frames else ()
    if padding:
        events = (*events, RequestEvent(request_id="r", kind="started", time_ns=1, reason="x" * padding))
    batch = FrameBatch(epoch_ms=epoch_ms, first_sequence=first, blocks=blocks, events=events, scales=scales)
    return encode_batch(batch, schema).SerializeToString()


def hello_of(
    instance: str = "a", *, service: str = "served", namespace: str = "", **fields: Any
) -> agent_pb2.Hello:
    """A hello, with `fields` in place of what it says by default."""
    names = {"service.namespace": namespace, "service.name": service, "service.instance.id": instance}
    said: dict[str, Any] = {
        "protocol": 1,
        "resource": resource_to_pb(names),
        "topology": topology_to_pb(TOPOLOGY),
        "schema": SCHEMA,
        "level": "heads",
        "tokens": "off",
    }
    return agent_pb2.Hello(**(said | fields))


class Agent:
    """An agent that says what the test wants."""

    def __init__(self, address: object) -> None:
        self._channel = grpc.aio.insecure_channel(
            str(address), options=[("grpc.use_local_subchannel_pool", 1)]
        )
        connect = self._channel.stream_stream(
            "/fulgurite.v1.AgentService/Connect",
            request_serializer=None,
            response_deserializer=agent_pb2.CollectorMessage.FromString,
        )
        self.call = connect()
        self.epoch_ms = 0
        self.resume_after = 0
        self.acks: list[agent_pb2.Ack] = []

    async def write(self, data: bytes) -> None:
        """Send bytes as they are."""
        await self.call.write(data)

    async def say(self, **message: Any) -> None:
        """Send a message that is no batch."""
        await self.write(agent_pb2.AgentMessage(**message).SerializeToString())

    async def hello(self, *args: Any, **kwargs: Any) -> Agent:
        """Say hello, and be welcome."""
        await self.say(hello=hello_of(*args, **kwargs))
        welcome = (await self.hear("welcome")).welcome
        self.epoch_ms, self.resume_after = welcome.epoch_ms, welcome.resume_after
        return self

    async def send(self, *args: Any, **kwargs: Any) -> bytes:
        """Send a batch of this epoch; returns it as it was sent."""
        batch = batch_of(self.epoch_ms, *args, **kwargs)
        await self.say(batch=frame_pb2.Batch.FromString(batch))
        return batch

    async def hear(self, *kinds: str) -> agent_pb2.CollectorMessage:
        """The next message of one of these kinds."""
        while True:
            message = await self.call.read()
            assert message is not grpc.aio.EOF, "the stream ended"
            if message.HasField("ack"):
                self.acks.append(message.ack)
            if message.WhichOneof("message") in kinds:
                return message

    async def acknowledged(self, sequence: int) -> None:
        """Wait until the collector says that everything up to `sequence` is stored."""
        while not self.acks or self.acks[-1].sequence < sequence:
            await self.hear("ack")

    async def refusal(self) -> agent_pb2.Refusal:
        """The refusal that ends the stream."""
        refusal = (await self.hear("refusal")).refusal
        assert await self.call.read() is grpc.aio.EOF
        return refusal

    async def hang_up(self) -> None:
        """Be gone, without a word."""
        self.call.cancel()
        await self._channel.close()


class Viewer:
    """Watches a collector and keeps what it is told."""

    def __init__(self, address: object, *selectors: str, **request: Any) -> None:
        self._channel = grpc.aio.insecure_channel(
            str(address), options=[("grpc.use_local_subchannel_pool", 1)]
        )
        self.stub: Any = viewer_pb2_grpc.ViewerServiceStub(self._channel)
        self.messages: list[viewer_pb2.WatchResponse] = []
        self.call = self.stub.Watch(viewer_pb2.WatchRequest(selectors=selectors, **request))

    async def hear(self, condition: Callable[[], Any]) -> None:
        """Read on until `condition` holds."""
        while not condition():
            message = await asyncio.wait_for(self.call.read(), DEADLINE_S)
            assert message is not grpc.aio.EOF, "the stream ended"
            self.messages.append(message)

    async def caught_up(self, replicas: int = 1) -> None:
        """Read on until so many replicas have come to live."""
        await self.hear(lambda: len(self.of("caught_up")) >= replicas)

    async def seen(self, sequence: int) -> None:
        """Read on until the frame with this sequence came, or is said not to come."""
        await self.hear(lambda: any(last >= sequence for _, last in [*self.spans, *self.gap_spans]))

    def of(self, kind: str) -> list[Any]:
        """Everything of one kind."""
        return [getattr(m, kind) for m in self.messages if m.WhichOneof("message") == kind]

    @property
    def batches(self) -> list[frame_pb2.Batch]:
        """Every batch."""
        return [frame_pb2.Batch.FromString(watched.batch) for watched in self.of("batch")]

    @property
    def spans(self) -> list[tuple[int, int]]:
        """First and last sequence of every batch with frames."""
        return [(b.first_sequence, b.first_sequence + b.count - 1) for b in self.batches if b.count]

    @property
    def gap_spans(self) -> list[tuple[int, int]]:
        """First and last sequence of every gap."""
        return [(gap.first_sequence, gap.last_sequence) for gap in self.of("gap")]

    async def close(self) -> None:
        """Hang up."""
        self.call.cancel()
        await self._channel.close()


async def listed(address: object, *selectors: str) -> list[viewer_pb2.ReplicaStatus]:
    """Who there is, as the collector at `address` says."""
    async with grpc.aio.insecure_channel(str(address)) as channel:
        stub: Any = viewer_pb2_grpc.ViewerServiceStub(channel)
        response = await stub.ListReplicas(viewer_pb2.ListReplicasRequest(selectors=selectors))
        return list(response.replicas)


@asynccontextmanager
async def collecting(store: Store | None = None, **settings: Any) -> AsyncIterator[Collector]:
    """A collector on a free port, with `store` or one of its own."""
    chosen = Settings(listen=Listen("127.0.0.1", 0), retry_after_s=0.1, **settings)
    async with Collector(store or MemoryStore(), chosen) as collector:
        yield collector


async def watching(collector: Collector, viewers: int = 1) -> None:
    """Wait until so many viewers are there: who comes behind the first token is told from the newest on."""
    await until(lambda: collector._viewers._viewers >= viewers)


class StoreServer:
    """A Redis-compatible server on a socket in `folder`, that a test may kill and start again."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.url = f"unix://{folder}/s"
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """Start it on what is in the folder; returns when it answers."""
        from fulgurite.collector.embedded import server_binary

        options = {"port": "0", "unixsocket": "s", "appendonly": "yes", "appendfsync": "always", "save": ""}
        words = [word for name, value in options.items() for word in (f"--{name}", value)]
        self._process = await asyncio.create_subprocess_exec(
            str(server_binary()), *words, cwd=self._folder, stdout=asyncio.subprocess.DEVNULL
        )
        await until(self._answers)

    async def _answers(self) -> bool:
        try:
            reader, writer = await asyncio.open_unix_connection(self._folder / "s")
        except OSError:
            return False
        writer.write(b"PING\r\n")
        answer = await reader.readline()
        writer.close()
        return answer.startswith(b"+PONG")

    def stop(self) -> None:
        """Let it do nothing, with all its connections open."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """Let it go on where it was stopped."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    async def kill(self) -> None:
        """End it as a crash does."""
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
            await self._process.wait()
