"""Sketches say of many tokens what folding all of them says, in any order, and survive the wire."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from tests.wire.conftest import block_of

from fulgurite.v1 import frame_pb2
from fulgurite.wire.codec import CodecError, decode_batch, encode_batch, schema_for
from fulgurite.wire.frame import FrameBatch, RequestRef
from fulgurite.wire.sketch import (
    BUCKET_BOUNDS,
    BUCKETS,
    EXPERT_LOAD,
    FIRST_TOKEN,
    FIRST_TOKEN_BOUNDS_S,
    FIRST_TOKEN_COUNTS,
    Moments,
    Pace,
    Sketch,
    SketchFold,
    buckets_of,
    histogram,
)
from fulgurite.wire.topology import Topology

VALUES = arrays(
    np.float32,
    st.tuples(st.integers(1, 20), st.just(3)),
    elements=st.floats(0, 200, width=32) | st.just(float("nan")),
)


@given(VALUES, VALUES)
@settings(deadline=None)
def test_folding_in_parts_and_merging_is_folding_at_once(first: Any, second: Any) -> None:
    whole, left, right = Moments((3,)), Moments((3,)), Moments((3,))
    whole.fold(np.concatenate([first, second]))
    left.fold(first)
    right.fold(second)
    left.merge(right)
    np.testing.assert_array_equal(left.count, whole.count)
    np.testing.assert_array_equal(left.buckets, whole.buckets)
    np.testing.assert_allclose(left.mean, whole.mean, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(left.squares, whole.squares, rtol=1e-4, atol=1e-4)


@given(VALUES)
@settings(deadline=None)
def test_moments_are_those_of_the_known_values(values: Any) -> None:
    moments = Moments((3,))
    moments.fold(values)
    for cell in range(3):
        known = values[:, cell][np.isfinite(values[:, cell])].astype(np.float64)
        assert moments.count[cell] == len(known)
        if len(known):
            assert moments.mean[cell] == pytest.approx(known.mean(), rel=1e-5, abs=1e-9)
            assert moments.variance[cell] == pytest.approx(known.var(), rel=1e-3, abs=1e-3)
        else:
            assert np.isnan(moments.variance[cell])


def test_a_quantile_is_within_a_bucket_of_the_true_one() -> None:
    values = np.random.default_rng(0).lognormal(-3, 1, (5000, 2)).astype(np.float32)
    moments = Moments((2,))
    moments.fold(values)
    for q in (0.05, 0.5, 0.95):
        true = np.quantile(values, q, axis=0)
        assert (np.abs(moments.quantile(q) / true - 1) < 10 ** (1 / 8) - 1).all()
    assert np.isnan(Moments((2,)).quantile(0.5)).all()


def test_every_value_has_the_bucket_whose_bounds_it_lies_between() -> None:
    inside = np.sqrt(BUCKET_BOUNDS[1:] * BUCKET_BOUNDS[:-1]).astype(np.float32)
    np.testing.assert_array_equal(buckets_of(inside), np.arange(1, BUCKETS - 1))
    odd = np.array([0.0, 1e-9, 101.0, np.inf, np.nan, -1.0], np.float32)
    assert buckets_of(odd).tolist() == [0, 0, BUCKETS - 1, BUCKETS - 1, BUCKETS, BUCKETS]


def test_experts_are_counted_with_their_weights_and_no_expert_is_not() -> None:
    fold = SketchFold(experts=4)
    ids = np.array([[[0, 3], [1, -1]], [[0, 2], [1, 1]]], np.int16)
    weights = np.full(ids.shape, 0.5, np.float32)
    fold.fold({**block_of(2).columns, "expert_ids": ids, "expert_weights": weights}, {})
    load = fold.columns[EXPERT_LOAD]
    assert load.count.reshape(2, 4).tolist() == [[2, 0, 1, 1], [0, 3, 0, 0]]
    assert load.mean.reshape(2, 4)[1, 1] == 0.5


def test_a_sketch_comes_back_from_the_wire_as_it_was(topology: Topology) -> None:
    rng = np.random.default_rng(1)
    fold = SketchFold()
    block = block_of(
        9,
        head_write=rng.lognormal(size=(9, 3, 4)).astype(np.float32),
        logprob=-rng.random(9).astype(np.float32),
    )
    fold.fold(block.columns, {})
    fold.time(FIRST_TOKEN, np.array([0.03]))
    request = RequestRef("r", "ab" * 16, "cd" * 8)
    sent = fold.sketch(request=request, kv_tokens=7, kv_bytes=8, sequences=2)
    schema = schema_for(topology)
    batch = FrameBatch(epoch_ms=1, first_sequence=1, blocks=(), sketches=(sent,))
    came = decode_batch(encode_batch(batch, schema).SerializeToString(), schema).sketches[0]
    assert (came.request, came.tokens, came.kv_tokens, came.kv_bytes, came.sequences) == (request, 9, 7, 8, 2)
    assert came.columns.keys() == sent.columns.keys()
    for name, moments in came.columns.items():
        np.testing.assert_array_equal(moments.count, sent.columns[name].count)
        np.testing.assert_allclose(moments.mean, sent.columns[name].mean, rtol=1e-6)
        np.testing.assert_allclose(moments.quantile(0.5), sent.columns[name].quantile(0.5))
    merged = SketchFold()
    merged.merge(came)
    merged.merge(came)
    assert merged.tokens == 18
    assert merged.columns[FIRST_TOKEN_COUNTS].count.sum() == 2


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        ({"mean": b"1234"}, "bytes of means"),
        ({"count": b"123"}, "bytes of counts"),
        ({"buckets": b"123", "bucket_bytes": 3}, "bytes of buckets"),
        ({"first_bucket": 60}, "more than"),
        ({"mean": np.full(12, np.nan, "<f4").tobytes()}, "no number"),
        ({"squares": np.full(12, -1, "<f4").tobytes()}, "negative"),
        ({"shape": [1 << 31, 1 << 31, 4]}, "bytes of means"),
        ({"name": "x" * 100}, "too long"),
    ],
)
def test_a_sketch_that_lies_about_its_sizes_is_refused(
    topology: Topology, spoil: dict[str, Any], message: str
) -> None:
    fold = SketchFold()
    fold.fold(block_of(3, head_write=np.ones((3, 3, 4), np.float32)).columns, {})
    schema = schema_for(topology)
    batch = encode_batch(
        FrameBatch(epoch_ms=1, first_sequence=1, blocks=(), sketches=(fold.sketch(),)), schema
    )
    for name, value in spoil.items():
        column = batch.sketches[0].columns[0]
        if name == "shape":
            column.ClearField("shape")
            column.shape.extend(value)
        else:
            setattr(column, name, value)
    with pytest.raises(CodecError, match=message):
        decode_batch(batch.SerializeToString(), schema)


def test_a_sketch_that_no_counter_can_hold_is_refused(topology: Topology) -> None:
    schema = schema_for(topology)
    batch = frame_pb2.Batch(
        schema_hash=encode_batch(FrameBatch(epoch_ms=1, first_sequence=1, blocks=()), schema).schema_hash
    )
    batch.sketches.add(tokens=1 << 63)
    with pytest.raises(CodecError, match="tokens"):
        decode_batch(batch.SerializeToString(), schema)


def test_intervals_count_between_consecutive_positions_only() -> None:
    pace = Pace()
    ns = 1_000_000_000

    def see(positions: list[int], sequence: int = 0, phase: int = 1) -> tuple[list[float], list[float]]:
        n = len(positions)
        block = block_of(
            n,
            position=np.array(positions, np.int32),
            sequence=np.full(n, sequence, np.uint16),
            phase=np.full(n, phase, np.uint8),
            ended_ns=np.array(positions, np.int64) * ns,
            started_ns=np.full(n, 4 * ns, np.int64),
        )
        told = pace.see(block, 0)
        return told.firsts_s.tolist(), told.gaps_s.tolist()

    pace.started("r", 2 * ns)
    assert see([5], phase=0) == ([3.0], [])
    assert see([6, 7]) == ([], [1.0, 1.0])
    assert see([9]) == ([], [])  # 8 is elsewhere
    assert see([10]) == ([], [1.0])
    assert see([11], sequence=1) == ([], [])
    assert pace.sequences == 2
    pace.ended("r")
    assert pace.sequences == 0


def test_the_histogram_counts_what_is_at_or_below_each_bound() -> None:
    counts = histogram(np.array([0.001, 0.0011, 11.0]), FIRST_TOKEN_BOUNDS_S)
    assert counts.sum() == 3
    assert (counts[0], counts[1], counts[-1]) == (1, 1, 1)


def test_a_quantity_of_too_many_cells_keeps_its_moments() -> None:
    fold = SketchFold(most_bucketed_cells=2)
    fold.fold(
        block_of(3, head_write=np.ones((3, 3, 4), np.float32), ffn_write=np.ones((3, 3), np.float32)).columns,
        {},
    )
    sketch: Sketch = fold.sketch()
    assert sketch.columns["head_write"].buckets is None
    assert np.isnan(sketch.columns["head_write"].quantile(0.5)).all()
    assert (sketch.columns["head_write"].mean == 1).all()
