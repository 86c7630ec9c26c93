"""Every token of every request over HTTP is in a frame of that request, and no other is."""

from __future__ import annotations

import json
import random
import re
import subprocess
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import serving
from checks import check, tokens_of

pytest.importorskip("vllm", reason="vLLM is not installed here: make test-engines has it")

import openai

from fulgurite.agent import InMemoryExporter, observe

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


def test_a_trace_holds_the_spans_of_the_engine_and_our_tokens(eager: Any) -> None:
    trace, span = "5bf92f3577b34da6a3ce929d0e0e4737", "10f067aa0ba902b8"
    answer = eager.server.complete(
        "Once", max_tokens=5, headers={"traceparent": f"00-{trace}-{span}-01"}, ignore_eos=True
    )
    eager.watcher.ends(answer["id"])
    command = [str(serving.BIN / "fulgurite"), "trace", trace, "--collector", f"127.0.0.1:{eager.port}"]

    def spans() -> list[dict[str, Any]]:
        """Of the trace, when the engine has sent its own: it does so every few seconds."""
        said = subprocess.run([*command, "--json"], check=False, capture_output=True, text=True, timeout=120)
        found = json.loads(said.stdout)["spans"] if said.returncode == 0 else []
        return found if any(one["name"] == "llm_request" for one in found) else []

    found = {one["name"]: one for one in eager.watcher.until(spans)}
    theirs = found.pop("llm_request")
    assert theirs["parent_id"] == span
    assert theirs["attributes"]["gen_ai.usage.completion_tokens"] == 5
    (ours,) = (one for one in found.values() if len(one.get("token_seconds", ())) == 5)
    assert ours["parent_id"] == span
    said = subprocess.run(command, check=False, capture_output=True, text=True, timeout=120)
    assert said.returncode == 0
    assert "llm_request" in said.stdout


def test_doctor_says_what_is_attached_and_what_is_captured(eager: Any) -> None:
    eager.server.complete("Once", max_tokens=3, ignore_eos=True)
    command = [str(serving.BIN / "fulgurite"), "doctor", "--collector", f"127.0.0.1:{eager.port}"]
    said = subprocess.run(command, check=False, capture_output=True, text=True, timeout=120).stdout
    (line,) = (one for one in said.splitlines() if "vllm 0.32" in one)
    assert "level heads" in line
    assert re.search(r"observed for \d+ (s|min)", line)
    captured, absent = re.search(r"captured: (.*); not captured: (.*)", line).groups()  # type: ignore[union-attr]
    assert {"head_write", "ffn_write", "logprob", "kv_tokens"} <= set(captured.split(", "))
    assert absent == "learned_sink_mass"


def test_a_black_box_beside_the_glass_one_says_the_same(eager: Any) -> None:
    exporter = InMemoryExporter()
    client = openai.OpenAI(base_url=f"{eager.server.url}/v1", api_key="none", timeout=180)
    observe(client, exporter=exporter, tokens="text")
    told = {"role": "user", "content": "Say something about a boat"}
    asking: dict[str, Any] = {"model": "m", "max_tokens": 9, "temperature": 0, "stream": True}
    asking |= {"stream_options": {"include_usage": True}}
    drawn = {**asking, "temperature": 0.9}
    more = {"ignore_eos": True, "return_token_ids": True}
    form = {"chat_template": "{{ messages[0]['content'] }}"}
    chat = client.chat.completions.create(
        messages=[told], logprobs=True, top_logprobs=4, extra_body={**more, **form}, **asking
    )
    numbered = {**more, "return_tokens_as_token_ids": True}  # by their texts some of them would be one
    text = client.completions.create(prompt="Once upon", logprobs=3, extra_body=numbered, n=2, **drawn)
    ids = [{chunk.id for chunk in stream}.pop() for stream in (chat, text)]
    ended = {event.request_id: event for event in exporter.events if event.kind == "finished"}
    for request_id, count, choices in zip(ids, (4, 3), (1, 2), strict=True):
        glass = eager.watcher.of(request_id, 9 * choices)
        box = sorted(
            (f for f in exporter.frames if f.request_id == request_id), key=lambda f: (f.sequence, f.position)
        )
        assert [(f.sequence, f.token_id) for f in box] == [(f.sequence, f.token_id) for f in glass]
        assert np.allclose([f.logprob for f in box], [f.logprob for f in glass], atol=2e-3)
        for ours, theirs in zip(box, glass, strict=True):
            assert np.allclose(ours.top_logprobs[:count], theirs.top_logprobs[:count], atol=2e-2)
            if request_id == ids[1]:
                told = zip(theirs.top_ids[:count], theirs.top_logprobs[:count], strict=True)
                certain = {i for i, value in told if value > theirs.top_logprobs[count] + 2e-2}
                assert certain <= set(ours.top_ids[:count])
            assert abs(ours.margin - theirs.margin) < 4e-3
            assert ours.rank in (theirs.rank, -1)
            assert ours.head_write is ours.entropy is None
        assert ended[request_id].generated_tokens == 9 * choices
        assert ended[request_id].prompt_tokens == glass[0].position


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
