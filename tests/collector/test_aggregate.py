"""The figures of a replica, against numbers that can be counted by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fulgurite.collector.aggregate import Aggregate
from fulgurite.wire.frame import FrameBatch, FrameBlock, RequestEvent, RequestRef

SECOND_NS = 1_000_000_000
T0_NS = 1_700_000_000 * SECOND_NS
F = np.float32


def block(
    requests: list[str], sequences: list[int], ended_ms: list[int], *, prefill: bool = False, **channels: Any
) -> FrameBlock:
    count = len(requests)
    names = sorted(set(requests))
    ended_ns = T0_NS + 1_000_000 * np.array(ended_ms, np.int64)
    columns: dict[str, Any] = {
        "request_index": np.array([names.index(name) for name in requests], np.uint16),
        "sequence": np.array(sequences, np.uint16),
        "position": np.zeros(count, np.int32),
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
    assert status.head_activity[0] == pytest.approx((2 + 2 + 5) / 3)
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
