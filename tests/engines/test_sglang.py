"""SGLang, the real server over HTTP: each token of each response is in the frames."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import serving
from checks import error, look_error, neurons_error, plain

pytest.importorskip("vllm", reason="make test-engines runs these, in the environment of vLLM")

PYTHON = Path(__file__).parents[2] / "build" / "sglang" / "bin" / "python"
pytestmark = pytest.mark.skipif(
    not PYTHON.exists(), reason="SGLang is not installed here: make test-engines builds build/sglang"
)
TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
REQUESTS = 64
CHANNELS = ("head_write", "ffn_write", "residual_norm", "head_contribution", "ffn_contribution")
ROOM = 640  # positions of the key-value cache: too few for all at once


class Served:
    """An SGLang server, and what a collector has of it."""

    def __init__(self, server: serving.Server, watcher: serving.Watcher | None) -> None:
        self.server = server
        self.watcher: Any = watcher

    def generate(
        self, name: str, prompt: list[int], tokens: int, *, to_the_end: bool = True, **headers: str
    ) -> list[int]:
        """Token ids of a response, greedily."""
        params = {"max_new_tokens": tokens, "temperature": 0, "ignore_eos": to_the_end}
        body = {"rid": name, "input_ids": prompt, "sampling_params": params}
        found: list[int] = self.server.post("/generate", body, **headers)["output_ids"]
        return found


@pytest.fixture(scope="module")
def served(model: Path, folder: Path) -> Iterator[Served]:
    """Observed at ``deep``, each token."""
    with serving.collector(folder) as (_, port):
        env = {
            "FULGURITE_ENDPOINT": f"127.0.0.1:{port}", "FULGURITE_TOKENS": "ids", "FULGURITE_BUDGET": "none",
            "FULGURITE_LEVEL": "deep", "FULGURITE_DEEP_RATIO": "1", "FULGURITE_STRICT": "1",
        }  # fmt: skip
        with _sglang(folder, model, **env) as server:
            watcher = serving.Watcher(port)
            yield Served(server, watcher)
            watcher.stop()
            assert "was left out" not in server.process.said


def _sglang(folder: Path, model: Path, **env: str) -> Any:
    return serving.listening(
        folder / "sglang.log",
        [str(PYTHON), "-m", "sglang.launch_server", "--model-path", str(model), "--device", "cpu",
         "--attention-backend", "torch_native", "--sampling-backend", "pytorch", "--grammar-backend", "none",
         "--disable-cuda-graph", "--mem-fraction-static", "0.6", "--dtype", "float32",
         "--max-total-tokens", str(ROOM), "--schedule-conservativeness", "0.01", "--host", "127.0.0.1"],
        {"HF_HUB_OFFLINE": "1", **env},
    )  # fmt: skip


def _tokens(served: Served) -> dict[str, list[int]]:
    return {name: [f.token_id for f in frames] for name, frames in served.watcher.by_request().items()}


def test_frames_are_those_of_plain_generate(served: Served, model: Path) -> None:
    served.generate("first", [5, 6, 7, 8], 2)
    errors: dict[str, float] = {}
    for i, prompt in enumerate(([11, 12, 13, 14, 15], [300], list(range(40, 90)))):
        name = f"plain-{i}"
        answer = served.generate(name, prompt, 16)
        frames = served.watcher.of(name, 16)
        assert [f.token_id for f in frames] == answer
        wanted = plain(model, "float32", prompt, 16)
        assert [f.token_id for f in wanted] == answer
        for frame, other in zip(frames, wanted, strict=True):
            assert (frame.position, frame.phase) == (other.position, other.phase)
            assert list(frame.kv_tokens) == list(other.kv_tokens)
            assert abs(float(frame.logprob) - float(other.logprob)) < 1e-3
            for channel in (
                "head_write",
                "ffn_write",
                "residual_norm",
                "head_contribution",
                "ffn_contribution",
            ):
                found, should = getattr(frame, channel), getattr(other, channel)
                assert found is not None, channel
                shape = (1, -1) if found.ndim == 1 or channel == "residual_norm" else found.shape
                off = error(found.reshape(shape), should.reshape(shape))
                errors[channel] = max(errors.get(channel, 0.0), off)
            errors["looks"] = max(errors.get("looks", 0.0), look_error(frame, other))
            errors["neurons"] = max(errors.get("neurons", 0.0), neurons_error(frame, other))
    assert max(errors.values()) < 2e-3, errors


def test_many_requests_at_once_are_told_apart_though_some_are_put_back(served: Served) -> None:
    rng = np.random.default_rng(0)
    asked = {
        f"ask-{i}": (rng.integers(2, 900, rng.integers(3, 60)).tolist(), int(rng.integers(40, 90)))
        for i in range(REQUESTS)
    }
    with ThreadPoolExecutor(REQUESTS) as pool:
        futures = {  # of what may end early the server takes in more than it has room for
            name: pool.submit(served.generate, name, *what, to_the_end=False) for name, what in asked.items()
        }
        answers = {name: future.result() for name, future in futures.items()}
    total = sum(map(len, answers.values()))
    served.watcher.until(lambda: sum(len(t) for name, t in _tokens(served).items() if name in asked) >= total)
    found = {name: tokens for name, tokens in _tokens(served).items() if name in asked}
    assert found == answers, "none missing, none foreign"
    others = set(_tokens(served)) - {*asked, "first", "plain-0", "plain-1", "plain-2"}
    assert len(others) <= 1, "the server asks itself one thing when it starts"
    assert "Retract requests" in served.server.process.said, "the cache was large enough for all"
    frames = served.watcher.by_request()["ask-0"]
    first = len(asked["ask-0"][0])
    assert [f.position for f in frames] == list(range(first, first + len(answers["ask-0"])))
    assert max(f.batch_size for name in asked for f in served.watcher.by_request()[name]) > 1
    for name in asked:
        assert [event.kind for event in served.watcher.ends(name)] == ["started", "finished"]


def test_the_trace_reaches_the_frames_and_nothing_else(served: Served) -> None:
    header = f"00-{TRACE}-{SPAN}-01"
    answer = served.generate("traced", [5, 6, 7], 4, traceparent=header)
    again = served.generate("again", [5, 6, 7], 4)
    assert answer == again
    frames = served.watcher.of("traced", 4)
    assert {(f.trace_id, f.span_id) for f in frames} == {(TRACE, SPAN)}
    assert {f.trace_id for f in served.watcher.of("again", 4)} == {""}


def test_a_client_that_leaves_ends_its_request_as_aborted(served: Served) -> None:
    seen = len(served.watcher.events)
    served.server.abandon([9, 10, 11], 0.2, max_tokens=400, ignore_eos=True)
    served.watcher.until(lambda: any(e.kind == "aborted" for e in served.watcher.events[seen:]))


def test_what_is_generated_is_the_same_without_us(served: Served, model: Path, tmp_path: Path) -> None:
    prompts = ([11, 12, 13, 14, 15], list(range(40, 90)))
    watched = [served.generate(f"beside-{i}", prompt, 24) for i, prompt in enumerate(prompts)]
    with _sglang(tmp_path, model) as server:
        alone = Served(server, None)
        assert [alone.generate(f"b{i}", prompt, 24) for i, prompt in enumerate(prompts)] == watched
        assert "fulgurite" not in server.process.said
