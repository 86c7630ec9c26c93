"""Every token of every request over HTTP is in a frame of that request, and no other is."""

from __future__ import annotations

import json
import random
import re
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from checks import check, tokens_of

pytest.importorskip("vllm", reason="vLLM is not installed here: make test-engines has it")

STEM = (
    "the cat and the dog and the bird went to the river to look for a boat and a little house with a red door"
)


@pytest.fixture(scope="module")
def crowd(eager: Any) -> list[dict[str, Any]]:
    """64 requests at once, of mixed length, half of them with a common beginning, in too small a cache."""
    made = random.Random(5)

    def ask(number: int) -> dict[str, Any]:
        stem = f"{STEM} {STEM}" if number % 2 else ""
        prompt = f"{stem} {number} " + " ".join(made.choices(["sun", "moon", "tree", "fish"], k=number % 13))
        length = 4 + 7 * (number % 9)
        found: dict[str, Any] = eager.server.complete(
            prompt, max_tokens=length, ignore_eos=number % 3 > 0, temperature=0.8 if number % 4 == 0 else 0
        )
        return found

    ask(1)  # its beginning is there when the others come
    with ThreadPoolExecutor(64) as pool:
        return list(pool.map(ask, range(64)))


def test_a_crowd_is_told_token_by_token(eager: Any, crowd: list[dict[str, Any]]) -> None:
    for answer in crowd:
        check(eager, answer)
    metrics = eager.server.metrics()
    assert metrics["vllm:num_preemptions_total"] > 0, "the cache was not small enough to preempt"
    assert metrics["vllm:prefix_cache_hits_total"] > 0, "no prefix was found again"
    assert eager.watcher.gaps == 0


def test_the_crowd_started_was_preempted_and_finished(eager: Any, crowd: list[dict[str, Any]]) -> None:
    kinds = []
    for answer in crowd:
        events = eager.watcher.ends(answer["id"])
        assert [e.kind for e in events if e.kind != "preempted"] == ["started", "finished"]
        assert events[-1].reason in ("length_capped", "stopped")
        kinds += [e.kind for e in events]
    assert kinds.count("preempted") == eager.server.metrics()["vllm:num_preemptions_total"]


def test_every_frame_of_the_crowd_is_measured(eager: Any, crowd: list[dict[str, Any]]) -> None:
    frames = eager.watcher.by_request()
    for answer in crowd:
        for frame in frames[answer["id"]]:
            assert frame.level == "heads"
            assert frame.head_write.shape == (6, 6)
            assert (frame.head_write > 0).all()
            assert (frame.residual_norm > 0).all()
            assert frame.logprob < 0
            assert list(frame.kv_tokens) == [frame.position] * 6


def test_choices_are_sequences(eager: Any) -> None:
    answer = eager.server.complete(["One day", "Two days later"], n=3, max_tokens=9, temperature=1.0, seed=3)
    check(eager, answer, choices=6)
    assert [e.kind for e in eager.watcher.ends(answer["id"])] == ["started", "finished"]


def test_a_chat_is_one_request(eager: Any) -> None:
    body = {"model": "m", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 7,
            "return_token_ids": True, "chat_template": "{{ messages[0]['content'] }}"}  # fmt: skip
    answer = eager.server.post("/v1/chat/completions", body)
    frames = eager.watcher.of(answer["id"], len(answer["choices"][0]["token_ids"]))
    assert tokens_of(frames, 0) == answer["choices"][0]["token_ids"]


def test_an_abandoned_request_was_aborted(eager: Any) -> None:
    known = {e.request_id for e in eager.watcher.events}
    eager.server.abandon("Once", 0.3, max_tokens=300, ignore_eos=True)

    def aborted() -> list[str]:
        return [
            e.request_id for e in eager.watcher.events if e.kind == "aborted" and e.request_id not in known
        ]

    (request_id,) = eager.watcher.until(aborted)
    frames = eager.watcher.by_request()[request_id]
    assert 0 < len(frames) < 300
    assert [f.position for f in frames] == list(range(frames[0].position, frames[0].position + len(frames)))


def test_a_long_prompt_comes_in_chunks(eager: Any) -> None:
    answer = eager.server.complete(" ".join([STEM] * 3), max_tokens=5, ignore_eos=True)
    check(eager, answer)
    first = eager.watcher.of(answer["id"], 5)[0]
    assert first.phase == "prefill"
    assert first.position == len(answer["choices"][0]["prompt_token_ids"]) > 64


def test_structured_output_is_told_with_the_raw_distribution(eager: Any) -> None:
    answer = eager.server.complete(
        "Say:", max_tokens=12, structured_outputs={"regex": "(cat|dog) [0-9]{2,4}"}
    )
    assert re.fullmatch("(cat|dog) [0-9]{2,4}", answer["choices"][0]["text"]), json.dumps(answer)
    check(eager, answer)
    frames = eager.watcher.of(answer["id"], 1)
    # the grammar forbids what the model wants: its raw distribution knows nothing of that
    assert any(f.rank > 0 for f in frames)
    assert all(
        abs(sum(map(float, [2.718281828 ** f.top_logprobs[i] for i in range(8)]))) <= 1.001 for f in frames
    )


def test_the_trace_of_a_request_is_that_of_its_frames(eager: Any) -> None:
    trace, span = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
    answer = eager.server.complete(
        "Once", max_tokens=4, headers={"traceparent": f"00-{trace}-{span}-01"}, ignore_eos=True
    )
    frames = eager.watcher.of(answer["id"], 4)
    assert {(f.trace_id, f.span_id) for f in frames} == {(trace, span)}
    other = eager.server.complete("Once", max_tokens=4, ignore_eos=True)
    assert {f.trace_id for f in eager.watcher.of(other["id"], 4)} == {""}


def test_the_schedulers_figures_are_those_of_the_server(eager: Any, crowd: list[dict[str, Any]]) -> None:
    def told() -> Any:
        account = eager.account()
        return account if account.engine.kv_blocks and not account.running_requests else None

    account = eager.watcher.until(told)
    metrics = eager.server.metrics()
    assert account.engine.name == "vllm"
    assert account.engine.kv_blocks == 23  # one of the 24 stands for nothing
    assert account.engine.kv_blocks_used == 0
    assert account.engine.kv_blocks_evicted > 0
    assert account.engine.preemptions == metrics["vllm:num_preemptions_total"] > 0
    assert 0 < account.engine.prefix_tokens_found < account.engine.prefix_tokens_asked
    assert account.engine.requests_scheduled >= 64
    assert account.engine.queue_s > 0
    assert account.kv_capacity_bytes > 0
    assert account.captured == account.acknowledged + account.pending + sum(account.dropped.values())
    assert not account.dropped
    assert not account.errors
