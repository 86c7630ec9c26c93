"""What is captured agrees with an independent float64 recomputation, for every family, row, prefill and
decode."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from tests.agent.reference import (  # noqa: E402
    BY_NAME,
    FAMILIES,
    HEADS,
    LAYERS,
    Reference,
    assert_close,
    assert_contributions,
    assert_frame,
    prompts,
    trace_of,
)

from fulgurite.agent import InMemoryExporter, instrument  # noqa: E402
from fulgurite.wire.channels import BY_NAME as CHANNELS  # noqa: E402

EXACT = ("llama", "gpt2")


def left_padded(rows: int = 3, width: int = 9) -> tuple[Any, Any]:
    """Prompts of different length: the first row has four paddings, the second one, the rest none."""
    ids, mask = prompts(rows, width), torch.ones(rows, width, dtype=torch.long)
    for row, padding in zip(range(rows), (4, 1), strict=False):
        ids[row, :padding], mask[row, :padding] = 0, 0
    return ids, mask


def generate(model: Any, ids: Any, mask: Any, **options: Any) -> tuple[Any, Any]:
    exporter: Any = InMemoryExporter()
    with instrument(model, exporter=exporter):
        found = model.generate(ids, attention_mask=mask, **options)
    return found, exporter


def real_text(row: Any, mask: Any) -> list[int]:
    """A returned row without the padding of its prompt."""
    width = len(mask)
    return [*row[:width][mask.bool()].tolist(), *row[width:].tolist()]


def check_all(family: Any, model: Any, output: Any, mask: Any, exporter: InMemoryExporter) -> None:
    """Every frame is at the right place, and its channels are those of the reference there."""
    reference = Reference(family, model)
    texts = [real_text(row, one) for row, one in zip(output, mask, strict=True)]
    wanted = [reference.of(text) for text in texts]
    for frame in exporter.frames:
        assert texts[frame.sequence][frame.position] == frame.token_id
        assert_frame(frame, wanted[frame.sequence][frame.position - 1])


@pytest.mark.parametrize("name", [family.name for family in FAMILIES])
def test_every_family_agrees_with_float64_in_a_padded_batch_and_is_left_without_a_trace(name: str) -> None:
    family = BY_NAME[name]
    model = family.build()
    ids, mask = left_padded()
    options = {"max_new_tokens": 4, "do_sample": False}
    alone = model.generate(ids, attention_mask=mask, **options)
    before = trace_of(model)
    output, exporter = generate(model, ids, mask, **options)
    assert torch.equal(output, alone)
    assert trace_of(model) == before
    assert exporter.topology.unavailable == ()
    assert len(exporter.frames) == 12
    assert [frame.phase for frame in exporter.frames] == ["prefill"] * 3 + ["decode"] * 9
    check_all(family, model, output, mask, exporter)


@pytest.mark.parametrize("name", [family.name for family in FAMILIES])
def test_contributions_of_every_family_agree_with_float64_and_make_up_the_logit(name: str) -> None:
    family = BY_NAME[name]
    model = family.build()
    ids, mask = left_padded()
    exporter: Any = InMemoryExporter()
    before = trace_of(model)
    with instrument(model, level="deep", exporter=exporter):
        output = model.generate(ids, attention_mask=mask, max_new_tokens=3, do_sample=False)
    assert trace_of(model) == before
    missing = {channel for channel, _ in exporter.topology.unavailable}
    assert not {name for name in missing if CHANNELS[name].level == "heads" or "contribution" in name}
    reference = Reference(family, model)
    wanted = [reference.of(real_text(row, one)) for row, one in zip(output, mask, strict=True)]
    assert {frame.level for frame in exporter.frames} == {"deep"}
    for frame in exporter.frames:
        here = wanted[frame.sequence][frame.position - 1]
        assert_frame(frame, here)
        assert_contributions(frame, here["contributions"](frame.token_id))


@pytest.mark.parametrize("name", EXACT)
def test_sampled_sequences_of_one_prompt_are_told_apart(name: str) -> None:
    family = BY_NAME[name]
    model = family.build()
    ids, mask = left_padded(rows=2)
    options = {
        "max_new_tokens": 5,
        "do_sample": True,
        "num_return_sequences": 3,
        "temperature": 1.5,
        "top_k": 0,
    }
    torch.manual_seed(7)
    alone = model.generate(ids, attention_mask=mask, **options)
    torch.manual_seed(7)
    output, exporter = generate(model, ids, mask, **options)
    assert torch.equal(output, alone)
    assert len({tuple(row.tolist()) for row in output}) > 3
    assert sorted({frame.sequence for frame in exporter.frames}) == list(range(6))
    check_all(family, model, output, mask.repeat_interleave(3, 0), exporter)


@pytest.mark.parametrize("name", EXACT)
def test_a_row_gives_no_frames_after_its_end_of_sequence(name: str) -> None:
    family = BY_NAME[name]
    model = family.build()
    ids, mask = left_padded()
    free = model.generate(ids, attention_mask=mask, max_new_tokens=8, do_sample=False)
    stop = int(free[1, ids.shape[1] + 1])  # what the second row says second
    output, exporter = generate(model, ids, mask, max_new_tokens=8, do_sample=False, eos_token_id=stop)
    generated = output[:, ids.shape[1] :].tolist()
    wanted = [row[: row.index(stop) + 1] if stop in row else row for row in generated]
    found = [[f.token_id for f in exporter.frames if f.sequence == row] for row in range(3)]
    assert found == wanted
    assert len(found[1]) == 2
    finished = exporter.events[-1]
    assert (finished.kind, finished.sequences) == ("finished", 3)


def test_right_padding_counts_real_tokens_only() -> None:
    family = BY_NAME["llama"]
    model = family.build()
    ids, mask = prompts(2, 8), torch.ones(2, 8, dtype=torch.long)
    ids[0, 5:], mask[0, 5:] = 0, 0
    _, exporter = generate(model, ids, mask, max_new_tokens=3, do_sample=False)
    assert [f.position for f in exporter.frames if f.sequence == 0] == [5, 6, 7]
    assert [f.position for f in exporter.frames if f.sequence == 1] == [8, 9, 10]
    assert [f.kv_tokens.tolist() for f in exporter.frames if f.sequence == 0] == [[5] * 3, [6] * 3, [7] * 3]
    assert exporter.events[0].prompt_tokens_per_row == (5, 8)


@pytest.mark.parametrize("name", EXACT)
def test_a_plain_loop_gives_the_same_frames_as_generate(name: str) -> None:
    family = BY_NAME[name]
    model = family.build()
    ids, mask = left_padded()
    output, wanted = generate(model, ids, mask, max_new_tokens=6, do_sample=False)
    exporter: Any = InMemoryExporter()
    with instrument(model, exporter=exporter), torch.no_grad():
        text, positions = ids, mask.cumsum(-1).sub(1).clamp(min=0)
        step = model(ids, attention_mask=mask, position_ids=positions, use_cache=True)
        for _ in range(6):
            token = step.logits[:, -1].argmax(-1, keepdim=True)
            step.logits.zero_()  # what the host does with its logits is its own business
            text, mask = torch.cat([text, token], -1), torch.cat([mask, torch.ones_like(token)], -1)
            step = model(
                token, attention_mask=mask, position_ids=mask.sum(-1, keepdim=True) - 1,
                past_key_values=step.past_key_values,
            )  # fmt: skip
    assert torch.equal(text, output)
    assert len(exporter.frames) == len(wanted.frames) == 18
    assert len({frame.request_id for frame in exporter.frames}) == 1
    for found, want in zip(exporter.frames, wanted.frames, strict=True):
        assert (found.sequence, found.position, found.token_id, found.phase) == (
            want.sequence, want.position, want.token_id, want.phase,
        )  # fmt: skip
        for channel in (
            "head_write",
            "ffn_write",
            "ffn_cosine",
            "residual_norm",
            "logprob",
            "entropy",
            "kv_tokens",
        ):
            # not to the bit: `generate` asks for the last position's logits alone, another matrix product
            np.testing.assert_allclose(getattr(found, channel), getattr(want, channel), rtol=1e-5, atol=1e-6)


def test_a_plain_loop_with_right_padding_reads_each_rows_last_real_position() -> None:
    family = BY_NAME["llama"]
    model = family.build()
    ids, mask = prompts(2, 8), torch.ones(2, 8, dtype=torch.long)
    ids[0, 5:], mask[0, 5:] = 0, 0
    exporter: Any = InMemoryExporter()
    with instrument(model, exporter=exporter), torch.no_grad():
        step = model(ids, attention_mask=mask, use_cache=True)
        token = torch.stack([step.logits[0, 4], step.logits[1, 7]]).argmax(-1, keepdim=True)
        model(token, past_key_values=step.past_key_values, position_ids=mask.sum(-1, keepdim=True))
    reference = Reference(family, model)
    for frame, text in zip(exporter.frames, (ids[0, :5].tolist(), ids[1].tolist()), strict=True):
        assert frame.position == len(text)
        assert_frame(frame, reference.of([*text, frame.token_id])[frame.position - 1])


@pytest.mark.parametrize("name", EXACT)
def test_rows_that_are_padded_on_the_right_are_right_in_prefill_and_decode(name: str) -> None:
    family = BY_NAME[name]
    model = family.build()
    ids, mask = prompts(3, 9, seed=4), torch.ones(3, 9, dtype=torch.long)
    for row, padding in ((0, 4), (1, 1)):
        ids[row, -padding:], mask[row, -padding:] = 0, 0
    lengths, texts = mask.sum(-1), [row[one.bool()].tolist() for row, one in zip(ids, mask, strict=True)]
    exporter: Any = InMemoryExporter()
    with instrument(model, exporter=exporter), torch.no_grad():
        step = model(ids, attention_mask=mask, use_cache=True)
        token = step.logits[torch.arange(3), lengths - 1].argmax(-1, keepdim=True)
        for i in range(5):
            for text, one in zip(texts, token[:, 0].tolist(), strict=True):
                text.append(one)
            mask = torch.cat([mask, torch.ones_like(token)], -1)
            step = model(token, attention_mask=mask, position_ids=(lengths + i)[:, None], cache=step.cache)
            token = step.logits[:, -1].argmax(-1, keepdim=True)
    reference = Reference(family, model)
    wanted = [reference.of(text) for text in texts]
    assert len(exporter.frames) == 15
    for frame in exporter.frames:
        assert texts[frame.sequence][frame.position] == frame.token_id
        assert_frame(frame, wanted[frame.sequence][frame.position - 1])
        assert frame.kv_tokens.tolist() == [frame.position] * LAYERS


@pytest.mark.parametrize("name", EXACT)
def test_swapping_two_heads_swaps_their_values_and_no_others(name: str) -> None:
    """The head axis: permuting the heads' weights permutes the lights."""
    family = BY_NAME[name]
    model = family.build()
    if name == "llama":
        model = BY_NAME["llama_biased"].build()  # as many key-value heads as heads: any two may be swapped
    swapped = copy.deepcopy(model)
    order = [0, 5, 2, 3, 4, 1, 6, 7]
    for layer in swapped.get_submodule(family.layers):
        _permute_heads(layer, name, order)
    ids, mask = left_padded()
    _, first = generate(model, ids, mask, max_new_tokens=3, do_sample=False)
    _, second = generate(swapped, ids, mask, max_new_tokens=3, do_sample=False)
    for before, after in zip(first.frames, second.frames, strict=True):
        assert before.token_id == after.token_id
        assert_close(after.head_write, before.head_write[:, order], 1e-4)
        assert np.abs(before.head_write[:, 1] - before.head_write[:, 5]).max() > 1e-3


def _permute_heads(layer: Any, name: str, order: list[int]) -> None:
    width = layer.get_submodule(BY_NAME[name].projection).weight.shape[0] // HEADS
    index = torch.cat([torch.arange(h * width, (h + 1) * width) for h in order])
    with torch.no_grad():
        if name == "gpt2":
            thirds = torch.cat([index + part * len(index) for part in range(3)])
            layer.attn.c_attn.weight.copy_(layer.attn.c_attn.weight[:, thirds])
            layer.attn.c_attn.bias.copy_(layer.attn.c_attn.bias[thirds])
            layer.attn.c_proj.weight.copy_(layer.attn.c_proj.weight[index])
            return
        for part in ("q_proj", "k_proj", "v_proj"):
            module = layer.self_attn.get_submodule(part)
            module.weight.copy_(module.weight[index])
            module.bias.copy_(module.bias[index])
        layer.self_attn.o_proj.weight.copy_(layer.self_attn.o_proj.weight[:, index])


@pytest.mark.parametrize("name", EXACT)
def test_a_silenced_head_is_dark_and_the_bias_belongs_to_no_head(name: str) -> None:
    family = BY_NAME["llama_biased" if name == "llama" else name]
    model = family.build()
    with torch.no_grad():
        for layer in model.get_submodule(family.layers):
            weight = layer.get_submodule(family.projection).weight
            (weight if name == "gpt2" else weight.T).zero_()
    ids, mask = left_padded()
    _, exporter = generate(model, ids, mask, max_new_tokens=2, do_sample=False)
    for frame in exporter.frames:
        np.testing.assert_array_equal(frame.head_write, np.zeros((LAYERS, HEADS), np.float32))


@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe", "deepseek_v3"])
def test_routing_is_what_the_experts_were_handed(name: str) -> None:
    family = BY_NAME[name]
    model = family.build()
    seen: list[tuple[Any, Any]] = []

    def watch(module: Any, args: Any, kwargs: Any) -> None:
        ids, weights = (*args, *kwargs.values())[1:3]
        seen.append((ids[-1].clone(), weights[-1].clone()))

    experts = [m for n, m in model.named_modules() if n.endswith("experts") and "shared" not in n]
    handles = [m.register_forward_pre_hook(watch, with_kwargs=True) for m in experts]
    ids = prompts(1, 6)
    _, exporter = generate(model, ids, torch.ones_like(ids), max_new_tokens=3, do_sample=False)
    for handle in handles:
        handle.remove()
    first = LAYERS - len(experts)
    for step, frame in enumerate(exporter.frames):
        for layer in range(LAYERS):
            if layer < first:
                assert (frame.expert_ids[layer] == -1).all()
                assert np.isnan(frame.expert_weights[layer]).all()
                continue
            chosen, weights = seen[step * len(experts) + layer - first]
            np.testing.assert_array_equal(frame.expert_ids[layer], chosen.numpy())
            np.testing.assert_array_equal(frame.expert_weights[layer], weights.float().numpy())


@pytest.mark.parametrize("name", ["llama", "mistral", "gemma2", "qwen3_next"])
def test_cached_tokens_and_bytes_are_those_of_the_cache(name: str) -> None:
    family = BY_NAME[name]
    model = family.build()
    ids, mask = left_padded()
    exporter: Any = InMemoryExporter()
    with instrument(model, exporter=exporter):
        output = model.generate(
            ids, attention_mask=mask, max_new_tokens=6, do_sample=False, return_dict_in_generate=True
        )
    cache = output.past_key_values
    paddings = (mask == 0).sum(-1).tolist()
    for frame in exporter.frames[-3:]:
        for layer, part in enumerate(cache.layers):
            keys = getattr(part, "keys", None)
            if keys is None:
                assert frame.kv_tokens[layer] == -1
                continue
            window = keys.shape[-2]
            total = ids.shape[1] + 5
            assert frame.kv_tokens[layer] == min(window, total - paddings[frame.sequence])
        sizes = [
            getattr(part, n).nbytes
            for part in cache.layers
            for n in ("keys", "values", "conv_states", "recurrent_states")
            if isinstance(getattr(part, n, None), torch.Tensor)
        ]
        assert frame.kv_bytes == sum(sizes) // 3


def test_bfloat16_agrees_within_its_rounding() -> None:
    family = BY_NAME["llama"]
    model = family.build(dtype=torch.bfloat16)
    ids, mask = left_padded()
    output, exporter = generate(model, ids, mask, max_new_tokens=3, do_sample=False)
    reference = Reference(family, model)
    for frame in exporter.frames:
        text = real_text(output[frame.sequence], mask[frame.sequence])
        wanted = reference.of(text)[frame.position - 1]
        assert_close(frame.head_write, wanted["head_write"], 5e-2)
        assert_close(frame.residual_norm, wanted["residual_norm"], 2e-2)


def test_pulse_carries_no_channel_of_a_higher_level_and_leaves_the_layers_alone() -> None:
    model = BY_NAME["llama"].build()
    ids, mask = left_padded()
    exporter: Any = InMemoryExporter()
    with instrument(model, level="pulse", exporter=exporter):
        assert not any(
            layer._forward_hooks or layer._forward_pre_hooks for layer in model.model.layers.modules()
        )
        model.generate(ids, attention_mask=mask, max_new_tokens=2, do_sample=False)
    frame = exporter.frames[-1]
    for name, channel in CHANNELS.items():
        if channel.level in ("heads", "deep"):
            assert getattr(frame, name) is None, name
    assert frame.logprob is not None
    assert frame.kv_tokens.tolist() == [10] * 3
    assert frame.batch_size == 3
    assert frame.ended_ns > frame.started_ns > exporter.frames[0].started_ns


def test_columns_have_the_shapes_of_the_channel_table() -> None:
    model = BY_NAME["qwen3_moe"].build()
    ids, mask = left_padded()
    _, exporter = generate(model, ids, mask, max_new_tokens=2, do_sample=False)
    block = exporter.blocks[0]
    for name, column in block.columns.items():
        assert column.shape == (3, *CHANNELS[name].shape(exporter.topology)), name
        wanted = np.float32 if CHANNELS[name].exact.startswith("f") else np.dtype(CHANNELS[name].exact)
        assert column.dtype == wanted, name
