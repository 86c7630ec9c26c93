"""Where the last query looks: under every kind of kernel, mask, cache and padding, and without a trace."""

from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from tests.reference import gate  # noqa: E402
from tests.reference.families import VOCABULARY, WINDOW, build  # noqa: E402
from tests.reference.oracle import Oracle  # noqa: E402
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, flash_attention_mask  # noqa: E402
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS  # noqa: E402

from fulgurite.agent import InMemoryExporter, instrument, neurons, routing  # noqa: E402
from fulgurite.agent.interface import INTERCEPTION  # noqa: E402
from fulgurite.agent.looks import UNCONFIRMED  # noqa: E402
from fulgurite.agent.probes import Pass  # noqa: E402
from fulgurite.agent.softmax_row import products, softmax_rows  # noqa: E402
from fulgurite.wire.channels import KV_HEAT_BUCKETS, KV_HEAT_RECENT  # noqa: E402

KERNEL = "kernel_of_the_tests"
CLOSE = 1e-4
ROUTING = ("attention_entropy", "sink_mass", "attended_weights", "kv_heat", "learned_sink_mass")


def flash_like(
    module: Any, query: Any, key: Any, value: Any, mask: Any, *, scaling: float, **options: Any
) -> tuple[Any, None]:
    """What a flash kernel computes: causal by itself, a mask of two dimensions, windows, soft-caps, sinks."""
    groups = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(groups, dim=1) for x in (key, value))
    scores = query @ key.transpose(-1, -2) * scaling
    if options.get("softcap") is not None:
        scores = options["softcap"] * torch.tanh(scores / options["softcap"])
    t, s = scores.shape[-2:]
    seen = torch.ones(t, s, dtype=torch.bool).tril(s - t)
    if options.get("sliding_window") is not None:
        seen = seen & ~torch.ones(t, s, dtype=torch.bool).tril(s - t - options["sliding_window"])
    seen = seen.expand(len(query), 1, t, s)
    if mask is not None:
        seen = seen & (mask[:, None, None, -s:] != 0)
    scores = scores.masked_fill(~seen, float("-inf"))
    sinks = options.get("s_aux")
    if sinks is not None:
        scores = torch.cat([scores, sinks.reshape(1, -1, 1, 1).expand(len(query), -1, t, 1)], -1)
    weights = scores.softmax(-1).nan_to_num()[..., :s]
    return (weights @ value).transpose(1, 2).contiguous(), None


def lying(module: Any, query: Any, key: Any, value: Any, mask: Any, **options: Any) -> tuple[Any, None]:
    """A kernel that does something else than attention."""
    output, _ = flash_like(module, query, key, value, mask, **options)
    return output.flip(2), None


@contextmanager
def registered(function: Any) -> Iterator[str]:
    """`function` under a name of its own, with the mask of flash kernels."""
    ALL_ATTENTION_FUNCTIONS.register(KERNEL, function)
    ALL_MASK_ATTENTION_FUNCTIONS.register(KERNEL, flash_attention_mask)
    try:
        yield KERNEL
    finally:
        del type(ALL_ATTENTION_FUNCTIONS)._global_mapping[KERNEL]
        del type(ALL_MASK_ATTENTION_FUNCTIONS)._global_mapping[KERNEL]


def switched(name: str, kernel: str) -> Any:
    """A tiny model under `kernel`."""
    model: Any = build(name)
    for module in model.modules():
        if hasattr(module, "config"):
            module.config._attn_implementation = kernel
    return model


def assert_routed(found: gate.Run) -> None:
    agreements = gate.agreements(found)
    for channel in ROUTING:
        if channel in agreements:
            assert agreements[channel].relative <= CLOSE, (channel, agreements[channel])
    assert {"attention_entropy", "sink_mass", "attended_weights", "kv_heat"} <= set(agreements)


def tokens(length: int, seed: int = 5) -> Any:
    return torch.randint(2, VOCABULARY, (1, length), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", ["llama", "mistral", "gemma2", "gpt_oss", "deepseek_v3"])
def test_a_kernel_that_knows_masks_windows_caps_and_sinks_itself_is_recomputed(name: str) -> None:
    ids, mask = gate.prompts()
    with registered(flash_like):
        found = gate.compare(switched(name, KERNEL), ids, mask, new_tokens=4)
    assert found.same_tokens
    assert ("learned_sink_mass" in gate.agreements(found)) == (name == "gpt_oss")
    assert_routed(found)


def test_a_kernel_that_gives_something_else_is_not_believed() -> None:
    ids, mask = gate.prompts()
    exporter: Any = InMemoryExporter()
    with registered(lying):
        model = switched("llama", KERNEL)
        with instrument(model, level="deep", exporter=exporter):
            model.generate(ids, attention_mask=mask, max_new_tokens=2, do_sample=False, pad_token_id=0)
    assert UNCONFIRMED in dict(exporter.topology.unavailable)["sink_mass"]
    assert all(frame.attention_entropy is None for frame in exporter.frames)
    assert all(frame.head_write is not None for frame in exporter.frames)


@pytest.mark.parametrize("how", ["eager", "sdpa"])
@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_a_cache_of_fixed_size_does_not_shift_a_position(name: str, how: str) -> None:
    ids, mask = gate.prompts()
    model: Any = build(name, attn_implementation=how)
    found = gate.compare(model, ids, mask, new_tokens=5, cache_implementation="static")
    assert_routed(found)


@pytest.mark.parametrize("how", ["eager", "sdpa"])
def test_drafts_that_are_verified_at_once_look_where_each_of_them_looks(how: str) -> None:
    model: Any = build("llama", attn_implementation=how)
    ids = tokens(6).repeat(1, 3)
    found = gate.compare(
        model, ids, torch.ones_like(ids), new_tokens=10, prompt_lookup_num_tokens=4, max_matching_ngram_size=2
    )
    assert len(found.frames) == 10
    assert_routed(found)
    assert gate.agreements(found)["lens_prob"].relative <= CLOSE
    assert gate.agreements(found)["neuron_values"].relative <= CLOSE


def test_beams_look_where_the_line_looks_that_they_belong_to() -> None:
    model: Any = build("llama", attn_implementation="sdpa")
    ids, exporter = tokens(7), InMemoryExporter()
    with instrument(model, level="deep", exporter=exporter):
        out = model.generate(ids, num_beams=3, num_return_sequences=3, max_new_tokens=6, do_sample=False)
    by_place = {(frame.sequence, frame.position): frame for frame in exporter.frames}
    changes = 0
    for text, end in zip(out.tolist(), exporter.events[-1].winning_rows, strict=True):
        exact, row = Oracle(model)(text), end
        for position in range(len(text) - 1, 6, -1):
            frame, wanted = by_place[row, position], exact.at(position)
            assert frame.token_id == text[position]
            np.testing.assert_allclose(frame.sink_mass, wanted["sink_mass"], atol=1e-5)
            np.testing.assert_allclose(frame.neuron_values, wanted["neuron_values"], rtol=1e-3)
            changes += frame.parent_row not in (row, -1)
            row = frame.parent_row
    assert changes > 0, "no beam changed its row: the lineage was not put to the test"


@pytest.mark.parametrize("how", ["eager", "sdpa"])
def test_padding_in_the_middle_is_not_counted(how: str) -> None:
    """A right-padded prompt in a plain loop: its padding stays in the cache, between prompt and answer."""
    model: Any = build("llama", attn_implementation=how)
    ids, mask = tokens(9).repeat(2, 1), torch.ones(2, 9, dtype=torch.long)
    ids[0, 5:], mask[0, 5:] = 0, 0
    exporter: Any = InMemoryExporter()
    with instrument(model, level="deep", exporter=exporter), torch.no_grad():
        step = model(ids, attention_mask=mask, use_cache=True)
        token = torch.stack([step.logits[0, 4], step.logits[1, 8]]).argmax(-1, keepdim=True)
        text = [[*ids[0, :5].tolist(), int(token[0])], [*ids[1].tolist(), int(token[1])]]
        for _ in range(3):
            mask = torch.cat([mask, torch.ones(2, 1, dtype=torch.long)], -1)
            step = model(
                token, attention_mask=mask, position_ids=mask.sum(-1, keepdim=True) - 1,
                past_key_values=step.past_key_values,
            )  # fmt: skip
            token = step.logits[:, -1].argmax(-1, keepdim=True)
            for row in (0, 1):
                text[row].append(int(token[row]))
    exact = [Oracle(model)(row) for row in text]
    assert len(exporter.frames) == 6
    for frame in exporter.frames:
        wanted = exact[frame.sequence].at(frame.position)
        np.testing.assert_allclose(frame.sink_mass, wanted["sink_mass"], atol=1e-5)
        np.testing.assert_allclose(frame.attention_entropy, wanted["attention_entropy"], atol=1e-4)
        there = np.take_along_axis(
            wanted["attention_weights"], np.maximum(frame.attended_positions, 0), axis=-1
        )
        there[frame.attended_positions < 0] = np.nan
        np.testing.assert_allclose(frame.attended_weights, there, atol=1e-5)
        assert frame.attended_positions.max() < frame.position


def test_the_host_gets_the_same_logits_to_the_last_bit() -> None:
    for name, how in (("llama", "sdpa"), ("gemma2", "eager"), ("gpt_oss", "eager"), ("mistral", "sdpa")):
        model: Any = build(name, attn_implementation=how)
        ids, mask = gate.prompts()
        options = {
            "max_new_tokens": 4, "do_sample": False, "pad_token_id": 0, "output_logits": True,
            "return_dict_in_generate": True,
        }  # fmt: skip
        alone = model.generate(ids, attention_mask=mask, **options)
        with instrument(model, level="deep", exporter=InMemoryExporter()):
            observed = model.generate(ids, attention_mask=mask, **options)
        assert all(torch.equal(a, b) for a, b in zip(alone.logits, observed.logits, strict=True)), name


def test_where_steps_are_sampled_one_layer_is_looked_at_in_turn() -> None:
    model: Any = build("gemma3", attn_implementation="sdpa")
    exporter: Any = InMemoryExporter()
    with instrument(model, level="deep", exporter=exporter, deep_ratio=0.5):
        model.generate(tokens(6), max_new_tokens=16, do_sample=False)
    deep = [frame for frame in exporter.frames if frame.level == "deep"]
    assert len(deep) == 8
    turns = [np.flatnonzero(frame.measured_layers).tolist() for frame in deep]
    assert all(len(turn) == 1 for turn in turns)
    assert [turn[0] for turn in turns] == [(turns[0][0] + i) % 4 for i in range(8)]
    for frame, (layer,) in zip(deep, turns, strict=True):
        assert not np.isnan(frame.attention_entropy[layer]).any()
        others = [index for index in range(4) if index != layer]
        assert np.isnan(frame.attention_entropy[others]).all()
        assert np.isnan(frame.kv_heat[others]).all()
        assert (frame.attended_positions[others] == -1).all()
    shallow = [frame for frame in exporter.frames if frame.level == "heads"]
    assert len(shallow) == 8
    assert all(frame.attention_entropy is None and frame.measured_layers is None for frame in shallow)


def test_the_mass_is_one_and_the_sink_has_a_bucket_of_its_own() -> None:
    """Attention is mass over positions; the first position is told apart, so that a view may leave it out."""
    for name in ("llama", "gpt_oss"):
        found = gate.run(name)
        for frame in found.frames:
            learned = 0.0 if frame.learned_sink_mass is None else frame.learned_sink_mass.mean(axis=-1)
            np.testing.assert_allclose(np.nansum(frame.kv_heat, axis=-1) + learned, 1.0, atol=1e-5)
            held = np.flatnonzero(~np.isnan(frame.kv_heat[:, 0]))
            np.testing.assert_allclose(frame.kv_heat[held, 0], frame.sink_mass[held].mean(axis=-1), atol=1e-6)


def test_a_window_that_hides_the_first_position_leaves_its_bucket_empty() -> None:
    found = gate.run("mistral")
    for frame in found.frames:
        is_hidden = frame.position > WINDOW
        assert np.isnan(frame.kv_heat[:, 0]).all() == is_hidden
        assert (frame.sink_mass == 0.0).all() == is_hidden
        assert (frame.attended_positions.max(axis=-1) <= frame.position - 1).all()
        reach = np.where(frame.attended_positions < 0, frame.position, frame.attended_positions)
        assert reach.min() >= frame.position - WINDOW


def test_distances_fall_into_their_buckets() -> None:
    distance = torch.arange(0, 1 << 19)
    found = routing.bucket_of(distance).numpy()
    assert found[:KV_HEAT_RECENT].tolist() == list(range(KV_HEAT_BUCKETS - 1, 15, -1))
    for d in (8, 15, 16, 31, 32, 1000, 1 << 17, (1 << 18) - 1, 1 << 18, (1 << 19) - 1):
        assert found[d] == max(1, 18 - int(np.floor(np.log2(d)))), d
    assert found.min() == 1
    assert (np.diff(found) <= 0).all()
    np.testing.assert_array_equal(routing._bucket_of(distance.numpy()), found)


@pytest.mark.parametrize("grouped", [1, 2, 4])
def test_a_row_is_the_softmax_of_its_own_heads_keys(grouped: int) -> None:
    """Grouped queries share keys head by head, in blocks: not every second one."""
    generator = torch.Generator().manual_seed(grouped)
    b, heads, t, s, d = 2, 4, 3, 7, 6
    query = torch.randn(b, heads, t, d, generator=generator)
    key = torch.randn(b, heads // grouped, s, d, generator=generator)
    passing = Pass(b, t, 0)
    mask = torch.ones(t, s, dtype=torch.bool).tril(s - t).expand(b, 1, t, s).clone()
    mask[1, :, :, :2] = False
    call = {"query": query, "key": key, "attention_mask": mask, "scaling": 0.7}
    (weights,), visible = softmax_rows(passing, [products(passing, call)])
    for row in range(b):
        for head in range(heads):
            scores = query[row, head, -1] @ key[row, head // grouped].T * 0.7
            scores[~mask[row, 0, -1]] = -torch.inf
            torch.testing.assert_close(weights[row, 0, head], scores.softmax(-1))
    assert visible[:, 0].tolist() == mask[:, 0, -1].tolist()


def test_the_table_of_attention_functions_is_left_as_it_was() -> None:
    before = dict(ALL_ATTENTION_FUNCTIONS._local_mapping)
    first, second = (build(name, attn_implementation="sdpa") for name in ("llama", "mistral"))
    one = instrument(first, level="deep", exporter=InMemoryExporter())
    two = instrument(second, level="deep", exporter=InMemoryExporter())
    assert (
        ALL_ATTENTION_FUNCTIONS["sdpa"] is not transformers.integrations.sdpa_attention.sdpa_attention_forward
    )
    one.close()
    assert ALL_ATTENTION_FUNCTIONS._local_mapping != before
    two.close()
    assert dict(ALL_ATTENTION_FUNCTIONS._local_mapping) == before
    with instrument(first, level="heads", exporter=InMemoryExporter()):
        assert dict(ALL_ATTENTION_FUNCTIONS._local_mapping) == before  # only what is asked for


def test_somebody_who_came_after_us_stays_and_we_let_everything_through() -> None:
    before = dict(ALL_ATTENTION_FUNCTIONS._local_mapping)
    model: Any = build("llama", attn_implementation="sdpa")
    agent = instrument(model, level="deep", exporter=InMemoryExporter())
    ours, calls = ALL_ATTENTION_FUNCTIONS["sdpa"], []

    def theirs(*args: Any, **kwargs: Any) -> Any:
        calls.append(args[0])
        return ours(*args, **kwargs)

    ALL_ATTENTION_FUNCTIONS["sdpa"] = theirs
    agent.close()
    assert ALL_ATTENTION_FUNCTIONS["sdpa"] is theirs
    with torch.no_grad():
        model(tokens(4))
    assert len(calls) == 3
    found = gate.compare(model, tokens(9), torch.ones(1, 9, dtype=torch.long), new_tokens=3)
    assert_routed(found)
    ALL_ATTENTION_FUNCTIONS["sdpa"] = ours
    agent = instrument(model, level="deep", exporter=InMemoryExporter())
    agent.close()
    assert dict(ALL_ATTENTION_FUNCTIONS._local_mapping) == before


def test_two_observers_of_one_model_see_the_same() -> None:
    model: Any = build("llama", attn_implementation="sdpa")
    one, two = InMemoryExporter(), InMemoryExporter()
    with instrument(model, level="deep", exporter=one), instrument(model, level="deep", exporter=two):
        model.generate(tokens(6), max_new_tokens=3, do_sample=False)
    for first, second in zip(one.frames, two.frames, strict=True):
        np.testing.assert_array_equal(first.attended_weights, second.attended_weights)


def test_a_copy_of_an_observed_model_is_not_observed() -> None:
    model: Any = build("llama", attn_implementation="sdpa")
    exporter: Any = InMemoryExporter()
    with instrument(model, level="deep", exporter=exporter):
        twin = copy.deepcopy(model)
        twin.generate(tokens(6), max_new_tokens=2, do_sample=False)
        assert exporter.frames == []
        assert not any(INTERCEPTION.observers(module) for module in twin.modules())


def test_an_observed_model_that_is_forgotten_is_freed() -> None:
    model: Any = build("llama", attn_implementation="sdpa")
    agent = instrument(model, level="deep", exporter=InMemoryExporter())
    attention = weakref.ref(model.model.layers[0].self_attn)
    del model, agent
    gc.collect()
    assert attention() is None


def test_what_the_host_casts_its_arithmetic_to_is_not_what_we_compute_in() -> None:
    model: Any = build("llama", attn_implementation="sdpa")
    ids, mask = gate.prompts()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = gate.compare(model, ids, mask, new_tokens=3, watch=True)
    assert found.unavailable == {}
    for channel, agreement in gate.agreements(found).items():
        assert agreement.relative <= (2e-2 if "contribution" in channel else 1e-3), (channel, agreement)
    assert gate.residues(found).max() <= 2e-2


@pytest.mark.parametrize("broken", [{}, {"query": None, "key": None}, {"query": torch.zeros(1, 4, 6, 16)}])
def test_a_call_that_is_unlike_any_we_know_harms_nobody(
    broken: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FULGURITE_STRICT")
    model: Any = build("llama", attn_implementation="sdpa")
    alone = model.generate(tokens(6), max_new_tokens=3, do_sample=False)
    exporter: Any = InMemoryExporter()
    with instrument(model, level="deep", exporter=exporter) as agent:
        look = INTERCEPTION.observers(model.model.layers[1].self_attn)[0]

        def also(call: Any, output: Any, known: Any = look) -> None:
            known({**broken, "module": call["module"]}, output)

        holder = _Holder(also)
        INTERCEPTION.add(model.model.layers[1].self_attn, holder.called)
        out = model.generate(tokens(6), max_new_tokens=3, do_sample=False)
        INTERCEPTION.discard(model.model.layers[1].self_attn, holder.called)
        errors = agent.stats().errors
    assert torch.equal(out, alone)
    assert [kind for kind in errors if kind.startswith("attention:")]
    assert all(frame.head_write is not None for frame in exporter.frames)


class _Holder:
    """An observer that is held by somebody."""

    def __init__(self, function: Any) -> None:
        self.function = function

    def called(self, call: Any, output: Any) -> None:
        self.function(call, output)


def test_compiled_code_leaves_attention_and_neurons() -> None:
    model: Any = build("llama", attn_implementation="sdpa")
    plain: Any = InMemoryExporter()
    with instrument(model, level="deep", exporter=plain):
        alone = model.generate(tokens(6), max_new_tokens=3, do_sample=False)
    exporter: Any = InMemoryExporter()
    with instrument(model, level="deep", exporter=exporter) as agent:
        model.forward = torch.compile(model.forward, backend="eager", fullgraph=True)
        out = model.generate(tokens(6), max_new_tokens=3, do_sample=False)
        missing, errors = agent.stats().unavailable, agent.stats().errors
    assert torch.equal(out, alone)
    assert errors == missing == {}
    for channel in (*routing.CHANNELS, *neurons.CHANNELS):
        for found, wanted in zip(exporter.frames, plain.frames, strict=True):
            np.testing.assert_allclose(getattr(found, channel), getattr(wanted, channel), atol=1e-4)


def test_a_row_in_a_graph_that_is_not_what_the_kernel_gave_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plain = ALL_ATTENTION_FUNCTIONS["sdpa"]

    def reversed_values(module: Any, query: Any, key: Any, value: Any, *args: Any, **options: Any) -> Any:
        return plain(module, query, key, value.flip(-2), *args, **options)

    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS, "sdpa", reversed_values)
    model: Any = build("llama", attn_implementation="sdpa")
    exporter: Any = InMemoryExporter()
    with instrument(model, level="deep", exporter=exporter) as agent:
        model.forward = torch.compile(model.forward, backend="eager", fullgraph=True)
        model.generate(tokens(6), max_new_tokens=4, do_sample=False)
        missing = agent.stats().unavailable
    assert all(frame.attention_entropy is None for frame in exporter.frames)
    assert "not confirmed" in missing["attention_entropy"]
    assert all(frame.neuron_ids is not None for frame in exporter.frames)
