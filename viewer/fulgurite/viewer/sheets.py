"""What a window without a page paints over its picture: the card of a node, the time bar, the help. Pure.

Sheets are RGBA bytes with premultiplied alpha, as `lettering.Canvas` makes them; `scale` is 1 for 720 lines.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fulgurite.viewer.lettering import Canvas, Color, fitted, width_of
from fulgurite.viewer.panel import shown

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from fulgurite.viewer.lettering import Bytes
    from fulgurite.viewer.panel import Command

INK: Color = (238, 242, 252)
TEXT: Color = (168, 184, 226)
DIM: Color = (112, 126, 168)
WARN: Color = (240, 176, 80)
GROUND: Color = (8, 11, 22)
FRAME: Color = (58, 70, 116)
CARD_WIDTH, BAR_HEIGHT, BAR_SIDE = 300.0, 26.0, 20.0
HELP_COLUMNS = 3


def sheet(width: int, height: int, opacity: float = 0.92) -> Canvas:
    """A dark sheet with a thin frame."""
    canvas = Canvas(width, height)
    canvas.box(0, 0, width, height, GROUND, opacity)
    for x, y, w, h in (
        (0, 0, width, 1),
        (0, height - 1, width, 1),
        (0, 0, 1, height),
        (width - 1, 0, 1, height),
    ):
        canvas.box(x, y, w, h, FRAME)
    return canvas


def paint_card(card: Mapping[str, Any], scale: float) -> Bytes:
    """The card of a node, as `inspection.card` says it."""
    rows: Sequence[Sequence[str]] = card["rows"]
    entries: Sequence[Sequence[str]] = card["list"]
    listed = len(entries) + bool(card["list_title"])
    width = round(CARD_WIDTH * scale)
    canvas = sheet(width, round((38 + 31 * len(rows) + 17 * listed + 8) * scale))
    room = width - 24 * scale
    canvas.text(
        12 * scale, 9 * scale, fitted(card["title"], room, 15 * scale), 15 * scale, INK, weight="bold"
    )
    y = 34 * scale
    for label, value, what in rows:
        canvas.text(12 * scale, y, label, 12 * scale, DIM)
        ink = WARN if value == "not captured" else INK
        canvas.text(width - 12 * scale, y, fitted(value, 0.62 * room, 12 * scale), 12 * scale, ink, align=1)
        canvas.text(12 * scale, y + 14 * scale, fitted(what, room, 10 * scale), 10 * scale, DIM)
        y += 31 * scale
    if card["list_title"]:
        canvas.text(12 * scale, y, fitted(card["list_title"], room, 11 * scale), 11 * scale, TEXT)
        y += 17 * scale
    for entry in entries:
        canvas.text(12 * scale, y, "   ".join(part for part in entry if part), 11 * scale, INK)
        y += 17 * scale
    return canvas.pixels


def paint_bar(time: Mapping[str, Any], mode: str, behind: str, width: int, scale: float) -> Bytes:
    """The time bar: tokens over the kept past, gaps, and where the playhead stands (`facts.facts`)."""
    canvas = Canvas(width, round(BAR_HEIGHT * scale))
    left, long = BAR_SIDE * scale, width - 2 * BAR_SIDE * scale - 90 * scale
    canvas.box(0, 0, width, canvas.pixels.shape[0], GROUND, 0.85)
    base, high = 22 * scale, 16 * scale
    bins = time["bins"]
    for index, share in enumerate(bins):
        tall = max(1.0, high * share)
        canvas.box(left + long * index / len(bins), base - tall, max(1.0, long / len(bins) - 1), tall, FRAME)
    for at in time["gaps"]:
        canvas.box(left + long * at, base - high, 2 * scale, high, WARN)
    canvas.box(left + long * time["at"] - scale, base - high - 3 * scale, 2 * scale, high + 5 * scale, INK)
    word = "live" if mode == "live" else f"{mode} {behind}".strip()
    canvas.text(
        width - BAR_SIDE * scale, 5 * scale, word, 12 * scale, INK if mode == "live" else WARN, align=1
    )
    return canvas.pixels


def bar_share(x: float, width: int, scale: float) -> float:
    """Which share of the kept past a pixel of the time bar stands for, 0 … 1."""
    long = width - 2 * BAR_SIDE * scale - 90 * scale
    return min(1.0, max(0.0, (x - BAR_SIDE * scale) / max(1.0, long)))


def paint_help(table: Sequence[Command], width: int, height: int, scale: float) -> Bytes:
    """Every command with its keys, and how to use the mouse."""
    canvas = sheet(width, height, 0.95)
    canvas.text(24 * scale, 16 * scale, "Keys", 19 * scale, INK, weight="bold")
    mouse = (
        "drag: turn   ·   Shift + drag: move   ·   wheel: nearer   ·   point: card   ·   click: keep the card"
    )
    canvas.text(24 * scale, 44 * scale, fitted(mouse, width - 48 * scale, 12 * scale), 12 * scale, TEXT)
    rows = [(command.group, command) for command in table]
    column = (width - 48 * scale) / HELP_COLUMNS
    step = min(19 * scale, (height - 90 * scale) / max(1, -(-len(rows) // HELP_COLUMNS)))
    most = -(-len(rows) // HELP_COLUMNS)
    for index, (_, command) in enumerate(rows):
        x = 24 * scale + column * (index // most)
        y = 70 * scale + step * (index % most)
        keys = shown(command.shortcut[0])
        canvas.text(x, y, keys, 12 * scale, INK)
        at = x + max(74 * scale, width_of(keys, 12 * scale) + 10 * scale)
        canvas.text(at, y, fitted(command.label, x + column - at - 8 * scale, 12 * scale), 12 * scale, TEXT)
    return canvas.pixels


def paint_line(text: str, scale: float, color: Color = INK) -> Bytes:
    """One line on a dark ground, for a moment or while something is typed."""
    width = round(width_of(text, 13 * scale) + 28 * scale)
    canvas = sheet(width, round(28 * scale))
    canvas.text(14 * scale, 5 * scale, text, 13 * scale, color)
    return canvas.pixels
