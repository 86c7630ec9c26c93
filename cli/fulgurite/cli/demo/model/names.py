"""Names built from syllables, divided into those for training and those that are held out.

A name is two or three open syllables with an optional last consonant: `Mira`, `Talove`, `Kesun`. Its
syllables can be read back in one way only, so the division is exact: one in six pairs of neighbouring
syllables is held out, a training name contains none of them, a held-out name nothing else.
"""

from __future__ import annotations

import random
from functools import cache
from itertools import pairwise
from zlib import crc32

SYLLABLES = tuple(consonant + vowel for consonant in "bdfklmnrstv" for vowel in "aeiou")
CODAS = ("", "", "l", "n", "r", "s")
HELD_OUT_ONE_IN = 6
_RESTS = ("", "a", "ba", "aba", "baba", "ababa")
"""What completes every beginning of a name: a consonant wants a vowel, a syllable wants another."""


def draw_name(draw: random.Random, *, held_out: bool = False) -> str:
    """A name for training, or one whose every pair of neighbouring syllables no training name has.

    Parameters
    ----------
    draw : random.Random
        Where the choices come from.
    held_out : bool
        Which side of the division the name is from.
    """
    while True:
        syllables = [draw.choice(SYLLABLES) for _ in range(draw.choice((2, 2, 3)))]
        if all(_pair_is_held_out(pair) is held_out for pair in _pairs(syllables)):
            return "".join(syllables).capitalize() + draw.choice(CODAS)


def is_name(text: str) -> bool:
    """Whether `text` is a name that `draw_name` can give, from either side."""
    return text[:1].isupper() and text[1:].islower() and _syllables(text) is not None


def begins_name(text: str) -> bool:
    """Whether a name can begin with `text`; the empty text begins every name."""
    if not text:
        return True
    return any(is_name(text + rest) for rest in _RESTS) and text[0].isupper()


def is_held_out(name: str) -> bool:
    """Whether `name` has a pair of syllables that training names never have."""
    return any(_pair_is_held_out(pair) for pair in _pairs(_syllables(name) or []))


def _syllables(name: str) -> list[str] | None:
    text = name.lower()
    if len(text) % 2:
        if text[-1] not in CODAS:
            return None
        text = text[:-1]
    found = [text[at : at + 2] for at in range(0, len(text), 2)]
    return found if len(found) in (2, 3) and all(part in SYLLABLES for part in found) else None


def _pairs(syllables: list[str]) -> list[str]:
    return [first + second for first, second in pairwise(syllables)]


@cache
def _pair_is_held_out(pair: str) -> bool:
    return crc32(pair.encode()) % HELD_OUT_ONE_IN == 0
