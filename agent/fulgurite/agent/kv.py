"""What a cache holds: read from attributes on the host, never from tensor values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class CacheReading:
    """What the cache holds after a forward pass.

    Attributes
    ----------
    resident : ndarray of int64, shape (layers,)
        Positions held per row, padding included; -1 for a layer without keys.
    row_bytes : int or None
        Bytes of one row's cache over all layers; None where the cache packs them in a way that we cannot
        size.
    """

    resident: Array
    row_bytes: int | None


def read_cache(cache: Any, layers: int, positions: int) -> CacheReading | None:
    """Read `cache`, or None where it is none that we know.

    Parameters
    ----------
    positions : positions fed so far, which is what a cache of fixed size cannot tell without asking the
        device.
    """
    held = getattr(cache, "self_attention_cache", cache)
    parts = getattr(held, "layers", None)
    if not isinstance(parts, list) or not parts:
        return None
    resident = np.full(layers, -1, np.int64)
    total: int | None = 0
    for index, part in enumerate(parts[:layers]):
        resident[index] = _resident(part, positions)
        size = _row_bytes(part)
        total = None if size is None or total is None else total + size
    return CacheReading(resident, total)


def _resident(part: Any, positions: int) -> int:
    keys = getattr(part, "keys", None)
    if getattr(part, "_quantized_keys", None) is not None:
        return positions
    if keys is None or keys.dim() < 3:
        return -1
    return int(keys.shape[-2]) if not hasattr(part, "max_cache_len") else min(int(keys.shape[-2]), positions)


def _row_bytes(part: Any) -> int | None:
    if getattr(part, "_quantized_keys", None) is not None:
        return None
    found = 0
    for name in ("keys", "values", "conv_states", "recurrent_states"):
        tensor = getattr(part, name, None)
        if tensor is not None and hasattr(tensor, "nbytes") and tensor.dim() and tensor.shape[0]:
            found += tensor.nbytes // tensor.shape[0]
    return found
