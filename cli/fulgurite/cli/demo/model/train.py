"""Train the bundled model: `python -m fulgurite.cli.demo.model.train --out FOLDER`.

Everything is decided by the seed: the tokenizer, the first weights, what is read at each step. A checkpoint
that lies in the folder is taken up again. The last fifth of the steps reads windows of the whole context, the
others half; what is read changes as `corpus.MIXES` says. Matrices inside the layers are trained by Muon, all
the rest by AdamW.

References
----------
Jordan et al., "Muon: an optimizer for hidden layers in neural networks", 2024.
Hu et al., "MiniCPM: unveiling the potential of small language models", 2024, for the learning rate's course.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fulgurite.cli.demo.model.architecture import new_model
from fulgurite.cli.demo.model.batches import batch
from fulgurite.cli.demo.model.checkpoints import resume, save, store
from fulgurite.cli.demo.model.corpus import MIXES
from fulgurite.cli.demo.model.evaluate import report
from fulgurite.cli.demo.model.tokens import CONTEXT, train_tokenizer

TOKENS = 4096
"""Tokens in a batch."""
WARM_UP = 50
PEAK, MATRIX_PEAK = 3e-3, 0.02
"""Learning rates of AdamW and of Muon."""
DOWN_FROM = 0.75
"""From which share of the steps on the learning rate goes down."""
LOWEST = 0.02
"""The last learning rate, relative to the peak."""
WEIGHT_DECAY = 0.05
LONGEST_GRADIENT = 1.0
LONG_FROM = 0.8
"""From which share of the steps on windows are as long as the context."""
SHOW_EVERY, STORE_EVERY = 20, 100


def main(argv: Sequence[str] | None = None) -> int:
    """Train, save, evaluate."""
    import torch

    options = _options(argv)
    torch.set_num_threads(options.threads)
    tokenizer = train_tokenizer(options.seed)
    model = new_model(tokenizer, seed=options.seed)
    _train(model, tokenizer, options)
    save(model, tokenizer, options.out)
    report(model.eval(), tokenizer, count=options.count, seed=options.seed)
    return 0


def learning_rate(step: int, *, steps: int) -> float:
    """Relative to the peak: a linear rise, a plateau, from DOWN_FROM of the steps on a line to LOWEST."""
    if step < WARM_UP:
        return (step + 1) / WARM_UP
    left = (steps - step) / ((1 - DOWN_FROM) * steps)
    return max(LOWEST, min(1.0, left))


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="fulgurite.cli.demo.model.train", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for the model")
    parser.add_argument("--steps", type=int, default=1600)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--count", type=int, default=200, help="tasks of each kind in the evaluation")
    return parser.parse_args(argv)


def _train(model: Any, tokenizer: Any, options: argparse.Namespace) -> None:
    optimizers = _optimizers(model)
    model.train()
    for step in range(resume(model, optimizers, options.out), options.steps):
        started = time.monotonic()
        for group in (group for optimizer in optimizers for group in optimizer.param_groups):
            group["lr"] = group["peak"] * learning_rate(step, steps=options.steps)
        loss = _step(model, optimizers, _read(tokenizer, step, options), tokenizer.pad_token_id)
        if step % SHOW_EVERY == 0:
            print(f"step {step}: loss {loss:.3f}, {time.monotonic() - started:.1f} s", flush=True)
        if (step + 1) % STORE_EVERY == 0:
            store(model, optimizers, options.out, step=step + 1)


def _optimizers(model: Any) -> tuple[Any, ...]:
    import torch

    matrices = [p for name, p in model.named_parameters() if p.dim() == 2 and ".layers." in name]
    others = [p for name, p in model.named_parameters() if p.dim() != 2 or ".layers." not in name]
    return (
        torch.optim.Muon([{"params": matrices, "peak": MATRIX_PEAK}], weight_decay=WEIGHT_DECAY),
        torch.optim.AdamW(
            [{"params": others, "peak": PEAK}], betas=(0.9, 0.95), weight_decay=0.0, fused=True
        ),
    )


def _read(tokenizer: Any, step: int, options: argparse.Namespace) -> Any:
    import torch

    length = CONTEXT if step >= LONG_FROM * options.steps else CONTEXT // 2
    mix = MIXES[max(first for first in MIXES if first <= step)]
    ids = batch(tokenizer, seed=options.seed, step=step, tokens=TOKENS, length=length, mix=mix)
    return torch.from_numpy(ids)


def _step(model: Any, optimizers: tuple[Any, ...], ids: Any, pad: int) -> float:
    import torch

    loss = model(input_ids=ids, labels=ids.masked_fill(ids == pad, -100)).loss
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), LONGEST_GRADIENT)
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return float(loss.detach())


if __name__ == "__main__":
    sys.exit(main())
