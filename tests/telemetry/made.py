"""Batches with known values, for the tests of what is made of them."""

from __future__ import annotations

from typing import Any

import numpy as np

from fulgurite.wire.frame import FrameBatch, FrameBlock, RequestEvent, RequestRef
from fulgurite.wire.topology import Topology

TOPOLOGY = Topology(
    model_name="tiny",
    architecture="LlamaForCausalLM",
    layers=2,
    heads=4,
    kv_heads=2,
    head_dim=8,
    hidden_size=32,
    ffn_size=64,
    vocab_size=100,
    experts=8,
    experts_per_token=2,
)
START_NS = 1_700_000_000_000_000_000
MS = 1_000_000
TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


def block(
    tokens: int = 4,
    *,
    request: str = "r",
    sequence: int = 0,
    first: int = 0,
    start_ns: int = START_NS,
    **more: Any,
) -> FrameBlock:
    """Tokens of one sequence, 10 ms apart, the first 30 ms after `start_ns`."""
    at = first + np.arange(tokens)
    ended_ns = start_ns + 30 * MS + 10 * MS * at.astype(np.int64)
    rng = np.random.default_rng(first + 17 * sequence)
    columns: dict[str, Any] = {
        "request_index": np.zeros(tokens, np.uint16),
        "sequence": np.full(tokens, sequence, np.uint16),
        "position": (5 + at).astype(np.int32),
        "token_id": np.full(tokens, -1, np.int32),
        "phase": (at > 0).astype(np.uint8),
        "level": np.full(tokens, 2, np.uint8),
        "step": at.astype(np.int64),
        "started_ns": ended_ns - 8 * MS,
        "ended_ns": ended_ns,
        "batch_size": np.full(tokens, 3, np.uint16),
        "logprob": -rng.random(tokens).astype(np.float32),
        "entropy": rng.random(tokens).astype(np.float32),
        "head_write": rng.random((tokens, 2, 4)).astype(np.float32),
        "ffn_write": rng.random((tokens, 2)).astype(np.float32),
        "kv_tokens": np.tile((6 + at)[:, None], (1, 2)).astype(np.int32),
        "expert_ids": np.tile(np.asarray([[0, 1], [0, 2]], np.int16), (tokens, 1, 1)),
    }
    return FrameBlock((RequestRef(request, TRACE, SPAN),), columns | more)


def started(
    request: str = "r", *, at_ns: int = START_NS, sequences: int = 1, prompt: int = 5
) -> RequestEvent:
    return RequestEvent(
        request_id=request,
        kind="started",
        time_ns=at_ns,
        prompt_tokens=prompt,
        sequences=sequences,
        prompt_tokens_per_row=(prompt,) * sequences,
    )


def ended(
    request: str = "r", *, at_ns: int = START_NS + 100 * MS, kind: str = "finished", reason: str = "stop"
) -> RequestEvent:
    return RequestEvent(request_id=request, kind=kind, time_ns=at_ns, reason=reason)


def batch(*blocks: FrameBlock, events: tuple[RequestEvent, ...] = (), first: int = 1) -> FrameBatch:
    return FrameBatch(epoch_ms=1, first_sequence=first, blocks=blocks, events=events)
