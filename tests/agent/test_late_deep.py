"""What the host's thread leaves of a deep step to whoever reads the block."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from tests.agent.unread import Unread  # noqa: E402

from fulgurite.agent import instrument  # noqa: E402
from fulgurite.agent.contribution import CHANNELS, Attribution, product  # noqa: E402
from fulgurite.agent.neurons import LateNeurons, Neurons  # noqa: E402
from fulgurite.agent.reduce import numbers  # noqa: E402

TOKENS = 5


def _llama(**options: Any) -> Any:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "vocab_size": 1031, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
        "eos_token_id": None,
    }  # fmt: skip
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**{**sizes, **options})).eval()


def _generate(model: Any, tokens: int = TOKENS) -> None:
    model.generate(torch.arange(5, 13).view(2, 4), max_new_tokens=tokens, do_sample=False, pad_token_id=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("rows", [1, 3, 64, 130])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (63, 64), (64, 65), (200, 190), (130, 40)])
def test_tiles_make_up_the_product(height: int, width: int, rows: int, dtype: Any) -> None:
    generator = torch.Generator().manual_seed(height)
    left = torch.randn(rows, height, generator=generator)
    for matrix in (
        torch.randn(height, width, generator=generator).to(dtype),
        torch.randn(width, height, generator=generator).to(dtype).T,  # as of a Conv1D
    ):
        wanted = left.double() @ matrix.double()
        found = product(left.numpy(), numbers(matrix))
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("width", [3, 48, 700])
def test_the_largest_neurons_are_those_of_a_whole_sort(width: int, dtype: Any) -> None:
    generator = torch.Generator().manual_seed(width)
    handed = torch.randn(5, width, generator=generator).to(dtype)
    sizes = torch.rand(width, generator=generator) + 0.5
    found = LateNeurons({2: handed}, {2: (sizes, 1000)}).told()["neurons2"]
    written = handed.double().abs() * sizes.double()
    values, ids = written.sort(-1, descending=True)
    count = found.shape[-1]
    np.testing.assert_allclose(found[:, 1], values[:, :count], rtol=1e-6)
    chosen = torch.from_numpy(found[:, 0]).long() - 1000
    np.testing.assert_allclose(written.gather(-1, chosen), values[:, :count], rtol=1e-6)
    if dtype == torch.float32:
        np.testing.assert_array_equal(chosen, ids[:, :count])


def _watched(patch: pytest.MonkeyPatch) -> list[str]:
    """Names of the costly parts that run on the host's thread from now on."""
    ran: list[str] = []
    for owner, name in ((Attribution, "_heads"), (Neurons, "_largest")):
        plain = getattr(owner, name)

        def noting(*args: Any, plain: Any = plain, name: str = name) -> Any:
            ran.append(name)
            return plain(*args)

        patch.setattr(owner, name, noting)
    return ran


def test_the_hosts_thread_multiplies_with_no_projection_and_sorts_no_neurons(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, exporter = _llama(), Unread()
    with instrument(model, level="deep", exporter=exporter, budget=None, deep_ratio=1.0):
        _generate(model)
        exporter.given.clear()
        ran = _watched(monkeypatch)
        _generate(model)
    assert len(exporter.given) == TOKENS
    for block in exporter.given:
        assert {*CHANNELS, "neuron_ids", "lens_prob"} <= set(block.columns)
        assert np.abs(block.columns["residue"]).max() < 1e-4
    assert ran == []


def test_weights_that_were_written_to_before_it_was_read_give_no_contributions() -> None:
    model, exporter = _llama(), Unread()
    with instrument(model, level="deep", exporter=exporter, budget=None, deep_ratio=1.0):
        _generate(model)
        exporter.given.clear()
        _generate(model)
        with torch.no_grad():
            model.model.layers[1].self_attn.o_proj.weight.mul_(2.0)
    for block in exporter.given:
        assert set(block.columns).isdisjoint(CHANNELS)
        assert {"head_write", "neuron_ids", "lens_prob"} <= set(block.columns)


def test_weights_whose_writes_torch_does_not_count_are_multiplied_with_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with torch.inference_mode():
        model, exporter = _llama(), Unread()
        with instrument(model, level="deep", exporter=exporter, budget=None, deep_ratio=1.0):
            _generate(model)
            ran = _watched(monkeypatch)
            _generate(model)
    assert ran.count("_heads") == TOKENS


def test_weights_that_are_made_anew_in_each_pass_are_multiplied_with_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A parametrised projection: what it applies is no memory that stays."""
    model, exporter = _llama(), Unread()
    for layer in model.model.layers:
        torch.nn.utils.parametrizations.weight_norm(layer.self_attn.o_proj)
    with instrument(model, level="deep", exporter=exporter, budget=None, deep_ratio=1.0):
        _generate(model)
        exporter.given.clear()
        ran = _watched(monkeypatch)
        _generate(model)
    assert ran.count("_heads") == TOKENS
    for block in exporter.given:
        assert np.abs(block.columns["residue"]).max() < 1e-4


@pytest.mark.parametrize("what", ["contribution", "deep"])
def test_what_fails_while_it_is_read_loses_nothing_else(monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    monkeypatch.delenv("FULGURITE_STRICT", raising=False)
    model, exporter = _llama(), Unread()

    def fails(*_: Any) -> Any:
        raise ValueError("on purpose")

    place, lost = {
        "contribution": ("fulgurite.agent.contribution.product", set(CHANNELS)),
        "deep": ("fulgurite.agent.neurons.largest_places", {"neuron_ids", "neuron_values"}),
    }[what]
    with instrument(model, level="deep", exporter=exporter, budget=None, deep_ratio=1.0) as agent:
        _generate(model)
        exporter.given.clear()
        _generate(model)
        monkeypatch.setattr(place, fails)
        for block in exporter.given:
            left = set(block.columns)
            assert not lost & left
            assert {"head_write", "lens_prob", "entropy"} <= left
            assert left & (({*CHANNELS} | {"neuron_ids"}) - lost)
        assert agent.stats().errors == {f"{what}:ValueError": TOKENS}
