"""The reference checks itself: what it takes apart adds up to what the model computed, for every family."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tests.reference import families
from tests.reference.arithmetic import TOP_K
from tests.reference.errors import COMPARED, channel_agreement
from tests.reference.families import FAMILIES, VOCABULARY, WINDOW, build
from tests.reference.oracle import BfloatOracle, Oracle, Reference
from tests.reference.recipes import recipe_of
from torch import Tensor, nn

LENGTH = 22
NEW_TOKENS = 6
EVERY = tuple(FAMILIES)
ADDITIVE = tuple(name for name in EVERY if name != "opt_post_norm")
ADDITIVE_RUNS = tuple((name, how) for name in ADDITIVE for how in FAMILIES[name].implementations)
FUSED = tuple(name for name in EVERY if FAMILIES[name].sdpa and not name.startswith("falcon"))
LEARNED_SINKS = ("gpt_oss",)

every_family = pytest.mark.parametrize("name", EVERY)
additive_family = pytest.mark.parametrize("name", ADDITIVE)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def tokens(length: int = LENGTH, *, seed: int = 1) -> Tensor:
    """Random token ids without the padding and beginning tokens, shape (length,)."""
    return torch.randint(2, VOCABULARY, (length,), generator=torch.Generator().manual_seed(seed))


@functools.cache
def reference(name: str) -> Reference:
    """The reference of one random sequence."""
    return Oracle(build(name))(tokens())


def padded_batch() -> tuple[Tensor, Tensor, tuple[tuple[int, int], ...]]:
    """Two prompts of 9 and 5 tokens, the second padded on the left: ids, mask, (prompt, padding) per row."""
    ids = torch.zeros(2, 9, dtype=torch.long)
    ids[0], ids[1, 4:] = tokens(9, seed=2), tokens(5, seed=3)
    return ids, (ids > 0).long(), ((9, 0), (5, 4))


def watched(model: Any) -> tuple[BfloatOracle, Tensor]:
    """A greedy generation from `padded_batch`, and what was recorded of it."""
    ids, mask, _ = padded_batch()
    with BfloatOracle(model) as oracle:
        out = model.generate(
            ids, attention_mask=mask, max_new_tokens=NEW_TOKENS, do_sample=False, pad_token_id=0
        )
    return oracle, out


@every_family
def test_the_float64_copy_is_the_same_model(name: str) -> None:
    model = build(name)
    with torch.no_grad():
        logits = model(tokens()[None, :-1], use_cache=False).logits[0]
    np.testing.assert_allclose(logits.numpy(), reference(name).rows.logits, atol=2e-4, rtol=0)


@every_family
def test_head_vectors_and_the_bias_sum_to_what_the_projection_gives(name: str) -> None:
    assert reference(name).projection_errors().max() < 1e-10


@every_family
def test_what_a_layer_adds_is_what_its_residual_stream_changes_by(name: str) -> None:
    found = reference(name)
    assert np.abs(found.parts.rounding).max() < 1e-10
    assert np.nanmax(found.mixer_errors(), initial=0.0) < 1e-10


@additive_family
def test_the_embedding_and_all_parts_are_the_residual_stream_at_every_layer(name: str) -> None:
    assert reference(name).stream_errors().max() < 1e-10


@additive_family
def test_contributions_sum_to_the_centred_logit(name: str) -> None:
    found = reference(name)
    assert found.sum_errors().max() < 1e-9
    assert np.abs(found.channels["residue"]).max() < 1e-9


def test_a_normalised_residual_stream_has_no_contributions() -> None:
    found = reference("opt_post_norm")
    assert not {"head_contribution", "ffn_contribution", "residue"} & set(found.channels)
    assert np.isnan(found.stream_errors()).all()


@every_family
def test_the_lens_after_the_last_layer_is_the_model_itself(name: str) -> None:
    channels = reference(name).channels
    assert np.array_equal(
        channels["lens_rank"][:, -1], np.broadcast_to(np.arange(TOP_K), (LENGTH - 1, TOP_K))
    )
    full = np.exp(channels["top_logprobs"])
    np.testing.assert_allclose(channels["lens_prob_vocabulary"][:, -1], full, atol=1e-12)
    renormalised = full / full.sum(axis=-1, keepdims=True)
    np.testing.assert_allclose(channels["lens_prob"][:, -1], renormalised, atol=1e-12)


@every_family
def test_attention_rows_are_causal_and_sum_to_one_in_float64(name: str) -> None:
    channels = reference(name).channels
    weights = channels["attention_weights"]
    mass = weights.sum(axis=-1) + np.nan_to_num(channels["learned_sink_mass"])
    assert np.nanmax(np.abs(mass - 1.0)) < 1e-14
    future = np.triu(np.ones((LENGTH - 1, LENGTH - 1), dtype=bool), 1)
    assert np.nansum(np.abs(np.moveaxis(weights, 0, 2)[..., future])) == 0.0


@every_family
def test_a_window_hides_what_is_further_back(name: str) -> None:
    found = reference(name)
    last = found.channels["attention_weights"][-1]  # (layers, heads, keys)
    for layer, weights in zip(found.recipe.layers, last, strict=True):
        if layer.attention is not None:
            seen = int(np.sum(weights[0] > 0.0))
            assert seen == (WINDOW if layer.window else LENGTH - 1)


@every_family
def test_layers_without_attention_have_no_head_values(name: str) -> None:
    found = reference(name)
    without = np.array([layer.attention is None for layer in found.recipe.layers])
    for channel in ("head_write", "attention_entropy", "sink_mass"):
        assert np.array_equal(np.isnan(found.channels[channel]).all(axis=(0, 2)), without), channel
    assert np.array_equal((found.channels["kv_tokens"] == -1).all(axis=0), without)


@every_family
def test_cached_positions_are_those_of_a_real_cache(name: str) -> None:
    model, ids, cache = build(name), tokens()[None], None
    expected = reference(name).channels["kv_tokens"]
    with torch.no_grad():
        for step in range(LENGTH - 1):
            here = ids[:, step : step + 1]
            cache = model(here, past_key_values=cache, use_cache=True).past_key_values
            assert [_resident(layer) for layer in cache.layers] == expected[step].tolist()


def _resident(layer: Any) -> int:
    keys = getattr(layer, "keys", None)
    return -1 if keys is None else int(keys.shape[-2])


@every_family
def test_a_padded_batch_that_is_generated_agrees_with_one_clean_sequence_at_a_time(name: str) -> None:
    oracle, out = watched(build(name))
    exact = Oracle(build(name))
    for row, (prompt, padding) in enumerate(padded_batch()[2]):
        frames = oracle.sequence(out[row], prompt=prompt, row=row, padding=padding)
        clean = exact(out[row][padding:])
        for channel in COMPARED.keys() & frames[0].keys():
            got = np.stack([frame[channel] for frame in frames])
            want = np.stack([clean.at(prompt + step)[channel] for step in range(NEW_TOKENS)])
            assert (
                channel_agreement(channel, _numbers(channel, got), _numbers(channel, want)).relative < 5e-4
            ), channel


def _numbers(channel: str, values: NDArray[Any]) -> NDArray[Any]:
    """Entries beyond the keys are undefined in one, and without weight in the other after a window."""
    return np.nan_to_num(values) if channel == "attended_weights" else values


@pytest.mark.parametrize(("name", "implementation"), ADDITIVE_RUNS)
def test_contributions_of_a_bfloat16_run_sum_up_beside_their_rounding(name: str, implementation: str) -> None:
    oracle, out = watched(build(name, dtype=torch.bfloat16, attn_implementation=implementation))
    for row, (prompt, padding) in enumerate(padded_batch()[2]):
        for frame in oracle.sequence(out[row], prompt=prompt, row=row, padding=padding):
            assert abs(frame["residue"]) < 2e-2
            assert frame["rounding_contribution"] != 0.0


@pytest.mark.parametrize("name", FUSED)
def test_weights_recomputed_from_queries_and_keys_are_those_of_eager_attention(name: str) -> None:
    fused = Oracle(build(name), attn_implementation="sdpa")(tokens())
    np.testing.assert_allclose(
        fused.channels["attention_weights"], reference(name).channels["attention_weights"], atol=1e-12
    )


@pytest.mark.parametrize("name", ["llama", "mistral", "qwen2"])
def test_a_head_hands_over_its_attention_weights_times_its_values(name: str) -> None:
    oracle = Oracle(build(name))
    found = oracle(tokens())
    for layer, values in zip(oracle.model.model.layers, found.rows.layers, strict=True):
        normed = layer.input_layernorm(torch.from_numpy(values["entered"]))
        value = layer.self_attn.v_proj(normed).detach().numpy()  # (positions, key-value heads × head size)
        size = layer.self_attn.head_dim
        for head in range(4):
            shared = value[:, (head // 2) * size : (head // 2 + 1) * size]
            mixed = values["weights"][:, head] @ shared
            np.testing.assert_allclose(
                values["heads_in"][:, head * size : (head + 1) * size], mixed, atol=1e-6
            )


@pytest.mark.parametrize("name", LEARNED_SINKS)
def test_a_learned_sink_takes_what_the_keys_do_not(name: str) -> None:
    channels = reference(name).channels
    assert channels["learned_sink_mass"].min() > 0.0
    assert channels["learned_sink_mass"].max() > 0.1
    assert (channels["attention_entropy_with_sink"] > channels["attention_entropy"]).all()


@every_family
def test_watching_changes_nothing_and_leaves_no_hook_behind(name: str) -> None:
    model, ids = build(name), tokens()[None]
    with torch.no_grad():
        before = model(ids, use_cache=False).logits
        with BfloatOracle(model):
            during = model(ids, use_cache=False).logits
    assert torch.equal(before, during)
    assert all(_hooks(module) == 0 for module in model.modules())


def _hooks(module: nn.Module) -> int:
    return len(module._forward_hooks) + len(module._forward_pre_hooks)


@every_family
def test_a_family_has_no_trivial_norm_bias_or_attention(name: str) -> None:
    model = build(name)
    for key, parameter in model.named_parameters():
        assert parameter.std() > 0.01, key
    found = reference(name).channels
    uniform = np.log(np.arange(1, LENGTH))[:, None, None]
    assert np.nanmean(found["attention_entropy"][LENGTH // 2 :] / uniform[LENGTH // 2 :]) < 0.9
    assert found["entropy"].mean() > 0.2  # the output is no foregone conclusion


@pytest.mark.parametrize(
    "name", ["llama", "mistral", "qwen3", "gemma", "gemma2", "gemma3", "mixtral", "gpt_oss", "deepseek_v3"]
)
def test_heads_side_by_side_are_not_as_wide_as_the_residual_stream(name: str) -> None:
    model = build(name)
    for layer in recipe_of(model).layers:
        weight: Any = layer.projection.weight
        assert weight.shape[0] != weight.shape[1]


@every_family
def test_weights_depend_on_the_seed_alone(name: str) -> None:
    torch.manual_seed(5)
    first = build(name, seed=3).state_dict()
    drawn = torch.rand(1)
    again, other = build(name, seed=3).state_dict(), build(name, seed=4).state_dict()
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not all(torch.equal(first[key], other[key]) for key in first)
    torch.manual_seed(5)
    assert torch.equal(drawn, torch.rand(1))


def test_an_end_token_is_off_until_it_is_asked_for() -> None:
    prompt = tokens(4)[None]
    free: Any = build("llama")
    out = free.generate(prompt, max_new_tokens=8, do_sample=False)
    assert out.shape[1] == 12
    stopping: Any = build("llama", eos_token_id=int(out[0, 5]))
    assert stopping.generate(prompt, max_new_tokens=8, do_sample=False).shape[1] <= 6


def test_settings_go_before_those_of_the_table() -> None:
    model = build("llama", settings={"num_hidden_layers": 2, "num_key_value_heads": 4})
    assert len(recipe_of(model).layers) == 2
    assert Oracle(model)(tokens()).stream_errors().max() < 1e-10


def test_unknown_families_and_attention_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match="no family 'nonesuch'; there are llama"):
        build("nonesuch")
    with pytest.raises(ValueError, match="gpt_oss runs under"):
        build("gpt_oss", attn_implementation="sdpa")


def test_a_model_without_a_recipe_is_refused() -> None:
    config = families.configuration("llama")
    config.model_type = "nonesuch"
    model = families.from_configuration("llama", config, attn_implementation="eager")
    with pytest.raises(NotImplementedError, match="no recipe for 'nonesuch'"):
        recipe_of(model)


def test_a_frame_that_nothing_produced_is_refused() -> None:
    found = reference("llama")
    assert found.at(1)["kv_tokens"].tolist() == [1, 1, 1]
    for position in (0, LENGTH):
        with pytest.raises(IndexError, match=f"no frame at position {position}"):
            found.at(position)
