"""The guest leaves the host as it was: no trace, no exception, no difference in what the model says."""

from __future__ import annotations

import copy
import gc
import io
import logging
import os
import pickle
import subprocess
import sys
import threading
import time
import types
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch: Any = pytest.importorskip("torch")
transformers: Any = pytest.importorskip("transformers")

from tests.agent.reference import BY_NAME, VOCAB, prompts, trace_of  # noqa: E402

from fulgurite.agent import Agent, InMemoryExporter, instrument  # noqa: E402

GREEDY = {"max_new_tokens": 4, "do_sample": False}


@pytest.fixture
def model() -> Any:
    return BY_NAME["llama"].build()


def tokens_of(exporter: InMemoryExporter) -> list[int]:
    return [frame.token_id for frame in exporter.frames]


def test_importing_the_agent_imports_nothing_heavy() -> None:
    code = (
        "import sys, fulgurite.agent as agent\n"
        "assert agent.instrument and agent.InMemoryExporter\n"
        "heavy = {'torch', 'transformers', 'redis', 'vtkmodules', 'trame', 'grpc'} & set(sys.modules)\n"
        "print(sorted(heavy))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "[]"


def test_logits_are_bit_identical_with_and_without_the_agent(model: Any) -> None:
    ids = prompts(2, 7)
    with torch.no_grad():
        alone = model(ids).logits
        with instrument(model, exporter=InMemoryExporter()):
            observed = model(ids).logits
    assert torch.equal(alone, observed)


def test_a_request_starts_before_its_first_token_is_computed(model: Any) -> None:
    exporter = InMemoryExporter()
    with instrument(model, exporter=exporter):
        model.generate(torch.arange(3, 8)[None], max_new_tokens=2, do_sample=False)
    (started,) = [event for event in exporter.events if event.kind == "started"]
    assert started.time_ns <= exporter.frames[0].started_ns < exporter.frames[0].ended_ns


def test_the_callers_own_stopping_criteria_are_called_and_left_alone(model: Any) -> None:
    class Stop(transformers.StoppingCriteria):  # type: ignore[misc]
        def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
            return torch.full((len(input_ids),), input_ids.shape[1] >= 9)

    criteria = transformers.StoppingCriteriaList([Stop()])
    exporter: Any = InMemoryExporter()
    with instrument(model, exporter=exporter):
        found = model.generate(prompts(1, 7), max_new_tokens=9, do_sample=False, stopping_criteria=criteria)
    assert found.shape[1] == 9
    assert len(criteria) == 1
    assert len(exporter.frames) == 2


def test_a_closed_agent_is_closed_and_may_be_closed_again(model: Any) -> None:
    before = trace_of(model)
    agent = instrument(model, exporter=InMemoryExporter())
    assert trace_of(model) != before
    agent.close()
    agent.close()
    assert trace_of(model) == before
    assert agent.level == "off"


@pytest.mark.parametrize("first", [0, 1])
def test_two_agents_see_the_same_and_may_be_closed_in_any_order(model: Any, first: int) -> None:
    before = trace_of(model)
    exporters = [InMemoryExporter(), InMemoryExporter()]
    agents = [instrument(model, exporter=exporter) for exporter in exporters]
    model.generate(prompts(1, 5), **GREEDY)
    agents[first].close()
    model.generate(prompts(1, 5, seed=2), **GREEDY)
    agents[1 - first].close()
    assert trace_of(model) == before
    assert len(exporters[first].frames) == 4
    assert len(exporters[1 - first].frames) == 8
    assert tokens_of(exporters[first]) == tokens_of(exporters[1 - first])[:4]


def test_an_agent_that_was_closed_leaves_somebody_elses_wrapper_in_place(model: Any) -> None:
    agent = instrument(model, exporter=InMemoryExporter())
    ours = model.generate
    calls: list[int] = []

    def theirs(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return ours(*args, **kwargs)

    model.generate = theirs
    agent.close()
    assert model.generate is theirs
    assert model.generate(prompts(1, 5), **GREEDY).shape[1] == 9
    assert calls == [1]


def test_a_copy_of_an_observed_model_is_not_observed(model: Any) -> None:
    exporter: Any = InMemoryExporter()
    with instrument(model, exporter=exporter):
        wanted = model.generate(prompts(1, 5), **GREEDY)
        for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert torch.equal(copied.generate(prompts(1, 5), **GREEDY), wanted)
            assert isinstance(copied.generate, types.MethodType)
            assert copied.generate.__self__ is copied
        assert len(exporter.frames) == 4


def test_an_observed_model_can_be_saved_and_loaded(model: Any, tmp_path: Path) -> None:
    with instrument(model, exporter=InMemoryExporter()):
        model.save_pretrained(tmp_path)
        buffer = io.BytesIO()
        torch.save(model, buffer)
        wanted = model.generate(prompts(1, 5), **GREEDY)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    buffer.seek(0)
    whole = torch.load(buffer, weights_only=False)
    for other in (loaded, whole):
        assert torch.equal(other.generate(prompts(1, 5), **GREEDY), wanted)


def test_threads_that_generate_at_the_same_time_are_told_apart(model: Any) -> None:
    exporter = InMemoryExporter()
    found: dict[int, Any] = {}
    texts = [prompts(1, 4 + i, seed=i) for i in range(4)]

    def work(i: int) -> None:
        found[i] = model.generate(texts[i], max_new_tokens=6, do_sample=False)[
            0, texts[i].shape[1] :
        ].tolist()

    with instrument(model, exporter=exporter):
        threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    requests: dict[str, list[Any]] = {}
    for frame in exporter.frames:
        requests.setdefault(frame.request_id, []).append(frame)
    assert sorted([f.token_id for f in frames] for frames in requests.values()) == sorted(found.values())
    for frames in requests.values():
        start = frames[0].position
        assert [f.position for f in frames] == list(range(start, start + 6))


def test_levels_go_down_and_up_to_the_ceiling_and_no_further(model: Any) -> None:
    exporter: Any = InMemoryExporter()
    with instrument(model, level="heads", exporter=exporter) as agent:
        with pytest.raises(ValueError, match="above the ceiling 'heads'"):
            agent.set_level("deep")
        with pytest.raises(ValueError, match="level must be one of off, pulse, heads, deep, not 'loud'"):
            agent.set_level("loud")
        model.generate(prompts(1, 5), **GREEDY)
        agent.set_level("pulse")
        model.generate(prompts(1, 5), **GREEDY)
        agent.set_level("heads")
        model.generate(prompts(1, 5), **GREEDY)
    assert [frame.level for frame in exporter.frames] == ["heads"] * 4 + ["pulse"] * 4 + ["heads"] * 4
    assert [frame.head_write is None for frame in exporter.frames] == [False] * 4 + [True] * 4 + [False] * 4


def test_a_pass_that_began_while_it_was_off_is_not_taken_for_a_compiled_one(model: Any) -> None:
    exporter, fed = InMemoryExporter(), []

    def switches(ids: torch.Tensor, _: Any, **__: Any) -> torch.Tensor:
        fed.append(len(fed))
        agent.set_level(("off", "heads")[len(fed) % 4 // 2])
        return torch.zeros(len(ids), dtype=torch.bool)

    with instrument(model, exporter=exporter) as agent:
        model.generate(prompts(1, 5), **{**GREEDY, "max_new_tokens": 12}, stopping_criteria=[switches])
        assert agent.stats().errors == {}
        assert "head_write" not in agent.stats().unavailable
    steps = [frame.position for frame in exporter.frames]
    assert 0 < len(steps) < 12
    assert all(frame.head_write is not None for frame in exporter.frames if frame.level == "heads")


@pytest.mark.parametrize("how", ["pause", "off"])
def test_off_means_no_hook_at_all(model: Any, how: str) -> None:
    before = trace_of(model)
    exporter: Any = InMemoryExporter()
    with instrument(model, exporter=exporter) as agent:
        (agent.pause if how == "pause" else lambda: agent.set_level("off"))()
        assert trace_of(model) == before
        model.generate(prompts(1, 5), **GREEDY)
        assert exporter.frames == []
        (agent.resume if how == "pause" else lambda: agent.set_level("heads"))()
        model.generate(prompts(1, 5), **GREEDY)
        assert len(exporter.frames) == 4


@pytest.mark.parametrize("variable", ["FULGURITE_DISABLED", "OTEL_SDK_DISABLED"])
def test_the_environment_switches_the_agent_off(
    model: Any, variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, "true")
    before, exporter = trace_of(model), InMemoryExporter()
    with instrument(model, exporter=exporter) as agent:
        model.generate(prompts(1, 5), **GREEDY)
        assert trace_of(model) == before
        assert agent.level == "off"
    assert exporter.frames == []


def test_what_is_not_a_model_is_refused() -> None:
    with pytest.raises(TypeError, match="observes a torch model of transformers, not 'str'"):
        instrument("meta-llama/Llama-3-8B", exporter=InMemoryExporter())


def test_an_encoder_decoder_is_refused_clearly() -> None:
    config = transformers.T5Config(d_model=16, d_kv=4, d_ff=16, num_layers=1, num_heads=2, vocab_size=VOCAB)
    with pytest.raises(
        ValueError, match="T5ForConditionalGeneration is an encoder-decoder; only decoder-only"
    ):
        instrument(transformers.T5ForConditionalGeneration(config), exporter=InMemoryExporter())


def test_a_model_without_attention_gives_what_is_sound_and_one_line(caplog: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(0)
    config = transformers.MambaConfig(
        hidden_size=32, num_hidden_layers=2, vocab_size=VOCAB, state_size=4, eos_token_id=None
    )
    model = transformers.MambaForCausalLM(config).eval()
    exporter: Any = InMemoryExporter()
    with caplog.at_level(logging.WARNING, "fulgurite"), instrument(model, exporter=exporter):
        output = model.generate(prompts(1, 5), **GREEDY)
    assert tokens_of(exporter) == output[0, 5:].tolist()
    assert exporter.frames[0].head_write is None
    assert exporter.frames[0].logprob is not None
    assert dict(exporter.topology.unavailable)["head_write"].startswith("no attention heads")
    assert exporter.topology.layer_heads == (0, 0)
    assert len([r for r in caplog.records if "head_write" in r.getMessage()]) == 1


def _with_a_failing_probe(model: Any) -> Any:
    """A layer whose feed-forward part gives a mapping, which our probe cannot take."""

    layer = model.model.layers[1]
    inner = layer.mlp

    class Mapping(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: Any) -> Any:
            return Result(self.inner(x))

    class Result(dict):  # type: ignore[type-arg]
        def __init__(self, value: Any) -> None:
            super().__init__(value=value)

        def __radd__(self, other: Any) -> Any:
            return other + self["value"]

    layer.mlp = Mapping()
    return model


def test_a_probe_that_fails_is_swallowed_counted_and_said_once(
    model: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("FULGURITE_STRICT", "0")
    _with_a_failing_probe(model)
    wanted = model.generate(prompts(1, 5), **GREEDY)
    exporter: Any = InMemoryExporter()
    with caplog.at_level(logging.WARNING, "fulgurite"), instrument(model, exporter=exporter) as agent:
        assert torch.equal(model.generate(prompts(1, 5), **GREEDY), wanted)
        errors = agent.stats().errors
    assert errors["probe:KeyError"] >= 1
    assert tokens_of(exporter) == wanted[0, 5:].tolist()
    assert len([r for r in caplog.records if "probe failed" in r.getMessage()]) == 1
    assert (
        exporter.topology.unavailable == ()
    )  # the last linear map in it says the same, as the values showed
    assert not np.isnan(exporter.frames[-1].ffn_write).any()


def test_in_strict_mode_the_same_failure_is_raised(model: Any) -> None:
    _with_a_failing_probe(model)
    with instrument(model, exporter=InMemoryExporter()), pytest.raises(KeyError):
        model.generate(prompts(1, 5), **GREEDY)


def test_a_failing_generate_is_the_hosts_own_and_the_request_is_aborted(model: Any) -> None:
    class Fails(transformers.LogitsProcessor):  # type: ignore[misc]
        def __call__(self, input_ids: Any, scores: Any) -> Any:
            if input_ids.shape[1] == 7:
                raise RuntimeError("the host's own")
            return scores

    exporter: Any = InMemoryExporter()
    with instrument(model, exporter=exporter), pytest.raises(RuntimeError, match="the host's own"):
        model.generate(prompts(1, 5), logits_processor=transformers.LogitsProcessorList([Fails()]), **GREEDY)
    assert [event.kind for event in exporter.events] == ["started", "aborted"]
    assert len(exporter.frames) == 2


def test_a_generate_that_fails_before_its_first_token_is_started_and_aborted_without_frames(
    model: Any,
) -> None:
    class Fails(transformers.generation.BaseStreamer):  # type: ignore[misc]
        def put(self, value: Any) -> None:
            raise RuntimeError("the host's own")

        def end(self) -> None: ...

    exporter: Any = InMemoryExporter()
    with instrument(model, exporter=exporter), pytest.raises(RuntimeError, match="the host's own"):
        model.generate(prompts(1, 5), streamer=Fails(), **GREEDY)
    assert [(event.kind, event.prompt_tokens, event.reason) for event in exporter.events] == [
        ("started", 5, ""),
        ("aborted", 5, "RuntimeError"),
    ]
    assert exporter.frames == []


def test_weights_that_change_are_noticed(model: Any) -> None:
    exporter: Any = InMemoryExporter()
    with instrument(model, exporter=exporter):
        model.generate(prompts(1, 5), max_new_tokens=1, do_sample=False)
        with torch.no_grad():
            for layer in model.model.layers:
                layer.self_attn.o_proj.weight.zero_()
        model.generate(prompts(1, 5), max_new_tokens=1, do_sample=False)
    first, second = exporter.frames
    assert (first.head_write > 0).all()
    assert (second.head_write == 0).all()


def test_training_with_gradients_works_while_observed(model: Any) -> None:
    model.train()
    with instrument(model, exporter=InMemoryExporter()):
        model(prompts(2, 6), labels=prompts(2, 6)).loss.backward()
    assert model.model.layers[0].self_attn.o_proj.weight.grad.abs().sum() > 0


def test_an_observed_model_can_be_collected(model: Any) -> None:
    inner = BY_NAME["llama"].build()
    instrument(inner, exporter=InMemoryExporter())
    inner.generate(prompts(1, 5), **GREEDY)
    reference = weakref.ref(inner)
    del inner
    gc.collect()
    assert reference() is None


def test_the_link_of_a_model_that_is_gone_ends_by_itself(model: Any) -> None:
    def links() -> set[threading.Thread]:
        return {thread for thread in threading.enumerate() if thread.name == "fulgurite-link"}

    before = links()
    inner = BY_NAME["llama"].build()
    instrument(inner, endpoint="127.0.0.1:9")
    inner.generate(prompts(1, 5), **GREEDY)
    (ours,) = links() - before
    del inner
    gc.collect()
    ours.join(10)
    assert not ours.is_alive()


def test_over_its_budget_the_agent_goes_down_a_level_and_says_so_once(
    model: Any, caplog: pytest.LogCaptureFixture
) -> None:
    exporter: Any = InMemoryExporter()
    with (
        caplog.at_level(logging.WARNING, "fulgurite"),
        instrument(model, level="deep", budget=1e-6, exporter=exporter) as agent,
    ):
        deadline = time.monotonic() + 60
        while agent.level != "pulse" and time.monotonic() < deadline:
            model.generate(prompts(1, 5), max_new_tokens=8, do_sample=False)
        ratio, ceiling = agent.stats().overhead_ratio, agent.stats().ceiling
        model.generate(prompts(1, 5, seed=3), **GREEDY)
        assert exporter.frames[-1].level == "pulse"
        assert exporter.frames[-1].head_write is None
        agent.set_level("deep")
        model.generate(prompts(1, 5), **GREEDY)
        assert exporter.frames[-1].level == "deep"
    levels = [frame.level for frame in exporter.frames]
    assert list(dict.fromkeys(levels)) == ["deep", "heads", "pulse"]
    assert 0 < ratio < 1
    assert ceiling == "deep"
    said = [r.getMessage() for r in caplog.records if "over the budget" in r.getMessage()]
    assert [line.split("lowered to ")[1].split()[0] for line in said] == ["heads", "pulse"]


def test_within_its_budget_the_level_stays(model: Any) -> None:
    exporter: Any = InMemoryExporter()
    with instrument(model, budget=1.0, exporter=exporter) as agent:
        since = time.monotonic()
        while time.monotonic() < since + 1.3:
            model.generate(prompts(1, 5), max_new_tokens=8, do_sample=False)
        assert agent.level == "heads"
        assert 0 < agent.stats().overhead_ratio < 1


class _Moody(torch.nn.Module):  # type: ignore[misc]
    """A feed-forward part that from its third call on gives what our probe cannot take."""

    class Result(dict):  # type: ignore[type-arg]
        def __init__(self, value: Any) -> None:
            super().__init__(value=value)

        def __radd__(self, other: Any) -> Any:
            return other + self["value"]

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner = inner
        self.calls = 0

    def forward(self, x: Any) -> Any:
        self.calls += 1
        found = self.inner(x)
        return found if self.calls < 3 else self.Result(found)


def test_a_probe_that_fails_three_times_is_taken_out_and_the_rest_goes_on(
    model: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("FULGURITE_STRICT", "0")
    model.model.layers[1].mlp = _Moody(model.model.layers[1].mlp)
    wanted = model.generate(prompts(1, 5), max_new_tokens=10, do_sample=False)
    model.model.layers[1].mlp.calls = 0
    exporter: Any = InMemoryExporter()
    with caplog.at_level(logging.WARNING, "fulgurite"), instrument(model, exporter=exporter) as agent:
        hooks = len(model.model.layers[1].mlp._forward_hooks)
        found = model.generate(prompts(1, 5), max_new_tokens=10, do_sample=False)
        assert torch.equal(found, wanted)
        errors = agent.stats().errors
        assert len(model.model.layers[1].mlp._forward_hooks) < hooks
    assert errors["probe:KeyError"] == 3
    assert errors["probe:taken_out"] == 1
    assert [frame.head_write is None for frame in exporter.frames] == [False] * 2 + [True] * 8
    assert all(frame.entropy is not None for frame in exporter.frames)
    assert len([r for r in caplog.records if "taken out" in r.getMessage()]) == 1


class _Broken(InMemoryExporter):
    """An exporter that breaks its promise never to raise."""

    def export(self, block: Any) -> None:
        raise OSError("the disk is gone")


def test_after_three_failures_of_ours_the_model_is_left_alone(
    model: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("FULGURITE_STRICT", "0")
    wanted = model.generate(prompts(1, 5), max_new_tokens=8, do_sample=False)
    before = trace_of(model)
    with caplog.at_level(logging.WARNING, "fulgurite"), instrument(model, exporter=_Broken()) as agent:
        assert torch.equal(model.generate(prompts(1, 5), max_new_tokens=8, do_sample=False), wanted)
        assert trace_of(model) == before
        assert agent.stats().errors == {"commit:OSError": 3}
        assert torch.equal(model.generate(prompts(1, 5), max_new_tokens=8, do_sample=False), wanted)
    said = [r.getMessage() for r in caplog.records]
    assert said[-1] == "commit failed three times: this model is observed no more"
    assert len(said) == 2


def test_a_second_call_with_other_settings_is_not_silent(
    model: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "fulgurite"), instrument(model, endpoint="127.0.0.1:9") as agent:
        assert instrument(model, endpoint="127.0.0.1:9") is agent
        assert caplog.records == []
        assert instrument(model, endpoint="127.0.0.1:9", level="deep") is agent
    assert "observed already, with other settings" in caplog.records[0].getMessage()


def test_what_does_not_hold_is_said(model: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "fulgurite"):
        instrument(model, spool=tmp_path, tokens="text", exporter=InMemoryExporter()).close()
    said = [record.getMessage() for record in caplog.records]
    assert any("has no effect with an exporter of your own" in line for line in said)
    assert any("needs instrument(model, tokenizer=...)" in line for line in said)


def test_a_forked_child_is_another_replica(model: Any) -> None:
    exporter: Any = InMemoryExporter()
    agent = instrument(model, exporter=exporter)
    mine = exporter.resource["service.instance.id"]
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writing, exporter.resource["service.instance.id"].encode())
        os._exit(0)
    os.waitpid(child, 0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        theirs = pipe.read()
    agent.close()
    assert theirs
    assert theirs != mine
    assert exporter.resource["service.instance.id"] == mine


def test_the_account_balances(model: Any) -> None:
    exporter = InMemoryExporter(max_frames=3)
    with instrument(model, exporter=exporter) as agent:
        model.generate(prompts(2, 5), **GREEDY)
        stats = agent.stats()
        assert agent.flush(1.0)
    assert stats.captured == 8
    assert stats.captured == stats.pending + stats.acknowledged + sum(stats.dropped.values())
    assert stats.steps == 4
    assert stats.gram_bytes == 3 * 8 * 8 * 8 * 4
    assert isinstance(agent, Agent)


def test_texts_are_there_only_when_they_were_switched_on(model: Any) -> None:
    class Words:
        def decode(self, ids: list[int]) -> str:
            return " ".join(f"w{token}" for token in ids)

    ids, mask = prompts(1, 5), torch.ones(1, 5, dtype=torch.long)
    ids[0, 0], mask[0, 0] = 0, 0
    silent, speaking = InMemoryExporter(), InMemoryExporter()
    with instrument(model, tokenizer=Words(), exporter=silent):
        model.generate(ids, attention_mask=mask, **GREEDY)
    with instrument(model, tokenizer=Words(), tokens="text", exporter=speaking):
        output = model.generate(ids, attention_mask=mask, **GREEDY)
    assert {frame.token_text for frame in silent.frames} == {None}
    assert silent.events[0].prompt_texts == ()
    assert [frame.token_text for frame in speaking.frames] == [f"w{t}" for t in output[0, 5:].tolist()]
    assert speaking.events[0].prompt_texts == (" ".join(f"w{t}" for t in ids[0, 1:].tolist()),)


def test_frames_carry_the_trace_that_they_belong_to(model: Any) -> None:
    from opentelemetry.sdk.trace import TracerProvider

    tracer = TracerProvider().get_tracer("host")
    exporter: Any = InMemoryExporter()
    with instrument(model, exporter=exporter), tracer.start_as_current_span("request") as span:
        model.generate(prompts(1, 5), **GREEDY)
    context = span.get_span_context()
    assert exporter.frames[0].trace_id == f"{context.trace_id:032x}"
    assert exporter.frames[0].span_id == f"{context.span_id:016x}"


def test_without_a_collector_the_host_goes_on_and_the_account_balances(model: Any) -> None:
    wanted = model.generate(prompts(2, 5), **GREEDY)
    with instrument(model, endpoint="127.0.0.1:9") as agent:
        assert instrument(model) is agent
        assert torch.equal(model.generate(prompts(2, 5), **GREEDY), wanted)
        assert not agent.flush(0.1)
        stats = agent.stats()
        assert (stats.captured, stats.pending + sum(stats.dropped.values())) == (8, 8)
        agent.close(timeout_s=0.1)
    assert agent.stats().pending == 0
    assert "127.0.0.1:9" not in str(vars(model))
