"""The figures of a replica, against numbers that can be counted by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fulgurite.collector.aggregate import Aggregate
from fulgurite.v1 import viewer_pb2
from fulgurite.wire.frame import FrameBatch, FrameBlock, RequestEvent, RequestRef
from fulgurite.wire.sketch import FIRST_TOKEN, INTER_TOKEN, Sketch, SketchFold
from fulgurite.wire.sketch_codec import columns_from_pb

SECOND_NS = 1_000_000_000
T0_NS = 1_700_000_000 * SECOND_NS
F = np.float32


def block(
    requests: list[str],
    sequences: list[int],
    ended_ms: list[int],
    *,
    prefill: bool = False,
    first_position: int = 0,
    **channels: Any,
) -> FrameBlock:
    count = len(requests)
    names = sorted(set(requests))
    ended_ns = T0_NS + 1_000_000 * np.array(ended_ms, np.int64)
    pairs = list(zip(requests, sequences, strict=True))
    position = first_position + np.array([pairs[:i].count(pair) for i, pair in enumerate(pairs)], np.int32)
    columns: dict[str, Any] = {
        "request_index": np.array([names.index(name) for name in requests], np.uint16),
        "sequence": np.array(sequences, np.uint16),
        "position": position,
        "token_id": np.full(count, -1, np.int32),
        "phase": np.full(count, 0 if prefill else 1, np.uint8),
        "level": np.full(count, 2, np.uint8),
        "step": np.zeros(count, np.int64),
        "started_ns": ended_ns - 5_000_000,
        "ended_ns": ended_ns,
    }
    return FrameBlock(tuple(RequestRef(name) for name in names), columns | channels)


def batch(*blocks: FrameBlock, events: tuple[RequestEvent, ...] = ()) -> FrameBatch:
    return FrameBatch(epoch_ms=1, first_sequence=1, blocks=blocks, events=events)


def event(kind: str, request: str, at_ms: int = 0) -> RequestEvent:
    return RequestEvent(request_id=request, kind=kind, time_ns=T0_NS + at_ms * 1_000_000)


def test_tokens_per_second_are_those_of_the_last_seconds() -> None:
    figures = Aggregate()
    for second in range(10):
        figures.fold(batch(block(["r"] * 20, [0] * 20, list(range(20)))), T0_NS + second * SECOND_NS)
    status = figures.status(T0_NS + 10 * SECOND_NS - 1)
    assert status.tokens_total == 200
    # Five whole seconds and the open one, which is all but over: 120 tokens in 6 s.
    assert status.window_s == pytest.approx(6.0, abs=1e-6)
    assert status.tokens_per_s == pytest.approx(20.0, rel=1e-6)
    assert figures.status(T0_NS + 30 * SECOND_NS).tokens_per_s == 0.0


def test_the_time_between_tokens_is_that_of_each_sequence() -> None:
    figures = Aggregate()
    # Two sequences, whose tokens alternate: 10 ms apart within each, 5 ms between them.
    ended = [5 * i for i in range(40)]
    figures.fold(batch(block(["r"] * 40, [0, 1] * 20, ended)), T0_NS)
    status = figures.status(T0_NS)
    assert status.inter_token.count == 38
    assert status.inter_token.p50_s == pytest.approx(0.010)
    assert status.inter_token.p99_s == pytest.approx(0.010)
    assert status.running_sequences == 2


def test_quantiles_are_those_of_numpy() -> None:
    figures = Aggregate()
    ended = np.cumsum(np.arange(1, 101)).tolist()
    figures.fold(batch(block(["r"] * 100, [0] * 100, ended)), T0_NS)
    gaps_s = np.diff(np.array(ended)) / 1e3
    told = figures.status(T0_NS).inter_token
    assert (told.p50_s, told.p99_s) == pytest.approx(tuple(np.percentile(gaps_s, [50, 99])))


def test_the_first_token_counts_from_the_start_of_the_request() -> None:
    figures = Aggregate()
    figures.fold(batch(events=(event("started", "r", 100),)), T0_NS)
    figures.fold(batch(block(["r"], [0], [350], prefill=True)), T0_NS)
    figures.fold(batch(block(["unannounced"], [0], [350], prefill=True)), T0_NS)
    told = figures.status(T0_NS).first_token
    assert told.count == 2
    assert told.p50_s == pytest.approx((0.250 + 0.005) / 2)


def test_the_cache_is_the_sum_of_what_runs_and_goes_with_it() -> None:
    figures = Aggregate()
    figures.fold(
        batch(
            block(
                ["a", "b"],
                [0, 0],
                [1, 1],
                kv_tokens=np.array([[7, 9], [4, -1]], np.int32),
                kv_bytes=np.array([900, -1], np.int64),
            )
        ),
        T0_NS,
    )
    status = figures.status(T0_NS)
    assert (status.kv_tokens, status.kv_bytes, status.running_sequences) == (13, 900, 2)
    figures.fold(batch(events=(event("finished", "a"),)), T0_NS)
    status = figures.status(T0_NS)
    assert (status.kv_tokens, status.kv_bytes, status.running_sequences) == (4, 0, 1)
    assert figures.status(T0_NS + 6 * SECOND_NS).running_sequences == 0


def test_activity_is_the_mean_per_layer_and_what_is_not_measured_is_nan() -> None:
    figures = Aggregate()
    head_write = np.array([[[1, 3], [np.nan, np.nan]], [[2, np.nan], [np.nan, np.nan]]], F)
    ffn_write = np.array([[1, 10], [3, 30]], F)
    figures.fold(batch(block(["r", "r"], [0, 0], [1, 2], head_write=head_write, ffn_write=ffn_write)), T0_NS)
    later = block(["r"], [0], [3], head_write=np.full((1, 2, 2), 5, F), ffn_write=np.full((1, 2), 5, F))
    assert figures.status(T0_NS).head_activity[0] == 2.0
    assert np.isnan(figures.status(T0_NS).head_activity[1])
    assert list(figures.status(T0_NS).ffn_activity) == [2.0, 20.0]
    figures.fold(batch(later), T0_NS + SECOND_NS)
    status = figures.status(T0_NS + SECOND_NS)
    assert status.head_activity[0] == pytest.approx((1 + 3 + 2 + 5 + 5) / 5)
    assert list(status.ffn_activity) == pytest.approx([3.0, 15.0])


def test_another_shape_replaces_what_was_measured_before() -> None:
    figures = Aggregate()
    for second, layers in enumerate((2, 3)):
        channels = {
            "head_write": np.full((1, layers, 2), layers, F),
            "ffn_write": np.full((1, layers), layers, F),
        }
        figures.fold(batch(block(["r"], [0], [second], **channels)), T0_NS + second * SECOND_NS)
    assert list(figures.status(T0_NS + SECOND_NS).head_activity) == [3.0, 3.0, 3.0]


def test_nothing_that_a_peer_sends_breaks_the_figures() -> None:
    figures = Aggregate(tokens_total=5)
    largest = np.iinfo(np.int64).max
    hostile = block(
        ["a", "b", "c"],
        [0, 0, 0],
        [0, 0, 0],
        kv_bytes=np.full(3, largest, np.int64),
        head_write=np.full((3, 2, 2), np.finfo(F).max, F),
        ffn_write=np.full((3, 2), np.inf, F),
    )
    figures.fold(batch(hostile), T0_NS)
    status = figures.status(T0_NS)
    assert status.kv_bytes == (1 << 64) - 1
    assert status.SerializeToString()
    figures.fold(batch(hostile), T0_NS - 60 * SECOND_NS)  # the clock went back
    assert figures.status(T0_NS - 60 * SECOND_NS).tokens_total == 11


def sketch_of(tokens: int, **gauges: int) -> Sketch:
    """Tokens of 20 ms each, whose heads write 0.5, and one first token after 0.3 s."""
    fold = SketchFold()
    columns = block(["r"] * tokens, [0] * tokens, [20 * i for i in range(tokens)]).columns
    fold.fold({**columns, "head_write": np.full((tokens, 2, 2), 0.5, F)}, {})
    fold.time(INTER_TOKEN, np.full(tokens - 1, 0.02))
    fold.time(FIRST_TOKEN, np.array([0.3]))
    return fold.sketch(**gauges)


def sketched(*sketches: Sketch) -> FrameBatch:
    return FrameBatch(epoch_ms=1, first_sequence=1, blocks=(), sketches=sketches)


def test_a_sketch_tells_what_its_tokens_would_have() -> None:
    figures = Aggregate()
    figures.fold(sketched(sketch_of(40, kv_tokens=7, kv_bytes=8, sequences=2)), T0_NS)
    status = figures.status(T0_NS)
    assert (status.tokens_total, status.frames_total, status.running_sequences) == (40, 0, 2)
    assert (status.kv_tokens, status.kv_bytes) == (7, 8)
    assert status.inter_token.count == 39
    assert status.inter_token.p50_s == pytest.approx(0.02, rel=0.34)
    assert status.first_token.p50_s == pytest.approx(0.3, rel=0.34)
    assert list(status.head_activity) == pytest.approx([0.5, 0.5])
    assert sum(status.inter_token_counts) == 39
    bounds = list(status.inter_token_bounds_s)
    assert status.inter_token_counts[bounds.index(0.025)] == 39
    assert figures.status(T0_NS + 3 * SECOND_NS).running_sequences == 0  # nobody has said so since


def test_the_sketch_of_a_request_counts_nothing_twice() -> None:
    figures = Aggregate()
    whole = sketch_of(10)
    own = Sketch(
        tokens=10,
        start_ns=whole.start_ns,
        end_ns=whole.end_ns,
        columns=whole.columns,
        request=RequestRef("r"),
    )
    figures.fold(sketched(whole, own), T0_NS)
    assert figures.status(T0_NS).tokens_total == 10


def test_an_interval_over_tokens_that_came_in_a_sketch_is_none() -> None:
    figures = Aggregate()
    figures.fold(batch(block(["r"], [0], [0])), T0_NS)
    figures.fold(batch(block(["r"], [0], [900], first_position=30)), T0_NS)
    assert figures.status(T0_NS).inter_token.count == 0


def windows_of(figures: Aggregate, at_s: float) -> dict[int, list[viewer_pb2.Window]]:
    found: dict[int, list[viewer_pb2.Window]] = {1: [], 10: [], 60: []}
    for window in figures.closed(T0_NS + int(at_s * SECOND_NS)):
        found[window.width_s].append(window)
    return found


def test_windows_close_when_they_are_over_and_longer_ones_have_all_of_the_shorter() -> None:
    figures = Aggregate()
    heads = np.array([[[1, 2], [3, 4]]], F)
    for second in range(61):
        columns = {"head_write": heads * (1 + second % 2), "ffn_write": np.ones((1, 2), F)}
        told = block(["r"], [0], [1000 * second], first_position=second, **columns)
        figures.fold(batch(told, events=(event("started", f"r{second}"),)), T0_NS + second * SECOND_NS)
    found = windows_of(figures, 61)
    assert (len(found[1]), len(found[10]), len(found[60])) == (61, 6, 1) or T0_NS % (60 * SECOND_NS)
    assert sum(w.frames for w in found[1]) == 61
    for width_s in (10, 60):
        for window in found[width_s]:
            inside = [
                w for w in found[1] if window.start_ns <= w.start_ns < window.start_ns + width_s * SECOND_NS
            ]
            assert window.frames == sum(w.frames for w in inside) == window.requests_started
            assert list(window.inter_token) == [
                sum(n) for n in zip(*(w.inter_token for w in inside), strict=True)
            ]
    assert {w.start_ns % SECOND_NS for w in found[1]} == {0}
    assert windows_of(figures, 61) == {1: [], 10: [], 60: []}
    moments = columns_from_pb(found[10][1].columns)["head_write"]
    assert moments.count.tolist() == [10] * 4
    assert moments.mean.tolist() == pytest.approx([1.5, 3, 4.5, 6])
    assert moments.variance.tolist() == pytest.approx([0.25, 1, 2.25, 4])
    assert moments.buckets is not None
    assert columns_from_pb(found[1][0].columns)["head_write"].buckets is None


def test_experts_are_counted_in_windows() -> None:
    figures = Aggregate(experts=3)
    ids = np.array([[[0, 2]], [[0, 1]]], np.int16)
    figures.fold(
        batch(block(["r", "r"], [0, 0], [0, 1], expert_ids=ids, expert_weights=np.full(ids.shape, 0.5, F))),
        T0_NS,
    )
    (window,) = windows_of(figures, 1)[1]
    assert columns_from_pb(window.columns)["expert_load"].count.tolist() == [2, 1, 1]


def test_a_clock_that_is_set_back_closes_what_is_open() -> None:
    figures = Aggregate()
    figures.fold(batch(block(["r"], [0], [0])), T0_NS + 100 * SECOND_NS)
    figures.fold(batch(block(["r"], [0], [1])), T0_NS)
    assert [w.frames for w in windows_of(figures, 1)[1]] == [1, 1]


def test_many_tokens_keep_their_moments_beyond_those_whose_quantiles_are_kept() -> None:
    figures = Aggregate()
    rng = np.random.default_rng(0)
    heads = rng.random((2000, 2, 2)).astype(F)
    figures.fold(batch(block(["r"] * 2000, [0] * 2000, list(range(2000)), head_write=heads)), T0_NS)
    figures.closed(T0_NS + 9 * SECOND_NS)
    ten = [w for w in figures.closed(T0_NS + 60 * SECOND_NS) if w.width_s == 10]
    moments = columns_from_pb(ten[0].columns)["head_write"]
    assert moments.count.tolist() == [2000] * 4
    assert moments.mean == pytest.approx(heads.reshape(2000, 4).mean(axis=0), rel=1e-5)
    assert moments.buckets is not None
    assert int(moments.buckets.sum()) == 4 * 256
