"""What one chunk of a streamed answer tells: pieces, each a token or what a server sends in its place. Pure.

Reads the objects of openai-python, or any with the same attributes, and depends on none of them. Where a
chunk carries log-probabilities each of their entries is one token. Where it carries token ids (vLLM's
``return_token_ids``) each id is one. Else the chunk is one piece: mostly a token, but a server may join some.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

_TEXTS = ("content", "reasoning_content", "reasoning", "refusal")
_NUMBERED = re.compile(r"token_id:(\d+)")
_PIECE = "\N{REPLACEMENT CHARACTER}"  # what every token that is a part of a character is decoded to


@dataclass(frozen=True, slots=True)
class Alternative:
    """A token that could have stood there; `token_id` is -1 where the server gives its text alone."""

    token_id: int
    logprob: float


@dataclass(frozen=True, slots=True)
class Piece:
    """One token of one choice.

    Attributes
    ----------
    sequence : index of the choice.
    token_id : -1 where the server does not say it.
    logprob : nats, NaN where the server does not say it.
    alternatives : most probable first; empty where the server does not say them.
    """

    sequence: int
    text: str
    token_id: int = -1
    logprob: float = math.nan
    alternatives: tuple[Alternative, ...] = ()


@dataclass(frozen=True, slots=True)
class Usage:
    """What the server counted."""

    prompt_tokens: int = 0
    generated_tokens: int = 0


def pieces(chunk: Any) -> list[Piece]:
    """Of every choice in a chunk, in its order."""
    return [piece for choice in _listed(chunk, "choices") for piece in _of_choice(choice)]


def ends(chunk: Any) -> dict[int, str]:
    """Why choices ended with this chunk, by their index."""
    found = {}
    for choice in _listed(chunk, "choices"):
        reason = getattr(choice, "finish_reason", None)
        if reason:
            found[int(choice.index)] = str(reason)
    return found


def usage(chunk: Any) -> Usage | None:
    """What the server counted up to this chunk, where it says it."""
    told = getattr(chunk, "usage", None)
    if told is None:
        return None
    return Usage(int(_number(told, "prompt_tokens")), int(_number(told, "completion_tokens")))


def _of_choice(choice: Any) -> Iterator[Piece]:
    sequence, text = int(choice.index), _text(choice)
    ids = [int(i) for i in _listed(choice, "token_ids")]
    told = list(_told(getattr(choice, "logprobs", None)))
    if told:
        known = ids if len(ids) == len(told) else [-1] * len(told)
        for token_id, (word, logprob, alternatives) in zip(known, told, strict=True):
            yield Piece(sequence, *_named(word, token_id), logprob, alternatives)
    elif ids:
        for i, token_id in enumerate(ids):
            yield Piece(sequence, text if i == 0 else "", token_id)
    elif text:
        yield Piece(sequence, text)


def _text(choice: Any) -> str:
    if getattr(choice, "text", None):
        return str(choice.text)
    delta = getattr(choice, "delta", None)
    for name in _TEXTS:
        found = getattr(delta, name, None)
        if found:
            return str(found)
    calls = (getattr(call, "function", None) for call in _listed(delta, "tool_calls"))
    return "".join(str(getattr(call, part, None) or "") for call in calls for part in ("name", "arguments"))


_Told = tuple[str, float, tuple[Alternative, ...]]


def _told(logprobs: Any) -> Iterator[_Told]:
    """Token, log-probability and alternatives: chats have entries, completions have columns."""
    if logprobs is None:
        return
    for name in ("content", "refusal"):
        for entry in _listed(logprobs, name):
            others = [(one.token, one.logprob) for one in _listed(entry, "top_logprobs")]
            yield str(entry.token), _real(entry.logprob), _ordered(others)
    columns = _listed(logprobs, "token_logprobs")
    words, tops = _listed(logprobs, "tokens"), _listed(logprobs, "top_logprobs")
    for i, logprob in enumerate(columns):
        top = tops[i] if i < len(tops) else None
        others = list(top.items()) if isinstance(top, Mapping) and not _may_be_merged(top) else []
        yield (str(words[i]) if i < len(words) else ""), _real(logprob), _ordered(others)


def _may_be_merged(top: Mapping[Any, Any]) -> bool:
    """Completions tell alternatives by their text: of several pieces of characters one may be left."""
    return any(_PIECE in str(word) for word in top)


def _ordered(others: Iterable[tuple[Any, Any]]) -> tuple[Alternative, ...]:
    found = [Alternative(_named(str(word), -1)[1], _real(logprob)) for word, logprob in others]
    return tuple(sorted(found, key=lambda one: -one.logprob))


def _named(word: str, token_id: int) -> tuple[str, int]:
    """(text, id): some servers give a token's id in place of its text."""
    match = _NUMBERED.fullmatch(word)
    return ("", int(match[1])) if match else (word, token_id)


def _listed(owner: Any, name: str) -> Any:
    return getattr(owner, name, None) or ()


def _number(owner: Any, name: str) -> Any:
    return getattr(owner, name, None) or 0


def _real(value: Any) -> float:
    return math.nan if value is None else float(value)
