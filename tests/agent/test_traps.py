"""The known ways to draw something wrong, each tried on a model that would show it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from tests.reference import gate  # noqa: E402
from tests.reference.families import FAMILIES, build  # noqa: E402
from tests.reference.recipes import recipe_of  # noqa: E402

from fulgurite.agent import InMemoryExporter, instrument  # noqa: E402
from fulgurite.agent.grams import gram  # noqa: E402
from fulgurite.agent.reduce import head_squares  # noqa: E402
from fulgurite.wire.channels import BY_NAME  # noqa: E402

PROMPT = [[2, 3, 4, 5, 6]]
ADDITIVE = [name for name in FAMILIES if name != "opt_post_norm"]


def frames_of(model: Any, count: int = 2) -> list[Any]:
    exporter: Any = InMemoryExporter()
    with instrument(model, level="deep", exporter=exporter):
        model.generate(torch.tensor(PROMPT), max_new_tokens=count, do_sample=False)
    return exporter.frames


def head_columns(projection: Any, heads: int, head: int) -> Any:
    """The columns of the output projection that belong to one head."""
    matrix = projection.weight.T if type(projection).__name__ == "Conv1D" else projection.weight
    width = matrix.shape[1] // heads
    return matrix[:, head * width : (head + 1) * width]


# attention is not importance


def test_a_head_that_looks_but_writes_nothing_is_dark_and_still_looks() -> None:
    model: Any = build("llama")
    before = frames_of(model, 1)[0]
    with torch.no_grad():
        head_columns(model.model.layers[0].self_attn.o_proj, 4, 2).zero_()
    after = frames_of(model, 1)[0]
    assert after.head_write[0, 2] == after.head_contribution[0, 2] == 0.0
    np.testing.assert_array_equal(after.attended_weights[0, 2], before.attended_weights[0, 2])
    assert after.attended_weights[0, 2, 0] > 0.1


def test_attention_is_called_routing_and_nothing_else() -> None:
    for name in ("attention_entropy", "sink_mass", "attended_weights", "attended_positions"):
        assert BY_NAME[name].family == "routing"
    assert BY_NAME["kv_heat"].family == "memory"
    assert BY_NAME["head_write"].family == "activity"


# massive activations and depth


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_a_massive_coordinate_dims_the_heads_and_does_not_blur_them(name: str) -> None:
    """One coordinate some 10^4 times the rest: relative writes get small, and stay exact and finite."""
    model: Any = build(name)
    plain = frames_of(model, 1)[0]
    with torch.no_grad():
        table = model.get_input_embeddings().weight
        model.get_output_embeddings().weight = torch.nn.Parameter(table.clone())
        model.config.tie_word_embeddings = False
        table[:, 7] = 3e3
    ids, mask = gate.prompts()
    found = gate.compare(model, ids, mask, new_tokens=2)
    agreements = gate.agreements(found)
    for channel in ("head_write", "ffn_write", "residual_norm", "ffn_cosine"):
        assert agreements[channel].relative <= 1e-3, (channel, agreements[channel])
    frame = found.frames[0]
    assert frame.residual_norm.min() > 100 * plain.residual_norm.max() / 10
    assert frame.head_write.max() < plain.head_write.max() / 10
    assert gate.residues(found).max() <= 1e-3


def test_relative_writes_times_the_stream_are_what_was_added() -> None:
    """Depth growth is in the residual norm, which travels beside the relative writes."""
    found = gate.run("llama")
    for frame, wanted in zip(found.frames, found.wanted, strict=True):
        absolute = frame.head_write * frame.residual_norm[:, :1]
        truth = wanted["head_write"] * wanted["residual_norm"][:, :1]
        np.testing.assert_allclose(absolute, truth, rtol=1e-3)
        np.testing.assert_allclose(frame.residual_norm, wanted["residual_norm"], rtol=1e-4)


# the final norm


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ADDITIVE)
def test_without_the_final_norms_gain_the_parts_do_not_make_up_the_logit(name: str, dtype: Any) -> None:
    """Rounding, which is told apart, cannot explain it away in a coarse number format either."""
    model: Any = build(name, dtype=dtype)
    bound = 1e-3 if dtype == torch.float32 else 2e-2
    exporter: Any = InMemoryExporter()
    with instrument(model, level="deep", exporter=exporter) as agent:
        model.generate(torch.tensor(PROMPT), max_new_tokens=4, do_sample=False)
        attribution = agent._capture._attribution
        known = attribution.readout
        for broken in (
            replace(known.norm, gain=np.ones_like(known.norm.gain)),
            replace(known.norm, eps=known.norm.eps + 1.0),  # another scale
        ):
            attribution.readout = replace(known, norm=broken)
            model.generate(torch.tensor(PROMPT), max_new_tokens=4, do_sample=False)
    right, *wrong = np.abs([frame.residue for frame in exporter.frames]).reshape(3, 4).max(axis=-1)
    assert right <= bound
    assert min(wrong) > 2 * bound


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ADDITIVE)
def test_a_part_that_is_left_out_is_missed(name: str, dtype: Any) -> None:
    """A feed-forward write that is not counted stays in the residue: rounding cannot make so much."""
    model: Any = build(name, dtype=dtype)
    exporter: Any = InMemoryExporter()
    with instrument(model, level="deep", exporter=exporter) as agent:
        model.generate(torch.tensor(PROMPT), max_new_tokens=1, do_sample=False)
        agent._capture._attribution.layout.ffn_factor[1] = 0.0
        model.generate(torch.tensor(PROMPT), max_new_tokens=4, do_sample=False)
    residues = np.abs([frame.residue for frame in exporter.frames])
    bound = 1e-3 if dtype == torch.float32 else 2e-2
    assert residues[0] <= bound
    assert residues[1:].max() > 2 * bound


# the head axis


@pytest.mark.parametrize("name", ADDITIVE)
def test_the_heads_and_the_bias_are_what_attention_adds(name: str) -> None:
    """The heads' shares, with the projection's bias, are the share of the whole output of the projection."""
    found = gate.run(name)
    recipe = found.recipe
    for frame, wanted in zip(found.frames, found.wanted, strict=True):
        for index, layer in enumerate(recipe.layers):
            if layer.heads == 0:
                assert np.isnan(frame.head_contribution[index]).all()
                continue
            whole = wanted["mixer_contribution"][index] - wanted["rest_contribution"][index]
            heads = frame.head_contribution[index, : layer.heads]
            assert abs(heads.sum() - whole) <= 1e-3 * max(np.abs(heads).max(), wanted["logit_spread"])


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "falcon", "bloom", "deepseek_v3"])
def test_all_heads_silenced_is_the_module_silenced(name: str) -> None:
    """Nothing at the input of the projection is the same as attention that adds nothing but its bias."""
    model, twin = build(name), build(name)
    layers, twins = recipe_of(model).layers, recipe_of(twin).layers
    for layer in layers:
        layer.projection.register_forward_pre_hook(lambda _, args: (torch.zeros_like(args[0]), *args[1:]))
    for layer in twins:
        bias = layer.projection.bias
        layer.projection.register_forward_hook(
            lambda _, __, out, bias=bias: torch.zeros_like(out) if bias is None else bias.expand_as(out)
        )
    ids = torch.tensor(PROMPT)
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, twin(ids).logits, rtol=0, atol=1e-6)
    exporter: Any = InMemoryExporter()
    whole: Any = build(name)
    with instrument(whole, level="deep", exporter=exporter):
        whole.generate(ids, max_new_tokens=1, do_sample=False)
        for layer in recipe_of(whole).layers:  # before the probes, or they would see what is not projected
            layer.projection.register_forward_pre_hook(
                lambda _, args: (torch.zeros_like(args[0]), *args[1:]), prepend=True
            )
        whole.generate(ids, max_new_tokens=2, do_sample=False)
    assert exporter.frames[0].head_write.min() > 0.0
    for frame in exporter.frames[1:]:
        assert np.abs(frame.head_write).max() == 0.0
        assert np.abs(frame.head_contribution).max() == 0.0


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "falcon", "deepseek_v3"])
def test_one_head_silenced_is_one_light_out(name: str) -> None:
    model: Any = build(name)
    before = frames_of(model, 1)[0]
    layer = recipe_of(model).layers[0]
    with torch.no_grad():
        head_columns(layer.projection, layer.heads, 1).zero_()
    after = frames_of(model, 1)[0]
    norms = [frame.head_write[0] * frame.residual_norm[0, 0] for frame in (before, after)]
    if layer.attention_norm is None and layer.middle is not None:
        np.testing.assert_allclose(np.delete(norms[1], 1), np.delete(norms[0], 1), rtol=1e-4)
    assert after.head_write[0, 1] == 0.0
    assert (np.delete(after.head_write[0], 1) > 0.0).all()


def test_a_slice_of_the_modules_output_is_not_a_head() -> None:
    """What cutting the output into as many pieces as there are heads would show is something else."""
    model: Any = build("llama")
    seen: list[Any] = []
    handle = (
        recipe_of(model)
        .layers[0]
        .projection.register_forward_hook(lambda _, __, out: seen.append(out[0, -1].detach()))
    )
    frame = frames_of(model, 1)[0]
    handle.remove()
    pieces = np.linalg.norm(seen[0].numpy().reshape(4, -1), axis=-1)
    lights = frame.head_write[0]
    assert np.abs(pieces / pieces.sum() - lights / lights.sum()).max() > 0.05


# shards


def test_heads_of_two_shards_stand_side_by_side_and_partial_ffn_norms_do_not_add() -> None:
    generator = torch.Generator().manual_seed(4)
    weight, z = torch.randn(12, 24, generator=generator), torch.randn(3, 24, generator=generator)
    whole = head_squares([z], gram(weight, 4)[None])
    halves = [
        head_squares([z[:, part]], gram(weight[:, part], 2)[None]) for part in (slice(12), slice(12, None))
    ]
    torch.testing.assert_close(torch.cat(halves, 1), whole)
    truth = torch.linalg.vector_norm(z @ weight.T, dim=-1)
    parts = [
        torch.linalg.vector_norm(z[:, part] @ weight[:, part].T, dim=-1)
        for part in (slice(12), slice(12, None))
    ]
    assert (torch.hypot(*parts) / truth - 1.0).abs().min() > 1e-2
    push = torch.randn(12, generator=generator)
    shares = [z[:, part] @ weight[:, part].T @ push for part in (slice(12), slice(12, None))]
    torch.testing.assert_close(sum(shares), z @ weight.T @ push)
