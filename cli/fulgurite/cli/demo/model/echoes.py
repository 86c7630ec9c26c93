"""Repetitions of strings that were never seen before: the only way to continue them is to look back."""

from __future__ import annotations

import random
from itertools import cycle, islice

from fulgurite.cli.demo.model.names import draw_name
from fulgurite.cli.demo.model.scenes import WORDS
from fulgurite.cli.demo.model.strings import draw_word


def draw_echo(draw: random.Random, *, held_out: bool = False) -> str:
    """A call and its echoes: `Echo: qz vux mm | qz vux mm.`"""
    call = " ".join(_words(draw, draw.randint(2, 8), held_out=held_out))
    return f"Echo: {' | '.join([call] * draw.choice((2, 3, 4)))}."


def draw_pattern(draw: random.Random, *, held_out: bool = False) -> str:
    """A repeated pattern without a sign where it begins again, cut anywhere: `Pattern: ab xo ab xo ab`."""
    words = _words(draw, draw.randint(2, 7), held_out=held_out)
    length = draw.randint(2 * len(words), 6 * len(words))
    return "Pattern: " + " ".join(islice(cycle(words), length))


def _known(draw: random.Random, *, held_out: bool) -> str:  # noqa: ARG001 - no side of these is held out
    """A word of the stories, one token mostly: where copying is learned first."""
    return draw.choice(WORDS)


def _words(draw: random.Random, count: int, *, held_out: bool) -> list[str]:
    maker = draw.choice((draw_word, draw_name) if held_out else (draw_word, draw_name, _known, _known))
    words: list[str] = []
    while len(words) < count:
        word = maker(draw, held_out=held_out)
        if word not in words:
            words.append(word)
    return words
