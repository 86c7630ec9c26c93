"""Which prompts a replica of the demo is asked to continue, and how (pure, decided by a seed)."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

ROWS = (1, 2, 3)
NEW_TOKENS = (48, 96)


@dataclass(frozen=True, slots=True)
class Request:
    """One call of `generate`: its prompts are the rows of one batch."""

    prompts: tuple[str, ...]
    new_tokens: int


def requests(prompts: Iterator[str], *, seed: int) -> Iterator[Request]:
    """Batches of one to three of `prompts`, without end where they have none."""
    draw = random.Random(seed)
    while True:
        rows = draw.choice(ROWS)
        batch = tuple(islice(prompts, rows))
        if len(batch) < rows:
            return
        yield Request(batch, draw.randint(*NEW_TOKENS))
