"""What a call of a transformers model or of its `generate` was given: read, never changed.

The cache has had two names (`past_key_values`, `cache`); both are understood, and the old one is not asked
for where the new one exists, since that warns in the host's log.

Shape letters: b rows, t positions of a pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from fulgurite.agent.probes import Pass

Array = np.ndarray[Any, Any]
_CACHES = ("cache", "past_key_values")
_ASSISTED = ("prompt_lookup_num_tokens", "assistant_early_exit", "use_mtp")


def fed_ids(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """The token ids of a forward pass, or None."""
    return args[0] if args else kwargs.get("input_ids")


def input_shape(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[int, int] | None:
    """(rows, positions) of a forward pass."""
    ids = fed_ids(args, kwargs)
    if ids is None:
        ids = kwargs.get("inputs_embeds")
    if not isinstance(ids, torch.Tensor) or ids.dim() < 2:
        return None
    return int(ids.shape[0]), int(ids.shape[1])


def given_cache(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """The cache that a forward pass was handed, or None."""
    for name in _CACHES:
        if kwargs.get(name) is not None:
            return kwargs[name]
    return next((value for value in args[1:] if hasattr(value, "get_seq_length")), None)


def made_cache(output: Any) -> Any:
    """The cache that a forward pass gave, or None."""
    if isinstance(output, tuple):
        return next((value for value in output[1:] if hasattr(value, "get_seq_length")), None)
    name = next((name for name in _CACHES if hasattr(output, name)), "")
    return getattr(output, name, None)


def is_paged(cache: Any) -> bool:
    """Whether `cache` is that of continuous batching, whose rows are no sequences."""
    return type(cache).__name__.startswith("Paged")


def two_dimensional(mask: Any) -> torch.Tensor | None:
    """`mask` (b, t) where it is a plain one."""
    return mask if isinstance(mask, torch.Tensor) and mask.dim() == 2 else None


def last_real(mask: torch.Tensor, width: int) -> torch.Tensor | None:
    """Where each row's last real position is in a pass of `width` positions; None where it is the last for
    all."""
    recent = mask[:, -width:]
    if recent.shape[1] != width or bool((recent[:, -1] != 0).all()):
        return None
    order = torch.arange(1, width + 1, device=mask.device)
    return ((recent != 0) * order).argmax(-1)


def verified(kwargs: Mapping[str, Any], width: int, *, prompt: int | None) -> int:
    """How many last positions of a pass that verifies drafts matter.

    Parameters
    ----------
    prompt : width of the prompt in its first pass, None after it.
    """
    asked = kwargs.get("logits_to_keep")
    if isinstance(asked, int) and asked > 0:
        return min(asked, width)
    return width if prompt is None else max(1, width - prompt + 1)


def prompt_mask(given: torch.Tensor | None, passing: Pass, rows: int, width: int) -> Array | None:
    """Which positions of the prompts are real, (b, width): from the pass's own mask, else from what was
    given."""
    for mask in (passing.mask, given):
        if mask is not None and mask.shape[1] >= width:
            found: Array = mask.cpu().numpy()
            found = found[:, :width] if width else found  # without ids the mask alone knows the prompt
            return np.repeat(found, rows // len(found), axis=0) if len(found) != rows else found
    positions = passing.position_ids
    if not isinstance(positions, torch.Tensor) or positions.dim() != 2 or width == 0:
        return None
    real = np.broadcast_to(positions[:, -passing.keep].cpu().numpy().astype(np.int64) + 1, (rows,))
    if (real > width).any():
        return None
    return (np.arange(width)[None, :] >= width - real[:, None]).astype(np.int64)


def options_of(
    model: nn.Module | None, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Callable[[str], Any]:
    """Looks an option of `generate` up where `generate` does: argument, given configuration, the model's
    own."""
    given = args[1] if len(args) > 1 else kwargs.get("generation_config")
    sources = [given, getattr(model, "generation_config", None)]

    def look_up(name: str) -> Any:
        if kwargs.get(name) is not None:
            return kwargs[name]
        found = (getattr(source, name, None) for source in sources if source is not None)
        return next((value for value in found if value is not None), None)

    return look_up


def stops_of(options: Callable[[str], Any]) -> frozenset[int]:
    """The tokens that end a sequence."""
    found = options("eos_token_id")
    if found is None:
        return frozenset()
    if isinstance(found, torch.Tensor):
        found = found.reshape(-1).tolist()
    return frozenset(int(token) for token in (found if isinstance(found, Iterable) else (found,)))


def is_assisted(options: Callable[[str], Any], kwargs: Mapping[str, Any]) -> bool:
    """Whether drafts of somebody else are verified, so that one pass may commit several tokens."""
    return kwargs.get("assistant_model") is not None or any(options(name) for name in _ASSISTED)


def prompt_width(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int:
    """Positions of the prompt that `generate` was given as ids; 0 where it was given none."""
    for ids in (args[0] if args else None, kwargs.get("inputs"), kwargs.get("input_ids")):
        if isinstance(ids, torch.Tensor) and ids.dim() == 2 and not ids.is_floating_point():
            return int(ids.shape[1])
    return 0
