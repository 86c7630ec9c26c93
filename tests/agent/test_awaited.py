"""What rests on rows that other processes hold is what it would be with all rows at hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

torch: Any = pytest.importorskip("torch")
pytest.importorskip("transformers")

from tests.agent.reference import BY_NAME, prompts  # noqa: E402

from fulgurite.agent import InMemoryExporter, instrument, lens  # noqa: E402
from fulgurite.agent.awaited import Awaited  # noqa: E402
from fulgurite.agent.contribution import CHANNELS, Attribution  # noqa: E402
from fulgurite.agent.rank_rows import RowShare, together  # noqa: E402
from fulgurite.agent.readout import Readout  # noqa: E402
from fulgurite.agent.shield import Shield  # noqa: E402
from fulgurite.wire.channels import TOP_K  # noqa: E402

ROWS, FIRST = 3, 40  # rows of a step, and tokens whose rows this process has


class Split:
    """A model whose vocabulary is in two parts, and one step of it: random numbers."""

    def __init__(self) -> None:
        self.model = BY_NAME["llama"].build()
        with instrument(self.model, level="deep", exporter=InMemoryExporter()) as agent:
            self.model.generate(prompts(2, 6), do_sample=False, max_new_tokens=2)
            capture: Any = agent._capture
            assert capture._attribution is not None
            self.attribution: Attribution = capture._attribution
            self.whole: Readout = self.attribution.readout
        torch.manual_seed(0)
        layout = self.attribution.layout
        vocabulary, width = self.whole.weight.shape
        self.stacked = torch.randn(len(layout.places), ROWS, width)
        self.streams = self.stacked[torch.as_tensor(layout.after_ffn)]
        self.heads = {
            layer.index: torch.randn(ROWS, layer.heads * layer.head_dim) for layer in self.attribution.layers
        }
        self.logits = torch.randn(ROWS, vocabulary)
        self.ids = torch.randint(0, vocabulary, (ROWS, 1 + TOP_K))
        self.ids[0, 0], self.ids[1, 0] = FIRST - 1, FIRST  # the last of one part, the first of the other

    def part(self, first: int, last: int) -> Readout:
        weight = self.whole.weight[first:last]
        vocabulary = self.whole.weight.shape[0]
        return replace(self.whole, weight=weight, mean_row=weight.mean(0), first=first, vocabulary=vocabulary)

    def awaited(self, exchange: Callable[[int, RowShare, int], RowShare | None]) -> Awaited:
        return Awaited(
            self.attribution,
            self.part(0, FIRST),
            stacked=self.stacked,
            heads=self.heads,
            measured=self.attribution.measured(self.logits, self.ids[:, 0]),
            streams=self.streams,
            ids=self.ids,
            step=5,
            exchange=exchange,
            shield=Shield(),
        )

    def others(self, own: RowShare, vocabulary: int) -> RowShare | None:
        rest = self.part(FIRST, vocabulary)
        held, rows, biases = (found.numpy() for found in rest.part_of(self.ids))
        other = RowShare(rows, biases, held, rest.total, np.array([rest.bias_total]), rest.weight.shape[0])
        return together([own, other], vocabulary)

    def wanted(self) -> dict[str, Any]:
        told = self.attribution.of(self.stacked, self.heads, self.logits, self.ids[:, 0])
        looked = lens.look(self.whole, self.streams, self.ids[:, 1:])
        return {**{name: found.numpy() for name, found in told.items()}, "lens_prob": looked["lens_prob"]}


def test_rows_that_were_put_together_give_what_all_rows_give() -> None:
    split = Split()
    found = split.awaited(lambda step, own, vocabulary: split.others(own, vocabulary) if step == 5 else None)
    columns = found.columns()
    assert found.columns() is columns
    for name, wanted in split.wanted().items():
        np.testing.assert_allclose(columns[name], wanted, rtol=0, atol=2e-5, err_msg=name)


def test_a_forward_pass_in_between_may_exchange_the_weights_of_modules() -> None:
    split = Split()
    wanted = split.wanted()

    def exchange(_: int, own: RowShare, vocabulary: int) -> RowShare | None:
        for layer in split.attribution.layers:  # as tensor parallelism does around a projection
            assert layer.projection is not None
            weight: Any = layer.projection.weight
            layer.projection._parameters["weight"] = torch.nn.Parameter(weight[:, : weight.shape[1] // 2])
        return split.others(own, vocabulary)

    columns = split.awaited(exchange).columns()
    np.testing.assert_allclose(columns["head_contribution"], wanted["head_contribution"], rtol=0, atol=2e-5)


def test_weights_that_were_written_to_in_between_give_no_contributions() -> None:
    split = Split()

    def exchange(_: int, own: RowShare, vocabulary: int) -> RowShare | None:
        with torch.no_grad():
            split.attribution.layers[0].projection.weight.mul_(2.0)  # type: ignore[union-attr, operator]
        return split.others(own, vocabulary)

    columns = split.awaited(exchange).columns()
    assert set(columns).isdisjoint(CHANNELS)
    assert "lens_prob" in columns


def test_rows_that_cannot_be_had_give_nothing() -> None:
    assert Split().awaited(lambda *_: None).columns() == {}
