"""The figures are those of the stream, and stay within their budget."""

from __future__ import annotations

import numpy as np
import pytest
from tests.telemetry.made import START_NS, batch, block, ended, started

from fulgurite.telemetry.metrics import AgentAccount, Histogram, Point, ReplicaMeter
from fulgurite.telemetry.names import BY_NAME, FIRST_TOKEN_BUCKETS, METRICS, OUTPUT_TOKEN_BUCKETS
from fulgurite.telemetry.requests import Requests


def folded(meter: ReplicaMeter, *batches: object) -> None:
    requests = Requests("d/s/i")
    for one in batches:
        meter.fold(one)  # type: ignore[arg-type]
        for record in requests.fold(one):  # type: ignore[arg-type]
            meter.end(record)


def shown(points: list[Point], name: str, **labels: str) -> Point:
    (point,) = [
        p for p in points if p.metric.name == name and all(p.labels.get(k) == v for k, v in labels.items())
    ]
    return point


def histogram(points: list[Point], name: str) -> Histogram:
    value = shown(points, name).value
    assert isinstance(value, Histogram)
    return value


def test_histograms_hold_what_happened_in_the_normative_buckets() -> None:
    meter = ReplicaMeter(8)
    folded(meter, batch(block(4), events=(started(), ended())))
    points = meter.points(START_NS)
    first = histogram(points, "gen_ai.server.time_to_first_token")
    assert first.bounds == FIRST_TOKEN_BUCKETS
    assert first.counts[FIRST_TOKEN_BUCKETS.index(0.04)] == first.count == 1
    assert first.total == pytest.approx(0.03)
    pace = histogram(points, "gen_ai.server.time_per_output_token")
    assert (pace.bounds, pace.count) == (OUTPUT_TOKEN_BUCKETS, 1)
    assert pace.total == pytest.approx(0.01)
    assert histogram(points, "fulgurite.inter_token.duration").count == 3
    assert histogram(points, "gen_ai.server.request.duration").total == pytest.approx(0.1)


def test_a_value_on_an_edge_is_in_the_bucket_below_it() -> None:
    meter = ReplicaMeter()
    folded(meter, batch(block(2), events=(started(), ended(at_ns=START_NS + 80_000_000))))
    duration = histogram(meter.points(START_NS), "gen_ai.server.request.duration")
    assert duration.counts[3] == 1, "0.08 s belongs to le=0.08"


def test_an_exemplar_leads_from_a_bucket_to_a_trace() -> None:
    meter = ReplicaMeter()
    folded(meter, batch(block(4), events=(started(), ended())))
    (exemplar,) = histogram(meter.points(START_NS), "gen_ai.server.time_to_first_token").exemplars.values()
    assert exemplar.value == pytest.approx(0.03)
    assert exemplar.trace_id == block().requests[0].trace_id


def test_the_mean_of_a_layer_is_its_sum_over_its_count() -> None:
    meter = ReplicaMeter()
    one = block(4)
    folded(meter, batch(one))
    points = meter.points(START_NS)
    for layer in range(2):
        value = shown(points, "fulgurite.layer.head_write", **{"fulgurite.layer": str(layer)}).value
        assert isinstance(value, Histogram)
        assert value.total / value.count == pytest.approx(one.columns["head_write"][:, layer].mean())


def test_experts_are_counted_and_their_imbalance_told() -> None:
    meter = ReplicaMeter(8)
    folded(meter, batch(block(4)))
    points = meter.points(START_NS)
    counts = [
        shown(points, "fulgurite.expert.tokens", **{"fulgurite.expert": str(e)}).value for e in range(8)
    ]
    assert counts == [8, 4, 4, 0, 0, 0, 0, 0]
    imbalance = shown(points, "fulgurite.expert.imbalance", **{"fulgurite.layer": "0"}).value
    assert imbalance == pytest.approx(4 / (8 / 8))


def test_nan_and_unknown_values_are_not_counted() -> None:
    meter = ReplicaMeter(8)
    logprob = np.asarray([np.nan, -1.0], np.float32)
    folded(meter, batch(block(2, logprob=logprob, expert_ids=np.full((2, 2, 2), -1, np.int16))))
    points = meter.points(START_NS)
    assert histogram(points, "fulgurite.token.surprisal").count == 1
    assert {
        shown(points, "fulgurite.expert.tokens", **{"fulgurite.expert": str(e)}).value for e in range(8)
    } == {0}


def test_what_is_not_known_is_absent() -> None:
    meter = ReplicaMeter()
    names = {point.metric.name for point in meter.points(START_NS)}
    assert "fulgurite.kv.capacity" not in names
    assert "fulgurite.agent.overhead" not in names
    meter.account = AgentAccount(overhead=0.01, kv_capacity=7, waiting=2)
    points = meter.points(START_NS)
    assert shown(points, "fulgurite.agent.overhead").value == 0.01
    assert shown(points, "fulgurite.kv.capacity").value == 7


def test_the_series_budget_holds_and_tells_what_it_left_out() -> None:
    meter = ReplicaMeter(experts=256)
    layers = 126
    one = block(
        2,
        head_write=np.ones((2, layers, 4), np.float32),
        ffn_write=np.ones((2, layers), np.float32),
        expert_ids=np.zeros((2, layers, 2), np.int16),
    )
    folded(meter, batch(one, events=(started(), ended())))
    for budget in (2000, 700, 200):
        points = meter.points(START_NS, budget)
        assert sum(point.series for point in points) <= budget
        kept = {point.metric for point in points}
        dropped = shown(points, "fulgurite.series.dropped").value
        assert (dropped == 0) == (BY_NAME["fulgurite.layer.ffn_write"] in kept)
        assert BY_NAME["gen_ai.server.time_to_first_token"] in kept, "the most important stays"


def test_every_metric_of_the_table_has_a_unit_a_description_and_the_right_buckets() -> None:
    for metric in METRICS:
        assert metric.unit
        assert metric.description.endswith(".")
        assert bool(metric.buckets) == (metric.kind == "histogram")
        assert list(metric.buckets) == sorted(metric.buckets)


def test_the_time_over_tokens_that_did_not_come_is_no_tokens_time() -> None:
    meter = ReplicaMeter()
    folded(meter, batch(block(3)), batch(block(3, first=10)))
    gaps = histogram(meter.points(START_NS), "fulgurite.inter_token.duration")
    assert (gaps.count, gaps.total) == (4, pytest.approx(0.04))
