"""What a cache holds, read step after step, is what a whole look at it gives."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="caches are those of transformers")
pytest.importorskip("transformers", reason="caches are those of transformers")

from transformers import DynamicCache, Gemma3TextConfig, LlamaConfig  # noqa: E402

from fulgurite.agent.kv import CacheReader, read_cache  # noqa: E402

LAYERS, ROWS, HEADS, WIDTH = 4, 2, 3, 8
SHAPE: dict[str, Any] = {"num_hidden_layers": LAYERS, "hidden_size": 24, "num_attention_heads": HEADS}


def every_layer() -> Any:
    return DynamicCache(config=LlamaConfig(**SHAPE))


def a_window_in_the_middle() -> Any:
    kinds = ["full_attention", "sliding_attention", "sliding_attention", "full_attention"]
    return DynamicCache(config=Gemma3TextConfig(**SHAPE, sliding_window=5, layer_types=kinds))


def feed(cache: Any, positions: int, layers: range = range(LAYERS)) -> None:
    for layer in layers:
        new = torch.zeros(ROWS, HEADS, positions, WIDTH)
        cache.update(new, new, layer)


@pytest.mark.parametrize("make", [every_layer, a_window_in_the_middle])
def test_each_reading_is_that_of_a_whole_look(make: Any) -> None:
    cache, reader, fed = make(), CacheReader(), 0
    for positions in (3, 1, 1, 1, 1, 2, 1):
        feed(cache, positions)
        fed += positions
        assert reader.read(cache, LAYERS, lambda now=fed: now) == read_cache(cache, LAYERS, fed)
    if make is every_layer:
        cache.crop(-4)
    assert reader.read(cache, LAYERS, lambda: fed) == read_cache(cache, LAYERS, fed)


def test_a_window_is_seen_in_the_layers_that_have_it() -> None:
    cache, reader = a_window_in_the_middle(), CacheReader()
    for _ in range(9):
        feed(cache, 1)
        found = reader.read(cache, LAYERS, lambda: 9)
    assert found is not None
    assert (found.resident[0], found.resident[-1]) == (9, 9)
    assert max(found.resident[1:-1]) < 9


def test_a_layer_in_the_middle_that_was_passed_over_is_seen() -> None:
    cache, reader = every_layer(), CacheReader()
    feed(cache, 3)
    reader.read(cache, LAYERS, lambda: 3)
    for layer in (0, 2, 3):
        feed(cache, 1, range(layer, layer + 1))
    found = reader.again(cache)
    assert found is not None
    assert found.resident == (4, 3, 4, 4)


def test_a_pass_that_fed_only_some_layers_is_looked_at_whole() -> None:
    cache, reader = every_layer(), CacheReader()
    feed(cache, 3)
    reader.read(cache, LAYERS, lambda: 3)
    feed(cache, 1, range(2))
    found = reader.again(cache)
    assert found is not None
    assert found.resident == (4, 4, 3, 3)
