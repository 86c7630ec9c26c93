"""Texts of tokens, where they were switched on: each looked up once."""

from __future__ import annotations

from typing import Any

import numpy as np


class TokenTexts:
    """The text that each token adds.

    Parameters
    ----------
    tokenizer : a tokenizer of transformers, or anything with `decode`.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._known: dict[int, str] = {}

    def of(self, ids: np.ndarray[Any, Any]) -> tuple[str, ...]:
        """One text per id."""
        return tuple(self._one(int(token)) for token in ids)

    def prompts(self, rows: list[list[int]]) -> tuple[str, ...]:
        """The text of each prompt."""
        return tuple(str(self._tokenizer.decode(row)) for row in rows)

    def _one(self, token: int) -> str:
        text = self._known.get(token)
        if text is None:
            text = self._known[token] = self._lookup(token)
        return text

    def _lookup(self, token: int) -> str:
        text = str(self._tokenizer.decode([token]))
        convert = getattr(self._tokenizer, "convert_ids_to_tokens", None)
        piece = convert(token) if callable(convert) else None
        # a SentencePiece token says with a mark that a space precedes it, which decoding it alone swallows
        starts_word = isinstance(piece, str) and piece.startswith("▁") and not text.startswith(" ")
        return f" {text}" if starts_word else text
