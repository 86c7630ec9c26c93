"""What continues a text, token by token: the port that behaviours are measured through, and its adapter."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from fulgurite.cli.demo.model.architecture import TEMPERATURE, TOP_P

Tokens = Sequence[int]
ROWS = 64


class Completer(Protocol):
    """Continues token ids.

    `complete` MUST return one list for each prompt, in order, without the prompt; each ends with the end
    token, which is included, or has `new_tokens` tokens. With `seed` it MUST sample at TEMPERATURE and TOP_P,
    the same for the same seed; without it, it MUST take the most probable token each time.
    """

    def complete(
        self, prompts: Sequence[Tokens], *, new_tokens: int, seed: int | None = None
    ) -> list[list[int]]: ...


class ModelCompleter:
    """A `transformers` model as a Completer.

    Parameters
    ----------
    model, tokenizer
        What `load` returns.
    """

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self._model = model
        self._pad = tokenizer.pad_token_id
        self._end = tokenizer.eos_token_id

    def complete(
        self, prompts: Sequence[Tokens], *, new_tokens: int, seed: int | None = None
    ) -> list[list[int]]:
        """See Completer."""
        import torch

        torch.manual_seed(seed or 0)
        answers: list[list[int]] = []
        for at in range(0, len(prompts), ROWS):
            answers += self._batch(prompts[at : at + ROWS], new_tokens, sample=seed is not None)
        return answers

    def _batch(self, prompts: Sequence[Tokens], new_tokens: int, *, sample: bool) -> list[list[int]]:
        import torch

        width = max(map(len, prompts))
        ids = torch.tensor([[self._pad] * (width - len(one)) + list(one) for one in prompts])
        how = {"temperature": TEMPERATURE, "top_p": TOP_P, "top_k": 0} if sample else {}
        with torch.inference_mode():
            done = self._model.generate(
                input_ids=ids,
                attention_mask=(ids != self._pad).long(),
                max_new_tokens=new_tokens,
                do_sample=sample,
                **how,
            )
        return [self._until_end(row) for row in done[:, width:].tolist()]

    def _until_end(self, tokens: list[int]) -> list[int]:
        return tokens[: tokens.index(self._end) + 1] if self._end in tokens else tokens
