"""What the model reads at a step of its training: decided by seed and step, so that training can resume."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import chain, count, islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fulgurite.cli.demo.model.corpus import MIX, documents
from fulgurite.cli.demo.model.packing import windows

STEPS_APART = 1_000_003
"""Seeds of two trainings meet only where one has more steps than this."""


def encoded(texts: Iterator[str], tokenizer: Any, *, at_once: int = 64) -> Iterator[list[int]]:
    """The token ids of each text, with a start and an end token."""
    while batch := list(islice(texts, at_once)):
        for ids in tokenizer(batch)["input_ids"]:
            yield [*ids, tokenizer.eos_token_id]


def training_documents(seed: int) -> Iterator[str]:
    """What a training with this seed reads, step after step, more of each step than fits into its windows."""
    return chain.from_iterable(islice(documents(seed * STEPS_APART + step), 64) for step in count())


def batch(
    tokenizer: Any, *, seed: int, step: int, tokens: int, length: int, mix: Mapping[str, int] = MIX
) -> NDArray[np.int64]:
    """The batch of a step, shape (tokens // length, length)."""
    texts = documents(seed * STEPS_APART + step, mix=mix)
    return _stack(texts, tokenizer, rows=tokens // length, length=length)


def _stack(texts: Iterator[str], tokenizer: Any, *, rows: int, length: int) -> NDArray[np.int64]:
    stream = windows(encoded(texts, tokenizer), length=length, pad=tokenizer.pad_token_id)
    return np.stack(list(islice(stream, rows)))
