"""One gRPC stream to a collector: bytes in, bytes out, and how it ended. Nothing else here imports grpc.

A stream has two threads besides grpc's own: one of grpc's that takes what is to be sent from a queue, and one
that reads. Both are daemons. What is read is handed to whoever owns the stream; nothing here decides
anything.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from queue import SimpleQueue
from threading import Thread
from typing import Any, Final

import grpc

from fulgurite.agent.link import Failure
from fulgurite.wire.access import Access

METHOD: Final = "/fulgurite.v1.AgentService/Connect"
_MAX_UNREAD: Final = 256
_LOOPBACK: Final = ("127.", "localhost", "[::1]", "unix:")
_OPTIONS: Final[tuple[tuple[str, int], ...]] = (
    ("grpc.keepalive_time_ms", 20_000),  # set together with the collector's least interval of 10 s
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.max_receive_message_length", 1 << 20),  # a collector has little to say
    ("grpc.max_send_message_length", -1),
    (
        "grpc.use_local_subchannel_pool",
        1,
    ),  # else a new channel inherits an old one's back-off, and the host's
    ("grpc.enable_retries", 0),
)
_FAILURES: Final[dict[Any, Failure]] = {
    grpc.StatusCode.UNAUTHENTICATED: "denied",
    grpc.StatusCode.PERMISSION_DENIED: "denied",
    grpc.StatusCode.UNIMPLEMENTED: "foreign",
    grpc.StatusCode.INTERNAL: "foreign",
    grpc.StatusCode.UNKNOWN: "foreign",
    grpc.StatusCode.NOT_FOUND: "foreign",
}


@dataclass(frozen=True, slots=True)
class End:
    """How a stream ended."""

    failure: Failure
    detail: str


class Stream:
    """Opens a channel of its own and one call on it.

    Parameters
    ----------
    endpoint : str
        ``HOST:PORT``.
    access : Access, optional
        The token and the certificates, read anew for each stream. Without: plain text, no token.
    notify : callable
        Called on the reading thread with what came, which is in `unread` by then. Must not block.
    """

    def __init__(self, endpoint: str, access: Access | None, notify: Callable[[bytes | End], None]) -> None:
        self.unread: deque[bytes | End] = deque()
        self._notify = notify
        self._closed = False
        self._outgoing: SimpleQueue[bytes | None] = SimpleQueue()
        options = list(_OPTIONS)
        if endpoint.startswith(_LOOPBACK):
            options.append(("grpc.enable_http_proxy", 0))
        self._channel = (access or Access()).channel(endpoint, options)
        # Bytes both ways: a reply that does not parse must not end in a traceback on the host's log.
        connect = self._channel.stream_stream(METHOD, request_serializer=None, response_deserializer=None)
        self._call = connect(self._requests())
        try:
            Thread(target=self._read, name="fulgurite-read", daemon=True).start()
        except RuntimeError:  # no thread to be had: leave nothing behind
            self.close()
            raise

    def send(self, message: bytes) -> None:
        """Queue a message."""
        self._outgoing.put(message)

    def finish(self) -> None:
        """Nothing more will be sent; the collector may still speak."""
        self._outgoing.put(None)

    def close(self) -> None:
        """Break off."""
        self._closed = True
        self._outgoing.put(None)
        self._call.cancel()  # type: ignore[no-untyped-call]
        self._channel.close()

    def _requests(self) -> Iterator[bytes]:
        while (message := self._outgoing.get()) is not None:
            yield message

    @property
    def ended(self) -> bool:
        """Whether nothing more will come."""
        return bool(self.unread) and isinstance(self.unread[-1], End)

    def _read(self) -> None:
        self._hand_on(self._read_to_end())

    def _read_to_end(self) -> End:
        try:
            for message in self._call:
                self._hand_on(message)
                while len(self.unread) > _MAX_UNREAD and not self._closed:
                    time.sleep(0.01)  # flow control: what we do not read, the peer cannot pile up here
        except grpc.RpcError as error:
            return _end_of(error)
        except Exception as error:  # the channel was closed under us
            return End("closed", type(error).__name__)
        return End("closed", "without a reason")

    def _hand_on(self, message: bytes | End) -> None:
        self.unread.append(message)
        self._notify(message)


def _end_of(error: Any) -> End:
    code, details = error.code(), str(error.details() or "")
    name = getattr(code, "name", str(code))
    return End(_FAILURES.get(code, "absent"), f"{name}: {details}"[:200])
