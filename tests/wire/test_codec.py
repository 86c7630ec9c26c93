"""Frames survive the wire within the stated error, and no bytes of a peer do harm."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fulgurite.v1 import agent_pb2, frame_pb2
from fulgurite.wire import codec
from fulgurite.wire.channels import BY_NAME
from fulgurite.wire.codec import CodecError, codec_for, decode_batch, encode_batch, schema_for
from fulgurite.wire.frame import FrameBatch, FrameBlock, RequestEvent, RequestRef, Scale
from fulgurite.wire.topology import Topology

MakeBlock = Callable[..., FrameBlock]
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
    experts=6,
    experts_per_token=2,
)
FLOATS = st.floats(width=32, allow_nan=True, allow_infinity=True)
POSITIVE = st.one_of(st.just(0.0), st.floats(2.0**-60, 2.0**60, width=32), st.just(float("nan")))
RELAXED = settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def batch_of(*blocks: FrameBlock, **fields: Any) -> FrameBatch:
    given: dict[str, Any] = {"epoch_ms": 1000, "first_sequence": 1, "blocks": blocks}
    return FrameBatch(**given | fields)


def through(batch: FrameBatch, encoding: str = "exact", topology: Topology = TOPOLOGY) -> FrameBatch:
    schema = schema_for(topology, encoding)
    return decode_batch(encode_batch(batch, schema).SerializeToString(), schema)


def floating_columns(draw: st.DrawFn, frames: int, values: st.SearchStrategy[float]) -> dict[str, np.ndarray]:
    names = draw(st.sets(st.sampled_from(sorted(n for n, c in BY_NAME.items() if c.exact in ("f2", "f4")))))
    shapes = {name: (frames, *BY_NAME[name].shape(TOPOLOGY)) for name in names}
    return {name: draw(hnp.arrays(np.float32, shape, elements=values)) for name, shape in shapes.items()}


@st.composite
def float_columns(draw: st.DrawFn) -> tuple[int, dict[str, np.ndarray]]:
    frames = draw(st.integers(1, 4))
    return frames, floating_columns(draw, frames, FLOATS)


@st.composite
def magnitudes(draw: st.DrawFn) -> np.ndarray:
    return draw(hnp.arrays(np.float32, (draw(st.integers(1, 5)), 3, 4), elements=POSITIVE))


# --- exact


@RELAXED
@given(float_columns())
def test_exact_columns_come_back_as_their_float16_or_float32(
    make_block: MakeBlock, drawn: tuple[int, dict[str, np.ndarray]]
) -> None:
    frames, columns = drawn
    block = through(batch_of(make_block(frames, **columns))).blocks[0]
    for name, sent in columns.items():
        expected = sent if BY_NAME[name].exact == "f4" else np.clip(sent, -65504, 65504).astype(np.float16)
        np.testing.assert_array_equal(block.columns[name], expected.astype(np.float32), err_msg=name)
        assert block.columns[name].dtype == np.float32


@RELAXED
@given(hnp.arrays(np.float32, (2, 3, 4), elements=st.floats(2.0**-14, 60000, width=32)))
def test_exact_is_within_the_stated_relative_error(make_block: MakeBlock, sent: np.ndarray) -> None:
    got = through(batch_of(make_block(2, head_write=sent))).blocks[0].columns["head_write"]
    assert np.all(np.abs(got - sent) <= sent * 2.0**-11)


def test_every_integer_column_keeps_its_extremes(make_block: MakeBlock) -> None:
    names = [
        n for n, c in BY_NAME.items() if c.exact[0] in "iu" and n not in ("request_index", "phase", "level")
    ]
    columns = {}
    for name in names:
        bounds = np.iinfo(BY_NAME[name].exact)
        values = np.full((2, *BY_NAME[name].shape(TOPOLOGY)), bounds.max, dtype=np.dtype(BY_NAME[name].exact))
        values[0] = bounds.min
        columns[name] = values
    block = through(batch_of(make_block(2, **columns))).blocks[0]
    for name, sent in columns.items():
        np.testing.assert_array_equal(block.columns[name], sent, err_msg=name)


def test_integers_wider_than_their_column_are_accepted_while_they_fit(make_block: MakeBlock) -> None:
    block = through(batch_of(make_block(2, rank=np.array([3, 4], np.int64)))).blocks[0]
    assert block.columns["rank"].tolist() == [3, 4]


@pytest.mark.parametrize(
    ("column", "values", "says"),
    [
        ("batch_size", np.array([1, 70_000], np.int64), "batch_size holds 1 to 70000, which u2 cannot"),
        ("batch_size", np.array([-1, 1], np.int64), "batch_size holds -1 to 1, which u2 cannot"),
        ("rank", np.array([1.0, 2.0]), "rank holds float64, not integers"),
        ("head_write", np.zeros((2, 3, 5), np.float32), r"head_write has shape \(2, 3, 5\), not \(2, 3, 4\)"),
        ("request_index", np.array([0, 1]), "request_index is out of range: 1 requests in the block"),
    ],
)
def test_a_column_that_cannot_be_written_is_refused_with_what_it_holds(
    make_block: MakeBlock, column: str, values: np.ndarray, says: str
) -> None:
    with pytest.raises(CodecError, match=says):
        encode_batch(batch_of(make_block(2, **{column: values})), schema_for(TOPOLOGY))


# --- compact


@RELAXED
@given(magnitudes())
def test_compact_is_within_the_stated_error(make_block: MakeBlock, sent: np.ndarray) -> None:
    got = through(batch_of(make_block(len(sent), head_write=sent)), "compact").blocks[0].columns["head_write"]
    np.testing.assert_array_equal(np.isnan(got), np.isnan(sent))
    high = np.nanmax(sent, initial=0)
    lit = sent >= high * codec.LOG8_RANGE
    slack = 1 + 1e-4  # of the float32 logarithm
    known = ~np.isnan(sent) & (sent > 0)
    assert np.all(
        np.abs(got - sent)[known & lit] <= sent[known & lit] * codec.LOG8_MAX_RELATIVE_ERROR * slack
    )
    assert np.all(np.abs(got - sent)[known & ~lit] <= high * codec.LOG8_RANGE * slack)
    assert np.all(got[sent == 0] == 0)


def test_the_stated_error_of_compact_is_the_one_in_its_description() -> None:
    assert pytest.approx(10 ** (6 / 506) - 1) == codec.LOG8_MAX_RELATIVE_ERROR
    assert "2.77 % relative" in (codec.__doc__ or "")
    assert round(codec.LOG8_MAX_RELATIVE_ERROR * 100, 2) == 2.77


def test_compact_reaches_the_stated_error_and_so_the_bound_is_tight(make_block: MakeBlock) -> None:
    sent = np.geomspace(1e-6, 1.0, 12_000, dtype=np.float32).reshape(1000, 3, 4)
    got = through(batch_of(make_block(1000, head_write=sent)), "compact").blocks[0].columns["head_write"]
    assert np.max(np.abs(got - sent) / sent) > 0.9 * codec.LOG8_MAX_RELATIVE_ERROR


def test_compact_writes_infinite_and_negative_values_as_not_a_number(make_block: MakeBlock) -> None:
    sent = np.full((1, 3), 0.5, np.float32)
    sent[0, 1:] = np.inf, -1.0
    got = through(batch_of(make_block(1, ffn_write=sent)), "compact").blocks[0].columns["ffn_write"]
    assert got[0, 0] == np.float32(0.5)
    assert np.isnan(got[0, 1:]).all()


def test_compact_is_monotone(make_block: MakeBlock) -> None:
    sent = np.sort(np.random.default_rng(0).lognormal(0, 3, 12)).astype(np.float32).reshape(1, 3, 4)
    got = through(batch_of(make_block(1, head_write=sent)), "compact").blocks[0].columns["head_write"].ravel()
    assert np.all(np.diff(got) >= 0)


# --- batches


def test_consecutive_blocks_with_the_same_channels_become_one_block(make_block: MakeBlock) -> None:
    head = np.ones((2, 3, 4), np.float32)
    batch = batch_of(
        make_block(2, first_position=0, head_write=head),
        make_block(2, first_position=2, head_write=head),
        make_block(2, first_position=4),
        make_block(2, first_position=6, head_write=head),
    )
    message = encode_batch(batch, schema_for(TOPOLOGY))
    assert [block.count for block in message.blocks] == [4, 2, 2]
    got = [frame.position for frame in decode_batch(message, schema_for(TOPOLOGY)).frames()]
    assert got == [0, 1, 2, 3, 4, 5, 6, 7]


def test_a_request_is_written_once_however_many_blocks_name_it(make_block: MakeBlock) -> None:
    trace, span = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    two = make_block(2, request="b")
    two = FrameBlock(
        (RequestRef("b"), RequestRef("a", trace, span)), {**two.columns, "request_index": np.array([1, 0])}
    )
    batch = batch_of(make_block(1, request="b"), two, make_block(1, request="c"))
    message = encode_batch(batch, schema_for(TOPOLOGY))
    assert sorted(request.request_id for request in message.requests) == ["a", "b", "c"]
    frames = list(decode_batch(message, schema_for(TOPOLOGY)).frames())
    assert [frame.request_id for frame in frames] == ["b", "a", "b", "c"]
    assert (frames[1].trace_id, frames[1].span_id) == (trace, span)
    assert (frames[0].trace_id, frames[0].span_id) == ("", "")


@pytest.mark.parametrize("value", [7.0, float("nan")])
def test_a_column_that_is_equal_within_each_frame_is_written_once_per_frame(
    make_block: MakeBlock, value: float
) -> None:
    sent = np.full((2, 3, 4), value, np.float32)
    sent[1] = 3.0
    message = encode_batch(batch_of(make_block(2, head_write=sent)), schema_for(TOPOLOGY))
    assert len(message.blocks[0].column_data[-1]) == 2 * 2
    got = decode_batch(message, schema_for(TOPOLOGY)).blocks[0].columns["head_write"]
    np.testing.assert_array_equal(got, sent)
    assert got.shape == (2, 3, 4)


def test_a_column_that_is_equal_in_all_frames_is_written_once(make_block: MakeBlock) -> None:
    count, schema = 5, schema_for(TOPOLOGY)
    sent = make_block(
        count,
        token_id=np.full(count, -1, np.int32),
        logprob=np.full(count, np.nan, np.float32),
        batch_size=np.array([2, 2, 2, 2, 3], np.uint16),
        position=np.full(count, 9, np.int32),
        head_write=np.full((count, 3, 4), 0.5, np.float32),
    )
    message = encode_batch(batch_of(sent), schema)
    block = message.blocks[0]
    names = [schema.columns[i].name for i in block.column_index]
    sizes = {name: len(data) for name, data in zip(names, block.column_data, strict=True)}
    assert (sizes["token_id"], sizes["logprob"], sizes["head_write"], sizes["phase"]) == (4, 4, 2, 1)
    assert (sizes["batch_size"], sizes["position"]) == (2 * count, 4 * count)
    got = decode_batch(message.SerializeToString(), schema).blocks[0].columns
    for name in names:
        np.testing.assert_array_equal(got[name], sent.columns[name])
        assert got[name].shape == sent.columns[name].shape


@pytest.mark.parametrize("name", ["position", "step", "started_ns", "ended_ns"])
def test_few_bytes_cannot_stand_for_many_frames(make_block: MakeBlock, name: str) -> None:
    schema = schema_for(TOPOLOGY)
    message = encode_batch(batch_of(make_block(3)), schema)
    block = message.blocks[0]
    place = [schema.columns[i].name for i in block.column_index].index(name)
    block.column_data[place] = block.column_data[place][: len(block.column_data[place]) // 3]
    with pytest.raises(CodecError, match=f"{name}: . bytes for 3 frames of 1 x"):
        decode_batch(message, schema)


def test_what_was_decoded_cannot_be_written_into(make_block: MakeBlock) -> None:
    block = through(batch_of(make_block(2, head_write=np.ones((2, 3, 4), np.float32)))).blocks[0]
    assert not any(column.flags.writeable for column in block.columns.values())


def test_texts_events_and_scales_come_back(make_block: MakeBlock) -> None:
    event = RequestEvent(
        request_id="r", kind="started", time_ns=5, prompt_tokens=7, prompt_tokens_per_row=(7, 3), sequences=2,
        reason="because", prompt_texts=("once",), winning_rows=(1,), drafted_tokens=4, accepted_tokens=3,
        generated_tokens=12,
    )  # fmt: skip
    scale = Scale(version=2, kinds={"head": (0.25, 2.0), "ffn": (0.5, 4.0)}, tokens=9)
    sent = batch_of(make_block(2, texts=True), events=(event,), scales=(scale,), sent_ns=11)
    got = through(sent)
    assert [frame.token_text for frame in got.frames()] == ["t0", "t1"]
    assert (got.events, got.scales, got.sent_ns, got.epoch_ms) == ((event,), (scale,), 11, 1000)


def test_a_text_that_utf8_cannot_carry_is_mended_and_not_lost(make_block: MakeBlock) -> None:
    block = make_block(1)
    got = through(batch_of(FrameBlock(block.requests, block.columns, ("a\ud800b",))))
    assert next(iter(got.frames())).token_text == "a?b"


def test_a_batch_of_events_alone_has_no_frames() -> None:
    event = RequestEvent(request_id="r", kind="finished", time_ns=5)
    got = through(batch_of(first_sequence=8, events=(event,)))
    assert (len(got), got.last_sequence, got.events) == (0, 7, (event,))


def test_a_channel_that_the_model_cannot_have_is_refused(make_block: MakeBlock) -> None:
    dense = replace(TOPOLOGY, experts=0, experts_per_token=0)
    block = make_block(2, expert_ids=np.zeros((2, 3, 2), np.int16))
    with pytest.raises(CodecError, match="the schema has no column expert_ids"):
        encode_batch(batch_of(block), schema_for(dense))


def test_a_column_of_a_later_version_is_left_out(make_block: MakeBlock) -> None:
    schema = schema_for(TOPOLOGY)
    message = encode_batch(batch_of(make_block(2)), schema)
    schema.columns.add(name="of_tomorrow", shape=[2], encoding="f4")
    message.blocks[0].column_index.append(len(schema.columns) - 1)
    message.blocks[0].column_data.append(bytes(16))
    message.schema_hash = codec.content_hash(schema)
    assert "of_tomorrow" not in decode_batch(message, schema).blocks[0].columns


def test_peek_reads_the_place_of_a_batch(make_block: MakeBlock) -> None:
    schema = schema_for(TOPOLOGY)
    data = encode_batch(batch_of(make_block(2), first_sequence=5), schema).SerializeToString()
    assert codec.peek(data) == (1000, 5, 2, codec.content_hash(schema))
    with pytest.raises(CodecError, match="not a batch"):
        codec.peek(b"\xff\xff\xff")


@pytest.mark.parametrize("size", [0, 1, 100, 127, 128, 20_000, 3_000_000])
def test_a_batch_is_found_in_its_agent_message_without_parsing_it(size: int) -> None:
    batch = frame_pb2.Batch(schema_hash=bytes(size), epoch_ms=3).SerializeToString()
    message = agent_pb2.AgentMessage(batch=frame_pb2.Batch.FromString(batch)).SerializeToString()
    assert codec.agent_message_bytes(batch) == message
    assert codec.batch_bytes(message) == batch


@pytest.mark.parametrize(
    "data", [b"", b"\x12", b"\x12\x05ab", b"\x12\x01ab", b"\x0a\x00", b"\x12" + b"\xff" * 9]
)
def test_what_is_no_batch_message_has_no_batch(data: bytes) -> None:
    assert codec.batch_bytes(data) is None


def test_the_bytes_of_a_batch_are_those_of_the_first_version(make_block: MakeBlock) -> None:
    """Golden bytes: whoever changes these breaks every agent and collector that is out there."""
    topology = replace(TOPOLOGY, layers=1, heads=2, layer_kinds=(), layer_heads=(), layer_windows=())
    block = make_block(1, texts=True, head_write=np.array([[[0.5, 2.0]]], np.float32))
    batch = batch_of(block, sent_ns=9)
    exact = encode_batch(batch, schema_for(topology)).SerializeToString()
    compact = encode_batch(batch, schema_for(topology, "compact")).SerializeToString()
    assert exact.hex() == GOLDEN_EXACT
    assert compact.hex() == GOLDEN_COMPACT


GOLDEN_EXACT = (
    "08e807100118012210a2b8d53b106cc6fdf706de2dad7b5af02a030a017232500801120a000102030405060809141a02"
    "00001a0200001a04000000001a04000000001a01011a01021a0800000000000000001a0800002a36fe9c97171a080100"
    "2a36fe9c97171a0400380040320274304809"
)
GOLDEN_COMPACT = (
    "08e8071001180122100b8499bd6045a8ee5e65b5676fcfa0362a030a0172325a0801120a000102030405060809141a02"
    "00001a0200001a04000000001a04000000001a01011a01021a0800000000000000001a0800002a36fe9c97171a080100"
    "2a36fe9c97171a0201fe22040000003f2a0400000040320274304809"
)


# --- the small messages


def test_a_topology_comes_back(topology: Topology) -> None:
    assert codec.topology_from_pb(codec.topology_to_pb(topology)) == topology


def test_a_topology_without_lists_means_the_same_as_one_with_the_defaults() -> None:
    message: Any = codec.topology_to_pb(TOPOLOGY)
    for name in ("layer_kinds", "layer_heads", "layer_windows"):
        message.ClearField(name)
    assert codec.topology_from_pb(message) == TOPOLOGY


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"layers": 0}, "without layers"),
        ({"layers": 5000}, "5000 layers; at most 4096"),
        ({"heads": 10**9}, "1000000000 heads; at most 1024"),
        ({"layers": 4096, "heads": 1024}, "4096 x 1024 heads; at most"),
        ({"experts": 40_000}, "40000 experts"),
        ({"experts_per_token": 7}, "7 experts per token of 6"),
        ({"layer_heads": [1, 2]}, "layer_heads has 2 entries for 3 layers"),
        ({"layer_heads": [9, 9, 9]}, "more than 4 heads"),
        ({"model_name": "x" * 2000}, "longer than 1024"),
    ],
)
def test_a_topology_beyond_the_caps_is_refused(change: dict[str, Any], says: str) -> None:
    message: Any = codec.topology_to_pb(TOPOLOGY)
    for name, value in change.items():
        if isinstance(value, list):
            message.ClearField(name)
            getattr(message, name).extend(value)
        else:
            setattr(message, name, value)
    with pytest.raises(CodecError, match=says):
        codec.topology_from_pb(message)


def test_a_resource_comes_back_and_empty_names_stay_away() -> None:
    resource = {"service.name": "chat", "service.instance.id": "1", "host.name": "h"}
    assert codec.resource_from_pb(codec.resource_to_pb(resource)) == resource


def test_an_unknown_encoding_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="no such encoding: 'zip'; choose one of exact, compact"):
        schema_for(TOPOLOGY, "zip")


def test_a_schema_is_held_against_its_topology() -> None:
    codec.check_schema(schema_for(TOPOLOGY), TOPOLOGY)
    other = replace(TOPOLOGY, model_name="other")
    with pytest.raises(CodecError, match="belongs to another topology"):
        codec.check_schema(schema_for(TOPOLOGY), other)
    schema = schema_for(TOPOLOGY)
    next(spec for spec in schema.columns if spec.name == "head_write").shape[1] = 9
    with pytest.raises(CodecError, match=r"head_write has 9 where the topology has 4 \(H\)"):
        codec.check_schema(schema, TOPOLOGY)


# --- a peer that lies


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda s: s.columns.add(name="z", shape=[1 << 30], encoding="f4"), "shape"),
        (lambda s: s.columns.add(name="z", shape=[0], encoding="f4"), "shape"),
        (lambda s: s.columns.add(name="z", shape=[1] * 9, encoding="f4"), "shape"),
        (lambda s: s.columns.add(name="z", encoding="O"), "not an encoding"),
        (lambda s: s.columns.add(name="position", encoding="i4"), "names a column twice"),
        (lambda s: s.columns.pop(2), "without the column position"),
        (lambda s: setattr(s.columns[0], "encoding", "u1"), "request_index is not u2"),
        (lambda s: setattr(s.columns[2], "encoding", "f4"), "another kind"),
        (lambda s: s.columns[2].shape.append(3), "dimensions"),
        (lambda s: [s.columns.add(name=str(i), encoding="f4") for i in range(300)], "at most 256"),
    ],
)
def test_a_schema_that_breaks_the_format_is_refused(change: Callable[[Any], Any], says: str) -> None:
    schema = schema_for(TOPOLOGY)
    change(schema)
    with pytest.raises(CodecError, match=says):
        codec_for(schema)


def _last_data(message: frame_pb2.Batch, data: bytes) -> None:
    message.blocks[0].column_data[-1] = data


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda m: setattr(m, "count", 3), "its blocks say otherwise"),
        (lambda m: setattr(m, "count", 10**9), "at most 65536"),
        (lambda m: setattr(m, "first_sequence", 0), "the first frame of an epoch is 1"),
        (lambda m: setattr(m, "first_sequence", 2**64 - 1), "begins at sequence"),
        (lambda m: setattr(m, "schema_hash", b"other"), "another schema"),
        (lambda m: setattr(m.blocks[0], "count", 0), "its blocks say otherwise"),
        (lambda m: _last_data(m, b"123"), "head_write: 3 bytes for 2 frames of 12 x 2 bytes"),
        (lambda m: m.blocks[0].column_index.append(1), "columns with"),
        (lambda m: m.blocks[0].column_index.__setitem__(-1, 200), "column 200 of a schema"),
        (lambda m: m.blocks[0].column_index.__setitem__(-1, 0), "columns with"),
        (
            lambda m: m.blocks[0].column_data.__setitem__(0, b"\xff\xff\xff\xff"),
            "request_index is out of range",
        ),
        (lambda m: m.blocks[0].column_data.__setitem__(4, b"\x01\x02"), "phase is out of range"),
        (lambda m: m.blocks[0].column_data.__setitem__(5, b"\x01\x04"), "level is out of range"),
        (lambda m: m.blocks[0].log8_low.append(1.0), "1 lows and 0 highs for 0 log8 columns"),
        (lambda m: m.blocks[0].token_texts.append("x"), "1 token texts for 2 frames"),
        (lambda m: m.requests.extend([frame_pb2.RequestRef(trace_id=b"12")]), "a trace id has 16 bytes"),
        (lambda m: m.requests.extend([frame_pb2.RequestRef()] * 5), "6 requests for 2 frames"),
        (
            lambda m: (m.blocks[0].column_index.pop(2), m.blocks[0].column_data.pop(2)),
            "without the column position",
        ),
        (lambda m: m.scales.add().kinds.add(kind="head", low=2, high=1), "a scale from 2.0 to 1.0"),
        (lambda m: m.events.add(request_id="x" * 2000), "longer than 1024"),
    ],
)
def test_a_batch_that_lies_is_refused_with_the_lie(
    make_block: MakeBlock, change: Callable[[Any], Any], says: str
) -> None:
    schema = schema_for(TOPOLOGY)
    head = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    message = encode_batch(batch_of(make_block(2, head_write=head)), schema)
    change(message)
    with pytest.raises(CodecError, match=says):
        codec.validate_batch(message, schema)
    with pytest.raises(CodecError, match=says):
        decode_batch(message.SerializeToString(), schema)


@pytest.mark.parametrize(("low", "high"), [(2.0, 1.0), (-1.0, 1.0), (float("nan"), 1.0), (0.0, float("inf"))])
def test_a_log8_column_with_impossible_bounds_is_refused(
    make_block: MakeBlock, low: float, high: float
) -> None:
    schema = schema_for(TOPOLOGY, "compact")
    message = encode_batch(batch_of(make_block(2, ffn_write=np.ones((2, 3), np.float32))), schema)
    message.blocks[0].log8_low[0], message.blocks[0].log8_high[0] = low, high
    with pytest.raises(CodecError, match="a log8 column from"):
        decode_batch(message, schema)


def test_a_few_bytes_cannot_ask_for_much_memory(make_block: MakeBlock) -> None:
    wide = replace(TOPOLOGY, layers=1024, heads=512, layer_kinds=(), layer_heads=(), layer_windows=())
    schema = schema_for(wide)
    message = encode_batch(batch_of(make_block(8, head_write=np.zeros((8, 1024, 512), np.float32))), schema)
    head = decode_batch(message, schema).blocks[0].columns["head_write"]
    assert message.ByteSize() < 1000
    assert head.shape == (8, 1024, 512)
    assert head.strides == (0, 0, 0)  # a view that repeats: nothing was built
    many = encode_batch(batch_of(make_block(65_536)), schema)
    many.blocks[0].column_index.append(len(schema.columns) - 1)
    assert schema.columns[-1].name == "kv_heat"
    many.blocks[0].column_data.append(bytes(2 * 65_536))
    with pytest.raises(CodecError, match="kv_heat: 65536 x 24576 items; at most"):
        decode_batch(many, schema)


VALID = {
    encoding: encode_batch(
        FrameBatch(
            epoch_ms=1,
            first_sequence=1,
            blocks=(),
            events=(RequestEvent(request_id="r", kind="started", time_ns=1, prompt_texts=("x",)),),
        ),
        schema_for(TOPOLOGY, encoding),
    )
    for encoding in codec.ENCODINGS
}


@settings(deadline=None, max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_mutated_bytes_decode_or_are_refused_and_nothing_else(
    make_block: MakeBlock, data: st.DataObject
) -> None:
    encoding = data.draw(st.sampled_from(codec.ENCODINGS))
    schema = schema_for(TOPOLOGY, encoding)
    head = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    blocks = (make_block(2, texts=True, head_write=head), make_block(1, kv_tokens=np.ones((1, 3), np.int32)))
    message = encode_batch(batch_of(*blocks), schema)
    message.MergeFrom(VALID[encoding])
    message.scales.add(version=1).kinds.add(kind="head", low=0.5, high=2)
    mutated = bytearray(message.SerializeToString())
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, len(mutated) - 1))
        kind = data.draw(st.sampled_from(["set", "cut", "insert", "double"]))
        if kind == "set":
            mutated[at] = data.draw(st.integers(0, 255))
        elif kind == "cut" and len(mutated) > 9:
            del mutated[at : at + data.draw(st.integers(1, 8))]
        elif kind == "insert":
            mutated[at:at] = data.draw(st.binary(max_size=8))
        else:
            mutated[at:at] = mutated[at : at + 40]
    try:
        batch = decode_batch(bytes(mutated), schema)
    except CodecError:
        return
    assert len(list(batch.frames())) == len(batch)


@settings(deadline=None, max_examples=200)
@given(st.binary(max_size=300))
def test_arbitrary_bytes_are_refused_or_empty(data: bytes) -> None:
    schema = schema_for(TOPOLOGY)
    for parse in (
        lambda: decode_batch(data, schema),
        lambda: codec.peek(data),
        lambda: codec.batch_bytes(data),
    ):
        try:
            parse()
        except CodecError:
            continue
