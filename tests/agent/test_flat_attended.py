"""Where heads look, from keys in pages as serving engines have them. No engine is needed."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fulgurite.agent import routing
from fulgurite.agent.engines.flat import attended as under_test
from fulgurite.agent.engines.flat.attended import Attended, Looked
from fulgurite.agent.engines.flat.desk import Desk
from fulgurite.agent.engines.vllm.pages import looked
from fulgurite.agent.shield import Shield

HEADS, KEY_HEADS, WIDTH, SIZE, PAGES = 4, 2, 8, 16, 12
CPU = torch.device("cpu")
LAYOUTS = {
    "as it is": lambda page: page,
    "by the width": lambda page: page.transpose(-1, -2),
    "two positions beside each other": lambda page: page.unflatten(-2, (SIZE // 2, 2)).transpose(-1, -2),
}


class Attention(nn.Module):
    """Attention over pages, with what vLLM's modules tell of themselves."""

    def __init__(self, layout: str, dtype: torch.dtype, *, window: int = 0, cap: float = 0.0) -> None:
        super().__init__()
        self.layout = LAYOUTS[layout]
        self.impl: Any = SimpleNamespace(
            num_heads=HEADS, num_kv_heads=KEY_HEADS, scale=0.3, logits_soft_cap=cap, sinks=None,
            alibi_slopes=None, do_kv_cache_update=self.write,
        )  # fmt: skip
        self.num_kv_heads, self.head_size, self.head_size_v = KEY_HEADS, WIDTH, WIDTH
        self.sliding_window = window or None
        self.kv_sharing_target_layer_name, self.kv_cache_dtype = None, "auto"
        self.kv_cache = torch.zeros(PAGES, KEY_HEADS, SIZE, 2 * WIDTH, dtype=dtype)
        self.plain: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}  # by slot

    def write(self, module: Any, key: torch.Tensor, value: torch.Tensor, cache: Any, slots: Any) -> None:
        """Into `cache`, in the layout: a page that is not full keeps what it had."""
        assert module is self
        known = self.plain if cache is self.kv_cache else {}
        known.update({int(s): (key[i], value[i]) for i, s in enumerate(slots)})
        flat = cache.view(cache.shape[0], KEY_HEADS, 2, SIZE * WIDTH)
        for page in {slot // SIZE for slot in known}:
            for half in (0, 1):
                rows = [known.get(page * SIZE + i) for i in range(SIZE)]
                empty = torch.zeros(KEY_HEADS, WIDTH, dtype=cache.dtype)
                held = torch.stack([empty if row is None else row[half] for row in rows], 1)
                for head in range(KEY_HEADS):
                    flat[page, head, half] = self.layout(held[head]).reshape(-1)

    def forward(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        return query


class Request:
    """One request: its pages, its keys and values, and what its last query has to see."""

    def __init__(self, module: Attention, pages: list[int], count: int, seed: int) -> None:
        made = torch.Generator().manual_seed(seed)
        dtype = module.kv_cache.dtype
        self.pages, self.count = pages, count
        self.query = torch.randn(HEADS * WIDTH, generator=made).to(dtype)
        keys, values = (torch.randn(count, KEY_HEADS, WIDTH, generator=made).to(dtype) for _ in range(2))
        slots = torch.tensor([pages[i // SIZE] * SIZE + i % SIZE for i in range(count)])
        module.write(module, keys, values, module.kv_cache, slots)
        first = max(0, count - module.sliding_window) if module.sliding_window else 0
        key_of, value_of = (x.double().repeat_interleave(HEADS // KEY_HEADS, 1) for x in (keys, values))
        scores = torch.einsum("hd,shd->hs", self.query.double().view(HEADS, WIDTH), key_of) * 0.3
        if module.impl.logits_soft_cap:
            scores = torch.tanh(scores / module.impl.logits_soft_cap) * module.impl.logits_soft_cap
        scores[:, :first] = float("-inf")
        self.weights = scores.softmax(-1)
        self.gave = torch.einsum("hs,shd->hd", self.weights, value_of).float()


class Case:
    def __init__(self, module: Attention, *, every: bool = True, close: float = 1e-3) -> None:
        self.module = module
        self.requests = [Request(module, [3, 7], 21, 1), Request(module, [5], 9, 2),
                         Request(module, [1, 0, 9], 40, 3)]  # fmt: skip
        layer: Any = SimpleNamespace(index=0, heads=HEADS)
        self.found = looked({0: module}, [layer], CPU)
        self.desk = Desk(8, CPU, module.kv_cache.dtype)
        self.attended = Attended(self.found, self.desk, every=every, close=close)
        self.attended.install()
        self.shield = Shield(strict=True)

    def run(self, number: int = 0) -> dict[str, torch.Tensor]:
        count = len(self.requests)
        self.desk.open(torch.arange(count), deep=True, turn=self.attended.turn(number))
        queries = torch.stack([one.query for one in self.requests])
        self.module(queries, queries[:, :16], queries[:, :16])
        self.desk.shut()
        handed = torch.stack([one.gave.flatten() for one in self.requests])
        positions = np.array([one.count for one in self.requests])
        pages = [one.pages for one in self.requests]
        return self.attended.told(
            slice(0, count), lambda layer: handed, positions, lambda row, layer: pages[row], self.shield
        )


def columns(told: torch.Tensor, requests: list[Request]) -> dict[str, np.ndarray[Any, Any]]:
    positions = np.array([one.count for one in requests])
    return routing.columns({0: told.numpy()}, positions, [routing.HeadsOf(0, HEADS, False)], HEADS)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("at_once", [16, 2048])
def test_rows_are_those_of_the_definition(
    layout: str, dtype: torch.dtype, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fulgurite.agent.engines.vllm.pages._AT_ONCE", at_once)
    monkeypatch.setattr(under_test, "_MOST_WEIGHTS", 100 if at_once == 16 else 1 << 21)
    case = Case(Attention(layout, dtype))
    found = columns(case.run()["attention0"], case.requests)
    for i, one in enumerate(case.requests):
        weights = one.weights.numpy()
        entropy = -(weights * np.log(weights)).sum(-1)
        assert np.allclose(found["attention_entropy"][i, 0], entropy, atol=1e-5)
        assert np.allclose(found["sink_mass"][i, 0], weights[:, 0], atol=1e-6)
        order = np.argsort(-weights, -1)[:, : found["attended_positions"].shape[-1]]
        assert np.array_equal(found["attended_positions"][i, 0], order)
        assert np.allclose(found["attended_weights"][i, 0], np.take_along_axis(weights, order, -1), atol=1e-6)
        assert np.nansum(found["kv_heat"][i, 0]) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(("window", "cap"), [(7, 0.0), (0, 0.8), (17, 1.5)])
def test_windows_and_soft_caps_are_the_layers_own(window: int, cap: float) -> None:
    case = Case(Attention("by the width", torch.float32, window=window, cap=cap))
    found = columns(case.run()["attention0"], case.requests)
    for i, one in enumerate(case.requests):
        weights = one.weights.numpy()
        order = np.argsort(-weights, -1, kind="stable")[:, : found["attended_positions"].shape[-1]]
        there = np.take_along_axis(weights, order, -1)
        assert np.array_equal(found["attended_positions"][i, 0], np.where(there > 0, order, -1))
        seen = weights[weights > 0].reshape(HEADS, -1)
        assert np.allclose(found["attention_entropy"][i, 0], -(seen * np.log(seen)).sum(-1), atol=1e-5)


class Pieces:
    """Keys and values handed out a few at a time; counts how many of the pieces somebody still holds."""

    def __init__(self, keys: torch.Tensor, values: torch.Tensor, size: int) -> None:
        self.keys, self.values, self.size = keys, values, size
        self.alive: weakref.WeakSet[torch.Tensor] = weakref.WeakSet()
        self.most = 0

    def read(self, where: Any, first: int, count: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for start in range(first, count, self.size):
            piece = tuple(x[start : min(count, start + self.size)].clone() for x in (self.keys, self.values))
            self.alive.update(piece)
            self.most = max(self.most, len(self.alive))
            yield piece  # type: ignore[misc]
            del piece


@pytest.mark.parametrize("slope", [-3.0, 0.0, 3.0], ids=["falling", "level", "rising"])
def test_a_long_row_is_summed_up_in_pieces_whatever_its_scores(slope: float) -> None:
    count = 300
    keys, values = torch.randn(count, KEY_HEADS, WIDTH), torch.randn(count, KEY_HEADS, WIDTH)
    keys[:, :, 0] = slope * torch.arange(count)[:, None]  # scores from 0 to hundreds: exp of them is no float
    query = torch.randn(HEADS * WIDTH)
    query.view(HEADS, WIDTH)[:, 0] = 1.0
    pieces = Pieces(keys, values, 7)
    one = Looked(nn.Identity(), HEADS, KEY_HEADS, WIDTH, 0.5, 0.0, 0, pieces)
    weights, gave = under_test._row(one, query, None, 0, count)
    key_of, value_of = (x.double().repeat_interleave(HEADS // KEY_HEADS, 1) for x in (keys, values))
    right = (torch.einsum("hd,shd->hs", query.double().view(HEADS, WIDTH), key_of) * 0.5).softmax(-1)
    assert torch.allclose(weights.double(), right, atol=1e-4)
    assert torch.allclose(gave.double(), torch.einsum("hs,shd->hd", right, value_of), atol=1e-3)
    assert pieces.most <= 4, "the piece at hand and the one before it"


@pytest.mark.parametrize("factor", [1.1, float("nan")])
def test_a_row_that_does_not_give_what_the_kernel_gave_is_not_told_and_looks_end(
    factor: float, caplog: pytest.LogCaptureFixture
) -> None:
    case = Case(Attention("as it is", torch.float32))
    case.requests[1].gave = case.requests[1].gave * factor
    for _ in range(3):
        assert case.run() == {}
    assert case.shield.errors == {"attention:unlike": 3}
    assert not case.attended.turn(5), "nobody looks any more"
    assert "not what the kernel gave" in caplog.text


@pytest.mark.parametrize("what", ["another shape", "a layout that loses numbers", "too few pages"])
def test_a_cache_that_cannot_be_read_is_said_and_not_guessed(what: str) -> None:
    case = Case(Attention("as it is", torch.float32))
    if what == "another shape":
        case.module.kv_cache = torch.zeros(PAGES, SIZE, KEY_HEADS, WIDTH)
    elif what == "a layout that loses numbers":
        case.module.layout = lambda page: page * 0
    else:
        case.requests[2].pages = [1, 0]
    assert case.run() == {}
    assert case.shield.errors == {"attention:unlike": 1}


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"sinks": torch.zeros(HEADS)}, "learned sinks"),
        ({"alibi_slopes": torch.zeros(HEADS)}, "biased by distance"),
        ({"do_kv_cache_update": None}, "kind that we do not know"),
        ({"kv_cache_dtype": "fp8_e4m3"}, "fewer bits"),
        ({"kv_sharing_target_layer_name": "other"}, "another layer's cache"),
        ({"head_size_v": 4}, "another width"),
    ],
)
def test_attention_whose_row_we_cannot_form_is_refused(changed: dict[str, Any], why: str) -> None:
    module: Any = Attention("as it is", torch.float32)
    for name, value in changed.items():
        of = module.impl if hasattr(module.impl, name) else module
        delattr(of, name) if value is None else setattr(of, name, value)
    layer: Any = SimpleNamespace(index=0, heads=HEADS)
    found = looked({0: module}, [layer], CPU)
    assert why in str(found[0])
    made = Attended(found, Desk(2, CPU, torch.float32), every=True, close=1e-3)
    assert made.reasons["kv_heat"] == [(0, found[0])]
    assert made.width == 0
    assert not made.turn(3)


def test_on_a_device_nothing_is_looked_at() -> None:
    layer: Any = SimpleNamespace(index=0, heads=HEADS)
    found = looked({0: Attention("as it is", torch.float32)}, [layer], torch.device("cuda"))
    assert "captured graphs" in str(found[0])


def test_one_layer_a_step_and_each_in_its_turn() -> None:
    module: Any = Attention("as it is", torch.float32)
    one = looked({0: module}, [SimpleNamespace(index=0, heads=HEADS)], CPU)[0]
    assert isinstance(one, Looked)
    desk = Desk(2, CPU, torch.float32)
    made = Attended(dict.fromkeys(range(6), one), desk, every=False, close=1e-3)
    for period in (1, 2, 16, 32, 48):
        turns = [made.turn(number) for number in range(0, 200 * period, period)]
        assert all(len(turn) == 1 for turn in turns)
        counts = np.bincount([next(iter(turn)) for turn in turns], minlength=6)
        assert counts.min() >= 20, "whatever the period of deep steps is, each layer comes"


def test_the_queries_of_other_layers_and_other_steps_are_not_kept() -> None:
    case = Case(Attention("as it is", torch.float32))
    (plane,) = case.attended._planes.values()
    queries = torch.stack([one.query for one in case.requests])
    for options in ({}, {"deep": True, "turn": frozenset({3})}):
        case.desk.open(torch.arange(3), **options)
        case.module(queries, queries, queries)
        assert not case.desk.is_written([plane])
