"""A model that can only be asked: `observe` over real clients of openai-python and a real server that is not
observed itself.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import socket
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("openai")
pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("uvicorn")

import openai
from tests.system import model_folder
from tests.system.conftest import Stage
from tests.system.listening import Listening
from tests.system.model_folder import text_of

from fulgurite.agent import InMemoryExporter, observe, unobserve
from fulgurite.wire.codec import topology_from_pb

pytestmark = pytest.mark.system
TOKENS = 12
PROMPT = text_of([5, 9, 31])


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """(address, model) of a `transformers serve` that knows nothing of us."""
    model = str(model_folder.save(tmp_path_factory.mktemp("model")))
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = int(found.getsockname()[1])
    program = str(Path(sys.executable).with_name("transformers"))
    stage = Stage()
    process = stage.start(
        program, "serve", "--port", str(port), "--host", "127.0.0.1", "--device", "cpu",
        environment={"HF_HUB_OFFLINE": "1"},
    )  # fmt: skip

    def is_up() -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
                return True
        except OSError:
            return False

    try:
        process.until(is_up)
        yield f"http://127.0.0.1:{port}/v1", model
    finally:
        stage.clear()


def _client(address: str) -> Any:
    return openai.OpenAI(base_url=address, api_key="none", timeout=120, max_retries=0)


def _chat(model: str, **changes: Any) -> dict[str, Any]:
    told = [{"role": "user", "content": PROMPT}]
    return {
        "model": model,
        "messages": told,
        "max_tokens": TOKENS,
        "temperature": 0,
        "stream": True,
        **changes,
    }


def _said(chunks: list[Any]) -> str:
    return "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)


def _kinds(exporter: InMemoryExporter) -> list[str]:
    return [event.kind for event in exporter.events]


def test_a_streamed_chat_becomes_frames_and_the_user_meets_no_difference(server: tuple[str, str]) -> None:
    address, model = server
    plain = list(_client(address).chat.completions.create(**_chat(model)))
    exporter = InMemoryExporter()
    client = _client(address)
    assert observe(client, exporter=exporter, tokens="text") is client
    stream = client.chat.completions.create(**_chat(model))
    assert type(stream) is openai.Stream
    chunks = list(stream)
    assert [type(chunk) for chunk in chunks] == [type(chunk) for chunk in plain]
    assert _said(chunks) == _said(plain)

    frames = exporter.frames
    assert "".join(frame.token_text or "" for frame in frames) == _said(chunks)
    assert {frame.request_id for frame in frames} == {chunks[0].id}
    assert [frame.position for frame in frames] == list(range(len(frames)))
    assert [frame.phase for frame in frames] == ["prefill", *["decode"] * (len(frames) - 1)]
    assert all(a.ended_ns == b.started_ns for a, b in itertools.pairwise(frames))
    started, finished = exporter.events
    assert (started.kind, finished.kind, finished.reason) == ("started", "finished", "length")
    assert started.time_ns == frames[0].started_ns < frames[0].ended_ns <= finished.time_ns
    assert all(f.head_write is None and f.ffn_write is None and f.entropy is None for f in frames)
    told = [chunk.usage for chunk in chunks if chunk.usage is not None]
    if told:
        assert finished.prompt_tokens == told[-1].prompt_tokens > 0
        assert finished.generated_tokens == told[-1].completion_tokens == TOKENS


def test_completions_and_the_asynchronous_client_are_heard_too(server: tuple[str, str]) -> None:
    address, model = server
    exporter = InMemoryExporter()

    async def ask() -> str:
        async with openai.AsyncOpenAI(base_url=address, api_key="none", timeout=120) as client:
            observe(client, exporter=exporter, tokens="text")
            stream = await client.completions.create(
                model=model, prompt=PROMPT, max_tokens=TOKENS, temperature=0, stream=True
            )
            assert type(stream) is openai.AsyncStream
            return "".join([choice.text async for chunk in stream for choice in chunk.choices])

    said = asyncio.run(ask())
    assert said == "".join(frame.token_text or "" for frame in exporter.frames) != ""
    assert _kinds(exporter) == ["started", "finished"]


@pytest.mark.parametrize("way", ["close", "with", "dropped"])
def test_a_stream_that_is_left_early_ends_as_aborted(server: tuple[str, str], way: str) -> None:
    address, model = server
    exporter = InMemoryExporter()
    client = observe(_client(address), exporter=exporter)
    stream = client.chat.completions.create(**_chat(model, max_tokens=300))
    next(stream)
    if way == "with":
        with stream:
            pass
    elif way == "close":
        stream.close()
    else:
        stream.response.close()  # or the server would go on
    if way != "dropped":
        assert _kinds(exporter) == ["started", "aborted"]
    del stream
    gc.collect()  # a stream of openai-python refers to itself
    assert _kinds(exporter) == ["started", "aborted"]
    assert exporter.events[-1].reason == "closed by the client"


def test_a_refused_request_raises_what_it_always_did_and_ends_as_aborted(server: tuple[str, str]) -> None:
    address, _ = server
    exporter = InMemoryExporter()
    with pytest.raises(openai.APIError) as plain:
        list(_client(address).chat.completions.create(**_chat("no/such-model")))
    with pytest.raises(openai.APIError) as observed:
        list(observe(_client(address), exporter=exporter).chat.completions.create(**_chat("no/such-model")))
    assert (type(observed.value), str(observed.value)) == (type(plain.value), str(plain.value))
    assert _kinds(exporter) == ["started", "aborted"]
    assert exporter.events[-1].reason == type(plain.value).__name__
    assert not exporter.frames


def test_what_does_not_stream_is_handed_through(server: tuple[str, str]) -> None:
    address, model = server
    exporter = InMemoryExporter()
    client = observe(_client(address), exporter=exporter)
    whole = client.chat.completions.create(**_chat(model, stream=False))
    raw = client.chat.completions.with_raw_response.create(**_chat(model))
    assert whole.choices[0].message.content
    assert raw.headers["content-type"].startswith("text/event-stream")
    assert "".join(chunk.choices[0].delta.content or "" for chunk in raw.parse() if chunk.choices)
    assert not exporter.events
    unobserve(client)
    list(client.chat.completions.create(**_chat(model)))
    assert not exporter.events


def test_the_collector_hears_of_a_box_and_of_no_token(server: tuple[str, str]) -> None:
    address, model = server
    listening = Listening()
    try:
        client = observe(_client(address), endpoint=listening.endpoint)
        chunks = list(client.chat.completions.create(**_chat(model)))
        listening.until(lambda: any(e.kind == "finished" for r in listening.replicas for e in r.events))
        unobserve(client)
        (replica,) = listening.replicas
        topology = topology_from_pb(replica.hello.topology)
        assert topology.is_black_box
        assert topology.model_name == model
        assert {"head_write", "ffn_write", "kv_tokens", "entropy"} <= dict(topology.unavailable).keys()
        assert len(replica.frames) == len([c for c in chunks if _said([c])])
        assert {frame.token_text for frame in replica.frames} == {None}
        assert {frame.token_id for frame in replica.frames} == {-1}
    finally:
        listening.stop()


def test_without_a_collector_the_answer_is_the_same(
    server: tuple[str, str], free_port: Callable[[], int]
) -> None:
    address, model = server
    client = observe(_client(address), endpoint=f"127.0.0.1:{free_port()}")
    found = _said(list(client.chat.completions.create(**_chat(model))))
    unobserve(client, timeout_s=0.1)
    assert found == _said(list(client.chat.completions.create(**_chat(model)))) != ""


def test_what_is_no_client_is_refused_with_a_word_of_what_is() -> None:
    with pytest.raises(TypeError, match=r"pass openai\.OpenAI\(\)"):
        observe(object())
