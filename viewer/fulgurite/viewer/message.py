"""One message to a page: a header in JSON and arrays of numbers behind it, in one piece of bytes. Pure.

Layout: the length of the header (uint32, little-endian), the header in UTF-8, then the arrays, each at a
multiple of eight bytes, so that a browser reads them in place. The header lists them under ``arrays`` as
``[name, dtype, shape, offset]``, offsets counted from the first byte behind the padded header.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np

ALIGN = 8
DTYPES = ("u1", "i1", "u2", "i2", "f2", "u4", "i4", "f4", "f8")

Array = np.ndarray[Any, Any]


def pack(header: Mapping[str, Any], arrays: Mapping[str, Array] | None = None) -> bytes:
    """The bytes of a message.

    Raises
    ------
    ValueError
        Where an array has a number type that a page cannot read; the message names both.
    """
    listed: list[tuple[str, str, tuple[int, ...], int]] = []
    pieces: list[bytes] = []
    offset = 0
    for name, array in (arrays or {}).items():
        dtype = array.dtype.str[1:]
        if dtype not in DTYPES:
            raise ValueError(f"array {name} is of {array.dtype}: a page reads {', '.join(DTYPES)}")
        data = np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes()
        listed.append((name, dtype, array.shape, offset))
        pieces.append(data + b"\0" * (-len(data) % ALIGN))
        offset += len(pieces[-1])
    text = json.dumps(
        {**header, "arrays": listed}, ensure_ascii=False, separators=(",", ":"), allow_nan=False
    )
    head = text.encode()
    head += b" " * (-(len(head) + 4) % ALIGN)
    return b"".join((struct.pack("<I", len(head)), head, *pieces))


def unpack(data: bytes) -> tuple[dict[str, Any], dict[str, Array]]:
    """Header and arrays of a message: what a page's own reader does, for tools and tests."""
    (length,) = struct.unpack_from("<I", data)
    header: dict[str, Any] = json.loads(data[4 : 4 + length])
    base = 4 + length
    arrays = {
        name: np.frombuffer(data, np.dtype("<" + dtype), math.prod(shape), base + offset).reshape(shape)
        for name, dtype, shape, offset in header["arrays"]
    }
    return header, arrays


def finite(value: float | None, digits: int = 6) -> float | None:
    """A number as JSON takes it; None where there is none."""
    return None if value is None or not math.isfinite(value) else round(value, digits)
