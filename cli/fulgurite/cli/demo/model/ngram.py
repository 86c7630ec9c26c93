"""The baseline beside the model: a five-gram that backs off smoothly (Witten-Bell).

It sees the last four tokens only: it can neither copy what is further away nor remember which bracket is
open.

References
----------
Chen and Goodman, "An empirical study of smoothing techniques for language modeling", 1998, section 2.6.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from fulgurite.cli.demo.model.architecture import TEMPERATURE, TOP_P

ORDER = 5
Context = tuple[int, ...]


class NGram:
    """Counts of what follows up to four tokens.

    Parameters
    ----------
    documents : iterable of sequence of int
        Token ids with their start and end tokens; contexts do not reach over the border of a document.
    vocabulary : int
        Number of tokens.
    end : int
        The token after which nothing is continued.
    """

    def __init__(self, documents: Iterable[Sequence[int]], *, vocabulary: int, end: int) -> None:
        self._uniform = np.full(vocabulary, 1 / vocabulary)
        self._end = end
        self._follow: defaultdict[Context, Counter[int]] = defaultdict(Counter)
        for document in documents:
            self._count(tuple(document))

    def _count(self, tokens: Context) -> None:
        for at in range(1, len(tokens)):
            for known in range(min(ORDER, at + 1)):
                self._follow[tokens[at - known : at]][tokens[at]] += 1

    def probabilities(self, tokens: Sequence[int]) -> NDArray[np.float64]:
        """The distribution over the next token, shape (vocabulary,)."""
        mixed = self._uniform
        for known in range(min(ORDER, len(tokens) + 1)):
            followers = self._follow.get(tuple(tokens[len(tokens) - known :]))
            if followers is None:
                break
            mixed = _mix(followers, mixed)
        return mixed

    def loss(self, documents: Iterable[Sequence[int]]) -> float:
        """Mean negative log-likelihood of all but the first token of each document, in nats per token."""
        losses = [
            -np.log(self.probabilities(document[:at])[document[at]])
            for document in documents
            for at in range(1, len(document))
        ]
        return float(np.mean(losses))

    def complete(
        self, prompts: Sequence[Sequence[int]], *, new_tokens: int, seed: int | None = None
    ) -> list[list[int]]:
        """See Completer."""
        draw = None if seed is None else np.random.default_rng(seed)
        return [self._continue(list(prompt), new_tokens, draw) for prompt in prompts]

    def _continue(self, tokens: list[int], new_tokens: int, draw: np.random.Generator | None) -> list[int]:
        start = len(tokens)
        while len(tokens) - start < new_tokens and (len(tokens) == start or tokens[-1] != self._end):
            chances = self.probabilities(tokens)
            tokens.append(int(np.argmax(chances)) if draw is None else _sample(chances, draw))
        return tokens[start:]


def _mix(followers: Counter[int], shorter: NDArray[np.float64]) -> NDArray[np.float64]:
    kinds, total = len(followers), followers.total()
    mixed: NDArray[np.float64] = shorter * (kinds / (total + kinds))
    ids = np.fromiter(followers.keys(), dtype=np.int64)
    mixed[ids] += np.fromiter(followers.values(), dtype=np.float64) / (total + kinds)
    return mixed


def _sample(chances: NDArray[np.float64], draw: np.random.Generator) -> int:
    warmed = chances ** (1 / TEMPERATURE)
    order = np.argsort(-warmed)
    sorted_chances = warmed[order] / warmed.sum()
    kept = int(np.searchsorted(np.cumsum(sorted_chances), TOP_P)) + 1
    return int(draw.choice(order[:kept], p=sorted_chances[:kept] / sorted_chances[:kept].sum()))
