"""The text that the model learns from, and the text that is held out of it: documents decided by a seed."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from typing import Protocol

from fulgurite.cli.demo.model.brackets import draw_list
from fulgurite.cli.demo.model.echoes import draw_echo, draw_pattern
from fulgurite.cli.demo.model.scenes import STORIES
from fulgurite.cli.demo.model.sums import draw_sums


class Maker(Protocol):
    """Writes one document of a kind, from the training side or the held-out side."""

    def __call__(self, draw: random.Random, *, held_out: bool = False) -> str: ...


MAKERS: dict[str, Maker] = {
    "story": lambda draw, *, held_out=False: STORIES.write(draw, held_out=held_out),
    "list": draw_list,
    "sums": draw_sums,
    "echo": draw_echo,
    "pattern": draw_pattern,
}
MIX = {"story": 22, "list": 18, "sums": 12, "echo": 24, "pattern": 24}
"""Of 100 documents, how many are of each kind."""
MIXES: dict[int, Mapping[str, int]] = {
    0: MIX,
    700: {"story": 30, "list": 34, "sums": 12, "echo": 10, "pattern": 14},
}
"""What a training reads from which step on: copying is learned first; brackets and grammar take longer."""


def documents(
    seed: int, *, held_out: bool = False, kind: str | None = None, mix: Mapping[str, int] = MIX
) -> Iterator[str]:
    """Documents without end, the same for the same seed.

    Parameters
    ----------
    seed : int
        Decides everything.
    held_out : bool
        Names, strings and sums from the side that training never sees.
    kind : str, optional
        Only documents of this kind, a key of MIX; without it, a mix.
    mix : mapping of str to int
        The weights of the kinds.
    """
    draw = random.Random(f"{seed}, {held_out}, {kind}")
    kinds, weights = list(mix), list(mix.values())
    while True:
        chosen = kind or draw.choices(kinds, weights)[0]
        yield MAKERS[chosen](draw, held_out=held_out)
