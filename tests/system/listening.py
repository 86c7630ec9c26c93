"""A collector in the test's own process: a real gRPC server that acknowledges and keeps what agents send."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from dataclasses import dataclass, field
from typing import Any

import grpc

from fulgurite.v1 import agent_pb2, agent_pb2_grpc
from fulgurite.wire.codec import codec_for
from fulgurite.wire.frame import Frame, RequestEvent

DEADLINE_S = 90.0


@dataclass
class Replica:
    """What one stream brought."""

    hello: agent_pb2.Hello
    frames: list[Frame] = field(default_factory=list)
    events: list[RequestEvent] = field(default_factory=list)

    @property
    def resource(self) -> dict[str, str]:
        return dict(self.hello.resource.attributes)


class Listening(agent_pb2_grpc.AgentServiceServicer):
    """Keeps everything, by stream."""

    def __init__(self) -> None:
        self.replicas: list[Replica] = []
        self._lock = threading.Lock()
        self._server = grpc.server(futures.ThreadPoolExecutor(32))
        agent_pb2_grpc.add_AgentServiceServicer_to_server(self, self._server)
        self.port = self._server.add_insecure_port("127.0.0.1:0")
        self._server.start()

    @property
    def endpoint(self) -> str:
        return f"127.0.0.1:{self.port}"

    def Connect(  # noqa: N802 - as the protocol names it
        self, request_iterator: Any, context: Any
    ) -> Iterator[agent_pb2.CollectorMessage]:
        replica: Any = None
        codec: Any = None
        for message in request_iterator:
            if message.HasField("hello"):
                replica, codec = Replica(message.hello), codec_for(message.hello.schema)
                with self._lock:
                    self.replicas.append(replica)
                epoch = max(message.hello.epoch_ms, time.time_ns() // 1_000_000)
                welcome = agent_pb2.Welcome(protocol=1, epoch_ms=epoch, credit=64)
                yield agent_pb2.CollectorMessage(welcome=welcome)
            elif message.HasField("batch"):
                batch = codec.decode(message.batch)
                with self._lock:
                    replica.frames += batch.frames()
                    replica.events += batch.events
                last = message.batch.first_sequence + message.batch.count - 1
                ack = agent_pb2.Ack(epoch_ms=message.batch.epoch_ms, sequence=last, credit=64)
                yield agent_pb2.CollectorMessage(ack=ack)

    @property
    def frames(self) -> list[Frame]:
        """Of all replicas."""
        with self._lock:
            return [frame for replica in self.replicas for frame in replica.frames]

    @property
    def events(self) -> list[RequestEvent]:
        """Of all replicas."""
        with self._lock:
            return [event for replica in self.replicas for event in replica.events]

    def until(self, condition: Callable[[], object], timeout_s: float = DEADLINE_S) -> None:
        """Wait until `condition` holds."""
        limit_s = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < limit_s, "what was waited for did not come"
            time.sleep(0.02)

    def stop(self) -> None:
        """Hang up."""
        self._server.stop(None).wait()
