"""Adapters on the projections: merged or not, switched or written to during the run, put on and taken off.

What is captured is compared with the float64 oracle of a plain model with the weights that are in force.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")

from tests.agent.effective import assert_exact, generate, plain, run_of, watched  # noqa: E402
from tests.reference import gate  # noqa: E402
from tests.reference.families import build  # noqa: E402

from fulgurite.agent.weights import Unreadable, effective_weight  # noqa: E402

TARGETS = {"llama": ["o_proj", "down_proj"], "gpt2": ["c_proj"]}
KINDS: dict[str, Any] = {
    "lora": {},
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "biased": {"lora_bias": True},
}


def adapted(name: str = "llama", adapters: tuple[str, ...] = ("one",), **options: Any) -> Any:
    model = build(name, dtype=torch.float32, attn_implementation="eager", seed=0)
    torch.manual_seed(5)
    config = peft.LoraConfig(
        r=4, lora_alpha=16, target_modules=TARGETS[name], init_lora_weights=False,
        fan_in_fan_out=name == "gpt2", **options,
    )  # fmt: skip
    found = peft.get_peft_model(model, config, adapter_name=adapters[0])
    for other in adapters[1:]:
        found.add_adapter(other, config)
    for path, parameter in found.named_parameters():  # a magnitude is born as what changes nothing
        if "lora_magnitude_vector" in path:
            parameter.data *= 0.5 + torch.rand(parameter.shape)
    return found.eval()


def weights_in_force(model: Any) -> dict[str, Any]:
    """By name in the plain model, as peft itself merges them."""
    twin = copy.deepcopy(model)
    for part in twin.modules():
        if hasattr(part, "unmerge") and getattr(part, "merged", False):
            return dict(_stripped(twin.base_model.model))
    base = twin.merge_and_unload(adapter_names=twin.active_adapters) if _is_on(twin) else twin.unload()
    return dict(base.state_dict())


def _is_on(model: Any) -> bool:
    return not any(getattr(part, "disable_adapters", False) is True for part in model.modules())


def _stripped(base: Any) -> dict[str, Any]:
    return {
        name.replace(".base_layer", ""): value
        for name, value in base.state_dict().items()
        if "lora_" not in name
    }


def checked(agent: Any, exporter: Any, model: Any, name: str = "llama") -> None:
    """One run under observation, and what it ought to have given with the weights as they are now."""
    agent.flush()
    before = len(exporter.frames)
    out = generate(model)
    agent.flush()
    alone = generate(plain(name, weights_in_force(model)))
    reference = plain(name, weights_in_force(model))
    assert_exact(run_of(exporter, list(exporter.frames)[before:], reference, out, alone))


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("name", list(TARGETS))
def test_unmerged_and_merged_adapters_are_exact(name: str, kind: str) -> None:
    model = adapted(name, **KINDS[kind])
    agent, exporter = watched(model)
    with agent:
        checked(agent, exporter, model, name)
        model.merge_adapter()
        checked(agent, exporter, model, name)
        model.unmerge_adapter()
        checked(agent, exporter, model, name)


def test_an_adapter_that_is_switched_scaled_or_switched_off_between_runs_is_noticed() -> None:
    model = adapted(adapters=("one", "two"))
    agent, exporter = watched(model)
    with agent:
        checked(agent, exporter, model)
        model.set_adapter("two")
        checked(agent, exporter, model)
        for part in model.modules():
            if hasattr(part, "scale_layer"):
                part.scale_layer(0.5)
        checked(agent, exporter, model)
        with model.disable_adapter():
            checked(agent, exporter, model)
        checked(agent, exporter, model)


@pytest.mark.parametrize("how", ["in place", "past the version counter", "exchanged"])
def test_weights_that_are_written_between_runs_are_noticed(how: str) -> None:
    model = adapted()
    agent, exporter = watched(model)
    with agent:
        checked(agent, exporter, model)
        layer = model.base_model.model.model.layers[1]
        for part in (layer.self_attn.o_proj, layer.mlp.down_proj):
            _write(part.lora_B["one"], how)
            _write(part.base_layer, how)
        checked(agent, exporter, model)


def _write(linear: Any, how: str) -> None:
    new = 1.5 * linear.weight.detach() + 0.01
    if how == "in place":
        with torch.no_grad():
            linear.weight.copy_(new)
    elif how == "exchanged":
        linear.weight = torch.nn.Parameter(new)
    else:
        linear.weight.data.copy_(new)


def test_an_adapter_that_is_put_on_merged_and_taken_off_after_instrument_is_noticed() -> None:
    model = build("llama", dtype=torch.float32, attn_implementation="eager", seed=0)
    agent, exporter = watched(model)
    with agent:
        own = dict(model.state_dict())
        out = generate(model)
        agent.flush()
        alone = generate(plain("llama", own))
        assert_exact(run_of(exporter, list(exporter.frames), plain("llama", own), out, alone))
        torch.manual_seed(5)
        config = peft.LoraConfig(r=4, target_modules=TARGETS["llama"], init_lora_weights=False)
        over = peft.get_peft_model(model, config, adapter_name="one").eval()
        checked(agent, exporter, over)
        merged = over.merge_and_unload()
        assert merged is model
        agent.flush()
        before = len(exporter.frames)
        out = generate(model)
        agent.flush()
        reference = plain("llama", dict(model.state_dict()))
        frames = list(exporter.frames)[before:]
        assert_exact(run_of(exporter, frames, reference, out, generate(reference)))
        assert exporter.topology.unavailable == ()


def test_an_adapter_that_is_switched_in_the_middle_of_a_loop_counts_from_the_next_pass_on() -> None:
    model = adapted(adapters=("one", "two"))
    agent, exporter = watched(model, level="heads")
    norms: dict[str, Any] = {}
    o_proj = model.base_model.model.model.layers[0].self_attn.o_proj
    seen: list[Any] = []
    handle = o_proj.register_forward_pre_hook(lambda _, args: seen.append(args[0][0, -1].double()))
    names = ["one", "two", "one"]
    with agent, torch.no_grad():
        cache, ids = None, torch.arange(2, 9)[None]
        for name in [*names, "one"]:
            model.set_adapter(name)
            norms[name] = effective_weight(o_proj).double()
            out = model(input_ids=ids, past_key_values=cache, use_cache=True)
            cache, ids = out.past_key_values, out.logits[:, -1:].argmax(-1)
        agent.flush()
    handle.remove()
    frames = list(exporter.frames)
    assert len(frames) == 3
    for frame, name, z in zip(frames, names, seen, strict=False):
        heads = z.reshape(4, -1), norms[name].reshape(norms[name].shape[0], 4, -1)
        wanted = torch.einsum("hd,ohd->ho", *heads).norm(dim=-1) / float(frame.residual_norm[0, 0])
        np.testing.assert_allclose(frame.head_write[0], wanted.numpy(), rtol=1e-4)


def test_a_batch_in_which_each_row_has_its_own_adapter_has_no_heads_and_the_next_one_has() -> None:
    model = adapted(adapters=("one", "two"))
    agent, exporter = watched(model)
    ids, mask = gate.prompts()
    with agent:
        checked(agent, exporter, model)
        agent.flush()
        before = len(exporter.frames)
        model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=2,
            adapter_names=["one", "two"],
            do_sample=False,
        )
        agent.flush()
        mixed = list(exporter.frames)[before:]
        assert len(mixed) == 4
        assert all(frame.head_write is None and frame.head_contribution is None for frame in mixed)
        assert all(np.isfinite(frame.ffn_write).all() for frame in mixed)
        assert "adapter of its own" in dict(exporter.topology.unavailable)["head_write"]
        checked(agent, exporter, model)


def test_a_projection_with_dropout_has_no_matrix_and_the_hosts_random_numbers_are_left_alone() -> None:
    model = adapted(lora_dropout=0.5).train()
    o_proj = model.base_model.model.model.layers[0].self_attn.o_proj
    torch.manual_seed(1)
    wanted = torch.rand(3)
    torch.manual_seed(1)
    with pytest.raises(Unreadable, match="not one linear map"):
        effective_weight(o_proj)
    assert torch.equal(torch.rand(3), wanted)
    agent, exporter = watched(model)
    with agent:
        generate(model)
        agent.flush()
    assert all(frame.head_write is None for frame in exporter.frames)
    assert "not one linear map" in dict(exporter.topology.unavailable)["head_write"]
