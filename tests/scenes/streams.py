"""Made-up streams for tests of the drawing: deterministic numbers with the shape of a real stream."""

from __future__ import annotations

import numpy as np

from fulgurite.wire.channels import TOP_K
from fulgurite.wire.frame import FrameBlock, RequestRef, Scale
from fulgurite.wire.topology import Topology

SCALE = Scale(version=1, kinds={"head": (0.01, 0.40), "ffn": (0.05, 0.90)}, tokens=64)
WORDS = (
    " the",
    " little",
    " fox",
    " ran",
    " to",
    " Mira",
    " and",
    " saw",
    " a",
    " lantern",
    ".",
    " She",
    " gave",
)


def topology(layers: int = 8, heads: int = 8, *, name: str = "test-model", experts: int = 0) -> Topology:
    """A topology of that size."""
    return Topology(
        model_name=name,
        architecture="llama",
        layers=layers,
        heads=heads,
        kv_heads=max(1, heads // 4),
        head_dim=32,
        hidden_size=32 * heads,
        ffn_size=88 * heads,
        vocab_size=2048,
        experts=experts,
        experts_per_token=2 if experts else 0,
        parameters=4_200_000,
        dtype="float32",
        context_length=512,
    )


def _deep(rng: np.random.Generator, n: int, layers: int, heads: int, position: int) -> dict[str, np.ndarray]:
    """Routing and contributions; the parts make up the logit."""
    weights = -np.sort(-rng.dirichlet(np.full(TOP_K, 0.4), (n, layers, heads)), axis=-1)
    head = rng.laplace(0.05, 0.4, (n, layers, heads)).astype(np.float32)
    ffn = rng.laplace(0.6, 1.5, (n, layers)).astype(np.float32)
    embedding, other = rng.normal(0.1, 0.5, (2, n)).astype(np.float32)
    total = head.sum(axis=(1, 2), dtype=np.float64) + ffn.sum(axis=1, dtype=np.float64) + embedding + other
    return {
        "attended_positions": rng.integers(0, position, (n, layers, heads, TOP_K)).astype(np.int32),
        "attended_weights": weights.astype(np.float32),
        "measured_layers": np.ones((n, layers), np.uint8),
        "attention_entropy": rng.uniform(0, 3, (n, layers, heads)).astype(np.float32),
        "sink_mass": rng.uniform(0, 0.5, (n, layers, heads)).astype(np.float32),
        "head_contribution": head,
        "ffn_contribution": ffn,
        "embedding_contribution": embedding,
        "other_contribution": other,
        "logit_centered": total.astype(np.float32),
        "residue": np.full(n, 2e-6, np.float32),
    }


def block(
    shape: Topology,
    *,
    position: int = 40,
    requests: tuple[str, ...] = ("request-1",),
    seed: int = 0,
    deep: bool = False,
    texts: bool = True,
    without: tuple[str, ...] = (),
) -> FrameBlock:
    """One step: a token of each request, at level `heads` (or `deep`)."""
    rng = np.random.default_rng([seed, position])
    n, layers, heads = len(requests), shape.layers, shape.heads
    columns: dict[str, np.ndarray] = {
        "request_index": np.arange(n, dtype=np.uint16),
        "sequence": np.zeros(n, np.uint16),
        "position": np.full(n, position, np.int32),
        "token_id": rng.integers(0, 2048, n).astype(np.int32),
        "phase": np.full(n, 1, np.uint8),
        "level": np.full(n, 3 if deep else 2, np.uint8),
        "step": np.full(n, position, np.int64),
        "started_ns": np.full(n, 10**18 + position * 10**7, np.int64),
        "ended_ns": np.full(n, 10**18 + position * 10**7 + 10**6, np.int64),
        "logprob": np.log(rng.uniform(0.05, 1.0, n)).astype(np.float32),
        "head_write": rng.lognormal(-2.6, 0.9, (n, layers, heads)).astype(np.float32),
        "ffn_write": rng.lognormal(-0.9, 0.4, (n, layers)).astype(np.float32),
        "residual_norm": rng.uniform(5.0, 20.0, (n, layers, 2)).astype(np.float32),
        "kv_tokens": np.full((n, layers), position, np.int32),
        "kv_bytes": np.full(n, position * 4096, np.int64),
    }
    if deep:
        columns |= _deep(rng, n, layers, heads, position)
    if shape.experts:
        columns["expert_ids"] = np.stack(
            [np.stack([rng.permutation(shape.experts)[:2] for _ in range(layers)]) for _ in range(n)]
        ).astype(np.int16)
        columns["expert_weights"] = rng.dirichlet((2.0, 1.0), (n, layers)).astype(np.float32)
    for name in without:
        columns.pop(name, None)
    words = tuple(WORDS[(position + i * 5) % len(WORDS)] for i in range(n)) if texts else None
    return FrameBlock(tuple(RequestRef(name) for name in requests), columns, words)
