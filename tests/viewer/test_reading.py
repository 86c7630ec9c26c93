"""A collector's messages become events, and every frame that does not come is accounted for."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fulgurite.v1 import frame_pb2, viewer_pb2
from fulgurite.viewer.events import CaughtUp, Event, FeedTrouble, Frames, GapSeen, ReplicaSeen, StatusSeen
from fulgurite.viewer.reading import Reading, status_from_pb
from fulgurite.wire import codec
from fulgurite.wire.frame import FrameBatch, FrameBlock, RequestRef, Scale
from fulgurite.wire.topology import Topology

KEY = "test/model/one"
TOPOLOGY = Topology(
    model_name="m", architecture="llama", layers=2, heads=4, kv_heads=2, head_dim=8, hidden_size=32,
    ffn_size=64, vocab_size=100,
)  # fmt: skip
SCHEMA = codec.schema_for(TOPOLOGY)


def _announcement() -> viewer_pb2.WatchResponse:
    replica = viewer_pb2.ReplicaAnnouncement(
        key=KEY,
        topology=codec.topology_to_pb(TOPOLOGY),
        schema=SCHEMA,
        scale=codec.scale_to_pb(Scale(version=1, kinds={"head": (0.0, 0.5)}, tokens=9)),
        level="heads",
        tokens="ids",
    )
    return viewer_pb2.WatchResponse(replica=replica)


def _batch(first: int, count: int, epoch_ms: int = 5) -> frame_pb2.Batch:
    columns: dict[str, Any] = {
        "request_index": np.zeros(count, np.uint16),
        "sequence": np.zeros(count, np.uint16),
        "position": np.arange(first, first + count, dtype=np.int32),
        "token_id": np.arange(count, dtype=np.int32),
        "phase": np.ones(count, np.uint8),
        "level": np.full(count, 2, np.uint8),
        "step": np.arange(count, dtype=np.int64),
        "started_ns": np.arange(count, dtype=np.int64),
        "ended_ns": np.arange(count, dtype=np.int64) + 1,
        "head_write": np.full((count, 2, 4), 0.25, np.float32),
    }
    block = FrameBlock((RequestRef("r"),), columns)
    return codec.encode_batch(FrameBatch(epoch_ms=epoch_ms, first_sequence=first, blocks=(block,)), SCHEMA)


def _watched(first: int, count: int, epoch_ms: int = 5) -> viewer_pb2.WatchResponse:
    data = _batch(first, count, epoch_ms).SerializeToString()
    return viewer_pb2.WatchResponse(batch=viewer_pb2.WatchedBatch(key=KEY, batch=data))


def _read(reading: Reading, *messages: viewer_pb2.WatchResponse) -> list[Event]:
    return [event for message in messages for event in reading.read(message, 123)]


def _sequences(events: list[Event]) -> list[tuple[int, int]]:
    return [(e.batch.first_sequence, e.batch.last_sequence) for e in events if isinstance(e, Frames)]


@pytest.fixture
def reading() -> Reading:
    made = Reading()
    made.read(_announcement(), 0)
    return made


def test_an_announcement_tells_the_model_its_level_and_its_scale() -> None:
    (seen,) = Reading().read(_announcement(), 0)
    assert isinstance(seen, ReplicaSeen)
    assert (seen.key, seen.topology, seen.level, seen.tokens) == (KEY, TOPOLOGY, "heads", "ids")
    assert seen.scale is not None
    assert seen.scale.kinds["head"] == (0.0, 0.5)


def test_values_arrive_as_they_were_measured(reading: Reading) -> None:
    (frames,) = _read(reading, _watched(1, 3))
    assert isinstance(frames, Frames)
    assert frames.received_ns == 123
    np.testing.assert_array_equal(frames.batch.blocks[0].columns["head_write"], np.full((3, 2, 4), 0.25))


def test_frames_are_live_only_after_the_past_is_complete(reading: Reading) -> None:
    caught_up = viewer_pb2.WatchResponse(caught_up=viewer_pb2.CaughtUp(key=KEY))
    past, caught, live = _read(reading, _watched(1, 1), caught_up, _watched(2, 1))
    assert isinstance(past, Frames)
    assert isinstance(live, Frames)
    assert caught == CaughtUp(key=KEY)
    assert (past.live, live.live) == (False, True)


def test_what_comes_twice_after_a_reconnection_is_dropped(reading: Reading) -> None:
    first = _read(reading, _watched(1, 3), _watched(4, 2))
    reading.restart()
    again = _read(reading, _watched(1, 3), _watched(4, 2), _watched(6, 1))
    assert _sequences(first + again) == [(1, 3), (4, 5), (6, 6)]


def test_of_a_batch_that_overlaps_only_the_new_frames_come(reading: Reading) -> None:
    events = _read(reading, _watched(1, 3), _watched(2, 5))
    assert _sequences(events) == [(1, 3), (4, 6)]
    last = events[-1]
    assert isinstance(last, Frames)
    assert last.batch.blocks[0].columns["position"].tolist() == [4, 5, 6]


def test_a_hole_in_the_numbers_is_a_gap_even_where_nobody_announced_it(reading: Reading) -> None:
    events = _read(reading, _watched(1, 3), _watched(8, 2))
    assert events[1] == GapSeen(
        key=KEY, epoch_ms=5, first_sequence=4, last_sequence=7, frames=4, reason="lost"
    )


def test_an_announced_gap_is_told_once(reading: Reading) -> None:
    gap = viewer_pb2.Gap(
        key=KEY, epoch_ms=5, first_sequence=4, last_sequence=7, frames=4, reason="slow_viewer"
    )
    events = _read(reading, _watched(1, 3), viewer_pb2.WatchResponse(gap=gap), _watched(8, 2))
    assert [event.reason for event in events if isinstance(event, GapSeen)] == ["slow_viewer"]


def test_the_first_batch_that_is_seen_leaves_no_gap(reading: Reading) -> None:
    assert _sequences(_read(reading, _watched(1_000, 2))) == [(1_000, 1_001)]


def test_a_restarted_agent_begins_a_new_stream_and_the_old_one_does_not_come_back(reading: Reading) -> None:
    events = _read(
        reading, _watched(50, 1, epoch_ms=5), _watched(1, 1, epoch_ms=6), _watched(51, 1, epoch_ms=5)
    )
    assert _sequences(events) == [(50, 50), (1, 1)]
    assert not [event for event in events if isinstance(event, GapSeen)]


def test_bytes_that_are_no_batch_are_a_trouble_and_the_stream_goes_on(reading: Reading) -> None:
    rubbish = viewer_pb2.WatchResponse(batch=viewer_pb2.WatchedBatch(key=KEY, batch=b"\xff\xff rubbish"))
    events = _read(reading, _watched(1, 2), rubbish, _watched(3, 1))
    assert [type(event) for event in events] == [Frames, FeedTrouble, Frames]


def test_a_batch_that_lies_is_not_believed_and_the_next_one_tells_how_much_is_missing(
    reading: Reading,
) -> None:
    message = _batch(3, 4)
    message.count = 4_000_000_000
    message.blocks[0].column_data[9] = b"short"
    lying = viewer_pb2.WatchedBatch(key=KEY, batch=message.SerializeToString())
    events = _read(reading, _watched(1, 2), viewer_pb2.WatchResponse(batch=lying), _watched(7, 1))
    gaps = [event for event in events if isinstance(event, GapSeen)]
    assert [(gap.first_sequence, gap.last_sequence, gap.reason) for gap in gaps] == [(3, 6, "malformed")]
    assert any(isinstance(event, FeedTrouble) for event in events)
    assert _sequences(events) == [(1, 2), (7, 7)]


def test_columns_that_were_never_announced_are_not_guessed_at() -> None:
    events = _read(Reading(), _watched(1, 2))
    assert [type(event) for event in events] == [FeedTrouble]


def test_an_absurd_topology_is_refused() -> None:
    message = _announcement()
    message.replica.topology.layers = 1_000_000_000
    (trouble,) = Reading().read(message, 0)
    assert isinstance(trouble, FeedTrouble)


def test_what_a_status_does_not_know_is_none() -> None:
    status = viewer_pb2.ReplicaStatus(key=KEY, state="live", tokens_per_s=12.5)
    (seen,) = Reading().read(viewer_pb2.WatchResponse(status=status), 0)
    assert isinstance(seen, StatusSeen)
    assert seen.status.tokens_per_s == 12.5
    assert seen.status.inter_token_p50_s is None
    assert seen.status.overhead_ratio is None
    assert seen.status.running_requests is None


def test_an_overhead_that_was_not_measured_yet_is_none() -> None:
    status = viewer_pb2.ReplicaStatus(key=KEY, state="live")
    status.agent.overhead_ratio = float("nan")
    status.agent.running_requests = 3
    status.agent.dropped["outbox_full"] = 4
    status.agent.dropped["refused"] = 0
    (seen,) = Reading().read(viewer_pb2.WatchResponse(status=status), 0)
    assert isinstance(seen, StatusSeen)
    assert seen.status.overhead_ratio is None
    assert seen.status.running_requests == 3
    assert seen.status.dropped == {"outbox_full": 4}


def test_of_a_black_box_no_cache_is_told() -> None:
    told: dict[str, Any] = {"kv_tokens": 7, "kv_bytes": 70, "layers": 1}
    box = status_from_pb(viewer_pb2.ReplicaStatus(heads=0, **told))
    assert (box.kv_tokens, box.kv_bytes) == (None, None)
    glass = status_from_pb(viewer_pb2.ReplicaStatus(heads=4, **told))
    assert (glass.kv_tokens, glass.kv_bytes) == (7, 70)
