"""Continuous batching: each token of each request, whatever shares the row with it, and what became of it."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

torch: Any = pytest.importorskip("torch")
transformers: Any = pytest.importorskip("transformers")

from tests.agent.reference import BY_NAME  # noqa: E402

from fulgurite.agent import InMemoryExporter, instrument  # noqa: E402
from fulgurite.agent.engines import packed as requests  # noqa: E402
from fulgurite.agent.engines.continuous import CONTINUOUS  # noqa: E402
from fulgurite.wire.frame import Frame, RequestRef  # noqa: E402

NEW = 7
CLOSE = ("head_write", "ffn_write", "residual_norm", "logprob", "entropy", "lens_prob")
CONTRIBUTED = ("head_contribution", "ffn_contribution", "embedding_contribution", "logit_centered")


def build() -> Any:
    model = BY_NAME["llama"].build()
    model.generation_config.eos_token_id = model.config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    return model


def texts(*lengths: int, seed: int = 0) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(2, 90, length).tolist() for length in lengths]


def configured(**options: Any) -> Any:
    given = {"page_size": 8, "num_blocks": 64, "max_batch_tokens": 24, "max_requests_per_batch": 16}
    return transformers.ContinuousBatchingConfig(**{**given, **options})


def settings(**options: Any) -> Any:
    return transformers.GenerationConfig(
        **{"max_new_tokens": NEW, "do_sample": False, "eos_token_id": -1, "pad_token_id": 0, **options}
    )


def by_request(exporter: Any) -> dict[tuple[str, int], list[Frame]]:
    found: dict[tuple[str, int], list[Frame]] = defaultdict(list)
    for frame in exporter.frames:
        found[frame.request_id, frame.sequence].append(frame)
    return found


def plain(prompts: list[list[int]], level: str = "heads") -> list[list[Frame]]:
    """The frames of each prompt, generated alone."""
    model, found = build(), []
    for prompt in prompts:
        exporter: Any = InMemoryExporter()
        with instrument(model, exporter=exporter, level=level):
            model.generate(torch.tensor([prompt]), max_new_tokens=NEW, do_sample=False)
        found.append(exporter.frames)
    return found


def assert_same(found: list[Frame], wanted: list[Frame], channels: tuple[str, ...] = CLOSE) -> None:
    assert [(f.position, f.token_id, f.phase) for f in found] == [
        (w.position, w.token_id, w.phase) for w in wanted
    ]
    for one, other in zip(found, wanted, strict=True):
        assert one.kv_tokens.tolist() == other.kv_tokens.tolist()
        for name in channels:
            got, ought = getattr(one, name), getattr(other, name)
            if ought is None:
                assert got is None, name
                continue
            size = float(np.nanmax(np.abs(ought)))
            np.testing.assert_allclose(got, ought, rtol=0, atol=1e-3 * size, err_msg=name)


@pytest.mark.parametrize("level", ["pulse", "heads", "deep"])
def test_packed_requests_give_the_frames_of_plain_generate(level: str) -> None:
    prompts = texts(5, 17, 30, 9, 12)  # the row holds 24 tokens: prompts are split
    model = build()
    alone = build().generate_batch(prompts, settings(), configured())
    exporter: Any = InMemoryExporter()
    with instrument(model, exporter=exporter, level=level) as agent:
        outputs = model.generate_batch(prompts, settings(), configured())
        assert agent.stats().errors == {}
    assert {k: v.generated_tokens for k, v in outputs.items()} == {
        k: v.generated_tokens for k, v in alone.items()
    }
    frames = by_request(exporter)
    assert set(frames) == {(name, 0) for name in outputs}
    wanted = plain(prompts, level)
    for name, output in outputs.items():
        (place,) = [i for i, prompt in enumerate(prompts) if prompt == output.prompt_ids]
        assert [frame.token_id for frame in frames[name, 0]] == output.generated_tokens
        assert_same(frames[name, 0], wanted[place], CLOSE + (CONTRIBUTED if level == "deep" else ()))
    assert max(frame.batch_size for frame in exporter.frames) > 1
    assert all(frame.attention_entropy is None for frame in exporter.frames)
    kinds = [(event.request_id, event.kind, event.reason) for event in exporter.events]
    assert sorted(kinds) == sorted(
        [(name, "started", "") for name in outputs] + [(name, "finished", "length") for name in outputs]
    )


def test_a_shared_prefix_is_not_computed_and_the_frames_are_the_same() -> None:
    start = texts(16)[0]
    prompts = [start + rest for rest in texts(5, 6, 7, seed=1)]
    model = build()
    exporter: Any = InMemoryExporter()
    fed: list[int] = []
    handle = model.register_forward_pre_hook(
        lambda _, __, kwargs: fed.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    with instrument(model, exporter=exporter) as agent:
        with model.continuous_batching_context_manager(
            generation_config=settings(), continuous_batching_config=configured()
        ) as manager:
            for i, prompt in enumerate(prompts):
                manager.add_request(prompt, request_id=f"shared-{i}")
                assert manager.get_result(timeout=60).request_id == f"shared-{i}"
        assert agent.stats().errors == {}
    handle.remove()
    assert sum(fed) < sum(map(len, prompts)) + 3 * (NEW - 1), "nothing was shared"
    frames = by_request(exporter)
    for i, wanted in enumerate(plain(prompts)):
        assert_same(frames[f"shared-{i}", 0], wanted)


def test_forks_of_a_request_are_its_sequences() -> None:
    prompts = texts(9, 11)
    model = build()
    exporter: Any = InMemoryExporter()
    with instrument(model, exporter=exporter) as agent:
        outputs = model.generate_batch(
            prompts, settings(num_return_sequences=3, do_sample=True), configured()
        )
        assert agent.stats().errors == {}
    frames = by_request(exporter)
    assert {sequence for _, sequence in frames} == {0, 1, 2}
    for name, output in outputs.items():
        base, _, child = name.partition("__child#")
        found = frames[base, 1 + int(child) if child else 0]
        assert [frame.token_id for frame in found] == output.generated_tokens
        assert [frame.position for frame in found] == list(
            range(len(output.prompt_ids), len(output.prompt_ids) + NEW)
        )
    assert sorted(event.kind for event in exporter.events) == ["finished"] * 2 + ["started"] * 2
    assert {event.sequences for event in exporter.events} == {3}


def test_requests_that_are_put_back_go_on_where_they_were() -> None:
    prompts = texts(20, 21, 22, 23)
    model = build()
    exporter: Any = InMemoryExporter()
    tight = configured(num_blocks=12, max_batch_tokens=64, cpu_offload_space=0.0, allow_block_sharing=False)
    with instrument(model, exporter=exporter) as agent:
        outputs = model.generate_batch(prompts, settings(max_new_tokens=16), tight)
        assert agent.stats().errors == {}
    kinds = [event.kind for event in exporter.events]
    assert kinds.count("preempted") >= 1, "nothing was put back"
    assert kinds.count("started") == kinds.count("finished") == 4
    frames = by_request(exporter)
    for name, output in outputs.items():
        found = frames[name, 0]
        assert [frame.token_id for frame in found] == output.generated_tokens
        assert [frame.position for frame in found] == [len(output.prompt_ids) + i for i in range(16)]


def until(condition: Callable[[], Any]) -> None:
    limit = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.01)


def test_a_cancelled_request_ends_as_aborted() -> None:
    model = build()
    exporter: Any = InMemoryExporter()
    with (
        instrument(model, exporter=exporter),
        model.continuous_batching_context_manager(
            generation_config=settings(max_new_tokens=2000),
            continuous_batching_config=configured(num_blocks=512),
        ) as manager,
    ):
        manager.add_request(texts(6)[0], request_id="long")
        until(lambda: len(exporter.frames) > 3)
        manager.cancel_request("long")
        until(lambda: exporter.events[-1].kind == "aborted")
    assert [(e.kind, e.reason) for e in exporter.events] == [("started", ""), ("aborted", "cancelled")]


@contextmanager
def observed() -> Iterator[tuple[Any, Any]]:
    """A manager that takes requests, and what is told of them."""
    model = build()
    exporter: Any = InMemoryExporter()
    batching = model.continuous_batching_context_manager(
        generation_config=settings(), continuous_batching_config=configured()
    )
    with instrument(model, exporter=exporter), batching as manager:
        yield manager, exporter


@pytest.mark.parametrize("is_first", [True, False])
def test_a_request_that_is_cancelled_before_its_first_step_ends_as_aborted(is_first: bool) -> None:
    with observed() as (manager, exporter):
        if not is_first:
            manager.add_request(texts(6)[0], request_id="before")
            until(lambda: exporter.events and exporter.events[-1].kind == "finished")
        take = manager.input_queue.get_nowait

        def take_and_cancel() -> Any:  # so that both are taken together, requests first
            state = take()
            if state.request_id == "early":
                manager.cancel_request("early")
            return state

        manager.input_queue.get_nowait = take_and_cancel
        manager.add_request(texts(6)[0], request_id="early")
        until(lambda: exporter.events and exporter.events[-1].request_id == "early")
        until(lambda: exporter.events[-1].kind == "aborted")
        manager.add_request(texts(6)[0], request_id="after")
        until(lambda: exporter.events[-1].kind == "finished")
    told = [(e.kind, e.reason) for e in exporter.events if e.request_id == "early"]
    assert told == [("started", ""), ("aborted", "cancelled")]
    assert len({frame.request_id for frame in exporter.frames}) == 2 - is_first


def test_a_request_that_fails_before_its_first_step_ends_as_aborted() -> None:
    with observed() as (manager, exporter):
        manager.logit_processor.check_kwargs = refuse
        manager.add_request(texts(6)[0], request_id="bad")
        until(lambda: exporter.events and exporter.events[-1].kind == "aborted")
    assert [(e.request_id, e.kind, e.reason) for e in exporter.events] == [
        ("bad", "started", ""), ("bad", "aborted", "ValueError"),
    ]  # fmt: skip


def refuse(given: Any) -> None:
    raise ValueError(f"not understood: {given}")


def test_sampling_and_an_end_token_are_told() -> None:
    model = build()
    exporter: Any = InMemoryExporter()
    first = model.generate_batch(texts(6), settings(), configured())["req_0"].generated_tokens
    with instrument(model, exporter=exporter):
        outputs = model.generate_batch(texts(6), settings(eos_token_id=first[2]), configured())
        model.generate_batch(texts(6), settings(), configured())
    assert outputs["req_0"].generated_tokens == first[:3]
    ends = [(e.request_id, e.reason) for e in exporter.events if e.kind == "finished"]
    assert ends == [("req_0", "stop"), ("req_0#2", "length")]


def test_generate_and_continuous_batching_take_turns() -> None:
    prompts = texts(6, 9)
    model = build()
    exporter: Any = InMemoryExporter()
    with instrument(model, exporter=exporter, level="deep") as agent:
        model.generate_batch(prompts, settings(), configured())
        model.set_attn_implementation("sdpa")
        model.generate(torch.tensor(prompts[:1]), max_new_tokens=NEW, do_sample=False)
        assert agent.stats().errors == {}
    last = exporter.frames[-NEW:]
    assert all(frame.attention_entropy is not None for frame in last)
    wanted = plain(prompts[:1], "deep")[0]
    assert_same(last, wanted)


def test_nothing_is_wrapped_when_nobody_observes() -> None:
    from transformers.generation.continuous_batching import continuous_api as api

    before = dict(vars(api.ContinuousBatchProcessor)), dict(vars(api.ContinuousBatchingManager))
    agents = [instrument(build(), exporter=InMemoryExporter()) for _ in range(2)]
    assert vars(api.ContinuousBatchProcessor)["update_batch"] is not before[0]["update_batch"]
    agents[0].close()
    agents[1].close()
    assert (dict(vars(api.ContinuousBatchProcessor)), dict(vars(api.ContinuousBatchingManager))) == before
    assert CONTINUOUS.engine_of(build()) is None


def test_experts_are_told_in_packed_rows_too() -> None:
    prompts = texts(5, 9)
    found: list[dict[str, list[Frame]]] = []
    for packed in (True, False):
        model = BY_NAME["mixtral"].build()
        model.generation_config.eos_token_id = model.config.eos_token_id = None
        exporter: Any = InMemoryExporter()
        with instrument(model, exporter=exporter) as agent:
            if packed:
                outputs = model.generate_batch(prompts, settings(), configured())
                names = [name for p in prompts for name, o in outputs.items() if o.prompt_ids == p]
            else:
                for prompt in prompts:
                    model.generate(torch.tensor([prompt]), max_new_tokens=NEW, do_sample=False)
                names = list(dict.fromkeys(frame.request_id for frame in exporter.frames))
            assert agent.stats().errors == {}
        frames = by_request(exporter)
        found.append({str(len(p)): frames[name, 0] for p, name in zip(prompts, names, strict=True)})
    for length, wanted in found[1].items():
        for one, other in zip(found[0][length], wanted, strict=True):
            assert one.token_id == other.token_id
            np.testing.assert_array_equal(one.expert_ids, other.expert_ids)
            np.testing.assert_allclose(one.expert_weights, other.expert_weights, atol=1e-4)


def test_traces_of_requests_that_never_begin_make_room_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requests, "_MOST_REFS", 2)
    engine: Any = None
    kept = requests.Packed(engine, engine)
    for name in ("first", "second", "third"):
        kept.asked(name, RequestRef(name))
    assert list(kept._refs) == ["second", "third"]
