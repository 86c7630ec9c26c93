"""The server does the same with us and without us, whatever becomes of the collector."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import serving

from fulgurite.agent.engines.vllm.versions import installed_version
from fulgurite.cli.address import Address
from fulgurite.cli.client import Collector

pytest.importorskip("vllm", reason="vLLM is not installed here: make test-engines has it")

WORDS = ["sun", "moon", "tree", "fish", "bird", "cat", "dog", "boat"]
PROMPTS = [f"{word} {i} and then" for i, word in enumerate(WORDS * 3)]
COMMON = ("--enforce-eager", "--dtype", "bfloat16")
UNKNOWN = "import fulgurite.agent.engines.vllm.versions as versions\nversions.SUPPORTED = ()\n"


def said(server: Any, prompts: list[str], at_once: int) -> list[list[int]]:
    """What it answers, greedily."""

    def ask(prompt: str) -> list[int]:
        answer = server.complete(prompt, max_tokens=24, ignore_eos=True, logprobs=2)
        tokens: list[int] = answer["choices"][0]["token_ids"]
        return tokens

    with ThreadPoolExecutor(at_once) as pool:
        return list(pool.map(ask, prompts))


@pytest.fixture(scope="module")
def alone(model: Path, tmp_path_factory: Any) -> dict[str, Any]:
    """What a server says with Fulgurite installed, and nothing configured."""
    folder = tmp_path_factory.mktemp("alone")
    with serving.vllm(folder, model, *COMMON, env={}) as server:
        one_by_one = said(server, PROMPTS[:8], 1)
        crowds = [said(server, PROMPTS, 24) for _ in range(2)]
        connected = [
            c
            for p in server.process.family()
            for c in p.net_connections("tcp")
            if c.raddr and c.raddr.port == 4747
        ]
        return {
            "one_by_one": one_by_one,
            "crowds": crowds,
            "log": server.process.said,
            "connected": connected,
        }


@pytest.fixture(scope="module")
def observed(model: Path, tmp_path_factory: Any) -> Iterator[Any]:
    folder = tmp_path_factory.mktemp("observed")
    with serving.stage(folder, model, *COMMON, FULGURITE_LEVEL="deep", FULGURITE_DEEP_RATIO="1") as found:
        yield found


def test_nothing_happens_where_nothing_is_configured(alone: dict[str, Any]) -> None:
    assert "fulgurite" not in alone["log"].lower()
    assert not alone["connected"]


def test_our_threads_leave_the_processors_to_the_model(model: Path, tmp_path: Path) -> None:
    """vLLM binds the threads of its worker, as it does where nobody says otherwise; ours run elsewhere."""
    allowed = os.sched_getaffinity(0)
    if len(allowed) < 2:
        pytest.skip("there is one processor")
    with serving.stage(tmp_path, model, *COMMON, VLLM_CPU_OMP_THREADS_BIND="auto") as found:
        found.server.complete("sun", max_tokens=4, ignore_eos=True)
        workers = [one for one in found.server.process.family() if "Worker" in " ".join(one.cmdline())]
        assert workers
        for worker in workers:
            bound = set(worker.cpu_affinity())
            assert bound < allowed
            where = [os.sched_getaffinity(thread.id) for thread in worker.threads()]
            assert {frozenset(mask) for mask in where} == {frozenset(bound), frozenset(allowed - bound)}


def test_requests_one_by_one_are_answered_the_same(alone: dict[str, Any], observed: Any) -> None:
    assert said(observed.server, PROMPTS[:8], 1) == alone["one_by_one"]


def test_a_crowd_is_answered_as_alike_as_twice_without_us(alone: dict[str, Any], observed: Any) -> None:
    first, second = alone["crowds"]
    between = sum(a != b for a, b in zip(first, second, strict=True))
    with_us = min(
        sum(a != b for a, b in zip(crowd, said(observed.server, PROMPTS, 24), strict=True))
        for crowd in (first, second)
    )
    assert with_us <= between


def test_the_server_does_not_notice_a_collector_that_hangs_or_dies(
    alone: dict[str, Any], observed: Any
) -> None:
    observed.collector.signal(signal.SIGSTOP)
    try:
        assert said(observed.server, PROMPTS[:8], 1) == alone["one_by_one"]
    finally:
        observed.collector.signal(signal.SIGCONT)
    observed.collector.signal(signal.SIGKILL)
    assert said(observed.server, PROMPTS[:8], 1) == alone["one_by_one"]
    assert observed.server.process.is_alive
    assert "Traceback" not in observed.server.process.said


def test_of_an_unknown_version_the_schedulers_figures_are_told_and_nothing_else(
    model: Path, tmp_path: Path
) -> None:
    (tmp_path / "sitecustomize.py").write_text(UNKNOWN)
    with serving.collector(tmp_path) as (_, port):
        env = {
            "FULGURITE_ENDPOINT": f"127.0.0.1:{port}",
            "FULGURITE_STRICT": "1",
            "PYTHONPATH": str(tmp_path),
        }
        with serving.vllm(tmp_path, model, *COMMON, env=env) as server:
            for _ in range(2):
                answer = server.complete("Once upon a time, there was a", max_tokens=3, ignore_eos=True)
                assert answer["usage"]["completion_tokens"] == 3
            lines = [line for line in server.process.said.splitlines() if "Fulgurite" in line]
            told = serving.until(lambda: _engine(port))
            assert (told.name, told.version) == ("vllm", installed_version())
            assert told.kv_blocks > 0
            serving.until(lambda: _engine(port).prefix_tokens_asked > 0)
    assert lines
    assert all("is not a version that Fulgurite knows" in line for line in lines)


def _engine(port: int) -> Any:
    """What the one replica's engine says of itself, None before it does."""
    with Collector(Address("127.0.0.1", port)) as line:
        found = line.replicas().replicas
    return found[0].agent.engine if found and found[0].agent.HasField("engine") else None
