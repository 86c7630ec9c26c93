"""Sums: `Sums: 17 + 25 = 42. 8 + 90 = 98.`, some pairs held out."""

from __future__ import annotations

import random

LARGEST = 99
HELD_OUT_ONE_IN = 10


def draw_sums(draw: random.Random, *, held_out: bool = False) -> str:
    """Two to six sums of numbers up to 99."""
    return "Sums:" + "".join(f" {draw_sum(draw, held_out=held_out)}" for _ in range(draw.randint(2, 6)))


def draw_sum(draw: random.Random, *, held_out: bool = False) -> str:
    """One sum whose pair of numbers is from one side of the division."""
    while True:
        first, second = draw.randint(0, LARGEST), draw.randint(0, LARGEST)
        if is_held_out(first, second) is held_out:
            return f"{first} + {second} = {first + second}."


def is_held_out(first: int, second: int) -> bool:
    """Whether this pair never occurs in training, in this order."""
    return (first * 31 + second * 17) % HELD_OUT_ONE_IN == 0
