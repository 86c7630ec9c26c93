"""The feed against real gRPC servers on loopback: watching, coming back, and saying what is wrong."""

from __future__ import annotations

import http.server
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from queue import Queue
from typing import Any

import grpc
import numpy as np
import pytest

from fulgurite.v1 import viewer_pb2, viewer_pb2_grpc
from fulgurite.viewer.events import Event, FeedDown, FeedUp, Frames, ReplicaSeen
from fulgurite.viewer.feed import Feed, probe
from fulgurite.viewer.inbox import Inbox
from fulgurite.wire import codec
from fulgurite.wire.frame import FrameBatch, FrameBlock, RequestRef
from fulgurite.wire.topology import Topology

KEY = "test/model/one"
TOPOLOGY = Topology(
    model_name="m", architecture="llama", layers=1, heads=1, kv_heads=1, head_dim=8, hidden_size=8,
    ffn_size=8, vocab_size=10,
)  # fmt: skip
SCHEMA = codec.schema_for(TOPOLOGY)


def _announcement() -> viewer_pb2.WatchResponse:
    replica = viewer_pb2.ReplicaAnnouncement(key=KEY, topology=codec.topology_to_pb(TOPOLOGY), schema=SCHEMA)
    return viewer_pb2.WatchResponse(replica=replica)


def _watched(first: int) -> viewer_pb2.WatchResponse:
    names: dict[str, Any] = dict.fromkeys(("step", "started_ns", "ended_ns"), np.int64)
    names |= dict.fromkeys(("request_index", "sequence"), np.uint16)
    names |= dict.fromkeys(("position", "token_id"), np.int32)
    names |= dict.fromkeys(("phase", "level"), np.uint8)
    block = FrameBlock((RequestRef("r"),), {name: np.zeros(1, dtype) for name, dtype in names.items()})
    batch = codec.encode_batch(FrameBatch(epoch_ms=1, first_sequence=first, blocks=(block,)), SCHEMA)
    return viewer_pb2.WatchResponse(batch=viewer_pb2.WatchedBatch(key=KEY, batch=batch.SerializeToString()))


class Script(viewer_pb2_grpc.ViewerServiceServicer):
    """A collector's viewer port that says what a test puts into its queue; None ends a subscription."""

    def __init__(self) -> None:
        self.said: Queue[viewer_pb2.WatchResponse | None] = Queue()
        self.requests: list[viewer_pb2.WatchRequest] = []

    def ListReplicas(self, request: Any, context: Any) -> Any:  # noqa: N802
        return viewer_pb2.ListReplicasResponse()

    def Watch(self, request: Any, context: Any) -> Iterator[Any]:  # noqa: N802
        self.requests.append(request)
        while (message := self.said.get()) is not None:
            yield message


def _serve(script: Script | None, port: int = 0) -> tuple[grpc.Server, int]:
    server = grpc.server(futures.ThreadPoolExecutor(4), options=(("grpc.so_reuseport", 0),))
    if script is not None:
        viewer_pb2_grpc.add_ViewerServiceServicer_to_server(script, server)
    port = server.add_insecure_port(f"127.0.0.1:{port}")
    server.start()
    return server, port


def _free_port() -> int:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return int(bound.getsockname()[1])


def _until(inbox: Inbox, enough: Callable[[list[Event]], bool], within_s: float = 15.0) -> list[Event]:
    events: list[Event] = []
    deadline = time.monotonic() + within_s
    while not enough(events) and time.monotonic() < deadline:
        events += inbox.take()
        threading.Event().wait(0.01)
    assert enough(events), f"after {within_s} s there was only {events}"
    return events


def _firsts(events: list[Event]) -> list[int]:
    return [event.batch.first_sequence for event in events if isinstance(event, Frames)]


def test_an_absent_collector_is_one_line_that_says_what_to_do() -> None:
    found = probe(f"127.0.0.1:{_free_port()}")
    assert found.answer == "absent"
    assert "start one with `fulgurite collector --listen 127.0.0.1:" in found.reason
    assert "\n" not in found.reason


def test_a_web_server_is_not_a_collector() -> None:
    handler = http.server.BaseHTTPRequestHandler
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        found = probe(f"127.0.0.1:{server.server_port}")
        server.shutdown()
    assert found.answer == "foreign"
    assert "is not a Fulgurite collector" in found.reason


def test_another_grpc_server_is_not_a_collector() -> None:
    server, port = _serve(None)
    found = probe(f"127.0.0.1:{port}")
    server.stop(None)
    assert found.answer == "foreign"
    assert "UNIMPLEMENTED" in found.reason


def test_what_a_collector_says_arrives_in_order() -> None:
    script, inbox = Script(), Inbox()
    server, port = _serve(script)
    for message in (_announcement(), _watched(1), _watched(2)):
        script.said.put(message)
    feed = Feed(f"127.0.0.1:{port}", inbox, selectors=["model"], history_s=30.0).start()
    events = _until(inbox, lambda seen: len(_firsts(seen)) == 2)
    script.said.put(None)
    feed.close()
    server.stop(None)
    assert [type(event) for event in events] == [FeedUp, ReplicaSeen, Frames, Frames]
    assert (list(script.requests[0].selectors), script.requests[0].history_s) == (["model"], 30.0)


def test_a_collector_that_comes_late_is_found() -> None:
    inbox, port = Inbox(), _free_port()
    feed = Feed(f"127.0.0.1:{port}", inbox).start()
    (down,) = _until(inbox, lambda seen: len(seen) == 1)
    assert isinstance(down, FeedDown)
    assert "no collector answers" in down.reason
    script = Script()
    server, _ = _serve(script, port)
    script.said.put(_announcement())
    _until(inbox, lambda seen: any(isinstance(event, ReplicaSeen) for event in seen))
    script.said.put(None)
    feed.close()
    server.stop(None)


def test_after_a_restart_the_stream_goes_on_without_doubles() -> None:
    first, inbox = Script(), Inbox()
    server, port = _serve(first)
    for message in (_announcement(), _watched(1), _watched(2)):
        first.said.put(message)
    feed = Feed(f"127.0.0.1:{port}", inbox).start()
    before = _until(inbox, lambda seen: len(_firsts(seen)) == 2)
    first.said.put(None)
    server.stop(None).wait()
    gone = _until(inbox, lambda seen: any(isinstance(event, FeedDown) for event in seen))
    second = Script()
    server, _ = _serve(second, port)
    for message in (_announcement(), _watched(1), _watched(2), _watched(3)):
        second.said.put(message)
    after = _until(inbox, lambda seen: bool(_firsts(seen)))
    assert _firsts(before + gone + after) == [1, 2, 3]
    assert any(isinstance(event, FeedUp) for event in after)
    assert 0.0 < second.requests[0].history_s <= 60.0
    second.said.put(None)
    feed.close()
    server.stop(None)


def test_an_absent_collector_is_told_once_and_not_at_every_attempt() -> None:
    inbox = Inbox()
    feed = Feed(f"127.0.0.1:{_free_port()}", inbox).start()
    _until(inbox, bool)
    threading.Event().wait(1.0)
    feed.close()
    assert inbox.take() == []


def test_closing_ends_the_thread_while_the_stream_is_silent() -> None:
    script, inbox = Script(), Inbox()
    server, port = _serve(script)
    feed = Feed(f"127.0.0.1:{port}", inbox).start()
    _until(inbox, bool)
    feed.close(timeout_s=10.0)
    assert not [thread for thread in threading.enumerate() if thread.name == "fulgurite-feed"]
    script.said.put(None)
    server.stop(None)


@pytest.mark.parametrize("address", ["nowhere", ":4747", "host:port", "::1:4747"])
def test_an_address_that_is_none_says_what_is_wanted(address: str) -> None:
    with pytest.raises(ValueError, match="HOST:PORT"):
        probe(address)
