"""Quantised weights: what the dequantised matrix gives, or nothing with a reason."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from tests.agent.effective import assert_exact, generate, plain, run_of, watched  # noqa: E402
from tests.reference.families import build  # noqa: E402

from fulgurite.agent.weights import Unreadable, effective_weight  # noqa: E402


def fresh() -> Any:
    return build("llama", dtype=torch.float32, attn_implementation="eager", seed=0)


def dynamic(part: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.ao.quantization.quantize_dynamic(part, {torch.nn.Linear}, dtype=torch.qint8)


def test_int8_layers_that_round_their_input_give_what_their_dequantised_weights_do() -> None:
    model = fresh()
    model.model = dynamic(model.model)
    alone = generate(model)
    layers = model.model.layers
    handed: list[list[Any]] = [[], []]
    handles = [
        part.register_forward_pre_hook(lambda _, args, kept=kept: kept.append(args[0][:, -1].double()))
        for part, kept in zip((layers[1].self_attn.o_proj, layers[1].mlp.down_proj), handed, strict=True)
    ]
    agent, exporter = watched(model)
    with agent:
        out = generate(model)
        agent.flush()
    for handle in handles:
        handle.remove()
    assert torch.equal(out, alone)
    assert exporter.topology.unavailable == ()
    o_proj, down = (
        p.weight().dequantize().double() for p in (layers[1].self_attn.o_proj, layers[1].mlp.down_proj)
    )
    by_head = o_proj.reshape(o_proj.shape[0], 4, -1)
    for index, frame in enumerate(exporter.frames):
        step, row = divmod(index, 2)
        z = handed[0][step][row].reshape(4, -1)
        wanted = torch.einsum("hd,ohd->ho", z, by_head).norm(dim=-1) / float(frame.residual_norm[1, 0])
        np.testing.assert_allclose(frame.head_write[1], wanted.numpy(), rtol=1e-4)
        sizes = (handed[1][step][row].abs() * down.norm(dim=0)).sort(descending=True).values
        np.testing.assert_allclose(frame.neuron_values[1], sizes[: frame.neuron_values.shape[-1]], rtol=1e-4)
        assert 1e-5 < abs(frame.residue) < 2e-2  # the rounding of the inputs, shown and not hidden


def test_an_unembedding_that_rounds_its_input_has_no_contributions_and_says_so() -> None:
    model = dynamic(fresh())
    agent, exporter = watched(model)
    with agent:
        generate(model)
        agent.flush()
    unavailable = dict(exporter.topology.unavailable)
    assert "what the unembedding gave is not what its weights give" in unavailable["head_contribution"]
    for frame in exporter.frames:
        assert frame.head_contribution is None
        assert frame.lens_prob is None
        assert np.isfinite(frame.head_write).all()


class _Packed(torch.nn.Module):
    """A linear map in a format of its own, as most quantisers ship: integer buffers, and a kernel."""

    def __init__(self, linear: Any, *, works: bool) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.bias = linear.bias
        scale = linear.weight.detach().abs().amax(1, keepdim=True) / 127
        self.register_buffer("scale", scale)
        self.register_buffer("packed", (linear.weight.detach() / scale).round().to(torch.int8))
        self.works = works

    def forward(self, x: Any) -> Any:
        if x.dim() != 3 and not self.works:
            raise RuntimeError("this kernel takes batches only")
        return torch.nn.functional.linear(x, self.packed.to(x.dtype) * self.scale, self.bias)


def packed(*, works: bool) -> Any:
    model = fresh()
    for layer in model.model.layers:
        layer.self_attn.o_proj = _Packed(layer.self_attn.o_proj, works=works)
        layer.mlp.down_proj = _Packed(layer.mlp.down_proj, works=works)
    return model


def dequantised(model: Any) -> dict[str, Any]:
    return {
        f"{name}.weight": part.packed.float() * part.scale
        for name, part in model.named_modules()
        if isinstance(part, _Packed)
    }


def test_a_format_that_we_do_not_know_is_asked_what_it_does() -> None:
    model = packed(works=True)
    agent, exporter = watched(model)
    with agent:
        out = generate(model)
        agent.flush()
    reference = plain("llama", dequantised(model))
    assert_exact(run_of(exporter, list(exporter.frames), reference, out, generate(reference)))


def test_a_format_that_does_not_answer_has_no_heads_and_no_neurons_and_says_so() -> None:
    model = packed(works=False)
    with pytest.raises(Unreadable, match="RuntimeError"):
        effective_weight(model.model.layers[0].self_attn.o_proj)
    alone = generate(model)
    agent, exporter = watched(model)
    with agent:
        assert torch.equal(generate(model), alone)
        agent.flush()
    unavailable = dict(exporter.topology.unavailable)
    for channel in ("head_write", "head_contribution", "neuron_ids"):
        assert "could not be asked what it does" in unavailable[channel]
    for frame in exporter.frames:
        assert frame.head_write is None
        assert frame.head_contribution is None
        assert frame.neuron_ids is None
        assert np.isfinite(frame.ffn_write).all()


def test_weights_that_torchao_packs_are_dequantised() -> None:
    torchao = pytest.importorskip("torchao.quantization")
    model = fresh()
    torchao.quantize_(model, torchao.Int8WeightOnlyConfig())
    agent, exporter = watched(model)
    with agent:
        out = generate(model)
        agent.flush()
    weights = {
        f"{name}.weight": part.weight.dequantize()
        for name, part in model.named_modules()
        if isinstance(part, torch.nn.Linear)
    }
    reference = plain("llama", weights)
    assert_exact(run_of(exporter, list(exporter.frames), reference, out, generate(reference)))
