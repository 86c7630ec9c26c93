"""A frame as a JSON object.

A channel that was not captured is absent; a value that is undefined (NaN: a layer without attention heads) is
null; infinities are the strings "Infinity" and "-Infinity", as in the JSON form of protocol buffers.
"""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from fulgurite.wire.channels import BY_NAME

if TYPE_CHECKING:
    from fulgurite.wire.frame import Frame, RequestEvent

SCALAR_DIGITS = 7
ARRAY_DIGITS = 4
"""Significant digits. Arrays cross the wire as float16, which has no more than that."""

ALWAYS = ("request_id", "sequence", "position", "phase", "step", "level", "started_ns", "ended_ns")
SIGNED_EMPTY = frozenset({"token_id", "top_ids"})
"""Integer channels in which -1 alone says that the ids stayed in the process."""


def frame_record(frame: Frame) -> dict[str, Any]:
    """Everything that `frame` carries, by name."""
    record: dict[str, Any] = {}
    for field in dataclasses.fields(frame):
        value = getattr(frame, field.name)
        if field.name in ALWAYS or not _is_absent(field.name, value):
            record[field.name] = _plain(value, exact=_is_exact(field.name))
    return record


def event_record(event: RequestEvent) -> dict[str, Any]:
    """What happened to a request; what does not apply to its kind is absent."""
    named = {"request_id", "kind", "time_ns"}
    return {
        field.name: _plain(value)
        for field in dataclasses.fields(event)
        if (value := getattr(event, field.name)) or field.name in named
    }


def _is_absent(name: str, value: Any) -> bool:
    if value is None or (isinstance(value, str) and not value):
        return True
    if name in SIGNED_EMPTY:
        return bool(np.all(np.asarray(value) == -1))
    return isinstance(value, np.ndarray) and value.size == 0


def _is_exact(name: str) -> bool:
    return name in BY_NAME and BY_NAME[name].exact == "f4"


def _plain(value: Any, *, exact: bool = True) -> Any:
    if isinstance(value, np.ndarray):
        return _plain(value.tolist(), exact=exact)
    if isinstance(value, (list, tuple)):
        return [_plain(item, exact=exact) for item in value]
    if isinstance(value, float):
        return _number(value, SCALAR_DIGITS if exact else ARRAY_DIGITS)
    return value


def _number(value: float, digits: int) -> float | str | None:
    if math.isnan(value):
        return None
    if math.isinf(value):
        return "Infinity" if value > 0 else "-Infinity"
    return float(f"{value:.{digits}g}")
