"""`transformers serve`, the real server over HTTP: each token of each response is in the frames."""

from __future__ import annotations

import json
import sys
import urllib.request
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("uvicorn")
pytest.importorskip("openai")

from tests.system import model_folder
from tests.system.conftest import Background, Stage
from tests.system.listening import Listening
from tests.system.model_folder import ids_of, text_of

pytestmark = pytest.mark.system
WAYS = [pytest.param((), id="generate"), pytest.param(("--continuous-batching",), id="continuous-batching")]
TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
REQUESTS = 64
LONG = 2000  # tokens: the client has left long before


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("models")
    return [
        model_folder.save(root / name, seed=i, layers=2 + i) for i, name in enumerate(("first", "second"))
    ]


@pytest.fixture
def listening() -> Iterator[Listening]:
    found = Listening()
    yield found
    found.stop()


class Served:
    """A server that is up."""

    def __init__(self, server: Background, port: int) -> None:
        self.server = server
        self.port = port

    def post(self, path: str, body: dict[str, Any], request_id: str, **headers: str) -> Any:
        sent = {"content-type": "application/json", "x-request-id": request_id, **headers}
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}", json.dumps(body).encode(), sent
        )
        return urllib.request.urlopen(request, timeout=120)

    def complete(
        self, model: Path, prompt: list[int], tokens: int, request_id: str, **headers: str
    ) -> list[int]:
        """Token ids of a whole response."""
        body = {"model": str(model), "prompt": text_of(prompt), "max_tokens": tokens, "temperature": 0}
        with self.post("/v1/completions", body, request_id, **headers) as response:
            return ids_of(json.loads(response.read())["choices"][0]["text"])

    def stream(self, model: Path, prompt: list[int], tokens: int, request_id: str) -> list[int]:
        """Token ids of a streamed chat."""
        body = {
            "model": str(model), "messages": [{"role": "user", "content": text_of(prompt)}],
            "max_tokens": tokens, "temperature": 0, "stream": True,
        }  # fmt: skip
        pieces = []
        with self.post("/v1/chat/completions", body, request_id) as response:
            for line in response:
                if line.startswith(b"data: {"):
                    for choice in json.loads(line[6:])["choices"]:
                        pieces.append(choice["delta"].get("content") or "")
        return ids_of("".join(pieces))


@pytest.fixture
def serve(stage: Stage, listening: Listening, free_port: Callable[[], int]) -> Callable[..., Served]:
    """Starts `fulgurite run -- transformers serve`."""

    def start(*options: str) -> Served:
        port = free_port()
        program = str(Path(sys.executable).with_name("transformers"))
        server = stage.fulgurite(
            "run", "--collector", listening.endpoint, "--tokens", "ids", "--budget", "none", "--",
            program, "serve", "--port", str(port), "--host", "127.0.0.1", "--device", "cpu", *options,
            environment={"HF_HUB_OFFLINE": "1"},
        )  # fmt: skip
        found = Served(server, port)

        def is_up() -> bool:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
                    return True
            except OSError:
                return False

        server.until(is_up)
        return found

    return start


def told(listening: Listening) -> dict[str, list[int]]:
    found: dict[str, list[int]] = defaultdict(list)
    for frame in sorted(listening.frames, key=lambda frame: frame.position):
        found[frame.request_id].append(frame.token_id)
    return found


def ended(listening: Listening) -> dict[str, str]:
    """How each request ended."""
    return {e.request_id: e.kind for e in listening.events if e.kind in ("finished", "aborted")}


@pytest.mark.parametrize("options", WAYS)
def test_many_requests_at_once_are_told_apart(
    serve: Callable[..., Served], listening: Listening, folders: list[Path], options: tuple[str, ...]
) -> None:
    served = serve(*options)
    rng = np.random.default_rng(0)
    asked = {
        f"ask-{i}": (rng.integers(2, 90, rng.integers(3, 60)).tolist(), int(rng.integers(2, 24)), i % 2)
        for i in range(REQUESTS)
    }
    asked["long"] = ([7, 8, 9], 300, 1)  # under way while the others come
    served.complete(folders[0], [5, 6], 2, "first")

    def ask(name: str) -> list[int]:
        prompt, tokens, streams = asked[name]
        call = served.stream if streams else served.complete
        return call(folders[0], prompt, tokens, name)

    with ThreadPoolExecutor(len(asked)) as pool:
        futures = {name: pool.submit(ask, name) for name in reversed(asked)}
        answers = {name: future.result() for name, future in futures.items()}
    assert {name: len(answer) for name, answer in answers.items()} == {n: a[1] for n, a in asked.items()}
    total = 2 + sum(map(len, answers.values()))
    listening.until(lambda: len(listening.frames) >= total)
    found = told(listening)
    del found["first"]
    assert found == answers, "none missing, none foreign"
    assert all(frame.head_write is not None for frame in listening.frames)
    assert {frame.position for frame in listening.frames if frame.request_id == "ask-0"} == {
        len(asked["ask-0"][0]) + i for i in range(asked["ask-0"][1])
    }
    listening.until(lambda: sum(e.kind == "finished" for e in listening.events) == REQUESTS + 2)
    if options:
        assert max(frame.batch_size for frame in listening.frames) > 1


@pytest.mark.parametrize("options", WAYS)
def test_the_trace_of_a_request_reaches_its_frames_and_an_aborted_one_ends_so(
    serve: Callable[..., Served], listening: Listening, folders: list[Path], options: tuple[str, ...]
) -> None:
    served = serve(*options)
    header = f"00-{TRACE}-{SPAN}-01"
    served.complete(folders[0], [5, 6, 7], 3, "traced", traceparent=header)
    listening.until(lambda: len(listening.frames) == 3)
    assert {(f.request_id, f.trace_id, f.span_id) for f in listening.frames} == {("traced", TRACE, SPAN)}
    body = {
        "model": str(folders[0]), "messages": [{"role": "user", "content": "t5 t6"}], "max_tokens": LONG,
        "temperature": 0, "stream": True,
    }  # fmt: skip
    ends: set[str] = set()
    for i in range(6):
        name, pieces = f"gone-{i}", 1 + i % 3 * 4  # before its first token, or behind some
        response = served.post("/v1/chat/completions", body, name)
        for _ in range(pieces):
            response.readline()
        response.close()  # the client leaves
        listening.until(lambda name=name: name in ended(listening))
        kind = ended(listening)[name]
        ends.add(kind)
        # The server hears of a client that left when its generator is closed, which it leaves to the garbage
        # collector where the client left while a line was being sent: such a request does run to its end.
        assert kind == "aborted" or len(told(listening)[name]) == LONG
        assert len(told(listening)[name]) <= LONG
    assert "aborted" in ends
    assert any(told(listening)[f"gone-{i}"] for i in range(6))


def test_each_model_that_is_loaded_is_a_replica(
    serve: Callable[..., Served], listening: Listening, folders: list[Path]
) -> None:
    served = serve("--model-timeout", "3")
    for turn in range(2):
        for i, folder in enumerate(folders):
            name = f"turn-{turn}-{i}"
            answer = served.complete(folder, [5, 6, 7], 4, name)
            listening.until(lambda name=name: len(told(listening)[name]) == 4)
            assert told(listening)[name] == answer
    layers = {frame.head_write.shape[0] for frame in listening.frames}
    assert layers == {2, 3}
    with served.post("/reset", {}, "reset"):
        pass  # unloads every model
    answer = served.complete(folders[0], [5, 6, 7], 4, "again")
    listening.until(lambda: len(told(listening)["again"]) == 4)
    assert told(listening)["again"] == answer
    assert len(listening.replicas) >= 3
