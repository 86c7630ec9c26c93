"""Random strings: words that no language has, divided into those for training and those that are held out."""

from __future__ import annotations

import random
from string import ascii_lowercase
from zlib import crc32

HELD_OUT_ONE_IN = 6


def draw_word(draw: random.Random, *, held_out: bool = False) -> str:
    """A random string of two to five letters from one side of the division."""
    while True:
        word = "".join(draw.choices(ascii_lowercase, k=draw.choice((2, 3, 3, 4, 4, 5))))
        if is_held_out(word) is held_out:
            return word


def is_held_out(word: str) -> bool:
    """Whether `word` is never a random string in training; words of stories are not divided."""
    return crc32(word.encode()) % HELD_OUT_ONE_IN == 0
