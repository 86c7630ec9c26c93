"""Compiled models: the same frames, no graph break, one compilation, and silence is never zero."""

from __future__ import annotations

import itertools
import logging
import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

torch: Any = pytest.importorskip("torch")
transformers: Any = pytest.importorskip("transformers")

from tests.agent.reference import (  # noqa: E402
    BY_NAME,
    Reference,
    assert_contributions,
    assert_frame,
    prompts,
)

from fulgurite.agent import InMemoryExporter, instrument  # noqa: E402

NEW = 8
WAYS = [
    pytest.param({"backend": "eager"}, id="eager-backend"),
    pytest.param({"backend": "eager", "fullgraph": True}, id="eager-backend-fullgraph"),
    pytest.param({}, id="default"),
    pytest.param({"fullgraph": True}, id="fullgraph"),
    pytest.param({"mode": "reduce-overhead"}, id="reduce-overhead"),
]


@pytest.fixture(autouse=True)
def _compiler(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A compiler that remembers nothing but the code that these tests made."""
    folder = tmp_path_factory.getbasetemp() / "inductor"
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(folder))
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield
    torch._dynamo.reset()


def graphs() -> int:
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])


def breaks() -> dict[str, int]:
    return dict(torch._dynamo.utils.counters["graph_break"])


def configured(way: dict[str, Any]) -> Any:
    config = transformers.CompileConfig(**{"fullgraph": False, "mode": None, **way})
    config._compile_all_devices = True  # `generate` compiles by itself on accelerators only
    return config


def static(model: Any, ids: Any, way: dict[str, Any], **options: Any) -> Any:
    return model.generate(
        ids, do_sample=False, cache_implementation="static", compile_config=configured(way),
        **{"max_new_tokens": NEW, **options},
    )  # fmt: skip


def check(model: Any, text: Any, frames: list[Any], tolerance: float = 1e-3) -> None:
    reference = Reference(BY_NAME["llama"], model)
    wanted = [reference.of(row.tolist()) for row in text]
    for frame in frames:
        assert frame.token_id == int(text[frame.sequence][frame.position])
        assert frame.level == "heads"
        assert_frame(frame, wanted[frame.sequence][frame.position - 1], tolerance)


@pytest.mark.parametrize("way", WAYS[1:])
def test_generate_with_a_static_cache_is_measured_in_its_graph(way: dict[str, Any]) -> None:
    model = BY_NAME["llama"].build()
    ids = prompts(2, 6)
    alone = static(model, ids, way)
    without = graphs()
    fresh = BY_NAME["llama"].build()
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    exporter: Any = InMemoryExporter()
    with instrument(fresh, exporter=exporter) as agent:
        output = static(fresh, ids, way)
        assert graphs() <= without + 1, "beside the model's graph there is one of our hook on it, no more"
        settled = graphs()
        assert torch.equal(static(fresh, ids, way), output)
        assert graphs() == settled
        assert breaks() == {}
        assert agent.stats().errors == {}
        assert dict(agent.stats().unavailable) == {}
    assert torch.equal(output, alone)
    frames = exporter.frames[: 2 * NEW]
    assert [f.position for f in frames if f.sequence == 1] == list(range(6, 6 + NEW))
    assert [f.phase for f in frames[:4]] == ["prefill"] * 2 + ["decode"] * 2
    check(fresh, output, frames)
    assert [int(f.kv_tokens[0]) for f in frames if f.sequence == 0] == list(range(6, 6 + NEW))
    assert all(b.started_ns > a.started_ns for a, b in zip(frames[::2], frames[2::2], strict=False))


@pytest.mark.parametrize("way", WAYS[:2])
def test_a_compiled_forward_is_measured(way: dict[str, Any]) -> None:
    model = BY_NAME["llama"].build()
    ids = prompts(2, 6)
    exporter: Any = InMemoryExporter()
    with instrument(model, exporter=exporter) as agent:
        model.forward = torch.compile(model.forward, **way)
        options = {"do_sample": False, "max_new_tokens": NEW, "cache_implementation": "static"}
        for _ in range(2):  # the first pass showed which probes stay, so that its graph is made anew
            output = model.generate(ids, **options)
        settled = graphs()
        assert torch.equal(model.generate(ids, **options), output)
        assert graphs() == settled
        assert agent.stats().errors == {}
        assert breaks() == {}
        del model.forward
    check(model, output, exporter.frames)
    assert len(exporter.frames) == 3 * 2 * NEW


def loop(model: Any, ids: Any) -> Any:
    """A plain loop with a static cache."""
    config = getattr(model, "_orig_mod", model).config
    cache = transformers.StaticCache(config=config, max_cache_len=32)
    text, fed = ids, ids
    with torch.no_grad():
        for _ in range(NEW):
            start = text.shape[1] - fed.shape[1]
            places = torch.arange(start, text.shape[1])[None].expand(len(ids), -1)
            step = model(fed, cache=cache, position_ids=places)
            fed = step.logits[:, -1].argmax(-1, keepdim=True)
            text = torch.cat([text, fed], -1)
        model(fed, cache=cache, position_ids=torch.full((len(ids), 1), text.shape[1] - 1))
    return text


@pytest.mark.parametrize("way", WAYS[:2])
def test_a_compiled_module_is_measured_in_a_plain_loop(way: dict[str, Any]) -> None:
    model = BY_NAME["llama"].build()
    alone = loop(torch.compile(model, **way), prompts(2, 6))
    fresh = BY_NAME["llama"].build()
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    exporter: Any = InMemoryExporter()
    compiled = torch.compile(fresh, **way)
    with instrument(compiled, exporter=exporter) as agent:
        for _ in range(2):  # the first pass showed which probes stay, so that its graph is made anew
            text = loop(compiled, prompts(2, 6))
        settled = graphs()
        loop(compiled, prompts(2, 6))
        assert graphs() == settled
        assert breaks() == {}
        assert agent.stats().errors == {}
    assert torch.equal(text, alone)
    check(fresh, text, exporter.frames)
    assert len(exporter.frames) == 3 * 2 * NEW
    assert not compiled._forward_hooks
    assert not compiled._forward_pre_hooks


def test_a_graph_that_is_older_than_the_agent_gives_no_zeros_but_a_word(
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = BY_NAME["llama"].build()
    ids, way = prompts(2, 6), {"backend": "eager"}
    wanted = static(model, ids, way)
    exporter: Any = InMemoryExporter()
    with caplog.at_level(logging.WARNING, "fulgurite"), instrument(model, exporter=exporter) as agent:
        output = static(model, ids, way)
        stats = agent.stats()
    assert torch.equal(output, wanted)
    check(model, output, [frame for frame in exporter.frames if frame.phase == "prefill"])
    decoded = [frame for frame in exporter.frames if frame.phase == "decode"]
    assert {(frame.level, frame.head_write is None) for frame in decoded} == {("pulse", True)}
    assert stats.errors["compiled:unseen"] == NEW - 1
    assert "instrumented before it is compiled" in stats.unavailable["head_write"]
    assert len([r for r in caplog.records if "instrument the model before" in r.getMessage()]) == 1


def test_a_pause_shuts_the_gate_and_compiles_nothing() -> None:
    model = BY_NAME["llama"].build()
    ids, way = prompts(2, 6), {"backend": "eager"}
    exporter: Any = InMemoryExporter()
    with instrument(model, exporter=exporter) as agent:
        output = static(model, ids, way)
        settled, seen = graphs(), len(exporter.frames)
        agent.pause()
        assert torch.equal(static(model, ids, way), output)
        assert len(exporter.frames) == seen
        agent.set_level("pulse")
        agent.resume()
        static(model, ids, way)
        assert {frame.level for frame in exporter.frames[seen:]} == {"pulse"}
        agent.set_level("heads")
        static(model, ids, way)
        assert graphs() == settled
        assert agent.stats().errors == {}
    check(model, output, exporter.frames[-2 * NEW :])
    assert len(exporter.frames) == 3 * 2 * NEW


def test_passes_that_nothing_of_ours_sees_are_counted_and_said(caplog: pytest.LogCaptureFixture) -> None:
    model = BY_NAME["llama"].build()
    exporter: Any = InMemoryExporter()
    with caplog.at_level(logging.WARNING, "fulgurite"), instrument(model, exporter=exporter) as agent:
        loop(torch.compile(model, backend="eager"), prompts(2, 6))
        assert agent.stats().errors == {"compiled:unopened": NEW + 1}
    assert exporter.frames == []
    assert "outside of generate()" in caplog.text


def test_more_rows_than_a_shelf_holds_are_said_to_be_unseen(caplog: pytest.LogCaptureFixture) -> None:
    model = BY_NAME["llama"].build()
    ids = prompts(20, 6)
    exporter: Any = InMemoryExporter()
    with caplog.at_level(logging.WARNING, "fulgurite"), instrument(model, exporter=exporter):
        output = static(model, ids, {"backend": "eager"})
    assert {frame.phase for frame in exporter.frames} == {"prefill"}
    check(model, output, exporter.frames)


def test_threads_that_share_a_graph_leave_nothing_rather_than_each_others_values() -> None:
    model = BY_NAME["llama"].build()
    way = {"backend": "eager"}
    exporter: Any = InMemoryExporter()
    texts = {i: prompts(2, 6, seed=i) for i in range(3)}
    found: dict[int, Any] = {}
    with instrument(model, exporter=exporter) as agent:
        alone = {i: static(model, ids, way) for i, ids in texts.items()}
        before = len(exporter.frames)
        assert before == 3 * 2 * NEW

        def work(i: int) -> None:
            for _ in range(3):
                found[i] = static(model, texts[i], way)

        threads = [threading.Thread(target=work, args=(i,)) for i in texts]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
        after = len(exporter.frames)
        static(model, texts[0], way)
        assert {frame.level for frame in exporter.frames[after + 2 :]} == {"heads"}
        assert set(agent.stats().errors) <= {"compiled:unseen"}
    assert all(torch.equal(found[i], alone[i]) for i in texts)
    reference = Reference(BY_NAME["llama"], model)
    rows = [row.tolist() for i in texts for row in alone[i]]
    wanted = {tuple(row): reference.of(row) for row in rows}
    for frame in exporter.frames[before:after]:
        fitting = [
            wanted[tuple(row)][frame.position - 1]
            for i in texts
            for row in [alone[i][frame.sequence].tolist()]
            if row[frame.position] == frame.token_id
        ]
        assert fitting
        if frame.level == "heads":
            close = [abs(one["residual_norm"] - frame.residual_norm).max() for one in fitting]
            assert min(close) < 1e-2


def test_an_exported_graph_has_nothing_of_ours() -> None:
    model = BY_NAME["llama"].build()
    with instrument(model, exporter=InMemoryExporter()):
        exported = torch.export.export(model, (prompts(2, 6),), {"use_cache": False}, strict=False)
    assert len(exported.graph.nodes) > 50
    assert not [node for node in exported.graph.nodes if "fulgurite" in str(node.target)]


def test_training_a_compiled_model_gives_the_same_gradients() -> None:
    ids, found = prompts(2, 6), []
    for observed in (False, True):
        torch._dynamo.reset()
        model = BY_NAME["llama"].build().train()
        agent = instrument(model, exporter=InMemoryExporter()) if observed else None
        compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
        for _ in range(2):
            compiled(ids, labels=ids, use_cache=False).loss.backward()
        found.append([parameter.grad for parameter in model.parameters()])
        if agent is not None:
            agent.close()
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_contributions_make_up_the_logit_in_a_compiled_pass_too() -> None:
    model = BY_NAME["llama"].build()
    ids, way = prompts(2, 6), {"backend": "eager", "fullgraph": True}
    exporter: Any = InMemoryExporter()
    with instrument(model, level="deep", exporter=exporter) as agent:
        output = static(model, ids, way)
        assert agent.stats().errors == {}
        assert breaks() == {}
    reference = Reference(BY_NAME["llama"], model)
    wanted = [reference.of(row.tolist()) for row in output]
    assert len(exporter.frames) == 2 * NEW
    for frame in exporter.frames:
        here = wanted[frame.sequence][frame.position - 1]
        assert_frame(frame, here)
        assert_contributions(frame, here["contributions"](frame.token_id))


ROUTED = (
    "attention_entropy", "sink_mass", "attended_positions", "attended_weights", "measured_layers", "kv_heat",
    "neuron_ids", "neuron_values", "lens_prob", "head_contribution",
)  # fmt: skip


def assert_deep(found: Any, wanted: Any) -> None:
    assert (found.sequence, found.position, found.token_id) == (
        wanted.sequence, wanted.position, wanted.token_id,
    )  # fmt: skip
    for name in ROUTED:
        got, ought = getattr(found, name), getattr(wanted, name)
        assert got is not None, name
        if ought.dtype.kind == "f":
            np.testing.assert_allclose(got, ought, atol=2e-4, rtol=1e-3, err_msg=name)
        else:
            np.testing.assert_array_equal(got, ought, err_msg=name)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("way", [WAYS[1], WAYS[2], WAYS[4]])
def test_routing_and_neurons_are_measured_in_the_graph(way: dict[str, Any], attention: str) -> None:
    ids = prompts(2, 6)
    model = BY_NAME["llama"].build()
    model.set_attn_implementation(attention)
    plain: Any = InMemoryExporter()
    with instrument(model, level="deep", exporter=plain):
        model.generate(ids, do_sample=False, max_new_tokens=NEW)
    fresh = BY_NAME["llama"].build()
    fresh.set_attn_implementation(attention)
    exporter: Any = InMemoryExporter()
    with instrument(fresh, level="deep", exporter=exporter) as agent:
        static(fresh, ids, way)
        settled = graphs()
        static(fresh, ids, way)
        assert graphs() == settled
        assert breaks() == {}
        assert agent.stats().errors == {}
        assert dict(agent.stats().unavailable) == {}
    assert len(exporter.frames) == 2 * len(plain.frames)
    for found, wanted in zip(exporter.frames, 2 * plain.frames, strict=True):
        assert_deep(found, wanted)


def test_sampled_deep_steps_of_a_graph_look_at_one_layer_in_turn() -> None:
    model = BY_NAME["llama"].build()
    ids, way = prompts(1, 6), {"backend": "eager"}
    exporter: Any = InMemoryExporter()
    with instrument(model, level="deep", exporter=exporter, deep_ratio=0.5) as agent:
        for _ in range(3):
            static(model, ids, way)
        assert agent.stats().errors == {}
    looked = []
    for frame in exporter.frames[1:]:
        assert (frame.level == "deep") == (frame.step % 2 == 1) == (frame.neuron_ids is not None)
        if frame.level == "deep" and frame.measured_layers is not None:
            (layer,) = np.flatnonzero(frame.measured_layers)
            assert np.isfinite(frame.attention_entropy[layer]).all()
            looked.append(int(layer))
    layers = agent.topology.layers
    assert len(looked) >= 3 * NEW // 2 - 1
    assert all(b == (a + 1) % layers for a, b in itertools.pairwise(looked))


def assert_routed(found: list[Any], wanted: list[Any]) -> None:
    assert len(found) == len(wanted)
    for one, other in zip(found, wanted, strict=True):
        assert (one.sequence, one.position, one.token_id) == (other.sequence, other.position, other.token_id)
        assert one.expert_ids is not None, f"position {one.position}"
        np.testing.assert_array_equal(one.expert_ids, other.expert_ids)
        np.testing.assert_allclose(one.expert_weights, other.expert_weights, rtol=0, atol=1e-5)


def routed_in_eager(model: Any, ids: Any) -> tuple[list[Any], Any]:
    exporter: Any = InMemoryExporter()
    with instrument(model, exporter=exporter):
        output = model.generate(ids, do_sample=False, max_new_tokens=NEW)
    return exporter.frames, output


def of_layers(name: str, layers: int | None) -> Any:
    """A family, with fewer layers where a compiler takes its time."""
    family = BY_NAME[name]
    fewer = {} if layers is None else {"num_hidden_layers": layers}
    return replace(family, options={**family.options, **fewer})


ROUTED_WAYS = [
    *(
        pytest.param(family, None, WAYS[1].values[0], id=f"{family}-{WAYS[1].id}")
        for family in ("mixtral", "qwen3_moe", "gpt_oss", "deepseek_v3")
    ),
    *(pytest.param("mixtral", 1, way.values[0], id=f"mixtral-{way.id}") for way in WAYS[3:]),
]


@pytest.mark.parametrize(("name", "layers", "way"), ROUTED_WAYS)
def test_experts_of_a_graph_are_those_of_a_run_without_one(
    name: str, layers: int | None, way: dict[str, Any]
) -> None:
    ids, family = prompts(2, 6), of_layers(name, layers)
    frames, alone = routed_in_eager(family.build(), ids)
    model = family.build()
    exporter: Any = InMemoryExporter()
    with instrument(model, exporter=exporter) as agent:
        output = static(model, ids, way)
        settled = graphs()
        assert torch.equal(static(model, ids, way), output)
        assert graphs() == settled
        assert breaks() == {}
        assert agent.stats().errors == {}
        assert dict(agent.stats().unavailable) == {}
    assert torch.equal(output, alone)
    assert len({frame.expert_ids.tobytes() for frame in frames}) > 2
    assert_routed(exporter.frames, 2 * frames)


@pytest.mark.parametrize("width", [6, 20], ids=["few rows", "more rows than a shelf holds"])
def test_experts_of_a_compiled_prefill_are_those_of_the_last_position(width: int) -> None:
    ids = prompts(2, width)
    frames, alone = routed_in_eager(BY_NAME["mixtral"].build(), ids)
    model = BY_NAME["mixtral"].build()
    exporter: Any = InMemoryExporter()
    with instrument(model, exporter=exporter) as agent:
        model.forward = torch.compile(model.forward, backend="eager", fullgraph=True)
        options = {"do_sample": False, "max_new_tokens": NEW, "cache_implementation": "static"}
        for _ in range(2):
            assert torch.equal(model.generate(ids, **options), alone)
        assert agent.stats().errors == {}
        assert dict(agent.stats().unavailable) == {}
    assert_routed(exporter.frames, 2 * frames)


def test_experts_that_a_graph_does_not_leave_are_absent_and_that_is_said() -> None:
    model = BY_NAME["mixtral"].build()
    model.config.num_experts_per_tok = 3  # declared, and not so: each token is sent to two
    exporter: Any = InMemoryExporter()
    with instrument(model, exporter=exporter) as agent:
        model.forward = torch.compile(model.forward, backend="eager", fullgraph=True)
        model.generate(prompts(2, 6), max_new_tokens=NEW, cache_implementation="static", do_sample=False)
        assert "did not leave" in agent.stats().unavailable["expert_ids"]
        assert agent.stats().errors == {}
    assert len(exporter.frames) == 2 * NEW
    for frame in exporter.frames:
        assert frame.expert_ids is None
        assert frame.expert_weights is None
        assert frame.head_write is not None


def test_a_model_that_compiles_itself_is_measured_by_what_its_graphs_leave() -> None:
    model = BY_NAME["llama"].build()
    exporter: Any = InMemoryExporter()
    ids = prompts(2, 6)
    with instrument(model, exporter=exporter) as agent:
        model.compile(backend="eager")
        output = model.generate(ids, do_sample=False, max_new_tokens=NEW, cache_implementation="static")
        assert agent.stats().errors == {}
    assert [frame.position for frame in exporter.frames if frame.sequence == 0] == list(range(6, 6 + NEW))
    check(model, output, exporter.frames)
    assert [event.kind for event in exporter.events] == ["started", "finished"]
