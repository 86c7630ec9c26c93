"""The neurons that are told are those that write most, and where there are no such neurons, none are told."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from tests.reference import gate  # noqa: E402
from tests.reference.families import build  # noqa: E402
from tests.reference.recipes import recipe_of  # noqa: E402

from fulgurite.agent import InMemoryExporter, instrument, neurons  # noqa: E402
from fulgurite.wire.channels import TOP_NEURONS  # noqa: E402

PROMPT = [[2, 3, 4, 5]]


def generate(model: Any, **options: Any) -> Any:
    exporter: Any = InMemoryExporter()
    with instrument(model, level="deep", exporter=exporter):
        model.generate(torch.tensor(PROMPT), max_new_tokens=3, do_sample=False, **options)
    return exporter


def column(down: Any, neuron: int) -> Any:
    """What a neuron is written with: GPT-2 keeps its matrices the other way round."""
    return down.weight[neuron] if type(down).__name__ == "Conv1D" else down.weight[:, neuron]


@pytest.mark.parametrize("name", ["llama", "gpt2", "opt", "bloom", "falcon", "gemma2"])
def test_a_neuron_whose_column_is_made_large_comes_first_and_no_other_moves(name: str) -> None:
    model: Any = build(name)
    before = generate(model).frames[0]
    planted = int(before.neuron_ids[-1, 5])  # one that is not asleep
    with torch.no_grad():
        column(recipe_of(model).layers[-1].down, planted).mul_(1000.0)
    after = generate(model).frames[0]
    assert after.neuron_ids[-1, 0] == planted
    assert after.neuron_values[-1, 0] > 20 * after.neuron_values[-1, 1]
    np.testing.assert_array_equal(after.neuron_ids[:-1], before.neuron_ids[:-1])
    kept = [neuron for neuron in before.neuron_ids[-1].tolist() if neuron != planted]
    assert after.neuron_ids[-1, 1:].tolist() == kept


def test_columns_that_change_while_the_model_is_observed_are_measured_anew() -> None:
    model: Any = build("llama")
    exporter: Any = InMemoryExporter()
    with instrument(model, level="deep", exporter=exporter):
        model.generate(torch.tensor(PROMPT), max_new_tokens=1, do_sample=False)
        with torch.no_grad():
            model.model.layers[0].mlp.down_proj.weight.mul_(2.0)
        model.generate(torch.tensor(PROMPT), max_new_tokens=1, do_sample=False)
    first, second = exporter.frames
    np.testing.assert_allclose(second.neuron_values[0], 2.0 * first.neuron_values[0], rtol=1e-5)


def test_values_are_sizes_in_falling_order() -> None:
    for frame in gate.run("llama").frames:
        assert (frame.neuron_values > 0).all()
        assert (np.diff(frame.neuron_values, axis=-1) <= 0).all()
        assert all(len(set(row)) == TOP_NEURONS for row in frame.neuron_ids.tolist())


def test_a_mixture_of_experts_has_none_and_says_so() -> None:
    found = generate(build("mixtral"))
    assert all(frame.neuron_ids is None and frame.neuron_values is None for frame in found.frames)
    assert neurons.ROUTED in dict(found.topology.unavailable)["neuron_ids"]


def test_a_dense_layer_among_mixtures_has_its_own() -> None:
    found = generate(build("qwen3_moe"))
    for frame in found.frames:
        assert (frame.neuron_ids[1] >= 0).all()
        assert (frame.neuron_ids[[0, 2]] == -1).all()
        assert np.isnan(frame.neuron_values[[0, 2]]).all()


def test_fewer_neurons_than_are_told_leave_entries_undefined() -> None:
    found = generate(build("llama", settings={"intermediate_size": 5}))
    for frame in found.frames:
        assert (np.sort(frame.neuron_ids[:, :5], axis=-1) == np.arange(5)).all()
        assert (frame.neuron_ids[:, 5:] == -1).all()
        assert np.isnan(frame.neuron_values[:, 5:]).all()
