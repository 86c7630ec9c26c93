"""What of the vLLM plugin needs no vLLM: rows, docket, names, versions, planes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Gauge
from prometheus_client.samples import Sample

from fulgurite.agent import config
from fulgurite.agent.config import is_wanted
from fulgurite.agent.engines.flat.desk import Desk
from fulgurite.agent.engines.vllm import attaching, outside
from fulgurite.agent.engines.vllm.docket import Docket
from fulgurite.agent.engines.vllm.frontend import told_of
from fulgurite.agent.engines.vllm.plugin import activate
from fulgurite.agent.engines.vllm.rows import Known, Rows, Stops, rows_of, sampled
from fulgurite.agent.engines.vllm.versions import SUPPORTED, support_of
from fulgurite.agent.shield import Shield
from fulgurite.wire.frame import RequestRef


def known(prompt: int, stops: Stops | None = None, name: str = "r") -> Known:
    return Known(RequestRef(name), 0, prompt, stops or Stops())


def step(computed: list[int], scheduled: list[int], drafts: list[int], discarded: list[bool]) -> Rows:
    names = [f"r{i}" for i in range(len(computed))]
    arrays = (np.array(v) for v in (computed, scheduled, drafts, discarded))
    return rows_of(names, *arrays)


def test_the_token_of_a_prompt_has_the_position_behind_it() -> None:
    rows = step([0, 16], [5, 1], [0, 0], [False, False])
    assert rows.position.tolist() == [5, 17]


def test_a_row_of_each_draft_comes_before_that_of_the_bonus_token() -> None:
    rows = step([10, 20], [4, 1], [3, 0], [False, False])
    assert rows.position.tolist() == [11, 12, 13, 14, 21]
    assert rows.first.tolist() == [0, 4]


def test_a_prompt_that_is_not_all_there_gives_no_token() -> None:
    rows = step([0, 7], [5, 1], [0, 0], [True, False])
    found = sampled(rows, [[1], [2]], {"r0": known(9), "r1": known(3)})
    assert (found.row.tolist(), found.token.tolist(), found.position.tolist()) == ([1], [2], [8])


def test_rejected_drafts_are_no_tokens() -> None:
    rows = step([10], [4], [3], [False])
    found = sampled(rows, [[7, 8]], {"r0": known(5)})
    assert found.token.tolist() == [7, 8]
    assert found.position.tolist() == [11, 12]
    assert (found.drafted, found.accepted) == ({"r0": 3}, {"r0": 1})


@pytest.mark.parametrize(
    ("stops", "kept"),
    [
        (Stops(tokens=frozenset({8})), 2),
        (Stops(most=7), 1),
        (Stops(most_in_all=14), 3),
        (Stops(), 4),
    ],
)
def test_tokens_behind_the_end_of_a_request_do_not_count(stops: Stops, kept: int) -> None:
    rows = step([10], [4], [3], [False])  # 6 generated tokens before, of a prompt of 5
    found = sampled(rows, [[7, 8, 9, 10]], {"r0": known(5, stops)})
    assert found.token.tolist() == [7, 8, 9, 10][:kept]


@pytest.mark.parametrize("tokens", [[[7], [8], [9]], [[7], [], [9]]], ids=["one of each", "one gives none"])
@pytest.mark.parametrize("strangers", [0, 1])
def test_a_step_of_one_token_each_is_told_as_any_other(tokens: list[list[int]], strangers: int) -> None:
    plain = step([3, 10, 0], [1, 1, 5], [0, 0, 0], [False] * 3)
    assert plain.is_plain
    assert not step([3], [2], [1], [False]).is_plain
    assert not step([3], [1], [0], [True]).is_plain
    there = {f"r{i}": known(3, name=f"r{i}") for i in range(strangers, 3)}
    ours, any_other = (sampled(rows, tokens, there) for rows in (plain, replace(plain, is_plain=False)))
    for name in ("row", "token", "position", "owner"):
        assert getattr(ours, name).tolist() == getattr(any_other, name).tolist()
    assert (ours.drafted, ours.accepted) == (any_other.drafted, any_other.accepted) == ({}, {})


def test_a_request_that_is_not_known_gives_no_token() -> None:
    assert sampled(step([3], [1], [0], [False]), [[4]], {}).row.size == 0


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(1, 9), st.integers(0, 4)), min_size=1, max_size=9))
def test_rows_follow_one_another(parts: list[tuple[int, int, int]]) -> None:
    parts = [(computed, max(scheduled, drafts + 1), drafts) for computed, scheduled, drafts in parts]
    rows = step(*(list(v) for v in zip(*parts, strict=True)), [False] * len(parts))  # type: ignore[arg-type]
    assert rows.position.size == rows.count.sum()
    assert rows.first.tolist() == np.cumsum([0, *rows.count[:-1]]).tolist()
    for (computed, scheduled, _), first, count in zip(parts, rows.first, rows.count, strict=True):
        assert rows.position[first + count - 1] == computed + scheduled


def test_a_request_is_over_with_the_last_of_its_sequences() -> None:
    docket = Docket()
    for i in range(2):
        docket.arrived(f"{i}_a", "a", sequence=i, prompt=4, arrived_s=1.0)
    docket.scheduled("0_a", cached=0, now_s=2.0)
    docket.scheduled("1_a", cached=3, now_s=3.0)
    docket.preempted("1_a", now_s=4.0)
    docket.over("0_a", status="FINISHED_STOPPED", now_s=5.0)
    assert [e.kind for e in docket.take()] == ["started", "preempted"]
    docket.over("1_a", status="FINISHED_LENGTH_CAPPED", now_s=6.0)
    (end,) = docket.take()
    assert (end.kind, end.reason, end.sequences, end.prompt_tokens_per_row) == (
        "finished",
        "length_capped",
        2,
        (4, 4),
    )
    assert (docket.queued, docket.queue_ns, docket.prefix_asked, docket.prefix_found) == (2, 3 * 10**9, 8, 3)
    docket.over("1_a", status="FINISHED_ABORTED", now_s=7.0)
    assert docket.take() == ()


def test_a_request_of_which_a_sequence_was_aborted_was_aborted() -> None:
    docket = Docket()
    docket.arrived("a", "a", sequence=0, prompt=4, arrived_s=1.0)
    docket.over("a", status="FINISHED_ABORTED", now_s=5.0)
    assert [e.kind for e in docket.take()] == ["aborted"]


@pytest.mark.parametrize(
    ("public", "n", "name", "first"),
    [("cmpl-x-1-0", 1, "cmpl-x-1", 0), ("cmpl-x-2", 3, "cmpl-x", 6), ("chatcmpl-x-2", 2, "chatcmpl-x-2", 0)],
)
def test_a_request_is_named_as_its_answer_is(public: str, n: int, name: str, first: int) -> None:
    told = told_of(public, "internal", n, "")
    assert (told["id"], told["first"], told["trace_id"]) == (name, first, "")


def test_a_malformed_traceparent_is_none() -> None:
    good = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    assert told_of("a", "a", 1, good)["span_id"] == "00f067aa0ba902b7"
    assert told_of("a", "a", 1, good[:-4])["trace_id"] == ""


def test_only_tested_versions_are_known() -> None:
    assert all(support_of(known.tested) is known for known in SUPPORTED)
    assert [support_of(v) for v in ("", "0.3.2", "1.32.0", "dev")] == [None] * 4


def test_nothing_is_done_unless_it_is_configured() -> None:
    assert not activate({})
    assert not is_wanted({"FULGURITE_ENDPOINT": "h:1", "FULGURITE_DISABLED": "1"})
    assert is_wanted({"FULGURITE_RUN": "1"})


@pytest.mark.parametrize("is_fixed", [False, True])
def test_planes_hold_the_rows_of_this_step_and_say_so(is_fixed: bool) -> None:
    desk = Desk(4, torch.device("cpu"), torch.float32)
    desk._is_fixed = is_fixed  # as where graphs are captured
    buffer, planes = desk.planes(2, 3)
    x, y = torch.arange(18.0).view(6, 3), torch.ones(6, 3)
    assert not desk.is_written(planes)
    desk.keep(planes[0], x, None)
    assert not buffer.any(), "nothing is kept before a step is opened"
    assert desk.open(torch.tensor([1, 5])) == 2
    desk.keep(planes[0], x, y)
    assert torch.equal(buffer[0, :2], x[[1, 5]] + 1)
    assert desk.is_written(planes[:1])
    assert not desk.is_written(planes)
    torch.ops.fulgurite_vllm.keep(x, None, desk.anchor, planes[1].number)
    assert torch.equal(buffer[1, :2], x[[1, 5]])
    assert desk.is_written(planes)
    desk.open(torch.tensor([0]))
    assert not desk.is_written(planes[:1]), "what was left by an earlier step is not of this one"
    desk.shut()
    assert desk.take_ns() > 0
    assert not desk.errors


def test_a_tap_that_fails_is_counted_and_the_host_goes_on() -> None:
    desk = Desk(4, torch.device("cpu"), torch.float32)
    _, (plane,) = desk.planes(1, 3)
    desk.open(torch.tensor([0]))
    desk.keep(plane, torch.zeros(2, 5), None)
    assert dict(desk.errors) == {"tap:ValueError": 1}
    assert not desk.is_written([plane])


def test_more_rows_than_there_is_room_for_are_not_kept() -> None:
    desk = Desk(2, torch.device("cpu"), torch.float32)
    buffer, (plane,) = desk.planes(1, 3)
    assert desk.open(torch.tensor([3, 1, 2])) == 2
    desk.keep(plane, torch.arange(12.0).view(4, 3), None)
    assert torch.equal(buffer[0], torch.tensor([[9.0, 10, 11], [3.0, 4, 5]]))


def _samples() -> list[Sample]:
    registry = CollectorRegistry()
    engines = ("model_name", "engine")
    gauges = {
        "num_requests_running": (2, 3),
        "num_requests_waiting": (1, 0),
        "kv_cache_usage_perc": (0.5, 0.25),
    }
    for name, values in gauges.items():
        gauge = Gauge(f"vllm:{name}", "-", engines, registry=registry)
        for engine, value in enumerate(values):
            gauge.labels("a/model", str(engine)).set(value)
    hits = Counter("vllm:prefix_cache_hits", "-", engines, registry=registry)
    hits.labels("a/model", "0").inc(7)
    config = Gauge("vllm:cache_config_info", "-", ("num_gpu_blocks", "engine"), registry=registry)
    for engine in "01":
        config.labels("100", engine).set(1)
    return [sample for metric in registry.collect() for sample in metric.samples]


def test_the_figures_of_an_unknown_version_are_those_that_it_publishes() -> None:
    samples = _samples()
    assert outside.model_of(samples) == "a/model"
    figures = outside.figures_of(samples, "9.9")
    assert (figures.running, figures.waiting) == (5, 1)
    assert (figures.kv_blocks, figures.kv_blocks_used) == (200, 75)
    assert (figures.prefix_found, figures.prefix_asked) == (7, 0)
    assert outside.model_of([]) == ""


def test_nothing_of_a_model_is_told_for_an_unknown_version_but_its_name() -> None:
    topology = outside.topology_of("model", "9.9")
    missing = dict(topology.unavailable)
    assert {"head_write", "logprob", "kv_tokens"} <= set(missing)
    assert all("9.9" in reason for reason in missing.values())


def test_the_link_of_an_observed_engine_shows_the_token_that_the_environment_names(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("FULGURITE_TOKEN", "a-token-of-some-length")
    monkeypatch.setenv("FULGURITE_SPOOL", str(tmp_path))
    given: list[dict[str, Any]] = []
    monkeypatch.setattr(attaching, "GrpcExporter", lambda endpoint, **more: given.append(more))
    worker = SimpleNamespace(
        vllm_config=SimpleNamespace(parallel_config=SimpleNamespace(tensor_parallel_size=1))
    )
    settings = config.settings()
    attaching._exporter(settings, worker, "model", Shield())
    assert given == [
        {"access": settings.access, "spool": settings.spool, "spool_bytes": settings.spool_bytes}
    ]
    assert settings.access.token == "a-token-of-some-length"
    assert settings.spool == tmp_path
