"""Tokens that nobody asked for become sketches: each once, per request and per second, within a budget."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fulgurite.agent import folding as module
from fulgurite.agent.folding import GATHER_S, SECOND_S, SILENT_S, Folding
from fulgurite.wire.frame import FrameBlock, RequestEvent, RequestRef
from fulgurite.wire.sketch import ENTROPY, FIRST_TOKEN, INTER_TOKEN, SURPRISE, Sketch

LAYERS, HEADS = 2, 3
MS = 1_000_000


def block(step: int, *names: str, **columns: Any) -> FrameBlock:
    """One token of each request, 10 ms after those of the step before."""
    n = len(names)
    rng = np.random.default_rng(step)
    whole: dict[str, Any] = {
        "request_index": np.arange(n, dtype=np.uint16),
        "sequence": np.zeros(n, np.uint16),
        "position": np.full(n, 5 + step, np.int32),
        "phase": np.full(n, step > 0, np.uint8),
        "started_ns": np.full(n, 10 * MS * step, np.int64),
        "ended_ns": np.full(n, 10 * MS * (step + 1), np.int64),
        "logprob": -rng.exponential(size=n).astype(np.float32),
        "entropy": rng.exponential(size=n).astype(np.float32),
        "head_write": rng.lognormal(size=(n, LAYERS, HEADS)).astype(np.float32),
        "kv_tokens": np.full((n, LAYERS), 6 + step, np.int32),
        "kv_bytes": np.full(n, 100, np.int64),
    }
    return FrameBlock(tuple(RequestRef(name) for name in names), whole | columns)


def event(request_id: str, kind: str, time_ns: int = 0) -> RequestEvent:
    return RequestEvent(request_id=request_id, kind=kind, time_ns=time_ns)


def of_requests(sketches: list[Sketch]) -> dict[str, Sketch]:
    return {sketch.request.request_id: sketch for sketch in sketches if sketch.request is not None}


def of_seconds(sketches: list[Sketch]) -> list[Sketch]:
    return [sketch for sketch in sketches if sketch.request is None]


def taken(*blocks: FrameBlock) -> Folding:
    folding = Folding()
    for one in blocks:
        folding.take(one, 0.0)
    return folding


def test_every_token_is_in_the_sketch_of_its_request_and_in_that_of_the_second() -> None:
    blocks = [block(step, "a", "b") for step in range(5)] + [block(5, "a")]
    found = taken(*blocks).due(0.0, at_once=True)
    (second,) = of_seconds(found)
    requests = of_requests(found)
    assert second.tokens == 11
    assert {name: sketch.tokens for name, sketch in requests.items()} == {"a": 6, "b": 5}
    heads = np.concatenate([one.columns["head_write"] for one in blocks]).reshape(11, -1)
    np.testing.assert_allclose(second.columns["head_write"].mean, heads.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(second.columns["head_write"].variance, heads.var(axis=0), rtol=1e-4)
    mine = np.stack([one.columns["head_write"][0] for one in blocks]).reshape(6, -1)
    np.testing.assert_allclose(requests["a"].columns["head_write"].mean, mine.mean(axis=0), rtol=1e-5)
    surprise = -np.concatenate([one.columns["logprob"] for one in blocks])
    np.testing.assert_allclose(second.columns[SURPRISE].mean, [surprise.mean()], rtol=1e-5)
    assert second.columns[ENTROPY].count.tolist() == [11]


def test_time_is_told_from_the_start_of_a_request_and_between_its_tokens() -> None:
    folding = Folding()
    folding.event(event("a", "started", -40 * MS), 0.0)
    for step in range(3):
        folding.take(block(step, "a"), 0.0)
    sketch = of_requests(folding.due(0.0, at_once=True))["a"]
    np.testing.assert_allclose(sketch.columns[FIRST_TOKEN].mean, [0.050])
    np.testing.assert_allclose(sketch.columns[INTER_TOKEN].mean, [0.010])
    assert sketch.columns[INTER_TOKEN].count.tolist() == [2]


def test_a_sketch_of_a_second_says_what_is_under_way() -> None:
    (second,) = of_seconds(taken(block(0, "a", "b"), block(1, "a", "b")).due(0.0, at_once=True))
    assert (second.sequences, second.kv_tokens, second.kv_bytes) == (2, 2 * 7, 200)


def test_a_second_goes_when_it_is_over_and_a_request_when_it_ends() -> None:
    folding = taken(block(0, "a", "b"))
    assert folding.due(GATHER_S / 2) == []
    assert folding.due(GATHER_S) == []  # folded, and not over
    (second,) = folding.due(GATHER_S + SECOND_S)
    assert (second.request, second.tokens) == (None, 2)
    folding.event(event("a", "finished"), 2.0)
    assert {name: one.tokens for name, one in of_requests(folding.due(2.0)).items()} == {"a": 1}
    folding.event(event("b", "aborted"), 2.0)
    assert list(of_requests(folding.due(2.0))) == ["b"]
    assert folding.is_idle
    assert folding.nbytes == 0


def test_the_last_tokens_of_a_request_are_in_its_sketch_though_they_were_not_folded_yet() -> None:
    folding = taken(block(0, "a"), block(1, "a"))
    folding.event(event("a", "finished"), 0.0)
    assert of_requests(folding.due(0.0))["a"].tokens == 2


def test_a_silent_request_gets_its_sketch_and_what_comes_later_another() -> None:
    folding = taken(block(0, "a"))
    folding.due(GATHER_S)
    assert of_requests(folding.due(SILENT_S)) == {}
    assert of_requests(folding.due(SILENT_S + 1.0))["a"].tokens == 1
    folding.take(block(1, "a"), SILENT_S + 2.0)
    assert of_requests(folding.due(SILENT_S + 2.0, at_once=True))["a"].tokens == 1


def test_a_long_request_gets_a_sketch_before_its_counts_overflow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MOST_TOKENS", 3)
    folding, found = Folding(), list[Sketch]()
    for step in range(5):
        folding.take(block(step, "a"), float(step))
        found += folding.due(step + GATHER_S)
    found += folding.due(6.0, at_once=True)
    assert [sketch.tokens for sketch in found if sketch.request is not None] == [3, 2]


def test_beyond_the_budget_no_more_requests_are_sketched_and_that_is_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folding = taken(block(0, "a", "b", "c"))
    with monkeypatch.context() as while_folding:
        while_folding.setattr(module, "BUDGET_BYTES", 1)
        folding.due(GATHER_S)
    found = folding.due(0.0, at_once=True)
    assert list(of_requests(found)) == ["a"]
    assert folding.lost["requests_not_sketched"] == 2
    assert sum(sketch.tokens for sketch in of_seconds(found)) == 3  # the second has them all


def test_sketches_that_nobody_fetches_are_bounded_and_the_oldest_go(monkeypatch: pytest.MonkeyPatch) -> None:
    folding = Folding()
    monkeypatch.setattr(module, "BUDGET_BYTES", 100_000)
    monkeypatch.setattr(module, "PARCEL_BYTES", 1)
    for step in range(200):
        folding.take(block(step, f"r{step}"), 0.0)
        folding.event(event(f"r{step}", "finished"), 0.0)
    assert folding.nbytes < 200_000
    lost = folding.lost["sketches_not_sent"]
    assert lost > 0
    kept = []
    while found := folding.due(0.0):
        kept += list(of_requests(found))
    assert kept == [f"r{step}" for step in range(lost, 200)]


def test_a_parcel_has_no_more_than_fits_and_the_rest_comes_next(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PARCEL_BYTES", 1)
    folding = taken(block(0, "a", "b"))
    sizes = []
    while found := folding.due(0.0, at_once=True):
        sizes.append(len(found))
    assert sizes == [1, 1, 1]


@pytest.mark.parametrize("heads", [(0, HEADS), (LAYERS, 0)])
def test_a_channel_without_values_is_no_failure(heads: tuple[int, int]) -> None:
    empty = block(0, "a", head_write=np.zeros((1, *heads), np.float32))
    (second,) = of_seconds(taken(empty).due(0.0, at_once=True))
    assert second.tokens == 1
    assert second.columns["head_write"].cells == 0


def test_blocks_of_other_channels_are_folded_each_for_itself() -> None:
    bare = block(1, "a")
    bare = FrameBlock(bare.requests, {n: c for n, c in bare.columns.items() if n != "head_write"})
    (second,) = of_seconds(taken(block(0, "a"), bare).due(0.0, at_once=True))
    assert second.tokens == 2
    assert second.columns["head_write"].count.tolist() == [1] * (LAYERS * HEADS)


def test_experts_are_counted_by_how_often_they_were_chosen() -> None:
    folding = Folding(experts=4)
    ids = np.array([[[0, 3], [1, -1]]], np.int16)
    weights = np.array([[[0.75, 0.25], [1.0, np.nan]]], np.float32)
    folding.take(block(0, "a", expert_ids=ids, expert_weights=weights), 0.0)
    (second,) = of_seconds(folding.due(0.0, at_once=True))
    load = second.columns["expert_load"]
    assert load.count.tolist() == [1, 0, 0, 1, 0, 1, 0, 0]
    assert load.mean.tolist() == [0.75, 0, 0, 0.25, 0, 1.0, 0, 0]
