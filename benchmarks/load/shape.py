"""What a generated replica looks like: the shape of its model, and how its tokens come."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from fulgurite.wire.frame import FrameBlock, RequestRef
from fulgurite.wire.topology import Topology

FIRST_POSITION: Final = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """A model's shape and its pace.

    Attributes
    ----------
    rows : int
        Sequences that decode at once: tokens of one step.
    tokens_per_s : float
        Of one replica.
    """

    name: str
    layers: int
    heads: int
    kv_heads: int
    head_dim: int = 64
    rows: int = 8
    tokens_per_s: float

    @property
    def topology(self) -> Topology:
        """What an agent would say of such a model."""
        hidden = self.heads * self.head_dim
        return Topology(
            model_name=self.name, architecture="synthetic", layers=self.layers, heads=self.heads,
            kv_heads=self.kv_heads, head_dim=self.head_dim, hidden_size=hidden, ffn_size=4 * hidden,
            vocab_size=128_256,
        )  # fmt: skip

    @property
    def samples(self) -> int:
        """Heads and FFNs of one token."""
        return self.layers * (self.heads + 1)

    def blocks(self, tokens: int, *, seed: int = 0) -> tuple[FrameBlock, ...]:
        """`tokens` frames as capture hands them over at level `heads`: one block per step of `rows`."""
        rng = np.random.default_rng(seed)
        steps = range(-(-tokens // self.rows))
        requests = tuple(RequestRef(f"load-{seed}-{row}") for row in range(self.rows))
        return tuple(
            self._step(rng, step, requests[: min(self.rows, tokens - step * self.rows)]) for step in steps
        )

    def _step(self, rng: np.random.Generator, step: int, requests: tuple[RequestRef, ...]) -> FrameBlock:
        now, n = time.time_ns(), len(requests)
        columns: dict[str, Any] = {
            "request_index": np.arange(n, dtype=np.uint16),
            "sequence": np.zeros(n, np.uint16),
            "position": np.full(n, FIRST_POSITION + step, np.int32),
            "token_id": np.full(n, -1, np.int32),
            "phase": np.ones(n, np.uint8),
            "level": np.full(n, 2, np.uint8),
            "step": np.full(n, step, np.int64),
            "started_ns": np.full(n, now - 1_000_000, np.int64),
            "ended_ns": np.full(n, now, np.int64),
            "batch_size": np.full(n, n, np.uint16),
            "logprob": -rng.exponential(size=n).astype(np.float32),
            "entropy": rng.exponential(size=n).astype(np.float32),
            "head_write": rng.lognormal(-2, 1, (n, self.layers, self.heads)).astype(np.float32),
            "ffn_write": rng.lognormal(-1, 1, (n, self.layers)).astype(np.float32),
            "kv_tokens": np.repeat(np.full((n, 1), FIRST_POSITION + step, np.int32), self.layers, axis=1),
            "kv_bytes": np.full(n, 1000 * (FIRST_POSITION + step), np.int64),
        }
        return FrameBlock(requests, columns)


SHAPES: Final = {
    shape.name: shape
    for shape in (
        Shape(name="W1", layers=7, heads=8, kv_heads=8, tokens_per_s=2000),
        Shape(name="W8B", layers=32, heads=32, kv_heads=8, head_dim=128, tokens_per_s=500),
        Shape(name="llama-3-70b", layers=80, heads=64, kv_heads=8, head_dim=128, tokens_per_s=250),
        Shape(name="llama-3-405b", layers=126, heads=128, kv_heads=8, head_dim=128, tokens_per_s=100),
    )
}
"""The reference loads by name, and the larger members of a known family."""
