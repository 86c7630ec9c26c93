"""Valid messages of every kind that a port takes: where the fuzzers start."""

from __future__ import annotations

from typing import Any

import numpy as np

from fulgurite.v1 import agent_pb2, viewer_pb2
from fulgurite.wire.channels import CHANNELS
from fulgurite.wire.codec import codec_for, content_hash, resource_to_pb, schema_for, topology_to_pb
from fulgurite.wire.frame import FrameBatch, FrameBlock, RequestEvent, RequestRef, Scale
from fulgurite.wire.topology import Topology

EPOCH = 1_700_000_000_000
DENSE = Topology(
    model_name="dense", architecture="LlamaForCausalLM", layers=2, heads=4, kv_heads=2, head_dim=8,
    hidden_size=32, ffn_size=64, vocab_size=100,
)  # fmt: skip
EXPERTS = Topology(
    model_name="experts", architecture="MixtralForCausalLM", layers=2, heads=2, kv_heads=1, head_dim=8,
    hidden_size=16, ffn_size=32, vocab_size=100, experts=4, experts_per_token=2, layer_heads=(2, 1),
    layer_kinds=("full", "sliding"), layer_windows=(0, 4), unavailable=(("residue", "why not"),),
)  # fmt: skip
TOPOLOGIES = (DENSE, EXPERTS)
ENCODINGS = ("exact", "compact")
NAME = {"service.namespace": "fuzz", "service.name": "served", "service.instance.id": "a"}


def block(topology: Topology, frames: int, *, every_channel: bool) -> FrameBlock:
    """Frames with the channels of the lowest level, or with all of them."""
    rng = np.random.default_rng(frames)
    columns: dict[str, Any] = {}
    for channel in CHANNELS:
        shape = channel.shape(topology)
        if not np.prod(shape) or not (
            every_channel or channel.family == "identity" or channel.level == "pulse"
        ):
            continue
        full = (frames, *shape)
        if channel.exact.startswith("f"):
            columns[channel.name] = rng.exponential(size=full).astype(np.float32)
        else:
            columns[channel.name] = np.zeros(full, np.dtype(f"<{channel.exact}"))
    columns["step"] = np.arange(frames, dtype=np.int64)
    columns["position"] = np.arange(frames, dtype=np.int32)
    texts = tuple("x" * row for row in range(frames)) if every_channel else None
    return FrameBlock((RequestRef("r", "0" * 32, "0" * 16),), columns, texts)


def batches(topology: Topology, encoding: str) -> list[bytes]:
    """Serialised batches under the schema of this topology."""
    codec = codec_for(schema_for(topology, encoding))
    event = RequestEvent(request_id="r", kind="started", time_ns=1, prompt_tokens=3, prompt_texts=("a", "b"))
    scale = Scale(version=1, kinds={"head": (0.1, 1.0), "ffn": (0.2, 2.0)}, tokens=5)
    made = [
        FrameBatch(epoch_ms=EPOCH, first_sequence=1, blocks=(block(topology, 3, every_channel=True),)),
        FrameBatch(
            epoch_ms=EPOCH,
            first_sequence=1,
            blocks=(block(topology, 2, every_channel=False), block(topology, 1, every_channel=True)),
            events=(event,),
            scales=(scale,),
        ),
        FrameBatch(epoch_ms=EPOCH, first_sequence=1, blocks=(), events=(event,)),
    ]
    return [codec.encode(batch).SerializeToString() for batch in made]


def hellos() -> list[bytes]:
    """First messages of agents."""
    made = []
    for topology in TOPOLOGIES:
        for encoding in ENCODINGS:
            hello = agent_pb2.Hello(
                protocol=1,
                agent_version="1",
                resource=resource_to_pb({**NAME, "host.name": "h"}),
                topology=topology_to_pb(topology),
                schema=schema_for(topology, encoding),
                level="heads",
                level_ceiling="deep",
                tokens="off",
            )
            made.append(agent_pb2.AgentMessage(hello=hello).SerializeToString())
    return made


def agent_words() -> list[bytes]:
    """What an agent says after its hello."""
    stats = agent_pb2.AgentStats(
        captured=9, acknowledged=7, pending=1, dropped={"outbox_full": 1}, level="heads"
    )
    said = [
        agent_pb2.AgentMessage(stats=stats),
        agent_pb2.AgentMessage(goodbye=agent_pb2.Goodbye(reason="closed")),
        agent_pb2.AgentMessage(pong=agent_pb2.Pong(ping_ns=1, wall_ns=2)),
    ]
    made = [message.SerializeToString() for message in said]
    for data in batches(DENSE, "exact"):
        message = agent_pb2.AgentMessage()
        message.batch.ParseFromString(data)
        made.append(message.SerializeToString())
    return made


def collector_words() -> list[bytes]:
    """What a collector says to an agent."""
    said = [
        agent_pb2.CollectorMessage(welcome=agent_pb2.Welcome(protocol=1, epoch_ms=EPOCH, credit=8)),
        agent_pb2.CollectorMessage(ack=agent_pb2.Ack(epoch_ms=EPOCH, sequence=3, credit=8, retry_after_ms=5)),
        agent_pb2.CollectorMessage(control=agent_pb2.Control(level="deep", pause=True)),
        agent_pb2.CollectorMessage(ping=agent_pb2.Ping(ping_ns=5)),
        agent_pb2.CollectorMessage(refusal=agent_pb2.Refusal(reason="no")),
    ]
    return [message.SerializeToString() for message in said]


def watch_requests() -> list[bytes]:
    """What a viewer asks."""
    asked = [
        viewer_pb2.WatchRequest(selectors=["*"], history_s=5.0),
        viewer_pb2.WatchRequest(selectors=["fuzz/served/a"], after_id=f"{EPOCH}-3", status_interval_s=1.0),
    ]
    return [message.SerializeToString() for message in asked]


def watch_responses() -> list[bytes]:
    """What a collector tells a viewer."""
    announced = viewer_pb2.ReplicaAnnouncement(
        key="fuzz/served/a",
        resource=resource_to_pb(NAME),
        topology=topology_to_pb(DENSE),
        schema=schema_for(DENSE),
        level="heads",
        tokens="off",
    )
    told = [viewer_pb2.WatchResponse(replica=announced)]
    for data in batches(DENSE, "exact"):
        told.append(viewer_pb2.WatchResponse(batch=viewer_pb2.WatchedBatch(key="fuzz/served/a", batch=data)))
    told.append(viewer_pb2.WatchResponse(gap=viewer_pb2.Gap(key="fuzz/served/a", first_sequence=2, frames=3)))
    told.append(viewer_pb2.WatchResponse(caught_up=viewer_pb2.CaughtUp(key="fuzz/served/a")))
    told.append(viewer_pb2.WatchResponse(status=viewer_pb2.ReplicaStatus(key="fuzz/served/a", level="heads")))
    return [message.SerializeToString() for message in told]


def spans() -> list[bytes]:
    """An OTLP export request."""
    from opentelemetry.proto.collector.trace.v1 import trace_service_pb2

    request = trace_service_pb2.ExportTraceServiceRequest()
    of_resource = request.resource_spans.add()
    attribute = of_resource.resource.attributes.add(key="service.name")
    attribute.value.string_value = "served"
    span = of_resource.scope_spans.add().spans.add(
        trace_id=bytes(range(16)), span_id=bytes(range(8)), name="chat model", start_time_unix_nano=1
    )
    span.end_time_unix_nano = 2
    return [request.SerializeToString()]


SCHEMA_HASH = content_hash(schema_for(DENSE))
