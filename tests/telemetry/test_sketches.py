"""Tokens that come folded count like tokens that come whole."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
from tests.system.conftest import Stage
from tests.telemetry.fleet import Replica, collector, fetch, port, steady, store
from tests.telemetry.made import MS, START_NS, batch, block, ended, started
from tests.telemetry.receiver import attributes_of, grpc_receiver

from fulgurite.agent.folding import Folding
from fulgurite.telemetry.metrics import Histogram, ReplicaMeter
from fulgurite.telemetry.requests import Requests
from fulgurite.wire.frame import FrameBatch, FrameBlock, RequestEvent
from fulgurite.wire.sketch import Sketch


def folded(*blocks: FrameBlock, events: tuple[RequestEvent, ...] = ()) -> tuple[Sketch, ...]:
    """The sketches that an agent sends in place of these blocks."""
    folding = Folding(experts=8)
    for event in events:
        folding.event(event, 0.0)
    for one in blocks:
        folding.take(one, 0.0)
    sketches: list[Sketch] = []
    while not folding.is_idle:
        sketches += folding.due(1.0, at_once=True)
    return tuple(sketches)


def sketched(*blocks: FrameBlock, events: tuple[RequestEvent, ...]) -> FrameBatch:
    sketches = folded(*blocks, events=events)
    return FrameBatch(epoch_ms=1, first_sequence=1, blocks=(), events=events, sketches=sketches)


def test_the_figures_are_the_same_as_those_of_frames() -> None:
    blocks = [block(16, request="a"), block(16, request="b", first=3)]
    events = (started("a"), started("b"))
    whole, thin = ReplicaMeter(8), ReplicaMeter(8)
    whole.fold(batch(*blocks, events=events))
    thin.fold(sketched(*blocks, events=events))
    names = {p.metric.name: p for p in thin.points(START_NS)}
    for point in whole.points(START_NS):
        if point.metric.labels:
            continue
        got = names[point.metric.name].value
        if isinstance(point.value, Histogram):
            assert isinstance(got, Histogram)
            assert got.counts == point.value.counts, point.metric.name
            assert got.total == pytest.approx(point.value.total, rel=1e-5)
        else:
            assert got == point.value, point.metric.name


def test_layers_and_experts_are_the_same_as_those_of_frames() -> None:
    blocks = [block(16), block(16, first=40)]
    whole, thin = ReplicaMeter(8), ReplicaMeter(8)
    whole.fold(batch(*blocks))
    thin.fold(sketched(*blocks, events=()))

    def labelled(meter: ReplicaMeter) -> dict[tuple[str, tuple[str, ...]], float]:
        return {
            (p.metric.name, tuple(p.labels.values())): (
                p.value.total / p.value.count if isinstance(p.value, Histogram) else float(p.value)
            )
            for p in meter.points(START_NS)
            if p.metric.labels
        }

    want, got = labelled(whole), labelled(thin)
    assert set(want) == set(got)
    for key, value in want.items():
        assert got[key] == pytest.approx(value, rel=1e-5), key


@pytest.mark.parametrize("order", ["the end first", "the sketch first"])
def test_a_request_has_the_same_times_and_counts(order: str) -> None:
    one = block(16)
    end = ended(at_ns=START_NS + 200 * MS)
    sketches = folded(one, events=(started(),))
    words = FrameBatch(epoch_ms=1, first_sequence=1, blocks=(), events=(started(), end))
    folds = FrameBatch(epoch_ms=1, first_sequence=1, blocks=(), sketches=sketches)
    begin = FrameBatch(epoch_ms=1, first_sequence=1, blocks=(), events=(started(),))
    requests = Requests("d/s/i")
    turns = (words, folds) if order == "the end first" else (begin, folds, words)
    (thin,) = [record for turn in turns for record in requests.fold(turn)]
    (whole,) = Requests("d/s/i").fold(batch(one, events=(started(), end)))
    assert (thin.output_tokens, thin.outcome, thin.trace_id) == (16, "finished", whole.trace_id)
    assert thin.first_token_s == pytest.approx(whole.first_token_s)
    assert thin.pace_s == pytest.approx(whole.pace_s)
    assert thin.own_span_id == whole.own_span_id
    assert not thin.columns


def test_values_on_and_beside_the_bounds_are_counted_once() -> None:
    logprob = -np.asarray([1e-6, 0.0099, 0.0101, 0.999, 1.001, 31.0, 32.0, 99.0], np.float32)
    thin, whole = ReplicaMeter(8), ReplicaMeter(8)
    one = block(8, logprob=logprob)
    whole.fold(batch(one))
    thin.fold(sketched(one, events=()))
    counts = [
        next(p for p in meter.points(START_NS) if p.metric.name == "fulgurite.token.surprisal").value
        for meter in (whole, thin)
    ]
    assert counts[0].counts == counts[1].counts  # type: ignore[union-attr]


@pytest.mark.system
def test_without_a_watcher_spans_and_metrics_are_whole_all_the_same(tmp_path: Path) -> None:
    stage = Stage()
    try:
        with grpc_receiver() as (endpoint, kept):
            url, at = store(stage, tmp_path), f"127.0.0.1:{port()}"
            address = collector(stage, url, "--history", "none")
            stage.fulgurite("telemetry", "--redis", url, "--otlp-export", endpoint, "--prometheus", at).says(
                "metrics at"
            )
            replica = Replica(address, "one")
            with steady([replica]):
                kept.until(lambda: len(kept.spans) >= 30, 60.0)
                assert replica.exporter.stats().folded > 0
                time.sleep(2.0)
                text = fetch(f"http://{at}/metrics")
        assert {attributes_of(span.attributes)["gen_ai.usage.output_tokens"] for _, span in kept.spans} == {8}
        assert {
            round(attributes_of(s.attributes)["fulgurite.time_to_first_token"], 6) for _, s in kept.spans
        } == {0.03}
        lines = [line for line in text.splitlines() if line.startswith("fulgurite_tokens_total{")]
        assert len(lines) == 1
        assert float(lines[0].split()[-1]) >= 200
        assert "fulgurite_layer_head_write_count{" in text
    finally:
        stage.clear()
