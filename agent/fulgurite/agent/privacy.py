"""What of a token may leave the process: nothing, its id, or its text. All that is sent passes here."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import numpy as np

from fulgurite.wire.frame import FrameBlock, RequestEvent

POLICIES: Final = ("off", "ids", "text")
ID_CHANNELS: Final = ("token_id", "top_ids")
HIDDEN: Final = -1


def check_policy(tokens: str) -> str:
    """`tokens`, where it is a policy.

    Raises
    ------
    ValueError
        Where it is not.
    """
    if tokens not in POLICIES:
        raise ValueError(f"tokens must be one of {', '.join(POLICIES)}, not {tokens!r}")
    return tokens


def redact_block(block: FrameBlock, tokens: str) -> FrameBlock:
    """The block without what must stay: texts unless ``text``; ids (set to -1) where ``off``."""
    if tokens == "text":
        return block
    columns = dict(block.columns)
    if tokens != "ids":
        for name in ID_CHANNELS:
            if name in columns:
                columns[name] = np.full(columns[name].shape, HIDDEN, np.int32)
    return FrameBlock(block.requests, columns, None)


def redact_event(event: RequestEvent, tokens: str) -> RequestEvent:
    """The event without prompt texts unless ``text``."""
    return event if tokens == "text" or not event.prompt_texts else replace(event, prompt_texts=())
