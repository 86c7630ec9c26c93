"""The logit lens is the model's own readout, after each layer, over the final candidates alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from tests.reference import gate  # noqa: E402
from tests.reference.families import build  # noqa: E402

from fulgurite.agent import InMemoryExporter, instrument, lens  # noqa: E402
from fulgurite.agent.norms import NormSpec  # noqa: E402
from fulgurite.agent.readout import Readout  # noqa: E402
from fulgurite.wire.channels import TOP_K  # noqa: E402

LAYERS, ROWS, WIDTH, VOCABULARY = 3, 2, 6, 20


@pytest.fixture
def random() -> torch.Generator:
    return torch.Generator().manual_seed(2)


def readout(random: Any, *, centred: bool = True) -> Readout:
    def draw(*shape: int) -> Any:
        return torch.randn(*shape, generator=random)

    norm = NormSpec(centred, 1e-5, draw(WIDTH).double().numpy(), draw(WIDTH).double().numpy())
    weight = draw(VOCABULARY, WIDTH)
    return Readout(norm, weight, draw(VOCABULARY), weight.mean(0), 0.0, 0.5, 4.0)


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "cohere"])
def test_after_the_last_layer_it_is_the_models_own_distribution(name: str) -> None:
    for frame in gate.run(name).frames:
        assert frame.lens_rank[-1].tolist() == list(range(TOP_K))
        share = np.exp(frame.top_logprobs.astype(np.float64))
        np.testing.assert_allclose(frame.lens_prob[-1], share / share.sum(), atol=1e-5)
        np.testing.assert_allclose(frame.lens_prob.sum(-1), 1.0, atol=1e-5)
        assert (np.sort(frame.lens_rank, axis=-1) == np.arange(TOP_K)).all()


def test_no_row_of_the_unembedding_but_the_candidates_is_read(random: Any) -> None:
    """Over the final candidates, not over the vocabulary: what stands in the other rows does not matter."""
    known, streams = readout(random), torch.randn(LAYERS, ROWS, WIDTH, generator=random)
    candidates = torch.tensor([[3, 1, 7], [0, 19, 5]])
    found = lens.look(known, streams, candidates)
    others = torch.ones(VOCABULARY, dtype=torch.bool)
    others[candidates.unique()] = False
    poisoned = known.weight.clone()
    poisoned[others] = float("nan")
    again = lens.look(replace(known, weight=poisoned), streams, candidates)
    assert found["lens_prob"].shape == (ROWS, LAYERS, 3)
    torch.testing.assert_close(again["lens_prob"], found["lens_prob"], rtol=0, atol=0)


def test_each_layer_is_read_by_norm_scale_and_cap(random: Any) -> None:
    known, streams = readout(random), torch.randn(LAYERS, ROWS, WIDTH, generator=random)
    candidates = torch.tensor([[3, 1, 7], [0, 19, 5]])
    found = lens.look(known, streams, candidates)
    for row in range(ROWS):
        for layer in range(LAYERS):
            read = known.norm(streams[layer, row].double().numpy())
            rows = candidates[row]
            logits = known.weight[rows].double().numpy() @ read + known.bias[rows].double().numpy()
            logits = 4.0 * np.tanh(logits * 0.5 / 4.0)
            chances = np.exp(logits) / np.exp(logits).sum()
            np.testing.assert_allclose(found["lens_prob"][row, layer], chances, atol=1e-5)
            order = np.argsort(-logits)
            assert found["lens_rank"][row, layer].tolist() == np.argsort(order).tolist()


def test_without_the_final_norms_gain_it_is_another_picture(random: Any) -> None:
    known, streams = readout(random), torch.randn(LAYERS, ROWS, WIDTH, generator=random)
    candidates = torch.tensor([[3, 1, 7], [0, 19, 5]])
    flat = replace(known, norm=replace(known.norm, gain=np.ones(WIDTH)))
    gap = (
        lens.look(known, streams, candidates)["lens_prob"] - lens.look(flat, streams, candidates)["lens_prob"]
    )
    assert gap.abs().max() > 0.05


def test_a_vocabulary_smaller_than_the_candidates_leaves_entries_undefined() -> None:
    model: Any = build("llama", settings={"vocab_size": 5})
    exporter: Any = InMemoryExporter()
    with instrument(model, level="deep", exporter=exporter):
        model.generate(torch.tensor([[2, 3, 4]]), max_new_tokens=2, do_sample=False)
    for frame in exporter.frames:
        assert frame.lens_rank.shape == frame.lens_prob.shape == (3, TOP_K)
        assert (frame.lens_rank[:, 5:] == -1).all()
        assert np.isnan(frame.lens_prob[:, 5:]).all()
        np.testing.assert_allclose(frame.lens_prob[:, :5].sum(-1), 1.0, atol=1e-5)


def test_a_step_that_is_not_deep_has_none() -> None:
    model: Any = build("llama")
    exporter: Any = InMemoryExporter()
    with instrument(model, level="deep", exporter=exporter, deep_ratio=0.25):
        model.generate(torch.tensor([[2, 3, 4]]), max_new_tokens=8, do_sample=False)
    assert [frame.lens_prob is not None for frame in exporter.frames] == [False] * 3 + [True] + [
        False
    ] * 3 + [True]
    assert [frame.neuron_ids is not None for frame in exporter.frames].count(True) == 2
