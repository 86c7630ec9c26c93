"""The neurons that write most, in layers as serving engines have them. No engine is needed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fulgurite.agent.anatomy import LayerParts
from fulgurite.agent.engines.flat.desk import Desk
from fulgurite.agent.engines.flat.neurons import SAMPLED, Neurons
from fulgurite.agent.engines.flat.seen import Trial
from fulgurite.agent.engines.flat.taps import hook, watch_down
from fulgurite.agent.neurons import CHANNELS, ROUTED, UNLIKE
from fulgurite.agent.wiring import Branch, LayerWiring, Tap

WIDTH, FFN, TOKENS = 16, 40, 6
CPU = torch.device("cpu")


class Linear(nn.Linear):
    """Knows its widths, and gives its output beside its bias, as the engines' do."""

    def __init__(self, into: int, out: int, *, bias: bool = False) -> None:
        super().__init__(into, out, bias=bias)
        self.input_size, self.output_size = into, out
        self.input_size_per_partition = into
        self.off, self.tp_rank = 0.0, 0

    def forward(self, x: torch.Tensor) -> Any:
        return super().forward(x) + self.off, None


class Ffn(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = Linear(WIDTH, FFN), Linear(FFN, WIDTH, bias=True)
        self.factor = 1.0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.down(torch.relu(self.up(x)[0]))[0]
        return found * self.factor if self.factor != 1.0 else found


class Case:
    """Two layers, and a trial pass of them."""

    def __init__(self) -> None:
        torch.manual_seed(3)
        self.parts = [Ffn(), Ffn()]
        self.layers = [_layer(i, ffn) for i, ffn in enumerate(self.parts)]
        self.desk = Desk(8, CPU, torch.float32)

    @torch.inference_mode()
    def trial(self) -> Trial:
        books: list[dict[int, Any]] = [{}, {}, {}]
        handles = []
        for layer in self.layers:
            handed, gave, whole = (_into(book, layer.index) for book in books)
            handles += watch_down(layer, WIDTH, handed, gave)
            if layer.ffn is not None:
                handles.append(hook(layer.ffn, Tap("ffn", "out"), WIDTH, seen=whole))
        self.run(numbers(8, 1))
        for handle in handles:
            handle.remove()
        wiring = tuple(LayerWiring("sequential", None, Branch(Tap("ffn", "out"), 1.0)) for _ in self.layers)
        handed, gave, whole = books
        return Trial(wiring, {}, {}, {}, None, 1.2e-7, down_handed=handed, down_gave=gave, ffn_gave=whole)

    def neurons(self, *, every: bool = False) -> Neurons:
        return Neurons(self.layers, self.trial(), self.desk, every=every)

    @torch.inference_mode()
    def run(self, x: torch.Tensor) -> None:
        for part in self.parts:
            x = x + part(x)

    @torch.inference_mode()
    def wanted(self, x: torch.Tensor) -> list[tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]]:
        """By layer, ids and sizes in float64, computed from the definition."""
        found = []
        for part in self.parts:
            a = torch.relu(part.up(x)[0])
            written = (a.double().abs() * part.down.weight.double().norm(dim=0)).numpy()
            ids = np.argsort(-written, -1, kind="stable")[:, :8]
            found.append((ids, np.take_along_axis(written, ids, -1)))
            x = x + part(x)
        return found


def _layer(index: int, ffn: Ffn) -> LayerParts:
    return LayerParts(index, ffn, "full", 0, None, None, 0, 0, ffn, ffn.down, (), norms=(), first_head=0,
                      held_heads=0)  # fmt: skip


def _into(book: dict[int, Any], key: int) -> Any:
    def keep(x: torch.Tensor, y: torch.Tensor | None) -> None:
        book[key] = x.double().numpy().copy()

    return keep


def numbers(count: int, seed: int) -> torch.Tensor:
    return torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("is_fixed", [False, True], ids=["on the host", "in a captured graph"])
@pytest.mark.parametrize("rows", [(0, 1, 2, 3, 4, 5), (5, 2)], ids=["every row", "some rows"])
def test_the_largest_are_those_of_the_definition(rows: tuple[int, ...], *, is_fixed: bool) -> None:
    case = Case()
    neurons = case.neurons()
    case.desk._is_fixed = is_fixed
    handles = neurons.install(case.layers)
    assert len(handles) == 2
    x = numbers(TOKENS, 2)
    case.desk.open(torch.tensor(rows), deep=True)
    case.run(x)
    case.desk.shut()
    told = neurons.told(slice(0, len(rows)))
    case.desk.open(torch.tensor(rows), deep=True)
    case.run(numbers(TOKENS, 9))  # the next step does not reach what was told
    assert not case.desk.errors
    assert told.keys() == {"neurons0", "neurons1"}
    for index, (ids, sizes) in enumerate(case.wanted(x)):
        found = told[f"neurons{index}"].numpy()
        assert found.shape == (len(rows), 2, 8)
        assert np.array_equal(found[:, 0], ids[list(rows)])
        assert np.allclose(found[:, 1], sizes[list(rows)], rtol=1e-5)


def test_steps_that_are_not_looked_at_deeply_cost_no_selection_and_tell_nothing() -> None:
    case = Case()
    neurons = case.neurons()
    neurons.install(case.layers)
    case.desk.open(torch.arange(TOKENS), deep=True)
    case.run(numbers(TOKENS, 2))
    case.desk.open(torch.arange(TOKENS))
    case.run(numbers(TOKENS, 3))
    assert neurons.told(slice(0, TOKENS)) == {}


def test_columns_that_are_not_what_the_projection_applied_are_refused() -> None:
    case = Case()
    case.parts[1].down.off = 0.3
    neurons = case.neurons()
    assert set(neurons.reasons) == set(CHANNELS)
    ((layer, why),) = neurons.reasons["neuron_ids"]
    assert layer == 1
    assert "something else than its weights do" in why
    assert len(neurons.install(case.layers)) == 1


def test_what_stands_behind_the_down_projection_is_refused() -> None:
    case = Case()
    case.parts[0].factor = 0.5
    assert case.neurons().reasons["neuron_values"] == [(0, UNLIKE)]


def test_a_process_that_has_a_part_of_the_columns_tells_those_by_their_numbers() -> None:
    case = Case()
    for part in case.parts:
        part.down.input_size, part.down.tp_rank, part.down.off = 2 * FFN, 1, 0.3  # a sum over processes
    neurons = case.neurons()
    assert not neurons.reasons
    neurons.install(case.layers)
    x = numbers(TOKENS, 2)
    case.desk.open(torch.arange(TOKENS), deep=True)
    case.run(x)
    told = neurons.told(slice(0, TOKENS))
    for index, (ids, sizes) in enumerate(case.wanted(x)):
        assert np.array_equal(told[f"neurons{index}"][:, 0].numpy(), ids + FFN)
        assert np.allclose(told[f"neurons{index}"][:, 1].numpy(), sizes, rtol=1e-5)


def test_a_mixture_of_experts_has_none() -> None:
    case = Case()
    layer = case.layers[0]
    case.layers[0] = LayerParts(
        0, layer.block, "full", 0, None, None, 0, 0, layer.ffn, None, (layer.block,), norms=(), first_head=0,
        held_heads=0,
    )  # fmt: skip
    assert case.neurons().reasons["neuron_ids"] == [(0, ROUTED)]


def test_a_device_whose_graphs_cannot_choose_their_steps_tells_them_only_where_all_are_asked_for() -> None:
    case = Case()
    case.desk.device = torch.device("cuda")
    assert case.neurons().reasons["neuron_ids"] == [(0, SAMPLED), (1, SAMPLED)]
    case.desk.device = CPU
    assert not case.neurons(every=True).reasons
