"""The table of replicas and its JSON."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from fulgurite.cli.status import record, row, rows_table, serving
from fulgurite.v1 import agent_pb2, viewer_pb2
from fulgurite.wire.topology import Topology

NOW_NS = 1_700_000_000_000_000_000


def measured() -> viewer_pb2.ReplicaStatus:
    return viewer_pb2.ReplicaStatus(
        key="/demo/replica-0",
        model_name="tiny",
        layers=6,
        heads=8,
        state="live",
        last_seen_ns=NOW_NS - 3_000_000_000,
        tokens_per_s=31.25,
        inter_token=viewer_pb2.Quantiles(p50_s=0.03, p99_s=0.25, count=100),
        kv_tokens=120,
        kv_bytes=3 * 1024 * 1024,
        tokens_total=900,
        level="heads",
        agent=agent_pb2.AgentStats(captured=910, acknowledged=900, pending=3, dropped={"full": 5, "link": 2}),
    )


def unmeasured() -> viewer_pb2.ReplicaStatus:
    return viewer_pb2.ReplicaStatus(key="/demo/replica-1", state="idle", tokens_per_s=float("nan"))


def test_the_table_shows_what_was_measured() -> None:
    line = rows_table([row(measured(), now_ns=NOW_NS)]).splitlines()[1]
    cells = [cell.strip() for cell in line.split("  ") if cell.strip()]
    assert cells[:6] == ["/demo/replica-0", "tiny", "6×8", "live", "31.2", "30.0"]
    assert cells[6:] == ["250", "120", "3.0 MiB", "heads", "7", "3 s"]


def test_what_was_not_measured_is_a_dash_and_null_and_never_a_zero() -> None:
    unknown = row(unmeasured(), now_ns=NOW_NS)
    line = rows_table([unknown]).splitlines()[1]
    assert line.split() == ["/demo/replica-1", "–", "–", "idle", "–", "–", "–", "0", "0", "B", "–", "–", "–"]
    document = json.loads(json.dumps(record(unknown), allow_nan=False))
    absent = ("tokens_per_s", "inter_token_p50_s", "inter_token_p99_s", "dropped", "captured", "last_seen_s")
    assert {name: document[name] for name in absent} == dict.fromkeys(absent)


def test_the_columns_line_up() -> None:
    lines = rows_table([row(status, now_ns=NOW_NS) for status in (measured(), unmeasured())]).splitlines()
    states = [line.index(word) for line, word in zip(lines, ("STATE", "live", "idle"), strict=True)]
    assert len(set(states)) == 1


def test_the_command_prints_the_table_and_the_json(
    fulgurite: Callable[..., Any], scripted: Callable[..., str]
) -> None:
    address = scripted([unmeasured(), measured()])
    text = fulgurite("replicas", "--collector", address)
    assert text.status == 0
    assert [line.split()[0] for line in text.out.splitlines()] == [
        "REPLICA",
        "/demo/replica-0",
        "/demo/replica-1",
    ]
    document = json.loads(fulgurite("replicas", "--collector", address, "--json").out)
    assert document["store"] == "memory"
    assert document["replicas"][0]["dropped"] == {"full": 5, "link": 2}


def test_a_collector_without_replicas_is_no_error(
    fulgurite: Callable[..., Any], scripted: Callable[..., str]
) -> None:
    result = fulgurite("replicas", "--collector", scripted([]))
    assert (result.status, result.out) == (0, "")
    assert "no replica has reported yet" in result.complaint


def test_what_serves_is_told_with_engine_time_cost_and_what_is_captured() -> None:
    status = measured()
    status.resource.attributes.update({"fulgurite.engine.name": "vllm", "fulgurite.engine.version": "0.32.0"})
    status.started_ns = NOW_NS - 120_000_000_000
    status.agent.overhead_ratio = 0.012
    shape = Topology(
        model_name="tiny", architecture="llama", layers=6, heads=8, kv_heads=8, head_dim=4, hidden_size=32,
        ffn_size=64, vocab_size=9, unavailable=(("neuron_ids", "no room"), ("head_write", "split")),
    )  # fmt: skip
    found = serving(status, shape, now_ns=NOW_NS).split("; ")[1:]
    assert found[:3] == ["vllm 0.32.0", "observed for 2 min", "costs 1.2 % of step time"]
    captured = found[3].removeprefix("captured: ").split(", ")
    assert {"logprob", "entropy", "ffn_write", "kv_tokens"} <= set(captured)
    assert not {"head_write", "head_contribution", "expert_ids", "position"} & set(captured)
    assert found[4] == "not captured: head_write, neuron_ids"
