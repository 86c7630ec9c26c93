"""Everything that reads what a peer sends, as functions of bytes. Each may refuse in words, and no more."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from google.protobuf.message import DecodeError, Message
from tests.fuzz import seeds

from fulgurite.v1 import agent_pb2, frame_pb2, viewer_pb2
from fulgurite.wire.codec import Codec, CodecError, codec_for, schema_for
from fulgurite.wire.ledger import Ledger

MOST_CHARS = 1200
"""Of a refusal: it is a status that somebody reads."""


class UnclearRefusal(Exception):
    """A refusal that is empty, has several lines, or is too long for a status."""


@dataclass(frozen=True, slots=True)
class Target:
    """Something that reads bytes of a peer.

    Attributes
    ----------
    kind : of message that it takes, for whoever changes fields.
    refusals : what it may raise.
    read : reads; the second time on it may build on what it read before.
    """

    name: str
    kind: type[Message]
    seeds: list[bytes]
    refusals: tuple[type[Exception], ...]
    read: Callable[[bytes], object]

    def __call__(self, data: bytes) -> bool:
        """Whether it was taken.

        Raises
        ------
        UnclearRefusal
            Where it was refused without a clear word.
        Exception
            Whatever `read` raised that is no refusal.
        """
        try:
            self.read(data)
        except self.refusals as error:
            check_is_clear(str(error))
            return False
        return True


def check_is_clear(text: str) -> None:
    """See whether a refusal can be a status."""
    if not text.strip() or len(text) > MOST_CHARS or "\n" in text:
        raise UnclearRefusal(repr(text[:2000]))


def targets() -> list[Target]:
    """All of them."""
    return [*_of_codec(), _hello(), _after_hello(), _watch_request(), _viewer(), _agent(), *_spans()]


def _of_codec() -> list[Target]:
    made = []
    for topology in seeds.TOPOLOGIES:
        for encoding in seeds.ENCODINGS:
            codec = codec_for(schema_for(topology, encoding))
            made.append(
                Target(
                    f"batch-{topology.model_name}-{encoding}",
                    frame_pb2.Batch,
                    seeds.batches(topology, encoding),
                    (CodecError,),
                    _decoding(codec),
                )
            )
    return made


def _decoding(codec: Codec) -> Callable[[bytes], object]:
    def read(data: bytes) -> None:
        codec.validate(data)
        try:  # what is valid can be decoded, and looked at to the last frame
            batch = codec.decode(data)
        except CodecError as error:
            raise AssertionError("valid, and yet it cannot be decoded") from error
        assert len(batch) == sum(len(block) for block in batch.blocks)
        for block in batch.blocks:
            block.frame(len(block) - 1)
            for column in block.columns.values():
                assert len(column) == len(block)
                float(column.reshape(-1)[-1])

    return read


def _hello() -> Target:
    from fulgurite.collector.hello import introduction
    from fulgurite.collector.refusal import Refused

    return Target("hello", agent_pb2.AgentMessage, seeds.hellos(), (Refused,), introduction)


def _after_hello() -> Target:
    from fulgurite.collector.config import Settings
    from fulgurite.collector.link import Link
    from fulgurite.collector.refusal import Refused
    from fulgurite.collector.store import Registration

    codec, registration = codec_for(schema_for(seeds.DENSE)), Registration(seeds.EPOCH, 0)

    def read(data: bytes) -> None:
        link = Link(codec, registration, settings=Settings(), now_s=0.0)
        taken: Any = link.read(data, 1)
        if taken is not None and hasattr(taken, "entry"):
            link.keep([taken.entry], 1.0)
            link.say(100.0)

    return Target("agent-message", agent_pb2.AgentMessage, seeds.agent_words(), (Refused,), read)


def _watch_request() -> Target:
    from fulgurite.collector import watch

    def read(data: bytes) -> None:
        watch._wish(viewer_pb2.WatchRequest.FromString(data))

    asked, refusals = seeds.watch_requests(), (DecodeError, ValueError)
    return Target("watch-request", viewer_pb2.WatchRequest, asked, refusals, read)


def _viewer() -> Target:
    from fulgurite.viewer.reading import Reading

    reading = Reading()
    first = viewer_pb2.WatchResponse.FromString(seeds.watch_responses()[0])

    def read(data: bytes) -> None:
        nonlocal reading
        if len(reading._streams) > 64:
            reading = Reading()  # a collector names the replicas that it has; this one would name millions
        reading.read(first, 1)
        for event in reading.read(viewer_pb2.WatchResponse.FromString(data), 2):
            repr(event)[:1]

    return Target("viewer", viewer_pb2.WatchResponse, seeds.watch_responses(), (DecodeError,), read)


def _agent() -> Target:
    from fulgurite.agent.link import Answer, Hang, Link, Open, Parcel, Send, Stop
    from fulgurite.wire.codec import agent_message_bytes

    parcel = agent_message_bytes(seeds.batches(seeds.DENSE, "exact")[0])
    welcome = agent_pb2.CollectorMessage.FromString(seeds.collector_words()[0])

    def read(data: bytes) -> None:
        """A link that has greeted, or is about to, hears it; whatever it then does, its account is right."""
        for is_open in (False, True):
            ledger = Ledger()
            link = Link(ledger, jitter=lambda: 0.5)
            ledger.capture(3)
            link.add(Parcel(1, 3, parcel))
            link.due(0.0)
            link.opened(0.0)
            if is_open:
                link.received(welcome, 0.0)
            link.received(agent_pb2.CollectorMessage.FromString(data), 0.0)
            for step in range(6):
                action = link.due(step * 0.01)
                assert isinstance(action, Send | Answer | Hang | Open | Stop) or action is not None
            account = ledger.account()
            assert account.captured == 3
            assert account.captured == account.pending + account.acknowledged + sum(account.dropped.values())

    return Target(
        "collector-message", agent_pb2.CollectorMessage, seeds.collector_words(), (DecodeError,), read
    )


def _spans() -> list[Target]:
    try:
        from fulgurite.collector.otlp.parts import NotOtlp, taken_apart
    except ImportError:  # what it needs comes with an extra
        return []
    from opentelemetry.proto.collector.trace.v1 import trace_service_pb2

    kind = trace_service_pb2.ExportTraceServiceRequest
    return [Target("otlp", kind, seeds.spans(), (NotOtlp,), taken_apart)]
