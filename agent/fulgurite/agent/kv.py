"""What a cache holds: read from attributes on the host, never from tensor values."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from operator import attrgetter, mul
from typing import Any

_KEYS_SHAPE = attrgetter("keys.shape")


@dataclass(frozen=True, slots=True)
class CacheReading:
    """What the cache holds after a forward pass.

    Attributes
    ----------
    resident : tuple of int, length layers
        Positions held per row, padding included; -1 for a layer without keys.
    row_bytes : int or None
        Bytes of one row's cache over all layers; None where the cache packs them in a way that we cannot
        size.
    """

    resident: tuple[int, ...]
    row_bytes: int | None


class CacheReader:
    """Reads one cache step after step. What of it does not change is read in the first step alone."""

    __slots__ = ("_cache", "_per_position")

    def __init__(self) -> None:
        self._cache = 0
        self._per_position: tuple[int, ...] = ()

    def again(self, cache: Any) -> CacheReading | None:
        """As `read`, of the cache that was read before; None where all of it has to be looked at."""
        if not self._per_position or self._cache != id(cache):
            return None
        try:
            resident = tuple([shape[-2] for shape in map(_KEYS_SHAPE, cache.layers)])
        except AttributeError:  # a layer has let go of its keys
            return None
        if len(resident) != len(self._per_position):
            return None
        return CacheReading(resident, sum(map(mul, resident, self._per_position)))

    def read(self, cache: Any, layers: int, fed: Callable[[], int]) -> CacheReading | None:
        """As `read_cache`; how many positions were `fed` is asked only where that matters."""
        found = self.again(cache)
        if found is not None:
            return found
        self._cache, self._per_position = id(cache), _bytes_per_position(cache, layers)
        return read_cache(cache, layers, fed())


def _bytes_per_position(cache: Any, layers: int) -> tuple[int, ...]:
    """Bytes of one position of one row, by layer, where that and the positions are all that a cache holds."""
    parts = getattr(cache, "layers", None)
    if not isinstance(parts, list) or len(parts) != layers or hasattr(cache, "self_attention_cache"):
        return ()
    found = [_part_per_position(part) for part in parts]
    return tuple(found) if all(found) else ()


def _part_per_position(part: Any) -> int:
    keys, values = getattr(part, "keys", None), getattr(part, "values", None)
    packed = getattr(part, "_quantized_keys", None) is not None or hasattr(part, "max_cache_len")
    states = any(getattr(part, name, None) is not None for name in ("conv_states", "recurrent_states"))
    if packed or states or keys is None or values is None or keys.dim() != 4 or values.dim() != 4:
        return 0
    rows, _, positions, _ = keys.shape
    if not rows or not positions or tuple(values.shape[::2]) != (rows, positions):
        return 0
    held: int = keys.nbytes + values.nbytes
    return held // int(rows * positions)


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
    resident = [-1] * layers
    total: int | None = 0
    for index, part in enumerate(parts[:layers]):
        resident[index] = _resident(part, positions)
        size = _row_bytes(part)
        total = None if size is None or total is None else total + size
    return CacheReading(tuple(resident), total)


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
