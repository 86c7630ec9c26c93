"""Frames, events and gaps as JSON lines."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from fulgurite.cli.frame_json import frame_record
from fulgurite.cli.tail import Tail
from fulgurite.v1 import viewer_pb2
from fulgurite.wire.codec import encode_batch, schema_for, topology_to_pb
from fulgurite.wire.frame import FrameBatch, FrameBlock, RequestEvent, RequestRef
from fulgurite.wire.topology import Topology

KEY = "/demo/replica-0"
TOPOLOGY = Topology(
    model_name="tiny",
    architecture="LlamaForCausalLM",
    layers=2,
    heads=2,
    kv_heads=1,
    head_dim=4,
    hidden_size=8,
    ffn_size=16,
    vocab_size=32,
)


def block(count: int, *, tokens: bool = True) -> FrameBlock:
    head_write = np.full((count, 2, 2), 1 / 3, np.float32)
    head_write[:, 1, :] = np.nan
    columns: dict[str, Any] = {
        "request_index": np.zeros(count, np.uint16),
        "sequence": np.zeros(count, np.uint16),
        "position": np.arange(count, dtype=np.int32) + 5,
        "token_id": np.arange(count, dtype=np.int32) if tokens else np.full(count, -1, np.int32),
        "phase": np.ones(count, np.uint8),
        "level": np.full(count, 2, np.uint8),
        "step": np.arange(count, dtype=np.int64),
        "started_ns": np.full(count, 10, np.int64),
        "ended_ns": np.full(count, 20, np.int64),
        "logprob": np.full(count, -0.123456789, np.float32),
        "entropy": np.full(count, np.nan, np.float32),
        "top_logprobs": np.full((count, 8), -np.inf, np.float32),
        "head_write": head_write,
    }
    texts = tuple(f" wörd{index}" for index in range(count)) if tokens else None
    return FrameBlock((RequestRef("request-1"),), columns, texts)


def messages(count: int = 3) -> list[viewer_pb2.WatchResponse]:
    schema = schema_for(TOPOLOGY)
    event = RequestEvent(request_id="request-1", kind="finished", time_ns=30, reason="length")
    batch = FrameBatch(epoch_ms=7, first_sequence=11, blocks=(block(count),), events=(event,))
    announced = viewer_pb2.ReplicaAnnouncement(
        key=KEY, topology=topology_to_pb(TOPOLOGY), schema=schema, level="heads", tokens="text"
    )
    watched = viewer_pb2.WatchedBatch(
        key=KEY, entry_id="7-13", batch=encode_batch(batch, schema).SerializeToString()
    )
    gap = viewer_pb2.Gap(
        key=KEY, epoch_ms=7, first_sequence=14, last_sequence=20, reason="slow_viewer", frames=7
    )
    return [
        viewer_pb2.WatchResponse(replica=announced),
        viewer_pb2.WatchResponse(batch=watched),
        viewer_pb2.WatchResponse(gap=gap),
        viewer_pb2.WatchResponse(status=viewer_pb2.ReplicaStatus(key=KEY)),
        viewer_pb2.WatchResponse(caught_up=viewer_pb2.CaughtUp(key=KEY)),
    ]


def lines(told: list[viewer_pb2.WatchResponse], *, limit: int | None = None) -> list[dict[str, Any]]:
    tail = Tail(limit=limit)
    return [line for message in told for line in tail.lines(message)]


def test_every_line_says_what_it_is() -> None:
    types = [line["type"] for line in lines(messages())]
    assert types == ["replica", "frame", "frame", "frame", "event", "gap", "caught_up"]


def test_a_frame_knows_its_replica_and_its_place_in_the_stream() -> None:
    frames = [line for line in lines(messages()) if line["type"] == "frame"]
    assert [(frame["epoch_ms"], frame["stream_sequence"]) for frame in frames] == [(7, 11), (7, 12), (7, 13)]
    assert {frame["replica"] for frame in frames} == {KEY}
    assert [frame["token_text"] for frame in frames] == [" wörd0", " wörd1", " wörd2"]


def test_undefined_values_are_null_and_what_was_not_captured_is_absent() -> None:
    record = frame_record(block(1).frame(0))
    assert record["head_write"] == [[0.3333, 0.3333], [None, None]]
    assert record["entropy"] is None
    assert record["top_logprobs"] == ["-Infinity"] * 8
    assert record["logprob"] == pytest.approx(-0.1234568, abs=1e-9)
    assert not {"head_contribution", "kv_tokens", "trace_id"} & record.keys()
    json.dumps(record, allow_nan=False)


def test_ids_that_stayed_in_their_process_are_absent() -> None:
    record = frame_record(block(1, tokens=False).frame(0))
    assert "token_id" not in record
    assert "token_text" not in record
    assert record["position"] == 5


def test_an_event_and_a_gap_carry_what_they_are_about() -> None:
    event, gap = (line for line in lines(messages()) if line["type"] in ("event", "gap"))
    assert (event["request_id"], event["kind"], event["reason"]) == ("request-1", "finished", "length")
    assert "accepted_tokens" not in event
    assert (gap["first_sequence"], gap["last_sequence"], gap["frames"]) == (14, 20, 7)
    assert gap["reason"] == "slow_viewer"


def test_a_batch_that_cannot_be_read_is_a_line_and_the_rest_goes_on() -> None:
    announced, watched, *rest = messages()
    broken = viewer_pb2.WatchResponse()
    broken.CopyFrom(watched)
    broken.batch.batch = watched.batch.batch[: len(watched.batch.batch) // 2]
    types = [line["type"] for line in lines([announced, broken, watched, *rest])]
    assert types[:3] == ["replica", "undecodable", "frame"]


def test_a_batch_of_an_unannounced_replica_is_said_to_be_unreadable() -> None:
    (line,) = lines(messages()[1:2])
    assert (line["type"], line["entry_id"]) == ("undecodable", "7-13")


def test_the_limit_counts_frames() -> None:
    told = lines(messages(), limit=2)
    assert [line["type"] for line in told[:3]] == ["replica", "frame", "frame"]
    assert sum(line["type"] == "frame" for line in told) == 2


def test_the_command_ends_at_its_limit(fulgurite: Callable[..., Any], scripted: Callable[..., str]) -> None:
    result = fulgurite("tail", "--collector", scripted([], messages()), "--limit", "2")
    assert (result.status, result.err) == (0, "")
    parsed = [json.loads(line) for line in result.out.splitlines()]
    assert [line["type"] for line in parsed] == ["replica", "frame", "frame"]


def test_a_collector_that_goes_away_is_an_error(
    fulgurite: Callable[..., Any], scripted: Callable[..., str]
) -> None:
    result = fulgurite("tail", "--collector", scripted([], messages()))
    assert result.status == 1
    assert len(result.out.splitlines()) == 7
    assert "went away" in result.complaint
