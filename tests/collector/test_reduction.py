"""A viewer gets what it can show, exactly as it was written, and the count of what was left out."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import grpc
import numpy as np
import pytest
from tests.collector.stage import SCHEMA, TOPOLOGY, Agent, Viewer, asynchronous, block_of, collecting

from fulgurite.collector.reduction import Reducer, Wanted
from fulgurite.v1 import frame_pb2
from fulgurite.wire.codec import decode_batch, encode_batch, schema_for
from fulgurite.wire.frame import FrameBatch, FrameBlock, RequestEvent, RequestRef

TRACE = "ab" * 16
COMPACT = schema_for(TOPOLOGY, "compact")


def mixed(schema: frame_pb2.Schema) -> FrameBatch:
    """Six frames of three requests, 10 ms apart, with an event of each."""
    rng = np.random.default_rng(0)
    channels: dict[str, Any] = {
        "request_index": np.array([0, 1, 2, 0, 1, 2], np.uint16),
        "head_write": rng.random((6, 2, 4)).astype(np.float32),
        "ffn_write": rng.random((6, 2)).astype(np.float32),
        "kv_tokens": np.repeat(np.arange(6, dtype=np.int32)[:, None], 2, axis=1),
    }
    block = block_of(6, **channels)
    requests = (RequestRef("a"), RequestRef("b", TRACE), RequestRef("c"))
    events = tuple(RequestEvent(request_id=name, kind="finished", time_ns=1) for name in "abc")
    block = FrameBlock(requests, block.columns, tuple("uvwxyz"))
    batch = FrameBatch(epoch_ms=5, first_sequence=1, blocks=(block,), events=events)
    return decode_batch(encode_batch(batch, schema), schema)


def reduced(wanted: Wanted, schema: frame_pb2.Schema = SCHEMA) -> tuple[FrameBatch, int]:
    data, left_out = Reducer(wanted).reduce(encode_batch(mixed(schema), schema).SerializeToString(), schema)
    return decode_batch(data, schema), left_out


@pytest.mark.parametrize("wanted", [Wanted(request_id="b"), Wanted(trace_id=bytes.fromhex(TRACE))])
@pytest.mark.parametrize("schema", [SCHEMA, COMPACT], ids=["exact", "compact"])
def test_only_the_frames_and_events_of_a_request_or_a_trace_are_left(
    wanted: Wanted, schema: frame_pb2.Schema
) -> None:
    batch, left_out = reduced(wanted, schema)
    (block,) = batch.blocks
    assert (block.requests, block.texts, left_out) == ((RequestRef("b", TRACE),), ("v", "y"), 4)
    assert [event.request_id for event in batch.events] == ["b"]
    whole = mixed(schema).blocks[0].select([1, 4])
    for name in ("head_write", "ffn_write", "kv_tokens", "ended_ns"):
        np.testing.assert_array_equal(block.columns[name], whole.columns[name])


@pytest.mark.parametrize("schema", [SCHEMA, COMPACT], ids=["exact", "compact"])
def test_other_channels_are_left_out_and_other_layers_are_not_measured(schema: frame_pb2.Schema) -> None:
    wanted = Wanted(channels=frozenset({"ffn_write", "kv_tokens"}), layers=frozenset({1}))
    batch, left_out = reduced(wanted, schema)
    (block,), whole = batch.blocks, mixed(schema).blocks[0]
    assert left_out == 0
    assert "head_write" not in block.columns
    assert np.isnan(block.columns["ffn_write"][:, 0]).all()
    np.testing.assert_array_equal(block.columns["ffn_write"][:, 1], whole.columns["ffn_write"][:, 1])
    assert (block.columns["kv_tokens"][:, 0] == -1).all()
    np.testing.assert_array_equal(block.columns["kv_tokens"][:, 1], whole.columns["kv_tokens"][:, 1])
    np.testing.assert_array_equal(block.columns["position"], whole.columns["position"])


def test_what_was_written_once_for_all_frames_is_cut_like_the_rest() -> None:
    block = block_of(6, kv_tokens=np.full((6, 2), 7, np.int32), ffn_write=np.full((6, 2), 0.5, np.float32))
    sent = FrameBatch(epoch_ms=5, first_sequence=1, blocks=(block,))
    data = encode_batch(sent, SCHEMA).SerializeToString()
    for layers in (frozenset[int](), frozenset({1})):
        for frames_per_s, left in ((0.0, 6), (50.0, 3)):
            cut, left_out = Reducer(Wanted(frames_per_s=frames_per_s, layers=layers)).reduce(data, SCHEMA)
            (kept,) = decode_batch(cut, SCHEMA).blocks
            assert (len(kept), left_out) == (left, 6 - left)
            hidden = (-1, np.nan) if layers else (7, 0.5)
            for name, wanted, first in (("kv_tokens", 7, hidden[0]), ("ffn_write", 0.5, hidden[1])):
                np.testing.assert_array_equal(kept.columns[name], np.tile([first, wanted], (left, 1)))


def test_of_each_interval_the_newest_frame_is_left() -> None:
    reducer = Reducer(Wanted(frames_per_s=50.0))
    data = encode_batch(mixed(SCHEMA), SCHEMA).SerializeToString()
    first, left_out = reducer.reduce(data, SCHEMA)
    assert decode_batch(first, SCHEMA).blocks[0].columns["position"].tolist() == [1, 3, 5]
    assert left_out == 3
    again, left_out = reducer.reduce(data, SCHEMA)  # the same intervals once more
    assert len(decode_batch(again, SCHEMA)) == 0
    assert left_out == 6


def test_what_nobody_wants_is_nothing() -> None:
    data = encode_batch(replace(mixed(SCHEMA), events=()), SCHEMA).SerializeToString()
    assert Reducer(Wanted(request_id="nobody")).reduce(data, SCHEMA) == (b"", 6)


@asynchronous
async def test_a_viewer_is_sent_what_it_asked_for() -> None:
    async with collecting() as collector:
        agent = await Agent(collector.address).hello()
        viewer = Viewer(collector.address, request_id="r", channels=["ffn_write"])
        other = Viewer(collector.address, request_id="other")
        await viewer.caught_up()
        await other.caught_up()
        channels = {"head_write": np.ones((4, 2, 4), np.float32), "ffn_write": np.ones((4, 2), np.float32)}
        await agent.send(1, **channels)
        await viewer.seen(4)
        (block,) = decode_batch(viewer.batches[0], SCHEMA).blocks
        assert "head_write" not in block.columns
        assert "ffn_write" in block.columns
        assert other.batches == []
        for one in (viewer, other):
            await one.close()
        await agent.hang_up()


@asynchronous
async def test_versions_choose_replicas() -> None:
    async with collecting() as collector:
        for instance, version in (("a", "1.2"), ("b", "2.0")):
            resource = frame_pb2.Resource(service_name="served", service_instance_id=instance)
            resource.attributes["service.version"] = version
            agent = await Agent(collector.address).hello(instance, resource=resource)
            assert agent.epoch_ms
        viewer = Viewer(collector.address, versions=["1.*"])
        await viewer.caught_up()
        assert [told.key for told in viewer.of("replica")] == ["/served/a"]
        await viewer.close()


@pytest.mark.parametrize(
    ("request_of", "message"),
    [
        ({"trace_id": "xyz"}, "32 hexadecimal digits"),
        ({"channels": ["glow"]}, "no such channel: 'glow'"),
        ({"frames_per_s": -1.0}, "frames_per_s must be 0 to"),
    ],
)
def test_what_cannot_be_wanted_is_refused(request_of: dict[str, Any], message: str) -> None:
    @asynchronous
    async def run() -> None:
        async with collecting() as collector:
            viewer = Viewer(collector.address, **request_of)
            with pytest.raises(grpc.aio.AioRpcError, match=message):
                await viewer.call.read()
            await viewer.close()

    run()
