"""What a training leaves in its folder: a checkpoint while it runs, the model when it is done."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

CHECKPOINT = "checkpoint.pt"


def store(model: Any, optimizers: Sequence[Any], folder: Path, *, step: int) -> None:
    """Write the state after `step` steps; the one before is replaced when the new one is complete."""
    import torch

    folder.mkdir(parents=True, exist_ok=True)
    state = {
        "step": step,
        "model": model.state_dict(),
        "optimizers": [one.state_dict() for one in optimizers],
    }
    fresh = folder / f"{CHECKPOINT}.new"
    torch.save(state, fresh)
    fresh.replace(folder / CHECKPOINT)


def resume(model: Any, optimizers: Sequence[Any], folder: Path) -> int:
    """Take up the checkpoint in `folder`, if there is one; returns the step to go on with."""
    import torch

    path = folder / CHECKPOINT
    if not path.exists():
        return 0
    state = torch.load(path, weights_only=True)
    model.load_state_dict(state["model"])
    for optimizer, kept in zip(optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(kept)
    return int(state["step"])


def save(model: Any, tokenizer: Any, folder: Path) -> None:
    """Write model, generation settings and tokenizer for `from_pretrained`, the weights as float16.

    float16 and not bfloat16: the weights are small, so three more bits of mantissa are worth more than range.
    """
    import copy

    import torch

    half = copy.deepcopy(model).to(torch.float16)
    half.save_pretrained(folder)
    for weights in folder.glob("*.safetensors"):
        weights.chmod(0o644)  # written for the owner alone, but to be installed for everybody
    tokenizer.save_pretrained(folder)
