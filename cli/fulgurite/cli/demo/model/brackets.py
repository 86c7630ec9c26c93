"""Bracketed lists, `List: (kx, [lamp, {oil}], vu).`, up to five deep, and what says whether one is closed."""

from __future__ import annotations

import random
from collections.abc import Callable

from fulgurite.cli.demo.model.names import draw_name
from fulgurite.cli.demo.model.strings import draw_word

PAIRS = {"(": ")", "[": "]", "{": "}"}
DEEPEST = 5
THINGS = ("lamp", "rope", "map", "key", "bread", "oil", "bell", "kite", "drum", "salt", "coat", "stone")


def draw_list(draw: random.Random, *, held_out: bool = False) -> str:
    """A nested list; its items are things, names, or random strings, never mixed; some have none at all."""
    kind = draw.choice(("names", "strings") if held_out else ("none", "things", "things", "names", "strings"))
    if kind == "none":
        return f"List: {_bare(draw, draw.randint(2, DEEPEST))}."
    makers: dict[str, Callable[[], str]] = {
        "things": lambda: draw.choice(THINGS),
        "names": lambda: draw_name(draw, held_out=held_out),
        "strings": lambda: draw_word(draw, held_out=held_out),
    }
    return f"List: {_group(draw, makers[kind], draw.randint(2, DEEPEST))}."


def is_closed(text: str) -> bool:
    """Whether every bracket of `text` is closed by its own kind, innermost first, and none is left."""
    return open_brackets(text) == ""


def open_brackets(text: str) -> str | None:
    """The brackets that are open at the end of `text`, outermost first; None where one was closed wrongly."""
    stack: list[str] = []
    for sign in text:
        if sign in PAIRS:
            stack.append(sign)
        elif sign in PAIRS.values() and (not stack or PAIRS[stack.pop()] != sign):
            return None
    return "".join(stack)


def closing(opened: str) -> str:
    """What closes `opened`, innermost first."""
    return "".join(PAIRS[sign] for sign in reversed(opened))


def _bare(draw: random.Random, depth: int) -> str:
    """Brackets alone: where closing is learned first."""
    opening = draw.choice(tuple(PAIRS))
    inner = [_bare(draw, depth - 1) for _ in range(draw.choice((1, 1, 2)))] if depth > 1 else []
    return opening + " ".join(inner) + PAIRS[opening]


def _group(draw: random.Random, item: Callable[[], str], depth: int) -> str:
    opening = draw.choice(tuple(PAIRS))
    parts = [item() for _ in range(draw.randint(1, 3))]
    if depth > 1:
        inner = _group(draw, item, depth - 1)
        # Mostly the last member: then several brackets close in a row, which is what is hard.
        parts.insert(len(parts) if draw.random() < 0.6 else draw.randrange(1, len(parts) + 1), inner)
    return opening + ", ".join(parts) + PAIRS[opening]
