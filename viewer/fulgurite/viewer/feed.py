"""The feed: a thread that watches a collector, reconnects, and puts events into a bounded inbox.

The drawing never waits for it: it takes what is in the inbox whenever it draws.
"""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import grpc

from fulgurite.v1 import viewer_pb2, viewer_pb2_grpc
from fulgurite.viewer.config import parse_address
from fulgurite.viewer.events import FeedDown, FeedTrouble, FeedUp
from fulgurite.viewer.inbox import Inbox
from fulgurite.viewer.reading import Reading
from fulgurite.wire.access import Access, AccessError
from fulgurite.wire.refusals import STORE_AWAY

log = logging.getLogger(__name__)

FIRST_RETRY_S = 0.1
LONGEST_RETRY_S = 3.0
OVERLAP_S = 2.0  # asked for again after a break, so that nothing falls between; what comes twice is dropped
RECEIVE_LIMIT_BYTES = 16 << 20
CHANNEL_OPTIONS = (
    ("grpc.max_receive_message_length", RECEIVE_LIMIT_BYTES),
    ("grpc.enable_http_proxy", 0),
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 3_000),
)

FINAL = (
    grpc.StatusCode.UNAUTHENTICATED,
    grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.UNIMPLEMENTED,
)

Answer = Literal["ready", "absent", "foreign", "refused"]


@dataclass(frozen=True, slots=True)
class Probe:
    """Whether a collector answers at an address, and if not, one line that says what to do."""

    answer: Answer
    reason: str = ""


def probe(address: str, timeout_s: float = 3.0) -> Probe:
    """Ask once whether `address` is a collector that lets this viewer in."""
    try:
        socket.create_connection(parse_address(address), timeout=timeout_s).close()
    except OSError:
        return Probe("absent", _absent(address))
    try:
        opened = Access.from_environment().channel(address, CHANNEL_OPTIONS)
    except AccessError as error:
        return Probe("refused", str(error))
    with opened as channel:
        return _ask(channel, address, timeout_s)


def _ask(channel: grpc.Channel, address: str, timeout_s: float) -> Probe:
    try:
        request = viewer_pb2.ListReplicasRequest()
        viewer_pb2_grpc.ViewerServiceStub(channel).ListReplicas(request, timeout=timeout_s)
    except grpc.RpcError as error:
        return _refusal(address, error)
    return Probe("ready")


def _absent(address: str) -> str:
    return (
        f"no collector answers at {address}: start one with `fulgurite collector --listen {address}`, "
        "or everything at once with `fulgurite demo`"
    )


def _refusal(address: str, error: grpc.RpcError) -> Probe:
    code, detail = _status(error)
    if code in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED):
        return Probe("refused", f"the collector at {address} does not let this viewer in: {detail}")
    if code is grpc.StatusCode.INVALID_ARGUMENT:
        return Probe("refused", f"the collector at {address} does not accept what was asked: {detail}")
    if code is grpc.StatusCode.UNAVAILABLE and detail.startswith(STORE_AWAY):
        return Probe("ready")  # the collector is there; it answers again when its store does
    return Probe(
        "foreign",
        f"what listens at {address} is not a Fulgurite collector ({code.name}): "
        "check the port; a collector's default is 4747",
    )


def _status(error: grpc.RpcError) -> tuple[grpc.StatusCode, str]:
    """Code and words of a failed call. What is raised is a call as well, which the types do not say."""
    call: Any = error
    code: grpc.StatusCode = call.code() if hasattr(error, "code") else grpc.StatusCode.UNKNOWN
    return code, (call.details() if hasattr(error, "details") else "") or code.name


class Feed:
    """Watches one collector until it is closed.

    Parameters
    ----------
    address : ``HOST:PORT`` of the collector.
    inbox : where events go.
    selectors : which replicas; empty: all.
    history_s : seconds of the past to begin with.
    """

    def __init__(
        self, address: str, inbox: Inbox, *, selectors: Sequence[str] = (), history_s: float = 60.0
    ) -> None:
        self.address = address
        self._inbox = inbox
        self._selectors = tuple(selectors)
        self._history_s = history_s
        self._reading = Reading()
        self._closing = threading.Event()
        self._channel: grpc.Channel | None = None
        self._heard_s: float | None = None
        self._told: str | None = None
        self._thread = threading.Thread(target=self._run, name="fulgurite-feed", daemon=True)

    def start(self) -> Feed:
        """Begin to watch."""
        self._thread.start()
        return self

    def close(self, timeout_s: float = 2.0) -> None:
        """Stop watching."""
        self._closing.set()
        channel = self._channel
        if channel is not None:
            channel.close()
        if self._thread.is_alive():
            self._thread.join(timeout_s)

    def _run(self) -> None:
        retry_s = FIRST_RETRY_S
        while not self._closing.is_set():
            began_s = time.monotonic()
            try:
                self._down(self._watch())
            except Exception as error:  # the window must outlive whatever a peer does
                if self._closing.is_set():
                    return
                log.exception("the feed of %s failed", self.address)
                self._down(f"the feed of {self.address} failed: {error}")
            lasted = time.monotonic() - began_s > LONGEST_RETRY_S
            retry_s = FIRST_RETRY_S if lasted else min(retry_s * 1.7, LONGEST_RETRY_S)
            self._closing.wait(retry_s)

    def _watch(self) -> str:
        """Watch until the stream ends; why it did."""
        found = probe(self.address)
        if found.answer != "ready" or self._closing.is_set():
            return found.reason
        with Access.from_environment().channel(self.address, CHANNEL_OPTIONS) as channel:
            self._channel = channel
            try:
                self._listen(viewer_pb2_grpc.ViewerServiceStub(channel).Watch(self._request()))
                return f"the collector at {self.address} ended the subscription; asking again"
            except grpc.RpcError as error:
                return self._why(error)
            finally:
                self._channel = None

    def _request(self) -> viewer_pb2.WatchRequest:
        history_s = self._history_s
        if self._heard_s is not None:
            history_s = min(60.0, time.monotonic() - self._heard_s + OVERLAP_S)
        return viewer_pb2.WatchRequest(selectors=self._selectors, history_s=history_s, status_interval_s=1.0)

    def _listen(self, stream: Iterable[viewer_pb2.WatchResponse]) -> None:
        self._reading.restart()
        self._up()
        for message in stream:
            self._heard_s = time.monotonic()
            for event in self._reading.read(message, time.time_ns()):
                if isinstance(event, FeedTrouble):
                    log.warning("replica %s: %s", event.key, event.reason)
                self._inbox.put(event)

    def _up(self) -> None:
        if self._told != "":
            self._told = ""
            self._inbox.put(FeedUp(address=self.address))

    def _down(self, reason: str) -> None:
        if self._told != reason and not self._closing.is_set():
            self._told = reason
            log.info("%s", reason)
            self._inbox.put(FeedDown(address=self.address, reason=reason))

    def _why(self, error: grpc.RpcError) -> str:
        if _status(error)[0] in FINAL:
            return _refusal(self.address, error).reason
        return f"the connection to the collector at {self.address} broke; asking again"
