"""What taps leave and what is made of it, in layers that hand on two tensors as vLLM's do.

No engine is needed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch._dynamo.backends.debugging import aot_eager

from fulgurite.agent import reduce
from fulgurite.agent.anatomy import LayerParts
from fulgurite.agent.engines.flat.desk import Desk
from fulgurite.agent.engines.flat.measure import MOST_WAITING, Measure
from fulgurite.agent.engines.flat.taps import hook
from fulgurite.agent.grams import gram
from fulgurite.agent.wiring import Branch, LayerWiring, Tap

LAYERS, HEADS, VOCABULARY = 3, 4, 40


class Norm(nn.Module):
    """Adds to the stream, and hands it on beside its own output."""

    def forward(self, x: torch.Tensor, stream: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        stream = x.clone() if stream is None else stream.add_(x)  # in place, as the engine's kernels do
        return stream / (stream.float().square().mean(-1, keepdim=True).sqrt() + 1e-3).to(stream), stream


class Block(nn.Module):
    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.norm0, self.norm1 = Norm(), Norm()
        self.value, self.projection = nn.Linear(width, inner, bias=False), nn.Linear(inner, width, bias=False)
        self.ffn = nn.Linear(width, width, bias=False)

    def forward(self, x: torch.Tensor, stream: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        x, stream = self.norm0(x, stream)
        x, stream = self.norm1(self.projection(self.value(x)), stream)
        return self.ffn(x), stream


class Case:
    """A model, its wiring, and what measures it."""

    def __init__(self, dtype: torch.dtype, width: int, head_dim: int, *, is_paired: bool) -> None:
        torch.manual_seed(5)
        self.blocks = [Block(width, HEADS * head_dim).to(dtype) for _ in range(LAYERS)]
        self.layers = tuple(
            LayerParts(i, block, "full", 0, block, block.projection, HEADS, head_dim, block.ffn, None, (),
                       norms=(block.norm0, block.norm1), first_head=0, held_heads=HEADS)
            for i, block in enumerate(self.blocks)
        )  # fmt: skip
        mixer, ffn = (Branch(Tap(part, "out"), 1.0) for part in ("projection", "ffn"))
        mid, end = Tap("norm1", "in"), Tap("block", "out")
        wiring = [LayerWiring("sequential", mixer, ffn, mid, mid, end) for _ in self.layers]
        layout = reduce.plan(self.layers, wiring, heads=HEADS, width=width)
        grams = [torch.stack([gram(b.projection.weight.float(), HEADS, None) for b in self.blocks])]
        self.desk = Desk(8, torch.device("cpu"), dtype)
        paired = range(LAYERS) if is_paired else ()
        self.measure = Measure(layout, grams, self.desk, paired=paired)
        self.handles = self.measure.install(self.layers)

    @torch.inference_mode()
    def run(self, x: torch.Tensor, rows: torch.Tensor) -> None:
        self.desk.open(rows)
        stream: torch.Tensor | None = None
        for block in self.blocks:
            x, stream = block(x, stream)
        self.desk.shut()


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=str)
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    found: torch.dtype = request.param
    return found


@pytest.fixture(params=[8, 6], ids=["joint", "apart"])
def head_dim(request: pytest.FixtureRequest) -> int:
    """With 8 the heads together are as wide as the stream, and one buffer holds both."""
    found: int = request.param
    return found


@pytest.fixture(params=[(0, 1, 2, 3, 4), (4, 1)], ids=["every row", "some rows"])
def rows(request: pytest.FixtureRequest) -> torch.Tensor:
    return torch.tensor(request.param)


def numbers(count: int, width: int, dtype: torch.dtype, seed: int) -> torch.Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("is_fixed", [False, True], ids=["on the host", "in a captured graph"])
def test_one_tap_for_a_layers_end_leaves_what_three_did(
    dtype: torch.dtype, head_dim: int, rows: torch.Tensor, *, is_fixed: bool
) -> None:
    found: list[Any] = []
    for is_paired in (False, True):
        case = Case(dtype, 32, head_dim, is_paired=is_paired)
        case.desk._is_fixed = is_fixed
        case.run(numbers(5, 32, dtype, 1), rows)
        assert case.measure.is_written()
        assert not case.desk.errors
        every = slice(0, len(rows))
        logits = numbers(len(rows), VOCABULARY, dtype, 2)
        found.append((len(case.handles), case.measure.layers(every, logits, rows, None, deep=False)))
    (many, apart), (few, paired) = found
    assert (many, few) == (4 * LAYERS, 2 * LAYERS)
    assert apart.keys() == paired.keys()
    for name, values in apart.items():
        assert torch.equal(values, paired[name]), name
        assert bool((values != 0).all()), name


def test_rows_that_are_left_reduce_to_what_is_reduced_at_once(
    dtype: torch.dtype, head_dim: int, rows: torch.Tensor
) -> None:
    case = Case(dtype, 32, head_dim, is_paired=True)
    case.run(numbers(5, 32, dtype, 1), rows)
    logits, tokens = numbers(len(rows), VOCABULARY, dtype, 2), np.arange(len(rows))
    with torch.inference_mode():
        every = slice(0, len(rows))
        wanted = reduce.to_host({
            **case.measure.layers(every, logits, torch.from_numpy(tokens), None, deep=False),
            **reduce.uncertainty(logits, torch.from_numpy(tokens)[:, None], full=True),
        })  # fmt: skip
        left = case.measure.left(every, logits, tokens, deep=False)
    case.run(numbers(5, 32, dtype, 3), rows)  # the next step does not reach what was left
    assert left is not None
    found = left.reduced(case.measure.layout)
    assert wanted.keys() - {"rank"} <= found.keys()
    for name in wanted.keys() & found.keys():
        assert np.allclose(found[name].reshape(-1), wanted[name].reshape(-1), rtol=2e-5, atol=2e-5), name


def test_no_more_is_left_than_may_wait() -> None:
    case = Case(torch.float32, 32, 8, is_paired=True)
    case.run(numbers(5, 32, torch.float32, 1), torch.arange(5))
    logits, tokens = numbers(5, VOCABULARY, torch.float32, 2), np.arange(5)
    every = slice(0, 5)
    left = [case.measure.left(every, logits, tokens, deep=False) for _ in range(MOST_WAITING + 1)]
    assert None not in left[:-1]
    assert left[-1] is None
    left.clear()
    assert case.measure.left(every, logits, tokens, deep=False) is not None
    assert case.measure.left(every, logits, tokens, deep=True) is None


def test_a_layer_that_did_not_run_is_not_written() -> None:
    case = Case(torch.float32, 32, 8, is_paired=True)
    case.run(numbers(5, 32, torch.float32, 1), torch.arange(5))
    case.blocks.pop()
    case.run(numbers(5, 32, torch.float32, 1), torch.arange(5))
    assert not case.measure.is_written()


def through(case: Case, x: torch.Tensor) -> torch.Tensor:
    stream: torch.Tensor | None = None
    for block in case.blocks:
        x, stream = block(x, stream)
    return x


@pytest.fixture
def compiled() -> Iterator[Callable[[Case], Any]]:
    """Compiles the layers of a case, as an engine does: of any number of tokens, in one graph, whose guards
    nobody looks at."""
    torch._dynamo.reset()

    def compiling(case: Case) -> Any:
        graphs: list[torch.fx.GraphModule] = []

        def backend(graph: torch.fx.GraphModule, examples: Any) -> Any:
            graphs.append(graph)
            return aot_eager(graph, examples)

        found: Any = torch.compile(partial(through, case), backend=backend, fullgraph=True)
        x = numbers(5, 32, case.desk.dtype, 9)
        torch._dynamo.mark_dynamic(x, 0)
        with torch.inference_mode():
            found(x)
        (graph,) = graphs
        assert not [n for n in graph.graph.nodes if "fulgurite" in str(n.target)]
        return found

    yield compiling
    torch._dynamo.reset()


@pytest.mark.parametrize("is_paired", [False, True], ids=["one by one", "paired"])
@torch.inference_mode()
def test_a_compiled_graph_leaves_what_python_does(
    dtype: torch.dtype, head_dim: int, compiled: Callable[[Case], Any], *, is_paired: bool
) -> None:
    eager, case = (Case(dtype, 32, head_dim, is_paired=is_paired) for _ in range(2))
    run = compiled(case)
    steps = [
        (5, [0, 1, 2, 3, 4]),
        (5, [4, 1]),
        (3, [0, 1, 2]),
        (30, [29, 7]),
        (12, [0, 11]),
        (4, [0, 1, 2, 3]),
    ]
    for step, (tokens, chosen) in enumerate(steps):
        x, rows = numbers(tokens, 32, dtype, step), torch.tensor(chosen)
        eager.run(x, rows)
        kept = case.desk.open(rows)
        run(x.clone())
        case.desk.shut()
        assert case.measure.is_written()
        assert kept == min(len(rows), case.desk.most)
        logits = numbers(kept, VOCABULARY, dtype, 2)
        wanted, found = (
            one.measure.layers(slice(0, kept), logits, rows[:kept], None, deep=False) for one in (eager, case)
        )
        for name, values in wanted.items():
            assert torch.equal(values, found[name]), (step, name)


@torch.inference_mode()
def test_a_compiled_pass_that_nobody_opened_is_not_taken_for_one(compiled: Callable[[Case], Any]) -> None:
    case = Case(torch.float32, 32, 8, is_paired=True)
    run = compiled(case)
    assert not case.measure.is_written()
    case.desk.open(torch.tensor([6, 7]))
    run(numbers(8, 32, torch.float32, 1))
    case.desk.shut()
    assert case.measure.is_written()
    run(numbers(2, 32, torch.float32, 1))  # fewer tokens than rows that mattered: the host hears nothing
    assert not case.measure.is_written()
    case.desk.open(torch.tensor([0]))
    case.desk.shut()  # nothing ran
    assert not case.measure.is_written()


@torch.inference_mode()
def test_a_tap_of_another_width_leaves_the_hosts_graph_alone(compiled: Callable[[Case], Any]) -> None:
    case = Case(torch.float32, 32, 8, is_paired=True)
    for handle in case.handles:
        handle.remove()
    _, (plane,) = case.desk.planes(1, 31)
    hook(case.blocks[0], Tap("block", "out"), 32, desk=case.desk, plane=plane)
    run, x = compiled(case), numbers(8, 32, torch.float32, 1)
    case.desk.open(torch.tensor([6, 7]))
    assert torch.equal(run(x.clone()), through(Case(torch.float32, 32, 8, is_paired=True), x))
    assert not case.desk.is_written([plane])
