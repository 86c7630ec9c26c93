"""Measure a model: `python -m fulgurite.cli.demo.model.evaluate`, or with `--model FOLDER` another one.

Prints held-out loss and the behaviours, each beside a five-gram that was trained on the same kind of text.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

from fulgurite.cli.demo.model.batches import encoded, training_documents
from fulgurite.cli.demo.model.completers import Completer, ModelCompleter
from fulgurite.cli.demo.model.corpus import MIX, documents
from fulgurite.cli.demo.model.loading import load
from fulgurite.cli.demo.model.measures import (
    BRACKETS,
    GREEDY_BRACKETS,
    INDUCTION,
    SUMS,
    Examiner,
    Share,
)
from fulgurite.cli.demo.model.ngram import NGram

EXAM_SEED = 7
LOSS_DOCUMENTS = 400


def main(argv: Sequence[str] | None = None) -> int:
    """Evaluate, print a table."""
    import torch

    options = _options(argv)
    torch.set_num_threads(options.threads)
    model, tokenizer = load(options.model)
    report(model, tokenizer, count=options.count, baseline=options.baseline, seed=options.seed)
    return 0


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="fulgurite.cli.demo.model.evaluate", description=__doc__)
    parser.add_argument("--model", help="a folder or an id (default: the bundled model)")
    parser.add_argument("--count", type=int, default=200, help="tasks of each kind")
    parser.add_argument(
        "--baseline", type=int, default=20_000, help="documents for the five-gram; 0 for none"
    )
    parser.add_argument("--seed", type=int, default=1, help="the seed of the training whose text it is")
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args(argv)


def report(model: Any, tokenizer: Any, *, count: int, baseline: int = 0, seed: int = 1) -> None:
    """Print the losses and behaviours of `model`, and of a five-gram from `baseline` documents."""
    columns = [_column(ModelCompleter(model, tokenizer), tokenizer, count)]
    losses = [model_losses(model, tokenizer)]
    if baseline:
        grams = _baseline(tokenizer, documents=baseline, seed=seed)
        columns.append(_column(grams, tokenizer, count))
        losses.append({kind: grams.loss(held_out(tokenizer, kind)) for kind in _kinds()})
    print("| measure | model |" + " five-gram |" * (len(columns) - 1))
    print("|---|---|" + "---|" * (len(columns) - 1))
    for kind in _kinds():
        cells = (f"{each[kind]:.3f} (perplexity {math.exp(each[kind]):.2f})" for each in losses)
        _row(f"loss, {kind or 'all kinds'}, nats/token", cells)
    for shares in zip(*columns, strict=True):
        _row(shares[0].name, (f"{100 * share.value:.1f} %" for share in shares))


def _row(name: str, cells: Iterator[str]) -> None:
    print(f"| {name} | {' | '.join(cells)} |", flush=True)


def _kinds() -> tuple[str | None, ...]:
    return (None, *MIX)


def _column(completer: Completer, tokenizer: Any, count: int) -> list[Share]:
    examiner = Examiner(completer, tokenizer, seed=EXAM_SEED)
    return [
        *examiner.shares(INDUCTION, count=count),
        *examiner.shares(BRACKETS, count=count, sampled=True),
        *examiner.shares({**GREEDY_BRACKETS, **SUMS}, count=count),
        *examiner.grammar(count=count),
    ]


def held_out(tokenizer: Any, kind: str | None) -> Iterator[list[int]]:
    """The documents that the held-out loss is taken on."""
    return encoded(islice(documents(EXAM_SEED, held_out=True, kind=kind), LOSS_DOCUMENTS), tokenizer)


def model_losses(model: Any, tokenizer: Any) -> dict[str | None, float]:
    """Held-out loss in nats per token, of the mix (None) and of each kind."""
    return {kind: _model_loss(model, list(held_out(tokenizer, kind))) for kind in _kinds()}


def _model_loss(model: Any, texts: list[list[int]]) -> float:
    import torch

    total, tokens = 0.0, 0
    with torch.inference_mode():
        for text in texts:
            ids = torch.tensor([text])
            total += float(model(input_ids=ids, labels=ids).loss) * (len(text) - 1)
            tokens += len(text) - 1
    return total / tokens


def _baseline(tokenizer: Any, *, documents: int, seed: int) -> NGram:
    texts = islice(training_documents(seed), documents)
    return NGram(encoded(texts, tokenizer), vocabulary=len(tokenizer), end=tokenizer.eos_token_id)


if __name__ == "__main__":
    sys.exit(main())
