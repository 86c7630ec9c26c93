"""Numbers as people read them. What is not known is a dash, never a zero."""

from __future__ import annotations

import math

UNKNOWN = "–"


def number(value: float | None, digits: int = 1) -> str:
    """A plain number."""
    return UNKNOWN if value is None or math.isnan(value) else f"{value:.{digits}f}"


def milliseconds(seconds: float | None) -> str:
    """A duration in ms."""
    if seconds is None or math.isnan(seconds):
        return UNKNOWN
    return f"{seconds * 1e3:.1f}" if seconds < 0.1 else f"{seconds * 1e3:.0f}"


def bytes_text(count: int | None) -> str:
    """A size in binary units."""
    if count is None:
        return UNKNOWN
    size, units = float(count), ["B", "KiB", "MiB", "GiB", "TiB"]
    while size >= 1024 and len(units) > 1:
        size /= 1024
        units.pop(0)
    return f"{size:.0f} {units[0]}" if units[0] == "B" else f"{size:.1f} {units[0]}"


def ago(seconds: float | None) -> str:
    """How long ago something was."""
    if seconds is None or math.isnan(seconds):
        return UNKNOWN
    if seconds < 1:
        return "now"
    for limit, size, unit in ((60, 1, "s"), (3600, 60, "min"), (86400, 3600, "h")):
        if seconds < limit:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds / 86400:.0f} d"
