"""What an agent says of itself in its first message, checked. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from google.protobuf.message import DecodeError

from fulgurite.collector.refusal import Refused
from fulgurite.v1 import agent_pb2, viewer_pb2
from fulgurite.wire.channels import LEVELS
from fulgurite.wire.codec import (
    MAX_SEQUENCE,
    PROTOCOL,
    Codec,
    CodecError,
    check_schema,
    codec_for,
    topology_from_pb,
)
from fulgurite.wire.replica import ReplicaKey

MAX_HELLO_BYTES: Final = 1 << 20
"""It is kept for every schema of a replica, and sent to every viewer."""


@dataclass(frozen=True, slots=True)
class Introduction:
    """A replica as its agent introduced it.

    Attributes
    ----------
    asked_epoch_ms : int
        The epoch that it wrote under; 0 for a new one.
    announcement : ReplicaAnnouncement
        What viewers are told of it. Not to be changed.
    """

    key: ReplicaKey
    asked_epoch_ms: int
    codec: Codec
    announcement: viewer_pb2.ReplicaAnnouncement


def parse_message(data: bytes) -> agent_pb2.AgentMessage:
    """A message of an agent.

    Raises
    ------
    Refused
        Where the bytes are none.
    """
    try:
        return agent_pb2.AgentMessage.FromString(data)
    except DecodeError:
        raise Refused(f"{len(data)} bytes came that are not a message of an agent") from None


def introduction(data: bytes) -> Introduction:
    """Read a serialised hello.

    Raises
    ------
    Refused
        Where it is something else, of another protocol, or breaks a rule.
    """
    if len(data) > MAX_HELLO_BYTES:
        raise Refused(f"a first message of {len(data)} bytes; a hello has at most {MAX_HELLO_BYTES}")
    message = parse_message(data)
    kind = message.WhichOneof("message")
    if kind != "hello":
        raise Refused(
            f"the first message must be a hello, not {kind or 'one of a kind that is not known here'}"
        )
    return _introduced(message.hello)


def _introduced(hello: agent_pb2.Hello) -> Introduction:
    _check_protocol(hello.protocol)
    resource = hello.resource
    try:
        key = ReplicaKey(resource.service_namespace, resource.service_name, resource.service_instance_id)
        check_schema(hello.schema, topology_from_pb(hello.topology))
        codec = codec_for(hello.schema)
    except (CodecError, ValueError) as error:
        raise Refused(str(error)) from None
    if hello.level not in LEVELS:
        raise Refused(f"no such level: {hello.level[:40]!r}; it is one of {', '.join(LEVELS)}")
    if hello.epoch_ms > MAX_SEQUENCE:
        raise Refused(f"an epoch of {hello.epoch_ms} ms")
    announcement = viewer_pb2.ReplicaAnnouncement(
        key=key.text,
        resource=resource,
        topology=hello.topology,
        schema=hello.schema,
        level=hello.level,
        tokens=hello.tokens,
        level_ceiling=hello.level_ceiling if hello.level_ceiling in LEVELS else "",
    )
    return Introduction(key, hello.epoch_ms, codec, announcement)


def _check_protocol(protocol: int) -> None:
    if protocol > PROTOCOL:
        # Not final: a collector is often brought up to date after its agents, and then they go on.
        raise Refused(
            f"the agent speaks protocol {protocol}, this collector up to {PROTOCOL}: update the collector",
            final=False,
        )
    if protocol < 1:
        raise Refused("the hello names no protocol")
