"""Frames with a number each, so that whoever reads the store can tell which is there and which is not."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any, Final

import numpy as np

from fulgurite.wire.codec import Codec, codec_for, schema_for
from fulgurite.wire.frame import FrameBlock, RequestRef
from fulgurite.wire.topology import Topology

TOPOLOGY: Final = Topology(
    model_name="numbered", architecture="synthetic", layers=7, heads=8, kv_heads=8, head_dim=64,
    hidden_size=512, ffn_size=2048, vocab_size=128_256,
)  # fmt: skip
"""W1: 7 layers of 8 heads and an FFN, which is about 64 samples a token."""


def block(first: int, rows: int) -> FrameBlock:
    """Frames `first` to `first + rows - 1`. The number is in `step`, and once more in `kv_bytes`."""
    numbers = np.arange(first, first + rows, dtype=np.int64)
    now_ns = time.time_ns()
    columns: dict[str, Any] = {
        "request_index": np.zeros(rows, np.uint16),
        "sequence": np.arange(rows, dtype=np.uint16),
        "position": (numbers % (1 << 30)).astype(np.int32),
        "token_id": np.full(rows, -1, np.int32),
        "phase": np.ones(rows, np.uint8),
        "level": np.full(rows, 2, np.uint8),
        "step": numbers,
        "started_ns": np.full(rows, now_ns - 1_000_000, np.int64),
        "ended_ns": np.full(rows, now_ns, np.int64),
        "kv_bytes": numbers.copy(),
        "head_write": _values(numbers, 7 * 8).reshape(rows, 7, 8),
        "ffn_write": _values(numbers, 7),
    }
    return FrameBlock((RequestRef("numbered"),), columns)


def _values(numbers: np.ndarray[Any, Any], items: int) -> np.ndarray[Any, Any]:
    return ((numbers[:, None] + np.arange(items)[None, :]) % 97 / 97 + 0.01).astype(np.float32)


def codec(encoding: str) -> Codec:
    """What writes and reads them."""
    return codec_for(schema_for(TOPOLOGY, encoding))


def numbers_in(batches: Iterable[bytes], encoding: str) -> list[int]:
    """The numbers of the frames in stored batches, in order.

    Raises
    ------
    ValueError
        Where a frame was changed on its way.
    """
    found: list[int] = []
    for data in batches:
        for one in codec(encoding).decode(data).blocks:
            numbers = one.columns["step"]
            if not np.array_equal(numbers, one.columns["kv_bytes"]):
                raise ValueError(f"a frame was changed: {numbers} is not {one.columns['kv_bytes']}")
            found += numbers.tolist()
    return found
