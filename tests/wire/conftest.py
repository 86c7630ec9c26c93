"""Blocks and models for the tests of the wire."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from fulgurite.wire.frame import FrameBlock, RequestRef
from fulgurite.wire.topology import Topology

MakeBlock = Callable[..., FrameBlock]


@pytest.fixture(scope="session")
def topology() -> Topology:
    return Topology(
        model_name="tiny",
        architecture="LlamaForCausalLM",
        layers=3,
        heads=4,
        kv_heads=2,
        head_dim=8,
        hidden_size=32,
        ffn_size=64,
        vocab_size=100,
        layer_kinds=("full", "sliding", "none"),
        layer_heads=(4, 4, 0),
        layer_windows=(0, 16, 0),
        parameters=12345,
        weights_fingerprint="abc",
        dtype="float32",
        context_length=512,
        unavailable=(("sink_mass", "not measured here"),),
    )


@pytest.fixture(scope="session")
def make_block() -> MakeBlock:
    return block_of


def block_of(
    frames: int = 2,
    *,
    request: str = "r",
    first_position: int = 0,
    texts: bool = False,
    **channels: np.ndarray,
) -> FrameBlock:
    """A block with every identity column, and the given channels."""
    columns: dict[str, Any] = {
        "request_index": np.zeros(frames, np.uint16),
        "sequence": np.arange(frames, dtype=np.uint16),
        "position": np.arange(first_position, first_position + frames, dtype=np.int32),
        "token_id": np.arange(frames, dtype=np.int32),
        "phase": np.ones(frames, np.uint8),
        "level": np.full(frames, 2, np.uint8),
        "step": np.full(frames, first_position, np.int64),
        "started_ns": np.full(frames, 1_700_000_000_000_000_000, np.int64),
        "ended_ns": np.full(frames, 1_700_000_000_000_000_001, np.int64),
    }
    written = tuple(f"t{i}" for i in range(frames)) if texts else None
    return FrameBlock((RequestRef(request),), columns | channels, written)
