"""The exactness gates, for every decoder family: each channel agrees with an independent float64
recomputation (P1), and contributions make up the logit (P0).

A padded batch, prefill and decode, under every attention implementation that the family runs under. What a
family cannot give is listed here, and is absent from its frames with a reason.
"""

from __future__ import annotations

import functools

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from tests.reference import gate  # noqa: E402
from tests.reference.families import FAMILIES  # noqa: E402

from fulgurite.wire.channels import CHANNELS  # noqa: E402

BOUNDS = {"float32": 1e-3, "bfloat16": 2e-2}
RANK = 0.999

ROUTING = {
    "attention_entropy", "sink_mass", "attended_positions", "attended_weights", "measured_layers", "kv_heat",
}  # fmt: skip
NEURONS = {"neuron_ids", "neuron_values"}
LENS = {"lens_rank", "lens_prob"}
CONTRIBUTIONS = {
    "head_contribution", "ffn_contribution", "embedding_contribution", "other_contribution", "residue",
    "logit_centered",
}  # fmt: skip

# what a family does not give, in part (some layers) or at all: the channel has a reason
REFUSED: dict[tuple[str, str], set[str]] = {
    # fused attention without transformers' interface: nobody hands the queries and keys out
    ("falcon", "sdpa"): ROUTING,
    ("falcon_multi_query", "sdpa"): ROUTING,
    # a norm after each addition: no sum over the layers, and no final norm to look through
    ("opt_post_norm", "eager"): CONTRIBUTIONS | LENS,
    ("opt_post_norm", "sdpa"): CONTRIBUTIONS | LENS,
}
ROUTED = {"mixtral", "qwen3_moe", "deepseek_v3", "gpt_oss", "qwen3_next", "jamba"}  # mixtures of experts
REFUSED_BY_FAMILY: dict[str, set[str]] = dict.fromkeys(ROUTED, NEURONS)
IN_SOME_LAYERS = {"qwen3_moe", "deepseek_v3", "jamba"}  # the others of their layers are dense

# what there is nothing of: no reason is needed
CACHED = set(FAMILIES) - {"mpt"}  # whose own configuration generates without a cache
ABSENT = {
    "learned_sink_mass": {"gpt_oss"},
    "expert_ids": ROUTED,
    "expert_weights": ROUTED,
    "kv_tokens": CACHED,
    "kv_bytes": CACHED,
}

RUNS = [(name, how, dtype) for name in FAMILIES for how in FAMILIES[name].implementations for dtype in BOUNDS]
every_run = pytest.mark.parametrize(("name", "how", "dtype"), RUNS)


@functools.cache
def run(name: str, how: str, dtype: str) -> gate.Run:
    return gate.run(name, dtype=getattr(torch, dtype), attn_implementation=how)


def refused(name: str, how: str) -> set[str]:
    return REFUSED.get((name, how), set()) | REFUSED_BY_FAMILY.get(name, set())


def not_captured(name: str, how: str) -> set[str]:
    """Channels that are None in every frame of the family."""
    partly = NEURONS if name in IN_SOME_LAYERS else set()
    absent = {channel for channel, only in ABSENT.items() if name not in only}
    return (refused(name, how) - partly) | absent | {"logprob_sampled"}  # greedy: no processor


@every_run
def test_an_observed_model_generates_the_same_tokens(name: str, how: str, dtype: str) -> None:
    found = run(name, how, dtype)
    assert found.same_tokens
    assert len(found.frames) == len(gate.PROMPTS) * gate.NEW_TOKENS
    assert {frame.level for frame in found.frames} == {"deep"}


@every_run
def test_what_a_family_cannot_give_is_absent_and_has_a_reason(name: str, how: str, dtype: str) -> None:
    found = run(name, how, dtype)
    assert set(found.unavailable) == refused(name, how)
    assert all(found.unavailable.values())
    empty = {
        channel.name
        for channel in CHANNELS
        if channel.name != "request_index" and found.captured(channel.name) is None
    }
    assert empty == not_captured(name, how)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_topology_is_that_of_the_family(name: str) -> None:
    found = run(name, "eager", "float32")
    layers, topology = found.recipe.layers, found.topology
    assert topology.layers == len(layers)
    assert topology.layer_heads == tuple(layer.heads for layer in layers)
    assert topology.layer_windows == tuple(layer.window or 0 for layer in layers)
    for kind, layer in zip(topology.layer_kinds, layers, strict=True):
        assert kind == ("linear" if layer.attention is None else "sliding" if layer.window else "full")
    widths = [layer.projection.weight.numel() // topology.hidden_size for layer in layers if layer.heads]
    assert topology.heads * topology.head_dim == widths[0]
    assert (topology.experts > 0) == (topology.experts_per_token > 0) == (name in ROUTED)


@every_run
def test_every_channel_agrees_with_the_reference(name: str, how: str, dtype: str) -> None:
    found = gate.agreements(run(name, how, dtype))
    assert set(found) == set(gate.CHANNELS) - not_captured(name, how)
    for channel, agreement in found.items():
        assert agreement.relative <= BOUNDS[dtype], (channel, agreement)
        assert not agreement.correlation < RANK, (channel, agreement)  # NaN: nothing to rank
        assert agreement.compared > 0, channel


@every_run
def test_whole_numbers_are_those_of_the_reference(name: str, how: str, dtype: str) -> None:
    found = run(name, how, dtype)
    if name in CACHED:
        np.testing.assert_array_equal(found.captured("kv_tokens"), found.reference("kv_tokens"))
    if name in ROUTED:
        np.testing.assert_array_equal(found.captured("expert_ids"), found.reference("expert_ids"))
    if "measured_layers" not in refused(name, how):
        has_heads = [layer.heads > 0 for layer in found.recipe.layers]
        np.testing.assert_array_equal(found.captured("measured_layers"), [has_heads] * len(found.frames))
    if "lens_rank" not in refused(name, how):
        assert gate.lens_rank_errors(found, slack=BOUNDS[dtype] / 10) == 0
    logits = found.reference("logits")
    own = np.take_along_axis(logits, found.captured("token_id")[:, None], axis=-1)
    np.testing.assert_array_equal(found.captured("rank"), (logits > own).sum(axis=-1))


@every_run
def test_the_parts_make_up_the_logit_of_every_frame(name: str, how: str, dtype: str) -> None:
    found = run(name, how, dtype)
    if "residue" in refused(name, how):
        assert found.captured("residue") is None
        return
    assert gate.residues(found).max() <= BOUNDS[dtype]
    parts = (
        np.nansum(found.captured("head_contribution"), axis=(1, 2))
        + np.nansum(found.captured("ffn_contribution"), axis=1)
        + found.captured("embedding_contribution")
        + found.captured("other_contribution")
    )
    gap = (found.captured("logit_centered") - parts) / found.reference("logit_spread")
    np.testing.assert_allclose(gap, found.captured("residue"), atol=1e-5)


def test_all_families_of_the_gates_are_here() -> None:
    """One more family is one more configuration; one less is a failure."""
    named = {
        "llama", "llama3", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "phi3", "gpt2", "gpt_neox",
        "falcon", "opt", "bloom", "starcoder2", "olmo2", "cohere", "granite", "mixtral", "qwen3_moe",
        "deepseek_v3", "gpt_oss", "qwen3_next", "jamba",
    }  # fmt: skip
    assert named <= set(FAMILIES)
