"""Hostile variants of valid messages at every parser. `make fuzz` does a million each, guided by coverage."""

from __future__ import annotations

import random

import pytest
from tests.fuzz.mutate import mutated
from tests.fuzz.targets import Target, UnclearRefusal, check_is_clear, targets

MESSAGES = 1000


@pytest.mark.parametrize("target", targets(), ids=lambda target: target.name)
def test_whatever_comes_is_taken_or_refused_in_a_sentence(target: Target) -> None:
    rng = random.Random(target.name)
    corpus = list(target.seeds)
    taken = 0
    for _ in range(MESSAGES):
        data = mutated(rng.choice(corpus), target.kind, rng)
        is_taken = target(data)
        taken += is_taken
        if is_taken and len(data) < 20_000 and len(corpus) < 500:
            corpus.append(data)  # what is still valid goes on to be changed
    assert 0 < taken < MESSAGES, "messages that are all taken, or all refused, test nothing"


@pytest.mark.parametrize("target", targets(), ids=lambda target: target.name)
def test_every_seed_is_taken(target: Target) -> None:
    assert all(target(data) for data in target.seeds)


@pytest.mark.parametrize("text", ["", "  ", "two\nlines", "x" * 5000])
def test_an_unclear_refusal_is_noticed(text: str) -> None:
    with pytest.raises(UnclearRefusal):
        check_is_clear(text)
