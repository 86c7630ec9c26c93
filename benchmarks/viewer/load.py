"""Models by their published shapes, and synthetic streams for them: drawn numbers, no model ran."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from fulgurite.wire.frame import FrameBlock, RequestRef, Scale
from fulgurite.wire.topology import Topology

SCALE = Scale(version=1, kinds={"head": (0.01, 0.40), "ffn": (0.05, 0.90)}, tokens=64)
ROWS = 64  # most tokens of one step
BLOCKS = 4  # different steps, played again and again


@dataclass(frozen=True, slots=True)
class Model:
    """The shape of a model."""

    name: str
    layers: int
    heads: int
    kv_heads: int

    @property
    def topology(self) -> Topology:
        """Its topology, as an agent announces it."""
        return Topology(
            model_name=self.name, architecture="", layers=self.layers, heads=self.heads,
            kv_heads=self.kv_heads, head_dim=128, hidden_size=128 * self.heads, ffn_size=0, vocab_size=0,
        )  # fmt: skip


MODELS = (
    Model("GPT-2", 12, 12, 12),
    Model("Llama-3 8B", 32, 32, 8),
    Model("Llama-3 70B", 80, 64, 8),
    Model("Llama-3 405B", 126, 128, 8),
)


@dataclass(frozen=True, slots=True)
class Step:
    """One forward pass of the stream, due at `at_s`."""

    at_s: float
    block: FrameBlock


class Stream:
    """Steps at an even pace, `tokens_per_s` tokens in all per second of stream."""

    def __init__(self, model: Model, tokens_per_s: int) -> None:
        self._rows = max(1, min(ROWS, tokens_per_s // 10))
        self._period_s = self._rows / tokens_per_s
        self._blocks = [_block(model, self._rows, seed) for seed in range(BLOCKS)]
        self._steps = 0

    def until(self, from_s: float, now_s: float) -> list[Step]:
        """The steps that are due by `now_s`, of a stream that began at `from_s`."""
        due = []
        while from_s + self._steps * self._period_s <= now_s:
            at_s = from_s + self._steps * self._period_s
            due.append(Step(at_s, self._blocks[self._steps % BLOCKS]))
            self._steps += 1
        return due


def _block(model: Model, rows: int, seed: int) -> FrameBlock:
    rng = np.random.default_rng(seed)
    position = 40 + seed
    columns: dict[str, Any] = {
        "request_index": np.arange(rows, dtype=np.uint16),
        "sequence": np.zeros(rows, np.uint16),
        "position": np.full(rows, position, np.int32),
        "token_id": rng.integers(0, 2048, rows).astype(np.int32),
        "phase": np.ones(rows, np.uint8),
        "level": np.full(rows, 2, np.uint8),
        "step": np.full(rows, position, np.int64),
        "started_ns": np.zeros(rows, np.int64),
        "ended_ns": np.zeros(rows, np.int64),
        "logprob": np.log(rng.uniform(0.05, 1.0, rows)).astype(np.float32),
        "head_write": rng.lognormal(-2.9, 0.9, (rows, model.layers, model.heads)).astype(np.float32),
        "ffn_write": rng.lognormal(-1.2, 0.5, (rows, model.layers)).astype(np.float32),
        "kv_tokens": np.full((rows, model.layers), position, np.int32),
    }
    return FrameBlock(tuple(RequestRef(f"request-{i}") for i in range(rows)), columns)
