"""Frames leave the host whatever the collector does, each is stored once, and every one has a fate."""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from fulgurite.agent.exporter import Exporter, ExporterStats, GrpcExporter, InMemoryExporter
from fulgurite.agent.late import LateBlock
from fulgurite.agent.link import LinkLimits
from fulgurite.agent.sampling import Budget, Demand
from fulgurite.agent.shield import Shield
from fulgurite.agent.thrift import Thrift
from fulgurite.agent.wanted import Wanted
from fulgurite.v1 import agent_pb2, frame_pb2
from fulgurite.wire.codec import CodecError, decode_batch, topology_from_pb
from fulgurite.wire.frame import FrameBlock, RequestEvent, RequestRef
from fulgurite.wire.topology import Topology

TOPOLOGY = Topology(
    model_name="tiny",
    architecture="x",
    layers=3,
    heads=4,
    kv_heads=2,
    head_dim=8,
    hidden_size=32,
    ffn_size=64,
    vocab_size=100,
)
LIMITS = LinkLimits(welcome_s=0.5, silence_s=1.0, last_retry_s=0.1, report_s=0.05)
SECRET = "the-secret-word"
SECRET_ID = 0x5EC2E7
FIRST_EPOCH = 1000

Message = agent_pb2.CollectorMessage
Said = Message | bytes


def block_of(frames: int = 2, step: int = 0, **channels: Any) -> FrameBlock:
    rng = np.random.default_rng(step)
    columns: dict[str, Any] = {
        "request_index": np.zeros(frames, np.uint16),
        "sequence": np.arange(frames, dtype=np.uint16),
        "position": np.full(frames, step, np.int32),
        "token_id": np.full(frames, SECRET_ID, np.int32),
        "top_ids": np.full((frames, 8), SECRET_ID, np.int32),
        "phase": np.ones(frames, np.uint8),
        "level": np.full(frames, 2, np.uint8),
        "step": np.full(frames, step, np.int64),
        "started_ns": np.full(frames, 1, np.int64),
        "ended_ns": np.full(frames, 2, np.int64),
        "head_write": rng.lognormal(size=(frames, 3, 4)).astype(np.float32),
    }
    return FrameBlock((RequestRef("r"),), columns | channels, (SECRET,) * frames)


class Collector:
    """A real gRPC server that keeps to the protocol, unless a script says otherwise for the next streams."""

    def __init__(self) -> None:
        self.batches: list[frame_pb2.Batch] = []
        self.hellos: list[agent_pb2.Hello] = []
        self.stats: list[agent_pb2.AgentStats] = []
        self.raw: list[bytes] = []
        self.goodbyes = 0
        self.scripts: list[Callable[[Iterator[agent_pb2.AgentMessage], Any], Iterable[Said]]] = []
        self.say: list[Said] = []
        self.greeting: dict[str, Any] = {}
        self.port = 0
        self._server: Any = None

    def start(self) -> None:
        server = grpc.server(futures.ThreadPoolExecutor(8), options=[("grpc.so_reuseport", 0)])
        handler = grpc.stream_stream_rpc_method_handler(
            self._connect, request_deserializer=None, response_serializer=_serialised
        )
        service = {"Connect": handler}
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler("fulgurite.v1.AgentService", service),)
        )
        self.port = server.add_insecure_port(f"127.0.0.1:{self.port}")
        server.start()
        self._server = server

    def stop(self) -> None:
        if self._server is not None:
            self._server.stop(None).wait()
            self._server = None

    @property
    def endpoint(self) -> str:
        return f"127.0.0.1:{self.port}"

    def _connect(self, requests: Iterator[bytes], context: Any) -> Iterable[Said]:
        script = self.scripts.pop(0) if self.scripts else self.honest
        yield from script(self._heard(requests), context)

    def _heard(self, requests: Iterator[bytes]) -> Iterator[agent_pb2.AgentMessage]:
        for data in requests:
            self.raw.append(data)
            message = agent_pb2.AgentMessage.FromString(data)
            if message.HasField("hello"):
                self.hellos.append(message.hello)
            elif message.HasField("stats"):
                self.stats.append(message.stats)
            elif message.HasField("goodbye"):
                self.goodbyes += 1
            yield message

    def honest(self, messages: Iterator[agent_pb2.AgentMessage], context: Any) -> Iterable[Said]:
        for message in messages:
            if message.HasField("hello"):
                yield self.welcome(message.hello)
            elif message.HasField("batch"):
                yield self.store(message.batch)
            while self.say:
                yield self.say.pop(0)

    def welcome(self, hello: agent_pb2.Hello) -> Message:
        known = {batch.epoch_ms for batch in self.batches}
        epoch = hello.epoch_ms if hello.epoch_ms in known else max(known, default=FIRST_EPOCH) + 1
        stored = [last_of(batch) for batch in self.batches if batch.epoch_ms == epoch]
        fields: dict[str, Any] = {"epoch_ms": epoch, "resume_after": max(stored, default=0), "credit": 16}
        fields |= self.greeting
        return Message(welcome=agent_pb2.Welcome(protocol=1, **fields))

    def store(self, batch: frame_pb2.Batch) -> Message:
        self.batches.append(batch)
        return acked(batch)

    @property
    def sequences(self) -> list[int]:
        return [b.first_sequence + i for b in self.batches for i in range(b.count)]


def acked(batch: frame_pb2.Batch, **fields: Any) -> Message:
    return Message(ack=agent_pb2.Ack(epoch_ms=batch.epoch_ms, sequence=last_of(batch), credit=16, **fields))


def last_of(batch: frame_pb2.Batch) -> int:
    return batch.first_sequence + batch.count - 1


def _serialised(said: Said) -> bytes:
    return said if isinstance(said, bytes) else said.SerializeToString()


@pytest.fixture
def collector() -> Iterator[Collector]:
    collector = Collector()
    collector.start()
    yield collector
    collector.stop()


@pytest.fixture
def exporters() -> Iterator[Callable[..., GrpcExporter]]:
    made: list[GrpcExporter] = []

    def make(endpoint: str, tokens: str = "off", **settings: Any) -> GrpcExporter:
        exporter = GrpcExporter(endpoint, limits=settings.pop("limits", LIMITS), **settings)
        resource = {"service.name": "chat", "service.instance.id": "one"}
        exporter.attach(TOPOLOGY, level="heads", ceiling="deep", tokens=tokens, resource=resource)
        made.append(exporter)
        return exporter

    yield make
    for exporter in made:
        exporter.close(0.2)
        stats = exporter.stats()
        assert stats.pending == 0, "everything has a fate once it is closed"
        assert stats.captured == stats.acknowledged + sum(stats.dropped.values())


Make = Callable[..., GrpcExporter]


def until(condition: Callable[[], Any], what: str = "what was waited for", timeout_s: float = 20.0) -> None:
    """Poll until `condition` holds."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not come"
        time.sleep(0.005)


def unused_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def link_lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


# --- in the process


def test_both_exporters_fulfil_the_port() -> None:
    assert isinstance(InMemoryExporter(), Exporter)
    assert isinstance(GrpcExporter("127.0.0.1:1"), Exporter)


def test_frames_in_memory_are_ordered_by_step_then_sequence() -> None:
    exporter = InMemoryExporter()
    for step in (2, 0, 1):
        exporter.export(block_of(2, step))
    assert [(f.step, f.sequence) for f in exporter.frames] == [(s, q) for s in (0, 1, 2) for q in (0, 1)]
    exporter.export(block_of(1, 0))
    assert [f.step for f in exporter.frames] == [0, 0, 0, 1, 1, 2, 2]
    assert exporter.frames[0].token_id == SECRET_ID  # nothing leaves the process: ids stay


def test_memory_keeps_so_many_frames_and_counts_the_rest() -> None:
    exporter = InMemoryExporter(max_frames=4)
    for step in range(5):
        exporter.export(block_of(2, step))
    assert [f.step for f in exporter.frames] == [3, 3, 4, 4]
    assert exporter.stats() == ExporterStats(
        captured=10, acknowledged=4, pending=0, dropped={"memory_full": 6}
    )
    with pytest.raises(ValueError, match="max_frames must be at least 1"):
        InMemoryExporter(max_frames=0)


def test_memory_has_the_topology_events_and_scale_of_what_it_was_given() -> None:
    exporter = InMemoryExporter()
    with pytest.raises(RuntimeError, match="nothing is attached yet"):
        _ = exporter.topology
    exporter.attach(TOPOLOGY, level="heads", ceiling="heads", tokens="off", resource={})
    event = RequestEvent(request_id="r", kind="started", time_ns=1)
    exporter.event(event)
    assert (exporter.topology, exporter.events, exporter.wanted_level()) == (TOPOLOGY, [event], None)
    assert exporter.scale.version == 0
    for step in range(20):
        exporter.export(block_of(2, step))
    written = np.concatenate([block.columns["head_write"].ravel() for block in exporter.blocks])
    low, high = exporter.scale.kinds["head"]
    assert low == pytest.approx(np.quantile(written, 0.05), rel=0.25)
    assert high == pytest.approx(np.quantile(written, 0.99), rel=0.25)
    assert "ffn" not in exporter.scale.kinds  # not captured: no scale is made up


# --- over the wire


def test_what_is_exported_arrives_as_it_was_in_order_once(collector: Collector, exporters: Make) -> None:
    exporter = exporters(collector.endpoint)
    blocks = [block_of(3, step) for step in range(50)]
    for block in blocks:
        exporter.export(block)
    assert exporter.flush(20)
    assert exporter.stats() == ExporterStats(captured=150, acknowledged=150, pending=0)
    assert collector.sequences == list(range(1, 151))
    schema = collector.hellos[0].schema
    got = [frame for batch in collector.batches for frame in decode_batch(batch, schema).frames()]
    sent = [frame for block in blocks for frame in block.frames()]
    assert [(f.step, f.sequence) for f in got] == [(f.step, f.sequence) for f in sent]
    for a, b in zip(got, sent, strict=True):
        assert a.head_write is not None
        assert b.head_write is not None
        np.testing.assert_array_equal(a.head_write, b.head_write.astype(np.float16).astype(np.float32))


def test_a_step_goes_as_one_message_however_much_it_was_made_from(
    collector: Collector, exporters: Make
) -> None:
    exporter = exporters(collector.endpoint)
    for step in range(3):
        block = block_of(32, step)
        held = LateBlock(block.requests, lambda block=block: block.columns, rows=32, nbytes=4 << 20)
        exporter.export(held)
        assert exporter.flush(20)
    assert [batch.count for batch in collector.batches if batch.count] == [32, 32, 32]


@pytest.mark.parametrize("error", [CodecError, ValueError])
def test_columns_that_cannot_be_made_cost_their_own_step_alone(
    collector: Collector, exporters: Make, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    monkeypatch.setenv("FULGURITE_STRICT", "0")
    exporter = exporters(collector.endpoint)

    def fail() -> dict[str, Any]:
        raise error("no columns")

    exporter.export(block_of(2, 0))
    exporter.export(LateBlock((RequestRef("r"),), fail, rows=3, nbytes=4 << 20))
    exporter.export(block_of(2, 1))
    assert exporter.flush(20)
    stats = exporter.stats()
    assert (stats.captured, stats.acknowledged, stats.dropped) == (7, 4, {"invalid": 3})
    assert collector.sequences == [1, 2, 6, 7]


def test_where_nothing_will_be_sent_a_call_lets_go_of_a_few_however_many_wait() -> None:
    exporter = GrpcExporter("127.0.0.1:1")
    exporter.attach(TOPOLOGY, level="heads", ceiling="heads", tokens="off", resource={})
    exporter._pump = exporter._prepared  # as if it had been started, and slept for long
    assert exporter._pump is not None
    for step in range(100):
        exporter._outbox.put(block_of(2, step))
    exporter._pump.link.phase, exporter._pump.link.stopped_for = "stopped", "killed"
    waiting = []
    for step in range(100, 120):
        exporter.export(block_of(2, step))
        waiting.append(len(exporter._outbox))
    assert waiting[:2] == [93, 86]
    assert waiting[-1] == 0
    stats = exporter.stats()
    assert (stats.captured, stats.pending, stats.dropped) == (240, 0, {"killed": 240})


def test_the_hello_says_who_and_what(collector: Collector, exporters: Make) -> None:
    exporter = exporters(collector.endpoint)
    exporter.export(block_of())
    assert exporter.flush(20)
    hello = collector.hellos[0]
    assert topology_from_pb(hello.topology) == TOPOLOGY
    assert (hello.level, hello.level_ceiling, hello.tokens, hello.protocol) == ("heads", "deep", "off", 1)
    assert (hello.resource.service_name, hello.resource.service_instance_id) == ("chat", "one")
    assert (hello.epoch_ms, hello.schema.encoding) == (0, "exact")


def test_the_agents_own_account_is_sent_while_it_runs_and_before_it_leaves(
    collector: Collector, exporters: Make
) -> None:
    exporter = exporters(collector.endpoint)
    exporter.report(overhead_ratio=0.01, level="pulse", running_requests=3, kv_bytes=77)
    exporter.export(block_of(3))
    until(lambda: len(collector.stats) >= 3, "the account")
    exporter.close()
    until(lambda: collector.goodbyes == 1, "the goodbye")
    last = collector.stats[-1]
    assert (last.captured, last.acknowledged, last.pending) == (3, 3, 0)
    assert (last.level, last.overhead_ratio, last.running_requests, last.kv_bytes) == ("pulse", 0.01, 3, 77)


def test_events_and_the_scale_ride_with_the_frames_and_events_go_alone_where_there_are_none(
    collector: Collector, exporters: Make
) -> None:
    exporter = exporters(collector.endpoint)
    exporter.event(RequestEvent(request_id="r", kind="started", time_ns=1))
    for step in range(20):
        exporter.export(block_of(2, step))
    assert exporter.flush(20)
    assert [event.kind for event in collector.batches[0].events] == ["started"]
    versions = [scale.version for batch in collector.batches for scale in batch.scales]
    assert versions
    assert versions == sorted(set(versions))
    exporter.event(RequestEvent(request_id="r", kind="finished", time_ns=2))
    until(lambda: collector.batches[-1].count == 0, "the lone event")
    assert [event.kind for event in collector.batches[-1].events] == ["finished"]
    assert collector.batches[-1].first_sequence == 41


def test_a_large_block_is_cut_into_batches(collector: Collector, exporters: Make) -> None:
    exporter = exporters(collector.endpoint)
    exporter.export(block_of(1000))
    assert exporter.flush(20)
    assert [batch.count for batch in collector.batches] == [256, 256, 256, 232]
    assert collector.sequences == list(range(1, 1001))


@pytest.mark.parametrize(("tokens", "id_leaves", "text_leaves"), [
    ("off", False, False), ("ids", True, False), ("text", True, True),
])  # fmt: skip
def test_only_what_was_switched_on_by_name_is_in_the_bytes_that_leave(
    collector: Collector, exporters: Make, tokens: str, id_leaves: bool, text_leaves: bool
) -> None:
    exporter = exporters(collector.endpoint, tokens=tokens)
    exporter.event(RequestEvent(request_id="r", kind="started", time_ns=1, prompt_texts=(SECRET,)))
    exporter.export(block_of(2))
    assert exporter.flush(20)
    leaving = b"".join(collector.raw)
    assert b"chat" in leaving  # it is the bytes of the messages that are looked at
    assert (SECRET.encode() in leaving) is text_leaves
    assert (SECRET_ID.to_bytes(4, "little") in leaving) is id_leaves


def test_a_frame_that_cannot_be_encoded_is_dropped_alone(
    collector: Collector, exporters: Make, caplog: pytest.LogCaptureFixture
) -> None:
    exporter = exporters(collector.endpoint)
    exporter.export(block_of(2, 0))
    exporter.export(block_of(2, 1, head_write=np.zeros((2, 9, 9), np.float32)))
    exporter.export(block_of(2, 2))
    assert exporter.flush(20)
    stats = exporter.stats()
    assert (stats.acknowledged, stats.dropped) == (4, {"invalid": 2})
    assert stats.errors["encode:CodecError"] == 1
    assert collector.sequences == [1, 2, 5, 6]  # the gap is seen
    assert any("head_write has shape (2, 9, 9)" in line for line in link_lines(caplog))


def test_the_host_never_hears_of_a_failure_of_export() -> None:
    exporter = GrpcExporter("127.0.0.1:1")
    broken: Any = object()
    exporter.export(broken)
    exporter.event(broken)
    assert sum(exporter.stats().errors.values()) == 2


# --- faults


def test_without_a_collector_the_host_goes_on_and_one_line_says_what_to_do(
    exporters: Make, caplog: pytest.LogCaptureFixture
) -> None:
    endpoint = f"127.0.0.1:{unused_port()}"
    exporter = exporters(endpoint, budget_bytes=1 << 16)
    for step in range(200):
        exporter.export(block_of(4, step))
    assert not exporter.flush(0.6)
    exporter.close(2.0)
    stats = exporter.stats()
    assert stats.captured == 800
    assert sum(stats.dropped.values()) == 800
    assert set(stats.dropped) == {"outbox_full", "closed"}
    (line,) = link_lines(caplog)
    assert f"no collector at {endpoint}" in line
    assert "start one with `fulgurite collector`" in line


def test_a_collector_that_comes_later_gets_what_was_kept_and_sees_the_gap(
    collector: Collector, exporters: Make, caplog: pytest.LogCaptureFixture
) -> None:
    collector.stop()
    exporter = exporters(collector.endpoint, budget_bytes=1 << 16)
    for step in range(100):
        exporter.export(block_of(4, step))
    until(lambda: link_lines(caplog), "the line that it is down")
    collector.start()
    assert exporter.flush(20)
    stats = exporter.stats()
    lost = stats.dropped["outbox_full"]
    assert lost > 0
    assert collector.sequences == list(range(lost + 1, 401))
    assert stats.acknowledged == 400 - lost
    down, up = link_lines(caplog)
    assert "no collector" in down
    assert "answers again" in up


def test_a_collector_that_is_killed_and_restarted_gets_every_frame_once(
    collector: Collector, exporters: Make
) -> None:
    exporter = exporters(collector.endpoint)
    done = threading.Event()

    def host() -> None:
        for step in range(400):
            exporter.export(block_of(2, step))
            done.wait(0.002)

    thread = threading.Thread(target=host)
    thread.start()
    for _ in range(3):
        before = len(collector.batches)
        until(lambda: len(collector.batches) > before + 5, "the next batches")  # noqa: B023
        collector.stop()
        collector.start()
    thread.join()
    assert exporter.flush(20)
    assert exporter.stats() == ExporterStats(captured=800, acknowledged=800, pending=0)
    assert collector.sequences == list(range(1, 801))
    assert len({batch.epoch_ms for batch in collector.batches}) == 1


def test_a_stream_that_breaks_between_storing_and_acknowledging_leaves_no_duplicate(
    collector: Collector, exporters: Make
) -> None:
    def stores_and_breaks(messages: Iterator[agent_pb2.AgentMessage], context: Any) -> Iterable[Said]:
        for message in messages:
            if message.HasField("hello"):
                yield collector.welcome(message.hello)
            elif message.HasField("batch"):
                collector.store(message.batch)
                context.abort(grpc.StatusCode.UNAVAILABLE, "broken on purpose")

    collector.scripts += [stores_and_breaks] * 4
    exporter = exporters(collector.endpoint)
    for step in range(400):
        exporter.export(block_of(4, step))
    assert exporter.flush(20)
    assert collector.sequences == list(range(1, 1601))
    assert exporter.stats() == ExporterStats(captured=1600, acknowledged=1600, pending=0)
    assert not collector.scripts


def test_what_was_sent_and_not_stored_is_sent_again_as_the_same_bytes(
    collector: Collector, exporters: Make
) -> None:
    def loses(messages: Iterator[agent_pb2.AgentMessage], context: Any) -> Iterable[Said]:
        for message in messages:
            if message.HasField("hello"):
                # an epoch that is in the store already, so that it is kept over the break
                collector.batches.append(frame_pb2.Batch(epoch_ms=FIRST_EPOCH, first_sequence=1))
                fields: dict[str, Any] = {"epoch_ms": FIRST_EPOCH, "credit": 16}
                yield Message(welcome=agent_pb2.Welcome(**fields))
            elif message.HasField("batch"):
                context.abort(grpc.StatusCode.UNAVAILABLE, "lost on purpose")

    collector.scripts.append(loses)
    exporter = exporters(collector.endpoint)
    exporter.export(block_of(4))
    assert exporter.flush(20)
    batches = [data for data in collector.raw if agent_pb2.AgentMessage.FromString(data).HasField("batch")]
    assert len(batches) == 2
    assert batches[0] == batches[1]


def test_a_collector_that_lost_its_store_gets_a_new_epoch_and_the_ledger_stays_exact(
    collector: Collector, exporters: Make, caplog: pytest.LogCaptureFixture
) -> None:
    exporter = exporters(collector.endpoint)
    exporter.export(block_of(4, 0))
    assert exporter.flush(20)
    collector.stop()
    collector.batches.clear()
    collector.batches.append(frame_pb2.Batch(epoch_ms=FIRST_EPOCH + 1, first_sequence=1))  # the epoch, empty
    exporter.export(block_of(3, 1))
    collector.start()
    assert exporter.flush(20)
    assert exporter.stats() == ExporterStats(
        captured=7, acknowledged=7, pending=0, errors=exporter.stats().errors
    )
    assert [(b.epoch_ms, b.first_sequence, b.count) for b in collector.batches[1:]] == [
        (FIRST_EPOCH + 2, 1, 3)
    ]
    assert any("no longer has what it acknowledged" in line for line in link_lines(caplog))


def test_a_final_refusal_ends_it_with_one_line_and_everything_is_counted(
    collector: Collector, exporters: Make, caplog: pytest.LogCaptureFixture
) -> None:
    def refuses(messages: Iterator[agent_pb2.AgentMessage], context: Any) -> Iterable[Said]:
        next(messages)
        yield Message(refusal=agent_pb2.Refusal(reason="not this replica", final=True))

    collector.scripts += [refuses] * 3
    exporter = exporters(collector.endpoint)
    exporter.export(block_of(4))
    assert exporter.flush(20)
    exporter.export(block_of(2))
    assert exporter.stats().dropped == {"refused": 6}
    assert exporter.wanted_level() == "off"
    exporter.close()
    (line,) = link_lines(caplog)
    assert "not this replica" in line
    assert len(collector.hellos) == 1


def test_a_collector_that_never_answers_is_named_and_left_and_tried_again(
    collector: Collector, exporters: Make, caplog: pytest.LogCaptureFixture
) -> None:
    def hangs(messages: Iterator[agent_pb2.AgentMessage], context: Any) -> Iterable[Said]:
        for _ in messages:
            pass
        yield from ()

    collector.scripts += [hangs] * 2
    exporter = exporters(collector.endpoint)
    exporter.export(block_of(4))
    assert exporter.flush(20)
    assert collector.sequences == [1, 2, 3, 4]
    down, up = link_lines(caplog)
    assert "does not answer (no welcome within 0.5 s)" in down
    assert "answers again" in up


def test_a_collector_that_stops_acknowledging_is_left_and_what_was_sent_is_resumed(
    collector: Collector, exporters: Make
) -> None:
    def mute(messages: Iterator[agent_pb2.AgentMessage], context: Any) -> Iterable[Said]:
        for message in messages:
            if message.HasField("hello"):
                yield collector.welcome(message.hello)
            elif message.HasField("batch"):
                collector.store(message.batch)

    collector.scripts.append(mute)
    exporter = exporters(collector.endpoint)
    exporter.export(block_of(4))
    assert exporter.flush(20)
    assert (collector.sequences, exporter.stats().acknowledged) == ([1, 2, 3, 4], 4)


@pytest.mark.parametrize(
    "reply",
    [
        b"\xff\xff\xff\xff",
        Message(welcome=agent_pb2.Welcome()),
        Message(ack=agent_pb2.Ack(sequence=3)),
        Message(welcome=agent_pb2.Welcome(epoch_ms=5, resume_after=9)),
    ],
)
def test_a_reply_that_makes_no_sense_is_one_line_and_another_try(
    collector: Collector, exporters: Make, caplog: pytest.LogCaptureFixture, reply: Said
) -> None:
    def babbles(messages: Iterator[agent_pb2.AgentMessage], context: Any) -> Iterable[Said]:
        next(messages)
        yield reply
        for _ in messages:
            pass

    collector.scripts.append(babbles)
    exporter = exporters(collector.endpoint)
    exporter.export(block_of(4))
    assert exporter.flush(20)
    assert collector.sequences == [1, 2, 3, 4]
    down, _ = link_lines(caplog)
    assert "does not keep to the protocol" in down


def test_a_port_that_speaks_something_else_is_one_line(
    exporters: Make, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    connection.sendall(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")

        threading.Thread(target=answer, daemon=True).start()
        port = listener.getsockname()[1]
        exporter = exporters(f"127.0.0.1:{port}")
        exporter.export(block_of(4))
        assert not exporter.flush(0.7)
        exporter.close(0.5)
    assert exporter.stats().dropped == {"closed": 4}
    (line,) = link_lines(caplog)
    assert f"127.0.0.1:{port}" in line
    assert "FULGURITE_ENDPOINT" in line


def test_a_grpc_server_that_is_no_collector_is_called_that(
    exporters: Make, caplog: pytest.LogCaptureFixture
) -> None:
    server = grpc.server(futures.ThreadPoolExecutor(1))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    exporter = exporters(f"127.0.0.1:{port}")
    exporter.export(block_of(4))
    assert not exporter.flush(0.5)
    exporter.close(0.5)
    server.stop(None).wait()
    assert "is not a Fulgurite collector (UNIMPLEMENTED" in link_lines(caplog)[0]


def test_frames_that_the_collector_rejects_count_as_refused(collector: Collector, exporters: Make) -> None:
    def picky(messages: Iterator[agent_pb2.AgentMessage], context: Any) -> Iterable[Said]:
        for message in messages:
            if message.HasField("hello"):
                yield collector.welcome(message.hello)
            elif message.HasField("batch"):
                yield acked(message.batch, rejected=message.batch.count)

    collector.scripts.append(picky)
    exporter = exporters(collector.endpoint)
    exporter.export(block_of(4))
    assert exporter.flush(20)
    assert exporter.stats().dropped == {"refused": 4}


def test_frames_under_way_when_nobody_answers_any_more_count_as_unacknowledged(
    collector: Collector, exporters: Make
) -> None:
    seen = threading.Event()

    def mute(messages: Iterator[agent_pb2.AgentMessage], context: Any) -> Iterable[Said]:
        for message in messages:
            if message.HasField("hello"):
                yield collector.welcome(message.hello)
            elif message.HasField("batch"):
                seen.set()

    collector.scripts += [mute] * 2
    exporter = exporters(collector.endpoint)
    exporter.export(block_of(4))
    assert seen.wait(20)
    exporter.close(0.1)
    assert exporter.stats().dropped == {"unacknowledged": 4}


def test_what_is_acknowledged_with_the_last_word_counts_as_acknowledged(
    collector: Collector, exporters: Make
) -> None:
    def late(messages: Iterator[agent_pb2.AgentMessage], context: Any) -> Iterable[Said]:
        answers = []
        for message in messages:
            if message.HasField("hello"):
                yield collector.welcome(message.hello)
            elif message.HasField("batch"):
                answers.append(collector.store(message.batch))
        yield from answers  # after the goodbye: the agent will send nothing more

    collector.scripts.append(late)
    exporter = exporters(collector.endpoint)
    exporter.export(block_of(4))
    until(lambda: collector.sequences, "the batch")
    exporter.close(0.1)
    stats = exporter.stats()
    assert (stats.acknowledged, stats.pending, dict(stats.dropped)) == (4, 0, {})


def test_frames_of_a_sender_that_gets_no_time_have_a_fate_after_the_close(collector: Collector) -> None:
    gate, reached = threading.Event(), threading.Event()

    class Stuck(GrpcExporter):
        def _account(self) -> agent_pb2.AgentStats:
            reached.set()
            gate.wait(30)
            return super()._account()

    exporter = Stuck(collector.endpoint, limits=LIMITS)
    exporter.attach(TOPOLOGY, level="heads", ceiling="deep", tokens="off", resource={})
    exporter.export(block_of(4))
    assert reached.wait(20)
    exporter.close(0.1)
    told = exporter.stats()
    assert (told.captured, told.acknowledged, told.pending, sum(told.dropped.values())) == (4, 0, 0, 4)
    gate.set()
    assert exporter._pump is not None
    exporter._pump._thread.join(20)
    after = exporter.stats()
    assert (after.captured, after.pending, after.acknowledged + sum(after.dropped.values())) == (4, 0, 4)


# --- control


def test_the_collector_sets_the_level_and_pauses(collector: Collector, exporters: Make) -> None:
    exporter = exporters(collector.endpoint)
    heard = Thrift(Demand("deep"), Budget(None), 1 / 16, exporter=exporter, shield=Shield())
    assert (exporter.wanted_level(), heard.hear()) == (None, "deep")
    exporter.export(block_of())
    assert exporter.flush(20)
    assert (exporter.wanted_level(), heard.hear()) == (None, "deep")
    for control, wanted in [
        (agent_pb2.Control(level="heads"), "heads"),
        (agent_pb2.Control(pause=True), "off"),
        (agent_pb2.Control(), "heads"),
    ]:
        collector.say.append(Message(control=control))
        until(lambda: exporter.wanted_level() == wanted, wanted)  # noqa: B023
        until(lambda: heard.hear() == wanted, f"{wanted} on the host's side")  # noqa: B023
        assert exporter.paused() is control.pause


def test_the_collector_ends_the_capture_for_good(collector: Collector, exporters: Make) -> None:
    exporter = exporters(collector.endpoint)
    exporter.export(block_of(2))
    assert exporter.flush(20)
    collector.say.append(Message(control=agent_pb2.Control(kill=True)))
    until(lambda: exporter.wanted_level() == "off", "the end")
    exporter.export(block_of(3))
    until(lambda: exporter.stats().pending == 0, "the count")
    assert exporter.stats().dropped == {"killed": 3}
    assert len(collector.hellos) == 1


# --- what nobody asked for


UNWATCHED = agent_pb2.Demand(watched=False, one_in=0, history_level="heads")
WATCHED = agent_pb2.Demand(watched=True, one_in=0, history_level="heads")


def sketches(collector: Collector) -> list[frame_pb2.Sketch]:
    return [sketch for batch in collector.batches for sketch in batch.sketches]


def connected(collector: Collector, exporter: GrpcExporter, demand: agent_pb2.Demand) -> None:
    """Let it connect, which begins with a frame, and hear what is wanted."""
    collector.greeting = {"demand": demand}
    exporter.export(block_of(1))
    assert exporter.flush(20)


def test_tokens_that_nobody_asked_for_go_as_sketches_and_are_not_captured(
    collector: Collector, exporters: Make
) -> None:
    exporter = exporters(collector.endpoint)
    connected(collector, exporter, UNWATCHED)
    blocks = [block_of(2, step, position=np.full(2, step, np.int32)) for step in range(1, 31)]
    for block in blocks:
        exporter.export(block)
    exporter.event(RequestEvent(request_id="r", kind="finished", time_ns=9))
    assert exporter.flush(20)
    assert exporter.stats() == ExporterStats(captured=1, acknowledged=1, pending=0, folded=60)
    assert collector.sequences == [1]
    until(lambda: sum(s.tokens for s in sketches(collector)) == 120, "the sketches")
    mine = [sketch for sketch in sketches(collector) if sketch.HasField("request")]
    seconds = [sketch for sketch in sketches(collector) if not sketch.HasField("request")]
    assert sum(sketch.tokens for sketch in mine) == sum(sketch.tokens for sketch in seconds) == 60
    assert {sketch.request.request_id for sketch in mine} == {"r"}
    batch = next(batch for batch in collector.batches if batch.sketches)
    decoded = decode_batch(batch, collector.hellos[0].schema).sketches[0]
    values = np.concatenate([block.columns["head_write"] for block in blocks])
    if decoded.tokens == 60:
        np.testing.assert_allclose(decoded.columns["head_write"].mean, values.mean(axis=0).ravel(), rtol=1e-5)
    until(lambda: [e.kind for batch in collector.batches for e in batch.events] == ["finished"], "the event")
    until(lambda: any(stats.folded == 60 for stats in collector.stats), "the account")


def test_whole_frames_come_with_a_watcher_and_go_with_it(collector: Collector, exporters: Make) -> None:
    exporter = exporters(collector.endpoint)
    connected(collector, exporter, UNWATCHED)
    exporter.export(block_of(2, 1))
    assert exporter.flush(20)
    assert collector.sequences == [1]
    collector.say.append(Message(control=agent_pb2.Control(demand=WATCHED)))
    until(lambda: exporter.wanted_level() is None, "the watcher")
    exporter.export(block_of(2, 2))
    assert exporter.flush(20)
    assert collector.sequences == [1, 2, 3]
    collector.say.append(Message(control=agent_pb2.Control(demand=UNWATCHED)))
    until(lambda: exporter.wanted_level() == "heads", "its end")
    exporter.export(block_of(2, 3))
    assert exporter.flush(20)
    assert collector.sequences == [1, 2, 3]
    assert exporter.stats().folded == 4


def test_the_requests_that_the_history_samples_are_sent_whole(collector: Collector, exporters: Make) -> None:
    exporter = exporters(collector.endpoint)
    demand = agent_pb2.Demand(one_in=4, history_level="heads")
    connected(collector, exporter, demand)
    wanted = Wanted(watched=False, one_in=4)
    requests = tuple(RequestRef(f"request-{i}") for i in range(40))
    chosen = [i for i, request in enumerate(requests) if wanted.wants(request)]
    assert 2 < len(chosen) < 20
    columns = {**block_of(40).columns, "request_index": np.arange(40, dtype=np.uint16)}
    exporter.export(FrameBlock(requests, columns))
    for i in range(40):
        exporter.export(FrameBlock((requests[i],), block_of(1, i).columns))
    assert exporter.flush(20)
    assert exporter.stats().captured == 1 + 2 * len(chosen)
    assert exporter.stats().folded == 2 * (40 - len(chosen))
    sent = {request.request_id for batch in collector.batches[1:] for request in batch.requests}
    assert sent == {requests[i].request_id for i in chosen}
    assert collector.sequences == list(range(1, 2 + 2 * len(chosen)))


def test_a_collector_that_says_nothing_of_demand_gets_everything(
    collector: Collector, exporters: Make
) -> None:
    exporter = exporters(collector.endpoint)
    for step in range(20):
        exporter.export(block_of(2, step))
    assert exporter.flush(20)
    assert exporter.stats() == ExporterStats(captured=40, acknowledged=40, pending=0)
    assert sketches(collector) == []


def test_folding_goes_on_while_the_collector_is_away(collector: Collector, exporters: Make) -> None:
    exporter = exporters(collector.endpoint, budget_bytes=1 << 18)
    connected(collector, exporter, UNWATCHED)
    collector.stop()
    exporter.event(RequestEvent(request_id="r", kind="started", time_ns=1))
    for step in range(2000):  # far more than the buffer holds
        exporter.export(block_of(2, step))
        if not step % 20:
            until(lambda: len(exporter._outbox) < 10, "room")
    collector.start()
    assert exporter.flush(20)
    assert exporter.stats().folded == 4000
    assert exporter.stats().errors.get("tokens_not_folded", 0) == 0
    until(
        lambda: sum(s.tokens for s in sketches(collector) if not s.HasField("request")) == 4000,
        "the sketches",
    )


def test_the_level_of_the_history_holds_while_nobody_watches(collector: Collector, exporters: Make) -> None:
    exporter = exporters(collector.endpoint)
    demand = agent_pb2.Demand(one_in=16, history_level="pulse")
    connected(collector, exporter, demand)
    assert exporter.wanted_level() == "pulse"
    collector.say.append(Message(control=agent_pb2.Control(level="heads", deep_ratio=0.5, demand=WATCHED)))
    until(lambda: exporter.wanted_level() == "heads", "the watcher")
    assert exporter.wanted_deep_ratio() == 0.5
    collector.say.append(Message(control=agent_pb2.Control(own_level=True)))
    until(lambda: exporter.wanted_level() is None, "its own level")
    assert exporter.wanted_deep_ratio() is None


def test_the_offset_of_the_clock_is_in_the_account(collector: Collector, exporters: Make) -> None:
    exporter = exporters(collector.endpoint)
    exporter.export(block_of())
    assert exporter.flush(20)
    assert exporter.stats().clock_offset_s is None
    collector.say.append(
        Message(ping=agent_pb2.Ping(ping_ns=1, clock_offset_ns=-2_000_000, round_trip_ns=500_000))
    )
    until(lambda: exporter.stats().clock_offset_s == -0.002, "the offset")
    assert exporter.stats().round_trip_s == 0.0005


# --- the disk


def test_what_memory_has_no_room_for_waits_on_disk_and_arrives_in_order_once(
    collector: Collector, exporters: Make, tmp_path: Path
) -> None:
    exporter = exporters(collector.endpoint, spool=tmp_path / "spool", budget_bytes=1 << 18)
    exporter.export(block_of(1))
    assert exporter.flush(20)
    collector.stop()
    for step in range(1500):
        exporter.export(block_of(2, step))
        if not step % 10:
            until(lambda: 2 * exporter._outbox.nbytes < 1 << 18, "the disk")
    stats = exporter.stats()
    assert stats.dropped == {}
    assert 2000 < stats.spooled_frames <= stats.pending == 3000
    assert stats.spooled_bytes > 1 << 17
    assert list((tmp_path / "spool").iterdir()) == []  # it has no name: nothing is left behind
    collector.start()
    assert exporter.flush(20)
    assert exporter.stats() == ExporterStats(captured=3001, acknowledged=3001, pending=0)
    assert collector.sequences == list(range(1, 3002))


def test_the_spool_goes_on_in_a_new_epoch(collector: Collector, exporters: Make, tmp_path: Path) -> None:
    exporter = exporters(collector.endpoint, spool=tmp_path, budget_bytes=1 << 17)
    exporter.export(block_of(1))
    assert exporter.flush(20)
    collector.stop()
    for step in range(300):
        exporter.export(block_of(2, step))
        until(lambda: 2 * exporter._outbox.nbytes < 1 << 17, "the disk")
    assert exporter.stats().spooled_frames > 0
    collector.batches.clear()  # it lost its store
    collector.start()
    assert exporter.flush(20)
    assert exporter.stats().acknowledged == 601
    later = [batch for batch in collector.batches if batch.epoch_ms == collector.batches[-1].epoch_ms]
    assert sorted(b.first_sequence + i for b in later for i in range(b.count)) == list(range(1, 601))


def test_a_spool_that_is_full_or_cannot_be_written_drops_and_counts(
    collector: Collector, exporters: Make, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("in the way")
    full = exporters(collector.endpoint, spool=tmp_path / "spool", budget_bytes=1 << 17, spool_bytes=1 << 21)
    broken = exporters(collector.endpoint, spool=tmp_path / "file" / "spool", budget_bytes=1 << 17)
    for exporter in (full, broken):
        exporter.export(block_of(1))
        assert exporter.flush(20)
    collector.stop()
    for exporter in (full, broken):
        for step in range(4000):
            exporter.export(block_of(2, step))
            if not step % 10:
                time.sleep(0)
        until(lambda: exporter.stats().dropped, "a drop")  # noqa: B023
        stats = exporter.stats()
        assert stats.captured == stats.acknowledged + stats.pending + sum(stats.dropped.values())
    assert set(full.stats().dropped) == {"outbox_full"}
    assert full.stats().spooled_bytes <= 1 << 21
    assert "spool_full" in broken.stats().dropped
    assert broken.stats().spooled_frames == 0


def test_one_exporter_serves_one_model(exporters: Make) -> None:
    exporter = exporters("127.0.0.1:1")
    other = Topology(
        **{name: getattr(TOPOLOGY, name) for name in TOPOLOGY.__slots__} | {"model_name": "other"}
    )
    exporter.attach(TOPOLOGY, level="heads", ceiling="heads", tokens="off", resource={})
    with pytest.raises(ValueError, match="one exporter serves one model"):
        exporter.attach(other, level="heads", ceiling="heads", tokens="off", resource={})
    with pytest.raises(ValueError, match="tokens must be one of off, ids, text"):
        exporter.attach(TOPOLOGY, level="heads", ceiling="heads", tokens="all", resource={})


def test_what_comes_after_the_close_is_counted_and_closing_again_does_nothing(
    collector: Collector, exporters: Make
) -> None:
    exporter = exporters(collector.endpoint)
    exporter.export(block_of(2))
    exporter.close()
    exporter.close()
    exporter.export(block_of(3))
    assert exporter.stats() == ExporterStats(captured=5, acknowledged=2, pending=0, dropped={"closed": 3})


# --- processes

PROCESS = """
import os, sys, threading
sys.path[:0] = sys.argv[3:]
import numpy as np
from fulgurite.agent.exporter import GrpcExporter
from fulgurite.wire.frame import FrameBlock, RequestRef
from fulgurite.wire.topology import Topology
sizes = "layers heads kv_heads head_dim hidden_size ffn_size vocab_size".split()
topology = Topology(model_name="m", architecture="x", **dict.fromkeys(sizes, 1))
names = "request_index sequence position token_id phase level step started_ns ended_ns".split()
block = lambda n: FrameBlock((RequestRef("r"),), {name: np.zeros(n, np.int64) for name in names})
exporter = GrpcExporter(sys.argv[1])
resource = {"service.name": "chat", "service.instance.id": "parent"}
exporter.attach(topology, level="heads", ceiling="heads", tokens="off", resource=resource)
assert len(threading.enumerate()) == 1  # nothing runs before the first frame
"""
BODIES = {
    "exit": "exporter.export(block(5))\n",
    "fork_first": """
pid = os.fork()
exporter.export(block(3 if pid else 4))
if pid:
    assert os.waitpid(pid, 0)[1] == 0
print(exporter.flush(20), exporter.stats().captured, flush=True)
""",
    "fork_later": """
exporter.export(block(1)); exporter.flush(20)
pid = os.fork()
exporter.export(block(2 if pid else 4))
if pid:
    assert os.waitpid(pid, 0)[1] == 0
print(exporter.flush(20), exporter.stats().captured, flush=True)
""",
}


def run(body: str, endpoint: str, tmp_path: Any) -> subprocess.CompletedProcess[str]:
    script = tmp_path / "host.py"
    script.write_text(PROCESS + BODIES[body])
    command = [sys.executable, str(script), endpoint, body, *[p for p in sys.path if p]]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=os.environ)


def test_a_process_that_ends_at_once_delivers_what_it_has(collector: Collector, tmp_path: Any) -> None:
    done = run("exit", collector.endpoint, tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert collector.sequences == [1, 2, 3, 4, 5]


def test_a_process_without_a_collector_ends_and_says_one_line(tmp_path: Any) -> None:
    began = time.monotonic()
    done = run("exit", f"127.0.0.1:{unused_port()}", tmp_path)
    assert done.returncode == 0
    assert time.monotonic() - began < 20
    assert done.stderr.count("\n") == 1
    assert "no collector at" in done.stderr


@pytest.mark.parametrize(("body", "captured"), [("fork_first", {3, 4}), ("fork_later", {3, 4})])
def test_after_a_fork_each_process_sends_its_own_under_its_own_name(
    collector: Collector, tmp_path: Any, body: str, captured: set[int]
) -> None:
    done = run(body, collector.endpoint, tmp_path)
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    assert [line[0] for line in lines] == ["True", "True"]
    assert {int(line[1]) for line in lines} == captured
    instances = [hello.resource.service_instance_id for hello in collector.hellos]
    assert len(set(instances)) == 2
    assert instances.count("parent") == 1
