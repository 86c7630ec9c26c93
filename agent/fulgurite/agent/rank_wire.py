"""What ranks of one model tell each other: a head of JSON, and behind it the bytes of arrays.

Both ends are of the same version and of the same job; what does not fit the head is refused.
"""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
_LENGTHS = struct.Struct("!II")
MOST_BYTES = 256 << 20


def send(line: socket.socket, head: Mapping[str, Any], arrays: Mapping[str, Array] | None = None) -> None:
    """Send one message."""
    held = {name: np.ascontiguousarray(array) for name, array in (arrays or {}).items()}
    shapes = [[name, array.dtype.str, list(array.shape)] for name, array in held.items()]
    text = json.dumps({**head, "arrays": shapes}).encode()
    body = b"".join(array.tobytes() for array in held.values())
    line.sendall(_LENGTHS.pack(len(text), len(body)) + text + body)


def receive(line: socket.socket) -> tuple[dict[str, Any], dict[str, Array]] | None:
    """The next message; None where the other side has left.

    Raises
    ------
    ValueError
        For what is no message of ours.
    """
    start = _exactly(line, _LENGTHS.size)
    if start is None:
        return None
    text_bytes, body_bytes = _LENGTHS.unpack(start)
    if text_bytes + body_bytes > MOST_BYTES:
        raise ValueError(f"a message of {text_bytes + body_bytes} bytes is none of ours")
    text, body = _exactly(line, text_bytes), _exactly(line, body_bytes)
    if text is None or body is None:
        return None
    head = json.loads(text)
    arrays, at = {}, 0
    for name, kind, shape in head.pop("arrays"):
        dtype = np.dtype(kind)
        if dtype.hasobject:
            raise ValueError("arrays of objects are none of ours")
        count = int(np.prod(shape, dtype=np.int64))
        arrays[str(name)] = np.frombuffer(body, dtype, count, at).reshape(shape)
        at += count * dtype.itemsize
    return head, arrays


def _exactly(line: socket.socket, count: int) -> bytes | None:
    pieces = []
    while count:
        piece = line.recv(min(count, 1 << 20))
        if not piece:
            return None
        pieces.append(piece)
        count -= len(piece)
    return b"".join(pieces)
